//! Changing what an image says of itself: hidden, size, parent. The image is used by nobody else meanwhile.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::bat::{self, Bat};
use crate::batmap::{self, BATMAP_HEADER_SIZE, Batmap, BatmapState};
use crate::block_size::BlockPlace;
use crate::footer::{DiskType, FOOTER_SIZE, Footer, MAX_VIRTUAL_SIZE, Timestamp};
use crate::header::{LOCATOR_ENTRIES, ParentRecord};
use crate::image::{Image, OpenError, Tables};
use crate::locator::{self, LocatorEntry, PlatformCode};
use crate::resolve::{Extents, Source};
use crate::storage::StorageError;
use crate::units::{BlockIndex, ByteCount, FileOffset, SECTOR_SIZE, Sector, SectorCount, SectorRange};
use crate::write::{ReadWrite, WriteError};

/// Why an image's metadata was not changed.
#[derive(Debug, thiserror::Error)]
pub enum MetadataError {
    /// A read or write failed.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// A disk of this size cannot be.
    #[error("{}: a disk cannot have {size} bytes: at most {MAX_VIRTUAL_SIZE}, in whole sectors", path.display())]
    Size {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        size: ByteCount,
    },
    /// A larger disk would bring back blocks that cannot be where the BAT puts them.
    #[error(transparent)]
    Blocks(#[from] OpenError),
    /// Only a differencing image has a parent.
    #[error("{}: not a differencing image, so it has no parent", path.display())]
    NoParent {
        /// The image.
        path: PathBuf,
    },
    /// A parent's path cannot be written into an image.
    #[error(transparent)]
    Link(#[from] LinkError),
}

impl From<StorageError> for MetadataError {
    fn from(error: StorageError) -> Self {
        Self::Write(error.into())
    }
}

/// Why a file cannot be recorded as a parent.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// It cannot be looked at.
    #[error("{}: cannot be made a parent", path.display())]
    Io {
        /// The parent, or the child's folder.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
    /// Locators hold text.
    #[error("{}: the path to a parent must be UTF-8 and at most 8192 UTF-16 units long", path.display())]
    Name {
        /// The parent.
        path: PathBuf,
    },
}

/// What a differencing image records of its parent.
#[derive(Clone, Debug)]
pub struct ParentLink {
    record: ParentRecord,
    locators: [(PlatformCode, Vec<u8>); 3],
}

impl ParentLink {
    /// Describes the parent in file `parent`, which exists, for a child in `folder`.
    ///
    /// `unique_id` is the parent's; the nil one stands for a raw parent.
    ///
    /// # Errors
    /// A file that cannot be looked at, or a path that a locator cannot hold.
    pub fn new(folder: &Path, parent: &Path, unique_id: Uuid) -> Result<Self, LinkError> {
        let real = |path: &Path| {
            let found = std::fs::canonicalize(path);
            found.map_err(|source| LinkError::Io { path: path.into(), source })
        };
        let (folder, parent) = (real(folder)?, real(parent)?);
        let modified = std::fs::metadata(&parent).and_then(|metadata| metadata.modified());
        let modified = modified.map_err(|source| LinkError::Io { path: parent.clone(), source })?;
        Self::to_named(&locator::relative_path(&folder, &parent), unique_id, modified.into())
    }

    /// Describes a parent by its path relative to the child's folder; nothing needs to be there yet.
    ///
    /// # Errors
    /// A path that a locator cannot hold.
    pub fn to_named(relative: &Path, unique_id: Uuid, timestamp: Timestamp) -> Result<Self, LinkError> {
        let unfit = || LinkError::Name { path: relative.into() };
        let locators = locator::encode_relative(relative).ok_or_else(unfit)?;
        let name = relative.file_name().and_then(|name| name.to_str()).ok_or_else(unfit)?.to_owned();
        Ok(Self { record: ParentRecord { unique_id, timestamp, name }, locators })
    }

    pub(crate) fn record(&self) -> &ParentRecord {
        &self.record
    }

    pub(crate) fn locators(&self) -> &[(PlatformCode, Vec<u8>); 3] {
        &self.locators
    }
}

impl Image<ReadWrite> {
    /// Marks the image as an inner node of a chain, or as a volume.
    ///
    /// # Errors
    /// A failed write or sync.
    ///
    /// # Crash safety
    /// One sector, the end footer, decides; the copy at the start follows once it is durable.
    pub fn set_hidden(&mut self, hidden: bool) -> Result<(), MetadataError> {
        self.flush()?;
        if self.footer.hidden() != hidden {
            let mut footer = self.footer.clone();
            footer.set_hidden(hidden);
            self.commit(|image| image.rewrite_footers(footer))?;
        }
        Ok(())
    }

    /// Runs the steps of a change; after one that failed, what the file says is not certain, and no more is written.
    fn commit<T>(&mut self, steps: impl FnOnce(&mut Self) -> Result<T, MetadataError>) -> Result<T, MetadataError> {
        self.check_not_failed()?;
        let result = steps(self);
        if result.is_err() {
            self.fail();
        }
        result
    }

    /// Writes another footer, at the end first and then at the start, each with a sync.
    fn rewrite_footers(&mut self, footer: Footer) -> Result<(), MetadataError> {
        self.footer = footer;
        let old = self.write_end_footer()?;
        self.container.sync()?;
        if self.tables.is_some() {
            self.container.write_at(&self.footer.to_bytes(), FileOffset(0))?;
        }
        if let Some(at) = old {
            self.container.write_at(&[0; FOOTER_SIZE.0 as usize], at)?;
        }
        Ok(self.container.sync()?)
    }

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
    /// the footer tells the new size. Of a fixed disk the file grows by the write of the new footer, and the old one is
    /// zeroed once that is durable; if power fails when the file is longer but the footer not yet written, the file has
    /// none and needs one made (its data is whole).
    pub fn set_size(&mut self, size: ByteCount, parent_size: ByteCount) -> Result<(), MetadataError> {
        if size > MAX_VIRTUAL_SIZE || !size.0.is_multiple_of(SECTOR_SIZE) {
            return Err(MetadataError::Size { path: self.path().into(), size });
        }
        self.flush()?;
        self.commit(|image| image.change_size(size, parent_size))
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
    fn move_bat(&mut self, entries: u32) -> Result<(), MetadataError> {
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

    /// Links a differencing image to another parent, whose content at every sector that this image does not hold must
    /// be what the old parent's was.
    ///
    /// Locators of kinds that we do not write are kept.
    ///
    /// # Errors
    /// An image that has no parent; a failed write or sync.
    ///
    /// # Crash safety
    /// New locator text is durable, in room that the header does not point to, before the header changes; so the image
    /// is linked to the old parent or to the new. The header is two sectors in one write: if the disk tears them, its
    /// checksum is wrong and the image is refused rather than misread.
    pub fn relink(&mut self, parent: &ParentLink) -> Result<(), MetadataError> {
        if self.footer.disk_type() != DiskType::Differencing {
            return Err(MetadataError::NoParent { path: self.path().into() });
        }
        self.flush()?;
        self.commit(|image| image.write_link(parent))
    }

    fn write_link(&mut self, parent: &ParentLink) -> Result<(), MetadataError> {
        let tables = self.tables.as_ref().expect("a differencing image has a header");
        let old: Vec<LocatorEntry> = tables.header.locators().map(|(_, entry)| entry).collect();
        let texts: Vec<&Vec<u8>> = parent.locators.iter().map(|(_, text)| text).collect();
        let room = self.locator_room(tables, &old, &texts)?;
        let mut at = room;
        let mut written = Vec::new();
        for (code, text) in &parent.locators {
            let entry = LocatorEntry::new(*code, ByteCount(text.len() as u64), at);
            let mut padded = text.clone();
            padded.resize(entry.space.0 as usize, 0);
            self.container.write_at(&padded, at)?;
            at = at + entry.space;
            written.push(entry);
        }
        let old_footer = self.write_end_footer()?;
        self.container.sync()?;

        let kept = old.iter().filter(|entry| matches!(entry.code, PlatformCode::Other(_)));
        let mut entries = [None; LOCATOR_ENTRIES];
        for (slot, entry) in entries.iter_mut().zip(written.iter().chain(kept)) {
            *slot = Some(*entry);
        }
        let mut header = tables.header.clone();
        header.set_parent(&parent.record, &entries);
        self.container.write_at(&header.to_bytes(), tables.header_at)?;
        if let Some(at) = old_footer {
            self.container.write_at(&[0; FOOTER_SIZE.0 as usize], at)?;
        }
        self.container.sync()?;
        self.tables.as_mut().expect("a differencing image has a header").header = header;
        Ok(())
    }

    /// Finds room for locator texts, each in whole sectors, that neither the present locators nor anything else use.
    ///
    /// Images that we make have room for two sets between the batmap and the first block; elsewhere the file grows.
    fn locator_room(
        &self,
        tables: &Tables,
        old: &[LocatorEntry],
        texts: &[&Vec<u8>],
    ) -> Result<FileOffset, MetadataError> {
        let need: u64 = texts.iter().map(|text| (text.len() as u64).next_multiple_of(SECTOR_SIZE)).sum();
        let used = tables.regions().map(|region| region.range).chain(old.iter().map(|entry| {
            let length = entry.length.max(entry.space).0.min(1 << 20);
            entry.offset..FileOffset(entry.offset.0.saturating_add(length))
        }));
        let mut used: Vec<_> = used.collect();
        used.sort_unstable_by_key(|range| range.start);
        let mut first_block = self.tail_end();
        // Also those beyond the end of a disk that has shrunk.
        for found in tables.bat.allocated(&self.container, tables.bat.entries()) {
            let place = BlockPlace::from_entry(found?.1, tables.header.block_size());
            first_block = first_block.min(place.bitmap);
        }
        let mut at = 0;
        for range in &used {
            let gap_end = range.start.0.min(first_block.0);
            if gap_end >= at + need {
                return Ok(FileOffset(at));
            }
            at = at.max(range.end.0.next_multiple_of(SECTOR_SIZE));
        }
        if first_block.0 >= at + need {
            return Ok(FileOffset(at));
        }
        Ok(self.allocate_bytes(ByteCount(need))?)
    }
}
