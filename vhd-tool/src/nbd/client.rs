//! A client of one export.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::ops::Range;

use byteorder::{BigEndian, ReadBytesExt};
use vhd_core::{ByteCount, FileOffset, SECTOR_SIZE};

use super::NbdError;
use super::handshake::{Agreement, negotiate};
use super::wire::{
    Command, MAX_OPTION, READS_ZERO, Request, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk, export_flag, fits,
    read_announced,
};

/// How much data one request carries: enough to hide the round trip, little enough for several to be under way.
const PIECE: u32 = 2 << 20;
/// How much is zeroed by one request: a server may have to write it all.
const ZERO_PIECE: u32 = 128 << 20;
/// How much one request asks the allocation of.
const STATUS_PIECE: u32 = 1 << 30;
/// How many writes are under way at once.
const IN_FLIGHT: usize = 16;
/// The most bytes of extents in one reply.
const MAX_STATUS: u32 = 2 << 20;
/// The most chunks of one reply.
const MAX_CHUNKS: u32 = 1 << 16;
/// The most ranges that the allocation of an export may have: a disk of 2 TiB with every second 256 KiB in use.
const MAX_RANGES: usize = 1 << 22;

static ZEROS: [u8; PIECE as usize] = [0; PIECE as usize];

/// A connection to one export.
///
/// Writes are sent without waiting for those before: one that fails may show as the error of a later call, and at
/// the latest as that of [`flush`](Self::flush) or [`disconnect`](Self::disconnect). After any error the export holds
/// an unknown part of what was written, and the client is of no further use.
#[derive(Debug)]
pub(crate) struct Client<S> {
    stream: S,
    agreed: Agreement,
    next_cookie: u64,
    in_flight: HashMap<u64, Pending>,
}

/// A request that is not answered yet.
#[derive(Debug)]
struct Pending {
    command: Command,
    offset: FileOffset,
    /// The first error that a chunk of the reply told.
    error: Option<(u32, String)>,
    chunks: u32,
}

/// Where the content of a reply goes.
enum Content<'a> {
    Nothing,
    Data { offset: FileOffset, bytes: &'a mut [u8], missing: usize },
    Extents { context: u32, found: Vec<(u32, u32)> },
}

impl<S: Read + Write> Client<S> {
    /// Negotiates for the export called `export` on a stream just opened.
    ///
    /// # Errors
    /// Fails if the server speaks another protocol or refuses the export.
    pub(crate) fn connect(mut stream: S, export: &str) -> Result<Self, NbdError> {
        let agreed = negotiate(&mut stream, export)?;
        Ok(Self { stream, agreed, next_cookie: 0, in_flight: HashMap::new() })
    }

    /// The length of the export.
    pub(crate) fn size(&self) -> ByteCount {
        self.agreed.size
    }

    /// The stream, to change its time-outs.
    pub(crate) fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Whether the server can zero a range without being sent the zeros.
    pub(crate) fn can_zero(&self) -> bool {
        self.offers(export_flag::WRITE_ZEROES)
    }

    fn offers(&self, flag: u16) -> bool {
        self.agreed.flags & export_flag::HAS_FLAGS != 0 && self.agreed.flags & flag != 0
    }

    /// Reads as many bytes as there is room for.
    ///
    /// # Errors
    /// Fails if the range is not in the export, or the server or the connection fails.
    #[cfg_attr(not(test), expect(dead_code, reason = "the tests read back what they wrote"))]
    pub(crate) fn read_at(&mut self, offset: FileOffset, bytes: &mut [u8]) -> Result<(), NbdError> {
        self.check(offset, ByteCount(bytes.len() as u64))?;
        self.drain()?;
        let mut at = offset;
        for piece in bytes.chunks_mut(PIECE as usize) {
            let length = piece.len();
            let request_length = u32::try_from(length).expect("a piece is shorter than 4 GiB");
            self.send(Command::Read, at, request_length)?;
            self.stream.flush()?;
            // What a peer claims to have sent and has not must not show what was in the buffer before.
            piece.fill(0);
            let mut content = Content::Data { offset: at, bytes: piece, missing: length };
            self.receive_all(&mut content)?;
            if let Content::Data { missing: missing @ 1.., .. } = content {
                return Err(NbdError::Protocol {
                    what: "the number of bytes missing in a reply",
                    found: missing as u64,
                });
            }
            at = at + ByteCount(length as u64);
        }
        Ok(())
    }

