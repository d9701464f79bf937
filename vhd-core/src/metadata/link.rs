//! Who an image's parent is.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::MetadataError;
use crate::bat;
use crate::block_size::BlockPlace;
use crate::footer::{DiskType, FOOTER_SIZE, Timestamp};
use crate::gate::real_path;
use crate::header::{HEADER_SIZE, Header, LOCATOR_ENTRIES, ParentRecord};
use crate::image::{Image, Tables};
use crate::locator::{self, LocatorEntry, PlatformCode};
use crate::storage::{Container, StorageError};
use crate::units::{ByteCount, FileOffset, SECTOR_SIZE};
use crate::write::ReadWrite;

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
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| LinkError::Io { path, source }
        };
        let folder = folder.canonicalize().map_err(failed(folder))?;
        let parent = real_path(parent).map_err(failed(parent))?;
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

/// The change of a header, which is two sectors: what a log must hold to finish one that power failed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderChange {
    /// Where the header is.
    pub at: FileOffset,
    /// What it was.
    pub old: [u8; HEADER_SIZE.0 as usize],
    /// What it becomes.
    pub new: [u8; HEADER_SIZE.0 as usize],
}

impl HeaderChange {
    /// Makes a header what it was to become, if each of its sectors is either the old or the new one; tells whether
    /// it now is.
    ///
    /// # Errors
    /// A failed read, write or sync.
    ///
    /// # Crash safety
    /// Can be repeated.
    pub fn finish(&self, container: &Container) -> Result<bool, StorageError> {
        let mut found = [0; HEADER_SIZE.0 as usize];
        container.read_at(&mut found, self.at)?;
        let sectors = |bytes: &[u8; HEADER_SIZE.0 as usize]| {
            bytes.chunks(SECTOR_SIZE as usize).map(<[u8]>::to_vec).collect::<Vec<_>>()
        };
        let (old, new) = (sectors(&self.old), sectors(&self.new));
        let is_ours =
            sectors(&found).iter().zip(old.iter().zip(&new)).all(|(found, (old, new))| found == old || found == new);
        if is_ours && found != self.new {
            container.write_at(&self.new, self.at)?;
            container.sync()?;
        }
        Ok(is_ours)
    }
}

impl Image<ReadWrite> {
    /// Links a differencing image to another parent, whose content at every sector that this image does not hold must
    /// be what the old parent's was.
    ///
    /// Locators of kinds that we do not write are kept.
    ///
    /// # Errors
    /// An image that has no parent; a failed write or sync.
    ///
    /// # Crash safety
    /// As [`relink_recorded`](Self::relink_recorded) without a record.
    pub fn relink(&mut self, parent: &ParentLink) -> Result<(), MetadataError> {
        self.relink_recorded(parent, |_| Ok(()))
    }

    /// As [`relink`](Self::relink), and lets the caller record the change of the header before it is written.
    ///
    /// # Errors
    /// As [`relink`](Self::relink), and those of `record`.
    ///
    /// # Crash safety
    /// New locator text is durable, in room that the header does not point to, before the header changes; so the image
    /// is linked to the old parent or to the new. The header is two sectors in one write: if the disk tears them, its
    /// checksum is wrong and the image is refused rather than misread, until [`HeaderChange::finish`] mends it.
    pub fn relink_recorded<E: From<MetadataError>>(
        &mut self,
        parent: &ParentLink,
        record: impl FnOnce(&HeaderChange) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.footer.disk_type() != DiskType::Differencing {
            return Err(MetadataError::NoParent { path: self.path().into() }.into());
        }
        self.flush().map_err(MetadataError::from)?;
        let header = self.commit(|image| image.write_locators(parent))?;
        self.change_header(header, record)
    }

