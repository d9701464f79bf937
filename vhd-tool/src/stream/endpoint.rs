//! The ends of a transfer as they are named on the command line.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use coalesce_worker::check_not_served;
use rustix::fs::OFlags;
use vhd_core::{ByteCount, Container, Existing, FileIdentity, FileOffset, FileStorage, write_new_file};

use super::descriptor;
use super::failure::StreamFailure;
use super::peer::Duplex;
use super::waiting::{Descriptor, Incoming};
use crate::error::{CommandError, Refusal};
use crate::transport::{Address, AddressError, ConnectOptions, Connection};

/// Where a disk comes from or goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    /// `stdin:`
    Stdin,
    /// `stdout:`
    Stdout,
    /// `null:` takes everything and gives nothing.
    Null,
    /// `fd://N`: a descriptor that was left open.
    Descriptor(i32),
    /// `file://PATH`, or a path alone.
    File(PathBuf),
    /// `tcp://HOST:PORT`, `unix://PATH`, `http://…` or `https://…`
    Peer(Address),
}

/// Why a text names no end of a transfer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EndpointError {
    /// No such scheme.
    #[error("not stdin:, stdout:, null:, fd://N, file://PATH, tcp://HOST:PORT, unix://PATH or http(s)://…")]
    Scheme,
    /// No number.
    #[error("fd:// takes the number of a descriptor")]
    Descriptor,
    /// No path.
    #[error("the path is empty")]
    Path,
    /// No address of a peer.
    #[error(transparent)]
    Peer(#[from] AddressError),
}

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let path = |path: &str| if path.is_empty() { Err(EndpointError::Path) } else { Ok(PathBuf::from(path)) };
        match text {
            "stdin:" => return Ok(Self::Stdin),
            "stdout:" => return Ok(Self::Stdout),
            "null:" => return Ok(Self::Null),
            _ => {}
        }
        if let Some(number) = text.strip_prefix("fd:").filter(|number| !number.starts_with("//")) {
            return parse_descriptor(number).map(Self::Descriptor);
        }
        let Some((scheme, rest)) = text.split_once("://") else { return path(text).map(Self::File) };
        match scheme {
            "fd" => parse_descriptor(rest).map(Self::Descriptor),
            "file" => path(rest).map(Self::File),
            "tcp" | "unix" | "http" | "https" => Ok(Self::Peer(text.parse()?)),
            _ => Err(EndpointError::Scheme),
        }
    }
}

/// Reads the number of a descriptor.
pub(crate) fn parse_descriptor(text: &str) -> Result<i32, EndpointError> {
    text.parse().ok().filter(|&number: &i32| number >= 0).ok_or(EndpointError::Descriptor)
}

/// A destination before it is decided how it is filled.
pub(crate) enum Output {
    /// A file or device that is there, written in place; a descriptor of a file then stands at its end, as after any
    /// other writing.
    Place(Container, Option<File>),
    /// A file that is not there yet.
    New(PathBuf),
    /// Bytes in order.
    Bytes(Box<dyn Write + Send>),
    /// Bytes in order to a peer, which can answer.
    Peer(Box<dyn Duplex>),
    /// Nowhere.
    Null,
}

/// What a destination is filled through.
pub(crate) enum Target<'a> {
    /// Any place of it.
    Place {
        /// The file or device.
        container: Container,
        /// Whether it is empty, so that whatever is not written is a hole.
        fresh: bool,
    },
    /// Bytes in order.
    Bytes(Box<dyn Write + Send>),
    /// Bytes in order to a peer, which can answer.
    Peer(&'a mut dyn Duplex),
    /// Nowhere.
    Null,
}

impl<'a> Target<'a> {
    /// Fills it front to back only.
    ///
    /// # Errors
    /// A file that cannot be emptied.
    pub(crate) fn into_writer(self) -> Result<Box<dyn Write + Send + 'a>, CommandError> {
        let out: Box<dyn Write + Send + 'a> = match self {
            Self::Place { container, .. } => {
                if !container.has_fixed_size() {
                    container.set_len(ByteCount(0))?;
                }
                Box::new(Appender { container, at: FileOffset(0) })
            }
            Self::Bytes(bytes) => bytes,
            Self::Peer(peer) => Box::new(peer),
            Self::Null => Box::new(io::sink()),
        };
        Ok(Box::new(BufWriter::with_capacity(SMALL, out)))
    }
}

/// Writes a file or device front to back. What was flushed is durable.
struct Appender {
    container: Container,
    at: FileOffset,
}

impl Write for Appender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.container.storage().write_at(bytes, self.at)?;
        self.at = self.at + ByteCount(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.container.storage().sync()
    }
}

