//! `coalesce`: a run of images merged into its lowest.

mod describe;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use coalesce_worker::program::Moving;
use coalesce_worker::{Abort, Budget, Coalesce, Direction, Ending, Limits, MergeOptions, Request};
use vhd_core::{Image, Layer, Lock, ReadOnly};

use super::Format;
use crate::cli::{Context, Status};
use crate::error::CommandError;
use describe::{Merged, Planned};

/// Merge an image, and all down to an ancestor, into that ancestor in one pass
///
/// If NODE has children in its folder they become children of the ancestor. If it has none, the ancestor's file takes
/// NODE's name, size and hidden state. Merged files are deleted, also those that are volumes or snapshots themselves; what
/// is to stay is not merged. Refused where an image of the run has another child.
/// Every leaf reads as before, whatever the moment of a crash, and the same command can be given again.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vhd-tool coalesce leaf.vhd --dry-run
  vhd-tool coalesce leaf.vhd --into base.vhd")]
pub(crate) struct Args {
    /// The newest image to merge
    node: PathBuf,
    /// The image to merge into; the parent of NODE if not given
    #[arg(long, value_name = "ANCESTOR")]
    into: Option<PathBuf>,
    /// Only merge: relink, rename and delete nothing
    #[arg(long)]
    keep: bool,
    /// Print what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Merge into NODE instead, which then no longer needs the others; NODE and its children keep their names
    #[arg(long, conflicts_with = "keep")]
    up: bool,
    /// Threads that move data [default: as many as there are cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    #[command(flatten)]
    moving: Moving,
    #[command(flatten)]
    format: Format,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    let repository = context.repository_of(&args.node)?;
    let direction = if args.up { Direction::Up } else { Direction::Down };
    let request = Request { node: args.node.clone(), into: args.into.clone(), direction, keep: args.keep };
    let coalesce = Coalesce::prepare(&repository, &request)?;
    let notes = visible_volumes(&coalesce);
    let planned = Planned::of(&coalesce, notes)?;
    let output = context.output(args.format.json);
    if args.dry_run {
        output.data(&planned, |out| planned.print(out))?;
        return Ok(Status::Done);
    }
    for note in &planned.notes {
        context.note(note);
    }
    let progress = context.progress("coalesce", Some(coalesce.plan().data));
    let former_target = coalesce.target().to_path_buf();
    let (budget, abort) = (Budget::new(Limits::default()), Abort::new());
    let options = MergeOptions {
        threads: args.threads,
        progress: &|done| progress.set(done),
        merged: &|| (),
        budget: &budget,
        abort: &abort,
        method: args.moving.copy_method,
        detect_zeroes: args.moving.detect_zeroes,
        checkpoint_every: None,
    };
    let outcome = coalesce.execute(&options)?;
    progress.finish();

    let merged = Merged::of(&outcome, &former_target, planned.notes);
    output.outcome(&merged, |out| merged.print(out))?;
    Ok(Status::Done)
}

/// Tells of volumes that somebody may know by their name, and that do not stay what they are.
fn visible_volumes(coalesce: &Coalesce<'_>) -> Vec<String> {
    let is_visible = |image: &Image<ReadOnly>| !image.footer().hidden();
    let mut notes = Vec::new();
    // The node itself is what the merge was asked for.
    for image in coalesce.sources().iter().skip(1).filter_map(Layer::as_vhd) {
        if *coalesce.ending() != Ending::Keep && is_visible(image) {
            notes.push(format!("{} is no hidden base but a volume, and is deleted", image.path().display()));
        }
    }
    let target = coalesce.target();
    // A raw disk cannot tell, and is no volume of its own.
    if let Ok(image) = Image::open(target, Lock::None)
        && is_visible(&image)
    {
        notes.push(format!("{} is no hidden base but a volume, and its content changes", target.display()));
    }
    notes
}
