//! Disks that are only read: VHD chains, and raw files where a command takes them.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use vhd_core::{
    ByteCount, Chain, ChainError, ChainExtent, ChainOptions, ChainSource, Container, FileOffset, FileStorage,
    FooterError, Layer, Lock, OpenError, RawDisk, ReadError, SECTOR_SIZE, Sector, SectorCount, SectorRange,
    StorageError,
};

/// The most that is read at once.
pub(crate) const CHUNK: SectorCount = SectorCount(2048);

/// Opens a VHD and its parents, or a raw file: one that shows no footer and is not called `*.vhd`.
///
/// Where nobody else has it locked, it is locked against whoever would take away what it reads.
pub(crate) fn open(path: &Path, options: &ChainOptions) -> Result<Chain, ChainError> {
    let chain = match Chain::open_locked(path, options, Lock::Shared) {
        Err(ChainError::Open(OpenError::Storage(error))) if error.source.kind() == io::ErrorKind::ResourceBusy => {
            Chain::open(path, options)
        }
        chain => chain,
    };
    match chain {
        // Only where there is no trace of a footer. A damaged VHD must not be taken for the disk that it holds.
        Err(ChainError::Open(OpenError::Footer { source: FooterError::Cookie { .. }, .. })) if !is_named_vhd(path) => {
            Ok(Chain::from_layers(vec![Layer::Raw(open_raw(path)?)]))
        }
        result => result,
    }
}

fn is_named_vhd(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("vhd"))
}

/// Opens a raw file as a disk of whole sectors, the last one padded with zeros.
pub(crate) fn open_raw(path: &Path) -> Result<RawDisk, StorageError> {
    let file = FileStorage::open(path, Lock::None);
    let file = file.map_err(|source| StorageError {
        path: path.into(),
        action: "open".into(),
        offset: FileOffset(0),
        source,
    })?;
    RawDisk::open(Container::new(path, Arc::new(file)))
}

/// Lists the ranges of a disk that may hold anything but zeros, in order, as far as tables and holes tell.
pub(crate) fn data_ranges(chain: &Chain) -> impl Iterator<Item = Result<SectorRange, ReadError>> + '_ {
    let disk = SectorRange::new(Sector(0), chain.sectors());
    let mut holes = Holes { known: vec![FileOffset(0)..FileOffset(0); chain.layers().len()] };
    let found = chain.extents(disk).flat_map(move |extent| match extent {
        Ok(extent) => holes.data_of(chain, extent),
        Err(error) => vec![Err(error)],
    });
    joined(found)
}

/// What the files have told of their holes: for each layer the data that was found last.
struct Holes {
    known: Vec<Range<FileOffset>>,
}

impl Holes {
    /// Lists the parts of an extent that its file does not hold as holes.
    fn data_of(&mut self, chain: &Chain, extent: ChainExtent) -> Vec<Result<SectorRange, ReadError>> {
        let ChainSource::Data { layer, at } = extent.source else { return Vec::new() };
        let SectorRange { start, end } = extent.sectors;
        let mut found = Vec::new();
        let mut next = start;
        while next < end {
            let data = match self.next_data(chain, layer, at + (next - start).bytes()) {
                Ok(data) => data,
                Err(error) => {
                    found.push(Err(error.into()));
                    break;
                }
            };
            // Holes start and end anywhere; a sector that is partly data is data.
            let Some(data) = data else { break };
            let first = start + ByteCount(data.start.0.saturating_sub(at.0)).whole_sectors();
            let last = Sector(start.0 + (data.end - at).0.div_ceil(SECTOR_SIZE));
            let part = SectorRange::between(first.max(next).min(end), last.min(end));
            next = part.end;
            if !part.is_empty() {
                found.push(Ok(part));
            }
        }
        found
    }

    /// Finds the data at or after `from`. A file is asked only about what its last answer did not cover: on some file
    /// systems an answer costs as much as the data that it covers is long.
    fn next_data(
        &mut self,
        chain: &Chain,
        layer: usize,
        from: FileOffset,
    ) -> Result<Option<Range<FileOffset>>, StorageError> {
        let known = &mut self.known[layer];
        if !known.contains(&from) {
            match chain.layers()[layer].container().next_data(from)? {
                Some(data) => *known = data,
                None => return Ok(None),
            }
        }
        Ok(Some(known.clone()))
    }
}

/// Joins neighbours.
fn joined(
    mut ranges: impl Iterator<Item = Result<SectorRange, ReadError>>,
) -> impl Iterator<Item = Result<SectorRange, ReadError>> {
    let mut pending: Option<SectorRange> = None;
    let mut failed = None;
    std::iter::from_fn(move || {
        loop {
            if let Some(error) = failed.take() {
                return Some(Err(error));
            }
            match ranges.next() {
                None => return pending.take().map(Ok),
                Some(Ok(range)) => match &mut pending {
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => {
                        if let Some(done) = pending.replace(range) {
                            return Some(Ok(done));
                        }
                    }
                },
                Some(Err(error)) => {
                    failed = Some(error);
                    if let Some(done) = pending.take() {
                        return Some(Ok(done));
                    }
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, SeekFrom, Write};

    use super::*;

    fn sparse_raw(folder: &Path, len: u64, at: u64, bytes: &[u8]) -> std::path::PathBuf {
        let path = folder.join("disk.img");
        let mut file = File::create(&path).unwrap();
        file.set_len(len).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(bytes).unwrap();
        path
    }

    #[test]
    fn a_raw_file_is_padded_to_a_sector() {
        let folder = tempfile::tempdir().unwrap();
        let path = sparse_raw(folder.path(), 700, 690, b"0123456789");
        let chain = open(&path, &ChainOptions::default()).unwrap();
        assert_eq!(chain.size(), ByteCount(1024));
        let mut bytes = [0xff; 512];
        chain.read(SectorRange::new(Sector(1), SectorCount(1)), &mut bytes).unwrap();
        assert_eq!(&bytes[178..188], b"0123456789");
        assert!(bytes[188..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn holes_are_no_data() {
        let folder = tempfile::tempdir().unwrap();
        let path = sparse_raw(folder.path(), 8 << 20, 4 << 20, &[1; 4096]);
        let chain = open(&path, &ChainOptions::default()).unwrap();
        let ranges: Vec<_> = data_ranges(&chain).collect::<Result<_, _>>().unwrap();
        assert_eq!(ranges, [SectorRange::new(Sector(8192), SectorCount(8))]);
    }

    #[test]
    fn a_file_named_vhd_is_never_raw() {
        let folder = tempfile::tempdir().unwrap();
        let path = sparse_raw(folder.path(), 4096, 0, b"x");
        let named = folder.path().join("disk.VHD");
        std::fs::rename(path, &named).unwrap();
        assert!(matches!(open(&named, &ChainOptions::default()), Err(ChainError::Open(OpenError::Footer { .. }))));
    }

    #[test]
    fn neighbours_are_joined_and_errors_keep_their_place() {
        let range = |start, end| Ok(SectorRange::between(Sector(start), Sector(end)));
        let error = ReadError::Range {
            path: "x".into(),
            range: SectorRange::between(Sector(0), Sector(1)),
            size: SectorCount(0),
        };
        let found: Vec<_> = joined([range(0, 1), range(1, 2), range(3, 4), Err(error)].into_iter()).collect();
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].as_ref().unwrap().end, Sector(2));
        assert!(found[2].is_err());
    }
}