/// What has nothing to give.
const NULL: &str = "/dev/null";
/// What is less than this is written together.
const SMALL: usize = 64 << 10;
const INCOMPLETE: &str = "the destination is written in place: it is incomplete if the failure came midway";

impl Output {
    /// The file or device that is there already.
    pub(crate) fn identity(&self) -> Option<FileIdentity> {
        let Self::Place(container, _) = self else { return None };
        let file = container.storage().as_file().map(FileStorage::identity);
        file.or_else(|| FileIdentity::at(container.path()).ok())
    }

    /// Its length, where that is known before it is filled.
    pub(crate) fn length(&self) -> Option<ByteCount> {
        let Self::Place(container, _) = self else { return None };
        container.len().ok().filter(|length| length.0 > 0)
    }

    /// Its length, where that cannot be another.
    pub(crate) fn fixed_length(&self) -> Option<ByteCount> {
        self.length().filter(|_| matches!(self, Self::Place(container, _) if container.has_fixed_size()))
    }

    /// Fills it: a new file gets its name only when that has succeeded.
    pub(crate) fn fill(self, fill: impl FnOnce(Target<'_>) -> Result<(), CommandError>) -> Result<(), CommandError> {
        match self {
            Self::Place(container, descriptor) => {
                let target = Target::Place { container, fresh: false };
                fill(target).map_err(|error| error.hint(INCOMPLETE))?;
                let end = descriptor.map(|mut file| file.seek(SeekFrom::End(0)));
                end.transpose().map(drop).map_err(|error| Refusal::io("the destination", "go to its end")(error).into())
            }
            Self::New(path) => write_new_file(&path, Existing::Keep, |container| {
                fill(Target::Place { container: container.clone(), fresh: true })
            }),
            Self::Bytes(bytes) => fill(Target::Bytes(bytes)),
            // Only then: a peer must not take what broke off for the whole.
            Self::Peer(mut peer) => {
                fill(Target::Peer(&mut *peer))?;
                Ok(peer.end().map_err(Refusal::io("the connection", "end it"))?)
            }
            Self::Null => fill(Target::Null),
        }
    }
}

impl Endpoint {
    /// Whether it is standard output, by whatever name.
    pub(crate) fn is_stdout(&self) -> bool {
        let path = match self {
            Self::Stdout | Self::Descriptor(1) => return true,
            Self::Descriptor(number) => format!("/proc/self/fd/{number}").into(),
            Self::File(path) => path.clone(),
            Self::Stdin | Self::Null | Self::Peer(_) => return false,
        };
        let found = |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        found(&path).is_some_and(|file| found(Path::new("/proc/self/fd/1")) == Some(file))
    }

    /// Whether it is reached over HTTP.
    pub(crate) fn is_http(&self) -> bool {
        matches!(self, Self::Peer(Address::Http(_)))
    }

    /// Which file it is, where it is one.
    pub(crate) fn identity(&self) -> Option<FileIdentity> {
        let path = match self {
            Self::File(path) => path.clone(),
            Self::Stdin => "/proc/self/fd/0".into(),
            Self::Descriptor(number) => format!("/proc/self/fd/{number}").into(),
            _ => return None,
        };
        FileIdentity::at(&path).ok()
    }

    /// Opens it to be read front to back. A peer that does not listen is waited for.
    ///
    /// # Errors
    /// What cannot be opened, or not be read.
    pub(crate) fn open_input(&self) -> Result<Box<dyn Incoming>, CommandError> {
        match self {
            Self::Stdin => Ok(Box::new(Descriptor(descriptor::take(0)?))),
            Self::Descriptor(number) => Ok(Box::new(Descriptor(descriptor::take(*number)?))),
            Self::File(path) => Ok(Box::new(File::open(path).map_err(Refusal::io(path, "open it"))?)),
            Self::Null => Ok(Box::new(File::open(NULL).map_err(Refusal::io(NULL, "open it"))?)),
            Self::Stdout => Err(StreamFailure::Unsupported { what: "reading from stdout:".into() }.into()),
            Self::Peer(Address::Http(_)) => {
                Err(StreamFailure::Unsupported { what: "fetching a disk over HTTP".into() }.into())
            }
            Self::Peer(address) => Ok(Box::new(Connection::meet(address)?)),
        }
    }

    /// Opens it to be written: in place where that can be, otherwise front to back.
    ///
    /// # Errors
    /// What cannot be opened, or not be written.
    pub(crate) fn open_output(&self, options: &ConnectOptions) -> Result<Output, CommandError> {
        match self {
            Self::Stdout => output_of(descriptor::take(1)?, "stdout:"),
            Self::Descriptor(number) => output_of(descriptor::take(*number)?, &format!("fd://{number}")),
            Self::File(path) => open_path(path),
            Self::Null => Ok(Output::Null),
            Self::Stdin => Err(StreamFailure::Unsupported { what: "writing to stdin:".into() }.into()),
            Self::Peer(_) => Ok(Output::Peer(Box::new(self.connect(options)?))),
        }
    }

