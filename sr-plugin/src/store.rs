//! Small JSON files that are replaced whole.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::OFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vhd_core::{Existing, NewFile, folder_of, sync_folder};

use crate::failure::Failure;

/// What a file may take: the changed blocks of the largest disk are 4 MiB.
const MOST_BYTES: u64 = 64 << 20;

/// Opens a file in a repository's folder for writing, and makes it where there is none: not what a link leads to that
/// somebody has put there, and without waiting for a FIFO.
///
/// # Errors
/// What the system answers.
pub(crate) fn open_writable(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    File::options().create(true).truncate(false).write(true).custom_flags(flags.bits().cast_signed()).open(path)
}

/// Reads all of a file, unless it is none or longer than any of ours can be; what is a link is none.
///
/// # Errors
/// What the system answers.
pub(crate) fn read_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::options()
        .read(true)
        .custom_flags((OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed())
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MOST_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no regular file of less than 64 MiB"));
    }
    let mut bytes = Vec::new();
    file.take(MOST_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads a file; `None` where there is none.
///
/// # Errors
/// One that cannot be read or is not what it should be.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Failure> {
    let bytes = match read_bytes(path) {
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
        let mut file = open_writable(&new)?;
        file.set_len(0)?;
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
