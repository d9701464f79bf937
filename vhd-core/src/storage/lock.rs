//! File locks, and what is told where there are none.

use std::fs::TryLockError;
use std::io;

use rustix::io::Errno;

/// What an opener asks of others that use the same file (`flock`, advisory, gone with the process).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Nothing: read what is there.
    None,
    /// Nobody may write meanwhile.
    Shared,
    /// Nobody else may write or rely on the content meanwhile.
    Exclusive,
}

/// A file system without file locks.
#[derive(Debug, thiserror::Error)]
#[error(
    "its file system has no file locks (flock), and no image is changed without; \
     on NFS, start the lock service of the server, or mount with local_lock=flock where this host alone uses it"
)]
struct NoLocks {
    #[source]
    source: io::Error,
}

/// Says what is wrong where a file cannot be locked because its file system has no locks; other errors stay what they are.
pub fn explain_lock(error: io::Error) -> io::Error {
    match Errno::from_io_error(&error) {
        Some(Errno::NOLCK | Errno::NOSYS | Errno::OPNOTSUPP | Errno::INVAL) => {
            io::Error::new(io::ErrorKind::Unsupported, NoLocks { source: error })
        }
        _ => error,
    }
}

/// Tells whether an exclusive lock needs a descriptor that can write, as where NFS makes byte-range locks of them.
pub(super) fn needs_writing(locked: &Result<(), TryLockError>) -> bool {
    matches!(locked, Err(TryLockError::Error(error)) if Errno::from_io_error(error) == Some(Errno::BADF))
}
