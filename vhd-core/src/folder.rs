//! The images in a folder, and who is whose parent: the forest.

mod scan;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::footer::DiskType;
use crate::image::OpenError;
use crate::units::ByteCount;

use scan::Seen;

/// A node of a [`Folder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(usize);

impl NodeId {
    /// Its number: nodes are numbered from zero, in the order in which they are listed.
    pub fn index(self) -> usize {
        self.0
    }
}

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
#[derive(Clone, Debug)]
pub struct Folder {
    nodes: Vec<Node>,
    parents: Vec<Option<NodeId>>,
    children: Vec<Vec<NodeId>>,
    damaged: Vec<DamagedFile>,
    /// Nodes by their paths without links.
    by_path: HashMap<PathBuf, NodeId>,
    /// Who names whom.
    needed: HashMap<Needed, Vec<PathBuf>>,
    files: Files,
    /// What each file was found to be, for the next look.
    seen: HashMap<PathBuf, Arc<Seen>>,
}

/// What a child calls its parent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Needed {
    Id(Uuid),
    Path(PathBuf),
}

/// A file that is no readable image.
#[derive(Clone, Debug)]
pub struct DamagedFile {
    /// Its path.
    pub path: PathBuf,
    /// What is wrong.
    pub error: Arc<OpenError>,
    /// Its parent, where what is left of it still tells.
    pub parent: Option<ParentName>,
}

impl DamagedFile {
    /// Tells whether this may be a child of just any image: it cannot be read now, or is a VHD that has lost its header.
    pub fn may_need_any(&self) -> bool {
        self.parent.is_none() && (self.is_unreadable() || matches!(&*self.error, OpenError::Header { .. }))
    }

    /// Tells whether nobody knows whose child this was, if it was any: all that told it is lost.
    pub fn is_unknown(&self) -> bool {
        use io::ErrorKind::{InvalidInput, IsADirectory};
        let is_no_file = matches!(&*self.error, OpenError::Storage(error)
            if matches!(error.source.kind(), InvalidInput | IsADirectory));
        self.parent.is_none() && !is_no_file
    }

    /// Tells whether the storage failed, or a link leads nowhere, so that the file may be whole when it is read another time.
    pub fn is_unreadable(&self) -> bool {
        scan::is_unreadable(&self.error)
    }
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
        self.by_path.get(path).or_else(|| self.by_path.get(&path.canonicalize().ok()?)).copied()
    }

    /// The parent of a node, where it is in this folder.
    pub fn parent(&self, id: NodeId) -> Option<NodeId> {
        self.parents[id.0]
    }

    /// The nodes whose parent is this one.
    pub fn children(&self, id: NodeId) -> &[NodeId] {
        &self.children[id.0]
    }

    /// Lists the files that may need the image `unique_id` (nil for a raw disk) at `path`, which has no links in it:
    /// every one, damaged ones too, that names it as its parent by id or by any of its paths.
    pub fn dependants(&self, path: &Path, unique_id: Uuid) -> Vec<&Path> {
        let by_path = self.needed.get(&Needed::Path(path.into()));
        let by_id = (!unique_id.is_nil()).then(|| self.needed.get(&Needed::Id(unique_id))).flatten();
        let mut found: Vec<&Path> = by_path.into_iter().chain(by_id).flatten().map(PathBuf::as_path).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Has files that are no readable images count as children of those that they are remembered to name. `known` tells what
    /// is remembered of a file.
    pub fn remember(&mut self, known: impl Fn(&Path) -> Option<ParentName>) {
        let others = self.seen.iter().filter_map(|(path, seen)| Some((path, seen.other()?)));
        let others = others.map(|(path, error)| DamagedFile { path: path.clone(), error: error.clone(), parent: None });
        let mut found: Vec<DamagedFile> = others.filter(DamagedFile::is_unknown).collect();
        found.iter_mut().for_each(|file| file.parent = known(&file.path));
        found.retain(|file| file.parent.is_some());
        found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        for file in self.damaged.iter_mut().filter(|file| file.parent.is_none()) {
            file.parent = known(&file.path);
            found.extend(file.parent.is_some().then(|| file.clone()));
        }
        scan::add_needed(&mut self.needed, found.iter().map(|file| (&file.path, &file.parent)));
        found.retain(|file| self.damaged.iter().all(|known| known.path != file.path));
        self.damaged.extend(found);
    }

    /// Has a file in another folder count as a child of the image that it names.
    pub fn remember_elsewhere(&mut self, child: &Path, parent: &ParentName) {
        scan::add_needed(&mut self.needed, std::iter::once((&child.to_path_buf(), &Some(parent.clone()))));
    }

    /// Files that are no readable images, and why.
    pub fn damaged(&self) -> &[DamagedFile] {
        &self.damaged
    }
}
