//! Giving a file another name only where that is free, on file systems that can do more or less.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// Renames a file within a file system; a file that has the new name already keeps it.
///
/// # Errors
/// What the system answers; [`io::ErrorKind::AlreadyExists`] where the name is taken.
///
/// # Crash safety
/// One rename where renames take flags. Where they do not (NFS, CephFS, 9p, FUSE), the file has both names for a moment:
/// done again, this removes the first. Where a file can have but one name, too (FAT, sshfs), the new name is claimed with an
/// empty file, which the rename replaces and a crash between leaves: without a claim, what another program puts under the
/// name in the same moment would be lost.
pub fn rename_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {}
        renamed => return Ok(renamed?),
    }
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_same(from, to)? => fs::remove_file(from),
        Err(error) if has_no_second_names(&error) => {
            File::create_new(to)?;
            fs::rename(from, to).inspect_err(|_| {
                // The first error is the one to tell.
                let _ = fs::remove_file(to);
            })
        }
        Err(error) => Err(error),
    }
}

/// Tells whether this is how a file system refuses a second name for a file since it has no such thing.
pub fn has_no_second_names(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK))
}

fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (fs::symlink_metadata(one)?, fs::symlink_metadata(other)?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}
