//! The forest of a folder as a collection sees it: who counts as a child, what is left alone, what nobody needs.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use uuid::Uuid;
use vhd_core::{DiskType, Folder, NodeId};

use super::tree::{Candidate, Top};
use super::with_causes;
use crate::status::Isolated;

/// A folder, and what of it is to be left alone. Pure: nothing is looked up in the file system.
pub(crate) struct Forest<'a> {
    folder: &'a Folder,
    /// The root of the tree that each node is in.
    roots: Vec<Option<NodeId>>,
    depths: Vec<u32>,
    /// Roots of trees that are left alone, and why.
    isolated: HashMap<NodeId, String>,
    /// Nodes that nobody needs, and others whose deletion somebody else is about to do.
    gone: HashSet<NodeId>,
    garbage: Vec<NodeId>,
}

impl<'a> Forest<'a> {
    /// Judges a folder. `obsolete` are files that a journal is about to delete: they are nobody's children any more.
    pub(crate) fn of(folder: &'a Folder, obsolete: &HashSet<PathBuf>) -> Self {
        let nodes = folder.nodes().count();
        let mut forest = Self {
            folder,
            roots: vec![None; nodes],
            depths: vec![0; nodes],
            isolated: HashMap::new(),
            gone: HashSet::new(),
            garbage: Vec::new(),
        };
        forest.find_trees();
        forest.isolate();
        forest.gone.extend(folder.nodes().filter(|(_, node)| obsolete.contains(&node.path)).map(|(id, _)| id));
        forest.find_garbage();
        forest
    }

    fn find_trees(&mut self) {
        let mut open: Vec<(NodeId, NodeId, u32)> = self
            .folder
            .nodes()
            .filter(|(id, _)| self.folder.parent(*id).is_none())
            .map(|(id, _)| (id, id, 1))
            .collect();
        while let Some((id, root, depth)) = open.pop() {
            self.roots[id.index()] = Some(root);
            self.depths[id.index()] = depth;
            open.extend(self.folder.children(id).iter().map(|&child| (child, root, depth + 1)));
        }
    }

    /// Finds the trees in which something is not as it should be. They are left alone as a whole.
    fn isolate(&mut self) {
        let mut by_id: HashMap<Uuid, NodeId> = HashMap::new();
        for (id, node) in self.folder.nodes() {
            let Some(root) = self.roots[id.index()] else { continue };
            let parent_is_lost = self.folder.parent(id).is_none()
                && node.parent.as_ref().is_some_and(|parent| parent.existing.iter().all(|path| self.is_damaged(path)));
            if parent_is_lost {
                self.isolated.entry(root).or_insert_with(|| format!("{} has lost its parent", node.path.display()));
            }
            let children = self.folder.children(id);
            let is_child = |path: &&Path| children.iter().any(|child| self.folder.node(*child).path == **path);
            let others = self.folder.dependants(&node.path, node.unique_id);
            if let Some(other) = others.into_iter().find(|path| !is_child(path)) {
                let why = format!("{} names {} as its parent", other.display(), node.path.display());
                self.isolated.entry(root).or_insert(why);
            }
            if !node.unique_id.is_nil()
                && let Some(twin) = by_id.insert(node.unique_id, id)
            {
                let twin_path = self.folder.node(twin).path.display();
                let why = format!("{} and {twin_path} have the same unique id", node.path.display());
                for root in [Some(root), self.roots[twin.index()]].into_iter().flatten() {
                    self.isolated.entry(root).or_insert_with(|| why.clone());
                }
            }
        }
    }

    fn is_damaged(&self, path: &Path) -> bool {
        self.folder.damaged().iter().any(|file| file.path == path)
    }

    /// Tells whether a node's tree may be changed.
    fn is_free(&self, id: NodeId) -> bool {
        self.roots[id.index()].is_some_and(|root| !self.isolated.contains_key(&root))
    }

    /// The children of a node that are there to stay.
    fn children(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        self.folder.children(id).iter().copied().filter(|child| !self.gone.contains(child))
    }

    fn is_raw(&self, id: NodeId) -> bool {
        self.folder.node(id).disk_type.is_none()
    }

