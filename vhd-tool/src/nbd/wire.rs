//! Numbers and records of the protocol, all big-endian.

use std::fmt;
use std::io::{self, Read, Write};

use byteorder::{BigEndian, ReadBytesExt, WriteBytesExt};
use vhd_core::{ByteCount, FileOffset};

use super::NbdError;

/// The first word that any server says: `NBDMAGIC`.
pub(super) const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// The second one of a server that negotiates, and the first of each option: `IHAVEOPT`.
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// The second one of a server that does not.
pub(super) const OLD_STYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// The first word of the answer to an option.
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(super) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// The most data in one request, where nothing else is agreed.
pub(super) const MAX_PAYLOAD: u32 = 32 << 20;
/// The longest string.
pub(super) const MAX_STRING: usize = 4096;
/// The longest answer to an option, or data of one, that is read.
pub(super) const MAX_OPTION: u32 = 64 << 10;
/// What stands after the flags of an export in the old handshake.
pub(super) const PADDING: usize = 124;

pub(super) mod handshake_flag {
    pub(crate) const FIXED_NEWSTYLE: u16 = 1;
    pub(crate) const NO_ZEROES: u16 = 2;
}

pub(super) mod option {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
}

pub(super) mod reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    /// The bit that all errors have.
    pub(crate) const ERROR: u32 = 1 << 31;
    pub(crate) const UNSUPPORTED: u32 = ERROR + 1;
    pub(crate) const INVALID: u32 = ERROR + 3;
}

/// The item of information that holds the size and the flags of an export.
pub(super) const INFO_EXPORT: u16 = 0;

pub(super) mod export_flag {
    pub(crate) const HAS_FLAGS: u16 = 1 << 0;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const FLUSH: u16 = 1 << 2;
    pub(crate) const FUA: u16 = 1 << 3;
    pub(crate) const TRIM: u16 = 1 << 5;
    pub(crate) const WRITE_ZEROES: u16 = 1 << 6;
}

pub(super) mod command_flag {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
}

pub(super) mod chunk {
    /// The flag of the last chunk of a reply.
    pub(crate) const DONE: u16 = 1;
    pub(crate) const NONE: u16 = 0;
    pub(crate) const DATA: u16 = 1;
    pub(crate) const HOLE: u16 = 2;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    /// The bit that all errors have.
    pub(crate) const ERROR: u16 = 1 << 15;
}

/// The metadata context that tells data from holes.
pub(super) const ALLOCATION: &str = "base:allocation";
/// The state of a range in it that reads as zeros. (Another one, 1, is of ranges that take no space.)
pub(super) const READS_ZERO: u32 = 2;

pub(super) mod errno {
    pub(crate) const PERMISSION: u32 = 1;
    pub(crate) const IO: u32 = 5;
    pub(crate) const INVALID: u32 = 22;
    pub(crate) const NO_SPACE: u32 = 28;
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Give data.
    Read,
    /// Take data.
    Write,
    /// End.
    Disconnect,
    /// Sync what was written.
    Flush,
    /// Forget a range.
    Trim,
    /// Make a range read as zeros.
    WriteZeroes,
    /// Tell data from holes.
    BlockStatus,
    /// Something that we do not know.
    Unknown(u16),
}

impl Command {
    fn number(self) -> u16 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Disconnect => 2,
            Self::Flush => 3,
            Self::Trim => 4,
            Self::WriteZeroes => 6,
            Self::BlockStatus => 7,
            Self::Unknown(number) => number,
        }
    }
}

impl From<u16> for Command {
    fn from(number: u16) -> Self {
        let known =
            [Self::Read, Self::Write, Self::Disconnect, Self::Flush, Self::Trim, Self::WriteZeroes, Self::BlockStatus];
        known.into_iter().find(|command| command.number() == number).unwrap_or(Self::Unknown(number))
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read => f.write_str("read"),
            Self::Write => f.write_str("write"),
            Self::Disconnect => f.write_str("disconnect"),
            Self::Flush => f.write_str("flush"),
            Self::Trim => f.write_str("trim"),
            Self::WriteZeroes => f.write_str("write zeros"),
            Self::BlockStatus => f.write_str("block status"),
            Self::Unknown(number) => write!(f, "command {number}"),
        }
    }
}

/// The head of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) flags: u16,
    pub(super) command: Command,
    /// What the reply is known by.
    pub(super) cookie: u64,
    pub(super) offset: FileOffset,
    pub(super) length: u32,
}

impl Request {
    /// Sends it in one write.
    pub(super) fn write_to(&self, stream: &mut impl Write) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(28);
        bytes.write_u32::<BigEndian>(REQUEST_MAGIC)?;
        bytes.write_u16::<BigEndian>(self.flags)?;
        bytes.write_u16::<BigEndian>(self.command.number())?;
        bytes.write_u64::<BigEndian>(self.cookie)?;
        bytes.write_u64::<BigEndian>(self.offset.0)?;
        bytes.write_u32::<BigEndian>(self.length)?;
        stream.write_all(&bytes)
    }

    pub(super) fn read_from(stream: &mut impl Read) -> Result<Self, NbdError> {
        let mut bytes = [0; 28];
        stream.read_exact(&mut bytes)?;
        let mut bytes = bytes.as_slice();
        let magic = bytes.read_u32::<BigEndian>()?;
        if magic != REQUEST_MAGIC {
            return Err(NbdError::Magic { what: "a request", found: magic.into() });
        }
        Ok(Self {
            flags: bytes.read_u16::<BigEndian>()?,
            command: bytes.read_u16::<BigEndian>()?.into(),
            cookie: bytes.read_u64::<BigEndian>()?,
            offset: FileOffset(bytes.read_u64::<BigEndian>()?),
            length: bytes.read_u32::<BigEndian>()?,
        })
    }

    pub(super) fn bytes(&self) -> ByteCount {
        ByteCount(self.length.into())
    }
}

/// Tells whether a range lies on a disk of `size`.
pub(super) fn fits(offset: FileOffset, length: ByteCount, size: ByteCount) -> bool {
    offset.0.checked_add(length.0).is_some_and(|end| end <= size.0)
}

/// Reads `length` bytes that a peer announces, if they are no more than `limit`.
pub(super) fn read_announced(
    stream: &mut impl Read,
    what: &'static str,
    length: u32,
    limit: u32,
) -> Result<Vec<u8>, NbdError> {
    if length > limit {
        return Err(NbdError::Protocol { what, found: length.into() });
    }
    let mut bytes = vec![0; length as usize];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Sends a string with its length before it.
pub(super) fn put_string(bytes: &mut Vec<u8>, text: &str) -> Result<(), NbdError> {
    let length = u32::try_from(text.len()).ok().filter(|_| text.len() <= MAX_STRING);
    bytes.write_u32::<BigEndian>(length.ok_or(NbdError::LongName { limit: MAX_STRING })?)?;
    bytes.extend_from_slice(text.as_bytes());
    Ok(())
}
