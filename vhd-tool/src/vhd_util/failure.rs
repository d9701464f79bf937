//! The one error of these commands: what went wrong, and the error number of the system that the program ends with.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use vhd_core::repair::{JournalError, RepairError};
use vhd_core::{ChainError, CreateError};

use crate::error::with_causes;

/// A command that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    errno: Errno,
    source: Box<dyn Error + Send + Sync>,
}

/// What these commands refuse by themselves.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// A value that cannot be.
    #[error("{}: {what}", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// What the program ends with.
        errno: Errno,
    },
}

impl Refused {
    /// Makes the error of what an image, or its state, does not allow.
    pub(crate) fn image(path: impl Into<PathBuf>, errno: Errno, what: impl Into<String>) -> Self {
        Self::Image { path: path.into(), what: what.into(), errno }
    }

    /// Makes the error of a size, in MiB, that no disk can have.
    pub(crate) fn size(path: &Path, mebibytes: u64) -> Self {
        Self::image(path, Errno::INVAL, format!("a disk cannot have {mebibytes} MiB"))
    }
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { errno: errno_of(&error), source: Box::new(error) }
    }
}

impl Failure {
    /// An error that is best told by this number.
    pub(crate) fn with(errno: Errno, error: impl Error + Send + Sync + 'static) -> Self {
        Self { errno, source: Box::new(error) }
    }

    /// The error number that the program ends with.
    pub(crate) fn errno(&self) -> Errno {
        self.errno
    }

    /// The exit code that it makes.
    pub(crate) fn exit_code(&self) -> u8 {
        exit_code(self.errno)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&with_causes(&*self.source))
    }
}

/// The exit code of an error number.
pub(crate) fn exit_code(errno: Errno) -> u8 {
    u8::try_from(errno.raw_os_error()).unwrap_or(u8::MAX)
}

/// Finds the error number that says best what is wrong.
pub(crate) fn errno_of(error: &(dyn Error + 'static)) -> Errno {
    let mut causes = std::iter::successors(Some(error), |&error| error.source());
    causes.find_map(known_errno).unwrap_or(Errno::INVAL)
}

fn known_errno(error: &(dyn Error + 'static)) -> Option<Errno> {
    if let Some(Refused::Image { errno, .. }) = error.downcast_ref() {
        return Some(*errno);
    }
    if let Some(ChainError::TooDeep { .. }) = error.downcast_ref() {
        return Some(Errno::NOSPC);
    }
    if let Some(ChainError::Parent { tried, .. }) = error.downcast_ref() {
        return tried.first().map(|refusal| errno_of(refusal));
    }
    if let Some(CreateError::Exists { .. }) = error.downcast_ref() {
        return Some(Errno::EXIST);
    }
    match error.downcast_ref::<RepairError>() {
        Some(RepairError::Create(error)) => return known_errno(&**error),
        Some(RepairError::Journal(JournalError::Stale { .. })) => return Some(Errno::STALE),
        _ => {}
    }
    let error = error.downcast_ref::<io::Error>()?;
    error.raw_os_error().map(Errno::from_raw_os_error).or(match error.kind() {
        io::ErrorKind::ResourceBusy => Some(Errno::BUSY),
        io::ErrorKind::UnexpectedEof => Some(Errno::IO),
        io::ErrorKind::StorageFull => Some(Errno::NOSPC),
        _ => None,
    })
}
