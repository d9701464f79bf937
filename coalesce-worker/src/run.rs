//! A run: its images, who else needs them, and the locks that keep it as it is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;
use vhd_core::{
    ByteCount, ChainOptions, FileError, FileStorage, Files, Folder, Image, Layer, Lock, StorageError, folder_of,
    real_path,
};

use crate::abort::Abort;
use crate::coalesce::Request;
use crate::delete::is_busy;
use crate::error::CoalesceError;
use crate::in_use::{lock_source, open_image};
use crate::merge::MergeError;
use crate::plan::Plan;
use crate::record::{Direction, FileId, MergeIntent};
use crate::repository::Repository;
use crate::target::Target;

/// The images of a run, as found by following the node's parents.
#[derive(Debug)]
pub(crate) struct Run {
    direction: Direction,
    /// Newest first, the target included.
    layers: Vec<Layer>,
    /// What the lowest of them reads from, and so on.
    beneath: Vec<Layer>,
}

impl Run {
    /// Opens the node, whose path has no links in it, and its ancestors down to the one that the request names.
    pub(crate) fn open(options: &ChainOptions, node: &Path, request: &Request) -> Result<Self, CoalesceError> {
        let top = Image::open(node, Lock::None)?;
        let parents = options.open_parents(&top, node)?;
        let mut parents =
            parents.ok_or_else(|| CoalesceError::NoParent { node: node.into() })?.into_layers().into_iter();
        let real = |into: &PathBuf| real_path(into).map_err(FileError::when(into, "open it"));
        let into = request.into.as_ref().map(real).transpose()?;
        let mut layers = vec![Layer::Vhd(Box::new(top))];
        loop {
            let Some(layer) = parents.next() else {
                let into = request.into.clone().unwrap_or_default();
                return Err(CoalesceError::NotAnAncestor { into, node: node.into() });
            };
            let is_last = into.as_ref().is_none_or(|into| layer.path() == into);
            layers.push(layer);
            if is_last {
                return Ok(Self { direction: request.direction, layers, beneath: parents.collect() });
            }
        }
    }

    /// Plans its merge.
    pub(crate) fn plan(&self, abort: &Abort) -> Result<Plan, CoalesceError> {
        let hidden = match self.direction {
            Direction::Down => self.target().size(),
            Direction::Up => self.size_beneath(),
        };
        Plan::new(self.sources(), self.target(), self.direction, self.node().size(), hidden, abort)
    }

    /// The images that are merged, newest first.
    pub(crate) fn sources(&self) -> &[Layer] {
        match self.direction {
            Direction::Down => &self.layers[..self.layers.len() - 1],
            Direction::Up => &self.layers[1..],
        }
    }

    /// The image that they are merged into.
    pub(crate) fn target(&self) -> &Layer {
        match self.direction {
            Direction::Down => &self.layers[self.layers.len() - 1],
            Direction::Up => &self.layers[0],
        }
    }

    /// The newest image of the run, at whose name its content is wanted.
    pub(crate) fn node(&self) -> &Layer {
        &self.layers[0]
    }

    /// Which way its data moves.
    pub(crate) fn direction(&self) -> Direction {
        self.direction
    }

    /// The size of what lies beneath the run, or zero.
    pub(crate) fn size_beneath(&self) -> ByteCount {
        self.beneath.first().map_or(ByteCount(0), Layer::size)
    }

    /// Its images, newest first.
    pub(crate) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Checks that the blocks of all images can be where they are, and have lost nothing: what is written behind one that has
    /// would hide that.
    ///
    /// # Errors
    /// The first image of which this is not so; the abort.
    pub(crate) fn check_blocks(&self, abort: &Abort) -> Result<(), CoalesceError> {
        for image in self.layers.iter().chain(&self.beneath).filter_map(Layer::as_vhd) {
            abort.check().map_err(MergeError::Aborted)?;
            image.check_blocks()?;
            image.check_not_cut()?;
        }
        Ok(())
    }

    /// What its images are called.
    pub(crate) fn names(&self) -> RunNames {
        let name = |layer: &Layer| (layer.path().to_path_buf(), layer.as_vhd().is_none());
        RunNames { direction: self.direction, layers: self.layers.iter().map(name).collect() }
    }

    /// What a journal says of its merge.
    pub(crate) fn intent(
        &self,
        repository: &Repository,
        keep: bool,
        takes_name: bool,
    ) -> Result<MergeIntent, CoalesceError> {
        let id = |layer: &Layer| FileId::of(layer, repository.relative(layer.path()));
        let (target, node) = (self.target(), self.node());
        Ok(MergeIntent {
            direction: self.direction,
            keep,
            target: id(target),
            target_length: target.container().len()?.0,
            target_hidden: is_hidden(target),
            sources: self.sources().iter().map(id).collect(),
            node_is_volume: self.direction == Direction::Down && !is_hidden(node),
            takes_name,
            beneath: self.beneath.first().map(id),
        })
    }
}

/// What the images of a run are called: enough to lock them, with none of them open.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RunNames {
    direction: Direction,
    /// Newest first, each with whether it is a raw disk.
    layers: Vec<(PathBuf, bool)>,
}

impl RunNames {
    /// The image that is merged into, and whether it is a raw disk.
    pub(crate) fn target(&self) -> &(PathBuf, bool) {
        match self.direction {
            Direction::Down => &self.layers[self.layers.len() - 1],
            Direction::Up => &self.layers[0],
        }
    }

