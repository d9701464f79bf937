//! The client's side of the negotiation.

use std::io::{Read, Write};

use byteorder::{BigEndian, ReadBytesExt, WriteBytesExt};
use vhd_core::ByteCount;

use super::NbdError;
use super::wire::{
    ALLOCATION, INFO_EXPORT, MAGIC, MAX_OPTION, OLD_STYLE_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, PADDING,
    handshake_flag, option, put_string, read_announced, reply,
};

/// The most replies to one option that are read.
const MAX_REPLIES: usize = 64;

/// What was agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreement {
    pub(super) size: ByteCount,
    /// What the server can do.
    pub(super) flags: u16,
    /// Whether replies may come in chunks.
    pub(super) structured: bool,
    /// The number of the context that tells data from holes, if the server has it.
    pub(super) allocation: Option<u32>,
}

/// How a server answers an option.
enum Answer {
    /// With yes, after some information.
    Ack(Vec<(u32, Vec<u8>)>),
    /// With no.
    Refusal { reply: u32, message: String },
}

/// Takes the export called `name`.
pub(super) fn negotiate(stream: &mut (impl Read + Write), name: &str) -> Result<Agreement, NbdError> {
    let magic = stream.read_u64::<BigEndian>()?;
    if magic != MAGIC {
        return Err(NbdError::Magic { what: "the greeting", found: magic });
    }
    match stream.read_u64::<BigEndian>()? {
        OLD_STYLE_MAGIC => old_style(stream),
        OPTION_MAGIC => new_style(stream, name),
        found => Err(NbdError::Magic { what: "the style of negotiation", found }),
    }
}

/// Takes the only export of a server that does not negotiate.
fn old_style(stream: &mut impl Read) -> Result<Agreement, NbdError> {
    let size = ByteCount(stream.read_u64::<BigEndian>()?);
    let mut flags_and_padding = [0; 4 + PADDING];
    stream.read_exact(&mut flags_and_padding)?;
    // Of the four bytes of flags, the upper two are those of the handshake, and have no meaning here.
    let flags = u16::from_be_bytes([flags_and_padding[2], flags_and_padding[3]]);
    Ok(Agreement { size, flags, structured: false, allocation: None })
}

fn new_style(stream: &mut (impl Read + Write), name: &str) -> Result<Agreement, NbdError> {
    let offered = stream.read_u16::<BigEndian>()?;
    let taken = offered & (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
    stream.write_u32::<BigEndian>(taken.into())?;
    let mut named = Vec::new();
    put_string(&mut named, name)?;
    let (mut structured, mut allocation) = (false, None);
    if taken & handshake_flag::FIXED_NEWSTYLE != 0 {
        structured = matches!(ask(stream, option::STRUCTURED_REPLY, &[])?, Answer::Ack(_));
        if structured {
            allocation = ask_for_allocation(stream, &named)?;
        }
        let mut request = named.clone();
        // No further items of information are asked for.
        request.write_u16::<BigEndian>(0)?;
        match ask(stream, option::GO, &request)? {
            Answer::Ack(items) => {
                let (size, flags) = export_item(&items)?;
                return Ok(Agreement { size, flags, structured, allocation });
            }
            Answer::Refusal { reply: reply::UNSUPPORTED, .. } => {}
            Answer::Refusal { reply, message } => {
                return Err(NbdError::Refused { export: name.into(), reply, message });
            }
        }
    }
    // A server that has no such export can only hang up on this option.
    send_option(stream, option::EXPORT_NAME, name.as_bytes())?;
    let size = ByteCount(stream.read_u64::<BigEndian>()?);
    let flags = stream.read_u16::<BigEndian>()?;
    if taken & handshake_flag::NO_ZEROES == 0 {
        stream.read_exact(&mut [0; PADDING])?;
    }
    Ok(Agreement { size, flags, structured, allocation })
}

/// Asks for block status; `named` is the export's name with its length.
fn ask_for_allocation(stream: &mut (impl Read + Write), named: &[u8]) -> Result<Option<u32>, NbdError> {
    let mut request = named.to_vec();
    request.write_u32::<BigEndian>(1)?;
    put_string(&mut request, ALLOCATION)?;
    let Answer::Ack(items) = ask(stream, option::SET_META_CONTEXT, &request)? else { return Ok(None) };
    let is_ours =
        |(kind, data): &&(u32, Vec<u8>)| *kind == reply::META_CONTEXT && data.get(4..) == Some(ALLOCATION.as_bytes());
    let ours = items.iter().find(is_ours);
    Ok(ours.map(|(_, data)| data.as_slice().read_u32::<BigEndian>()).transpose()?)
}

/// Finds the size and the flags of the export.
fn export_item(items: &[(u32, Vec<u8>)]) -> Result<(ByteCount, u16), NbdError> {
    let found = items.iter().find_map(|(kind, data)| {
        let export = data.strip_prefix(&INFO_EXPORT.to_be_bytes()).filter(|_| *kind == reply::INFO)?;
        let (size, flags) = export.split_first_chunk()?;
        Some((ByteCount(u64::from_be_bytes(*size)), u16::from_be_bytes(flags.try_into().ok()?)))
    });
    found.ok_or(NbdError::Protocol { what: "the number of items that tell the size", found: 0 })
}

fn send_option(stream: &mut impl Write, option: u32, data: &[u8]) -> Result<(), NbdError> {
    let mut bytes = Vec::with_capacity(16 + data.len());
    bytes.write_u64::<BigEndian>(OPTION_MAGIC)?;
    bytes.write_u32::<BigEndian>(option)?;
    // Names are no longer than a string may be, and nothing else of length goes into options.
    bytes.write_u32::<BigEndian>(u32::try_from(data.len()).expect("options are shorter than 4 GiB"))?;
    bytes.extend_from_slice(data);
    stream.write_all(&bytes)?;
    Ok(stream.flush()?)
}

/// Sends an option and reads all that is answered to it.
fn ask(stream: &mut (impl Read + Write), option: u32, data: &[u8]) -> Result<Answer, NbdError> {
    send_option(stream, option, data)?;
    let mut items = Vec::new();
    while items.len() < MAX_REPLIES {
        let magic = stream.read_u64::<BigEndian>()?;
        if magic != OPTION_REPLY_MAGIC {
            return Err(NbdError::Magic { what: "the answer to an option", found: magic });
        }
        let answered = stream.read_u32::<BigEndian>()?;
        if answered != option {
            return Err(NbdError::Protocol { what: "the option answered to", found: answered.into() });
        }
        let kind = stream.read_u32::<BigEndian>()?;
        let length = stream.read_u32::<BigEndian>()?;
        let data = read_announced(stream, "the length of the answer to an option", length, MAX_OPTION)?;
        if kind == reply::ACK {
            return Ok(Answer::Ack(items));
        }
        if kind & reply::ERROR != 0 {
            let message = String::from_utf8_lossy(&data).into_owned();
            return Ok(Answer::Refusal { reply: kind, message });
        }
        items.push((kind, data));
    }
    Err(NbdError::Protocol { what: "the number of answers to an option", found: MAX_REPLIES as u64 })
}
