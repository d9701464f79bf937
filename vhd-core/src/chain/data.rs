//! What a disk holds besides zeros.

use std::ops::Range;

use super::{Chain, ChainExtent, ChainSource};
use crate::buffer::Buffer;
use crate::image::ReadError;
use crate::storage::StorageError;
use crate::units::{ByteCount, FileOffset, SECTOR_SIZE, Sector, SectorCount, SectorRange};

/// The most that is read at once: 1 MiB.
const CHUNK: SectorCount = SectorCount(2048);
/// What is left out where it is all zeros: what file systems give space by.
const PAGE: SectorCount = SectorCount(8);
/// How much is looked at together from the end of a range: 1 GiB.
const WINDOW: SectorCount = SectorCount(1 << 21);
static ZEROS: [u8; PAGE.bytes().0 as usize] = [0; PAGE.bytes().0 as usize];

impl Chain {
    /// Lists the ranges of the disk that may hold anything but zeros, in order, as far as tables and holes tell.
    pub fn data_ranges(&self) -> impl Iterator<Item = Result<SectorRange, ReadError>> + '_ {
        self.data_ranges_in(SectorRange::new(Sector(0), self.sectors()))
    }

    /// As [`data_ranges`](Self::data_ranges), for a part of the disk.
    pub fn data_ranges_in(&self, range: SectorRange) -> impl Iterator<Item = Result<SectorRange, ReadError>> + '_ {
        let mut holes = Holes { known: vec![FileOffset(0)..FileOffset(0); self.layers().len()] };
        let found = self.extents(range).flat_map(move |extent| match extent {
            Ok(extent) => holes.data_of(self, extent),
            Err(error) => vec![Err(error)],
        });
        joined(found)
    }

    /// Tells whether all sectors of a range read as zeros.
    ///
    /// # Errors
    /// A BAT entry that cannot be, a failed read.
    pub fn is_zero(&self, range: SectorRange) -> Result<bool, ReadError> {
        let mut buffer = Vec::new();
        for data in self.data_ranges_in(range) {
            for piece in data?.split_at_multiples(CHUNK) {
                buffer.resize(piece.count().bytes().0 as usize, 0);
                self.read(piece, &mut buffer)?;
                if !is_zeros(&buffer) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Finds the last sector of a range that does not read as zeros, looking from its end.
    ///
    /// # Errors
    /// A BAT entry that cannot be, a failed read.
    pub fn last_nonzero(&self, range: SectorRange) -> Result<Option<Sector>, ReadError> {
        let mut buffer = Vec::new();
        let mut end = range.end;
        while end > range.start {
            let start = Sector(end.0.saturating_sub(WINDOW.0)).max(range.start);
            let found = self.data_ranges_in(SectorRange::between(start, end)).collect::<Result<Vec<_>, _>>()?;
            for data in found.into_iter().rev() {
                let pieces: Vec<_> = data.split_at_multiples(CHUNK).collect();
                for piece in pieces.into_iter().rev() {
                    buffer.resize(piece.count().bytes().0 as usize, 0);
                    self.read(piece, &mut buffer)?;
                    if let Some(last) = buffer.chunks(SECTOR_SIZE as usize).rposition(|sector| !is_zeros(sector)) {
                        return Ok(Some(piece.start + SectorCount(last as u64)));
                    }
                }
            }
            end = start;
        }
        Ok(None)
    }

    /// Reads everything that is not zero, by pages of 4 KiB, in the order of the disk, and hands it to `write`. After
    /// each piece `progress` is told how far into the disk that was.
    ///
    /// # Errors
    /// A failed read; those of `write`.
    pub fn copy_data<E: From<ReadError>>(
        &self,
        mut write: impl FnMut(SectorRange, &[u8]) -> Result<(), E>,
        mut progress: impl FnMut(ByteCount),
    ) -> Result<(), E> {
        let mut buffer = Buffer::new(CHUNK.bytes());
        for range in self.data_ranges() {
            for piece in range?.split_at_multiples(CHUNK) {
                let bytes = &mut buffer[..piece.count().bytes().0 as usize];
                self.read(piece, bytes)?;
                for run in nonzero_runs(piece, bytes) {
                    let from = (run.start - piece.start).bytes().0 as usize;
                    write(run, &bytes[from..from + run.count().bytes().0 as usize])?;
                }
                progress(ByteCount(piece.end.byte_offset()));
            }
        }
        progress(self.sectors().bytes());
        Ok(())
    }
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

/// Tells whether bytes are all zero.
pub fn is_zeros(bytes: &[u8]) -> bool {
    bytes.chunks(ZEROS.len()).all(|page| *page == ZEROS[..page.len()])
}

/// Finds the parts of `range` that are not zero, by pages of the disk.
fn nonzero_runs(range: SectorRange, bytes: &[u8]) -> Vec<SectorRange> {
    let mut runs: Vec<SectorRange> = Vec::new();
    for page in range.split_at_multiples(PAGE) {
        let from = (page.start - range.start).bytes().0 as usize;
        let length = page.count().bytes().0 as usize;
        if bytes[from..from + length] == ZEROS[..length] {
            continue;
        }
        match runs.last_mut() {
            Some(last) if last.end == page.start => last.end = page.end,
            _ => runs.push(page),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use super::*;
    use crate::image::{Layer, RawDisk};
    use crate::storage::{Container, FileStorage, Lock};

    #[test]
    fn holes_are_no_data() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        let file = File::create(&path).unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[1; 4096], 4 << 20).unwrap();
        let storage = FileStorage::open(&path, Lock::None).unwrap();
        let disk = RawDisk::open(Container::new(&path, Arc::new(storage))).unwrap();
        let chain = Chain::from_layers(vec![Layer::Raw(disk)]);
        let ranges: Vec<_> = chain.data_ranges().collect::<Result<_, _>>().unwrap();
        assert_eq!(ranges, [SectorRange::new(Sector(8192), SectorCount(8))]);
    }

    #[test]
    fn zero_pages_of_the_disk_are_left_out() {
        // Sectors 4..36: a half page, three pages, a half page.
        let range = SectorRange::between(Sector(4), Sector(36));
        let mut bytes = vec![0; range.count().bytes().0 as usize];
        assert_eq!(nonzero_runs(range, &bytes), []);
        let at = |sector: u64| ((sector - 4) * 512) as usize;
        bytes[at(7)] = 1;
        bytes[at(8) + 511] = 1;
        bytes[at(35)] = 1;
        let run = |start, end| SectorRange::between(Sector(start), Sector(end));
        assert_eq!(nonzero_runs(range, &bytes), [run(4, 16), run(32, 36)]);
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
