//! Descriptors that whoever started the program has left open for it.
//!
//! The one file with unsafe code: a descriptor that is known by its number alone is nothing that safe code may use, and
//! kernels before 5.6 have no other way to a socket (`pidfd_getfd` came then; dom0 has older ones).
#![expect(unsafe_code, reason = "a number from the command line becomes a descriptor")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use super::failure::StreamFailure;

/// Takes a copy of descriptor `number`.
///
/// # Errors
/// A number that no open descriptor has.
pub(super) fn take(number: i32) -> Result<File, StreamFailure> {
    copy_of(number).map_err(|source| StreamFailure::Descriptor { number, source })
}

fn copy_of(number: i32) -> io::Result<File> {
    match number {
        0 => return Ok(io::stdin().as_fd().try_clone_to_owned()?.into()),
        1 => return Ok(io::stdout().as_fd().try_clone_to_owned()?.into()),
        _ => {}
    }
    if !Path::new("/proc/self/fd").exists() {
        return Err(io::Error::other("/proc, which tells what is open, is not mounted"));
    }
    // The links of sockets and pipes lead nowhere, but they are there.
    if Path::new(&format!("/proc/self/fd/{number}")).symlink_metadata().is_err() {
        return Err(io::Error::from_raw_os_error(rustix::io::Errno::BADF.raw_os_error()));
    }
    // SAFETY: the descriptor is open, as has just been seen (so it is not -1 either), and stays so while it is copied: it was
    // left open for us, and nothing in this program closes what it has not opened.
    let left_open = unsafe { BorrowedFd::borrow_raw(number) };
    left_open.try_clone_to_owned().map(File::from)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_copy_is_the_same_file_at_the_same_place() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        file.seek(SeekFrom::Start(4)).unwrap();
        let mut text = String::new();
        take(file.as_raw_fd()).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "456789");
    }

    #[test]
    fn sockets_are_taken_too() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        ours.write_all(b"over").unwrap();
        drop(ours);
        let mut text = String::new();
        take(theirs.as_raw_fd()).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "over");
    }

    #[test]
    fn what_is_not_open_is_an_error() {
        for number in [987_654, -1] {
            assert!(matches!(take(number), Err(StreamFailure::Descriptor { .. })), "{number}");
        }
    }
}
