//! `convert`: one disk, through all its layers, into one new file.

use std::path::PathBuf;

use serde::Serialize;
use vhd_core::{
    BlockSize, ByteCount, Chain, Container, FileOffset, Image, NewImage, NewKind, ReadWrite, SectorCount, SectorRange,
    create, write_new_file,
};

use super::{Format, destination};
use crate::cli::{Context, Status};
use crate::disk::{self, CHUNK};
use crate::error::CommandError;
use crate::progress::Progress;
use coalesce_worker::size::Human;

/// What is left out where it is all zeros: what file systems give space by.
const PAGE: SectorCount = SectorCount(8);
static ZEROS: [u8; PAGE.bytes().0 as usize] = [0; PAGE.bytes().0 as usize];

/// Copy a disk, flattened, into a new raw, dynamic or fixed file
///
/// SRC is read through its chain; without a VHD footer it is a raw disk, but never if it is named *.vhd. DST appears
/// under its name when it is complete, and takes space only for what is not zero.
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

#[derive(Serialize)]
struct Converted {
    source: String,
    destination: String,
    size: u64,
    data: u64,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    let source = disk::open(&args.source, &context.chain_options())?;
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
    let mut buffer = vec![0; CHUNK.bytes().0 as usize];
    let mut data = ByteCount(0);
    for range in disk::data_ranges(source) {
        for piece in range?.split_at_multiples(CHUNK) {
            let bytes = &mut buffer[..piece.count().bytes().0 as usize];
            source.read(piece, bytes)?;
            for run in nonzero_runs(piece, bytes) {
                let from = (run.start - piece.start).bytes().0 as usize;
                sink.write(run, &bytes[from..from + run.count().bytes().0 as usize])?;
                data += run.count().bytes();
            }
            progress.set(ByteCount(piece.end.byte_offset()));
        }
    }
    progress.set(source.sectors().bytes());
    Ok(data)
}

/// Finds the parts of `range` that are not zero, by pages of the disk.
fn nonzero_runs(range: SectorRange, bytes: &[u8]) -> Vec<SectorRange> {
    let mut runs: Vec<SectorRange> = Vec::new();
    for page in range.split_at_multiples(PAGE) {
        let from = (page.start - range.start).bytes().0 as usize;
        let length = page.count().bytes().0 as usize;
        if bytes[from..from + length] == ZEROS[..length] {
            continue;
        }
        match runs.last_mut() {
            Some(last) if last.end == page.start => last.end = page.end,
            _ => runs.push(page),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use vhd_core::Sector;

    use super::*;

    #[test]
    fn zero_pages_of_the_disk_are_left_out() {
        // Sectors 4..36: a half page, three pages, a half page.
        let range = SectorRange::between(Sector(4), Sector(36));
        let mut bytes = vec![0; range.count().bytes().0 as usize];
        assert_eq!(nonzero_runs(range, &bytes), []);
        let at = |sector: u64| ((sector - 4) * 512) as usize;
        bytes[at(7)] = 1;
        bytes[at(8) + 511] = 1;
        bytes[at(35)] = 1;
        let run = |start, end| SectorRange::between(Sector(start), Sector(end));
        assert_eq!(nonzero_runs(range, &bytes), [run(4, 16), run(32, 36)]);
    }
}
