//! Images in use: locked by a process of ours, open in another program, or served by a tapdisk that is paused.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vhd_core::{Container, FileError, FileOffset, FileStorage, Image, OpenError, ReadWrite, StorageError};

use crate::error::CoalesceError;
use crate::tapdisk;

/// Opens a file for writing, locks it, and makes sure that no other program uses it.
///
/// # Errors
/// What the system answers; [`io::ErrorKind::ResourceBusy`] for a file in use.
pub(crate) fn open_unused(path: &Path) -> io::Result<FileStorage> {
    let storage = FileStorage::open_writable(path)?;
    // Asked once the file is held: a tapdisk that goes on from then on is held up.
    check_not_served(path).map_err(|error| error.source)?;
    Ok(storage)
}

/// Refuses a file that a tapdisk serves, or reads through: a paused one has it not open, and opens it again by its name.
///
/// # Errors
/// [`io::ErrorKind::ResourceBusy`] for such a file; `tap-ctl`, where it is there and does not answer.
pub fn check_not_served(path: &Path) -> Result<(), FileError> {
    if tapdisk::serves(path)? {
        return Err(FileError::when(path, "use it")(io::Error::new(
            io::ErrorKind::ResourceBusy,
            "in use by a tapdisk",
        )));
    }
    Ok(())
}

/// As [`open_unused`], an image.
///
/// # Errors
/// As [`Image::open_writable`].
pub(crate) fn open_image(path: &Path) -> Result<Image<ReadWrite>, OpenError> {
    let failed = |source| StorageError { path: path.into(), action: "open".into(), offset: FileOffset(0), source };
    let storage = open_unused(path).map_err(failed)?;
    Image::writable_from_container(Container::new(path, Arc::new(storage)))
}

/// Locks an image that is only read.
pub(crate) fn lock_source(path: &Path) -> Result<FileStorage, FileError> {
    open_unused(path).map_err(FileError::when(path, "lock it"))
}

/// Tells whether an image is free: no process and no paused tapdisk uses it, or the file is gone.
pub(crate) fn is_free(path: &Path) -> Result<bool, FileError> {
    match FileStorage::is_in_use(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        used => Ok(!used.map_err(FileError::when(path, "look whether anybody uses it"))? && !tapdisk::serves(path)?),
    }
}

/// Finds the first of these images that another process, or a paused tapdisk, uses now.
pub(crate) fn first_in_use<'p>(paths: impl IntoIterator<Item = &'p PathBuf>) -> Result<Option<PathBuf>, CoalesceError> {
    for path in paths {
        if !is_free(path)? {
            return Ok(Some(path.clone()));
        }
    }
    Ok(None)
}
