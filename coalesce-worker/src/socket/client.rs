//! The side that asks.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::{Command, Refused, Reply};

/// How long a worker may take to answer; it answers at once or is in trouble.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest answer that is read: a status with a hundred thousand images in it.
const LONGEST_REPLY: u64 = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody listens there.
    #[error("{}: no worker is running", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What the system answers.
        source: io::Error,
    },
    /// The worker has accepted and says nothing.
    #[error("{}: the worker does not answer", path.display())]
    TimedOut {
        /// The socket.
        path: PathBuf,
    },
    /// The socket cannot be used.
    #[error("{}: cannot talk to the worker", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// What the system answers.
        source: io::Error,
    },
    /// The command cannot be put into JSON, since a path in it is not text.
    #[error("the command cannot be put into JSON")]
    Command(#[source] serde_json::Error),
    /// The answer is none.
    #[error("{}: the worker's answer makes no sense", path.display())]
    Reply {
        /// The socket.
        path: PathBuf,
        /// Where it makes none.
        source: serde_json::Error,
    },
    /// The worker does not do it.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// Sends a command to the worker that listens on `socket`, and waits for its answer.
///
/// # Errors
/// What [`AskError`] lists.
pub fn ask(socket: &Path, command: &Command) -> Result<Value, AskError> {
    ask_within(socket, command, TIMEOUT)
}

pub(super) fn ask_within(socket: &Path, command: &Command, timeout: Duration) -> Result<Value, AskError> {
    let path = socket.to_path_buf();
    let mut request = serde_json::to_vec(command).map_err(AskError::Command)?;
    request.push(b'\n');
    let mut line = Vec::new();
    let stream = match UnixStream::connect(socket) {
        Err(source) if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Err(AskError::NotRunning { path, source });
        }
        Err(source) => return Err(AskError::Io { path, source }),
        Ok(stream) => stream,
    };
    let mut talk = || {
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        (&stream).write_all(&request)?;
        BufReader::new((&stream).take(LONGEST_REPLY)).read_until(b'\n', &mut line)
    };
    match talk() {
        Err(source) if source.kind() == io::ErrorKind::WouldBlock => return Err(AskError::TimedOut { path }),
        Err(source) => return Err(AskError::Io { path, source }),
        Ok(_) => {}
    }
    match serde_json::from_slice(&line) {
        Ok(Reply::Done(value)) => Ok(value),
        Ok(Reply::Refused(refused)) => Err(refused.into()),
        Err(source) => Err(AskError::Reply { path, source }),
    }
}
