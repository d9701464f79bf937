//! Making volumes larger, and smaller.

use std::path::{Path, PathBuf};

use vhd_core::{
    ByteCount, Chain, ChainError, FileError, FolderError, Image, MetadataError, OpenError, ReadError, ReadWrite,
    SECTOR_SIZE, Sector, SectorRange, StorageError, folder_of,
};

use crate::journal::Journal;
use crate::record::{FileId, Record};
use crate::repository::Repository;

/// What may be given up where a volume becomes smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shrink {
    /// Nothing: it does not become smaller.
    Never,
    /// Sectors beyond the new end that hold nothing: none is present in the volume itself, and what its parents show there
    /// are zeros. A fixed volume, of which all is present, may hold zeros.
    Unused,
    /// Whatever lies beyond the new end.
    Discard,
}

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
    /// The folder cannot be listed.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// What would be cut off cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It is no volume.
    #[error("{}: a hidden base, not a volume", path.display())]
    Hidden {
        /// The image.
        path: PathBuf,
    },
    /// A file that cannot be understood may be a child of it.
    #[error("{}: {} cannot be read and may be a child of it: make it readable, or move it to another folder", path.display(), file.display())]
    MayHaveChild {
        /// The volume.
        path: PathBuf,
        /// The file.
        file: PathBuf,
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
    /// Data would be cut off.
    #[error("{}: data lies beyond {size} bytes, the last in sector {last}", path.display())]
    Data {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        size: ByteCount,
        /// The last sector of the volume that holds data.
        last: Sector,
    },
    /// A child would read zeros where it read what is cut off, now or later.
    #[error("{}: {} is a child of it, and reads through it what would be cut off", path.display(), child.display())]
    HasChild {
        /// The image.
        path: PathBuf,
        /// The child.
        child: PathBuf,
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
    /// As [`resize_or_shrink`](Self::resize_or_shrink).
    pub fn resize(&self, volume: &Path, size: ByteCount) -> Result<(), ResizeError> {
        self.resize_or_shrink(volume, size, Shrink::Never).map(drop)
    }

    /// Gives a volume another size; what is new reads as zeros. Tells the size that it had. A merge that holds the volume is
    /// asked to let go.
    ///
    /// One that becomes smaller gives back what it held beyond its new end. It must have no children.
    ///
    /// # Errors
    /// What [`ResizeError`] lists. A volume in use is refused.
    ///
    /// # Crash safety
    /// The volume has the old size or the new once the repository has been opened again, and reads as before up to the
    /// smaller one. What a smaller one holds beyond its end goes after its size has changed, durably.
    pub fn resize_or_shrink(&self, volume: &Path, size: ByteCount, shrink: Shrink) -> Result<ByteCount, ResizeError> {
        let volume = volume.canonicalize().map_err(FileError::when(volume, "open it"))?;
        if folder_of(&volume) != self.folder() {
            return Err(ResizeError::OtherFolder { path: volume, folder: self.folder().into() });
        }
        if size.0 == 0 || !size.0.is_multiple_of(SECTOR_SIZE) {
            return Err(MetadataError::Size { path: volume, size }.into());
        }
        let mut image = self.claim(&volume)?;
        let _structure = self.lock_structure()?;
        if image.footer().hidden() {
            return Err(ResizeError::Hidden { path: volume });
        }
        let present = image.footer().current_size();
        if size == present {
            return Ok(present);
        }
        let shrinks = size < present;
        if shrinks && shrink == Shrink::Never {
            return Err(ResizeError::Smaller { path: volume, size, present });
        }
        let parents = self.options().open_parents(&image, &volume)?;
        if shrinks {
            let folder = self.scan()?;
            if let Some(child) = folder.dependants(&volume, image.footer().unique_id()).first() {
                return Err(ResizeError::HasChild { path: volume, child: child.to_path_buf() });
            }
            if let Some(file) = folder.damaged().iter().find(|file| file.may_need_any()) {
                return Err(ResizeError::MayHaveChild { path: volume, file: file.path.clone() });
            }
            if shrink == Shrink::Unused
                && let Some(last) = last_data(&image, parents.as_ref(), size)?
            {
                return Err(ResizeError::Data { path: volume, size, last });
            }
        }
        let file = FileId { path: self.relative(&volume), unique_id: image.footer().unique_id() };
        let length = image.container().len()?.0;
        let journal = Journal::begin(&self.state(), &Record::Resize { file, length, shrinks })?;
        if let Err(error) = image.set_size(size, parents.as_ref().map_or(ByteCount(0), Chain::size)) {
            // What has been allocated in vain goes; the journal tells whoever comes next of the rest.
            let _ = image.close();
            return Err(error.into());
        }
        if shrinks {
            image.drop_leftovers()?;
        }
        // What is left is a journal of something that has been done: whoever opens the repository next finds that.
        let _ = journal.remove();
        Ok(present)
    }
}

/// Finds the last sector beyond `size` that holds data.
fn last_data(image: &Image<ReadWrite>, parents: Option<&Chain>, size: ByteCount) -> Result<Option<Sector>, ReadError> {
    let end = Sector(size.whole_sectors().0);
    let own = image.last_present(end)?;
    // What lies beneath sectors that it holds itself does not matter, but then there is data anyway.
    let beyond = SectorRange::between(end, Sector(image.sectors().0));
    let beneath = parents.map(|parents| parents.last_nonzero(beyond)).transpose()?.flatten();
    Ok(own.max(beneath))
}