    /// Opens it both ways, to serve what comes from there. A peer that does not listen is waited for.
    ///
    /// # Errors
    /// What cannot be opened, or goes one way only.
    pub(crate) fn open_duplex_input(&self) -> Result<Box<dyn Duplex>, CommandError> {
        match self {
            Self::Peer(address @ (Address::Tcp { .. } | Address::Unix(_))) => Ok(Box::new(Connection::meet(address)?)),
            other => other.open_duplex(&ConnectOptions::default()),
        }
    }

    /// Opens it both ways.
    ///
    /// # Errors
    /// What cannot be opened, or goes one way only.
    pub(crate) fn open_duplex(&self, options: &ConnectOptions) -> Result<Box<dyn Duplex>, CommandError> {
        match self {
            Self::Stdin => Ok(Box::new(Descriptor(descriptor::take(0)?))),
            Self::Descriptor(number) => Ok(Box::new(Descriptor(descriptor::take(*number)?))),
            Self::Peer(_) => Ok(Box::new(self.connect(options)?)),
            _ => Err(StreamFailure::Unsupported { what: "speaking NBD with what is no connection".into() }.into()),
        }
    }

    fn connect(&self, options: &ConnectOptions) -> Result<Connection, CommandError> {
        match self {
            Self::Peer(address) => Ok(Connection::open(address, options)?),
            _ => Err(StreamFailure::Unsupported { what: "connecting to what is no peer".into() }.into()),
        }
    }
}

/// Takes a descriptor: one of a file that nobody has written to yet, or of a device, can be written at any place.
fn output_of(mut file: File, name: &str) -> Result<Output, CommandError> {
    let kind = file.metadata().map_err(Refusal::io(name, "look at it"))?.file_type();
    let appends = rustix::fs::fcntl_getfl(&file).is_ok_and(|flags| flags.contains(OFlags::APPEND));
    let at_start = file.stream_position().is_ok_and(|position| position == 0);
    if (kind.is_file() || kind.is_block_device()) && at_start && !appends {
        let copy = if kind.is_file() { Some(file.try_clone().map_err(Refusal::io(name, "copy it"))?) } else { None };
        let storage = FileStorage::new(file).map_err(Refusal::io(name, "open it"))?;
        return Ok(Output::Place(Container::new(name, Arc::new(storage)), copy));
    }
    Ok(Output::Bytes(Box::new(Descriptor(file))))
}

fn open_path(path: &Path) -> Result<Output, CommandError> {
    let kind = match std::fs::metadata(path) {
        Ok(found) => found.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Output::New(path.into())),
        Err(error) => return Err(Refusal::io(path, "look at it")(error).into()),
    };
    if kind.is_file() || kind.is_block_device() {
        let storage = FileStorage::open_writable(path).map_err(Refusal::io(path, "open it"))?;
        check_not_served(path)?;
        return Ok(Output::Place(Container::new(path, Arc::new(storage)), None));
    }
    let flags = OFlags::NOCTTY.bits().cast_signed();
    let file = File::options().write(true).custom_flags(flags).open(path).map_err(Refusal::io(path, "open it"))?;
    Ok(Output::Bytes(Box::new(file)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_schemes_are_understood() {
        let peer = |text: &str| Endpoint::Peer(text.parse().unwrap());
        for (text, endpoint) in [
            ("stdin:", Endpoint::Stdin),
            ("stdout:", Endpoint::Stdout),
            ("null:", Endpoint::Null),
            ("fd://7", Endpoint::Descriptor(7)),
            ("fd:7", Endpoint::Descriptor(7)),
            ("file:///dev/sda", Endpoint::File("/dev/sda".into())),
            ("file://disk.img", Endpoint::File("disk.img".into())),
            ("disk.img", Endpoint::File("disk.img".into())),
            ("/a:b", Endpoint::File("/a:b".into())),
            ("unix:///run/s", peer("unix:///run/s")),
            ("tcp://h:80", peer("tcp://h:80")),
            ("tcp://[::1]:80", peer("tcp://[::1]:80")),
            ("https://h/x?y", peer("https://h/x?y")),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap(), endpoint, "{text}");
        }
        for text in ["", "file://", "fd://x", "fd:", "fd://-1", "tcp://h", "tcp://:80", "tcp://h:99999", "ftp://h"] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
