//! `write`: guest content from standard input.

use std::io::{self, Read};
use std::path::PathBuf;

use vhd_core::{Buffer, ByteCount, SECTOR_SIZE, Sector, SectorCount, SectorRange, Volume};

use crate::cli::{Context, Status};
use crate::disk::CHUNK;
use crate::error::{CommandError, Refusal};
use crate::progress::Progress;
use coalesce_worker::{check_not_served, size};

/// Write standard input to a disk
///
/// What is written is durable when the command ends. Input that goes past the end of the disk is an error, after what
/// fits has been written.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vhd-tool write disk.vhd --offset 1M < data")]
pub(crate) struct Args {
    /// The image, which nobody else has open
    file: PathBuf,
    /// Where to start
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    offset: ByteCount,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    let volume = Volume::open(&args.file, &context.chain_options())?;
    check_not_served(&args.file)?;
    if volume.leaf().footer().hidden() {
        return Err(Refusal::HiddenBase { path: args.file.clone() }.into());
    }
    let size = volume.sectors().bytes();
    if args.offset > size {
        return Err(Refusal::Offset { path: args.file.clone(), offset: args.offset, size }.into());
    }
    let progress = context.progress("write", None);
    let result = copy_in(args, &volume, &progress);
    // Also after an error: what was reported as written must be durable.
    let closed = volume.close();
    result?;
    closed?;
    progress.finish();
    Ok(Status::Done)
}

fn copy_in(args: &Args, volume: &Volume, progress: &Progress) -> Result<(), CommandError> {
    let size = volume.sectors().bytes();
    let mut input = io::stdin().lock();
    let mut buffer = Buffer::new(CHUNK.bytes());
    let mut at = args.offset;
    loop {
        // Pieces end on multiples of the buffer's length, so that only the first and the last are not whole sectors.
        let room = CHUNK.bytes().0 - at.0 % CHUNK.bytes().0;
        let room = room.min(size.0 - at.0) as usize;
        let read = fill(&mut input, &mut buffer[..room])?;
        write_bytes(volume, at, &buffer[..read])?;
        at += ByteCount(read as u64);
        progress.set(ByteCount(at.0 - args.offset.0));
        if at == size && fill(&mut input, &mut [0])? > 0 {
            let written = ByteCount(at.0 - args.offset.0);
            return Err(Refusal::PastEnd { path: args.file.clone(), size, written }.into());
        }
        if read < room || at == size {
            return Ok(());
        }
    }
}

/// Reads until the buffer is full or the input ends.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, CommandError> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Refusal::io("standard input", "read")(error).into()),
        }
    }
    Ok(filled)
}

/// Writes bytes; of sectors that they cover in part, the rest stays as it reads through the chain.
fn write_bytes(volume: &Volume, at: ByteCount, bytes: &[u8]) -> Result<(), CommandError> {
    let end = at.0 + bytes.len() as u64;
    let range = SectorRange::between(Sector(at.0 / SECTOR_SIZE), Sector(end.div_ceil(SECTOR_SIZE)));
    if range.count().bytes().0 == bytes.len() as u64 {
        return Ok(volume.write(range, bytes)?);
    }
    let mut sectors = vec![0; range.count().bytes().0 as usize];
    let last = Sector(range.end.0 - 1);
    for edge in [range.start, last] {
        let from = (edge - range.start).bytes().0 as usize;
        volume.read(SectorRange::new(edge, SectorCount(1)), &mut sectors[from..from + SECTOR_SIZE as usize])?;
    }
    let from = (at.0 - range.start.byte_offset()) as usize;
    sectors[from..from + bytes.len()].copy_from_slice(bytes);
    Ok(volume.write(range, &sectors)?)
}