    fn find_garbage(&mut self) {
        let is_garbage = |forest: &Self, id: NodeId| {
            let node = forest.folder.node(id);
            node.hidden && !forest.is_raw(id) && forest.is_free(id) && forest.children(id).next().is_none()
        };
        let all: Vec<NodeId> = self.folder.nodes().map(|(id, _)| id).collect();
        for id in all {
            let mut next = Some(id).filter(|id| !self.gone.contains(id));
            while let Some(id) = next.filter(|&id| is_garbage(self, id)) {
                self.gone.insert(id);
                self.garbage.push(id);
                // What loses its last child by that goes, too.
                next = self.folder.parent(id);
            }
        }
    }

    /// Hidden images that nobody needs, children first.
    pub(crate) fn garbage(&self) -> Vec<PathBuf> {
        self.garbage.iter().map(|id| self.folder.node(*id).path.clone()).collect()
    }

    /// Images that no longer find their parent by its path, each with the hidden image that it is: a snapshot of a parent
    /// that was a volume gives that another name.
    pub(crate) fn strays(&self) -> Vec<(PathBuf, PathBuf)> {
        let strays = self.folder.nodes().filter_map(|(id, node)| {
            let parent = self.folder.parent(id)?;
            let named = &node.parent.as_ref()?.existing;
            let is_found = named.iter().any(|path| self.folder.find(path) == Some(parent));
            let parent = self.folder.node(parent);
            let has_twin = || self.folder.nodes().filter(|(_, it)| it.unique_id == parent.unique_id).count() > 1;
            (!is_found && parent.hidden && !parent.unique_id.is_nil() && !has_twin())
                .then(|| (node.path.clone(), parent.path.clone()))
        });
        strays.collect()
    }

    /// Images in the deepest chain.
    pub(crate) fn deepest(&self) -> u32 {
        self.folder.nodes().map(|(id, _)| self.depths[id.index()]).max().unwrap_or(0)
    }

    /// Damaged files, and images that are left alone.
    pub(crate) fn isolated(&self) -> Vec<Isolated> {
        let damaged = self.folder.damaged().iter();
        let mut isolated: Vec<Isolated> =
            damaged.map(|file| Isolated { path: file.path.clone(), reason: with_causes(&*file.error) }).collect();
        for (id, node) in self.folder.nodes() {
            let reason = match self.roots[id.index()] {
                None => "it is among its own ancestors".into(),
                Some(root) => match self.isolated.get(&root) {
                    Some(why) => why.clone(),
                    None => continue,
                },
            };
            isolated.push(Isolated { path: node.path.clone(), reason });
        }
        isolated
    }

    /// The longest runs that can be merged, tree by tree.
    pub(crate) fn candidates(&self) -> Vec<Vec<Candidate>> {
        let mut trees: HashMap<NodeId, Vec<Candidate>> = HashMap::new();
        let mut order = Vec::new();
        for (id, _) in self.folder.nodes() {
            let starts_a_run = self.can_merge_with_child(id)
                && !self.folder.parent(id).is_some_and(|parent| self.can_merge_with_child(parent));
            if let Some(root) = self.roots[id.index()].filter(|_| starts_a_run) {
                trees.entry(root).or_insert_with(|| {
                    order.push(root);
                    Vec::new()
                });
                trees.get_mut(&root).expect("entered above").extend(self.candidate_from(id));
            }
        }
        order.into_iter().filter_map(|root| trees.remove(&root)).filter(|tree| !tree.is_empty()).collect()
    }

    /// Tells whether a node is an inner one with a single child, of which nothing would be lost by merging the two.
    fn can_merge_with_child(&self, id: NodeId) -> bool {
        let mut children = self.children(id);
        self.folder.node(id).hidden
            && !self.gone.contains(&id)
            && self.is_free(id)
            && children.next().is_some()
            && children.next().is_none()
    }

    fn candidate_from(&self, lowest: NodeId) -> Option<Candidate> {
        let mut run = vec![lowest];
        let mut top = lowest;
        while self.can_merge_with_child(top) {
            top = self.children(top).next()?;
            run.push(top);
        }
        let path = |id: &NodeId| self.folder.node(*id).path.clone();
        let has_no_blocks = |id: NodeId| matches!(self.folder.node(id).disk_type, None | Some(DiskType::Fixed));
        let children: Vec<PathBuf> = self.children(top).map(|id| path(&id)).collect();
        Some(Candidate {
            images: run.iter().rev().map(path).collect(),
            top: Top { hidden: self.folder.node(top).hidden, children },
            lowest_is_raw: self.is_raw(lowest),
            lowest_has_no_blocks: has_no_blocks(lowest),
        })
    }
}
