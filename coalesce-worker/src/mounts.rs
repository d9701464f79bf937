//! Which mount a folder is on: what tells a mounted folder from the bare mount point that is there without it.
//!
//! Numbers of devices and inodes do not tell: another mount of the same file system may have other ones, and a folder that
//! is unmounted leaves one of the same name. Where the mount is that the folder lies on stays the same.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
use vhd_core::FileError;

/// A folder's file system is not there any more.
#[derive(Debug, thiserror::Error)]
#[error("{}: unreachable: what was mounted at {} is gone; mount it again", folder.display(), mount.display())]
pub struct Gone {
    /// The folder.
    pub folder: PathBuf,
    /// Where its file system was mounted.
    pub mount: PathBuf,
}

/// Finds the mount that a folder is on, by the path that it is mounted at.
///
/// # Errors
/// A folder that is not there.
pub fn mount_of(folder: &Path) -> Result<PathBuf, FileError> {
    let failed = |error| FileError::when(folder, "find its file system")(error);
    let mut path = folder.canonicalize().map_err(failed)?;
    while !is_mount(&path).map_err(failed)? && path.pop() {}
    Ok(path)
}

/// Tells whether something is mounted at a folder. Kernels before 5.8 do not tell of a bind mount of the same file system.
fn is_mount(folder: &Path) -> io::Result<bool> {
    if let Ok(found) = statx(CWD, folder, AtFlags::empty(), StatxFlags::empty())
        && found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
    {
        return Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
    folder.parent().map_or(Ok(true), |above| Ok(device(folder)? != device(above)?))
}

/// Device and inode of a folder.
pub(crate) fn identity_of(folder: &Path) -> Result<(u64, u64), FileError> {
    let found = fs::metadata(folder).map_err(FileError::when(folder, "look at the folder"))?;
    Ok((found.dev(), found.ino()))
}

/// Refuses a folder that is not the one that a path led to before.
pub(crate) fn check_identity(folder: &Path, before: (u64, u64)) -> Result<(), FileError> {
    if identity_of(folder)? == before {
        return Ok(());
    }
    let gone = io::Error::other("another folder is in its place, or its file system has been unmounted");
    Err(FileError::when(folder, "go on in the folder")(gone))
}

/// A folder that is held open: as long as it is, its file system is not unmounted, but lazily or by force.
#[derive(Debug)]
pub struct HeldFolder {
    path: PathBuf,
    file: File,
}

impl HeldFolder {
    /// Opens a folder.
    ///
    /// # Errors
    /// One that is not there.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let file = File::open(path).map_err(FileError::when(path, "open the folder"))?;
        Ok(Self { path: path.into(), file })
    }

    /// Checks that its path still leads to it.
    ///
    /// # Errors
    /// Another folder, or none, that is there now.
    pub fn check(&self) -> Result<(), FileError> {
        let held = self.file.metadata().map_err(FileError::when(&self.path, "look at the folder"))?;
        check_identity(&self.path, (held.dev(), held.ino()))
    }
}

/// Tells whether a folder has files that are called as images are.
pub(crate) fn holds_images(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|entries| {
        entries.flatten().any(|entry| Path::new(&entry.file_name()).extension().is_some_and(|it| it == "vhd"))
    })
}
