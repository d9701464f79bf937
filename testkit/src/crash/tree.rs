//! Names and contents: a folder as it is, or as it could be found.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::content::{Content, Piece};

/// A file or folder, whatever its names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Inode(pub(super) u32);

impl Inode {
    /// The recorded folder itself.
    pub(super) const ROOT: Self = Self(0);
}

/// Where a name is: the folder and the name in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    pub(super) folder: Inode,
    pub(super) name: Arc<str>,
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) inode: Inode,
    pub(super) is_folder: bool,
}

/// A change of names.
#[derive(Clone, Debug)]
pub(super) enum NameChange {
    /// A new name for a file, new or not, or a new folder.
    Add { place: Place, entry: Entry },
    /// A name removed.
    Remove { place: Place, entry: Entry },
    /// A name moved, in one step, over what was there.
    Move { from: Place, entry: Entry, to: Place, replaced: Option<Entry> },
    /// Two names exchanged.
    Exchange { from: Place, entry: Entry, to: Place, other: Entry },
}

/// A change of a file's content or length.
#[derive(Clone, Debug)]
pub(super) enum DataChange {
    /// Bytes written, from `start` to the end of the last piece.
    Write { pieces: Arc<[Piece]> },
    /// A range of the file made zero.
    Zero { pieces: Arc<[Piece]> },
    /// A new length in place of `old`.
    SetLen { old: u64, len: u64 },
}

/// How much of a change is on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Portion {
    /// Nothing.
    Nothing,
    /// All.
    Whole,
    /// The length that a write leads to, and none of its data.
    Length,
    /// Some of the [units](DataChange::units).
    Units(Arc<[bool]>),
}

/// Sectors of the pages that a file system makes zero as a whole.
const PAGE: u64 = 8;

impl DataChange {
    /// The parts that can persist one without the other.
    pub(super) fn units(&self) -> usize {
        match self {
            Self::Write { pieces } => pieces.len(),
            Self::Zero { pieces } => match (pieces.first(), pieces.last()) {
                (Some(first), Some(last)) => (last.sector / PAGE - first.sector / PAGE + 1) as usize,
                _ => 0,
            },
            Self::SetLen { .. } => 1,
        }
    }

    /// Makes the change, or a part of it.
    pub(super) fn apply(&self, content: &mut Content, portion: &Portion) {
        match (self, portion) {
            (_, Portion::Nothing) => {}
            (Self::SetLen { len, .. }, _) => content.set_len(*len),
            (Self::Write { pieces }, Portion::Length) => {
                let end = pieces.last().map_or(0, Piece::end);
                content.set_len(content.len().max(end));
            }
            (Self::Write { pieces }, Portion::Units(chosen)) => {
                pieces
                    .iter()
                    .zip(chosen.iter())
                    .filter(|(_, chosen)| **chosen)
                    .for_each(|(piece, _)| content.put(piece));
            }
            (Self::Write { pieces }, Portion::Whole) => pieces.iter().for_each(|piece| content.put(piece)),
            (Self::Zero { pieces }, _) => {
                let len = content.len();
                let first = pieces.first().map_or(0, |piece| piece.sector / PAGE);
                let chosen = |piece: &Piece| match portion {
                    Portion::Units(chosen) => chosen[(piece.sector / PAGE - first) as usize],
                    _ => true,
                };
                pieces.iter().filter(|piece| chosen(piece)).for_each(|piece| content.put(piece));
                // What is beyond the end stays there: a hole of this kind never lengthens a file.
                content.set_len(len);
            }
        }
    }
}

/// Names and contents.
#[derive(Clone, Debug, Default)]
pub(super) struct Tree {
    pub(super) names: BTreeMap<Place, Entry>,
    pub(super) files: HashMap<Inode, Arc<Content>>,
}

impl Tree {
    /// Makes a change of names, and tells whether it could be made: what it starts from must be as it was.
    pub(super) fn apply_name(&mut self, change: &NameChange) -> bool {
        let at = |place: &Place| self.names.get(place).copied();
        match change {
            NameChange::Add { place, entry } => {
                let free = at(place).is_none();
                if free {
                    self.names.insert(place.clone(), *entry);
                }
                free
            }
            NameChange::Remove { place, entry } => {
                let there = at(place) == Some(*entry) && !(entry.is_folder && self.list(entry.inode).next().is_some());
                if there {
                    self.names.remove(place);
                }
                there
            }
            NameChange::Move { from, entry, to, replaced } => {
                let there = at(from) == Some(*entry) && at(to) == *replaced;
                if there {
                    self.names.remove(from);
                    self.names.insert(to.clone(), *entry);
                }
                there
            }
            NameChange::Exchange { from, entry, to, other } => {
                let there = at(from) == Some(*entry) && at(to) == Some(*other);
                if there {
                    self.names.insert(from.clone(), *other);
                    self.names.insert(to.clone(), *entry);
                }
                there
            }
        }
    }

    /// Makes a change of a file.
    pub(super) fn apply_data(&mut self, inode: Inode, change: &DataChange, portion: &Portion) {
        if *portion != Portion::Nothing {
            change.apply(Arc::make_mut(self.files.entry(inode).or_default()), portion);
        }
    }

    /// Lists a folder, in the order of names.
    pub(super) fn list(&self, folder: Inode) -> impl Iterator<Item = (&str, Entry)> {
        let first = Place { folder, name: "".into() };
        self.names
            .range(first..)
            .take_while(move |(place, _)| place.folder == folder)
            .map(|(p, entry)| (&*p.name, *entry))
    }

    /// Lists all that can be reached, folders before what is in them.
    pub(super) fn walk(&self) -> Vec<(String, Entry)> {
        let mut found = Vec::new();
        self.walk_into(Inode::ROOT, "", &mut found);
        found
    }

    fn walk_into(&self, folder: Inode, path: &str, found: &mut Vec<(String, Entry)>) {
        for (name, entry) in self.list(folder) {
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
            found.push((path.clone(), entry));
            if entry.is_folder {
                self.walk_into(entry.inode, &path, found);
            }
        }
    }

    /// Gives a file's content, empty if nothing has ever been written.
    pub(super) fn content(&self, inode: Inode) -> Arc<Content> {
        self.files.get(&inode).cloned().unwrap_or_default()
    }

    /// Tells folders apart by a hash of names, which names are one file, and contents.
    pub(super) fn identity(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let mut seen = HashMap::new();
        for (path, entry) in self.walk() {
            let count = seen.len();
            let number = *seen.entry(entry.inode).or_insert(count);
            let content = self.files.get(&entry.inode).map_or((0, 0), |content| content.identity());
            (path, entry.is_folder, number, content).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Finds a path in the folder.
    pub(super) fn find(&self, path: &str) -> Option<Entry> {
        let root = Entry { inode: Inode::ROOT, is_folder: true };
        path.split('/')
            .filter(|name| !name.is_empty())
            .try_fold(root, |folder, name| self.names.get(&Place { folder: folder.inode, name: name.into() }).copied())
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (path, entry) in self.walk() {
            let (len, sum) = self.content(entry.inode).identity();
            let kind = if entry.is_folder { "/" } else { "" };
            writeln!(f, "  {path}{kind} {len} bytes, {sum:016x}")?;
        }
        Ok(())
    }
}
