//! A volume's file gets another name before a new file takes its place.
//!
//! Where a file can have two names, the volume has its own throughout. Where it cannot (FAT, sshfs), the volume has none
//! between two renames, and one that a process leaves so gets it back from the journal.

use std::fs;
use std::io;
use std::path::Path;

use vhd_core::{FileError, has_no_second_names};

use crate::snapshot::is_same_file;

/// Gives the volume's file the name that it is to have.
///
/// # Crash safety
/// Until another file has taken the volume's place, [`put_back`] undoes it.
pub(crate) fn set_aside(volume: &Path, name: &Path) -> Result<(), FileError> {
    let named = match fs::hard_link(volume, name) {
        // The name is made up, so that nothing has it; what a claim of it left after a crash would be taken for an image.
        Err(error) if has_no_second_names(&error) => fs::rename(volume, name),
        linked => linked,
    };
    named.map_err(FileError::when(name, "give the volume's file its new name"))
}

/// Takes that back, where no other file has taken the volume's place; under the structure lock, which keeps others from that.
/// Can be repeated.
pub(crate) fn put_back(volume: &Path, name: &Path) -> Result<(), FileError> {
    if is_same_file(name, volume) {
        return remove_if_there(name);
    }
    if name.exists() && fs::symlink_metadata(volume).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        fs::rename(name, volume).map_err(FileError::when(volume, "give the volume its name back"))?;
    }
    Ok(())
}

pub(crate) fn remove_if_there(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::when(path, "remove it")(error)),
        _ => Ok(()),
    }
}
