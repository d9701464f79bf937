//! New files that appear whole or not at all.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat};
use rustix::io::Errno;

use crate::create::CreateError;
use crate::rename::rename_without_replacing;
use crate::storage::{Container, FileStorage};

/// What to do about a file that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// Fail.
    Keep,
    /// Put the new one in its place.
    Replace,
}

/// A step on a file as a whole that failed: opening, naming, deleting, locking.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot {action}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What was tried.
    pub action: &'static str,
    /// What the system answered.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// Makes the error of a step from what the system answers.
    pub fn when(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { path: path.into(), action, source }
    }
}

/// Makes a new file with what `fill` writes; the file gets its name only when `fill` has succeeded.
///
/// # Errors
/// Those of `fill`, and [`CreateError::Exists`], [`CreateError::NotAFile`] and [`CreateError::Io`].
///
/// # Crash safety
/// Until then the file has no name, and a crash leaves nothing behind; where that cannot be (NFS; no `/proc`), and
/// while another file is replaced, it has one that starts with a dot and ends in `.new`. `fill` syncs what it writes.
/// [`rename_without_replacing`] tells what that is worth where file systems can less.
pub fn write_new_file<E: From<CreateError>>(
    path: &Path,
    existing: Existing,
    fill: impl FnOnce(&Container) -> Result<(), E>,
) -> Result<(), E> {
    let failed = |source| CreateError::Io { path: path.into(), source };
    if existing == Existing::Keep && fs::symlink_metadata(path).is_ok() {
        return Err(CreateError::Exists { path: path.into() }.into());
    }
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(CreateError::NotAFile { path: path.into() }.into());
    }
    let new = NewFile::start(path).map_err(failed)?;
    let storage = new.file().try_clone().and_then(FileStorage::new).map_err(failed)?;
    fill(&Container::new(path, Arc::new(storage)))?;
    new.publish(path, existing).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => CreateError::Exists { path: path.into() },
        _ => failed(error),
    })?;
    Ok(sync_folder(folder_of(path)).map_err(|error| failed(error.source))?)
}

/// Where the kernel shows what is open.
const DESCRIPTORS: &str = "/proc/self/fd";

/// A file that has no name yet, or one that says it is not ready.
#[derive(Debug)]
pub struct NewFile(Unpublished);

#[derive(Debug)]
enum Unpublished {
    Unnamed(File),
    Named(tempfile::NamedTempFile),
}

impl NewFile {
    /// Starts a file that will be at `path`.
    ///
    /// # Errors
    /// What the system answers.
    pub fn start(path: &Path) -> io::Result<Self> {
        Ok(Self(Unpublished::start(path)?))
    }

    /// The file, to be filled and synced.
    pub fn file(&self) -> &File {
        match &self.0 {
            Unpublished::Unnamed(file) => file,
            Unpublished::Named(file) => file.as_file(),
        }
    }

    /// Gives it its name. Durable only once the folder has been synced.
    ///
    /// # Errors
    /// What the system answers; [`io::ErrorKind::AlreadyExists`] where another file is to be kept.
    ///
    /// # Crash safety
    /// As [`write_new_file`].
    pub fn publish(self, path: &Path, existing: Existing) -> io::Result<()> {
        self.0.publish(path, existing)
    }
}

impl Unpublished {
    fn start(path: &Path) -> io::Result<Self> {
        // The only way to a name leads through there.
        let can_be_named = Path::new(DESCRIPTORS).exists();
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let unnamed = || rustix::fs::open(folder_of(path), flags, Mode::from_raw_mode(0o666));
        match if can_be_named { unnamed() } else { Err(Errno::OPNOTSUPP) } {
            Ok(file) => Ok(Self::Unnamed(file.into())),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL | Errno::NOSYS) => {
                let mut prefix = OsString::from(".");
                prefix.push(path.file_name().unwrap_or_default());
                let mut builder = tempfile::Builder::new();
                builder.prefix(&prefix).suffix(".new").permissions(Permissions::from_mode(0o666));
                Ok(Self::Named(builder.tempfile_in(folder_of(path))?))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn publish(self, path: &Path, existing: Existing) -> io::Result<()> {
        match (self, existing) {
            (Self::Unnamed(file), Existing::Keep) => name(&file, path),
            (Self::Unnamed(file), Existing::Replace) => {
                let mut dotted = OsString::from(".");
                dotted.push(path.file_name().unwrap_or_default());
                dotted.push(format!(".{}.new", uuid::Uuid::new_v4().simple()));
                let dotted = folder_of(path).join(dotted);
                name(&file, &dotted)?;
                fs::rename(&dotted, path).inspect_err(|_| {
                    // The first error is the one to tell.
                    let _ = fs::remove_file(&dotted);
                })
            }
            (Self::Named(file), Existing::Keep) => {
                let temporary = file.into_temp_path();
                rename_without_replacing(&temporary, path)?;
                // What it was called is gone, and need not be removed.
                let _ = temporary.keep();
                Ok(())
            }
            (Self::Named(file), Existing::Replace) => Ok(file.persist(path).map(drop)?),
        }
    }
}

/// Gives a file without a name its first one; fails where that is taken.
fn name(file: &File, path: &Path) -> io::Result<()> {
    let descriptor = format!("{DESCRIPTORS}/{}", file.as_raw_fd());
    Ok(linkat(CWD, descriptor, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

/// The folder that a path is in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes the names in a folder durable, where the file system has any way to do so.
///
/// # Errors
/// What the system answers.
pub fn sync_folder(folder: &Path) -> Result<(), FileError> {
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Older SMB and some FUSE have no such thing, and keep names in the order in which they are given.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        synced => synced.map_err(FileError::when(folder, "sync the folder")),
    }
}
