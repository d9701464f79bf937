//! `read`: guest content to standard output.

use std::io::Write;
use std::path::PathBuf;

use vhd_core::{Buffer, ByteCount, Chain, SECTOR_SIZE, Sector, SectorRange};

use crate::cli::{Context, Status};
use crate::disk::CHUNK;
use crate::error::{CommandError, Refusal};
use crate::output;
use coalesce_worker::size;

/// Write the content of a disk to standard output
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vhd-tool read disk.vhd > disk.img
  vhd-tool read disk.vhd --offset 1M --length 512 | xxd")]
pub(crate) struct Args {
    /// The image
    file: PathBuf,
    /// Where to start
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "0")]
    offset: ByteCount,
    /// How much to read, at most up to the end of the disk
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    length: Option<ByteCount>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    let chain = Chain::open(&args.file, &context.chain_options())?;
    let size = chain.sectors().bytes();
    if args.offset > size {
        return Err(Refusal::Offset { path: args.file.clone(), offset: args.offset, size }.into());
    }
    let end = args.length.map_or(size, |length| ByteCount(args.offset.0.saturating_add(length.0)).min(size));
    let length = ByteCount(end.0 - args.offset.0);

    let progress = context.progress("read", Some(length));
    let mut out = output::stdout();
    let mut buffer = Buffer::new(CHUNK.bytes());
    let sectors = SectorRange::between(Sector(args.offset.0 / SECTOR_SIZE), Sector(end.0.div_ceil(SECTOR_SIZE)));
    for piece in sectors.split_at_multiples(CHUNK) {
        let bytes = &mut buffer[..piece.count().bytes().0 as usize];
        chain.read(piece, bytes)?;
        // The first and the last sector may be wanted in part.
        let start = piece.start.byte_offset();
        let from = args.offset.0.saturating_sub(start) as usize;
        let to = (end.0 - start).min(bytes.len() as u64) as usize;
        out.write_all(&bytes[from..to]).map_err(CommandError::stdout)?;
        progress.set(ByteCount(start + to as u64 - args.offset.0));
    }
    out.flush().map_err(CommandError::stdout)?;
    progress.finish();
    Ok(Status::Done)
}
