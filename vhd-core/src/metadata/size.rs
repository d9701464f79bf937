//! Making the disk larger or smaller.

use uuid::Uuid;

use super::MetadataError;
use crate::footer::{DiskType, FOOTER_SIZE, Footer, MAX_VIRTUAL_SIZE};
use crate::image::Image;
use crate::resolve::{Extents, Source};
use crate::storage::{Container, StorageError};
use crate::units::{ByteCount, FileOffset, SECTOR_SIZE, Sector, SectorCount, SectorRange};
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
    /// its zeros itself. Where the BAT needs more entries, or the tables do not lie before the first block, blocks that
    /// are in their way move to the end of the file, as by [`lay_out`](Self::lay_out).
    ///
    /// # Errors
    /// A size that cannot be, blocks beyond the old end that cannot be, no space, a failed write or sync.
    ///
    /// # Crash safety
    /// A larger BAT is there as [`lay_out`](Self::lay_out) makes it, and zeros are durable, before the footer tells the
    /// new size. Of a fixed disk the file grows by the write of a footer with the old size, and the
    /// old footer is zeroed once that is durable, before the new one tells the new size; if power fails when the file is
    /// longer but the footer not yet written, the file has none and needs one made (its data is whole).
    pub fn set_size(&mut self, size: ByteCount, parent_size: ByteCount) -> Result<(), MetadataError> {
        self.check_size(size)?;
        self.check_can_grow()?;
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
            if entries > tables.bat.entries() || !self.is_laid_out()? {
                let entries = entries.max(tables.bat.entries());
                self.arrange_entries(entries)?;
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
}
