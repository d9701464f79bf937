//! Putting a new image where a file or a device is.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use vhd_core::{
    ByteCount, Container, CreateError, Existing, FileError, FileOffset, FileStorage, Lock, NewImage, NewKind, create,
    write_new_file,
};

use super::Failure;

/// So many MiB in bytes, where there are so many.
pub(super) fn mebibytes(count: u64) -> Option<ByteCount> {
    count.checked_mul(1 << 20).map(ByteCount)
}

/// Writes a new image: on a device in place; otherwise as a file, in the place of one that is there and nobody uses.
///
/// # Crash safety
/// A file has the old content or the new. What a device held is not kept.
pub(super) fn place(path: &Path, new: &NewImage) -> Result<(), Failure> {
    // A link stays, and what it leads to is replaced.
    let Ok(real) = path.canonicalize() else { return Ok(make_file(path, new, Existing::Keep)?) };
    if !is_device(&real) {
        let locked = if real.is_file() { Some(FileStorage::open(&real, Lock::Exclusive)) } else { None };
        let _locked = locked.transpose().map_err(FileError::when(path, "replace it"))?;
        let before = real.metadata().map_err(FileError::when(path, "look at it"))?;
        make_file(&real, new, Existing::Replace)?;
        return keep_rights(&real, &before)
            .map_err(|source| FileError::when(path, "give it back its owner")(source).into());
    }
    let storage = FileStorage::open_writable(path).map_err(FileError::when(path, "open it for writing"))?;
    let container = Container::new(path, Arc::new(storage));
    if matches!(new.kind, NewKind::Fixed) && new.size <= container.len()? {
        // Of a new file this is a hole; here it is what others have left.
        container.zero_range(FileOffset(0), new.size)?;
    }
    Ok(create(&container, new)?)
}

/// Makes a file with the image. All of a fixed disk has its space before the file has its name, if the file system can give
/// space without writing.
fn make_file(path: &Path, new: &NewImage, existing: Existing) -> Result<(), CreateError> {
    write_new_file(path, existing, |container| {
        create(container, new)?;
        if let (NewKind::Fixed, Some(file)) = (&new.kind, container.storage().as_file()) {
            match rustix::fs::fallocate(file.file(), FallocateFlags::empty(), 0, new.size.0) {
                Ok(()) => container.sync()?,
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(errno) => return Err(CreateError::Io { path: path.into(), source: errno.into() }),
            }
        }
        Ok(())
    })
}

/// Gives a file the owner and the mode of the one that it has replaced.
fn keep_rights(path: &Path, before: &Metadata) -> io::Result<()> {
    let now = path.metadata()?;
    if (now.uid(), now.gid()) != (before.uid(), before.gid()) {
        std::os::unix::fs::chown(path, Some(before.uid()), Some(before.gid()))?;
    }
    if now.mode() != before.mode() {
        std::fs::set_permissions(path, before.permissions())?;
    }
    Ok(())
}

/// Tells whether a path leads to a block device.
pub(super) fn is_device(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    path.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device())
}
