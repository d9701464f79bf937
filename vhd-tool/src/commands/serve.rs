//! `serve`: a disk from a stream onto a file or a device.

use std::io::{Cursor, Read};
use std::os::fd::AsFd;

use rustix::fs::{FileType, fstat, tell};
use vhd_core::ByteCount;

use super::stream::parse_fd;
use crate::cli::{Context, Status};
use crate::error::CommandError;
use crate::foreign;
use crate::stream::chunked::ChunkedReader;
use crate::stream::endpoint::{Endpoint, Output, Target};
use crate::stream::failure::StreamFailure;
use crate::stream::nbd;
use crate::stream::options::Options;
use crate::stream::plain::{PlainReader, PlainWriter};
use crate::stream::protocol::{Format, Protocol};
use crate::stream::pump::{Destination, Source, pump};
use crate::stream::received::ReceivedImage;
use crate::stream::sink::{Expected, Nowhere, RawSink, VhdSink};
use crate::stream::tar::TarReader;
use crate::stream::waiting::Listening;
use crate::transport::ConnectOptions;

/// Receive a disk: raw bytes, chunks, an archive or a VHD, from a stream onto a file or a device
///
/// A dynamic or fixed VHD replaces what the destination holds; a differencing one changes, on a copy of its parent's
/// disk, the sectors that it holds, as do chunks. What is there already is written in place; a new file gets its name
/// when all has arrived. The command ends with the image or the size that was given, even if the stream stays open; with a
/// fixed VHD of which no length is known, once nothing has come for five seconds after its footer. A raw disk without a size
/// ends where the device ends; a file that is longer than that is refused.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sources: stdin:, fd://N, file://PATH, PATH, tcp://HOST:PORT, unix://PATH; where nobody listens at one of the last two, the
command does, and takes the first who connects

Examples:
  vhd-tool serve --source-format vhd --destination file:///dev/xvdb --prezeroed < disk.vhd
  vhd-tool serve --source-protocol chunked --source-fd 7 --destination file:///dev/xvdb
  vhd-tool serve --source disk.vhd --source-format vhd --destination disk.img --progress")]
pub(crate) struct Args {
    /// Where the disk comes from
    #[arg(long, value_name = "ENDPOINT", default_value = "stdin:")]
    source: Endpoint,
    /// It comes from this descriptor, which was left open
    #[arg(long, value_name = "FD", value_parser = parse_fd, conflicts_with = "source")]
    source_fd: Option<i32>,
    /// What comes; without this, a raw disk, unless it looks like something that holds one
    #[arg(long, value_name = "FORMAT")]
    source_format: Option<Format>,
    /// How it comes
    #[arg(long, value_name = "PROTOCOL", default_value = "none")]
    source_protocol: Protocol,
    /// What to write
    #[arg(long, value_name = "ENDPOINT", required_unless_present = "destination_fd")]
    destination: Option<Endpoint>,
    /// Write to this descriptor, which was left open
    #[arg(long, value_name = "FD", value_parser = parse_fd, conflicts_with = "destination")]
    destination_fd: Option<i32>,
    /// What to make of it; a VHD is made as a new file
    #[arg(long, value_name = "FORMAT", default_value = "raw")]
    destination_format: Format,
    /// The size of the disk in bytes, of a VHD the length of the stream; without it that of a raw disk is that of a device
    /// that it is written to
    #[arg(long, value_name = "BYTES")]
    destination_size: Option<u64>,
    /// The destination holds zeros already, so that none need to be written
    #[arg(long)]
    prezeroed: bool,
    /// Take blocks of an archive whose checksums are wrong
    #[arg(long)]
    ignore_checksums: bool,
    #[command(flatten)]
    options: Options,
}

const AS_RAW: &str = "--source-format raw takes it for a raw disk as it is";

/// A source and what it says of itself before it starts.
struct Incoming {
    source: Box<dyn Source>,
    size: Option<ByteCount>,
    is_delta: bool,
    /// Everything that the disk holds is named, in the order of the disk.
    in_order: bool,
    whole: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    check_combination(args)?;
    let destination = args.destination_fd.map(Endpoint::Descriptor).or_else(|| args.destination.clone());
    let destination = destination.unwrap_or(Endpoint::Null);
    let input = args.source_fd.map_or_else(|| args.source.clone(), Endpoint::Descriptor);
    let connecting = ConnectOptions::default();
    let output = destination.open_output(&connecting)?;
    if output.identity().is_some_and(|identity| input.identity() == Some(identity)) {
        return Err(CommandError::usage(StreamFailure::OwnSource));
    }
    if args.source_protocol == Protocol::Nbd {
        return receive_nbd(args, &input, output, destination.is_stdout(), context);
    }
    let incoming = open_source(args, &input, &output)?;
    if incoming.is_delta && matches!(output, Output::New(_)) {
        return Err(StreamFailure::NeedsBase.into());
    }
    let meter = args.options.meter("serve", incoming.source.total(), destination.is_stdout(), context);
    output.fill(|target| {
        let mut destination = open_destination(args, &incoming, target)?;
        pump(incoming.source, &mut *destination, meter)
    })?;
    Ok(Status::Done)
}

