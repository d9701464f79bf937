//! A chain whose top can be written.

use std::path::Path;

use super::{Chain, ChainError, ChainOptions, clamp};
use crate::image::{FooterOrigin, Image, ReadError};
use crate::metadata::MetadataError;
use crate::resolve::{Extents, Source};
use crate::units::{ByteCount, SectorCount, SectorRange};
use crate::write::{ReadWrite, WriteError};

/// A writable leaf over its read-only parents; reads and writes may come from any number of threads.
#[derive(Debug)]
pub struct Volume {
    leaf: Image<ReadWrite>,
    parents: Option<Chain>,
}

impl Volume {
    /// Opens the image at `path` for writing, and its parents for reading.
    ///
    /// What a crash has left unsightly in the image is mended: a file without a footer at its end, a batmap with the
    /// checksum of another. Nothing else changes.
    ///
    /// # Errors
    /// What [`ChainError`] lists.
    ///
    /// # Crash safety
    /// The image reads the same throughout, and can be opened again.
    pub fn open(path: &Path, options: &ChainOptions) -> Result<Self, ChainError> {
        let mut leaf = Image::open_writable(path)?;
        let parents = options.open_parents(&leaf, path)?;
        if leaf.footer_origin() == FooterOrigin::Start {
            leaf.trim_tail().map_err(Box::new)?;
        }
        leaf.mend_batmap().map_err(|error| Box::new(error.into()))?;
        Ok(Self { leaf, parents })
    }

    /// Puts a leaf over its parents, both opened by other means.
    pub fn from_parts(leaf: Image<ReadWrite>, parents: Option<Chain>) -> Self {
        Self { leaf, parents }
    }

    /// The image that is written.
    pub fn leaf(&self) -> &Image<ReadWrite> {
        &self.leaf
    }

    /// What is read where the leaf holds nothing.
    pub fn parents(&self) -> Option<&Chain> {
        self.parents.as_ref()
    }

    /// The size of the disk.
    pub fn size(&self) -> ByteCount {
        self.leaf.footer().current_size()
    }

    /// The sectors of the disk.
    pub fn sectors(&self) -> SectorCount {
        self.leaf.sectors()
    }

    /// Reads whole sectors. Beyond the end of the disk they are zeros.
    ///
    /// # Errors
    /// A BAT entry that cannot be, a failed read.
    ///
    /// # Panics
    /// If `buf` is not the length of `range`.
    pub fn read(&self, range: SectorRange, buf: &mut [u8]) -> Result<(), ReadError> {
        assert_eq!(buf.len() as u64, range.count().bytes().0, "the buffer is as long as the range");
        let inside = clamp(range, self.sectors());
        let mut extents = Extents::default();
        self.leaf.resolve(inside, &mut extents)?;
        for extent in extents.as_slice() {
            let from = (extent.sectors.start - range.start).bytes().0 as usize;
            let part = &mut buf[from..from + extent.sectors.count().bytes().0 as usize];
            match (extent.source, &self.parents) {
                (Source::Data(at), _) => self.leaf.container().read_at(part, at)?,
                (Source::Parent, Some(parents)) => parents.read(extent.sectors, part)?,
                (Source::Zero | Source::Parent, _) => part.fill(0),
            }
        }
        buf[inside.count().bytes().0 as usize..].fill(0);
        Ok(())
    }

    /// As [`Image::write`].
    ///
    /// # Errors
    /// As there.
    pub fn write(&self, range: SectorRange, data: &[u8]) -> Result<(), WriteError> {
        self.leaf.write(range, data)
    }

    /// As [`Image::write_zeroes`].
    ///
    /// # Errors
    /// As there.
    pub fn write_zeroes(&self, range: SectorRange) -> Result<(), WriteError> {
        self.leaf.write_zeroes(range)
    }

    /// Tells the disk that nobody needs these sectors any more. They read as zeros afterwards.
    ///
    /// # Errors
    /// As [`Image::write_zeroes`].
    pub fn trim(&self, range: SectorRange) -> Result<(), WriteError> {
        self.leaf.write_zeroes(range)
    }

    /// Gives the disk another size; new sectors read as zeros.
    ///
    /// # Errors
    /// As [`Image::set_size`].
    ///
    /// # Crash safety
    /// As there.
    pub fn set_size(&mut self, size: ByteCount) -> Result<(), MetadataError> {
        self.leaf.set_size(size, self.parents.as_ref().map_or(ByteCount(0), Chain::size))
    }

    /// As [`Image::flush`].
    ///
    /// # Errors
    /// As there.
    pub fn flush(&self) -> Result<(), WriteError> {
        self.leaf.flush()
    }

    /// As [`Image::close`].
    ///
    /// # Errors
    /// As there.
    pub fn close(self) -> Result<(), WriteError> {
        self.leaf.close()
    }
}
