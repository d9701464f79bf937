//! A server of one disk for one client, which most often writes to it.

use std::io::{self, Read, Write};

use byteorder::{BigEndian, ReadBytesExt, WriteBytesExt};
use vhd_core::{ByteCount, FileOffset};

use super::NbdError;
use super::wire::{
    Command, INFO_EXPORT, MAGIC, MAX_OPTION, MAX_PAYLOAD, OPTION_MAGIC, OPTION_REPLY_MAGIC, PADDING, Request,
    SIMPLE_REPLY_MAGIC, command_flag, errno, export_flag, fits, handshake_flag, option, read_announced, reply,
};

/// The most options that a client may send before it takes the export.
const MAX_OPTIONS: usize = 64;
/// How much of a write is in memory at once.
const PIECE: usize = 1 << 20;

const FLAGS: u16 =
    export_flag::HAS_FLAGS | export_flag::FLUSH | export_flag::FUA | export_flag::TRIM | export_flag::WRITE_ZEROES;

/// What is served. Ranges have been checked against the size, and are not empty.
pub(crate) trait Export {
    /// The length of the disk.
    fn size(&self) -> ByteCount;
    /// Reads as many bytes as there is room for.
    ///
    /// # Errors
    /// Fails if the disk does; so do the others.
    fn read_at(&mut self, offset: FileOffset, bytes: &mut [u8]) -> io::Result<()>;
    /// Writes all `bytes`.
    fn write_at(&mut self, offset: FileOffset, bytes: &[u8]) -> io::Result<()>;
    /// Makes a range read as zeros; as a hole only where `may_be_hole`.
    fn zero(&mut self, offset: FileOffset, length: ByteCount, may_be_hole: bool) -> io::Result<()>;
    /// Makes what was written outlast a power failure.
    fn sync(&mut self) -> io::Result<()>;
}

