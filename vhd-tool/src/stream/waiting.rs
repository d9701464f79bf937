//! Waiting for what a descriptor gives or takes, and telling one that has nothing to give from one that has ended.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use vhd_core::stream::Silence;

/// For how long nothing comes until that is told.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can be read and waited for.
pub(crate) trait Incoming: Read + AsFd + Send {}

impl<T: Read + AsFd + Send> Incoming for T {}

/// A stream that tells, by an error that holds [`Silence`], when nothing has come for a while; whoever reads on waits again.
pub(crate) struct Listening<R>(R);

impl<R: Incoming> Listening<R> {
    /// Listens to `input`.
    pub(crate) fn new(input: R) -> Self {
        Self(input)
    }

    fn is_silent(&self) -> io::Result<bool> {
        let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&patience)) {
            Ok(ready) => Ok(ready == 0),
            Err(Errno::INTR) => Err(io::ErrorKind::Interrupted.into()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl<R: Incoming> Read for Listening<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if self.is_silent()? { Err(io::Error::other(Silence)) } else { self.0.read(bytes) }
    }
}

/// A descriptor that was left open. Whoever shares it may have made it one that does not wait: then we do.
#[derive(Debug)]
pub(crate) struct Descriptor(pub(crate) File);

impl Descriptor {
    /// Waits where the system would not; a time-out that somebody has set is an error.
    fn wait_after<T>(&self, result: io::Result<T>, for_what: PollFlags) -> io::Result<T> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !rustix::fs::fcntl_getfl(&self.0)?.contains(OFlags::NONBLOCK) {
                    return Err(error);
                }
                poll(&mut [PollFd::new(&self.0, for_what)], None)?;
                Err(io::ErrorKind::Interrupted.into())
            }
            result => result,
        }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Read for Descriptor {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let result = self.0.read(bytes);
        self.wait_after(result, PollFlags::IN)
    }
}

impl Write for Descriptor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.0.write(bytes);
        self.wait_after(result, PollFlags::OUT)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
