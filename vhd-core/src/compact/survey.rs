//! What blocks hold: nothing, zeros, or data with pages of zeros in between.

use std::ops::Range;

use super::{BATCH, Batch, CompactError, Compaction, Staying};
use crate::block_size::BlockPlace;
use crate::chain::{Chain, is_zeros};
use crate::image::{Image, Tables};
use crate::storage::StorageError;
use crate::units::{BlockIndex, ByteCount, FileOffset, SECTOR_SIZE, Sector, SectorRange};

/// What file systems give space by.
const PAGE: u64 = 4096;
/// The most that is read at once.
const CHUNK: u64 = 1 << 20;

/// What a block holds of the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// No sector.
    Nothing,
    /// Zeros, and without them the disk reads zeros too.
    Zeros,
    /// Something that it must go on holding, but for these pages of the file.
    Data {
        /// Pages that are no holes, and hold nothing or zeros.
        zeros: Vec<Range<FileOffset>>,
    },
}

/// Looks at the blocks of an image.
pub(super) struct Surveyor<'a, Mode> {
    image: &'a Image<Mode>,
    tables: &'a Tables,
    parents: Option<&'a Chain>,
    room: FileOffset,
    buffer: Vec<u8>,
    /// What the file has told last of its holes: from where on data was looked for, and what was found.
    known: Option<(FileOffset, Option<Range<FileOffset>>)>,
}

impl<'a, Mode> Surveyor<'a, Mode> {
    pub(super) fn new(
        image: &'a Image<Mode>,
        tables: &'a Tables,
        parents: Option<&'a Chain>,
        room: FileOffset,
    ) -> Self {
        Self { image, tables, parents, room, buffer: Vec::new(), known: None }
    }

    /// Looks at a batch of blocks.
    pub(super) fn batch(
        &mut self,
        first: u32,
        compaction: &mut Compaction,
        staying: &mut Staying,
        progress: &mut impl FnMut(ByteCount),
    ) -> Result<Batch, CompactError> {
        let mut batch = Batch::default();
        let size = self.tables.header.block_size();
        let end = self.image.blocks().min(first.saturating_add(BATCH));
        let tables = self.tables;
        for found in tables.bat.allocated_in(&self.image.container, first..end) {
            let (block, entry) = found?;
            let place = self.image.checked_place(tables, block, entry)?;
            let content = self.look_at(block, place)?;
            let space = match &content {
                Content::Data { .. } => ByteCount(0),
                _ => total(&self.data_in(place.bitmap, self.end_of(place))?),
            };
            compaction.count(&content, space);
            match content {
                Content::Data { zeros } => {
                    staying.add(block, place);
                    compaction.holes += total(&zeros);
                    batch.holes.extend(zeros);
                }
                Content::Nothing | Content::Zeros => batch.release.push(block),
            }
            progress(ByteCount(size.sectors_of(block).end.byte_offset()));
        }
        Ok(batch)
    }

    /// Where a block ends, or is cut short.
    fn end_of(&self, place: BlockPlace) -> FileOffset {
        (place.data + self.tables.header.block_size().bytes()).min(self.room)
    }

    fn look_at(&mut self, block: BlockIndex, place: BlockPlace) -> Result<Content, CompactError> {
        let sectors = self.tables.header.block_size().sectors_of(block);
        let on_disk = sectors.end.min(Sector(self.image.sectors().0)) - sectors.start;
        let bitmap = self.tables.read_bitmap(&self.image.container, place)?;
        let runs = bitmap.runs(0..on_disk.0 as u32).filter(|(_, set)| *set).map(|(run, _)| run);
        let present: Vec<Range<u32>> = runs.collect();
        let Some(last) = present.last() else { return Ok(Content::Nothing) };
        if place.data + ByteCount(u64::from(last.end) * SECTOR_SIZE) > self.room {
            let path = self.image.path().into();
            return Err(CompactError::CutShort { path, block, place: place.bitmap, room: self.room });
        }
        let mut needed = vec![false; on_disk.0 as usize];
        for run in &present {
            self.mark_data(place, run, &mut needed)?;
        }
        if !needed.contains(&true) && self.is_zero_beneath(sectors.start, &present)? {
            return Ok(Content::Zeros);
        }
        Ok(Content::Data { zeros: self.zero_pages(place, &needed)? })
    }

