//! `resize`: a larger or smaller disk.

use std::path::PathBuf;

use coalesce_worker::{Shrink, size};
use serde::Serialize;
use vhd_core::ByteCount;

use super::Format;
use crate::cli::{Context, Status};
use crate::error::CommandError;

/// Make a volume's disk larger or smaller
///
/// What is new reads as zeros. A disk does not become smaller while it, or what its parents show of it, holds data beyond
/// the new end, unless that is discarded; nor while it has children. What it held there is given back to the file system.
/// If power fails, it has the old size or the new, and everything below the smaller one.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vhd-tool resize disk.vhd 128G
  vhd-tool resize disk.vhd 32G --discard")]
pub(crate) struct Args {
    /// The volume, which nobody else has open
    file: PathBuf,
    /// The new size of the disk, in whole sectors of 512 bytes
    #[arg(value_parser = size::parse)]
    size: ByteCount,
    /// Discard what lies beyond the new end
    #[arg(long)]
    discard: bool,
    #[command(flatten)]
    format: Format,
}

#[derive(Serialize)]
struct Resized {
    file: String,
    size: u64,
    previous_size: u64,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    let shrink = if args.discard { Shrink::Discard } else { Shrink::Unused };
    let previous = context.repository_of(&args.file)?.resize_or_shrink(&args.file, args.size, shrink)?;
    let resized = Resized { file: args.file.display().to_string(), size: args.size.0, previous_size: previous.0 };
    context.output(args.format.json).outcome(&resized, |out| {
        let file = &resized.file;
        if previous == args.size {
            return writeln!(out, "{file} has {} already", size::both(previous));
        }
        writeln!(out, "resized {file}: {}, before {}", size::both(args.size), size::both(previous))
    })?;
    Ok(Status::Done)
}
