//! Small JSON files that are replaced whole.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use vhd_core::{Existing, NewFile, folder_of, sync_folder};

use crate::failure::Failure;

/// Reads a file; `None` where there is none.
///
/// # Errors
/// One that cannot be read or is not what it should be.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Failure> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.map_err(Failure::io(path, "read it"))?,
    };
    let parsed = serde_json::from_slice(&bytes).map_err(io::Error::from);
    Ok(Some(parsed.map_err(Failure::io(path, "understand it; it is damaged, mend or remove it"))?))
}

/// Writes a file in a repository's folder in the place of what was there; only under the repository's lock, as all of them
/// are `.sr.new` before they are complete.
///
/// # Errors
/// What the system answers.
///
/// # Crash safety
/// The file is what it was, or complete; once this returns it is durable.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), Failure> {
    write_bytes(path, &to_bytes(value)?)
}

/// As [`write`], of any bytes.
///
/// # Errors
/// As there.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let new = folder_of(path).join(".sr.new");
    let written = (|| {
        let mut file = fs::File::create(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)
    })();
    written.map_err(Failure::io(path, "write it"))?;
    Ok(sync_folder(folder_of(path))?)
}

/// As [`write`], where others may write files in the same folder.
///
/// # Errors
/// As there.
pub(crate) fn write_beside_others<T: Serialize>(path: &Path, value: &T) -> Result<(), Failure> {
    let bytes = to_bytes(value)?;
    let written = (|| {
        let new = NewFile::start(path)?;
        new.file().write_all(&bytes)?;
        new.file().sync_all()?;
        new.publish(path, Existing::Replace)
    })();
    written.map_err(Failure::io(path, "write it"))?;
    Ok(sync_folder(folder_of(path))?)
}

fn to_bytes<T: Serialize>(value: &T) -> Result<Vec<u8>, Failure> {
    let mut bytes = serde_json::to_vec_pretty(value).map_err(|error| Failure::of(&error))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// Removes a file, durably; one that is not there is no error.
///
/// # Errors
/// What the system answers.
pub(crate) fn remove(path: &Path) -> Result<(), Failure> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => {
            removed.map_err(Failure::io(path, "remove it"))?;
            Ok(sync_folder(folder_of(path))?)
        }
    }
}
