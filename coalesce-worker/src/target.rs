//! What a run is merged into: a VHD, or a raw disk.

use std::io;
use std::path::Path;
use std::sync::Arc;

use vhd_core::{
    BlockIndex, ByteCount, Container, FileOffset, FileStorage, Image, MetadataError, OpenError, ReadWrite, SectorCount,
    SectorRange, StorageError, WriteError,
};

use crate::in_use::{open_image, open_unused};

/// The image at the bottom of a run, open for writing and locked.
#[derive(Debug)]
pub(crate) enum Target {
    /// A VHD.
    Vhd(Box<Image<ReadWrite>>),
    /// A disk's bytes and nothing else.
    Raw(Container),
}

impl Target {
    /// Opens a VHD for writing and locks it.
    ///
    /// # Errors
    /// As [`Image::open_writable`].
    pub(crate) fn open_vhd(path: &Path) -> Result<Self, OpenError> {
        Ok(Self::Vhd(Box::new(open_image(path)?)))
    }

    /// As [`open_vhd`](Self::open_vhd), but programs that take no locks may have it open.
    ///
    /// # Errors
    /// As [`Image::open_writable_beside`].
    pub(crate) fn open_vhd_beside(path: &Path) -> Result<Self, OpenError> {
        Ok(Self::Vhd(Box::new(Image::open_writable_beside(path)?)))
    }

    /// Opens a raw disk for writing and locks it.
    ///
    /// # Errors
    /// What the system answers, as a storage error.
    pub(crate) fn open_raw(path: &Path) -> Result<Self, StorageError> {
        Self::raw(path, open_unused(path))
    }

    /// As [`open_raw`](Self::open_raw), but programs that take no locks may have it open.
    ///
    /// # Errors
    /// As [`open_raw`](Self::open_raw).
    pub(crate) fn open_raw_beside(path: &Path) -> Result<Self, StorageError> {
        Self::raw(path, FileStorage::open_writable_beside(path))
    }

    fn raw(path: &Path, opened: io::Result<FileStorage>) -> Result<Self, StorageError> {
        let storage = opened.map_err(|source| StorageError {
            path: path.into(),
            action: "open for writing".into(),
            offset: FileOffset(0),
            source,
        })?;
        Ok(Self::Raw(Container::new(path, Arc::new(storage))))
    }

    /// Its storage.
    pub(crate) fn container(&self) -> &Container {
        match self {
            Self::Vhd(image) => image.container(),
            Self::Raw(container) => container,
        }
    }

    /// The size of its disk.
    ///
    /// # Errors
    /// A raw disk whose length cannot be told.
    pub(crate) fn size(&self) -> Result<ByteCount, StorageError> {
        match self {
            Self::Vhd(image) => Ok(image.footer().current_size()),
            Self::Raw(container) => container.len(),
        }
    }

    /// Makes the disk at least `size` bytes large; what is new reads as zeros, also where the target has itself a parent,
    /// of `parent_size` bytes.
    ///
    /// # Errors
    /// A size that cannot be, no space, a failed write.
    ///
    /// # Crash safety
    /// As [`Image::set_size`].
    pub(crate) fn grow(&mut self, size: ByteCount, parent_size: ByteCount) -> Result<(), MetadataError> {
        if self.size()? >= size {
            return Ok(());
        }
        match self {
            Self::Vhd(image) => image.set_size(size, parent_size),
            Self::Raw(container) => {
                container.set_len(size)?;
                Ok(container.sync()?)
            }
        }
    }

    /// Cuts a disk that is larger than the node that it replaces: no chain shows what lies beyond.
    ///
    /// # Errors
    /// A failed read or write.
    ///
    /// # Crash safety
    /// As [`Image::set_size`], and then as [`Image::drop_leftovers`].
    pub(crate) fn cut(&mut self, size: ByteCount) -> Result<(), MetadataError> {
        let present = self.size()?;
        match self {
            Self::Vhd(image) if present > size => {
                image.set_size(size, ByteCount(0))?;
                image.drop_leftovers().map(drop)
            }
            Self::Raw(container) if present > size => {
                container.zero_range(FileOffset(size.0), ByteCount(present.0 - size.0))?;
                Ok(container.sync()?)
            }
            Self::Vhd(_) | Self::Raw(_) => Ok(()),
        }
    }

    /// Mends what a merge that was interrupted has left.
    ///
    /// # Errors
    /// A failed write.
    ///
    /// # Crash safety
    /// As [`Image::trim_tail`].
    pub(crate) fn mend(&mut self) -> Result<(), MetadataError> {
        match self {
            Self::Vhd(image) => image.trim_tail(),
            Self::Raw(_) => Ok(()),
        }
    }

    pub(crate) fn reserve(&self, blocks: &[BlockIndex]) -> Result<(), WriteError> {
        match self {
            Self::Vhd(image) => image.reserve(blocks),
            Self::Raw(_) => Ok(()),
        }
    }

    /// Gives the place for sectors that lie in one block; they count once they have been marked as present.
    pub(crate) fn place_for(&self, piece: SectorRange) -> Result<FileOffset, WriteError> {
        match self {
            Self::Vhd(image) => image.place_for(piece),
            Self::Raw(_) => Ok(FileOffset(piece.start.byte_offset())),
        }
    }

    /// Makes sectors that lie in one block, and whose data is in its place, part of the disk.
    pub(crate) fn mark_present(&self, piece: SectorRange) -> Result<(), WriteError> {
        match self {
            Self::Vhd(image) => image.mark_present(piece),
            Self::Raw(_) => Ok(()),
        }
    }

    /// The sectors of a block, where it has blocks.
    pub(crate) fn block(&self) -> Option<SectorCount> {
        match self {
            Self::Vhd(image) => image.header().map(|header| header.block_size().sectors()),
            Self::Raw(_) => None,
        }
    }

    pub(crate) fn write_zeroes(&self, range: SectorRange) -> Result<(), WriteError> {
        match self {
            Self::Vhd(image) => image.write_zeroes(range),
            Self::Raw(container) => {
                Ok(container.zero_range(FileOffset(range.start.byte_offset()), range.count().bytes())?)
            }
        }
    }

    /// Takes the mark of an unfinished merge out of the footers, where one is.
    pub(crate) fn forget_merge(&self) -> Result<(), WriteError> {
        match self {
            Self::Vhd(image) if image.merge_mark().is_some() => image.set_merge_mark(None),
            Self::Vhd(_) | Self::Raw(_) => Ok(()),
        }
    }

    /// Makes everything durable and lets the image go.
    pub(crate) fn close(self) -> Result<(), WriteError> {
        match self {
            Self::Vhd(image) => image.close(),
            Self::Raw(container) => Ok(container.sync()?),
        }
    }

    /// Makes what has been written so far durable; others may go on writing.
    pub(crate) fn flush(&self) -> Result<(), WriteError> {
        match self {
            Self::Vhd(image) => image.flush(),
            Self::Raw(container) => Ok(container.sync()?),
        }
    }

    /// Lets the image go as after a crash: what was written since the last flush is forgotten, and takes no space.
    pub(crate) fn abandon(self) -> Result<(), MetadataError> {
        match self {
            Self::Vhd(image) => {
                let container = image.container().clone();
                drop(image);
                Image::writable_from_container(container)?.trim_tail()
            }
            Self::Raw(_) => Ok(()),
        }
    }

    /// Makes everything durable, the batmap too.
    pub(crate) fn settle(&self) -> Result<(), WriteError> {
        match self {
            Self::Vhd(image) => image.settle(),
            Self::Raw(container) => Ok(container.sync()?),
        }
    }
}