    /// Writes all `bytes`; errors may show later.
    ///
    /// # Errors
    /// Fails if the range is not in the export, the export is read-only, or the server or the connection fails.
    pub(crate) fn write_at(&mut self, offset: FileOffset, bytes: &[u8]) -> Result<(), NbdError> {
        self.check_writable(offset, ByteCount(bytes.len() as u64))?;
        let mut at = offset;
        for piece in bytes.chunks(PIECE as usize) {
            self.make_room()?;
            self.send(Command::Write, at, u32::try_from(piece.len()).expect("a piece is shorter than 4 GiB"))?;
            self.stream.write_all(piece)?;
            at = at + ByteCount(piece.len() as u64);
        }
        Ok(())
    }

    /// Makes a range read as zeros, as holes where the server can; it is sent zeros if it knows no other way. Errors
    /// may show later.
    ///
    /// # Errors
    /// Fails as [`write_at`](Self::write_at) does.
    pub(crate) fn zero(&mut self, offset: FileOffset, length: ByteCount) -> Result<(), NbdError> {
        self.check_writable(offset, length)?;
        let step = if self.can_zero() { ZERO_PIECE } else { PIECE };
        for (at, length) in pieces(offset, length, step) {
            if self.can_zero() {
                self.make_room()?;
                self.send(Command::WriteZeroes, at, length)?;
            } else {
                self.write_at(at, &ZEROS[..length as usize])?;
            }
        }
        Ok(())
    }

    /// Waits until all is written, and has the server sync it if it can.
    ///
    /// # Errors
    /// Fails if anything written before has failed, or the sync.
    pub(crate) fn flush(&mut self) -> Result<(), NbdError> {
        self.drain()?;
        if self.offers(export_flag::FLUSH) {
            self.send(Command::Flush, FileOffset(0), 0)?;
            self.drain()?;
        }
        Ok(())
    }

    /// Lists the ranges of `length` bytes from `offset` that hold data: sorted, apart from each other, and in whole
    /// sectors as far as the export is. All else reads as zeros. All is data where the server does not tell.
    ///
    /// # Errors
    /// Fails if the range is not in the export, holds too many ranges, or the server or the connection fails.
    pub(crate) fn allocated(
        &mut self,
        offset: FileOffset,
        length: ByteCount,
    ) -> Result<Vec<Range<FileOffset>>, NbdError> {
        self.check(offset, length)?;
        self.drain()?;
        let mut ranges = Vec::new();
        let end = offset + length;
        let Some(context) = self.agreed.allocation else {
            push_range(&mut ranges, offset..end)?;
            return Ok(ranges);
        };
        let mut at = offset;
        while at < end {
            let asked = u32::try_from((end - at).0).unwrap_or(u32::MAX).min(STATUS_PIECE);
            self.send(Command::BlockStatus, at, asked)?;
            self.stream.flush()?;
            let mut content = Content::Extents { context, found: Vec::new() };
            self.receive_all(&mut content)?;
            let Content::Extents { found, .. } = content else { continue };
            if found.is_empty() {
                return Err(NbdError::Protocol { what: "the number of extents", found: 0 });
            }
            for (length, state) in found {
                // The last one may reach further than was asked for.
                let next = FileOffset(at.0.saturating_add(length.into()).min(end.0));
                if next == at && at < end {
                    return Err(NbdError::Protocol { what: "the length of an extent", found: 0 });
                }
                if state & READS_ZERO == 0 {
                    let start = FileOffset(at.0 / SECTOR_SIZE * SECTOR_SIZE).max(offset);
                    let whole = FileOffset(next.0.next_multiple_of(SECTOR_SIZE)).min(end);
                    push_range(&mut ranges, start..whole)?;
                }
                at = next;
            }
        }
        Ok(ranges)
    }

    /// Waits until all is written, and ends the connection in order.
    ///
    /// # Errors
    /// Fails if anything written before has failed.
    pub(crate) fn disconnect(mut self) -> Result<(), NbdError> {
        self.drain()?;
        self.send(Command::Disconnect, FileOffset(0), 0)?;
        Ok(self.stream.flush()?)
    }

