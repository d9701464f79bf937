//! Folders for tests that write a lot.

use tempfile::TempDir;

/// Makes a temporary folder, on a memory file system where there is one.
///
/// # Panics
/// If there is no place for temporary folders.
pub fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("there is a temporary folder")
}
