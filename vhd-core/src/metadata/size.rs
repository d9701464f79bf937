//! Making the disk larger or smaller.

use uuid::Uuid;

use super::MetadataError;
use crate::bat::{self, Bat};
use crate::batmap::{self, BATMAP_HEADER_SIZE, Batmap, BatmapState};
use crate::footer::{DiskType, FOOTER_SIZE, Footer, MAX_VIRTUAL_SIZE};
use crate::image::{Image, Tables};
use crate::resolve::{Extents, Source};
use crate::storage::{Container, StorageError};
use crate::units::{BlockIndex, ByteCount, FileOffset, SECTOR_SIZE, Sector, SectorCount, SectorRange};
use crate::write::{ReadWrite, WriteError};

/// Takes back the growth of the fixed disk `unique_id` that power failed in: where its file, `length` bytes long before, still has its
/// footer there, it ends there again. Tells whether it does.
///
/// # Errors
/// A failed read, change of length or sync.
///
/// # Crash safety
/// Can be repeated.
pub fn cut_to_footer(container: &Container, length: ByteCount, unique_id: Uuid) -> Result<bool, StorageError> {
    let Some(at) = length.0.checked_sub(FOOTER_SIZE.0).filter(|_| container.len().is_ok_and(|len| len > length)) else {
        return Ok(false);
    };
    let mut bytes = [0; FOOTER_SIZE.0 as usize];
    container.read_at(&mut bytes, FileOffset(at))?;
    let is_fixed = |footer: &Footer| footer.disk_type() == DiskType::Fixed && footer.unique_id() == unique_id;
    let is_footer = Footer::try_from(&bytes).is_ok_and(|footer| is_fixed(&footer));
    if is_footer {
        container.set_len(length)?;
        container.sync()?;
    }
    Ok(is_footer)
}

impl Image<ReadWrite> {
    /// Makes the disk larger, or smaller without touching what lies beyond its new end. New sectors read as zeros.
    ///
    /// `parent_size` is the size of the parent's disk, or zero: as far as a parent reaches, a disk that grows must hold
    /// its zeros itself. The BAT moves to the end of the file where it needs more entries; blocks stay where they are.
    ///
    /// # Errors
    /// A size that cannot be, blocks beyond the old end that cannot be, no space, a failed write or sync.
    ///
    /// # Crash safety
    /// A larger BAT is complete and durable before the header's first sector points to it, and that, and zeros, before
    /// the footer tells the new size. Of a fixed disk the file grows by the write of a footer with the old size, and the
    /// old footer is zeroed once that is durable, before the new one tells the new size; if power fails when the file is
    /// longer but the footer not yet written, the file has none and needs one made (its data is whole).
    pub fn set_size(&mut self, size: ByteCount, parent_size: ByteCount) -> Result<(), MetadataError> {
        self.check_size(size)?;
        self.flush()?;
        self.commit(|image| image.change_size(size, parent_size))
    }

    pub(super) fn check_size(&self, size: ByteCount) -> Result<(), MetadataError> {
        if size > MAX_VIRTUAL_SIZE || !size.0.is_multiple_of(SECTOR_SIZE) {
            return Err(MetadataError::Size { path: self.path().into(), size });
        }
        Ok(())
    }

    fn change_size(&mut self, size: ByteCount, parent_size: ByteCount) -> Result<(), MetadataError> {
        if let Some(tables) = &self.tables {
            let blocks = tables.header.block_size().blocks_for(size);
            let entries = u32::try_from(blocks).expect("2040 GiB in blocks of 4 KiB are fewer than 2^32");
            if entries > tables.bat.entries() {
                self.move_bat(entries)?;
            }
        }
        let old = self.footer.clone();
        let added = SectorRange::between(Sector(self.sectors().0), Sector(size.whole_sectors().0));
        self.footer.set_current_size(size);
        let new = self.footer.clone();
        let leftovers = self.leftovers(added);
        // Until everything is in place, the file goes on telling the old size.
        self.footer = old;
        self.zero_added(&leftovers?, Sector(parent_size.whole_sectors().0))?;
        if self.tables.is_none() && FileOffset(size.0) > self.tail_end() {
            self.move_tail(FileOffset(size.0));
            // The old footer must not show as content: it goes while the disk still ends before it.
            self.rewrite_footers(self.footer.clone())?;
        }
        self.rewrite_footers(new)
    }