    fn sources(&self) -> &[(PathBuf, bool)] {
        match self.direction {
            Direction::Down => &self.layers[..self.layers.len() - 1],
            Direction::Up => &self.layers[1..],
        }
    }

    /// Locks all images against everybody else that writes to them or makes children of them, and against other programs
    /// that have them open.
    pub(crate) fn lock(&self) -> Result<LockedRun, CoalesceError> {
        let (path, is_raw) = self.target();
        let target = if *is_raw { Target::open_raw(path)? } else { Target::open_vhd(path)? };
        let lock = |(path, _): &(PathBuf, bool)| lock_source(path).map(Arc::new);
        let sources = self.sources().iter().map(lock).collect::<Result<_, _>>()?;
        Ok(LockedRun { target, sources })
    }
}

/// The target, open for writing, and the locks on all other images.
#[derive(Debug)]
pub(crate) struct LockedRun {
    pub(crate) target: Target,
    pub(crate) sources: Vec<Arc<FileStorage>>,
}

fn is_hidden(layer: &Layer) -> bool {
    layer.as_vhd().is_none_or(|image| image.footer().hidden())
}

/// All files beside the images of a run.
#[derive(Debug)]
pub(crate) struct Neighbours {
    folders: Vec<Folder>,
}

impl Neighbours {
    /// Looks at the repository, and at the other folders that images of the run lie in.
    ///
    /// # Errors
    /// A folder that cannot be listed; a file that cannot be read, so that nobody knows whose child it is; the abort.
    pub(crate) fn of<'a>(
        repository: &Repository,
        paths: impl Iterator<Item = &'a Path>,
        abort: &Abort,
    ) -> Result<Self, CoalesceError> {
        let others: BTreeSet<&Path> = paths.map(folder_of).filter(|folder| *folder != repository.folder()).collect();
        let mut folders = vec![repository.scan_until(abort)?];
        for folder in others {
            folders.push(Folder::scan_while(folder, Files::All, None, &|| !abort.is_aborted())?);
        }
        folders.iter().try_for_each(check_all_known)?;
        Ok(Self { folders })
    }

    /// Every file that needs an image (nil stands for a raw disk), or may.
    pub(crate) fn children_of(&self, path: &Path, unique_id: Uuid) -> Result<BTreeSet<PathBuf>, FileError> {
        let found = self.folders.iter().flat_map(|folder| folder.dependants(path, unique_id));
        found.map(|path| path.canonicalize().map_err(FileError::when(path, "open it"))).collect()
    }

    /// Every file that needs one of these images, directly or not; they themselves left out.
    pub(crate) fn descendants_of(&self, images: &BTreeSet<PathBuf>) -> Result<BTreeSet<PathBuf>, FileError> {
        let mut found = BTreeSet::new();
        let mut open: Vec<PathBuf> = images.iter().cloned().collect();
        while let Some(path) = open.pop() {
            let unique_id = self.folders.iter().find_map(|folder| Some(folder.node(folder.find(&path)?).unique_id));
            for child in self.children_of(&path, unique_id.unwrap_or_default())? {
                if found.insert(child.clone()) {
                    open.push(child);
                }
            }
        }
        Ok(found)
    }

    /// Refuses a run in which an image other than the newest has another child than the one above it, or than those
    /// that have been relinked already.
    pub(crate) fn check_only_children(
        &self,
        run: &[(PathBuf, Uuid)],
        relinked: &BTreeSet<PathBuf>,
    ) -> Result<(), CoalesceError> {
        for pair in run.windows(2) {
            let ((above, _), (path, unique_id)) = (&pair[0], &pair[1]);
            let children = self.children_of(path, *unique_id)?;
            if let Some(child) = children.into_iter().find(|child| child != above && !relinked.contains(child)) {
                return Err(CoalesceError::OtherChild { node: path.clone(), child });
            }
        }
        Ok(())
    }
}

/// Refuses a folder in which a file may be a child of any image, and whole when it is read the next time.
pub(crate) fn check_all_known(folder: &Folder) -> Result<(), CoalesceError> {
    match folder.damaged().iter().find(|file| file.may_need_any() && file.is_unreadable()) {
        Some(file) => Err(CoalesceError::Unreadable { path: file.path.clone(), source: file.error.clone() }),
        None => Ok(()),
    }
}

/// Opens and locks a child of the node, which must be just that: one that names a copy of it, with the same id and
/// perhaps another content, is not. `None` while somebody uses it.
pub(crate) fn open_child(
    node: &Path,
    unique_id: Uuid,
    path: &Path,
) -> Result<Option<Image<vhd_core::ReadWrite>>, CoalesceError> {
    let child = match open_image(path) {
        Err(error) if is_busy(&error) => return Ok(None),
        child => child?,
    };
    if !is_child_of(&child, node, unique_id)? {
        return Err(CoalesceError::OtherChild { node: node.into(), child: path.into() });
    }
    Ok(Some(child))
}

/// Tells whether an image names the file at `parent`, which has no links in it, as its parent, and who that is.
pub(crate) fn is_child_of<Mode>(child: &Image<Mode>, parent: &Path, unique_id: Uuid) -> Result<bool, StorageError> {
    let named = child.parent_paths()?.iter().find_map(|path| path.canonicalize().ok());
    let same_id = child.header().map(vhd_core::Header::parent_unique_id) == Some(unique_id);
    Ok(same_id && named.as_deref() == Some(parent))
}
