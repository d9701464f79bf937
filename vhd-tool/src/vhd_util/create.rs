//! `create`: an empty image.

use std::path::PathBuf;

use rustix::io::Errno;
use vhd_core::{BlockSize, NewImage, NewKind};

use super::new_image::{mebibytes, place};
use super::{Failure, Refused};

/// Create an empty image, in the place of a file that is there
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image
    #[arg(short)]
    name: PathBuf,
    /// The size of its disk in MiB, rounded up to 2 MiB
    #[arg(short, value_name = "MIB")]
    size: u64,
    /// Make the tables large enough for a disk of so many MiB
    #[arg(short = 'S', value_name = "MIB")]
    room: Option<u64>,
    /// All of the disk at once
    #[arg(short = 'r')]
    fixed: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let rounded = args.size.checked_next_multiple_of(2).and_then(mebibytes);
    let size = rounded.ok_or_else(|| Refused::size(&args.name, args.size))?;
    let kind = if args.fixed { NewKind::Fixed } else { NewKind::Dynamic { block_size: BlockSize::DEFAULT } };
    let mut new = NewImage::new(size, kind);
    if let Some(room) = args.room.filter(|&room| room > 0) {
        if room < args.size {
            return Err(
                Refused::image(&args.name, Errno::INVAL, "its disk is larger than what room is made for").into()
            );
        }
        new.room = mebibytes(room).ok_or_else(|| Refused::size(&args.name, room))?;
    }
    place(&args.name, &new)
}
