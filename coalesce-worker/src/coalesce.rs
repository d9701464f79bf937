//! One coalesce, from the request to the deleted files.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use uuid::Uuid;
use vhd_core::{
    ByteCount, ChainOptions, FileError, FileStorage, Image, Layer, ParentLink, ReadWrite, finish_interrupted,
};

use crate::error::CoalesceError;
use crate::merge::{MergeOptions, Moved, merge};
use crate::merged::is_merged;
use crate::plan::{Plan, TargetTables};
use crate::run::{Run, open_children};
use crate::target::Target;

/// What is to be merged.
#[derive(Clone, Debug)]
pub struct Request {
    /// The newest image of the run.
    pub node: PathBuf,
    /// The image that all is merged into; the node's parent where it is not given.
    pub into: Option<PathBuf>,
    /// Merge only: relink, rename and delete nothing.
    pub keep: bool,
    /// Which parents may be opened.
    pub options: ChainOptions,
}

/// What becomes of the files once all is merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing.
    Keep,
    /// These children of the node become children of the target.
    Relink(Vec<PathBuf>),
    /// The node has no children: the target takes its place.
    TakeName,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The image that all was merged into, by the name it has now.
    pub target: PathBuf,
    /// What was moved.
    pub moved: Moved,
    /// Children that were relinked to the target.
    pub relinked: Vec<PathBuf>,
    /// Files that are gone.
    pub deleted: Vec<PathBuf>,
}

/// A run that is open, locked, checked and planned.
#[derive(Debug)]
pub struct Coalesce {
    run: Run,
    /// Nobody writes to the sources, or makes children of them, as long as these are held.
    _locks: Vec<FileStorage>,
    target: Target,
    children: Vec<Image<ReadWrite>>,
    plan: Plan,
    ending: Ending,
    /// A child of the target that is not of the run; the target holds everything already.
    beside: Option<PathBuf>,
}

impl Coalesce {
    /// Opens and locks the run, checks that it can be merged, and plans the merge. Changes nothing, but for finishing
    /// snapshots whose process has died.
    ///
    /// # Errors
    /// What [`CoalesceError`] lists.
    pub fn prepare(request: &Request) -> Result<Self, CoalesceError> {
        let node = request.node.canonicalize().map_err(FileError::when(&request.node, "open it"))?;
        finish_interrupted(node.parent().unwrap_or(Path::new("/")))?;
        let found = Run::open(&node, request)?;
        found.finish_interrupted()?;
        let (locks, target) = found.lock()?;
        // What was found before the locks may have been replaced since.
        let run = Run::open(&node, request)?;
        if run.paths() != found.paths() {
            return Err(CoalesceError::Changed { node });
        }
        let (ending, beside) = choose_ending(&run, request.keep)?;
        let children = match &ending {
            Ending::Relink(paths) => open_children(&run.sources[0], paths)?,
            Ending::Keep | Ending::TakeName => Vec::new(),
        };
        for image in run.sources.iter().filter_map(Layer::as_vhd) {
            image.check_blocks()?;
        }
        let tables = match &target {
            Target::Vhd(image) => TargetTables::of_vhd(image)?,
            Target::Raw(container) => TargetTables::of_raw(container.len()?),
        };
        let plan = Plan::new(&run.sources, &tables, run.sources[0].sectors().bytes())?;
        if let Some(child) = &beside
            && !is_merged(&plan, &run.sources, &run.target)?
        {
            return Err(CoalesceError::OtherChild { node: run.target.path().into(), child: child.clone() });
        }
        Ok(Self { run, _locks: locks, target, children, plan, ending, beside })
    }

    /// What will move.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The images that are merged, newest first.
    pub fn sources(&self) -> &[Layer] {
        &self.run.sources
    }

    /// The image that they are merged into.
    pub fn target(&self) -> &Path {
        self.target.container().path()
    }

    /// What becomes of the files afterwards.
    pub fn ending(&self) -> &Ending {
        &self.ending
    }

    /// Space that is free where the target lies; `None` for a target that cannot grow (a device).
    ///
    /// # Errors
    /// What the system answers.
    pub fn free_space(&self) -> Result<Option<ByteCount>, CoalesceError> {
        if self.target.container().has_fixed_size() {
            return Ok(None);
        }
        let path = self.target();
        let stat = rustix::fs::statvfs(path);
        let stat = stat.map_err(|errno| FileError::when(path, "tell the free space")(errno.into()))?;
        Ok(Some(ByteCount(stat.f_bavail * stat.f_frsize)))
    }

