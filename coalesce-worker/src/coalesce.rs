//! One coalesce, from the request to the deleted files.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use vhd_core::{
    ByteCount, ChainError, ChainOptions, FileStorage, Folder, FolderError, Image, Layer, LinkError, Lock,
    MetadataError, NodeId, OpenError, ParentLink, ReadError, ReadWrite, SnapshotError, StorageError, WriteError,
    finish_interrupted,
};

use crate::merge::{MergeError, MergeOptions, Moved, merge};
use crate::merged::is_merged;
use crate::plan::{Plan, TargetTables};
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

/// Why nothing, or not all, was done.
#[derive(Debug, thiserror::Error)]
pub enum CoalesceError {
    /// The chain cannot be opened.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// An image cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An image cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Size, hidden state or parent of an image cannot be changed.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The merge stopped.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// A folder cannot be listed.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A snapshot that was interrupted cannot be finished.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A step on a file failed.
    #[error("{}: cannot {action}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// There is nothing to merge into.
    #[error("{}: has no parent to be merged into", node.display())]
    NoParent {
        /// The image.
        node: PathBuf,
    },
    /// The image to merge into is not below the node.
    #[error("{}: is not an ancestor of {}", into.display(), node.display())]
    NotAnAncestor {
        /// The image to merge into.
        into: PathBuf,
        /// The node.
        node: PathBuf,
    },
    /// Somebody else reads through an image of the run, and would read wrong afterwards.
    #[error("{}: has another child, {}, which would read wrong afterwards", node.display(), child.display())]
    OtherChild {
        /// The image of the run.
        node: PathBuf,
        /// Its other child.
        child: PathBuf,
    },
    /// A raw disk cannot take the name of a VHD.
    #[error("{}: is a raw disk and cannot take the name of {}; merge with --keep", target.display(), node.display())]
    RawTarget {
        /// The raw disk.
        target: PathBuf,
        /// The node.
        node: PathBuf,
    },
    /// A file that moved to another folder would no longer find its own parent.
    #[error("{}: cannot take the name of {}, which is in another folder; merge with --keep", target.display(), node.display())]
    OtherFolder {
        /// The image to merge into.
        target: PathBuf,
        /// The node.
        node: PathBuf,
    },
    /// The new blocks do not fit.
    #[error("{}: the merge needs {needed} more bytes in this file system, {free} are free: {} are missing", path.display(), needed.0 - free.0)]
    NoSpace {
        /// The image to merge into.
        path: PathBuf,
        /// Space needed at least.
        needed: ByteCount,
        /// Space that is free.
        free: ByteCount,
    },
}

impl From<OpenError> for CoalesceError {
    fn from(error: OpenError) -> Self {
        Self::Chain(error.into())
    }
}

impl From<StorageError> for CoalesceError {
    fn from(error: StorageError) -> Self {
        Self::Chain(error.into())
    }
}

impl From<LinkError> for CoalesceError {
    fn from(error: LinkError) -> Self {
        Self::Metadata(error.into())
    }
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> CoalesceError {
    move |source| CoalesceError::Io { path: path.into(), action, source }
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
    /// Newest first.
    sources: Vec<Layer>,
    /// Nobody writes to the sources as long as these are held.
    locks: Vec<FileStorage>,
    target: Target,
    /// The size of the target's own parent, or zero.
    beneath: ByteCount,
    children: Vec<Image<ReadWrite>>,
    plan: Plan,
    ending: Ending,
}

impl Coalesce {
    /// Opens and locks the run, checks that it can be merged, and plans the merge. Changes nothing, but for finishing
    /// snapshots whose process has died.
    ///
    /// # Errors
    /// What [`CoalesceError`] lists.
    pub fn prepare(request: &Request) -> Result<Self, CoalesceError> {
        let node = request.node.canonicalize().map_err(io_error(&request.node, "open it"))?;
        let folder = node.parent().unwrap_or(Path::new("/"));
        finish_interrupted(folder)?;
        let (mut sources, beneath) = open_run(&node, request)?;
        let target_layer = sources.pop().ok_or_else(|| CoalesceError::NoParent { node: node.clone() })?;
        let target_path = target_layer.path().to_path_buf();
        let folders: BTreeSet<&Path> = [Some(folder), target_path.parent()].into_iter().flatten().collect();
        let forests = folders.into_iter().map(Folder::scan).collect::<Result<Vec<_>, _>>()?;

        let mut child_path = node.as_path();
        for layer in sources.iter().skip(1) {
            if let Some(child) = other_child(&forests, layer, child_path)? {
                return Err(CoalesceError::OtherChild { node: layer.path().into(), child });
            }
            child_path = layer.path();
        }
        let beside = other_child(&forests, &target_layer, child_path)?;
        let children = children_of(&forests, &node)?;
        let hidden = sources[0].as_vhd().is_some_and(|image| image.footer().hidden());
        let ending = match (request.keep, children.is_empty(), &beside) {
            (true, ..) => Ending::Keep,
            (false, false, _) => Ending::Relink(children),
            // All its children have been relinked, and the target is theirs.
            (false, true, Some(_)) if hidden => Ending::Relink(Vec::new()),
            (false, true, Some(child)) => {
                return Err(CoalesceError::OtherChild { node: target_path, child: child.clone() });
            }
            (false, true, None) => Ending::TakeName,
        };
        if ending == Ending::TakeName {
            check_can_take_name(&target_layer, &node)?;
        }

        let locks = lock_sources(&sources)?;
        let target = match &target_layer {
            Layer::Vhd(_) => Target::open_vhd(&target_path)?,
            Layer::Raw(_) => Target::open_raw(&target_path)?,
        };
        let children = match &ending {
            Ending::Relink(paths) => paths.iter().map(|path| Image::open_writable(path)).collect::<Result<_, _>>()?,
            Ending::Keep | Ending::TakeName => Vec::new(),
        };
        for image in sources.iter().filter_map(Layer::as_vhd) {
            image.check_blocks()?;
        }
        let tables = match &target {
            Target::Vhd(image) => TargetTables::of_vhd(image)?,
            Target::Raw(_) => TargetTables::of_raw(),
        };
        let plan = Plan::new(&sources, &tables, sources[0].size())?;
        if let Some(child) = beside
            && !is_merged(&plan, &sources, &target_layer)?
        {
            return Err(CoalesceError::OtherChild { node: target_path, child });
        }
        Ok(Self { sources, locks, target, beneath, children, plan, ending })
    }

