//! Telling a stream that has nothing to say from one that has ended.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vhd_core::stream::Silence;

/// For how long nothing comes until that is told.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can be read and waited for.
pub(crate) trait Incoming: Read + AsFd + Send {}

impl<T: Read + AsFd + Send> Incoming for T {}

/// A stream that tells once, by an error that holds [`Silence`], when nothing has come for a while; whoever then reads on
/// waits as for any stream.
pub(crate) struct Listening<R> {
    input: R,
    has_told: bool,
}

impl<R: Incoming> Listening<R> {
    /// Listens to `input`.
    pub(crate) fn new(input: R) -> Self {
        Self { input, has_told: false }
    }

    fn is_silent(&self) -> io::Result<bool> {
        let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.input, PollFlags::IN)], Some(&patience)) {
            Ok(ready) => Ok(ready == 0),
            Err(Errno::INTR) => Err(io::ErrorKind::Interrupted.into()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl<R: Incoming> Read for Listening<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        if !self.has_told && self.is_silent()? {
            self.has_told = true;
            return Err(io::Error::other(Silence));
        }
        self.has_told = false;
        self.input.read(bytes)
    }
}
