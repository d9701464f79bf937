//! Making volumes larger.

use std::path::{Path, PathBuf};

use vhd_core::{ByteCount, Chain, ChainError, FileError, MetadataError, OpenError, StorageError, folder_of};

use crate::journal::Journal;
use crate::record::{FileId, Record};
use crate::repository::Repository;

/// Why a volume did not get another size.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// It cannot be opened, or somebody uses it; or one of its parents cannot be.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// It cannot have that size.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A step on a file failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is no volume.
    #[error("{}: a hidden base, not a volume", path.display())]
    Hidden {
        /// The image.
        path: PathBuf,
    },
    /// Data would be cut off.
    #[error("{}: {size} bytes are less than the {present} that it has", path.display())]
    Smaller {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        size: ByteCount,
        /// What it has.
        present: ByteCount,
    },
    /// It lies elsewhere.
    #[error("{}: not in the repository {}", path.display(), folder.display())]
    OtherFolder {
        /// The image.
        path: PathBuf,
        /// The repository.
        folder: PathBuf,
    },
}

impl From<OpenError> for ResizeError {
    fn from(error: OpenError) -> Self {
        Self::Chain(error.into())
    }
}

impl Repository {
    /// Makes a volume larger; what is new reads as zeros. A merge that holds the volume is asked to let go.
    ///
    /// # Errors
    /// What [`ResizeError`] lists. A volume in use is refused.
    ///
    /// # Crash safety
    /// The volume has the old size or the new once the repository has been opened again, and reads as before.
    pub fn resize(&self, volume: &Path, size: ByteCount) -> Result<(), ResizeError> {
        let volume = volume.canonicalize().map_err(FileError::when(volume, "open it"))?;
        if folder_of(&volume) != self.folder() {
            return Err(ResizeError::OtherFolder { path: volume, folder: self.folder().into() });
        }
        let mut image = self.claim(&volume)?;
        let _structure = self.lock_structure()?;
        if image.footer().hidden() {
            return Err(ResizeError::Hidden { path: volume });
        }
        let present = image.footer().current_size();
        if size <= present {
            return if size == present { Ok(()) } else { Err(ResizeError::Smaller { path: volume, size, present }) };
        }
        let parents = self.options().open_parents(&image, &volume)?;
        let file = FileId { path: self.relative(&volume), unique_id: image.footer().unique_id() };
        let length = image.container().len()?.0;
        let journal = Journal::begin(&self.state(), &Record::Resize { file, length })?;
        image.set_size(size, parents.as_ref().map_or(ByteCount(0), Chain::size))?;
        // What is left is a journal of something that has been done: whoever opens the repository next finds that.
        let _ = journal.remove();
        Ok(())
    }
}
