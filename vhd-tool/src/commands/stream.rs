//! `stream`: a disk, or what of it differs from another, onto a file, a device or a connection.

use std::path::{Path, PathBuf};

use vhd_core::{ChainOptions, FileIdentity};

use crate::cli::{Context, Status};
use crate::disk::{self, Form};
use crate::error::{CommandError, Refusal};
use crate::foreign;
use crate::nbd::HybridSource;
use crate::stream::chunked::ChunkedWriter;
use crate::stream::endpoint::{Endpoint, EndpointError, Output, Target, parse_descriptor};
use crate::stream::failure::StreamFailure;
use crate::stream::human::HumanWriter;
use crate::stream::image::{Bits, StreamedImage};
use crate::stream::local::LocalDisk;
use crate::stream::nbd::NbdWriter;
use crate::stream::options::Options;
use crate::stream::peer::PeerOptions;
use crate::stream::plain::PlainWriter;
use crate::stream::protocol::{Format, Protocol};
use crate::stream::pump::{Destination, Source, pump};
use crate::stream::sink::{Expected, Nowhere, RawSink};
use crate::stream::tar::TarWriter;

/// Send a disk: as raw bytes or as a VHD, to a file, a device or a stream
///
/// A VHD source is read through its chain. A VHD that is sent is written front to back, with no seek; it has the unique
/// id of the image that it is made from. With --relative-to it is a child of that image and holds, whole, each block in
/// which they differ, as Xen Orchestra and xapi need it. Blocks of zeros that only a look at them shows, as those of a raw
/// disk, are left out. Files that are made have their name once they are complete; what is there already is written in
/// place.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sources, by --source-format:
  raw        PATH           a file or block device
  vhd        PATH           an image with its parents
  hybrid     DEVICE:VHD     the bytes of DEVICE, as far as VHD and its parents hold data
  nbdhybrid  DEVICE:SERVER:EXPORT:SIZE

Destinations: stdout:, null:, fd://N, file://PATH, PATH, tcp://HOST:PORT, unix://PATH, http(s)://…

Examples:
  vhd-tool stream --source disk.img --destination-format vhd --destination disk.vhd
  vhd-tool stream --source-format vhd --source b.vhd --relative-to a.vhd --destination-format vhd > d.vhd
  vhd-tool stream --source disk.img --destination-protocol chunked --destination-fd 7")]
pub(crate) struct Args {
    /// The disk to send
    #[arg(long, value_name = "SOURCE")]
    source: String,
    /// What the source is; without this, a raw disk, unless it looks like something that holds one
    #[arg(long, value_name = "FORMAT")]
    source_format: Option<SourceFormat>,
    /// How the source is read: files and devices are read without a protocol
    #[arg(long, value_name = "PROTOCOL", default_value = "none")]
    source_protocol: Protocol,
    /// Send only what differs from this disk
    #[arg(long, value_name = "BASE")]
    relative_to: Option<PathBuf>,
    /// What BASE is, whatever it looks like
    #[arg(long, value_name = "FORM", requires = "relative_to")]
    relative_format: Option<Form>,
    /// Send only the sectors that differ, not whole blocks: smaller, but only readers that look at bitmaps understand it
    #[arg(long, requires = "relative_to")]
    sector_deltas: bool,
    /// Where to send it
    #[arg(long, value_name = "ENDPOINT", default_value = "stdout:")]
    destination: Endpoint,
    /// Send it to this descriptor, which was left open
    #[arg(long, value_name = "FD", value_parser = parse_fd, conflicts_with = "destination")]
    destination_fd: Option<i32>,
    /// What to send
    #[arg(long, value_name = "FORMAT", default_value = "raw")]
    destination_format: Format,
    /// How to send it; without this, raw disks go to http:// and https:// in chunks, and all else without a protocol
    #[arg(long, value_name = "PROTOCOL")]
    destination_protocol: Option<Protocol>,
    /// The destination holds zeros already, so that none need to be sent in chunks
    #[arg(long)]
    prezeroed: bool,
    #[command(flatten)]
    peer: PeerOptions,
    #[command(flatten)]
    options: Options,
}