    fn check(&self, offset: FileOffset, length: ByteCount) -> Result<(), NbdError> {
        let size = self.size();
        if fits(offset, length, size) { Ok(()) } else { Err(NbdError::Outside { offset, length, size }) }
    }

    fn check_writable(&self, offset: FileOffset, length: ByteCount) -> Result<(), NbdError> {
        if self.offers(export_flag::READ_ONLY) { Err(NbdError::ReadOnly) } else { self.check(offset, length) }
    }

    fn send(&mut self, command: Command, offset: FileOffset, length: u32) -> Result<(), NbdError> {
        let cookie = self.next_cookie;
        self.next_cookie = cookie.wrapping_add(1);
        Request { flags: 0, command, cookie, offset, length }.write_to(&mut self.stream)?;
        if command != Command::Disconnect {
            self.in_flight.insert(cookie, Pending { command, offset, error: None, chunks: 0 });
        }
        Ok(())
    }

    /// Waits until another write may be sent.
    fn make_room(&mut self) -> Result<(), NbdError> {
        while self.in_flight.len() >= IN_FLIGHT {
            self.stream.flush()?;
            self.receive(&mut Content::Nothing)?;
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), NbdError> {
        self.stream.flush()?;
        self.receive_all(&mut Content::Nothing)
    }

    fn receive_all(&mut self, content: &mut Content<'_>) -> Result<(), NbdError> {
        while !self.in_flight.is_empty() {
            self.receive(content)?;
        }
        Ok(())
    }

    /// Reads a reply, or a chunk of one.
    fn receive(&mut self, content: &mut Content<'_>) -> Result<(), NbdError> {
        match self.stream.read_u32::<BigEndian>()? {
            SIMPLE_REPLY_MAGIC => self.receive_simple(content),
            STRUCTURED_REPLY_MAGIC if self.agreed.structured => self.receive_chunk(content),
            found => Err(NbdError::Magic { what: "a reply", found: found.into() }),
        }
    }

    fn receive_simple(&mut self, content: &mut Content<'_>) -> Result<(), NbdError> {
        let code = self.stream.read_u32::<BigEndian>()?;
        let cookie = self.stream.read_u64::<BigEndian>()?;
        let mut pending =
            self.in_flight.remove(&cookie).ok_or(NbdError::Protocol { what: "a cookie", found: cookie })?;
        if code != 0 {
            pending.error = Some((code, String::new()));
        } else if let Content::Data { bytes, missing, .. } = content {
            if self.agreed.structured {
                return Err(NbdError::Protocol {
                    what: "the magic of a reply to read",
                    found: SIMPLE_REPLY_MAGIC.into(),
                });
            }
            self.stream.read_exact(bytes)?;
            *missing = 0;
        }
        pending.finish()
    }

    fn receive_chunk(&mut self, content: &mut Content<'_>) -> Result<(), NbdError> {
        let flags = self.stream.read_u16::<BigEndian>()?;
        let kind = self.stream.read_u16::<BigEndian>()?;
        let cookie = self.stream.read_u64::<BigEndian>()?;
        let length = self.stream.read_u32::<BigEndian>()?;
        let unknown = NbdError::Protocol { what: "a cookie", found: cookie };
        let mut pending = self.in_flight.remove(&cookie).ok_or(unknown)?;
        pending.chunks += 1;
        if pending.chunks > MAX_CHUNKS {
            return Err(NbdError::Protocol { what: "the number of chunks", found: pending.chunks.into() });
        }
        if kind & chunk::ERROR != 0 {
            let error = read_error(&mut self.stream, length)?;
            pending.error.get_or_insert(error);
        } else {
            content.take(&mut self.stream, kind, length)?;
        }
        if flags & chunk::DONE != 0 {
            return pending.finish();
        }
        self.in_flight.insert(cookie, pending);
        Ok(())
    }
}

impl Pending {
    fn finish(self) -> Result<(), NbdError> {
        let Self { command, offset, error, .. } = self;
        match error {
            Some((code, message)) => Err(NbdError::Command { command, offset, code, message }),
            None => Ok(()),
        }
    }
}

impl Content<'_> {
    /// Reads what a chunk of `length` bytes holds.
    fn take(&mut self, stream: &mut impl Read, kind: u16, length: u32) -> Result<(), NbdError> {
        let wrong_length = NbdError::Protocol { what: "the length of a chunk", found: length.into() };
        match (kind, self) {
            (chunk::NONE, _) if length == 0 => Ok(()),
            (chunk::DATA, Self::Data { offset, bytes, missing }) => {
                let count = length.checked_sub(8).ok_or(wrong_length)?;
                let at = FileOffset(stream.read_u64::<BigEndian>()?);
                Ok(stream.read_exact(part(*offset, bytes, missing, at, count)?)?)
            }
            (chunk::HOLE, Self::Data { offset, bytes, missing }) if length == 12 => {
                let at = FileOffset(stream.read_u64::<BigEndian>()?);
                let count = stream.read_u32::<BigEndian>()?;
                part(*offset, bytes, missing, at, count)?.fill(0);
                Ok(())
            }
            (chunk::BLOCK_STATUS, Self::Extents { context, found }) if found.is_empty() && length % 8 == 4 => {
                let extents = read_announced(stream, "the length of a chunk", length, MAX_STATUS)?;
                let mut extents = extents.as_slice();
                let answered = extents.read_u32::<BigEndian>()?;
                if answered != *context {
                    return Err(NbdError::Protocol { what: "the context of a chunk", found: answered.into() });
                }
                while !extents.is_empty() {
                    found.push((extents.read_u32::<BigEndian>()?, extents.read_u32::<BigEndian>()?));
                }
                Ok(())
            }
            _ => Err(NbdError::Protocol { what: "the kind of a chunk", found: kind.into() }),
        }
    }
}