    /// Gives an image a parent, whose content then shows at every sector that the image does not hold. One that has a
    /// parent is linked to this instead. The change of the header is recorded as by
    /// [`relink_recorded`](Self::relink_recorded).
    ///
    /// # Errors
    /// A fixed image; a failed write or sync; those of `record`.
    ///
    /// # Crash safety
    /// Of an image without a parent one sector, the end footer, decides. The header names the parent, durably, before;
    /// until then nothing reads it for that, and if power fails it can be taken back by changing it from new to old.
    /// Of another image as [`relink_recorded`](Self::relink_recorded).
    pub fn attach<E: From<MetadataError>>(
        &mut self,
        parent: &ParentLink,
        record: impl FnOnce(&HeaderChange) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.tables.is_none() {
            return Err(MetadataError::Fixed { path: self.path().into() }.into());
        }
        if self.is_differencing() {
            return self.relink_recorded(parent, record);
        }
        self.flush().map_err(MetadataError::from)?;
        let header = self.commit(|image| image.write_locators(parent))?;
        self.change_header(header, record)?;
        let mut footer = self.footer.clone();
        footer.set_disk_type(DiskType::Differencing);
        Ok(self.commit(|image| image.rewrite_footers(footer))?)
    }

    /// Makes a differencing image that holds by itself all that it reads an image without a parent.
    ///
    /// # Errors
    /// A fixed image; a failed write or sync; those of `record`.
    ///
    /// # Crash safety
    /// One sector, the end footer, decides. Then the header, which nothing reads for its parent any more, is cleared as
    /// [`relink_recorded`](Self::relink_recorded) changes one; to repeat it does what is left to do.
    pub fn detach<E: From<MetadataError>>(
        &mut self,
        record: impl FnOnce(&HeaderChange) -> Result<(), E>,
    ) -> Result<(), E> {
        self.flush().map_err(MetadataError::from)?;
        let Some(tables) = &self.tables else {
            return Err(MetadataError::NoParent { path: self.path().into() }.into());
        };
        let mut header = tables.header.clone();
        header.set_parent(&ParentRecord::default(), &[None; LOCATOR_ENTRIES]);
        if self.is_differencing() {
            let mut footer = self.footer.clone();
            footer.set_disk_type(DiskType::Dynamic);
            self.commit(|image| image.rewrite_footers(footer))?;
        }
        self.change_header(header, record)
    }

    fn change_header<E: From<MetadataError>>(
        &mut self,
        header: Header,
        record: impl FnOnce(&HeaderChange) -> Result<(), E>,
    ) -> Result<(), E> {
        let tables = self.tables.as_ref().expect("only called with tables");
        let change = HeaderChange { at: tables.header_at, old: tables.header.to_bytes(), new: header.to_bytes() };
        if change.old == change.new {
            return Ok(());
        }
        record(&change)?;
        Ok(self.commit(|image| {
            image.container.write_at(&change.new, change.at)?;
            image.container.sync()?;
            image.tables.as_mut().expect("only called with tables").header = header;
            Ok(())
        })?)
    }

    /// Writes the locator texts of a new parent, durably; gives the header that points to them.
    fn write_locators(&self, parent: &ParentLink) -> Result<Header, MetadataError> {
        let tables = self.tables.as_ref().expect("only called with tables");
        let old: Vec<LocatorEntry> = tables.header.locators().map(|(_, entry)| entry).collect();
        let texts: Vec<&Vec<u8>> = parent.locators.iter().map(|(_, text)| text).collect();
        let mut at = self.locator_room(tables, &old, &texts)?;
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
        if let Some(at) = old_footer {
            self.container.write_at(&[0; FOOTER_SIZE.0 as usize], at)?;
        }
        let kept = old.iter().filter(|entry| matches!(entry.code, PlatformCode::Other(_)));
        let mut entries = [None; LOCATOR_ENTRIES];
        for (slot, entry) in entries.iter_mut().zip(written.iter().chain(kept)) {
            *slot = Some(*entry);
        }
        let mut header = tables.header.clone();
        header.set_parent(&parent.record, &entries);
        Ok(header)
    }

    /// Finds room for locator texts, each in whole sectors, that neither the present locators nor anything else use.
    ///
    /// Images that we make have room for two sets between the batmap and the first block; elsewhere the file grows. Room
    /// before the BAT is none: one that has moved is still read in its old place by whoever opened the image before.
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
        let mut at = (tables.header.table_offset() + bat::table_size(tables.bat.entries())).0;
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
