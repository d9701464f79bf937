//! Looking at the files of a folder, and finding out who is whose parent.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rayon::prelude::*;
use uuid::Uuid;

use super::{DamagedFile, Files, Folder, FolderError, Needed, Node, NodeId, ParentName};
use crate::footer::{DiskType, FOOTER_SIZE};
use crate::gate;
use crate::header::{HEADER_SIZE, Header};
use crate::image::{Image, OpenError, ReadOnly};
use crate::new_file::folder_of;
use crate::storage::{Container, FileStamp, FileStorage, Lock};
use crate::units::{ByteCount, FileOffset};

/// A file that changed less than this before it was read may have changed again without another time on it: some file systems
/// count in seconds, and the clock of a server may be behind ours.
const SETTLED: Duration = Duration::from_secs(60);

/// What was found at a path.
#[derive(Debug)]
pub(super) struct Seen {
    stamp: Option<Stamp>,
    what: What,
}

#[derive(Debug)]
enum What {
    Image {
        disk_type: DiskType,
        unique_id: Uuid,
        size: ByteCount,
        hidden: bool,
        parent: Option<Named>,
    },
    Damaged {
        error: Arc<OpenError>,
        parent: Option<Named>,
    },
    /// Neither an image nor named like one.
    Other(Arc<OpenError>),
}

/// A parent as a child names it, wherever that may lead.
#[derive(Clone, Debug)]
struct Named {
    unique_id: Uuid,
    candidates: Vec<PathBuf>,
}

/// What changes when a file is written to or replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    file: FileStamp,
}

impl Stamp {
    /// Takes the stamp of a file; `None` where a later change may not show in it.
    fn of(metadata: &Metadata) -> Option<Self> {
        // A file that was restored has the times of its content, but the change of its inode is new.
        let changed = UNIX_EPOCH + Duration::from_secs(metadata.ctime().try_into().ok()?);
        let age = SystemTime::now().duration_since(changed).ok()?;
        let stamp = Self { device: metadata.dev(), file: FileStamp::of(metadata) };
        (age > SETTLED && metadata.is_file()).then_some(stamp)
    }
}

/// The names in a folder, so that paths into it need not be looked up one by one.
struct Names {
    folder: PathBuf,
    /// Whether each is a link.
    entries: HashMap<OsString, bool>,
}

impl Names {
    fn read(folder: &Path) -> io::Result<Self> {
        let entries = fs::read_dir(folder)?.map(|entry| {
            let entry = entry?;
            Ok((entry.file_name(), entry.file_type()?.is_symlink()))
        });
        Ok(Self { folder: folder.canonicalize()?, entries: entries.collect::<io::Result<_>>()? })
    }

    /// Where a path leads, without links; `None` where nothing is.
    fn real(&self, path: &Path) -> Option<PathBuf> {
        let name = path.file_name().filter(|_| path.parent().is_some_and(|folder| folder == self.folder));
        match name.map(|name| self.entries.get(name)) {
            Some(Some(false)) => Some(path.into()),
            Some(None) => None,
            Some(Some(true)) | None => path.canonicalize().ok(),
        }
    }
}

