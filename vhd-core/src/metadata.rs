//! Changing what an image says of itself: hidden, size, parent. The image is used by nobody else meanwhile.

mod clear;
mod journaled;
mod leftovers;
mod link;
mod marks;
mod physical;
mod size;
mod tables;

pub use link::{HeaderChange, LinkError, ParentLink};
pub use size::cut_to_footer;

use std::path::PathBuf;

use uuid::Uuid;

use crate::footer::{FOOTER_SIZE, Footer, MAX_VIRTUAL_SIZE};
use crate::image::{Image, OpenError};
use crate::storage::StorageError;
use crate::units::{ByteCount, FileOffset};
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
    /// The locators that are there cannot take another parent's path.
    #[error(
        "{}: no room for the path of another parent: it takes {needed} bytes, a locator has {room}; nothing was changed",
        path.display()
    )]
    LocatorRoom {
        /// The image.
        path: PathBuf,
        /// What the longest text of a locator takes.
        needed: ByteCount,
        /// The room that the smallest locator has; 0 where there is none of a kind that is written.
        room: ByteCount,
    },
    /// Only a differencing image has a parent.
    #[error("{}: not a differencing image, so it has no parent", path.display())]
    NoParent {
        /// The image.
        path: PathBuf,
    },
    /// A fixed image holds all of its disk.
    #[error("{}: a fixed image, which cannot have a parent", path.display())]
    Fixed {
        /// The image.
        path: PathBuf,
    },
    /// The copy of the footer at the start is of no use.
    #[error("{}: what is at its start is no copy of its footer that fits the rest", path.display())]
    Copy {
        /// The image.
        path: PathBuf,
    },
    /// A fixed image has none that could be dropped.
    #[error("{}: a fixed image, which has no blocks to drop", path.display())]
    NoBlocks {
        /// The image.
        path: PathBuf,
    },
    /// What the batmap should hold has no place.
    #[error("{}: something has overwritten its batmap, which has to be repaired first", path.display())]
    NoBatmap {
        /// The image.
        path: PathBuf,
    },
    /// The file is to end where something of the image still lies.
    #[error("{}: cannot end at {size}: it is in use as far as {used}, whole sectors and the footer come after that", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        size: ByteCount,
        /// How far it is in use.
        used: FileOffset,
    },
    /// An attribute of the file cannot be read or written.
    #[error("{}: cannot {action} the attribute {name}", path.display())]
    Attribute {
        /// The image.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The attribute.
        name: &'static str,
        /// What the system answered.
        #[source]
        source: std::io::Error,
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

impl<Mode> Image<Mode> {
    /// Reads the copy of the footer at the start, which may be behind the one at the end.
    ///
    /// # Errors
    /// A failed read; a fixed image, which has none; what is no footer.
    pub fn footer_copy(&self) -> Result<Footer, MetadataError> {
        let mut copy = [0; FOOTER_SIZE.0 as usize];
        self.container.read_at(&mut copy, FileOffset(0))?;
        let copy = Footer::try_from(&copy).ok().filter(|_| self.tables.is_some());
        copy.ok_or_else(|| MetadataError::Copy { path: self.path().into() })
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
        self.set_hidden_value(hidden.into())
    }

    /// As [`set_hidden`](Self::set_hidden), with the byte itself: 0 for a volume.
    ///
    /// # Errors
    /// A failed write or sync.
    pub fn set_hidden_value(&mut self, hidden: u8) -> Result<(), MetadataError> {
        self.change_footer(|footer| footer.set_hidden_value(hidden))
    }

    /// As [`set_hidden_value`](Self::set_hidden_value), but only in the copy of the footer at the start, of an image that
    /// has no other and no room for one: so a volume can be deleted although the file system is full.
    ///
    /// # Errors
    /// A footer at the end, beside which the copy would mean nothing; a failed write or sync.
    ///
    /// # Crash safety
    /// One sector.
    pub fn set_hidden_in_copy(&mut self, hidden: u8) -> Result<(), MetadataError> {
        if self.end_footer().is_some() || self.tables.is_none() {
            return Err(MetadataError::Copy { path: self.path().into() });
        }
        self.footer.set_hidden_value(hidden);
        self.commit(Self::mend_copy)
    }

    /// Makes the image another one to whoever knew it: children that name the old id refuse to read through it.
    ///
    /// # Errors
    /// A failed write or sync.
    ///
    /// # Crash safety
    /// As [`set_hidden`](Self::set_hidden).
    pub fn set_unique_id(&mut self, unique_id: Uuid) -> Result<(), MetadataError> {
        self.change_footer(|footer| footer.set_unique_id(unique_id))
    }

    fn change_footer(&mut self, change: impl FnOnce(&mut Footer)) -> Result<(), MetadataError> {
        self.flush()?;
        let mut footer = self.footer.clone();
        change(&mut footer);
        if footer.to_bytes() == self.footer.to_bytes() {
            return self.commit(Self::mend_copy);
        }
        self.commit(|image| image.rewrite_footers(footer))
    }

    /// Writes the copy of the footer at the start anew where a crash has left it behind the one at the end.
    pub(crate) fn mend_copy(&mut self) -> Result<(), MetadataError> {
        let mut copy = [0; FOOTER_SIZE.0 as usize];
        if self.tables.is_some() {
            self.container.read_at(&mut copy, FileOffset(0))?;
            let footer = self.current_footer().to_bytes();
            if !Footer::try_from(&copy).is_ok_and(|copy| copy.to_bytes() == footer) {
                self.container.write_at(&footer, FileOffset(0))?;
                self.container.sync()?;
            }
        }
        Ok(())
    }

    /// Runs the steps of a change; after one that failed, what the file says is not certain, and no more is written.
    pub(crate) fn commit<T>(
        &mut self,
        steps: impl FnOnce(&mut Self) -> Result<T, MetadataError>,
    ) -> Result<T, MetadataError> {
        self.check_not_failed()?;
        let result = steps(self);
        if result.is_err() {
            self.fail();
        }
        result
    }

    /// Writes another footer, at the end first and then at the start, each with a sync.
    pub(crate) fn rewrite_footers(&mut self, footer: Footer) -> Result<(), MetadataError> {
        self.footer = footer;
        let old = self.write_end_footer()?;
        self.container.sync()?;
        if self.tables.is_some() {
            self.container.write_at(&self.current_footer().to_bytes(), FileOffset(0))?;
        }
        if let Some(at) = old {
            self.container.write_at(&[0; FOOTER_SIZE.0 as usize], at)?;
        }
        Ok(self.container.sync()?)
    }

    /// Writes both footers anew where they belong, whatever is there, and a batmap with a wrong checksum; a file without a
    /// footer at its end ends after its last table or block then.
    ///
    /// # Errors
    /// A failed write, change of length or sync.
    ///
    /// # Crash safety
    /// At every moment one of the two footers is whole.
    pub fn renew_footers(&mut self) -> Result<(), MetadataError> {
        self.check_can_grow()?;
        self.flush()?;
        self.commit(|image| {
            if image.tables.is_some() && image.end_footer().is_none() && !image.container.has_fixed_size() {
                image.mend_copy()?;
                image.cut_tail()?;
            } else {
                image.rewrite_footers(image.footer.clone())?;
            }
            Ok(image.mend_batmap()?)
        })
    }

    /// As [`renew_footers`](Self::renew_footers), of the copy at the start.
    ///
    /// # Errors
    /// As there; a copy that is no footer of this image, or says that the disk is larger than the BAT.
    ///
    /// # Crash safety
    /// As there.
    pub fn renew_footers_from_copy(&mut self) -> Result<(), MetadataError> {
        let copy = self.footer_copy()?;
        let unfit = || MetadataError::Copy { path: self.path().into() };
        let tables = self.tables.as_ref().ok_or_else(unfit)?;
        let size = tables.header.block_size();
        if copy.header_offset() != Some(tables.header_at)
            || copy.disk_type() != self.footer.disk_type()
            || copy.poisoned()
            || size.blocks_for(copy.current_size()) > u64::from(tables.bat.entries())
        {
            return Err(unfit());
        }
        self.footer = copy;
        self.renew_footers()
    }

    /// Mends what a writer that was interrupted has left: writes the copy of the footer at the start anew where it is behind,
    /// cuts off what lies past the last table and block and writes the end footer there, then writes a batmap with a wrong
    /// checksum anew. Changes nothing in an image that is as it should be; of a device nothing is cut off, and fixed images are
    /// left alone.
    ///
    /// # Errors
    /// A failed write, change of length or sync.
    ///
    /// # Crash safety
    /// The copy at the start speaks for the image until the footer is durable.
    pub fn trim_tail(&mut self) -> Result<(), MetadataError> {
        self.flush()?;
        if self.tables.is_some() {
            self.commit(|image| {
                // The copy speaks for the image while the file has no footer at its end.
                image.mend_copy()?;
                if !image.container.has_fixed_size() {
                    image.cut_tail()?;
                }
                Ok(image.mend_batmap()?)
            })?;
        }
        Ok(())
    }
}
