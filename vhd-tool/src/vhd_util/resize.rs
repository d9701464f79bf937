//! `resize`: a larger disk.

use std::path::PathBuf;

use rustix::io::Errno;
use vhd_core::{BlockSize, ByteCount, Chain, FooterOrigin, Image};

use super::{Failure, Refused, chain_options};

/// Make the disk of an image larger
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image
    #[arg(short)]
    name: PathBuf,
    /// The new size in MiB; rounded up to a multiple of 2
    #[arg(short)]
    size: u64,
    /// Keep what is replaced in this file, which must not be there yet, until the disk has its new size
    #[arg(short, required_unless_present = "fast", conflicts_with = "fast")]
    journal: Option<PathBuf>,
    /// Only if the BAT has room, which takes no journal
    #[arg(short)]
    fast: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let refused = |errno, what: &str| Refused::image(&args.name, errno, what);
    let size = args.size.checked_mul(1 << 20).and_then(|bytes| bytes.checked_next_multiple_of(2 << 20));
    let size = ByteCount(size.ok_or_else(|| refused(Errno::INVAL, "no disk can be so large"))?);
    let mut image = Image::open_writable(&args.name)?;
    let Some(header) = image.header() else { return Err(refused(Errno::INVAL, "a fixed disk keeps its size").into()) };
    let (block_size, entries): (BlockSize, u32) = (header.block_size(), header.max_table_entries());
    let present = image.footer().current_size();
    if size < present {
        return Err(refused(Errno::NOSYS, "a disk does not become smaller").into());
    }
    if size == present {
        return Ok(());
    }
    let parents = chain_options(&args.name).open_parents(&image, &args.name)?;
    let parent_size = parents.as_ref().map_or(ByteCount(0), Chain::size);
    if image.footer_origin() == FooterOrigin::Start {
        image.renew_footers()?;
    }
    match &args.journal {
        Some(journal) => image.set_size_journaled(size, parent_size, journal)?,
        None if block_size.blocks_for(size) > u64::from(entries) => {
            return Err(refused(Errno::INVAL, "the BAT has no room for so large a disk; give a journal").into());
        }
        None => image.set_size(size, parent_size)?,
    }
    Ok(image.close()?)
}