impl Folder {
    /// Reads footer and header of every image in a folder, in parallel. A damaged one is set apart and hinders nothing;
    /// a file that is neither named like an image nor names a parent is none.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub fn scan(folder: &Path, files: Files) -> Result<Self, FolderError> {
        Self::scan_while(folder, files, None, &|| true)
    }

    /// As [`scan`](Self::scan), of the same folder again; files that have not changed since are not read.
    ///
    /// # Errors
    /// As [`scan`](Self::scan).
    pub fn rescan(&self, folder: &Path) -> Result<Self, FolderError> {
        Self::scan_while(folder, self.files, Some(self), &|| true)
    }

    /// As [`scan`](Self::scan), or as [`rescan`](Self::rescan) of what was found `before`, for as long as `go_on` says so: it
    /// is asked again and again, by many threads.
    ///
    /// # Errors
    /// As [`scan`](Self::scan); [`io::ErrorKind::Interrupted`] once it said no.
    pub fn scan_while(
        folder: &Path,
        files: Files,
        before: Option<&Self>,
        go_on: &(dyn Fn() -> bool + Sync),
    ) -> Result<Self, FolderError> {
        let failed = |source| FolderError { path: folder.into(), source };
        let names = Names::read(folder).map_err(failed)?;
        let mut paths: Vec<PathBuf> = names.entries.keys().map(|name| folder.join(name)).collect();
        paths.retain(|path| files == Files::All || is_named_like_an_image(path));
        paths.sort_unstable();
        let check = || if go_on() { Ok(()) } else { Err(failed(io::ErrorKind::Interrupted.into())) };
        let look = |path| check().map(|()| look_at(path, before)).transpose();
        let found: Vec<(PathBuf, ByteCount, Arc<Seen>)> =
            paths.into_par_iter().filter_map(look).collect::<Result<_, _>>()?;

        let mut nodes = Vec::new();
        let mut damaged = Vec::new();
        let mut seen = HashMap::with_capacity(found.len());
        for (path, own_size, file) in found {
            check()?;
            match &file.what {
                What::Image { disk_type, unique_id, size, hidden, parent } => nodes.push(Node {
                    path: path.clone(),
                    disk_type: Some(*disk_type),
                    unique_id: *unique_id,
                    size: *size,
                    own_size,
                    hidden: *hidden,
                    parent: parent.as_ref().map(|named| named.resolve(&names)),
                }),
                What::Damaged { error, parent } => damaged.push(DamagedFile {
                    path: path.clone(),
                    error: error.clone(),
                    parent: parent.as_ref().map(|named| named.resolve(&names)),
                }),
                What::Other(_) => {}
            }
            seen.insert(path, file);
        }
        let mut by_path: HashMap<PathBuf, NodeId> = HashMap::with_capacity(nodes.len());
        for (i, node) in nodes.iter().enumerate() {
            check()?;
            by_path.extend(
                names.real(&names.folder.join(node.path.file_name().unwrap_or_default())).map(|path| (path, NodeId(i))),
            );
        }
        let parents = link(&names, &mut nodes, &mut by_path);
        let mut children = vec![Vec::new(); nodes.len()];
        for (child, parent) in parents.iter().enumerate() {
            if let Some(parent) = parent {
                children[parent.0].push(NodeId(child));
            }
        }
        let needed = needed(&nodes, &damaged);
        Ok(Self { nodes, parents, children, damaged, by_path, needed, files, seen })
    }
}

impl Named {
    fn resolve(&self, names: &Names) -> ParentName {
        let real = |path: &PathBuf| {
            // Children name parents relative to the folder as it was given.
            let inside = path.file_name().filter(|_| folder_of(path) == names.folder);
            names.real(&inside.map_or_else(|| path.clone(), |name| names.folder.join(name)))
        };
        let existing = self.candidates.iter().filter_map(real).collect();
        ParentName { unique_id: self.unique_id, candidates: self.candidates.clone(), existing }
    }
}

/// Looks at a file, unless it is what it was before; `None` for one that has gone meanwhile.
fn look_at(path: PathBuf, before: Option<&Folder>) -> Option<(PathBuf, ByteCount, Arc<Seen>)> {
    let metadata = fs::metadata(&path);
    let stamp = metadata.as_ref().ok().and_then(Stamp::of);
    let own_size = ByteCount(metadata.as_ref().map_or(0, |metadata| metadata.blocks() * 512));
    if let Some(known) = before.and_then(|before| before.seen.get(&path))
        && known.stamp.is_some()
        && known.stamp == stamp
    {
        return Some((path, own_size, known.clone()));
    }
    let what = match read_image(&path) {
        Ok(image) => image,
        Err(error) => {
            let parent = salvaged_parent(&path, &error);
            if fs::symlink_metadata(&path).is_err() {
                return None;
            }
            // A file that cannot be read now may be an image whatever its name. Of devices many never can.
            let may_be_one =
                is_unreadable(&error) && !is_missing(&error) && metadata.as_ref().map_or(true, Metadata::is_file);
            if parent.is_some() || is_named_like_an_image(&path) || may_be_one {
                What::Damaged { error: Arc::new(error), parent }
            } else {
                What::Other(Arc::new(error))
            }
        }
    };
    Some((path, own_size, Arc::new(Seen { stamp, what })))
}

/// Tells whether the storage failed, so that a file may be whole when it is read another time.
pub(super) fn is_unreadable(error: &OpenError) -> bool {
    use io::ErrorKind::{InvalidInput, IsADirectory, UnexpectedEof};
    matches!(error, OpenError::Storage(error)
        if !matches!(error.source.kind(), InvalidInput | IsADirectory | UnexpectedEof))
}

/// Tells whether nothing is there: the name is a link to a file that is away.
fn is_missing(error: &OpenError) -> bool {
    matches!(error, OpenError::Storage(error) if error.source.kind() == io::ErrorKind::NotFound)
}

