//! `fill`: all blocks of an image, allocated.

use std::path::PathBuf;

use vhd_core::{BlockIndex, Extents, Header, Sector, SectorRange, Source, Volume};

use super::{Failure, chain_options};
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
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let volume = Volume::open(&args.name, &chain_options())?;
    let filled = if args.blocks_only { allocate(&volume) } else { write(&volume) };
    // Also after an error: what was allocated in vain goes, and the file ends with its footer.
    let closed = volume.close();
    filled?;
    Ok(closed?)
}

fn allocate(volume: &Volume) -> Result<(), Failure> {
    let blocks = volume.leaf().blocks();
    for first in (0..blocks).step_by(BATCH as usize) {
        let batch: Vec<_> = (first..blocks.min(first.saturating_add(BATCH))).map(BlockIndex).collect();
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
