//! What a run is merged into: a VHD, or a raw disk.

use std::path::Path;
use std::sync::Arc;

use vhd_core::{
    BlockIndex, BlockSize, ByteCount, Container, FileOffset, FileStorage, Image, MetadataError, OpenError, ReadWrite,
    SectorCount, SectorRange, StorageError, WriteError,
};

/// The image at the bottom of a run, open for writing and locked.
#[derive(Debug)]
pub enum Target {
    /// A VHD.
    Vhd(Box<Image<ReadWrite>>),
    /// A disk's bytes and nothing else.
    Raw(Container),
}

/// The unit of work where the target has no blocks.
pub(crate) const RAW_UNIT: SectorCount = SectorCount(4096);

impl Target {
    /// Opens a VHD for writing and locks it.
    ///
    /// # Errors
    /// As [`Image::open_writable`].
    pub fn open_vhd(path: &Path) -> Result<Self, OpenError> {
        Ok(Self::Vhd(Box::new(Image::open_writable(path)?)))
    }

    /// Opens a raw disk for writing and locks it.
    ///
    /// # Errors
    /// What the system answers, as a storage error.
    pub fn open_raw(path: &Path) -> Result<Self, StorageError> {
        let storage = FileStorage::open_writable(path).map_err(|source| StorageError {
            path: path.into(),
            action: "open for writing".into(),
            offset: FileOffset(0),
            source,
        })?;
        Ok(Self::Raw(Container::new(path, Arc::new(storage))))
    }

    /// Its storage.
    pub fn container(&self) -> &Container {
        match self {
            Self::Vhd(image) => image.container(),
            Self::Raw(container) => container,
        }
    }

    /// The size of its disk.
    ///
    /// # Errors
    /// A raw disk whose length cannot be told.
    pub fn size(&self) -> Result<ByteCount, StorageError> {
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

    /// Cuts a disk that is larger than the node that it replaces: what lies beyond was seen by nobody.
    ///
    /// # Errors
    /// A failed write.
    ///
    /// # Crash safety
    /// As [`Image::set_size`].
    pub(crate) fn cut(&mut self, size: ByteCount) -> Result<(), MetadataError> {
        let present = self.size()?;
        match self {
            Self::Vhd(image) if present > size => image.set_size(size, ByteCount(0)),
            Self::Raw(container) if present > size => {
                container.zero_range(FileOffset(size.0), ByteCount(present.0 - size.0))?;
                Ok(container.sync()?)
            }
            Self::Vhd(_) | Self::Raw(_) => Ok(()),
        }
    }

    /// The size of its blocks; `None` where it has none, and every sector has its place already.
    pub fn block_size(&self) -> Option<BlockSize> {
        match self {
            Self::Vhd(image) => Some(image.header()?.block_size()),
            Self::Raw(_) => None,
        }
    }

    /// The sectors of a unit of work: a block, or as much.
    pub fn unit(&self) -> SectorCount {
        self.block_size().map_or(RAW_UNIT, BlockSize::sectors)
    }

    pub(crate) fn reserve(&self, blocks: &[BlockIndex]) -> Result<(), WriteError> {
        match self {
            Self::Vhd(image) => image.reserve(blocks),
            Self::Raw(_) => Ok(()),
        }
    }

    /// As [`Image::place_for`].
    pub(crate) fn place_for(&self, piece: SectorRange) -> Result<FileOffset, WriteError> {
        match self {
            Self::Vhd(image) => image.place_for(piece),
            Self::Raw(_) => Ok(FileOffset(piece.start.byte_offset())),
        }
    }

    /// As [`Image::mark_present`].
    pub(crate) fn mark_present(&self, piece: SectorRange) -> Result<(), WriteError> {
        match self {
            Self::Vhd(image) => image.mark_present(piece),
            Self::Raw(_) => Ok(()),
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

    /// Makes everything durable and lets the image go.
    pub(crate) fn close(self) -> Result<(), WriteError> {
        match self {
            Self::Vhd(image) => image.close(),
            Self::Raw(container) => Ok(container.sync()?),
        }
    }

    pub(crate) fn flush(&self) -> Result<(), WriteError> {
        match self {
            Self::Vhd(image) => image.flush(),
            Self::Raw(container) => Ok(container.sync()?),
        }
    }
}
