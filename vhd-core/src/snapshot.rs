//! Snapshots and clones: a volume's file becomes a hidden base, and the volume and its twin are children of it.
//!
//! ```text
//!                        V ──────▶ (its parent)                 before
//!   V ──▶ U.vhd hidden ──────────▶ (its parent)                 after
//!   S ──▶ U.vhd
//! ```
//!
//! Both children are made beforehand under names that start with a dot and say what they are for, `.U.volume.V` and
//! `.U.snapshot.S`. Then V gets its second name, `U.vhd`, and one rename puts the new child in its place: V's content
//! never changes and V is never missing. The last rename shows S. A process that dies between the first rename and the
//! last leaves `.U.snapshot.S` behind, which is complete, and [`finish_interrupted`] does the rest; one that dies before
//! leaves `.U.volume.V`, and it is taken back.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::block_size::BlockSize;
use crate::chain::{ChainError, ChainOptions};
use crate::create::{CreateError, NewImage, NewKind, create_file};
use crate::folder::{Folder, FolderError};
use crate::footer::Timestamp;
use crate::gate::FileIdentity;
use crate::image::{Image, OpenError, ReadError};
use crate::metadata::{LinkError, MetadataError, ParentLink};
use crate::new_file::{Existing, folder_of, sync_folder};
use crate::storage::StorageError;
use crate::write::ReadWrite;

/// What a snapshot did to the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Snapshotted {
    /// The volume's file is now this hidden base.
    NewBase(PathBuf),
    /// The volume had written nothing since this, its parent, which it now shares with the snapshot.
    SharedParent(PathBuf),
}

/// Why a snapshot was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The volume or one of its parents cannot be opened.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A BAT cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A new image cannot be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The base cannot be hidden.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The folder cannot be listed.
    #[error(transparent)]
    Folder(#[from] FolderError),
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
    /// Only volumes have snapshots.
    #[error("{}: a hidden base, not a volume; make a child of it with create --parent", path.display())]
    Hidden {
        /// The image.
        path: PathBuf,
    },
    /// The volume's file cannot become a base under another name: a child knows it by this one.
    #[error("{}: {} is a child of it, and would no longer find it", path.display(), child.display())]
    HasChild {
        /// The image.
        path: PathBuf,
        /// The child.
        child: PathBuf,
    },
    /// A child finds its parent in its own folder.
    #[error("{}: must be in the folder of {}", snapshot.display(), volume.display())]
    OtherFolder {
        /// The volume.
        volume: PathBuf,
        /// The snapshot asked for.
        snapshot: PathBuf,
    },
}

impl From<OpenError> for SnapshotError {
    fn from(error: OpenError) -> Self {
        Self::Chain(error.into())
    }
}

impl From<LinkError> for SnapshotError {
    fn from(error: LinkError) -> Self {
        Self::Create(error.into())
    }
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> SnapshotError {
    move |source| SnapshotError::Io { path: path.into(), action, source }
}

/// The dot names of a snapshot that is under way.
#[derive(Debug, PartialEq, Eq)]
struct Prepared {
    base_id: Uuid,
    role: Role,
    name: OsString,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Volume,
    Snapshot,
}

impl Role {
    const fn infix(self) -> &'static str {
        match self {
            Self::Volume => ".volume.",
            Self::Snapshot => ".snapshot.",
        }
    }
}

impl Prepared {
    fn path(folder: &Path, base_id: Uuid, role: Role, target: &Path) -> PathBuf {
        let mut name = OsString::from(format!(".{base_id}{}", role.infix()));
        name.push(target.file_name().unwrap_or_default());
        folder.join(name)
    }

    fn parse(name: &OsStr) -> Option<Self> {
        let rest = name.as_bytes().strip_prefix(b".")?;
        let base_id = Uuid::parse_str(std::str::from_utf8(rest.get(..36)?).ok()?).ok()?;
        [Role::Volume, Role::Snapshot].into_iter().find_map(|role| {
            let name = rest[36..].strip_prefix(role.infix().as_bytes())?;
            Some(Self { base_id, role, name: OsStr::from_bytes(name).to_owned() })
        })
    }
}

fn base_path(folder: &Path, base_id: Uuid) -> PathBuf {
    folder.join(format!("{base_id}.vhd"))
}

