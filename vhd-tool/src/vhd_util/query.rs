//! `query`: what an image is, a line for each question.

use std::io::Write;
use std::path::PathBuf;

use rustix::io::Errno;
use vhd_core::{ChainOptions, FOOTER_SIZE, Header, Image, Lock, ReadError, ReadOnly, UnfinishedResize, real_path};

use super::{Failure, Refused, chain_options, printable};
use crate::output;

/// Print what an image is, in the order in which the questions are listed here
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("question").required(true).multiple(true))]
#[expect(clippy::struct_excessive_bools, reason = "each is an option that blktap's program has")]
pub(super) struct Args {
    /// The image
    #[arg(short)]
    name: PathBuf,
    /// The size of its disk, in MiB
    #[arg(short = 'v', group = "question")]
    size: bool,
    /// The bytes of the file that it needs
    #[arg(short = 's', group = "question")]
    physical: bool,
    /// Where its parent is
    #[arg(short = 'p', group = "question")]
    parent: bool,
    /// With -p: as the image says it, whether there or not
    #[arg(short = 'u')]
    unresolved: bool,
    /// With -v and -f: as the copy of the footer at the start says it, be the one at the end whole or not
    #[arg(short = 'b')]
    backup: bool,
    /// Whether it is hidden
    #[arg(short = 'f', group = "question")]
    hidden: bool,
    /// The byte that it is marked with
    #[arg(short = 'm', group = "question")]
    marker: bool,
    /// The images of its chain
    #[arg(short = 'd', group = "question")]
    depth: bool,
    /// The blocks that it has
    #[arg(short = 'a', group = "question")]
    allocated: bool,
    /// The size in MiB that its disk can be given without moving its tables
    #[arg(short = 'S', group = "question")]
    room: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let image: Image<ReadOnly> = Image::open(&args.name, Lock::None)?;
    let backup = args.backup.then(|| image.footer_copy()).transpose()?;
    let footer = backup.as_ref().unwrap_or(image.footer());
    let mut out = output::stdout();
    // One question without an answer does not hinder the others.
    let mut failed = None;
    if args.size {
        writeln!(out, "{}", footer.current_size().0 >> 20)?;
    }
    if args.physical {
        writeln!(out, "{}", (image.used_end()? + FOOTER_SIZE).0)?;
    }
    if args.parent {
        if image.is_differencing() {
            match parent(&image, args) {
                Ok(path) => writeln!(out, "{}", printable(&path.to_string_lossy()))?,
                Err(failure) => {
                    writeln!(out, "query failed")?;
                    failed.get_or_insert(failure);
                }
            }
        } else {
            writeln!(out, "{} has no parent", printable(&args.name.to_string_lossy()))?;
        }
    }
    if args.hidden {
        writeln!(out, "hidden: {}", footer.hidden_value())?;
    }
    if args.marker {
        writeln!(out, "marker: {}", image.marker()?)?;
    }
    if args.depth {
        match depth(&image, args) {
            Ok(depth) => writeln!(out, "chain depth: {depth}")?,
            Err(failure) => {
                writeln!(out, "error checking chain depth: {}", -failure.errno().raw_os_error())?;
                failed.get_or_insert(failure);
            }
        }
    }
    if args.allocated {
        writeln!(out, "{}", allocated(&image)?)?;
    }
    if args.room {
        let room = |header: &Header| u64::from(header.max_table_entries()) * header.block_size().bytes().0;
        writeln!(out, "{}", image.header().map_or(0, room) / MEBIBYTE)?;
    }
    out.flush()?;
    failed.map_or(Ok(()), Err)
}

const MEBIBYTE: u64 = 1 << 20;

fn parent(image: &Image<ReadOnly>, args: &Args) -> Result<PathBuf, Failure> {
    let missing = |paths: &[PathBuf]| match paths.first() {
        Some(path) => Refused::image(&args.name, Errno::NOENT, format!("its parent {} is not there", path.display())),
        None => Refused::image(&args.name, Errno::INVAL, "it says of its parent nothing that can be read"),
    };
    if args.unresolved {
        let names = image.parent_names()?;
        return Ok(names.first().ok_or_else(|| missing(&names))?.clone());
    }
    let paths = image.parent_paths()?;
    Ok(paths.iter().find_map(|path| real_path(path).ok()).ok_or_else(|| missing(&paths))?)
}

fn depth(image: &Image<ReadOnly>, args: &Args) -> Result<usize, Failure> {
    let options = ChainOptions { unfinished_resize: UnfinishedResize::Accept, ..chain_options() };
    Ok(1 + options.open_parents(image, &args.name)?.map_or(0, |parents| parents.layers().len()))
}

/// Counts the blocks that the BAT places, wherever that may be.
fn allocated(image: &Image<ReadOnly>) -> Result<usize, Failure> {
    let mut count = 0;
    for found in image.allocated_blocks() {
        match found {
            Ok(_) | Err(ReadError::Block { .. }) => count += 1,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(count)
}
