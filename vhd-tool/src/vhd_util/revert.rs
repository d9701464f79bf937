//! `revert`: takes a resize back.

use std::path::PathBuf;

use vhd_core::repair;

use super::Failure;

/// Take a resize back with its journal, and remove that
///
/// A journal that is damaged, or that was made for another image or before the image was used again, is refused, and
/// nothing changes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image
    #[arg(short)]
    name: PathBuf,
    /// The journal
    #[arg(short)]
    journal: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    Ok(repair::revert_resize(&args.name, &args.journal)?)
}
