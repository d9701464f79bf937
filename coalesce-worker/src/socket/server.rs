//! The side that answers: a thread that accepts, and one for each connection.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::net::Shutdown;
use serde_json::Value;
use vhd_core::FileError;

use super::{Command, Refused, Reply};

/// Connections at once; whoever comes next is sent away.
pub(super) const MOST_CONNECTIONS: usize = 32;
/// The longest request, its end included.
pub(super) const LONGEST_LINE: u64 = 64 << 10;
/// How long a connection may be silent.
const SILENCE: Duration = Duration::from_secs(60);
/// How long a client may leave an answer lying.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why nobody can be served.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody answers on this socket.
    #[error("{}: another worker listens here", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else has this name.
    #[error("{}: is no socket, and will not be replaced by one", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// A step on the socket's file failed.
    #[error(transparent)]
    File(#[from] FileError),
}

type Handler = dyn Fn(Command) -> Result<Value, Refused> + Send + Sync;

/// A socket that is being served, until this is dropped: connections are closed then, and the file is removed.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    inode: u64,
    listener: Arc<UnixListener>,
    connections: Arc<Connections>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves a socket at `path`, for the user of this process alone, in threads of its own. `handler` is called by several
    /// of them at once; a panic in it costs that connection only. A socket that nobody answers on is replaced.
    ///
    /// # Errors
    /// What [`SocketError`] lists.
    pub fn start(
        path: &Path,
        handler: impl Fn(Command) -> Result<Value, Refused> + Send + Sync + 'static,
    ) -> Result<Self, SocketError> {
        let (listener, inode) = bind(path)?;
        let listener = Arc::new(listener);
        let connections = Arc::new(Connections::default());
        let accept = {
            let (listener, connections) = (Arc::clone(&listener), Arc::clone(&connections));
            let handler: Arc<Handler> = Arc::new(handler);
            move || accept(&listener, &connections, &handler)
        };
        let thread = thread::Builder::new().name("socket".into()).spawn(accept);
        let accepting = Some(thread.map_err(FileError::when(path, "start a thread for it"))?);
        Ok(Self { path: path.into(), inode, listener, connections, accepting })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            // What is left behind is replaced by the next worker.
            let _ = fs::remove_file(&self.path);
        }
        self.connections.close();
        // Wakes the thread that accepts; where that fails it ends with the process.
        if rustix::net::shutdown(&*self.listener, Shutdown::Both).is_ok()
            && let Some(thread) = self.accepting.take()
        {
            let _ = thread.join();
        }
    }
}

/// Makes the socket under another name, so that it has its mode and listens before anybody can find it.
fn bind(path: &Path) -> Result<(UnixListener, u64), SocketError> {
    let when = |action| FileError::when(path, action);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Of two that start at once, the second is to find the first.
    let folder = File::open(folder).and_then(|folder| folder.lock().map(|()| folder));
    let _lock = folder.map_err(when("lock the folder of the socket"))?;
    match UnixStream::connect(path) {
        Ok(_) => return Err(SocketError::InUse { path: path.into() }),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {}
        Err(error) => return Err(when("tell whether anybody listens")(error).into()),
    }
    if fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.file_type().is_socket()) {
        return Err(SocketError::NotASocket { path: path.into() });
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(when("make the socket")(error).into()),
        _ => {}
    }
    let listener = UnixListener::bind(&new).map_err(when("make the socket"))?;
    fs::set_permissions(&new, Permissions::from_mode(0o600)).map_err(when("keep others from the socket"))?;
    fs::rename(&new, path).map_err(when("put the socket in its place"))?;
    let inode = fs::symlink_metadata(path).map_err(when("find the socket again"))?.ino();
    Ok((listener, inode))
}

/// The connections there are.
#[derive(Debug, Default)]
struct Connections {
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    closed: bool,
    next: u64,
    streams: BTreeMap<u64, Arc<UnixStream>>,
}

impl Connections {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(self: &Arc<Self>, stream: &Arc<UnixStream>) -> Option<Connection> {
        let mut open = self.open();
        if open.closed || open.streams.len() >= MOST_CONNECTIONS {
            return None;
        }
        let key = open.next;
        open.next += 1;
        open.streams.insert(key, Arc::clone(stream));
        Some(Connection { connections: Arc::clone(self), key })
    }

    fn close(&self) {
        let mut open = self.open();
        open.closed = true;
        for stream in open.streams.values() {
            // One that is closed already needs no more.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

/// The place of a connection, free again once this is dropped.
struct Connection {
    connections: Arc<Connections>,
    key: u64,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connections.open().streams.remove(&self.key);
    }
}

fn accept(listener: &UnixListener, connections: &Arc<Connections>, handler: &Arc<Handler>) {
    loop {
        let accepted = listener.accept();
        if connections.open().closed {
            return;
        }
        let started = accepted.and_then(|(stream, _)| serve(stream, connections, handler));
        if let Err(error) = started {
            tracing::warn!(%error, "a connection could not be served");
            // Descriptors or threads may be short for a while.
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn serve(stream: UnixStream, connections: &Arc<Connections>, handler: &Arc<Handler>) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let stream = Arc::new(stream);
    let Some(connection) = connections.add(&stream) else {
        // The client may have left; nobody waits for this.
        let _ = answer(&stream, &Reply::Refused(Refused::new("too many connections; try again")));
        return Ok(());
    };
    let handler = Arc::clone(handler);
    let converse = move || {
        let _connection = connection;
        // A client that leaves in the middle, or is silent for too long, is no error of ours.
        let _ = converse(&stream, &*handler);
    };
    thread::Builder::new().name("connection".into()).spawn(converse).map(drop)
}

fn converse(stream: &UnixStream, handler: &Handler) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        if (&mut reader).take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if line.starts_with(b"GET ") {
            return answer_http(&line, &mut reader, stream, handler);
        }
        let reply = if line.len() as u64 == LONGEST_LINE && !line.ends_with(b"\n") {
            reader.skip_until(b'\n')?;
            Err(Refused::new(format!("the request is longer than {LONGEST_LINE} bytes")))
        } else if line.trim_ascii().is_empty() {
            continue;
        } else {
            let command = serde_json::from_slice(&line).map_err(|error| Refused::new(error.to_string()));
            command.and_then(handler)
        };
        answer(stream, &reply.map_or_else(Reply::Refused, Reply::Done))?;
    }
}

fn answer(mut stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    stream.write_all(&line)
}

fn answer_http(
    request: &[u8],
    reader: &mut impl BufRead,
    mut stream: &UnixStream,
    handler: &Handler,
) -> io::Result<()> {
    let mut headers = reader.take(LONGEST_LINE);
    let mut line = Vec::new();
    while headers.read_until(b'\n', &mut line)? > 0 && !line.trim_ascii().is_empty() {
        line.clear();
    }
    let wanted = request.split(|&byte| byte.is_ascii_whitespace()).nth(1) == Some(b"/metrics");
    let (status, body) = match wanted.then(|| handler(Command::Metrics)) {
        Some(Ok(Value::String(text))) => ("200 OK", text),
        Some(Ok(other)) => ("200 OK", other.to_string()),
        Some(Err(refused)) => ("503 Service Unavailable", format!("{refused}\n")),
        None => ("404 Not Found", "there is only /metrics\n".into()),
    };
    let (kind, length) = ("text/plain; version=0.0.4; charset=utf-8", body.len());
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n");
    stream.write_all(format!("{head}\r\n{body}").as_bytes())
}
