//! Reads and writes VHD images, and chains of them.
//!
//! A virtual disk is a chain of files: a base, which is [`Fixed`](DiskType::Fixed), [`Dynamic`](DiskType::Dynamic) or
//! raw, and [`Differencing`](DiskType::Differencing) children that hold what has changed since.
//!
//! ```text
//!   bytes ──TryFrom──▶ Footer, Header ──▶ Image<ReadOnly>  ──▶ Chain   read, extents
//!                                    └──▶ Image<ReadWrite> ──▶ Volume  read, write, write_zeroes, flush, close
//! ```
//!
//! ```
//! use vhd_core::{
//!     ByteCount, Chain, ChainOptions, Existing, NewImage, NewKind, ParentLink, Sector, SectorCount, SectorRange, Volume,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = tempfile::tempdir()?;
//! let (disk, child) = (folder.path().join("disk.vhd"), folder.path().join("child.vhd"));
//! let kind = NewKind::Dynamic { block_size: vhd_core::BlockSize::DEFAULT };
//! let new = NewImage::new(ByteCount(64 << 20), kind);
//! let disk_id = new.unique_id;
//! vhd_core::create_file(&disk, &new, Existing::Keep)?;
//!
//! let first = SectorRange::new(Sector(0), SectorCount(1));
//! let volume = Volume::open(&disk, &ChainOptions::default())?;
//! volume.write(first, &[1; 512])?;
//! volume.close()?;
//!
//! let kind = NewKind::Differencing {
//!     block_size: vhd_core::BlockSize::DEFAULT,
//!     parent: ParentLink::new(folder.path(), &disk, disk_id)?,
//! };
//! vhd_core::create_file(&child, &NewImage::new(ByteCount(64 << 20), kind), Existing::Keep)?;
//!
//! let mut sector = [0; 512];
//! Chain::open(&child, &ChainOptions::default())?.read(first, &mut sector)?;
//! assert_eq!(sector, [1; 512]);
//! # Ok(())
//! # }
//! ```
//!
//! Content is found by *resolving*: tables and a range of sectors give extents, each of which is data at a file offset,
//! zeros, or the parent's affair. Reading, mapping and merging all start from extents.
//!
//! Nothing is ever read, sized or followed on the word of a file alone: see [`OpenError`], [`BlockFault`] and the rules
//! for parents in [`ParentPlaces`].

mod bat;
mod batmap;
mod bitmap;
mod block_size;
mod buffer;
mod chain;
pub mod check;
mod compact;
mod create;
mod folder;
mod footer;
mod format;
mod gate;
mod geometry;
mod header;
mod image;
mod layout;
mod locator;
mod merge_mark;
mod metadata;
mod moves;
mod new_file;
mod overlap;
mod rename;
pub mod repair;
mod resolve;
mod storage;
pub mod stream;
mod units;
mod write;

pub use batmap::{Batmap, KeyHash};
pub use block_size::{BlockPlace, BlockSize};
pub use buffer::Buffer;
pub use chain::{
    Chain, ChainError, ChainExtent, ChainOptions, ChainSource, MAX_CHAIN_DEPTH, ParentIdentity, ParentRefusal,
    UnfinishedResize, Volume, is_zeros, resolve_layers,
};
pub use compact::{CompactError, Compaction};
pub use create::{CreateError, NewImage, NewKind, create, create_file};
pub use folder::{DamagedFile, Files, Folder, FolderError, Node, NodeId, ParentName};
pub use footer::{DiskType, FOOTER_SIZE, Footer, FooterError, MAX_VIRTUAL_SIZE, Timestamp};
pub use gate::{GateError, ParentPlaces, real_path};
pub use geometry::Geometry;
pub use header::{HEADER_SIZE, Header, HeaderError};
pub use image::{BlockFault, FooterOrigin, Image, Layer, OpenError, RawDisk, ReadError, ReadOnly, Region};
pub use locator::{LocatorEntry, MAX_LOCATOR_LENGTH, PlatformCode};
pub use merge_mark::MergeMark;
pub use metadata::{HeaderChange, LinkError, MetadataError, ParentLink, cut_to_footer};
pub use new_file::{Existing, FileError, NewFile, folder_of, sync_folder, write_new_file};
pub use overlap::Overlap;
pub use rename::{has_no_second_names, rename_without_replacing};
pub use resolve::{Extent, Extents, Source};
pub use storage::{
    Container, DeviceNumber, FileIdentity, FileStamp, FileStorage, Lock, MemoryStorage, Storage, StorageError,
    explain_lock,
};
pub use units::{BlockIndex, ByteCount, FileOffset, SECTOR_SIZE, Sector, SectorCount, SectorRange};
pub use uuid::Uuid;
pub use write::{ReadWrite, WriteError};
