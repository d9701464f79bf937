//! Who an image's parent is.

use std::ffi::OsStr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::MetadataError;
use crate::block_size::BlockPlace;
use crate::footer::{DiskType, FOOTER_SIZE, Timestamp};
use crate::gate::{DEVICE_MAPPER, real_path};
use crate::header::{HEADER_SIZE, Header, LOCATOR_ENTRIES, ParentRecord};
use crate::image::{Image, Tables};
use crate::locator::{self, LocatorEntry, PlatformCode};
use crate::new_file::folder_of;
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
        let found = std::fs::metadata(&parent).and_then(|found| Ok((found.modified()?, found.file_type())));
        let (modified, kind) = found.map_err(failed(&parent))?;
        let is_beside = kind.is_block_device() && folder_of(&parent) == folder;
        let mapped = is_beside.then(|| mapped_name(&parent)).flatten();
        let relative = mapped.unwrap_or_else(|| locator::relative_path(&folder, &parent));
        Self::to_named(&relative, unique_id, modified.into())
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

/// The name in `/dev/mapper` of a volume of LVM, `/dev/GROUP/VOLUME`, as blktap writes it; `None` for what is no such.
fn mapped_name(volume: &Path) -> Option<PathBuf> {
    let doubled = |name: &OsStr| Some(name.to_str()?.replace('-', "--"));
    let (group, name) = (doubled(folder_of(volume).file_name()?)?, doubled(volume.file_name()?)?);
    // The hyphen separates group and volume, so those within them are doubled.
    let mapped = PathBuf::from(format!("{group}-{name}"));
    let leads_to = |path: &Path| path.canonicalize().ok();
    (leads_to(&Path::new(DEVICE_MAPPER).join(&mapped))? == leads_to(volume)?).then_some(mapped)
}

/// The change of a header, which is two sectors, and of the locator texts that go with it: what a log must hold to finish
/// one that power failed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderChange {
    /// Where the header is.
    pub at: FileOffset,
    /// What it was.
    pub old: [u8; HEADER_SIZE.0 as usize],
    /// What it becomes.
    pub new: [u8; HEADER_SIZE.0 as usize],
    /// The texts of locators that become other ones where they stand, and where that is.
    pub texts: Vec<(FileOffset, Vec<u8>)>,
}

impl HeaderChange {
    /// Makes a header what it was to become, and the locator texts with it, if each of its sectors is either the old or the
    /// new one; tells whether it now is.
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
        if is_ours {
            for (at, text) in &self.texts {
                container.write_at(text, *at)?;
            }
            container.write_at(&self.new, self.at)?;
            container.sync()?;
        }
        Ok(is_ours)
    }
}

impl Image<ReadWrite> {
    /// Links a differencing image to another parent, whose content at every sector that this image does not hold must
    /// be what the old parent's was. Writes the locators that are there, and the header, and nothing else, so that another
    /// program may have the image open.
    ///
    /// Locators of kinds that we do not write are kept.
    ///
    /// # Errors
    /// An image that has no parent; [`LocatorRoom`](MetadataError::LocatorRoom), where the locators that are there cannot
    /// take the path; a failed write or sync.
    ///
    /// # Crash safety
    /// The first locator is written after the header, and the header after the other locators, each durably: at every moment
    /// one of the paths leads to the parent whose unique id the header names. The header is two sectors in one write: if
    /// the disk tears them, its checksum is wrong and the image is refused rather than misread, until
    /// [`HeaderChange::finish`] mends it. To repeat it does what is left to do.
    pub fn relink_in_place(&mut self, parent: &ParentLink) -> Result<(), MetadataError> {
        self.check_has_parent()?;
        self.flush()?;
        let change = self.change_in_place(parent)?;
        self.rewrite_in_place(&change)
    }

    /// As [`relink_recorded`](Self::relink_recorded), without a record.
    ///
    /// # Errors
    /// As [`relink_recorded`](Self::relink_recorded).
    ///
    /// # Crash safety
    /// As [`relink_recorded`](Self::relink_recorded).
    pub fn relink(&mut self, parent: &ParentLink) -> Result<(), MetadataError> {
        self.relink_recorded(parent, |_| Ok(()))
    }

    /// Links a differencing image, which nobody else has open, to another parent, as
    /// [`relink_in_place`](Self::relink_in_place) does; where the locators that are there cannot take the path, new ones
    /// are made, and room for them as by [`lay_out`](Self::lay_out). The caller can record the change before it begins.
    ///
    /// # Errors
    /// An image that has no parent; a failed write or sync; those of `record`.
    ///
    /// # Crash safety
    /// As [`relink_in_place`](Self::relink_in_place), or [`lay_out`](Self::lay_out).
    pub fn relink_recorded<E: From<MetadataError>>(
        &mut self,
        parent: &ParentLink,
        record: impl FnOnce(&HeaderChange) -> Result<(), E>,
    ) -> Result<(), E> {
        self.check_has_parent()?;
        self.flush().map_err(MetadataError::from)?;
        match self.change_in_place(parent) {
            Err(MetadataError::LocatorRoom { .. }) => self.arrange_for_parent(parent, record),
            change => {
                let change = change?;
                record(&change)?;
                Ok(self.rewrite_in_place(&change)?)
            }
        }
    }