    /// Marks the sectors of a run that are not zero.
    fn mark_data(&mut self, place: BlockPlace, run: &Range<u32>, needed: &mut [bool]) -> Result<(), StorageError> {
        let offset = |sector: u32| place.data + ByteCount(u64::from(sector) * SECTOR_SIZE);
        for data in self.data_in(offset(run.start), offset(run.end))? {
            // Holes may start and end within a sector.
            let first = (data.start - place.data).0 / SECTOR_SIZE;
            let end = (data.end - place.data).0.div_ceil(SECTOR_SIZE);
            for from in (first..end).step_by((CHUNK / SECTOR_SIZE) as usize) {
                let count = (end - from).min(CHUNK / SECTOR_SIZE);
                self.buffer.resize((count * SECTOR_SIZE) as usize, 0);
                self.image.container.read_at(&mut self.buffer, place.data + ByteCount(from * SECTOR_SIZE))?;
                let sectors = self.buffer.chunks(SECTOR_SIZE as usize);
                for (needed, sector) in needed[from as usize..].iter_mut().zip(sectors) {
                    *needed = !is_zeros(sector);
                }
            }
        }
        Ok(())
    }

    /// Tells whether the disk reads zeros where these sectors of a block are not held any more.
    fn is_zero_beneath(&self, start: Sector, present: &[Range<u32>]) -> Result<bool, CompactError> {
        if !self.image.is_differencing() {
            return Ok(true);
        }
        let Some(parents) = self.parents else { return Ok(false) };
        for run in present {
            let range =
                SectorRange::between(Sector(start.0 + u64::from(run.start)), Sector(start.0 + u64::from(run.end)));
            if !parents.is_zero(range)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Lists the whole pages of the file in a block that hold nothing that is needed, and are no holes.
    fn zero_pages(&mut self, place: BlockPlace, needed: &[bool]) -> Result<Vec<Range<FileOffset>>, StorageError> {
        let mut pages: Vec<Range<FileOffset>> = Vec::new();
        let first = place.data.0.next_multiple_of(PAGE);
        let end = self.end_of(place).0 / PAGE * PAGE;
        for page in (first..end).step_by(PAGE as usize) {
            let sector = ((page - place.data.0) / SECTOR_SIZE) as usize;
            let sectors = needed.get(sector..).unwrap_or_default();
            if sectors.iter().take((PAGE / SECTOR_SIZE) as usize).any(|&needed| needed) {
                continue;
            }
            let page = FileOffset(page)..FileOffset(page + PAGE);
            match pages.last_mut() {
                Some(last) if last.end == page.start => last.end = page.end,
                _ => pages.push(page),
            }
        }
        let mut found = Vec::new();
        for run in pages {
            for data in self.data_in(run.start, run.end)? {
                let start = FileOffset(data.start.0 / PAGE * PAGE);
                let end = FileOffset(data.end.0.next_multiple_of(PAGE));
                found.push(start..end);
            }
        }
        Ok(found)
    }

    /// Lists the parts of a range of the file that are no holes.
    fn data_in(&mut self, start: FileOffset, end: FileOffset) -> Result<Vec<Range<FileOffset>>, StorageError> {
        let mut found = Vec::new();
        let mut at = start;
        while at < end {
            let data = match &self.known {
                // All from there up to the end of what was found has been told.
                Some((from, data)) if *from <= at && data.as_ref().is_none_or(|data| at < data.end) => data.clone(),
                _ => {
                    let data = self.image.container.next_data(at)?;
                    self.known = Some((at, data.clone()));
                    data
                }
            };
            let Some(data) = data.filter(|data| data.start < end) else { break };
            found.push(data.start.max(at)..data.end.min(end));
            at = data.end;
        }
        Ok(found)
    }
}

fn total(ranges: &[Range<FileOffset>]) -> ByteCount {
    ranges.iter().map(|range| range.end - range.start).fold(ByteCount(0), |sum, length| sum + length)
}
