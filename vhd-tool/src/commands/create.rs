//! `create`: a new image, empty or the child of another.

use std::path::{Path, PathBuf};

use serde::Serialize;
use vhd_core::{
    BlockSize, ByteCount, Chain, CreateError, FileStorage, Layer, Lock, NewImage, NewKind, ParentLink, SECTOR_SIZE,
    Uuid, create_file, folder_of,
};

use super::{Format, destination};
use crate::cli::{Context, Status};
use crate::disk;
use crate::error::{CommandError, Refusal};
use crate::output::to_stderr;
use coalesce_worker::Repository;
use coalesce_worker::size::{self, SizeError};

/// Create a new image: empty, or a child of another one
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vhd-tool create disk.vhd --size 64G
  vhd-tool create child.vhd --parent disk.vhd
  vhd-tool create child.vhd --parent disk.img --parent-raw")]
pub(crate) struct Args {
    /// The image to make
    file: PathBuf,
    /// The size of the disk; a child has that of its parent, and may be given a larger one
    ///
    /// With a suffix KiB, MiB, GiB or TiB it is rounded up to a multiple of 2 MiB, as xapi's tool does.
    #[arg(long, value_parser = parse_size, required_unless_present = "parent")]
    size: Option<ByteCount>,
    /// The kind of image
    #[arg(long = "type", value_name = "TYPE", conflicts_with = "parent", default_value = "dynamic")]
    kind: Kind,
    /// The size of a block; a child has that of its parent
    #[arg(long, value_name = "SIZE", value_parser = size::parse_block_size, conflicts_with = "parent")]
    block_size: Option<BlockSize>,
    /// Make a child of this image
    #[arg(long)]
    parent: Option<PathBuf>,
    /// The parent is a raw disk, whatever its content looks like
    #[arg(long, requires = "parent")]
    parent_raw: bool,
    /// Replace FILE if it exists
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Grows as it is written
    Dynamic,
    /// Has room for the whole disk
    Fixed,
}

fn parse_size(text: &str) -> Result<ByteCount, SizeError> {
    let size = size::parse(text)?;
    let block = u64::from(BlockSize::DEFAULT.get());
    Ok(if text.trim().ends_with("iB") { ByteCount(size.0.next_multiple_of(block)) } else { size })
}

#[derive(Serialize)]
struct Created {
    file: String,
    uuid: Uuid,
    size: u64,
    parent: Option<String>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    // Nobody merges the parent away before the child is there.
    let held = args
        .parent
        .as_ref()
        .map(|parent| FileStorage::open(parent, Lock::Shared).map_err(Refusal::io(parent, "lock it against merging")));
    let _held = held.transpose()?;
    let new = match (&args.parent, args.size) {
        (Some(parent), size) => child(args, parent, size, context)?,
        (None, size) => NewImage::new(size.unwrap_or_default(), kind(args)?),
    };
    let existing = destination::existing(&args.file, args.force)?;
    create_file(&args.file, &new, existing).map_err(|error| match error {
        CreateError::Size { .. } | CreateError::BlockSize { .. } => CommandError::usage(error),
        other => other.into(),
    })?;
    if let Some(parent) = &args.parent {
        tell_folder_of(parent, &args.file, context);
    }

    let created = Created {
        file: args.file.display().to_string(),
        uuid: new.unique_id,
        size: new.size.0,
        parent: args.parent.as_ref().map(|parent| parent.display().to_string()),
    };
    context.output(args.format.json).outcome(&created, |out| {
        let Created { file, uuid, parent, .. } = &created;
        let of = parent.as_ref().map_or(String::new(), |parent| format!(", child of {parent}"));
        writeln!(out, "created {file}: {}, uuid {uuid}{of}", size::both(new.size))
    })?;
    Ok(Status::Done)
}

/// Has the repository of a parent in another folder know of its child: whoever deletes or merges there looks at no other folder.
fn tell_folder_of(parent: &Path, child: &Path, context: &Context) {
    let real = |path: &Path| path.canonicalize().ok();
    let (Some(parent), Some(child)) = (real(parent), real(child)) else { return };
    if parent.parent() == child.parent() || !parent.is_file() {
        return;
    }
    let told = Repository::look_at(folder_of(&parent), context.chain_options())
        .and_then(|repository| repository.keep_child_elsewhere(&child));
    if let Err(error) = told {
        let folder = folder_of(&parent).display();
        to_stderr(&format!(
            "warning: {error}: whoever deletes or merges images in {folder} does not know of this child"
        ));
    }
}

fn kind(args: &Args) -> Result<NewKind, CommandError> {
    match (args.kind, args.block_size) {
        (Kind::Fixed, Some(_)) => Err(CommandError::usage(Refusal::BlocksOfFixed)),
        (Kind::Fixed, None) => Ok(NewKind::Fixed),
        (Kind::Dynamic, block_size) => Ok(NewKind::Dynamic { block_size: block_size.unwrap_or(BlockSize::DEFAULT) }),
    }
}

fn child(args: &Args, parent: &Path, size: Option<ByteCount>, context: &Context) -> Result<NewImage, CommandError> {
    // The whole chain is opened: a child of what cannot be read is of no use.
    let chain = if args.parent_raw {
        Chain::from_layers(vec![Layer::Raw(disk::open_raw(parent)?)])
    } else {
        Chain::open(parent, &context.chain_options())?
    };
    destination::refuse_own_source(&args.file, &chain)?;
    let folder = args.file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    warn_of_other_folder(folder, args, parent, context);
    let (unique_id, block_size) = match chain.top() {
        Layer::Vhd(image) => {
            if !image.footer().hidden() {
                let (parent, file) = (parent.display(), args.file.display());
                context
                    .note(&format!("{parent} is no hidden base: whatever is written to it changes what {file} reads"));
            }
            let block_size = image.header().map_or(BlockSize::DEFAULT, vhd_core::Header::block_size);
            (image.footer().unique_id(), block_size)
        }
        Layer::Raw(_) => (Uuid::nil(), BlockSize::DEFAULT),
    };
    let parent_size = ByteCount(chain.size().0.next_multiple_of(SECTOR_SIZE));
    let size = size.unwrap_or(parent_size);
    if size < parent_size {
        let (file, parent) = (args.file.clone(), parent.into());
        return Err(CommandError::usage(Refusal::SmallerThanParent { file, size, parent, parent_size }));
    }
    let parent = ParentLink::new(folder, parent, unique_id)?;
    Ok(NewImage::new(size, NewKind::Differencing { block_size, parent }))
}

fn warn_of_other_folder(folder: &Path, args: &Args, parent: &Path, context: &Context) {
    let Some((folder, real_parent)) = folder.canonicalize().ok().zip(parent.canonicalize().ok()) else { return };
    if !real_parent.starts_with(&folder) {
        let root = real_parent.parent().unwrap_or(Path::new("/")).display();
        let file = args.file.display();
        context.note(&format!("the parent is in another folder: {file} opens only with --parent-root {root}"));
    }
}