    fn check_has_parent(&self) -> Result<(), MetadataError> {
        if self.is_differencing() { Ok(()) } else { Err(MetadataError::NoParent { path: self.path().into() }) }
    }

    /// Gives an image a parent, whose content then shows at every sector that the image does not hold. One that has a
    /// parent is linked to this instead. The change of the header is recorded as by
    /// [`relink_recorded`](Self::relink_recorded).
    ///
    /// # Errors
    /// A fixed image; a failed write or sync; those of `record`.
    ///
    /// # Crash safety
    /// Of an image without a parent one sector, the end footer, decides: see [`lay_out`](Self::lay_out). Of another image as
    /// [`relink_recorded`](Self::relink_recorded).
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
        self.arrange_for_parent(parent, record)
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
        let change = HeaderChange {
            at: tables.header_at,
            old: tables.header.to_bytes(),
            new: header.to_bytes(),
            texts: Vec::new(),
        };
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

    /// Works out what relinking changes if the locators that are there are written over.
    fn change_in_place(&self, parent: &ParentLink) -> Result<HeaderChange, MetadataError> {
        let tables = self.tables.as_ref().expect("a differencing image has tables");
        let mut entries = [None; LOCATOR_ENTRIES];
        let mut texts: Vec<(FileOffset, Vec<u8>)> = Vec::new();
        let (mut needed, mut room) = (ByteCount(0), None);
        let mut unwritten: Vec<&(PlatformCode, Vec<u8>)> = parent.locators.iter().collect();
        for (slot, entry) in tables.header.locators() {
            if let PlatformCode::Other(_) = entry.code {
                entries[slot] = Some(entry);
            }
            // Others of these kinds are deprecated, or there twice, and would go on naming the old parent.
            let Some(i) = unwritten.iter().position(|(code, _)| *code == entry.code) else { continue };
            let (_, text) = unwritten.remove(i);
            let length = ByteCount(text.len() as u64);
            let free = self.room_of_locator(tables, entry)?;
            needed = needed.max(length);
            room = Some(room.map_or(free, |room: ByteCount| room.min(free)));
            let mut padded = text.clone();
            let whole = length.max(entry.length).0.next_multiple_of(SECTOR_SIZE).min(free.0);
            padded.resize((whole as usize).max(text.len()), 0);
            texts.push((entry.offset, padded));
            entries[slot] = Some(entry.with_length(length));
        }
        if room.is_none_or(|room| room < needed) {
            let path = self.path().into();
            return Err(MetadataError::LocatorRoom { path, needed, room: room.unwrap_or_default() });
        }
        let mut header = tables.header.clone();
        header.set_parent(&parent.record, &entries);
        Ok(HeaderChange { at: tables.header_at, old: tables.header.to_bytes(), new: header.to_bytes(), texts })
    }

    /// The room of a locator that nothing else lies in.
    fn room_of_locator(&self, tables: &Tables, entry: LocatorEntry) -> Result<ByteCount, StorageError> {
        let Some(end) = entry.end_within(tables.file_len()) else { return Ok(ByteCount(0)) };
        let mut room = entry.offset..end;
        let mut keep_clear = |start: FileOffset, end: FileOffset| {
            if start < room.end && room.start < end {
                room.end = start.max(room.start);
            }
        };
        tables.regions().for_each(|region| keep_clear(region.range.start, region.range.end));
        let others = tables.header.locators().map(|(_, other)| other).filter(|other| *other != entry);
        others.for_each(|other| keep_clear(other.offset, FileOffset(other.offset.0.saturating_add(other.length.0))));
        if let Some(footer) = self.end_footer() {
            keep_clear(footer, footer + FOOTER_SIZE);
        }
        let size = tables.header.block_size();
        for found in tables.bat.allocated(&self.container, tables.bat.entries()) {
            let place = BlockPlace::from_entry(found?.1, size);
            keep_clear(place.bitmap, place.data + size.bytes());
        }
        Ok(room.end - room.start)
    }

    fn rewrite_in_place(&mut self, change: &HeaderChange) -> Result<(), MetadataError> {
        let header = Header::try_from(&change.new).expect("it was a header");
        self.commit(|image| {
            let container = &image.container;
            let (first, others) = change.texts.split_first().expect("there is a locator to write over");
            for (at, text) in others {
                container.write_at(text, *at)?;
            }
            container.sync()?;
            container.write_at(&change.new, change.at)?;
            container.sync()?;
            container.write_at(&first.1, first.0)?;
            container.sync()?;
            image.tables.as_mut().expect("a differencing image has tables").header = header;
            Ok(())
        })
    }
}
