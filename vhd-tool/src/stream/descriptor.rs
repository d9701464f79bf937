//! Descriptors that whoever started the program has left open for it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use super::failure::StreamFailure;

/// Takes a copy of descriptor `number`.
///
/// A descriptor by its number alone is nothing that safe code may use, so the kernel is asked for a copy of it as for
/// that of another process. Kernels before 5.6 cannot do that; there what has a path is opened anew, at the same place,
/// which serves for files, devices and pipes, not for sockets.
///
/// # Errors
/// A number that no open descriptor has.
pub(super) fn take(number: i32) -> Result<File, StreamFailure> {
    let copy = match number {
        0 => io::stdin().as_fd().try_clone_to_owned().map(File::from),
        1 => io::stdout().as_fd().try_clone_to_owned().map(File::from),
        2 => io::stderr().as_fd().try_clone_to_owned().map(File::from),
        _ => copy_of(number).or_else(|error| match error.kind() {
            io::ErrorKind::Unsupported | io::ErrorKind::PermissionDenied => reopened(number),
            _ => Err(error),
        }),
    };
    copy.map_err(|source| StreamFailure::Descriptor { number, source })
}

fn copy_of(number: i32) -> io::Result<File> {
    let myself = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(myself, number, PidfdGetfdFlags::empty())?.into())
}

fn reopened(number: i32) -> io::Result<File> {
    let path = format!("/proc/self/fd/{number}");
    let state = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
    let field = |name: &str| {
        let value = state.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        value.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
    };
    let flags = i64::from_str_radix(field("flags:")?, 8).map_err(io::Error::other)?;
    // O_ACCMODE and O_APPEND.
    let (read, write) = (flags & 3 != 1, flags & 3 != 0);
    let mut file = File::options().read(read).write(write).append(write && flags & 0o2000 != 0).open(path)?;
    let position: u64 = field("pos:")?.parse().map_err(io::Error::other)?;
    if position > 0 {
        file.seek(SeekFrom::Start(position))?;
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn both_ways_give_the_same_file_at_the_same_place() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"0123456789").unwrap();
        file.seek(SeekFrom::Start(4)).unwrap();
        let number = file.as_raw_fd();
        for (way, opened) in [("reopened", reopened(number)), ("copied", take(number).map_err(io::Error::other))] {
            let mut text = String::new();
            opened.unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "456789", "{way}");
        }
    }

    #[test]
    fn what_is_not_open_is_an_error() {
        assert!(matches!(take(987_654), Err(StreamFailure::Descriptor { number: 987_654, .. })));
    }
}
