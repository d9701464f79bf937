//! `clone`: a writable copy of a volume.

use std::path::PathBuf;

use super::{Format, snapshot};
use crate::cli::{Context, Status};
use crate::error::CommandError;

/// Make a writable copy of a volume that shares all content with it
///
/// It is made as `snapshot` makes one.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vhd-tool clone disk.vhd copy.vhd")]
pub(crate) struct Args {
    /// The volume, which nobody else has open
    volume: PathBuf,
    /// The file to make, in the folder of the volume
    clone: PathBuf,
    #[command(flatten)]
    format: Format,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    snapshot::take("clone", &args.volume, &args.clone, args.format, context)
}