    /// What will move.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The images that are merged, newest first.
    pub fn sources(&self) -> &[Layer] {
        &self.sources
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
        let stat = stat.map_err(|errno| io_error(path, "tell the free space")(errno.into()))?;
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
        self.target.grow(self.sources[0].size(), self.beneath)?;
        let moved = match merge(&self.plan, &self.sources, &self.target, options) {
            Ok(moved) => moved,
            Err(error) => {
                // What has been written does no harm; the target gets its footer back. The first error is the one to tell.
                let _ = self.target.close();
                return Err(error.into());
            }
        };

        if self.ending != Ending::Keep {
            self.target.cut(self.sources[0].size())?;
        }
        let paths: Vec<PathBuf> = self.sources.iter().map(|layer| layer.path().into()).collect();
        let mut outcome = Outcome { target: self.target().into(), moved, relinked: Vec::new(), deleted: Vec::new() };
        // What is deleted, or put aside by the rename, may be locked again.
        self.locks.clear();
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
        let hidden = self.sources[0].as_vhd().is_some_and(|image| image.footer().hidden());
        let Target::Vhd(target) = &mut self.target else {
            return Err(CoalesceError::RawTarget { target: self.target().into(), node: node.into() });
        };
        target.set_hidden(hidden)?;
        let path = target.path();
        let mode = fs::metadata(node).map_err(io_error(node, "read its permissions"))?.permissions();
        fs::set_permissions(path, mode).map_err(io_error(path, "give it the node's permissions"))?;
        fs::rename(path, node).map_err(io_error(node, "put the merged image in its place"))?;
        sync_folder_of(node)
    }
}

/// Deletes files in the order given, each durably before the next.
fn delete(paths: &[PathBuf]) -> Result<Vec<PathBuf>, CoalesceError> {
    for path in paths {
        fs::remove_file(path).map_err(io_error(path, "delete it"))?;
        sync_folder_of(path)?;
    }
    Ok(paths.to_vec())
}

fn sync_folder_of(path: &Path) -> Result<(), CoalesceError> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error(folder, "sync the folder"))
}

/// Opens the node and its ancestors down to the one to merge into, which comes last; tells the size of what is beneath.
fn open_run(node: &Path, request: &Request) -> Result<(Vec<Layer>, ByteCount), CoalesceError> {
    let top = Image::open(node, Lock::None)?;
    let parents = request.options.open_parents(&top, node)?;
    let parents = parents.ok_or_else(|| CoalesceError::NoParent { node: node.into() })?.into_layers();
    let last = match &request.into {
        None => 0,
        Some(into) => {
            let real = into.canonicalize().map_err(io_error(into, "open it"))?;
            let found = parents.iter().position(|layer| layer.path() == real);
            found.ok_or_else(|| CoalesceError::NotAnAncestor { into: into.clone(), node: node.into() })?
        }
    };
    let beneath = parents.get(last + 1).map_or(ByteCount(0), Layer::size);
    let mut run = vec![Layer::Vhd(Box::new(top))];
    run.extend(parents.into_iter().take(last + 1));
    Ok((run, beneath))
}

fn node_in<'a>(forests: &'a [Folder], path: &'a Path) -> impl Iterator<Item = (&'a Folder, NodeId)> {
    forests.iter().filter_map(move |forest| Some((forest, forest.find(path)?)))
}

/// Finds a child of a layer other than `child`; a damaged file that names it as its parent counts.
fn other_child(forests: &[Folder], layer: &Layer, child: &Path) -> Result<Option<PathBuf>, CoalesceError> {
    for (forest, id) in node_in(forests, layer.path()) {
        for other in forest.children(id) {
            let path = &forest.node(other).path;
            if path.canonicalize().map_err(io_error(path, "open it"))? != child {
                return Ok(Some(path.clone()));
            }
        }
    }
    let unique_id = layer.as_vhd().map(|image| image.footer().unique_id());
    let mut damaged = forests.iter().flat_map(Folder::damaged);
    let found = damaged.find(|damaged| unique_id.is_some() && damaged.parent == unique_id);
    Ok(found.map(|damaged| damaged.path.clone()))
}

fn children_of(forests: &[Folder], node: &Path) -> Result<Vec<PathBuf>, CoalesceError> {
    let mut children = Vec::new();
    for (forest, id) in node_in(forests, node) {
        for child in forest.children(id) {
            let path = &forest.node(child).path;
            children.push(path.canonicalize().map_err(io_error(path, "open it"))?);
        }
    }
    children.sort_unstable();
    children.dedup();
    Ok(children)
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

fn lock_sources(sources: &[Layer]) -> Result<Vec<FileStorage>, CoalesceError> {
    let lock = |layer: &Layer| {
        let path = layer.path();
        FileStorage::open(path, Lock::Shared).map_err(io_error(path, "lock it against writers"))
    };
    sources.iter().map(lock).collect()
}
