//! Merging an image into its parent and nothing else, as blktap's `vhd-util` does it.
//!
//! Whoever asks for this keeps the tree himself: he has seen to it that nobody else reads through the parent, journals what he
//! does, and afterwards links the children anew and deletes the image. So there is no repository here, and no file
//! besides the two images is looked at or made; both may be devices.
//!
//! It needs no journal. Every sector that is written to the parent is hidden by the same sector of the image above it,
//! so that all chains read the same at any moment, and to merge again writes the same once more.

use std::io;
use std::path::Path;

use vhd_core::{ByteCount, ChainOptions, FileError, FileStorage, Layer, Lock, real_path};

use crate::abort::Abort;
use crate::coalesce::{Request, free_space};
use crate::error::CoalesceError;
use crate::merge::{Merge, MergeError, MergeOptions, Moved};
use crate::plan::Plan;
use crate::record::Direction;
use crate::run::Run;
use crate::steps::space_needed;
use crate::target::Target;

/// A merge of one image into its parent: both open, locked and checked.
#[derive(Debug)]
pub struct InPlace {
    run: Run,
    target: Target,
    plan: Plan,
    /// Nobody writes to the image.
    _held: FileStorage,
}

impl InPlace {
    /// Opens and locks the image at `node` and its parent, and plans the merge. Changes nothing.
    ///
    /// # Errors
    /// Of what [`CoalesceError`] lists, whatever concerns the two images.
    pub fn prepare(node: &Path, options: &ChainOptions, abort: &Abort) -> Result<Self, CoalesceError> {
        let node = real_path(node).map_err(FileError::when(node, "open it"))?;
        let request = Request { node: node.clone(), into: None, direction: Direction::Down, keep: true };
        let found = Run::open(options, &node, &request)?.names();
        let (parent, is_raw) = found.target();
        let target = if *is_raw { Target::open_raw_beside(parent)? } else { Target::open_vhd_beside(parent)? };
        // It need not be writable: the volume manager makes such images read-only.
        let held = FileStorage::open(&node, Lock::Shared).map_err(FileError::when(&node, "lock it"))?;
        // What was found before the locks may have been replaced since.
        let run = Run::open(options, &node, &request)?;
        if run.names() != found {
            return Err(CoalesceError::Changed { node });
        }
        for image in run.sources().iter().filter_map(Layer::as_vhd) {
            abort.check().map_err(MergeError::Aborted)?;
            image.check_blocks()?;
        }
        let plan = run.plan(abort)?;
        Ok(Self { run, target, plan, _held: held })
    }

    /// What will move.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Merges. A parent that is smaller grows first.
    ///
    /// # Errors
    /// Of what [`CoalesceError`] lists, whatever concerns the two images; the parent is then a whole image as before.
    ///
    /// # Crash safety
    /// Whatever the moment, every chain reads as before, and the same can be asked for again.
    pub fn execute(mut self, options: &MergeOptions<'_>) -> Result<Moved, CoalesceError> {
        self.check_space()?;
        match self.move_data(options) {
            Ok(moved) => {
                self.target.close()?;
                Ok(moved)
            }
            Err(error) => {
                // What was written does no harm, and the parent gets its footer back. The first error is the one to tell.
                drop(self.target.close());
                Err(error)
            }
        }
    }

    fn check_space(&self) -> Result<(), CoalesceError> {
        let container = self.target.container();
        if container.has_fixed_size() {
            return Ok(());
        }
        let (needed, free) = (space_needed(self.plan.units()), free_space(container.path())?);
        if needed <= free {
            return Ok(());
        }
        Err(CoalesceError::NoSpace { path: container.path().into(), needed, free })
    }

    fn move_data(&mut self, options: &MergeOptions<'_>) -> Result<Moved, CoalesceError> {
        let Self { run, target, plan, .. } = self;
        let is_shared = target.container().is_open_elsewhere()?;
        if !is_shared {
            target.mend()?;
        } else if target.size()? < run.node().size() {
            // To make room for its tables moves blocks, which others would go on reading where they were.
            let busy =
                io::Error::new(io::ErrorKind::ResourceBusy, "open in another program, and smaller than its child");
            return Err(FileError::when(target.container().path(), "make it larger")(busy).into());
        }
        target.grow(run.node().size(), run.size_beneath())?;
        let merge = Merge {
            plan,
            units: plan.units(),
            sources: run.sources(),
            target,
            before: run.target(),
            options,
            moved_before: ByteCount(0),
            yield_note: None,
            held: &[],
        };
        Ok(merge.run(&mut |_| Ok(()))?)
    }
}