    /// What the file holds of sectors beyond the end of the disk: a disk that has shrunk leaves them.
    fn leftovers(&self, added: SectorRange) -> Result<Extents, MetadataError> {
        let mut extents = Extents::default();
        // Blocks beyond the end were not looked at when the image was opened.
        self.check_blocks()?;
        if !added.is_empty() {
            self.resolve(added, &mut extents).map_err(WriteError::from)?;
        }
        Ok(extents)
    }

    fn zero_added(&self, leftovers: &Extents, parent_end: Sector) -> Result<(), MetadataError> {
        for extent in leftovers.as_slice() {
            match extent.source {
                Source::Zero => {}
                Source::Data(at) => {
                    // Of a fixed disk, what lies past the old end is new, but for the old footer, which is still needed.
                    let end = at + extent.sectors.count().bytes();
                    let end = if self.tables.is_none() { end.min(self.tail_end()) } else { end };
                    if at < end {
                        self.container.zero_range(at, end - at)?;
                        self.container.sync()?;
                    }
                }
                Source::Parent => {
                    let covered = SectorRange::between(extent.sectors.start, extent.sectors.end.min(parent_end));
                    let block = self.header().map_or(SectorCount(1), |header| header.block_size().sectors());
                    for piece in covered.split_at_multiples(block) {
                        let at = self.place_for(piece)?;
                        self.container.zero_range(at, piece.count().bytes())?;
                        self.mark_present(piece)?;
                    }
                }
            }
        }
        Ok(self.flush()?)
    }

    /// Writes a BAT of `entries` and its batmap at the end of the file, and then lets the header point there.
    pub(crate) fn move_bat(&mut self, entries: u32) -> Result<(), MetadataError> {
        let tables = self.tables.as_ref().expect("only called with tables");
        let with_batmap = tables.batmap != BatmapState::Absent;
        let batmap_room = if with_batmap { BATMAP_HEADER_SIZE + batmap::map_size(entries) } else { ByteCount(0) };
        let at = self.allocate_bytes(bat::table_size(entries) + batmap_room)?;
        self.copy_bat(tables, at, entries)?;
        let mut header = tables.header.clone();
        header.set_table(at, entries);
        let batmap = self.move_batmap(tables, batmap::header_offset(&header), entries)?;
        let old_footer = self.write_end_footer()?;
        self.container.sync()?;

        // Table offset, entries and checksum are all in the first of the header's two sectors.
        self.container.write_at(&header.to_bytes()[..SECTOR_SIZE as usize], tables.header_at)?;
        if let Some(at) = old_footer {
            self.container.write_at(&[0; FOOTER_SIZE.0 as usize], at)?;
        }
        self.container.sync()?;
        let tables = self.tables.as_mut().expect("only called with tables");
        tables.header = header;
        tables.bat = Bat::new(at, entries);
        tables.batmap = batmap;
        self.forget_batmap();
        Ok(())
    }

    fn copy_bat(&self, tables: &Tables, at: FileOffset, entries: u32) -> Result<(), StorageError> {
        const STEP: u32 = 64 * 1024;
        let mut old = tables.bat.allocated(&self.container, tables.bat.entries()).peekable();
        for first in (0..entries).step_by(STEP as usize) {
            let count = (entries - first).min(STEP);
            let mut step = vec![crate::format::UNALLOCATED; count as usize];
            while let Some(found) =
                old.next_if(|found| found.as_ref().map_or(true, |(block, _)| block.0 < first + count))
            {
                let (block, entry) = found?;
                step[(block.0 - first) as usize] = entry;
            }
            self.container.write_at(&bat::encode(&step), at + ByteCount(u64::from(first) * 4))?;
        }
        Ok(())
    }

    fn move_batmap(&self, tables: &Tables, at: FileOffset, entries: u32) -> Result<BatmapState, WriteError> {
        let (mut batmap, full) = match &tables.batmap {
            BatmapState::Absent => return Ok(BatmapState::Absent),
            BatmapState::Overwritten => (Batmap::new(at, entries), Vec::new()),
            BatmapState::Present(old) => {
                let mut full: Vec<BlockIndex> = Vec::new();
                // Clear bits are always right: readers then look at the bitmaps.
                if old.is_intact(&self.container)? {
                    old.for_each(&self.container, tables.bat.entries(), |block, bit| {
                        full.extend(bit.then_some(block));
                    })?;
                }
                (old.moved(at, entries), full)
            }
        };
        self.container.zero_range(batmap.map_offset(), batmap.map_size())?;
        batmap.mark_full(&self.container, &full, entries, |_| Ok::<_, WriteError>(false))?;
        Ok(BatmapState::Present(Box::new(batmap)))
    }
}
