//! Making new images, laid out as blktap lays them out.

use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::bat;
use crate::batmap::{self, BATMAP_HEADER_SIZE, Batmap, KeyHash};
use crate::block_size::BlockSize;
use crate::footer::{DiskType, FOOTER_SIZE, Footer, MAX_VIRTUAL_SIZE, Timestamp};
use crate::header::{HEADER_SIZE, Header, LOCATOR_ENTRIES};
use crate::image::Image;
use crate::locator::LocatorEntry;
use crate::metadata::{LinkError, ParentLink};
use crate::new_file::{Existing, write_new_file};
use crate::storage::{Container, StorageError};
use crate::units::{ByteCount, FileOffset, SECTOR_SIZE};

/// The most room to grow that a new image is made with: what xapi's storage manager asks for on volume groups. It is more
/// than a disk can use.
const MAX_ROOM: ByteCount = ByteCount(2 << 40);

/// What a new image is to be.
#[derive(Clone, Debug)]
pub struct NewImage {
    /// The size of its disk: a multiple of 512, at most 2040 GiB.
    pub size: ByteCount,
    /// The size that the disk can later be given without moving its tables; where it is smaller than the disk, that of
    /// the disk. At most 2 TiB.
    pub room: ByteCount,
    /// The kind of image.
    pub kind: NewKind,
    /// Who it is.
    pub unique_id: Uuid,
    /// When it is made.
    pub timestamp: Timestamp,
    /// A volume, or an inner node of a chain.
    pub hidden: bool,
    /// The hash of the key that it is encrypted with.
    pub key_hash: Option<KeyHash>,
}

/// The kind of a new image, with what only that kind has.
#[derive(Clone, Debug)]
pub enum NewKind {
    /// All of the disk, at once, as a hole.
    Fixed,
    /// Nothing of the disk, yet.
    Dynamic {
        /// The size of its blocks.
        block_size: BlockSize,
    },
    /// Nothing but a link to a parent.
    Differencing {
        /// The size of its blocks.
        block_size: BlockSize,
        /// The parent.
        parent: ParentLink,
    },
}

impl NewImage {
    /// Describes a volume with a new id, made now.
    pub fn new(size: ByteCount, kind: NewKind) -> Self {
        let (unique_id, timestamp) = (Uuid::new_v4(), Timestamp::now());
        Self { size, room: ByteCount(0), kind, unique_id, timestamp, hidden: false, key_hash: None }
    }

    /// Describes an empty child, of the size, block size and key of `image`.
    pub fn child_of<Mode>(image: &Image<Mode>, parent: ParentLink) -> Self {
        let block_size = image.header().map_or(BlockSize::DEFAULT, Header::block_size);
        let key_hash = image.batmap().and_then(Batmap::key_hash);
        Self { key_hash, ..Self::new(image.footer().current_size(), NewKind::Differencing { block_size, parent }) }
    }
}

/// Why an image was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// A disk of this size cannot be.
    #[error("{}: a disk cannot have {size} bytes: at least 512 and at most {MAX_VIRTUAL_SIZE}, in whole sectors", path.display())]
    Size {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        size: ByteCount,
    },
    /// No disk can grow so far.
    #[error("{}: a disk cannot grow to {room} bytes: at most {MAX_ROOM} can be made room for", path.display())]
    Room {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        room: ByteCount,
    },
    /// Full, the file would be longer than BAT entries reach.
    #[error(
        "{}: with blocks of {block_size} bytes a disk of {size} bytes may need a file of {needed}, \
         past the 2 TiB that a BAT entry reaches", path.display()
    )]
    BlockSize {
        /// The image.
        path: PathBuf,
        /// The size of the disk.
        size: ByteCount,
        /// The size of a block.
        block_size: BlockSize,
        /// What the file may grow to.
        needed: ByteCount,
    },
    /// There is a file of that name.
    #[error("{}: exists already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// There is a device or folder of that name, and no file takes its place.
    #[error("{}: not a file, so no new file can take its place", path.display())]
    NotAFile {
        /// What is there.
        path: PathBuf,
    },
    /// The file cannot be made.
    #[error("{}: cannot be created", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: std::io::Error,
    },
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The parent cannot be recorded.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// Writes a new image into an empty store and syncs it.
///
/// Source: what blktap writes: footer, header, BAT, batmap, locator texts, footer.
///
/// # Errors
/// A size or block size that cannot be, a failed write.
pub fn create(container: &Container, new: &NewImage) -> Result<(), CreateError> {
    let path = || container.path().to_path_buf();
    if new.size.0 == 0 || new.size > MAX_VIRTUAL_SIZE || !new.size.0.is_multiple_of(SECTOR_SIZE) {
        return Err(CreateError::Size { path: path(), size: new.size });
    }
    if new.room > MAX_ROOM {
        return Err(CreateError::Room { path: path(), room: new.room });
    }
    let (disk_type, block_size, parent) = match &new.kind {
        NewKind::Fixed => (DiskType::Fixed, None, None),
        NewKind::Dynamic { block_size } => (DiskType::Dynamic, Some(*block_size), None),
        NewKind::Differencing { block_size, parent } => (DiskType::Differencing, Some(*block_size), Some(parent)),
    };
    let mut footer = Footer::new(disk_type, new.size, new.unique_id, new.timestamp);
    footer.set_hidden(new.hidden);
    let end = match block_size {
        None => FileOffset(new.size.0),
        Some(block_size) => {
            check_reach(path, new.size, block_size)?;
            container.write_at(&footer.to_bytes(), FileOffset(0))?;
            write_tables(container, new, block_size, parent)?
        }
    };
    if container.has_fixed_size() {
        let end = FileOffset(container.len()?.0.saturating_sub(FOOTER_SIZE.0)).max(end);
        container.write_at(&footer.to_bytes(), end)?;
    } else {
        container.write_at(&footer.to_bytes(), end)?;
    }
    Ok(container.sync()?)
}

