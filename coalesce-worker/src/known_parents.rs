//! What each file of a repository was last seen to name as its parent: for the day when it cannot be read.
//!
//! A base is deleted once no image names it. A child on a file system that is not mounted, on a broken disk, or cut short
//! names nobody any more and may be whole tomorrow. So what it named is kept in the state folder, line by line:
//!
//! ```text
//!   {"file":"child.vhd","parent":{"id":"…","paths":["base.vhd"]}}   the file was seen, and named this
//!   {"file":"child.vhd","parent":null}                              it is gone, or has no parent any more
//!   {"file":"/other/child.vhd","parent":{…}}                        a child in another folder, made by us
//!   {"freed":"…"}                                                   the last child of this base was deleted by us
//! ```
//!
//! It is a hint and no truth: what a file says itself always counts. A line that is lost or torn is written again by the
//! next look. Lines are added in one write each, without a lock; only who collects writes the file anew.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vhd_core::{DiskType, Existing, FileError, Folder, Header, Image, Lock, NewFile, Node, ParentName, ReadOnly};

use crate::abort::Abort;
use crate::repository::Repository;

/// The name of the file in the state folder.
pub(crate) const PARENTS: &str = "parents";
const FLAGS: i32 = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).bits().cast_signed();
/// What is read of it.
const MOST: u64 = 64 << 20;
/// Lines beyond those that say something, before the file is written anew.
const SUPERFLUOUS: usize = 1000;

/// A parent as a child names it. Paths are relative to the repository where they lie in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Parent {
    id: Uuid,
    paths: Vec<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Seen { file: PathBuf, parent: Option<Parent> },
    Freed { freed: Uuid },
}

/// What the file says.
#[derive(Debug, Default)]
pub(crate) struct KnownParents {
    parents: HashMap<PathBuf, Parent>,
    freed: HashSet<Uuid>,
    lines: usize,
}

impl KnownParents {
    fn read(path: &Path) -> Self {
        let mut known = Self::default();
        for line in read_text(path).unwrap_or_default().lines().filter(|line| !line.is_empty()) {
            known.lines += 1;
            match serde_json::from_str(line) {
                Ok(Line::Seen { file, parent: Some(parent) }) => {
                    known.freed.remove(&parent.id);
                    known.parents.insert(file, parent);
                }
                Ok(Line::Seen { file, parent: None }) => drop(known.parents.remove(&file)),
                Ok(Line::Freed { freed }) => drop(known.freed.insert(freed)),
                // Torn.
                Err(_) => {}
            }
        }
        known
    }

    /// Tells whether the last child of a base was deleted by us, and did not just vanish.
    pub(crate) fn is_freed(&self, base: Uuid) -> bool {
        self.freed.contains(&base)
    }
}

impl Repository {
    fn known_parents_file(&self) -> PathBuf {
        self.state().join(PARENTS)
    }

    /// What is known of the parents of files.
    pub(crate) fn known_parents(&self) -> KnownParents {
        KnownParents::read(&self.known_parents_file())
    }

    /// Has files that cannot be understood count as children of those that they are known to have named.
    pub(crate) fn remember_parents(&self, folder: &mut Folder) {
        let known = self.known_parents();
        if known.parents.is_empty() {
            return;
        }
        for (child, parent) in known.parents.iter().filter(|(child, _)| child.is_absolute()) {
            if may_still_name(child, parent.id) {
                folder.remember_elsewhere(child, &self.parent_name(parent));
            }
        }
        let ids: HashSet<Uuid> = folder.nodes().map(|(_, node)| node.unique_id).filter(|id| !id.is_nil()).collect();
        folder.remember(|path| {
            let name = self.parent_name(known.parents.get(path.file_name().map(Path::new)?)?);
            // Where nobody is what it named, it may have got another parent since.
            let is_there = ids.contains(&name.unique_id) || name.unique_id.is_nil() && !name.existing.is_empty();
            is_there.then_some(name)
        });
    }

    fn parent_name(&self, Parent { id, paths }: &Parent) -> ParentName {
        let candidates: Vec<PathBuf> = paths.iter().map(|path| self.absolute(path)).collect();
        let existing = candidates.iter().filter_map(|path| path.canonicalize().ok()).collect();
        ParentName { unique_id: *id, candidates, existing }
    }

    /// Keeps that an image in another folder is a child of one here: nothing that it needs is then deleted or merged.
    ///
    /// # Errors
    /// An image that cannot be read, or is the child of nobody; a folder in which nothing can be kept.
    ///
    /// # Crash safety
    /// Nothing is promised if power fails: it is kept like a hint.
    pub fn keep_child_elsewhere(&self, child: &Path) -> Result<(), FileError> {
        let failed = |source| FileError { path: child.into(), action: "tell whose child it is", source };
        let path = child.canonicalize().map_err(failed)?;
        let parent = self.named_parent(&path).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
        let _structure = self.lock_structure()?;
        let file = self.known_parents_file();
        self.write_lines(&[Line::Seen { file: path, parent }]).map_err(FileError::when(&file, "write it"))
    }

