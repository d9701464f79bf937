//! `set`: a field of the image.

use std::path::PathBuf;

use rustix::io::Errno;
use vhd_core::{FooterOrigin, Image, ReadWrite};

use super::{Failure, open_writable};

/// Set a field of an image
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image
    #[arg(short)]
    name: PathBuf,
    /// The field
    #[arg(short)]
    field: Field,
    /// Its value, 0 to 255
    #[arg(short)]
    value: u8,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Field {
    /// 0: a volume; 1, as any other value: an inner node of a chain
    Hidden,
    /// A byte that means something to whoever set it
    Marker,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    match set(args) {
        // What is hidden may be deleted, and that makes room.
        Err(failure) if failure.errno() == Errno::NOSPC && matches!(args.field, Field::Hidden) && args.value > 0 => {
            let mut image = Image::open_writable_beside(&args.name)?;
            image.set_hidden_in_copy(args.value).map_err(|_| failure)?;
            Ok(image.close()?)
        }
        result => result,
    }
}

fn set(args: &Args) -> Result<(), Failure> {
    let mut image = open_writable(&args.name)?;
    if matches!(args.field, Field::Hidden) && image.footer_origin() == FooterOrigin::Start && is_shared(&image)? {
        // A program that writes to the image has its blocks where a footer would go.
        image.set_hidden_in_copy(args.value)?;
        return Ok(image.close()?);
    }
    match args.field {
        Field::Hidden => image.set_hidden_value(args.value)?,
        Field::Marker => image.set_marker(args.value)?,
    }
    Ok(image.close()?)
}

fn is_shared(image: &Image<ReadWrite>) -> Result<bool, Failure> {
    Ok(image.container().is_open_elsewhere()?)
}
