//! `delete`: a volume or snapshot that nobody wants any more.

use std::path::PathBuf;

use coalesce_worker::Deleted;
use serde::Serialize;

use super::Format;
use crate::cli::{Context, Status};
use crate::error::CommandError;

/// Delete a volume or snapshot
///
/// A file that other images read through stays as a hidden base until they no longer need it; any other is removed.
/// What only this volume needed is removed by the next `gc` or by a running coalesce-worker.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vhd-tool delete monday.vhd")]
pub(crate) struct Args {
    /// The volume, which nobody else has open
    volume: PathBuf,
    #[command(flatten)]
    format: Format,
}

#[derive(Serialize)]
struct Gone {
    file: String,
    removed: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    let deleted = context.repository_of(&args.volume)?.delete(&args.volume)?;
    let gone = Gone { file: args.volume.display().to_string(), removed: deleted == Deleted::Removed };
    context.output(args.format.json).outcome(&gone, |out| match deleted {
        Deleted::Removed => writeln!(out, "deleted {}", gone.file),
        Deleted::Hidden => writeln!(out, "hidden {}: other images read through it", gone.file),
    })?;
    Ok(Status::Done)
}