pub(super) fn parse_fd(text: &str) -> Result<i32, EndpointError> {
    parse_descriptor(text)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum SourceFormat {
    /// A disk's bytes
    Raw,
    /// An image with its parents
    Vhd,
    /// A device and the image that it is the disk of
    Hybrid,
    /// A device and the NBD server that knows what of it is data
    Nbdhybrid,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    if args.source_protocol != Protocol::None {
        let how = args.source_protocol.means();
        return Err(CommandError::usage(StreamFailure::Mismatch { what: "what comes from elsewhere", how })
            .hint("`serve` takes disks from streams"));
    }
    let endpoint = args.destination_fd.map_or_else(|| args.destination.clone(), Endpoint::Descriptor);
    let protocol = args.destination_protocol.unwrap_or(match args.destination_format {
        Format::Raw if endpoint.is_http() => Protocol::Chunked,
        _ => Protocol::None,
    });
    check_combination(args, protocol)?;
    let disk = open_source(args, &context.chain_options())?;
    let (size, is_delta, read_from) = (disk.size(), disk.is_delta(), disk.files());
    let source: Box<dyn Source> = match args.destination_format {
        Format::Vhd => Box::new(StreamedImage::new(disk, bits(args))?),
        Format::Raw => Box::new(disk),
    };
    // Only now: laying an image out may take as long as reading the disk, and a peer does not wait for that.
    let connecting = args.peer.connecting(protocol == Protocol::Chunked);
    let output = match protocol {
        Protocol::Nbd => Output::Peer(endpoint.open_duplex(&connecting)?),
        _ => endpoint.open_output(&connecting)?,
    };
    refuse_own_source(&output, &read_from)?;
    let total = source.total();
    output.fill(|target| {
        let raw = args.destination_format == Format::Raw && !is_delta;
        let mut destination: Box<dyn Destination + '_> = match (protocol, target) {
            (Protocol::None, Target::Place { container, fresh }) if raw => {
                let expected = Expected { size: Some(size), whole: true, prezeroed: args.prezeroed };
                Box::new(RawSink::new(container, fresh, expected)?)
            }
            (Protocol::None, Target::Null) => Box::new(Nowhere),
            (Protocol::None, target) => Box::new(PlainWriter::new(target.into_writer()?)),
            (Protocol::Chunked, target) => Box::new(ChunkedWriter::new(target.into_writer()?, args.prezeroed)),
            (Protocol::Tar, target) => {
                Box::new(TarWriter::new(target.into_writer()?, &args.options.tar_filename_prefix, size)?)
            }
            (Protocol::Human, target) => Box::new(HumanWriter::new(target.into_writer()?)),
            (Protocol::Nbd, Target::Peer(peer)) => Box::new(NbdWriter::new(peer, size, args.prezeroed)?),
            (Protocol::Nbd, _) => return Err(StreamFailure::Unsupported { what: "sending over NBD".into() }.into()),
        };
        pump(source, &mut *destination, args.options.meter("stream", total, endpoint.is_stdout(), context))
    })?;
    Ok(Status::Done)
}

/// Refuses what no receiver could make sense of.
fn check_combination(args: &Args, protocol: Protocol) -> Result<(), CommandError> {
    if args.sector_deltas && args.destination_format != Format::Vhd {
        return Err(CommandError::usage(StreamFailure::SectorsOfRaw));
    }
    let how = protocol.means();
    let what = match (args.destination_format, protocol) {
        (Format::Vhd, Protocol::Chunked | Protocol::Tar | Protocol::Nbd) => "a VHD",
        (Format::Raw, Protocol::None | Protocol::Tar) if args.relative_to.is_some() => {
            "what differs from another disk, as raw bytes,"
        }
        _ => return Ok(()),
    };
    Err(CommandError::usage(StreamFailure::Mismatch { what, how })
        .hint("a VHD is sent without a protocol; a difference as a VHD, or in chunks"))
}

/// Which sectors the bitmaps of an image show.
fn bits(args: &Args) -> Bits {
    if args.sector_deltas { Bits::OfSectors } else { Bits::All }
}

const AS_RAW: &str = "--source-format raw takes the file for a raw disk as it is";
const BASE_AS_RAW: &str = "--relative-format raw takes the base for a raw disk as it is";

fn open_source(args: &Args, options: &ChainOptions) -> Result<LocalDisk, CommandError> {
    let disk = match args.source_format.unwrap_or(SourceFormat::Raw) {
        SourceFormat::Raw => {
            let path = file(&args.source)?;
            let disk = LocalDisk::raw(&path)?;
            match foreign::Container::at(&path)?.filter(|_| args.source_format.is_none()) {
                Some(container) => return Err(container.refused(&path, AS_RAW)),
                None => disk,
            }
        }
        SourceFormat::Vhd => LocalDisk::vhd(&file(&args.source)?, options)?,
        SourceFormat::Hybrid => {
            let (device, image) = pair(&args.source)?;
            LocalDisk::hybrid(Path::new(device), Path::new(image), options)?
        }
        SourceFormat::Nbdhybrid => {
            let source: HybridSource = args.source.parse().map_err(CommandError::usage)?;
            let allocation = source.allocation()?;
            let find = Box::new(move |window| Ok(allocation.within(window)));
            LocalDisk::found(&source.raw, source.size, find)?
        }
    };
    match &args.relative_to {
        Some(base) => disk.relative_to(disk::open(base, args.relative_format, BASE_AS_RAW, options)?, base),
        None => Ok(disk),
    }
}

fn file(source: &str) -> Result<PathBuf, CommandError> {
    match source.parse() {
        Ok(Endpoint::File(path)) => Ok(path),
        _ => Err(CommandError::usage(StreamFailure::NotAFile { found: source.into() })),
    }
}

/// Splits `DEVICE:VHD`, at the first colon that leaves two things that are there.
fn pair(source: &str) -> Result<(&str, &str), CommandError> {
    let splits = || source.match_indices(':').map(|(at, _)| (&source[..at], &source[at + 1..]));
    let there = |&(device, image): &(&str, &str)| Path::new(device).exists() && Path::new(image).exists();
    let found =
        splits().find(there).or_else(|| splits().find(|(device, image)| !device.is_empty() && !image.is_empty()));
    found.ok_or_else(|| CommandError::usage(StreamFailure::NotAPair { found: source.into() }))
}

/// Refuses a destination that the disk is read from.
fn refuse_own_source(output: &Output, read_from: &[PathBuf]) -> Result<(), CommandError> {
    let Some(identity) = output.identity() else { return Ok(()) };
    let own = read_from.iter().find(|path| FileIdentity::at(path).is_ok_and(|found| found == identity));
    match own {
        Some(path) => Err(Refusal::OwnSource { path: path.into(), reader: path.into() }.into()),
        None => Ok(()),
    }
}