/// Finds where in the buffer, which begins at `offset`, the `count` bytes at `at` belong.
fn part<'a>(
    offset: FileOffset,
    bytes: &'a mut [u8],
    missing: &mut usize,
    at: FileOffset,
    count: u32,
) -> Result<&'a mut [u8], NbdError> {
    let outside = || NbdError::Protocol { what: "the offset of a chunk", found: at.0 };
    let start = at.0.checked_sub(offset.0).and_then(|start| usize::try_from(start).ok()).ok_or_else(outside)?;
    *missing = missing.checked_sub(count as usize).ok_or_else(outside)?;
    let end = start.checked_add(count as usize).ok_or_else(outside)?;
    bytes.get_mut(start..end).ok_or_else(outside)
}

fn read_error(stream: &mut impl Read, length: u32) -> Result<(u32, String), NbdError> {
    let data = read_announced(stream, "the length of an error", length, MAX_OPTION)?;
    let mut rest = data.as_slice();
    let too_short = |_: io::Error| NbdError::Protocol { what: "the length of an error", found: length.into() };
    let code = rest.read_u32::<BigEndian>().map_err(too_short)?;
    let said = rest.read_u16::<BigEndian>().map_err(too_short)?;
    let message = rest.get(..said.into()).unwrap_or(rest);
    Ok((code, String::from_utf8_lossy(message).into_owned()))
}

/// Adds a range, joined to the last one where they touch.
fn push_range(ranges: &mut Vec<Range<FileOffset>>, range: Range<FileOffset>) -> Result<(), NbdError> {
    if let Some(last) = ranges.last_mut().filter(|last| last.end >= range.start) {
        last.end = last.end.max(range.end);
    } else if ranges.len() == MAX_RANGES {
        return Err(NbdError::Fragmented { limit: MAX_RANGES });
    } else if !range.is_empty() {
        ranges.push(range);
    }
    Ok(())
}

/// Cuts a range into pieces of at most `step` bytes.
fn pieces(offset: FileOffset, length: ByteCount, step: u32) -> impl Iterator<Item = (FileOffset, u32)> {
    let (mut at, end) = (offset, offset + length);
    std::iter::from_fn(move || {
        (at < end).then(|| {
            let piece = (at, u32::try_from((end - at).0).unwrap_or(u32::MAX).min(step));
            at = at + ByteCount(piece.1.into());
            piece
        })
    })
}