/// Takes a snapshot of the volume in file `volume`, as a new file `snapshot` in the same folder; a clone is the same.
///
/// A volume that has written nothing since its parent shares that parent and gets no new level.
///
/// # Errors
/// What [`SnapshotError`] lists. A volume that somebody writes to is locked and refused.
///
/// # Crash safety
/// The volume reads the same throughout. The snapshot is there whole or not at all; what a crash leaves half done,
/// [`finish_interrupted`] completes or takes back.
pub fn snapshot(volume: &Path, snapshot: &Path, options: &ChainOptions) -> Result<Snapshotted, SnapshotError> {
    let folder = folder_of(volume);
    finish_interrupted(folder)?;
    let same_folder =
        folder.canonicalize().ok().zip(folder_of(snapshot).canonicalize().ok()).is_some_and(|(a, b)| a == b);
    if !same_folder || snapshot.file_name().is_none() {
        return Err(SnapshotError::OtherFolder { volume: volume.into(), snapshot: snapshot.into() });
    }
    if fs::symlink_metadata(snapshot).is_ok() {
        return Err(CreateError::Exists { path: snapshot.into() }.into());
    }
    let mut image = Image::<ReadWrite>::open_writable(volume)?;
    let parents = options.open_parents(&image, volume)?;
    if image.footer().hidden() {
        return Err(SnapshotError::Hidden { path: volume.into() });
    }
    let parent = parents.as_ref().map(|chain| chain.top().path().to_path_buf());
    if let Some(parent) = parent
        && image.allocated_blocks().next().transpose()?.is_none()
    {
        let unique_id = image.header().expect("it has a parent").parent_unique_id();
        let link = ParentLink::new(folder, &parent, unique_id)?;
        create_file(snapshot, &child_of(&image, link), Existing::Keep)?;
        return Ok(Snapshotted::SharedParent(parent));
    }
    refuse_children(folder, volume, &image)?;

    let base_id = Uuid::new_v4();
    let base = base_path(folder, base_id);
    let prepared_volume = Prepared::path(folder, base_id, Role::Volume, volume);
    let prepared_snapshot = Prepared::path(folder, base_id, Role::Snapshot, snapshot);
    let result = (|| {
        let base_name = PathBuf::from(format!("{base_id}.vhd"));
        let link = ParentLink::to_named(&base_name, image.footer().unique_id(), Timestamp::now())?;
        for prepared in [&prepared_volume, &prepared_snapshot] {
            create_file(prepared, &child_of(&image, link.clone()), Existing::Keep)?;
            copy_owner(volume, prepared)?;
        }
        fs::hard_link(volume, &base).map_err(io_error(&base, "give the volume's file its new name"))?;
        sync_folder(folder).map_err(io_error(folder, "sync the folder"))?;
        fs::rename(&prepared_volume, volume).map_err(io_error(volume, "put the new child in the volume's place"))
    })();
    if let Err(error) = result {
        // What cannot be taken back now is taken back by the next snapshot.
        let _ = take_back(folder, base_id, volume);
        return Err(error);
    }
    sync_folder(folder).map_err(io_error(folder, "sync the folder"))?;
    image.set_hidden(true)?;
    show_snapshot(folder, &prepared_snapshot, snapshot)?;
    Ok(Snapshotted::NewBase(base))
}

fn child_of(image: &Image<ReadWrite>, parent: ParentLink) -> NewImage {
    let block_size = image.header().map_or(BlockSize::DEFAULT, crate::header::Header::block_size);
    let key_hash = image.batmap().and_then(crate::batmap::Batmap::key_hash);
    NewImage { key_hash, ..NewImage::new(image.footer().current_size(), NewKind::Differencing { block_size, parent }) }
}

fn refuse_children(folder: &Path, volume: &Path, image: &Image<ReadWrite>) -> Result<(), SnapshotError> {
    let forest = Folder::scan(folder)?;
    let unique_id = image.footer().unique_id();
    if let Some(child) = forest.damaged().iter().find(|damaged| damaged.parent == Some(unique_id)) {
        return Err(SnapshotError::HasChild { path: volume.into(), child: child.path.clone() });
    }
    let mut names = forest.nodes().filter_map(|(_, node)| Some((node, node.parent.as_ref()?.unique_id)));
    if let Some((child, _)) = names.find(|(_, parent)| *parent == unique_id) {
        return Err(SnapshotError::HasChild { path: volume.into(), child: child.path.clone() });
    }
    Ok(())
}

