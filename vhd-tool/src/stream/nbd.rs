//! NBD: a disk that is sent to a server, and one that a client writes to us.

use std::io;

use vhd_core::{ByteCount, Container, FileOffset};

use super::failure::StreamFailure;
use super::meter::Meter;
use super::peer::Duplex;
use super::pump::Destination;
use crate::error::CommandError;
use crate::nbd::{Client, Export, NbdError, serve};
use crate::transport::PATIENCE;

/// Writes to the default export of a server.
pub(crate) struct NbdWriter<'a> {
    client: Option<Client<&'a mut dyn Duplex>>,
    /// The server has nothing but zeros already.
    prezeroed: bool,
}

impl<'a> NbdWriter<'a> {
    /// Greets the server.
    ///
    /// # Errors
    /// Fails if it speaks no NBD, or its disk is smaller than `size`.
    pub(crate) fn new(stream: &'a mut dyn Duplex, size: ByteCount, prezeroed: bool) -> Result<Self, CommandError> {
        stream.limit(Some(PATIENCE)).map_err(NbdError::Io)?;
        let mut client = Client::connect(stream, "")?;
        client.stream().limit(None).map_err(NbdError::Io)?;
        let length = client.size();
        if length < size {
            return Err(StreamFailure::TooSmall { path: "the NBD export".into(), length, size }.into());
        }
        Ok(Self { client: Some(client), prezeroed })
    }

    fn client(&mut self) -> &mut Client<&'a mut dyn Duplex> {
        self.client.as_mut().expect("nothing is written after the end")
    }
}

impl Destination for NbdWriter<'_> {
    fn data(&mut self, at: ByteCount, bytes: &[u8]) -> Result<(), CommandError> {
        Ok(self.client().write_at(FileOffset(at.0), bytes)?)
    }

    fn zeros(&mut self, at: ByteCount, length: ByteCount) -> Result<(), CommandError> {
        if self.prezeroed {
            return Ok(());
        }
        Ok(self.client().zero(FileOffset(at.0), length)?)
    }

    fn finish(&mut self) -> Result<(), CommandError> {
        let Some(mut client) = self.client.take() else { return Ok(()) };
        client.flush()?;
        Ok(client.disconnect()?)
    }
}

/// Lets a client write to a file or device, which is synced at the end.
///
/// # Errors
/// Fails if the client breaks off, or the disk fails; a device that is smaller than `size`.
pub(crate) fn receive(
    mut stream: &mut dyn Duplex,
    container: Container,
    size: ByteCount,
    meter: Meter,
) -> Result<(), CommandError> {
    let length = container.len()?;
    if size > length {
        if container.has_fixed_size() {
            return Err(StreamFailure::TooSmall { path: container.path().into(), length, size }.into());
        }
        container.set_len(size)?;
    }
    let mut disk = ServedDisk { container, size, meter, end: ByteCount(0) };
    serve(&mut stream, &mut disk)?;
    disk.container.sync()?;
    disk.meter.finish();
    Ok(())
}

/// A file or device as a client sees it.
struct ServedDisk {
    container: Container,
    size: ByteCount,
    meter: Meter,
    /// How far it was written, for clients that begin at the start.
    end: ByteCount,
}

impl ServedDisk {
    fn note(&mut self, offset: FileOffset, length: u64) {
        self.end = self.end.max(ByteCount(offset.0 + length));
        self.meter.set(self.end);
    }
}

impl Export for ServedDisk {
    fn size(&self) -> ByteCount {
        self.size
    }

    fn read_at(&mut self, offset: FileOffset, bytes: &mut [u8]) -> io::Result<()> {
        self.container.storage().read_at(bytes, offset)
    }

    fn write_at(&mut self, offset: FileOffset, bytes: &[u8]) -> io::Result<()> {
        self.container.storage().write_at(bytes, offset)?;
        self.note(offset, bytes.len() as u64);
        Ok(())
    }

    fn zero(&mut self, offset: FileOffset, length: ByteCount, _may_be_hole: bool) -> io::Result<()> {
        self.container.storage().zero_range(offset, length)?;
        self.note(offset, length.0);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        self.container.storage().sync()
    }
}
