//! `resize`: a larger disk.

use std::path::PathBuf;

use rustix::io::Errno;
use vhd_core::{BlockSize, ByteCount, Chain, ChainError, FooterOrigin, Image, ReadWrite};

use super::failure::errno_of;
use super::{Failure, NAME, Refused, chain_options, made_ready};
use crate::output;

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
    let mut image = open(args)?;
    let Some(header) = image.header() else { return Err(refused(Errno::INVAL, "a fixed disk keeps its size").into()) };
    let (block_size, entries): (BlockSize, u32) = (header.block_size(), header.max_table_entries());
    let present = image.footer().current_size();
    if size < present {
        return Err(refused(Errno::NOSYS, "a disk does not become smaller").into());
    }
    if args.journal.as_ref().is_some_and(|journal| journal.is_file()) {
        return Err(refused(Errno::EXIST, "its journal is there already: is a resize to be reverted?").into());
    }
    if size == present {
        return Ok(());
    }
    let parent_size = parent_size(&image, args)?;
    match &args.journal {
        Some(journal) => image.set_size_journaled(size, parent_size, journal)?,
        None if block_size.blocks_for(size) > u64::from(entries) => {
            return Err(refused(Errno::INVAL, "the BAT has no room for so large a disk; give a journal").into());
        }
        None => {
            let resized = image.set_size(size, parent_size);
            // Also after an error, for the end of the file.
            let closed = image.close();
            resized?;
            return Ok(closed?);
        }
    }
    Ok(image.close()?)
}

/// Opens the image: alone, as blocks may move, and the tables with them.
///
/// With `-f` others may read it meanwhile, if only its footers change: the storage manager makes a base larger while a guest
/// reads it. A tapdisk that writes to an image has taken the footer from the end, and places blocks there.
fn open(args: &Args) -> Result<Image<ReadWrite>, Failure> {
    if args.fast {
        let image = Image::open_writable_beside(&args.name)?;
        if image.footer_origin() == FooterOrigin::End && image.is_laid_out()? {
            return made_ready(image);
        }
    }
    let mut image = Image::open_writable(&args.name)?;
    image.trim_tail()?;
    Ok(image)
}

/// The size of the parent's disk, which must not show where this one grows.
fn parent_size(image: &Image<ReadWrite>, args: &Args) -> Result<ByteCount, Failure> {
    match chain_options().open_parents(image, &args.name) {
        Ok(parents) => Ok(parents.as_ref().map_or(ByteCount(0), Chain::size)),
        // Logical volumes of parents may be inactive. The storage manager never has a parent that is larger.
        Err(error @ ChainError::Parent { .. }) if errno_of(&error) == Errno::NOENT => {
            output::to_stderr(&format!("{NAME}: {error}; it is taken to be no larger"));
            Ok(ByteCount(0))
        }
        Err(error) => Err(error.into()),
    }
}
