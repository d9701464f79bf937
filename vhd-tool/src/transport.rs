//! Byte streams to peers on the network: TCP, Unix sockets, and the body of an HTTP `PUT`.
//!
//! ```text
//!   text ──▶ Address ──▶ open ──┬─ tcp, unix ────────────────────────┬──▶ Connection
//!                               └─ http, https ──▶ [TLS] ──▶ request ┘
//!                                      ▲                   │
//!                                      └─── redirected ◀───┘
//! ```
//!
//! No peer is trusted: what it says is bounded in length, opening a connection has a deadline, and later no single
//! read or write waits longer than [`IDLE`](socket::IDLE).

mod address;
mod http;
mod socket;
#[cfg(test)]
mod tests;
mod tls;

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustls::{ClientConnection, StreamOwned};

pub(crate) use address::{Address, AddressError};
pub(crate) use socket::PATIENCE;
pub(crate) use tls::{TlsError, TlsOptions};

use socket::Socket;

/// What is told to the peer, and asked of it, when a connection is opened.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectOptions {
    /// Whether the request of an HTTP peer says in a cookie that the body has the chunked protocol of this tool.
    pub(crate) chunked_cookie: bool,
    /// How to speak TLS.
    pub(crate) tls: TlsOptions,
}

/// A stream to a peer that could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The system or the peer broke it off.
    #[error("{peer}: cannot {action}")]
    Io {
        /// Whom it was to, without credentials.
        peer: String,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// TLS cannot be set up as asked for.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// What the peer answered is no HTTP.
    #[error("{peer}: the answer is not HTTP")]
    Head {
        /// Who answered.
        peer: String,
        /// What is wrong with it.
        #[source]
        source: httparse::Error,
    },
    /// The head of the answer does not end.
    #[error("{peer}: the head of the answer is longer than {limit} bytes")]
    LongHead {
        /// Who answered.
        peer: String,
        /// How much is read.
        limit: usize,
    },
    /// The peer does not take the disk.
    #[error("{peer}: answers {code} {reason}")]
    Status {
        /// Who answered.
        peer: String,
        /// The status code.
        code: u16,
        /// What the peer says of it.
        reason: String,
    },
    /// The peer sends us elsewhere, and does not say where to.
    #[error("{peer}: redirects to nowhere")]
    NoLocation {
        /// Who answered.
        peer: String,
    },
    /// The peer sends us to what is no address.
    #[error("{peer}: redirects to what cannot be followed")]
    Location {
        /// Who answered.
        peer: String,
        /// What is wrong with it.
        #[source]
        source: AddressError,
    },
    /// Whoever listens would read what was to be kept from them.
    #[error("{peer}: redirects from https to http")]
    Downgrade {
        /// Who answered.
        peer: String,
    },
    /// Peers send us around.
    #[error("{peer}: redirected more than {limit} times")]
    Redirects {
        /// Who answered last.
        peer: String,
        /// How many are followed.
        limit: usize,
    },
}

impl ConnectError {
    /// Makes the error of a failed step.
    fn io(peer: &impl ToString, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let peer = peer.to_string();
        move |source| Self::Io { peer, action, source }
    }

    fn tells_that_nobody_listens(&self) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, Self::Io { source, .. } if matches!(source.kind(), ConnectionRefused | NotFound))
    }
}

/// A stream of bytes to and from a peer.
#[derive(Debug)]
pub(crate) enum Connection {
    /// As it is.
    Plain(Socket),
    /// Encrypted.
    Tls(Box<StreamOwned<ClientConnection, Socket>>),
}

impl Connection {
    /// Opens a stream to `address`. An HTTP peer has been sent its request, and has agreed to take the body.
    ///
    /// # Errors
    /// Fails if the peer cannot be reached or refuses within [`PATIENCE`].
    pub(crate) fn open(address: &Address, options: &ConnectOptions) -> Result<Self, ConnectError> {
        let failed = ConnectError::io(address, "connect");
        match address {
            Address::Tcp { host, port } => Ok(Self::Plain(Socket::tcp(host, *port).map_err(failed)?)),
            Address::Unix(path) => Ok(Self::Plain(Socket::unix(path).map_err(failed)?)),
            Address::Http(url) => http::put(url, options),
        }
    }

    /// Opens a stream to `address`; where nobody listens there, does so, and takes the first who connects.
    ///
    /// # Errors
    /// Fails if the address can be neither reached nor listened at; of HTTP, always.
    pub(crate) fn meet(address: &Address) -> Result<Self, ConnectError> {
        let refused = match Self::open(address, &ConnectOptions::default()) {
            Err(refused) if refused.tells_that_nobody_listens() => refused,
            met => return met,
        };
        let met = match address {
            Address::Tcp { host, port } => Socket::await_tcp(host, *port),
            Address::Unix(path) => Socket::await_unix(path),
            Address::Http(_) => return Err(refused),
        };
        met.map(Self::Plain).map_err(|source| match source.kind() {
            // It is another host's.
            io::ErrorKind::AddrNotAvailable => refused,
            _ => ConnectError::io(address, "listen there")(source),
        })
    }

    /// Makes all that follows end within `limit` of now, or takes that back, as after a handshake.
    ///
    /// # Errors
    /// Fails if the system refuses.
    pub(crate) fn limit(&mut self, limit: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.limit(limit),
            Self::Tls(stream) => stream.sock.limit(limit),
        }
    }

    /// Tells the peer that nothing more is sent, and hears it out.
    ///
    /// # Errors
    /// Fails if the peer hangs up before it has read all, as far as that can be told: who uses TLS and closes without reading
    /// that we do, or without saying so, looks like that, and knows the end of what is sent by himself.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected, UnexpectedEof};
        let hangs_up =
            |error: &io::Error| matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected | UnexpectedEof);
        match self.shutdown_write().and_then(|()| self.drain()) {
            Err(error) if matches!(self, Self::Tls(_)) && hangs_up(&error) => Ok(()),
            ended => ended,
        }
    }

    /// Tells the peer that nothing more is sent. It can still be read from.
    ///
    /// # Errors
    /// Fails if what was written before cannot be sent.
    fn shutdown_write(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.shutdown_write(),
            Self::Tls(stream) => {
                stream.conn.send_close_notify();
                stream.flush()?;
                stream.sock.shutdown_write()
            }
        }
    }

    /// Reads to the peer's end, for a while, and forgets what it says: a socket that is closed before what has come was read
    /// takes back what the peer has not read yet.
    ///
    /// # Errors
    /// Fails if the peer hangs up before it has read all.
    fn drain(&mut self) -> io::Result<()> {
        let end = Instant::now() + LINGER;
        let mut said = [0; 4096];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            self.limit(Some(left))?;
            match self.read(&mut said) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// For how long a peer may read on when all has been sent, and be listened to.
const LINGER: Duration = Duration::from_secs(10);

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(socket) => socket.as_fd(),
            Self::Tls(stream) => stream.sock.as_fd(),
        }
    }
}

impl Read for Connection {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(bytes),
            Self::Tls(stream) => stream.read(bytes),
        }
    }
}

impl Write for Connection {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