/// Serves `disk`, whatever name the client gives to it, until the client disconnects.
///
/// What the client wrote and did not flush has not been synced then.
///
/// # Errors
/// Fails if the client breaks the protocol or goes without saying so, or if the disk failed at any time: the client is
/// told of it and may go on.
pub(crate) fn serve(stream: &mut (impl Read + Write), disk: &mut impl Export) -> Result<(), NbdError> {
    negotiate(stream, disk.size())?;
    let mut server = Server { stream, disk, buffer: Vec::new(), failure: None };
    while server.answer()? {}
    match server.failure {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// Brings a client to take the export.
fn negotiate(stream: &mut (impl Read + Write), size: ByteCount) -> Result<(), NbdError> {
    let mut greeting = Vec::with_capacity(18);
    greeting.write_u64::<BigEndian>(MAGIC)?;
    greeting.write_u64::<BigEndian>(OPTION_MAGIC)?;
    greeting.write_u16::<BigEndian>(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES)?;
    stream.write_all(&greeting)?;
    stream.flush()?;
    let client = stream.read_u32::<BigEndian>()?;
    if client & !u32::from(handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES) != 0 {
        return Err(NbdError::Protocol { what: "the client's set of flags", found: client.into() });
    }
    for _ in 0..MAX_OPTIONS {
        let magic = stream.read_u64::<BigEndian>()?;
        if magic != OPTION_MAGIC {
            return Err(NbdError::Magic { what: "an option", found: magic });
        }
        let asked = stream.read_u32::<BigEndian>()?;
        let length = stream.read_u32::<BigEndian>()?;
        let data = read_announced(stream, "the length of an option", length, MAX_OPTION)?;
        match asked {
            option::EXPORT_NAME => {
                let mut export = export_item(size)?;
                if client & u32::from(handshake_flag::NO_ZEROES) == 0 {
                    export.resize(export.len() + PADDING, 0);
                }
                stream.write_all(&export)?;
                return Ok(stream.flush()?);
            }
            option::GO | option::INFO if is_info_request(&data) => {
                let item = [INFO_EXPORT.to_be_bytes().to_vec(), export_item(size)?].concat();
                send_reply(stream, asked, reply::INFO, &item)?;
                send_reply(stream, asked, reply::ACK, &[])?;
                if asked == option::GO {
                    return Ok(());
                }
            }
            option::GO | option::INFO => send_reply(stream, asked, reply::INVALID, &[])?,
            option::ABORT => {
                // The client need not wait for it.
                let _ = send_reply(stream, asked, reply::ACK, &[]);
                return Err(NbdError::Aborted);
            }
            _ => send_reply(stream, asked, reply::UNSUPPORTED, &[])?,
        }
    }
    Err(NbdError::Protocol { what: "the number of options", found: MAX_OPTIONS as u64 })
}

/// The size and the flags, as they are sent.
fn export_item(size: ByteCount) -> io::Result<Vec<u8>> {
    let mut item = Vec::with_capacity(10);
    item.write_u64::<BigEndian>(size.0)?;
    item.write_u16::<BigEndian>(FLAGS)?;
    Ok(item)
}

/// Tells whether this is a name, and a list of items that the client wishes to know. Any name will do, and there is
/// nothing to tell but what every client is told.
fn is_info_request(data: &[u8]) -> bool {
    let after_name = data.split_first_chunk().and_then(|(length, rest)| {
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        rest.get(length..)
    });
    let items = after_name.and_then(|data| data.split_first_chunk());
    items.is_some_and(|(count, items)| items.len() == 2 * usize::from(u16::from_be_bytes(*count)))
}

fn send_reply(stream: &mut impl Write, asked: u32, kind: u32, data: &[u8]) -> Result<(), NbdError> {
    let mut bytes = Vec::with_capacity(20 + data.len());
    bytes.write_u64::<BigEndian>(OPTION_REPLY_MAGIC)?;
    bytes.write_u32::<BigEndian>(asked)?;
    bytes.write_u32::<BigEndian>(kind)?;
    bytes.write_u32::<BigEndian>(u32::try_from(data.len()).expect("our replies are short"))?;
    bytes.extend_from_slice(data);
    stream.write_all(&bytes)?;
    Ok(stream.flush()?)
}

/// The part after the negotiation.
struct Server<'a, S, D> {
    stream: &'a mut S,
    disk: &'a mut D,
    buffer: Vec<u8>,
    /// The first failure of the disk.
    failure: Option<NbdError>,
}

impl<S: Read + Write, D: Export> Server<'_, S, D> {
    /// Answers one request; tells whether there may be another.
    fn answer(&mut self) -> Result<bool, NbdError> {
        let request = Request::read_from(self.stream)?;
        let code = match request.command {
            Command::Disconnect => return Ok(false),
            Command::Write => self.write(&request)?,
            command => match self.refusal(&request) {
                Some(code) => code,
                None if command == Command::Read => return self.read(&request).map(|()| true),
                None => self.change(&request),
            },
        };
        self.reply(&request, code, 0)?;
        Ok(true)
    }

    /// Tells with which error a request is refused whatever the disk says.
    fn refusal(&self, request: &Request) -> Option<u32> {
        let flags = match request.command {
            Command::WriteZeroes => command_flag::FUA | command_flag::NO_HOLE,
            Command::Read | Command::Write | Command::Flush | Command::Trim => command_flag::FUA,
            _ => return Some(errno::INVALID),
        };
        if request.flags & !flags != 0 || (request.command == Command::Read && request.length > MAX_PAYLOAD) {
            return Some(errno::INVALID);
        }
        if request.command == Command::Flush || fits(request.offset, request.bytes(), self.disk.size()) {
            return None;
        }
        let grows = matches!(request.command, Command::Write | Command::WriteZeroes);
        Some(if grows { errno::NO_SPACE } else { errno::INVALID })
    }

    fn read(&mut self, request: &Request) -> Result<(), NbdError> {
        // The reply begins with whether it failed: all must be read before.
        let length = request.length as usize;
        self.buffer.resize(self.buffer.len().max(length), 0);
        let result = if length == 0 { Ok(()) } else { self.disk.read_at(request.offset, &mut self.buffer[..length]) };
        let code = self.code_of(request, result);
        self.reply(request, code, if code == 0 { length } else { 0 })
    }

    /// Takes what is to be written, piece by piece, to the end even if it cannot be written: the next request follows.
    fn write(&mut self, request: &Request) -> Result<u32, NbdError> {
        if request.length > MAX_PAYLOAD {
            self.reply(request, errno::INVALID, 0)?;
            return Err(NbdError::Protocol { what: "the length of a write", found: request.length.into() });
        }
        let mut code = self.refusal(request).unwrap_or(0);
        let (mut at, mut left) = (request.offset, request.length as usize);
        self.buffer.resize(self.buffer.len().max(PIECE.min(left)), 0);
        while left > 0 {
            let length = left.min(PIECE);
            self.stream.read_exact(&mut self.buffer[..length])?;
            left -= length;
            if code == 0 {
                let result = self.disk.write_at(at, &self.buffer[..length]);
                code = self.code_of(request, result);
                at = at + ByteCount(length as u64);
            }
        }
        Ok(if code == 0 { self.sync_if_asked(request) } else { code })
    }

    /// Does what needs neither data nor an answer.
    fn change(&mut self, request: &Request) -> u32 {
        let result = match request.command {
            Command::Flush => self.disk.sync(),
            Command::WriteZeroes if request.length > 0 => {
                let may_be_hole = request.flags & command_flag::NO_HOLE == 0;
                self.disk.zero(request.offset, request.bytes(), may_be_hole)
            }
            // To forget is allowed, not demanded.
            _ => Ok(()),
        };
        match self.code_of(request, result) {
            0 => self.sync_if_asked(request),
            code => code,
        }
    }

    fn sync_if_asked(&mut self, request: &Request) -> u32 {
        let result = if request.flags & command_flag::FUA == 0 { Ok(()) } else { self.disk.sync() };
        self.code_of(request, result)
    }

    /// Keeps the first failure for whoever serves, and makes the number for the client.
    fn code_of(&mut self, request: &Request, result: io::Result<()>) -> u32 {
        let Err(source) = result else { return 0 };
        let code = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => errno::NO_SPACE,
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => errno::PERMISSION,
            _ => errno::IO,
        };
        let (command, offset) = (request.command, request.offset);
        self.failure.get_or_insert(NbdError::Disk { command, offset, source });
        code
    }

    /// Sends the reply, with `length` bytes of the buffer after it.
    fn reply(&mut self, request: &Request, code: u32, length: usize) -> Result<(), NbdError> {
        let mut head = Vec::with_capacity(16);
        head.write_u32::<BigEndian>(SIMPLE_REPLY_MAGIC)?;
        head.write_u32::<BigEndian>(code)?;
        head.write_u64::<BigEndian>(request.cookie)?;
        self.stream.write_all(&head)?;
        self.stream.write_all(&self.buffer[..length])?;
        Ok(self.stream.flush()?)
    }
}
