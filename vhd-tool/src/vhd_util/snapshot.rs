//! `snapshot`: an empty child of an image.

use std::path::{Path, PathBuf};

use rustix::io::Errno;
use vhd_core::{
    BlockSize, ByteCount, Chain, FileError, FileIdentity, FileStorage, Image, KeyHash, Layer, Lock, NewImage, NewKind,
    OpenError, ParentLink, ReadOnly, Uuid, folder_of,
};

use super::new_image::{mebibytes, place};
use super::{Failure, Refused, chain_options, note_parent_outside};
use crate::disk;

/// Create an empty child of an image
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The child
    #[arg(short)]
    name: PathBuf,
    /// Its parent
    #[arg(short)]
    parent: PathBuf,
    /// Make the tables large enough for a disk of so many MiB
    #[arg(short = 'S', value_name = "MIB")]
    room: Option<u64>,
    /// The most images that the chain may have, the child counted
    #[arg(short, value_name = "DEPTH")]
    limit: Option<usize>,
    /// The parent is a raw disk
    #[arg(short = 'm')]
    raw: bool,
    /// Make a child of the parent also where that holds nothing
    #[arg(short = 'e')]
    empty: bool,
}

/// What becomes the parent.
struct Base {
    path: PathBuf,
    unique_id: Uuid,
    /// The images of its chain, itself counted, where anybody has looked.
    depth: Option<usize>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    // Nobody merges the parent away before the child is there.
    let held = FileStorage::open(&args.parent, Lock::Shared);
    let _held = held.map_err(FileError::when(&args.parent, "lock it against merging"))?;
    let (base, size, key_hash) = if args.raw { raw_base(args)? } else { vhd_base(args)? };
    // The depth on a raw disk is nobody's concern.
    if !base.unique_id.is_nil() && args.limit.is_some_and(|limit| base.depth.unwrap_or(1) >= limit) {
        return Err(Refused::image(&args.name, Errno::NOSPC, "the chain would be deeper than the limit").into());
    }
    let parent = ParentLink::new(folder_of(&args.name), &base.path, base.unique_id)?;
    let kind = NewKind::Differencing { block_size: BlockSize::DEFAULT, parent };
    let mut new = NewImage { key_hash, ..NewImage::new(size, kind) };
    if let Some(room) = args.room {
        new.room = mebibytes(room).ok_or_else(|| Refused::size(&args.name, room))?;
    }
    place(&args.name, &new)?;
    note_parent_outside(&args.name, &base.path);
    Ok(())
}

fn raw_base(args: &Args) -> Result<(Base, ByteCount, Option<KeyHash>), Failure> {
    let size = disk::open_raw(&args.parent)?.size();
    refuse_own_parent(args, &args.parent)?;
    Ok((Base { path: args.parent.clone(), unique_id: Uuid::nil(), depth: Some(1) }, size, None))
}

fn vhd_base(args: &Args) -> Result<(Base, ByteCount, Option<KeyHash>), Failure> {
    let given: Image<ReadOnly> = Image::open(&args.parent, Lock::None)?;
    if given.footer().poisoned() {
        return Err(OpenError::UnfinishedResize { path: args.parent.clone() }.into());
    }
    let (size, key_hash) = (given.footer().current_size(), given.key_hash()?);
    let is_empty = given.is_differencing() && holds_nothing(&given)?;
    let mut base = Base { path: args.parent.clone(), unique_id: given.footer().unique_id(), depth: None };
    let may_replace = args.name.exists();
    if args.limit.is_some() || may_replace || is_empty && !args.empty {
        let chain = Chain::open(&args.parent, &chain_options())?;
        if may_replace {
            chain.layers().iter().try_for_each(|layer| refuse_own_parent(args, layer.path()))?;
        }
        let skipped = if args.empty { 0 } else { skipped(chain.layers(), size)? };
        base.depth = Some(chain.layers().len() - skipped);
        if skipped > 0 {
            let layer = &chain.layers()[skipped];
            base.path = layer.path().into();
            base.unique_id = layer.as_vhd().map_or(Uuid::nil(), |image| image.footer().unique_id());
        }
    }
    Ok((base, size, key_hash))
}

/// Counts the layers at the top that hold nothing, so that a child of the next one reads the same.
fn skipped(layers: &[Layer], size: ByteCount) -> Result<usize, Failure> {
    for (index, pair) in layers.windows(2).enumerate() {
        let Layer::Vhd(image) = &pair[0] else { return Ok(index) };
        // One that ends before the image beneath it hides the rest of that.
        let hides = image.footer().current_size() < pair[1].size().min(size);
        if hides || !image.is_differencing() || !holds_nothing(image)? {
            return Ok(index);
        }
    }
    Ok(layers.len() - 1)
}

fn holds_nothing(image: &Image<ReadOnly>) -> Result<bool, Failure> {
    Ok(image.allocated_blocks().next().transpose()?.is_none())
}

/// Refuses a child that would take the place of one that it reads through.
fn refuse_own_parent(args: &Args, parent: &Path) -> Result<(), Failure> {
    let identity = |path: &Path| FileIdentity::at(path).ok();
    if identity(&args.name).is_some_and(|child| identity(parent) == Some(child)) {
        let what = "would be replaced by an image that reads through it";
        return Err(Refused::image(&args.name, Errno::INVAL, what).into());
    }
    Ok(())
}
