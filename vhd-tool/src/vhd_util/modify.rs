//! `modify`: another parent, another end, or nothing left in it.

use std::path::{Path, PathBuf};

use rustix::io::Errno;
use vhd_core::{
    ByteCount, Chain, FileError, FileIdentity, Image, Layer, Lock, OpenError, ParentLink, ReadOnly, ReadWrite, Uuid,
    folder_of, repair,
};

use super::new_image::is_device;
use super::{Failure, Refused, chain_options, made_ready, note_parent_outside, open_alone, open_writable};
use crate::disk;

/// Change the parent of an image, where it ends, or drop all that it holds
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub(super) struct Args {
    /// The image
    #[arg(short)]
    name: PathBuf,
    /// Its new parent
    #[arg(short, group = "change")]
    parent: Option<PathBuf>,
    /// The new parent is a raw disk
    #[arg(short = 'm', requires = "parent")]
    raw: bool,
    /// The bytes of the file or device that it takes, the footer at their end
    #[arg(short, value_name = "BYTES", group = "change")]
    size: Option<u64>,
    /// Drop all that it holds
    #[arg(short = 'z', group = "change")]
    zero: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if let Some(parent) = &args.parent {
        let mut image = open_whole(&args.name)?;
        let link = link(args, &image, parent)?;
        let linked = image.relink_in_place(&link);
        // Also after an error, for the end of the file.
        let closed = image.close();
        linked?;
        closed?;
        note_parent_outside(&args.name, parent);
    }
    if args.zero {
        open_alone(&args.name)?.clear()?;
    }
    if let Some(size) = args.size {
        let image = if is_device(&args.name) { open_writable(&args.name) } else { open_alone(&args.name) };
        image?.set_physical_size(ByteCount(size))?;
    }
    Ok(())
}

/// Opens an image. A header that power failed in, when it was changed the last time, is repaired first: whoever wants
/// another parent in it would have to wait for ever.
fn open_whole(path: &Path) -> Result<Image<ReadWrite>, Failure> {
    match Image::open_writable_beside(path) {
        Err(OpenError::Header { .. }) => {}
        opened => return made_ready(opened?),
    }
    let backup = is_device(path).then(std::env::temp_dir);
    let options = repair::Options { backup, parents: chain_options().parents, ..repair::Options::default() };
    let repaired = repair::file(path, &options)?;
    let image = Image::open_writable_beside(path)?;
    if let Some(undo) = repaired.undo {
        std::fs::remove_file(&undo).map_err(FileError::when(&undo, "remove it"))?;
    }
    Ok(image)
}

fn link(args: &Args, image: &Image<ReadWrite>, parent: &Path) -> Result<ParentLink, Failure> {
    let unique_id = if args.raw {
        disk::open_raw(parent)?;
        Uuid::nil()
    } else {
        let found: Image<ReadOnly> = Image::open(parent, Lock::None)?;
        if found.footer().current_size() > image.footer().current_size() {
            return Err(refused(args, "is smaller than its new parent"));
        }
        found.footer().unique_id()
    };
    check_no_cycle(args, parent)?;
    Ok(ParentLink::new(folder_of(&args.name), parent, unique_id)?)
}

/// Refuses a parent that reads through the image. One whose own parents are not there cannot: they would have to be.
fn check_no_cycle(args: &Args, parent: &Path) -> Result<(), Failure> {
    let identity = |path: &Path| FileIdentity::at(path).ok();
    let own = identity(&args.name);
    let is_own = |path: &Path| own.is_some() && identity(path) == own;
    let chain = if args.raw { None } else { Chain::open(parent, &chain_options()).ok() };
    if is_own(parent) || chain.is_some_and(|chain| chain.layers().iter().map(Layer::path).any(is_own)) {
        return Err(refused(args, "would be its own parent"));
    }
    Ok(())
}

fn refused(args: &Args, what: &str) -> Failure {
    Refused::image(&args.name, Errno::INVAL, what).into()
}
