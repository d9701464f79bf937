//! Sockets that never wait for ever.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a peer has to be reached, to greet and to agree.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long one read or write may wait once data flows: the peer may have to sync a slow disk in between.
pub(crate) const IDLE: Duration = Duration::from_secs(600);

/// The least time-out that the system takes for one: none at all would be the longest.
const LEAST: Duration = Duration::from_millis(1);

/// A socket with a limit to how long it waits: for each read and write, or for all until a moment.
#[derive(Debug)]
pub(crate) struct Socket {
    kind: Kind,
    end: Option<Instant>,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// Connects to the first address of `host` that answers.
    pub(super) fn tcp(host: &str, port: u16) -> io::Result<Self> {
        let end = Instant::now() + PATIENCE;
        let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
        for address in (host, port).to_socket_addrs()? {
            let left = end.saturating_duration_since(Instant::now()).max(LEAST);
            match TcpStream::connect_timeout(&address, left) {
                Ok(stream) => {
                    // Requests are answered one by one: waiting to fill a packet would only delay them.
                    stream.set_nodelay(true)?;
                    return Self::new(Kind::Tcp(stream));
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Connects to the socket at `path`.
    pub(super) fn unix(path: &Path) -> io::Result<Self> {
        Self::new(Kind::Unix(UnixStream::connect(path)?))
    }

    /// Waits at an address of this host for the first who connects.
    pub(super) fn await_tcp(host: &str, port: u16) -> io::Result<Self> {
        let (stream, _) = TcpListener::bind((host, port))?.accept()?;
        stream.set_nodelay(true)?;
        Self::new(Kind::Tcp(stream))
    }

    /// Waits at `path` for the first who connects; then nobody else can, and a socket that nobody listens at any more goes.
    pub(super) fn await_unix(path: &Path) -> io::Result<Self> {
        let is_left = path.symlink_metadata().is_ok_and(|found| found.file_type().is_socket());
        if is_left {
            std::fs::remove_file(path)?;
        }
        let accepted = UnixListener::bind(path)?.accept();
        std::fs::remove_file(path)?;
        Self::new(Kind::Unix(accepted?.0))
    }

    fn new(kind: Kind) -> io::Result<Self> {
        let mut socket = Self { kind, end: None };
        socket.limit(None)?;
        Ok(socket)
    }

    /// Makes all that follows end within `limit` of now; without one, each read and write within [`IDLE`].
    pub(super) fn limit(&mut self, limit: Option<Duration>) -> io::Result<()> {
        self.end = limit.map(|limit| Instant::now() + limit);
        self.set_timeouts(limit.unwrap_or(IDLE))
    }

    fn set_timeouts(&self, timeout: Duration) -> io::Result<()> {
        let timeout = Some(timeout.max(LEAST));
        match &self.kind {
            Kind::Tcp(stream) => stream.set_read_timeout(timeout).and_then(|()| stream.set_write_timeout(timeout)),
            Kind::Unix(stream) => stream.set_read_timeout(timeout).and_then(|()| stream.set_write_timeout(timeout)),
        }
    }

    /// Gives what is left until the end to the next read or write.
    fn arm(&self) -> io::Result<()> {
        let Some(end) = self.end else { return Ok(()) };
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(timed_out());
        }
        self.set_timeouts(left)
    }

    /// Tells the peer that nothing more is sent.
    pub(super) fn shutdown_write(&self) -> io::Result<()> {
        match &self.kind {
            Kind::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Kind::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the peer takes too long")
}

/// Calls a time-out by its name: the system says that it would have had to wait.
fn named(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { timed_out() } else { error }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.kind {
            Kind::Tcp(stream) => stream.as_fd(),
            Kind::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for Socket {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.arm()?;
        match &mut self.kind {
            Kind::Tcp(stream) => stream.read(bytes),
            Kind::Unix(stream) => stream.read(bytes),
        }
        .map_err(named)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.arm()?;
        match &mut self.kind {
            Kind::Tcp(stream) => stream.write(bytes),
            Kind::Unix(stream) => stream.write(bytes),
        }
        .map_err(named)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
