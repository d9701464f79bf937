//! The images in a folder, and who is whose parent: the forest.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use uuid::Uuid;

use crate::footer::{DiskType, FOOTER_SIZE};
use crate::gate;
use crate::header::{HEADER_SIZE, Header};
use crate::image::{Image, OpenError, ReadOnly};
use crate::new_file::folder_of;
use crate::storage::{Container, FileStorage, Lock};
use crate::units::{ByteCount, FileOffset};

/// A node of a [`Folder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(usize);

/// How a child names its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentName {
    /// The parent's unique id; nil for a raw parent.
    pub unique_id: Uuid,
    /// The paths that the child would try, in order.
    pub candidates: Vec<PathBuf>,
    /// Those of them that lead to a file, without links.
    pub existing: Vec<PathBuf>,
}

impl ParentName {
    fn new(unique_id: Uuid, candidates: Vec<PathBuf>) -> Self {
        let existing = candidates.iter().filter_map(|path| path.canonicalize().ok()).collect();
        Self { unique_id, candidates, existing }
    }
}

/// One file of a folder.
#[derive(Clone, Debug)]
pub struct Node {
    /// Its path: the folder's, as it was given, and its name.
    pub path: PathBuf,
    /// The kind of image; `None` for the raw parent of another node.
    pub disk_type: Option<DiskType>,
    /// Who it is; nil for a raw parent.
    pub unique_id: Uuid,
    /// The size of its disk.
    pub size: ByteCount,
    /// The space that its file takes.
    pub own_size: ByteCount,
    /// Whether it is an inner node of a chain, no volume.
    pub hidden: bool,
    /// Its parent, for a differencing image.
    pub parent: Option<ParentName>,
}

/// Why a folder cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot list the folder", path.display())]
pub struct FolderError {
    /// The folder.
    pub path: PathBuf,
    /// What the system answered.
    #[source]
    pub source: io::Error,
}

/// What a folder holds: images, the raw parents of those, and damaged files.
#[derive(Debug)]
pub struct Folder {
    nodes: Vec<Node>,
    parents: Vec<Option<NodeId>>,
    damaged: Vec<DamagedFile>,
}

/// A file that is no readable image.
#[derive(Debug)]
pub struct DamagedFile {
    /// Its path.
    pub path: PathBuf,
    /// What is wrong.
    pub error: OpenError,
    /// Its parent, where what is left of it still tells.
    pub parent: Option<ParentName>,
}

/// Which files of a folder to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// Those named `*.vhd` that do not start with a dot: what a person would call the images.
    Images,
    /// All of them: nobody may be harmed for being called otherwise.
    All,
}

impl Folder {
    /// Reads footer and header of every image in a folder, in parallel. A damaged one is set apart and hinders nothing;
    /// a file that is neither named like an image nor names a parent is none.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub fn scan(folder: &Path, files: Files) -> Result<Self, FolderError> {
        let failed = |source| FolderError { path: folder.into(), source };
        let mut paths = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if files == Files::All || is_named_like_an_image(&path) {
                paths.push(path);
            }
        }
        paths.sort_unstable();
        let found: Vec<_> = paths.into_par_iter().map(|path| (read_node(&path), path)).collect();
        let mut nodes = Vec::new();
        let mut damaged = Vec::new();
        for (node, path) in found {
            match node {
                Ok(node) => nodes.push(node),
                Err(error) => {
                    let parent = salvaged_parent(&path, &error);
                    if parent.is_some() || is_named_like_an_image(&path) {
                        damaged.push(DamagedFile { path, error, parent });
                    }
                }
            }
        }
        let parents = link(folder, &mut nodes);
        Ok(Self { nodes, parents, damaged })
    }

    /// The nodes, sorted by path, raw parents last.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(i, node)| (NodeId(i), node))
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// Finds a node by its path, however that is written.
    pub fn find(&self, path: &Path) -> Option<NodeId> {
        let real = path.canonicalize().ok()?;
        self.nodes.iter().position(|node| node.path.canonicalize().is_ok_and(|other| other == real)).map(NodeId)
    }

    /// The parent of a node, where it is in this folder.
    pub fn parent(&self, id: NodeId) -> Option<NodeId> {
        self.parents[id.0]
    }

    /// The nodes whose parent is this one.
    pub fn children(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        self.parents.iter().enumerate().filter(move |(_, parent)| **parent == Some(id)).map(|(child, _)| NodeId(child))
    }

    /// Lists the files that may need the image `unique_id` (nil for a raw disk) at `path`, which has no links in it:
    /// every one, damaged ones too, that names it as its parent by id or by any of its paths.
    pub fn dependants(&self, path: &Path, unique_id: Uuid) -> Vec<&Path> {
        let names_it = |parent: &ParentName| {
            (!unique_id.is_nil() && parent.unique_id == unique_id)
                || parent.existing.iter().any(|existing| existing == path)
        };
        let nodes = self.nodes.iter().map(|node| (&node.path, &node.parent));
        let all = nodes.chain(self.damaged.iter().map(|file| (&file.path, &file.parent)));
        let found = all.filter(|(_, parent)| parent.as_ref().is_some_and(names_it));
        found.map(|(path, _)| path.as_path()).collect()
    }

    /// Files that are no readable images, and why.
    pub fn damaged(&self) -> &[DamagedFile] {
        &self.damaged
    }
}