fn copy_owner(from: &Path, to: &Path) -> Result<(), SnapshotError> {
    let metadata = fs::metadata(from).map_err(io_error(from, "read its owner"))?;
    let ours = fs::metadata(to).map_err(io_error(to, "read its owner"))?;
    if (metadata.uid(), metadata.gid()) != (ours.uid(), ours.gid()) {
        chown(to, Some(metadata.uid()), Some(metadata.gid())).map_err(io_error(to, "give it the volume's owner"))?;
    }
    fs::set_permissions(to, metadata.permissions()).map_err(io_error(to, "give it the volume's permissions"))
}

fn show_snapshot(folder: &Path, prepared: &Path, snapshot: &Path) -> Result<(), SnapshotError> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, prepared, CWD, snapshot, RenameFlags::NOREPLACE)
        .map_err(|errno| io_error(snapshot, "give the snapshot its name")(errno.into()))?;
    sync_folder(folder).map_err(io_error(folder, "sync the folder"))
}

fn remove_if_there(path: &Path) -> Result<(), SnapshotError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path, "remove it")(error)),
        _ => Ok(()),
    }
}

/// Undoes a snapshot whose volume still has its own file. The prepared volume goes last: it says that this is to be done.
fn take_back(folder: &Path, base_id: Uuid, volume: &Path) -> Result<(), SnapshotError> {
    let base = base_path(folder, base_id);
    let same_file =
        |a: &Path, b: &Path| FileIdentity::at(a).ok().zip(FileIdentity::at(b).ok()).is_some_and(|(a, b)| a == b);
    if same_file(&base, volume) {
        remove_if_there(&base)?;
    }
    for prepared in prepared_files(folder)?.into_iter().filter(|prepared| prepared.base_id == base_id) {
        if prepared.role == Role::Snapshot {
            remove_if_there(&Prepared::path(folder, base_id, Role::Snapshot, Path::new(&prepared.name)))?;
        }
    }
    sync_folder(folder).map_err(io_error(folder, "sync the folder"))?;
    remove_if_there(&Prepared::path(folder, base_id, Role::Volume, volume))
}

fn prepared_files(folder: &Path) -> Result<Vec<Prepared>, SnapshotError> {
    let listed = fs::read_dir(folder).and_then(|entries| {
        entries.map(|entry| Ok(Prepared::parse(&entry?.file_name()))).collect::<io::Result<Vec<_>>>()
    });
    Ok(listed.map_err(io_error(folder, "list the folder"))?.into_iter().flatten().collect())
}

/// Completes or takes back every snapshot in `folder` whose process has died; those under way are left alone.
///
/// Safe to call at any time, and again after a crash of its own.
///
/// # Errors
/// A file that cannot be read, renamed or removed.
pub fn finish_interrupted(folder: &Path) -> Result<(), SnapshotError> {
    let prepared = prepared_files(folder)?;
    for volume in prepared.iter().filter(|prepared| prepared.role == Role::Volume) {
        let path = folder.join(&volume.name);
        match Image::open_writable(&path) {
            Ok(_locked) => take_back(folder, volume.base_id, &path)?,
            Err(error) if is_locked(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    for snapshot in prepared.iter().filter(|prepared| prepared.role == Role::Snapshot) {
        let waits_for_volume = |volume: &Prepared| volume.role == Role::Volume && volume.base_id == snapshot.base_id;
        if prepared.iter().any(waits_for_volume) {
            continue;
        }
        let target = folder.join(&snapshot.name);
        match Image::open_writable(&base_path(folder, snapshot.base_id)) {
            Ok(mut base) => {
                base.set_hidden(true)?;
                let path = Prepared::path(folder, snapshot.base_id, Role::Snapshot, &target);
                show_snapshot(folder, &path, &target)?;
            }
            Err(error) if is_locked(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn is_locked(error: &OpenError) -> bool {
    matches!(error, OpenError::Storage(StorageError { source, .. }) if source.kind() == io::ErrorKind::ResourceBusy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prepared_names_read_back() {
        let id = Uuid::from_u128(5);
        for (role, name) in [(Role::Volume, "a.volume.b.vhd"), (Role::Snapshot, "größe.vhd")] {
            let path = Prepared::path(Path::new("/f"), id, role, Path::new("/f").join(name).as_path());
            let parsed = Prepared::parse(path.file_name().unwrap()).unwrap();
            assert_eq!(parsed, Prepared { base_id: id, role, name: name.into() });
        }
        assert_eq!(Prepared::parse(OsStr::new(".hidden.vhd")), None);
    }
}
