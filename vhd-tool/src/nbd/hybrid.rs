//! Disks whose data is read from a device, and whose allocation an NBD server tells.

use std::num::ParseIntError;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;

use vhd_core::{ByteCount, FileOffset, SECTOR_SIZE, Sector, SectorRange};

use super::{Client, NbdError};
use crate::transport::{Address, ConnectError, ConnectOptions, Connection, PATIENCE};

/// A source given as `RAWDEVICE:NBDSERVER:EXPORT:SIZE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HybridSource {
    /// Where the data is read.
    pub(crate) raw: PathBuf,
    /// The Unix socket of the server that knows which of it is in use.
    pub(crate) server: PathBuf,
    /// The name of the export there.
    pub(crate) export: String,
    /// The length of the disk.
    pub(crate) size: ByteCount,
}

/// A disk whose allocation cannot be told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HybridError {
    /// There are not four parts, or empty ones.
    #[error("{text}: not RAWDEVICE:NBDSERVER:EXPORT:SIZE")]
    Parts {
        /// What was given.
        text: String,
    },
    /// The last part is not a number.
    #[error("{text}: the part after the last colon is no size in bytes")]
    Size {
        /// What was given.
        text: String,
        /// What is wrong with it.
        #[source]
        source: ParseIntError,
    },
    /// The server cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server does not tell.
    #[error("{}: cannot learn which ranges of export {export:?} are in use", server.display())]
    Nbd {
        /// Its socket.
        server: PathBuf,
        /// The export.
        export: String,
        /// What went wrong.
        #[source]
        source: NbdError,
    },
}

impl FromStr for HybridSource {
    type Err = HybridError;

    /// Takes size and export from the end, where neither holds a colon. What is left are two paths, with a colon
    /// between: the first that a slash follows, for paths of devices may hold others.
    fn from_str(text: &str) -> Result<Self, HybridError> {
        let parts = || {
            let (rest, size) = text.rsplit_once(':')?;
            let (paths, export) = rest.rsplit_once(':')?;
            let (raw, server) = match paths.find(":/") {
                Some(at) => (&paths[..at], &paths[at + 1..]),
                None => paths.split_once(':')?,
            };
            (!raw.is_empty() && !server.is_empty()).then_some((raw, server, export, size))
        };
        let (raw, server, export, size) = parts().ok_or_else(|| HybridError::Parts { text: text.into() })?;
        let size = size.parse().map_err(|source| HybridError::Size { text: text.into(), source })?;
        Ok(Self { raw: raw.into(), server: server.into(), export: export.into(), size: ByteCount(size) })
    }
}

impl HybridSource {
    /// Asks the server which sectors hold data. All others read as zeros.
    ///
    /// # Errors
    /// Fails if the server cannot be reached, or has no such export, or a smaller one.
    pub(crate) fn allocation(&self) -> Result<Allocation, HybridError> {
        let address = Address::Unix(self.server.clone());
        let connection = Connection::open(&address, &ConnectOptions::default())?;
        let asked = self.ask(connection).map(|ranges| Allocation::new(&ranges));
        asked.map_err(|source| HybridError::Nbd { server: self.server.clone(), export: self.export.clone(), source })
    }

    fn ask(&self, mut connection: Connection) -> Result<Vec<Range<FileOffset>>, NbdError> {
        connection.limit(Some(PATIENCE))?;
        let mut client = Client::connect(connection, &self.export)?;
        client.stream().limit(None)?;
        let ranges = client.allocated(FileOffset(0), self.size)?;
        client.disconnect()?;
        Ok(ranges)
    }
}

/// Which sectors of a disk hold data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Allocation {
    /// Sorted and apart from each other.
    ranges: Vec<SectorRange>,
}

impl Allocation {
    /// Takes sorted ranges that are apart from each other, and begin with sectors; the last sector of the disk may be
    /// cut short.
    pub(super) fn new(ranges: &[Range<FileOffset>]) -> Self {
        let sectors = |range: &Range<FileOffset>| {
            SectorRange::between(Sector(range.start.0 / SECTOR_SIZE), Sector(range.end.0.div_ceil(SECTOR_SIZE)))
        };
        Self { ranges: ranges.iter().map(sectors).collect() }
    }

    /// Lists what of `window` holds data.
    pub(crate) fn within(&self, window: SectorRange) -> Vec<SectorRange> {
        let first = self.ranges.partition_point(|range| range.end <= window.start);
        let touching = self.ranges[first..].iter().take_while(|range| range.start < window.end);
        touching.map(|range| SectorRange::between(range.start.max(window.start), range.end.min(window.end))).collect()
    }
}
