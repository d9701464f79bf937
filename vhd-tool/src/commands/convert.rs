//! `convert`: one disk, through all its layers, into one new file.

use std::path::PathBuf;

use serde::Serialize;
use vhd_core::{
    BlockSize, ByteCount, Chain, Container, FileOffset, Image, NewImage, NewKind, ReadWrite, SectorRange, create,
    write_new_file,
};

use super::{Format, destination};
use crate::cli::{Context, Status};
use crate::disk::{self, Form};
use crate::error::CommandError;
use crate::progress::Progress;
use coalesce_worker::size::Human;

/// Copy a disk, flattened, into a new raw, dynamic or fixed file
///
/// SRC is read through its chain; without a VHD footer it is a raw disk, but never if it is named *.vhd, or holds a disk in
/// another format (VHDX, QCOW, an archive, …). DST appears under its name when it is complete, and takes space only for
/// what is not zero.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vhd-tool convert leaf.vhd disk.img --to raw
  vhd-tool convert disk.img disk.vhd --to dynamic")]
pub(crate) struct Args {
    /// The disk to copy
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The file to make
    #[arg(value_name = "DST")]
    destination: PathBuf,
    /// What SRC is, whatever it looks like
    #[arg(long, value_name = "FORM")]
    from: Option<Form>,
    /// What to make
    #[arg(long, value_name = "TYPE")]
    to: Kind,
    /// Replace DST if it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// The bytes of the disk and nothing else
    Raw,
    /// A VHD that grows as it is written
    Dynamic,
    /// A VHD with room for the whole disk
    Fixed,
}

const AS_RAW: &str = "--from raw takes the file for a raw disk as it is";

#[derive(Serialize)]
struct Converted {
    source: String,
    destination: String,
    size: u64,
    data: u64,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    let source = disk::open(&args.source, args.from, AS_RAW, &context.chain_options())?;
    destination::refuse_own_source(&args.destination, &source)?;
    let existing = destination::existing(&args.destination, args.force)?;
    let size = source.sectors().bytes();
    let progress = context.progress("convert", Some(size));
    let mut data = ByteCount(0);
    write_new_file(&args.destination, existing, |container| {
        let sink = Sink::new(container, args.to, size)?;
        data = copy(&source, &sink, &progress)?;
        sink.close()
    })?;
    progress.finish();

    let converted = Converted {
        source: args.source.display().to_string(),
        destination: args.destination.display().to_string(),
        size: size.0,
        data: data.0,
    };
    context.output(args.format.json).outcome(&converted, |out| {
        let Converted { source, destination, .. } = &converted;
        writeln!(out, "{destination} holds the disk of {source}: {}, of which {} data", Human(size), Human(data))
    })?;
    Ok(Status::Done)
}

/// What is written.
enum Sink<'a> {
    Raw(&'a Container),
    Vhd(Box<Image<ReadWrite>>),
}

impl<'a> Sink<'a> {
    fn new(container: &'a Container, kind: Kind, size: ByteCount) -> Result<Self, CommandError> {
        let kind = match kind {
            Kind::Raw => {
                container.set_len(size)?;
                return Ok(Self::Raw(container));
            }
            Kind::Dynamic => NewKind::Dynamic { block_size: BlockSize::DEFAULT },
            Kind::Fixed => NewKind::Fixed,
        };
        create(container, &NewImage::new(size, kind))?;
        Ok(Self::Vhd(Box::new(Image::writable_from_container(container.clone())?)))
    }

    fn write(&self, range: SectorRange, bytes: &[u8]) -> Result<(), CommandError> {
        match self {
            Self::Raw(container) => container.write_at(bytes, FileOffset(range.start.byte_offset()))?,
            Self::Vhd(image) => image.write(range, bytes)?,
        }
        Ok(())
    }

    /// Makes all of it durable.
    fn close(self) -> Result<(), CommandError> {
        match self {
            Self::Raw(container) => container.sync()?,
            Self::Vhd(image) => image.close()?,
        }
        Ok(())
    }
}

/// Copies what is not zero, and tells how much that was.
fn copy(source: &Chain, sink: &Sink<'_>, progress: &Progress) -> Result<ByteCount, CommandError> {
    let mut data = ByteCount(0);
    let write = |range: SectorRange, bytes: &[u8]| {
        data += range.count().bytes();
        sink.write(range, bytes)
    };
    source.copy_data(write, |done| progress.set(done))?;
    Ok(data)
}
