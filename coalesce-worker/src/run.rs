//! A run: its images, who else needs them, and the locks that keep it as it is.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use vhd_core::{ByteCount, FileError, FileStorage, Files, Folder, Image, Layer, Lock, ReadWrite, finish_interrupted};

use crate::coalesce::Request;
use crate::error::CoalesceError;
use crate::target::Target;

/// The images of a run, as found by following the node's parents.
#[derive(Debug)]
pub(crate) struct Run {
    /// Newest first.
    pub(crate) sources: Vec<Layer>,
    pub(crate) target: Layer,
    /// The size of the target's own parent, or zero.
    pub(crate) beneath: ByteCount,
}

impl Run {
    /// Opens the node, whose path has no links in it, and its ancestors down to the one to merge into.
    pub(crate) fn open(node: &Path, request: &Request) -> Result<Self, CoalesceError> {
        let top = Image::open(node, Lock::None)?;
        let parents = request.options.open_parents(&top, node)?;
        let mut parents =
            parents.ok_or_else(|| CoalesceError::NoParent { node: node.into() })?.into_layers().into_iter();
        let mut sources = vec![Layer::Vhd(Box::new(top))];
        let real = |into: &PathBuf| into.canonicalize().map_err(FileError::when(into, "open it"));
        let into = request.into.as_ref().map(real).transpose()?;
        let target = loop {
            match parents.next() {
                Some(layer) if into.as_ref().is_none_or(|into| layer.path() == into) => break layer,
                Some(layer) => sources.push(layer),
                None => {
                    let into = request.into.clone().unwrap_or_default();
                    return Err(CoalesceError::NotAnAncestor { into, node: node.into() });
                }
            }
        };
        let beneath = parents.next().map_or(ByteCount(0), |layer| layer.size());
        Ok(Self { sources, target, beneath })
    }

    fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.sources.iter().chain([&self.target])
    }

    /// The paths of its images, newest first.
    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.layers().map(|layer| layer.path().to_path_buf()).collect()
    }

    fn folders(&self) -> BTreeSet<&Path> {
        self.layers().filter_map(|layer| layer.path().parent()).collect()
    }

    /// Finishes snapshots whose process has died, in every folder of the run. What cannot be finished hinders only who
    /// needs it: its files count as children.
    pub(crate) fn finish_interrupted(&self) -> Result<(), CoalesceError> {
        for folder in self.folders() {
            finish_interrupted(folder)?;
        }
        Ok(())
    }

    /// Locks all of its images against everybody else that writes to them or makes children of them.
    pub(crate) fn lock(&self) -> Result<(Vec<FileStorage>, Target), CoalesceError> {
        let lock = |layer: &Layer| {
            let path = layer.path();
            FileStorage::open_writable(path).map_err(FileError::when(path, "lock it"))
        };
        let sources = self.sources.iter().map(lock).collect::<Result<_, _>>()?;
        let target = match &self.target {
            Layer::Vhd(_) => Target::open_vhd(self.target.path())?,
            Layer::Raw(_) => Target::open_raw(self.target.path())?,
        };
        Ok((sources, target))
    }

    /// Reads the folders of all its images.
    pub(crate) fn neighbours(&self) -> Result<Neighbours, CoalesceError> {
        let folders = self.folders().into_iter();
        Ok(Neighbours { folders: folders.map(|folder| Folder::scan(folder, Files::All)).collect::<Result<_, _>>()? })
    }
}

/// All files beside the images of a run.
#[derive(Debug)]
pub(crate) struct Neighbours {
    folders: Vec<Folder>,
}

impl Neighbours {
    /// Every file that needs a layer, or may.
    pub(crate) fn children_of(&self, layer: &Layer) -> Result<BTreeSet<PathBuf>, CoalesceError> {
        let unique_id = layer.as_vhd().map_or(Uuid::nil(), |image| image.footer().unique_id());
        let found = self.folders.iter().flat_map(|folder| folder.dependants(layer.path(), unique_id));
        Ok(found.map(|path| path.canonicalize().map_err(FileError::when(path, "open it"))).collect::<Result<_, _>>()?)
    }

    /// A file other than `child` that needs a layer.
    pub(crate) fn other_child(&self, layer: &Layer, child: &Path) -> Result<Option<PathBuf>, CoalesceError> {
        Ok(self.children_of(layer)?.into_iter().find(|other| other != child))
    }
}

/// Opens and locks the children of the node, each of which must be just that: one that names a copy of it, with the same
/// id and perhaps another content, is not.
pub(crate) fn open_children(node: &Layer, paths: &[PathBuf]) -> Result<Vec<Image<ReadWrite>>, CoalesceError> {
    let unique_id = node.as_vhd().map(|image| image.footer().unique_id());
    let open = |path: &PathBuf| {
        let child = Image::open_writable(path)?;
        let parent = child.parent_paths()?.iter().find_map(|path| path.canonicalize().ok());
        let same_id = child.header().map(vhd_core::Header::parent_unique_id) == unique_id;
        if !same_id || parent.as_deref() != Some(node.path()) {
            return Err(CoalesceError::OtherChild { node: node.path().into(), child: path.clone() });
        }
        Ok(child)
    };
    paths.iter().map(open).collect()
}
