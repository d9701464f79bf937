//! `fill`: all blocks of an image, allocated.

use std::path::PathBuf;

use rustix::io::Errno;
use vhd_core::{BlockIndex, Extents, Header, Sector, SectorRange, Source, Volume};

use super::{Failure, Refused, chain_options};
use crate::disk::CHUNK;

/// Blocks that are allocated side by side.
const BATCH: u32 = 1024;

/// Make an image hold all of its disk itself
///
/// What it does not hold yet is written to it as it reads: zeros, or what its parents show. A fixed image is left as it
/// is.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image
    #[arg(short)]
    name: PathBuf,
    /// Only allocate the blocks: the disk reads as before, parents included
    #[arg(short = 'b')]
    blocks_only: bool,
    /// With -b: from the block of this sector on
    #[arg(short, value_name = "SECTOR", requires = "blocks_only")]
    from: Option<u64>,
    /// With -b: up to the block of this sector
    #[arg(short, value_name = "SECTOR", requires = "blocks_only")]
    to: Option<u64>,
    /// Accepted: no block can be placed past 2 TiB
    #[arg(short = 'B', requires = "blocks_only", hide = true)]
    beyond: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let volume = Volume::open(&args.name, &chain_options())?;
    let filled = if args.blocks_only { allocate(&volume, args) } else { write(&volume) };
    // Also after an error: what was allocated in vain goes, and the file ends with its footer.
    let closed = volume.close();
    filled?;
    Ok(closed?)
}

fn allocate(volume: &Volume, args: &Args) -> Result<(), Failure> {
    let Some(per_block) = volume.leaf().header().map(|header| header.block_size().sectors().0) else { return Ok(()) };
    let (from, to) = (args.from.unwrap_or(0), args.to.unwrap_or(u64::MAX));
    if from > to {
        return Err(Refused::image(&args.name, Errno::INVAL, "the last sector comes before the first").into());
    }
    let end = (to / per_block + 1).min(volume.leaf().blocks().into()) as u32;
    let start = (from / per_block).min(end.into()) as u32;
    for first in (start..end).step_by(BATCH as usize) {
        let batch: Vec<_> = (first..end.min(first.saturating_add(BATCH))).map(BlockIndex).collect();
        volume.leaf().reserve(&batch)?;
        volume.flush()?;
    }
    Ok(())
}

fn write(volume: &Volume) -> Result<(), Failure> {
    let Some(block_size) = volume.leaf().header().map(Header::block_size) else { return Ok(()) };
    let disk = SectorRange::new(Sector(0), volume.sectors());
    let (mut extents, mut bytes) = (Extents::default(), Vec::new());
    for block in disk.split_at_multiples(block_size.sectors()) {
        extents.clear();
        volume.leaf().resolve(block, &mut extents)?;
        for extent in extents.as_slice().iter().filter(|extent| !matches!(extent.source, Source::Data(_))) {
            for piece in extent.sectors.split_at_multiples(CHUNK) {
                bytes.resize(piece.count().bytes().0 as usize, 0);
                volume.read(piece, &mut bytes)?;
                volume.write(piece, &bytes)?;
            }
        }
    }
    Ok(())
}