fn own_size(path: &Path) -> ByteCount {
    ByteCount(fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512))
}

fn is_named_like_an_image(path: &Path) -> bool {
    let dotted = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    !dotted && path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("vhd"))
}

/// Looks for a header where nearly every writer puts it, or where the footer says, whatever else is damaged: a relink
/// that power failed in has lost its checksum and still tells who is needed.
fn salvaged_parent(path: &Path, error: &OpenError) -> Option<ParentName> {
    let file = FileStorage::open(path, Lock::None).ok()?;
    let container = Container::new(path, Arc::new(file));
    let told = match error {
        OpenError::Header { offset, .. } => *offset,
        _ => FileOffset(0) + FOOTER_SIZE,
    };
    [told, FileOffset(0) + FOOTER_SIZE].into_iter().find_map(|at| {
        let mut bytes = [0; HEADER_SIZE.0 as usize];
        container.read_at(&mut bytes, at).ok()?;
        let header = Header::salvage(&bytes)?;
        let candidates = gate::candidates(&container, &header, folder_of(path)).ok()?;
        let unique_id = header.parent_unique_id();
        let names_one = !unique_id.is_nil() || !candidates.is_empty();
        names_one.then(|| ParentName::new(unique_id, candidates))
    })
}

fn read_node(path: &Path) -> Result<Node, OpenError> {
    let image: Image<ReadOnly> = Image::open(path, Lock::None)?;
    let parent = match image.header().filter(|_| image.is_differencing()) {
        Some(header) => Some(ParentName::new(header.parent_unique_id(), image.parent_paths()?)),
        None => None,
    };
    let footer = image.footer();
    Ok(Node {
        path: path.into(),
        disk_type: Some(footer.disk_type()),
        unique_id: footer.unique_id(),
        size: footer.current_size(),
        own_size: own_size(path),
        hidden: footer.hidden(),
        parent,
    })
}

/// Finds each node's parent: among files of its unique id the one whose path the child records, else any of them.
/// Raw parents that lie in the folder are added as nodes.
fn link(folder: &Path, nodes: &mut Vec<Node>) -> Vec<Option<NodeId>> {
    let real = |path: &Path| path.canonicalize().ok();
    let mut by_id: HashMap<Uuid, Vec<usize>> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        by_id.entry(node.unique_id).or_default().push(i);
    }
    let folder = real(folder);
    let mut raw: HashMap<PathBuf, usize> = HashMap::new();
    let mut parents = Vec::with_capacity(nodes.len());
    for child in 0..nodes.len() {
        let Some(name) = nodes[child].parent.clone() else {
            parents.push(None);
            continue;
        };
        let parent = if name.unique_id.is_nil() {
            let found = name.existing.into_iter().find(|path| path.is_file() && path.parent() == folder.as_deref());
            // A file that is called raw and is none is no parent; the chain refuses it, too.
            let found = found.filter(|path| !nodes.iter().any(|node| node.disk_type.is_some() && node.path == *path));
            found.map(|path| {
                *raw.entry(path).or_insert_with_key(|path| {
                    nodes.push(raw_node(path));
                    nodes.len() - 1
                })
            })
        } else {
            let same_id = by_id.get(&name.unique_id).map_or(&[][..], Vec::as_slice);
            match same_id {
                [] => None,
                [only] => Some(*only),
                several => {
                    let named = several
                        .iter()
                        .find(|&&i| real(&nodes[i].path).is_some_and(|path| name.existing.contains(&path)));
                    Some(*named.unwrap_or(&several[0]))
                }
            }
        };
        parents.push(parent.map(NodeId));
    }
    parents.resize(nodes.len(), None);
    parents
}

fn raw_node(path: &Path) -> Node {
    Node {
        path: path.into(),
        disk_type: None,
        unique_id: Uuid::nil(),
        size: ByteCount(fs::metadata(path).map_or(0, |metadata| metadata.len())),
        own_size: own_size(path),
        hidden: true,
        parent: None,
    }
}
