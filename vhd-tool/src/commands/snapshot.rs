//! `snapshot`: a second volume with the content that one has now.

use std::path::{Path, PathBuf};

use coalesce_worker::Snapshotted;
use serde::Serialize;

use super::Format;
use crate::cli::{Context, Status};
use crate::error::CommandError;

/// Take a snapshot: VOLUME's file becomes a hidden base, VOLUME and SNAPSHOT are children of it
///
/// The base is named after a new uuid and lies beside them. A volume that has written nothing since its parent shares
/// that parent with the snapshot, and no base is added. Whoever looks meanwhile sees VOLUME as it was or as it will be.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vhd-tool snapshot disk.vhd monday.vhd")]
pub(crate) struct Args {
    /// The volume, which nobody else has open
    volume: PathBuf,
    /// The file to make, in the folder of the volume
    snapshot: PathBuf,
    #[command(flatten)]
    format: Format,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    take("snapshot", &args.volume, &args.snapshot, args.format, context)
}

#[derive(Serialize)]
struct Taken {
    volume: String,
    /// The snapshot or clone.
    file: String,
    /// What both are children of.
    base: String,
    new_base: bool,
}

/// Takes a snapshot or a clone, which differ in name only.
pub(super) fn take(
    what: &str,
    volume: &Path,
    new: &Path,
    format: Format,
    context: &Context,
) -> Result<Status, CommandError> {
    let (base, new_base) = match context.repository_of(volume)?.snapshot(volume, new)? {
        Snapshotted::NewBase(base) => (base, true),
        Snapshotted::SharedParent(base) => (base, false),
    };
    let text = |path: &Path| path.display().to_string();
    let taken = Taken { volume: text(volume), file: text(new), base: text(&base), new_base };
    context.output(format.json).outcome(&taken, |out| {
        let Taken { volume, file, base, .. } = &taken;
        if new_base {
            writeln!(out, "{what} of {volume} is {file}; both are children of {base}, the volume's former file")
        } else {
            writeln!(out, "{what} of {volume} is {file}; nothing was written since {base}, which both share")
        }
    })?;
    Ok(Status::Done)
}