impl Seen {
    /// Why the file is no image, where it is none and not even a file with an image's name.
    pub(super) fn other(&self) -> Option<&Arc<OpenError>> {
        match &self.what {
            What::Other(error) => Some(error),
            What::Image { .. } | What::Damaged { .. } => None,
        }
    }
}

fn needed(nodes: &[Node], damaged: &[DamagedFile]) -> HashMap<Needed, Vec<PathBuf>> {
    let mut needed = HashMap::new();
    let nodes = nodes.iter().map(|node| (&node.path, &node.parent));
    add_needed(&mut needed, nodes.chain(damaged.iter().map(|file| (&file.path, &file.parent))));
    needed
}

/// Adds whom files name as their parents.
pub(super) fn add_needed<'a>(
    needed: &mut HashMap<Needed, Vec<PathBuf>>,
    files: impl Iterator<Item = (&'a PathBuf, &'a Option<ParentName>)>,
) {
    for (path, parent) in files {
        let Some(parent) = parent else { continue };
        let id = (!parent.unique_id.is_nil()).then_some(Needed::Id(parent.unique_id));
        for key in id.into_iter().chain(parent.existing.iter().cloned().map(Needed::Path)) {
            needed.entry(key).or_default().push(path.clone());
        }
    }
}

fn is_named_like_an_image(path: &Path) -> bool {
    let dotted = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    !dotted && path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("vhd"))
}

/// Looks for a header where nearly every writer puts it, or where the footer says, whatever else is damaged: a relink
/// that power failed in has lost its checksum and still tells who is needed.
fn salvaged_parent(path: &Path, error: &OpenError) -> Option<Named> {
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
        names_one.then_some(Named { unique_id, candidates })
    })
}

fn read_image(path: &Path) -> Result<What, OpenError> {
    let image: Image<ReadOnly> = Image::open(path, Lock::None)?;
    let parent = match image.header().filter(|_| image.is_differencing()) {
        Some(header) => Some(Named { unique_id: header.parent_unique_id(), candidates: image.parent_paths()? }),
        None => None,
    };
    let footer = image.footer();
    Ok(What::Image {
        disk_type: footer.disk_type(),
        unique_id: footer.unique_id(),
        size: footer.current_size(),
        hidden: footer.hidden(),
        parent,
    })
}

/// Finds each node's parent: among files of its unique id the one whose path the child records, else any of them.
/// Raw parents that lie in the folder are added as nodes.
fn link(names: &Names, nodes: &mut Vec<Node>, by_path: &mut HashMap<PathBuf, NodeId>) -> Vec<Option<NodeId>> {
    let mut by_id: HashMap<Uuid, Vec<usize>> = HashMap::new();
    for (i, node) in nodes.iter().enumerate() {
        by_id.entry(node.unique_id).or_default().push(i);
    }
    let mut raw = Vec::new();
    let mut parents = Vec::with_capacity(nodes.len());
    for node in nodes.iter() {
        let parent = node.parent.as_ref().and_then(|name| {
            if name.unique_id.is_nil() {
                let found = name.existing.iter().find(|path| path.is_file() && path.parent() == Some(&names.folder))?;
                let new = NodeId(nodes.len() + raw.len());
                let id = *by_path.entry(found.clone()).or_insert_with(|| {
                    raw.push(raw_node(found));
                    new
                });
                // A file that is called raw and is none is no parent; the chain refuses it, too.
                return (id.0 >= nodes.len()).then_some(id);
            }
            match by_id.get(&name.unique_id).map_or(&[][..], Vec::as_slice) {
                [] => None,
                [only] => Some(NodeId(*only)),
                several => {
                    let of_id = |id: &&NodeId| several.contains(&id.0);
                    let named = name.existing.iter().filter_map(|path| by_path.get(path)).find(of_id);
                    Some(named.copied().unwrap_or(NodeId(several[0])))
                }
            }
        });
        parents.push(parent);
    }
    nodes.extend(raw);
    parents.resize(nodes.len(), None);
    parents
}

fn raw_node(path: &Path) -> Node {
    let metadata = fs::metadata(path);
    Node {
        path: path.into(),
        disk_type: None,
        unique_id: Uuid::nil(),
        size: ByteCount(metadata.as_ref().map_or(0, Metadata::len)),
        own_size: ByteCount(metadata.as_ref().map_or(0, |metadata| metadata.blocks() * 512)),
        hidden: true,
        parent: None,
    }
}