    /// Merges, relinks or renames, and deletes.
    ///
    /// # Errors
    /// What [`CoalesceError`] lists. Every leaf then reads as before, and the same request can be made again.
    ///
    /// # Crash safety
    /// In this order, each durable before the next: the target grows; the merge; each child is relinked, or the target
    /// gets the node's hidden state and then, by one rename, its name; the merged files are deleted, newest first. Dying
    /// after that rename leaves merged files that nothing needs, the lowest without its parent.
    pub fn execute(mut self, options: &MergeOptions<'_>) -> Result<Outcome, CoalesceError> {
        if let Some(free) = self.free_space()?
            && free < self.plan.space_needed
        {
            let (path, needed) = (self.target().into(), self.plan.space_needed);
            return Err(CoalesceError::NoSpace { path, needed, free });
        }
        self.target.grow(self.run.sources[0].sectors().bytes(), self.run.beneath)?;
        let moved = match merge(&self.plan, &self.run.sources, &self.target, options) {
            Ok(moved) => moved,
            Err(error) => {
                // What has been written does no harm; the target gets its footer back. The first error is the one to tell.
                let _ = self.target.close();
                return Err(error.into());
            }
        };

        // Programs that know nothing of our locks may have made children since.
        let (ending, beside) = choose_ending(&self.run, self.ending == Ending::Keep)?;
        if (&ending, &beside) != (&self.ending, &self.beside) {
            self.target.close()?;
            return Err(CoalesceError::Changed { node: self.run.sources[0].path().into() });
        }
        if self.ending != Ending::Keep {
            self.target.cut(self.run.sources[0].sectors().bytes())?;
        }
        let paths: Vec<PathBuf> = self.run.sources.iter().map(|layer| layer.path().into()).collect();
        let mut outcome = Outcome { target: self.target().into(), moved, relinked: Vec::new(), deleted: Vec::new() };
        match &self.ending {
            Ending::Keep => {}
            Ending::Relink(_) => {
                for child in std::mem::take(&mut self.children) {
                    outcome.relinked.push(self.relink(child)?);
                }
                outcome.deleted = delete(&paths)?;
            }
            Ending::TakeName => {
                self.take_place_of_node(&paths[0])?;
                outcome.deleted.push(std::mem::replace(&mut outcome.target, paths[0].clone()));
                outcome.deleted.extend(delete(&paths[1..])?);
            }
        }
        self.target.close()?;
        Ok(outcome)
    }

    /// Makes an image a child of the target.
    fn relink(&self, mut child: Image<ReadWrite>) -> Result<PathBuf, CoalesceError> {
        let unique_id = match &self.target {
            Target::Vhd(image) => image.footer().unique_id(),
            Target::Raw(_) => Uuid::nil(),
        };
        let path = child.path().to_path_buf();
        let folder = path.parent().unwrap_or(Path::new("."));
        child.relink(&ParentLink::new(folder, self.target(), unique_id)?)?;
        child.close()?;
        Ok(path)
    }

    fn take_place_of_node(&mut self, node: &Path) -> Result<(), CoalesceError> {
        let hidden = self.run.sources[0].as_vhd().is_some_and(|image| image.footer().hidden());
        let Target::Vhd(target) = &mut self.target else {
            return Err(CoalesceError::RawTarget { target: self.target().into(), node: node.into() });
        };
        target.set_hidden(hidden)?;
        let path = target.path();
        let mode = fs::metadata(node).map_err(FileError::when(node, "read its permissions"))?.permissions();
        fs::set_permissions(path, mode).map_err(FileError::when(path, "give it the node's permissions"))?;
        fs::rename(path, node).map_err(FileError::when(node, "put the merged image in its place"))?;
        Ok(sync_folder_of(node)?)
    }
}

/// Deletes files in the order given, each durably before the next.
fn delete(paths: &[PathBuf]) -> Result<Vec<PathBuf>, CoalesceError> {
    for path in paths {
        fs::remove_file(path).map_err(FileError::when(path, "delete it"))?;
        sync_folder_of(path)?;
    }
    Ok(paths.to_vec())
}

fn sync_folder_of(path: &Path) -> Result<(), FileError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(FileError::when(folder, "sync the folder"))
}

/// Finds what becomes of the files, and who else reads through the target; refuses what would harm somebody.
fn choose_ending(run: &Run, keep: bool) -> Result<(Ending, Option<PathBuf>), CoalesceError> {
    let neighbours = run.neighbours()?;
    let node = &run.sources[0];
    let mut child = node.path();
    for layer in &run.sources[1..] {
        if let Some(other) = neighbours.other_child(layer, child)? {
            return Err(CoalesceError::OtherChild { node: layer.path().into(), child: other });
        }
        child = layer.path();
    }
    let beside = neighbours.other_child(&run.target, child)?;
    if keep {
        return Ok((Ending::Keep, beside));
    }
    let devices = run.sources.iter().chain([&run.target]);
    if let Some(device) = devices.into_iter().find(|layer| layer.container().has_fixed_size()) {
        return Err(CoalesceError::Device { path: device.path().into() });
    }
    let children: Vec<_> = neighbours.children_of(node)?.into_iter().collect();
    let hidden = node.as_vhd().is_some_and(|image| image.footer().hidden());
    let ending = match (children.is_empty(), &beside) {
        (false, _) => Ending::Relink(children),
        // All its children have been relinked, and the target is theirs.
        (true, Some(_)) if hidden => Ending::Relink(children),
        (true, Some(child)) => {
            return Err(CoalesceError::OtherChild { node: run.target.path().into(), child: child.clone() });
        }
        (true, None) => {
            check_can_take_name(&run.target, node.path())?;
            Ending::TakeName
        }
    };
    Ok((ending, beside))
}

fn check_can_take_name(target: &Layer, node: &Path) -> Result<(), CoalesceError> {
    let (target_path, node) = (target.path().to_path_buf(), node.to_path_buf());
    if target.as_vhd().is_none() {
        return Err(CoalesceError::RawTarget { target: target_path, node });
    }
    if target_path.parent() != node.parent() {
        return Err(CoalesceError::OtherFolder { target: target_path, node });
    }
    Ok(())
}