/// Serves the destination to a client that writes it, and to which each write is answered once it is done.
fn receive_nbd(
    args: &Args,
    input: &Endpoint,
    output: Output,
    stdout_is_taken: bool,
    context: &Context,
) -> Result<Status, CommandError> {
    let size = args.destination_size.map(ByteCount).or_else(|| output.length());
    let size = size.ok_or_else(|| CommandError::usage(StreamFailure::SizeUnknown))?;
    let mut stream = input.open_duplex_input()?;
    let meter = args.options.meter("serve", Some(size), stdout_is_taken, context);
    output.fill(|target| match (args.destination_format, target) {
        (Format::Raw, Target::Place { container, .. }) => nbd::receive(&mut *stream, container, size, meter),
        _ => Err(StreamFailure::Unsupported { what: "receiving over NBD what is no raw file or device".into() }.into()),
    })?;
    Ok(Status::Done)
}

fn check_combination(args: &Args) -> Result<(), CommandError> {
    match (args.source_format, args.source_protocol) {
        (Some(Format::Vhd), Protocol::Chunked | Protocol::Tar | Protocol::Nbd) | (_, Protocol::Human) => {
            let what = if args.source_format == Some(Format::Vhd) { "a VHD" } else { "a disk" };
            let how = args.source_protocol.means();
            Err(CommandError::usage(StreamFailure::Mismatch { what, how }))
        }
        _ => Ok(()),
    }
}

fn open_source(args: &Args, endpoint: &Endpoint, output: &Output) -> Result<Incoming, CommandError> {
    let size = args.destination_size.map(ByteCount);
    let incoming = |source: Box<dyn Source>| Incoming { source, size, is_delta: false, in_order: true, whole: true };
    Ok(match (args.source_format.unwrap_or(Format::Raw), args.source_protocol) {
        (Format::Vhd, _) => {
            let image = ReceivedImage::open(Listening::new(endpoint.open_input()?), size)?;
            let (size, is_delta) = (image.disk_size(), image.is_delta());
            Incoming { source: Box::new(image), size, is_delta, in_order: false, whole: !is_delta }
        }
        (Format::Raw, Protocol::Chunked) => {
            let source = ChunkedReader::new(endpoint.open_input()?, size);
            Incoming { in_order: false, whole: false, ..incoming(Box::new(source)) }
        }
        (Format::Raw, Protocol::Tar) => {
            let size =
                size.or_else(|| output.length()).ok_or_else(|| CommandError::usage(StreamFailure::SizeUnknown))?;
            let source = TarReader::new(endpoint.open_input()?, &args.options.tar_filename_prefix, size);
            let source = source.ignoring_checksums(args.ignore_checksums);
            Incoming { size: Some(size), ..incoming(Box::new(source)) }
        }
        (Format::Raw, Protocol::None | Protocol::Human | Protocol::Nbd) => {
            // Nothing in the stream tells where it should end; a device does.
            let limit = output.fixed_length().filter(|_| size.is_none());
            let size = size.or(limit);
            let mut input = endpoint.open_input()?;
            if let (Some(limit), Some(length)) = (limit, length_of_file(&input))
                && length > limit
            {
                return Err(StreamFailure::PastEnd { end: length.0.into(), size: limit }.into());
            }
            let head = if args.source_format.is_none() { look_at_head(&mut input)? } else { Vec::new() };
            Incoming { size, ..incoming(Box::new(PlainReader::new(Cursor::new(head).chain(input), size))) }
        }
    })
}

/// What a regular file has to give; nothing else tells that.
fn length_of_file(input: impl AsFd) -> Option<ByteCount> {
    let found = fstat(&input).ok().filter(|found| FileType::from_raw_mode(found.st_mode) == FileType::RegularFile)?;
    Some(ByteCount(u64::try_from(found.st_size).ok()?.saturating_sub(tell(input).ok()?)))
}

/// Reads the first bytes of what should be a raw disk, and refuses what is a container.
fn look_at_head(input: &mut impl Read) -> Result<Vec<u8>, CommandError> {
    let mut head = vec![0; foreign::HEAD];
    let got = PlainReader::new(input, None).fill(&mut head)?;
    head.truncate(got);
    match foreign::Container::of_head(&head) {
        Some(container) => Err(container.refused("the source".as_ref(), AS_RAW)),
        None => Ok(head),
    }
}

fn open_destination<'a>(
    args: &Args,
    incoming: &Incoming,
    target: Target<'a>,
) -> Result<Box<dyn Destination + 'a>, CommandError> {
    let Incoming { size, whole, in_order, .. } = *incoming;
    Ok(match (args.destination_format, target) {
        (_, Target::Null) => Box::new(Nowhere),
        (Format::Raw, Target::Place { container, fresh }) => {
            Box::new(RawSink::new(container, fresh, Expected { size, whole, prezeroed: args.prezeroed })?)
        }
        (Format::Raw, target @ (Target::Bytes(_) | Target::Peer(_))) if in_order => {
            Box::new(PlainWriter::new(target.into_writer()?))
        }
        (Format::Vhd, Target::Place { container, fresh: true }) => {
            let size = size.ok_or_else(|| CommandError::usage(StreamFailure::SizeUnknown))?;
            Box::new(VhdSink::new(&container, size)?)
        }
        (Format::Vhd, Target::Place { .. } | Target::Bytes(_) | Target::Peer(_)) => {
            let what = "making a VHD in place of what is there, or in a stream".into();
            return Err(StreamFailure::Unsupported { what }.into());
        }
        (Format::Raw, Target::Bytes(_) | Target::Peer(_)) => {
            let what = "writing what comes in any order into a stream".into();
            return Err(StreamFailure::Unsupported { what }.into());
        }
    })
}
