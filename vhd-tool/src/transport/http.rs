//! The body of an HTTP `PUT`, as xapi's handlers of imports take it.
//!
//! xapi answers as soon as it has read the head of the request, and reads the disk from the open connection
//! afterwards. A member of a pool that is not its master answers with a redirection to the master instead.

use std::fmt::Write as _;
use std::io::{Read, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::address::Url;
use super::socket::{PATIENCE, Socket};
use super::{ConnectError, ConnectOptions, Connection, tls};

/// The longest head of an answer that is read.
const MAX_HEAD: usize = 16 * 1024;

/// The most fields in the head of an answer.
const MAX_FIELDS: usize = 128;

/// How many redirections are followed.
const MAX_REDIRECTS: usize = 3;

/// What a peer says to a request.
enum Answer {
    Accepted,
    Moved(String),
}

/// Connects, asks, follows redirections, and gives the connection on which the body goes.
pub(super) fn put(url: &Url, options: &ConnectOptions) -> Result<Connection, ConnectError> {
    let mut url = url.clone();
    for _ in 0..=MAX_REDIRECTS {
        let mut connection = connect(&url, options)?;
        let request = request(&url, options.chunked_cookie);
        connection.write_all(request.as_bytes()).map_err(ConnectError::io(&url, "send the request"))?;
        connection.flush().map_err(ConnectError::io(&url, "send the request"))?;
        match read_answer(&url, &mut connection)? {
            Answer::Accepted => {
                connection.limit(None).map_err(ConnectError::io(&url, "set the time-out"))?;
                return Ok(connection);
            }
            Answer::Moved(location) => {
                let to = url.redirected(&location);
                let to = to.map_err(|source| ConnectError::Location { peer: url.to_string(), source })?;
                if url.secure && !to.secure {
                    return Err(ConnectError::Downgrade { peer: url.to_string() });
                }
                url = to;
            }
        }
    }
    Err(ConnectError::Redirects { peer: url.to_string(), limit: MAX_REDIRECTS })
}

/// Opens a connection that has a deadline.
fn connect(url: &Url, options: &ConnectOptions) -> Result<Connection, ConnectError> {
    let mut socket = Socket::tcp(&url.host, url.port).map_err(ConnectError::io(url, "connect"))?;
    socket.limit(Some(PATIENCE)).map_err(ConnectError::io(url, "set the time-out"))?;
    if !url.secure {
        return Ok(Connection::Plain(socket));
    }
    let session = tls::session(&url.host, &options.tls)?;
    let stream = tls::shake_hands(session, socket).map_err(ConnectError::io(url, "agree on TLS"))?;
    Ok(Connection::Tls(Box::new(stream)))
}

/// Makes the head of the request. The body has no length and no encoding: it ends with the connection.
fn request(url: &Url, chunked_cookie: bool) -> String {
    let mut head = format!("PUT {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", url.target, url.place());
    if let Some(credentials) = &url.credentials {
        // Writing to a string cannot fail.
        let _ = write!(head, "Authorization: Basic {}\r\n", STANDARD.encode(credentials));
    }
    if chunked_cookie {
        head.push_str("Cookie: chunked=true\r\n");
    }
    head + "\r\n"
}

fn read_answer(url: &Url, connection: &mut Connection) -> Result<Answer, ConnectError> {
    let head = read_head(url, connection)?;
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut answer = httparse::Response::new(&mut fields);
    answer.parse(&head).map_err(|source| ConnectError::Head { peer: url.to_string(), source })?;
    match answer.code {
        Some(200..300) => Ok(Answer::Accepted),
        Some(302) => {
            let field = answer.headers.iter().find(|field| field.name.eq_ignore_ascii_case("location"));
            let location = field.and_then(|field| str::from_utf8(field.value).ok());
            let location = location.ok_or_else(|| ConnectError::NoLocation { peer: url.to_string() })?;
            Ok(Answer::Moved(location.trim().to_owned()))
        }
        code => Err(ConnectError::Status {
            peer: url.to_string(),
            code: code.unwrap_or_default(),
            reason: answer.reason.unwrap_or_default().to_owned(),
        }),
    }
}

/// Reads up to the empty line and not a byte further: what follows belongs to whoever uses the connection.
fn read_head(url: &Url, connection: &mut Connection) -> Result<Vec<u8>, ConnectError> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && !head.ends_with(b"\n\n") {
        if head.len() == MAX_HEAD {
            return Err(ConnectError::LongHead { peer: url.to_string(), limit: MAX_HEAD });
        }
        let mut byte = [0];
        connection.read_exact(&mut byte).map_err(ConnectError::io(url, "read the answer"))?;
        head.push(byte[0]);
    }
    Ok(head)
}