fn check_reach(path: impl Fn() -> PathBuf, size: ByteCount, block_size: BlockSize) -> Result<(), CreateError> {
    let stride = block_size.stride().0.next_multiple_of(4096);
    // Tables and the first block's alignment take less than a block's worth of what is left over.
    let needed = ByteCount(block_size.blocks_for(size) * stride);
    if needed.0 / SECTOR_SIZE >= u64::from(u32::MAX) {
        return Err(CreateError::BlockSize { path: path(), size, block_size, needed });
    }
    Ok(())
}

fn write_tables(
    container: &Container,
    new: &NewImage,
    block_size: BlockSize,
    parent: Option<&ParentLink>,
) -> Result<FileOffset, StorageError> {
    let header_at = FileOffset(0) + FOOTER_SIZE;
    let blocks = block_size.blocks_for(new.size.max(new.room));
    let entries = u32::try_from(blocks).expect("2040 GiB in 4 KiB blocks are fewer than 2^32");
    let mut header = Header::new(header_at + HEADER_SIZE, entries, block_size);
    write_empty_bat(container, header.table_offset(), entries)?;

    let batmap_at = batmap::header_offset(&header);
    let mut batmap = Batmap::new(batmap_at, entries);
    batmap.set_key_hash(new.key_hash);
    container.write_at(&batmap.to_bytes(), batmap_at)?;
    container.write_at(&vec![0; batmap.map_size().0 as usize], batmap_at + BATMAP_HEADER_SIZE)?;

    let mut at = batmap.region().end;
    if let Some(parent) = parent {
        let mut locators = [None; LOCATOR_ENTRIES];
        for (slot, (code, text)) in locators.iter_mut().zip(parent.locators()) {
            let entry = LocatorEntry::new(*code, ByteCount(text.len() as u64), at);
            let mut text = text.clone();
            text.resize(entry.space.0 as usize, 0);
            container.write_at(&text, at)?;
            at = at + entry.space;
            *slot = Some(entry);
        }
        header.set_parent(parent.record(), &locators);
    }
    container.write_at(&header.to_bytes(), header_at)?;
    Ok(at)
}

pub(crate) fn write_empty_bat(container: &Container, at: FileOffset, entries: u32) -> Result<(), StorageError> {
    const STEP: u32 = 256 * 1024;
    for first in (0..entries).step_by(STEP as usize) {
        let step = vec![crate::format::UNALLOCATED; (entries - first).min(STEP) as usize];
        container.write_at(&bat::encode(&step), at + ByteCount(u64::from(first) * 4))?;
    }
    Ok(())
}

/// Makes a new image file.
///
/// # Errors
/// As [`create`], and [`CreateError::Exists`].
///
/// # Crash safety
/// As [`write_new_file`]: the image gets its name when it is complete and durable.
pub fn create_file(path: &Path, new: &NewImage, existing: Existing) -> Result<(), CreateError> {
    write_new_file(path, existing, |container| create(container, new))
}
