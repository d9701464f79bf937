//! `repair`: the footers, anew.

use std::path::PathBuf;

use vhd_core::Image;

use super::Failure;

/// Write both footers anew
///
/// Nothing else changes, but for a batmap whose checksum is wrong. Other damage is the business of `vhd-tool repair`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image
    #[arg(short)]
    name: PathBuf,
    /// Make them from the copy at the start, be the one at the end whole or not
    #[arg(short)]
    backup: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut image = Image::open_writable(&args.name)?;
    if args.backup {
        image.renew_footers_from_copy()?;
    } else {
        image.renew_footers()?;
    }
    Ok(image.close()?)
}