    /// Keeps what the images of the repository name as their parents now. The collector calls it before it deletes anything.
    pub(crate) fn keep_parents(&self, folder: &Folder, abort: &Abort) {
        let known = self.known_parents();
        let mut lines = Vec::new();
        let mut seen = HashSet::new();
        for (_, node) in folder.nodes().filter(|(_, node)| node.disk_type.is_some()) {
            let Some(file) = node.path.file_name().map(PathBuf::from) else { continue };
            let parent = self.parent_of(node);
            if known.parents.get(&file) != parent.as_ref() {
                lines.push(Line::Seen { file: file.clone(), parent });
            }
            seen.insert(file);
        }
        let is_gone = |file: &&PathBuf| !seen.contains(*file) && is_gone(&self.absolute(file));
        let gone = known.parents.keys().filter(is_gone);
        lines.extend(gone.map(|file| Line::Seen { file: file.clone(), parent: None }));
        if lines.is_empty() {
            return;
        }
        // It makes the state folder, too. Without it nothing will be deleted either.
        let Ok(_structure) = self.lock_structure_until(abort) else { return };
        self.add_lines(&lines);
        if known.lines + lines.len() > 2 * (known.parents.len() + known.freed.len()) + SUPERFLUOUS {
            self.rewrite_known_parents();
        }
    }

    fn parent_of(&self, node: &Node) -> Option<Parent> {
        let name = node.parent.as_ref()?;
        let paths = name.existing.iter().map(|path| self.relative(path)).collect();
        Some(Parent { id: name.unique_id, paths })
    }

    /// Keeps what these images name as their parents, which has just changed.
    pub(crate) fn keep_parents_of<'p>(&self, images: impl IntoIterator<Item = &'p Path>) {
        let seen = |path: &Path| {
            let file = path.file_name().filter(|_| path.parent() == Some(self.folder()))?.into();
            Some(Line::Seen { file, parent: self.named_parent(path)? })
        };
        self.add_lines(&images.into_iter().filter_map(seen).collect::<Vec<_>>());
    }

    /// The parent that an image names, if it names one; `None` where the image cannot be read.
    fn named_parent(&self, path: &Path) -> Option<Option<Parent>> {
        let image: Image<ReadOnly> = Image::open(path, Lock::None).ok()?;
        let Some(header) = image.header().filter(|_| image.footer().disk_type() == DiskType::Differencing) else {
            return Some(None);
        };
        let existing = image.parent_paths().ok()?.into_iter().filter_map(|path| path.canonicalize().ok());
        let paths = existing.map(|path| self.relative(&path)).collect();
        Some(Some(Parent { id: header.parent_unique_id(), paths }))
    }

    /// Keeps that a file was deleted on purpose, and its parent has no other child.
    pub(crate) fn keep_freed(&self, file: &Path, parent: Option<Uuid>) {
        let gone = file.file_name().map(|name| Line::Seen { file: name.into(), parent: None });
        let freed = parent.filter(|id| !id.is_nil()).map(|freed| Line::Freed { freed });
        self.add_lines(&gone.into_iter().chain(freed).collect::<Vec<_>>());
    }

    /// Best effort, as whatever is lost is only a hint.
    fn add_lines(&self, lines: &[Line]) {
        if let Err(error) = self.write_lines(lines) {
            tracing::debug!(folder = %self.folder().display(), %error, "what files name as their parents is not kept");
        }
    }

    fn write_lines(&self, lines: &[Line]) -> io::Result<()> {
        let mut text = Vec::new();
        for line in lines {
            // A name that is no text is not kept.
            let Ok(line) = serde_json::to_string(line) else { continue };
            // Also after a line that was torn.
            text.extend(format!("\n{line}\n").into_bytes());
        }
        if text.is_empty() {
            return Ok(());
        }
        let mut file = File::options().create(true).append(true).custom_flags(FLAGS).open(self.known_parents_file())?;
        file.write_all(&text)
    }

    fn rewrite_known_parents(&self) {
        let KnownParents { parents, freed, .. } = self.known_parents();
        let seen = parents.into_iter().map(|(file, parent)| Line::Seen { file, parent: Some(parent) });
        let lines = seen.chain(freed.into_iter().map(|freed| Line::Freed { freed }));
        let texts: Vec<String> = lines.filter_map(|line| serde_json::to_string(&line).ok()).collect();
        let path = self.known_parents_file();
        let written = NewFile::start(&path).and_then(|new| {
            new.file().write_all_at(format!("{}\n", texts.join("\n")).as_bytes(), 0)?;
            new.publish(&path, Existing::Replace)
        });
        if let Err(error) = written {
            tracing::debug!(path = %path.display(), %error, "what files name as their parents is not kept");
        }
    }
}

/// Reads the file, if it is one: no link, and nothing that would be waited for.
fn read_text(path: &Path) -> io::Result<String> {
    let file = File::options().read(true).custom_flags(FLAGS).open(path)?;
    let mut bytes = Vec::new();
    if file.metadata()?.is_file() {
        file.take(MOST).read_to_end(&mut bytes)?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Tells whether a file is no longer there, though the folder that it was in is.
fn is_gone(path: &Path) -> bool {
    path.symlink_metadata().is_err() && path.parent().is_some_and(Path::is_dir)
}

/// Tells whether an image in another folder may still be a child of the image with this id.
fn may_still_name(child: &Path, parent: Uuid) -> bool {
    match Image::<ReadOnly>::open(child, Lock::None) {
        Ok(image) => image.header().map(Header::parent_unique_id) == Some(parent),
        Err(_) => !is_gone(child),
    }
}
