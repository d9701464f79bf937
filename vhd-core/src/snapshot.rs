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
use crate::folder::{Files, Folder, FolderError};
use crate::footer::Timestamp;
use crate::gate::FileIdentity;
use crate::image::{Image, OpenError, ReadError};
use crate::metadata::{LinkError, MetadataError, ParentLink};
use crate::new_file::{Existing, FileError, folder_of, sync_folder};
use crate::storage::{FileStorage, Lock, StorageError};
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
    #[error(transparent)]
    File(#[from] FileError),
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
    // Not the link that leads to it: its file is to get another name.
    let volume = &volume.canonicalize().map_err(FileError::when(volume, "open it"))?;
    let folder = folder_of(volume);
    refuse_unfinished(volume, finish_interrupted(folder)?)?;
    let same_folder = folder_of(snapshot).canonicalize().is_ok_and(|other| other == folder);
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
        // Nobody merges the parent away meanwhile.
        let _held =
            FileStorage::open(&parent, Lock::Shared).map_err(FileError::when(&parent, "lock it against merging"))?;
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
    let result: Result<(), SnapshotError> = (|| {
        let base_name = PathBuf::from(format!("{base_id}.vhd"));
        let link = ParentLink::to_named(&base_name, image.footer().unique_id(), Timestamp::now())?;
        let prepare = |path: &Path| -> Result<(), SnapshotError> {
            create_file(path, &child_of(&image, link.clone()), Existing::Keep)?;
            copy_owner(volume, path)
        };
        prepare(&prepared_volume)?;
        // Tells whoever looks that this process lives. Without it they would find that out from the volume's own lock.
        let _held = FileStorage::open(&prepared_volume, Lock::Exclusive).ok();
        prepare(&prepared_snapshot)?;
        fs::hard_link(volume, &base).map_err(FileError::when(&base, "give the volume's file its new name"))?;
        sync_folder(folder).map_err(FileError::when(folder, "sync the folder"))?;
        Ok(fs::rename(&prepared_volume, volume)
            .map_err(FileError::when(volume, "put the new child in the volume's place"))?)
    })();
    if let Err(error) = result {
        // What cannot be taken back now is taken back by the next snapshot.
        let _ = take_back(folder, base_id, volume);
        return Err(error);
    }
    sync_folder(folder).map_err(FileError::when(folder, "sync the folder"))?;
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
    let forest = Folder::scan(folder, Files::All)?;
    match forest.dependants(volume, image.footer().unique_id()).first() {
        Some(child) => Err(SnapshotError::HasChild { path: volume.into(), child: child.to_path_buf() }),
        None => Ok(()),
    }
}

/// Refuses a volume whose own interrupted snapshot could be neither finished nor taken back.
fn refuse_unfinished(volume: &Path, unfinished: Vec<Unfinished>) -> Result<(), SnapshotError> {
    match unfinished.into_iter().find(|unfinished| unfinished.volume.as_deref() == Some(volume)) {
        Some(unfinished) => Err(unfinished.error),
        None => Ok(()),
    }
}

fn copy_owner(from: &Path, to: &Path) -> Result<(), SnapshotError> {
    let metadata = fs::metadata(from).map_err(FileError::when(from, "read its owner"))?;
    let ours = fs::metadata(to).map_err(FileError::when(to, "read its owner"))?;
    if (metadata.uid(), metadata.gid()) != (ours.uid(), ours.gid()) {
        chown(to, Some(metadata.uid()), Some(metadata.gid()))
            .map_err(FileError::when(to, "give it the volume's owner"))?;
    }
    Ok(fs::set_permissions(to, metadata.permissions())
        .map_err(FileError::when(to, "give it the volume's permissions"))?)
}

fn show_snapshot(folder: &Path, prepared: &Path, snapshot: &Path) -> Result<(), SnapshotError> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, prepared, CWD, snapshot, RenameFlags::NOREPLACE)
        .map_err(|errno| FileError::when(snapshot, "give the snapshot its name")(errno.into()))?;
    Ok(sync_folder(folder).map_err(FileError::when(folder, "sync the folder"))?)
}

fn remove_if_there(path: &Path) -> Result<(), SnapshotError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(FileError::when(path, "remove it")(error).into()),
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
    sync_folder(folder).map_err(FileError::when(folder, "sync the folder"))?;
    remove_if_there(&Prepared::path(folder, base_id, Role::Volume, volume))
}

fn prepared_files(folder: &Path) -> Result<Vec<Prepared>, SnapshotError> {
    let listed = fs::read_dir(folder).and_then(|entries| {
        entries.map(|entry| Ok(Prepared::parse(&entry?.file_name()))).collect::<io::Result<Vec<_>>>()
    });
    Ok(listed.map_err(FileError::when(folder, "list the folder"))?.into_iter().flatten().collect())
}

/// An interrupted snapshot that could be neither finished nor taken back. It hinders nobody but its volume.
#[derive(Debug)]
pub struct Unfinished {
    /// The file that waits.
    pub prepared: PathBuf,
    /// The volume, where its file still waits to be replaced.
    pub volume: Option<PathBuf>,
    /// Why.
    pub error: SnapshotError,
}

/// Completes or takes back every snapshot in `folder` whose process has died; those under way are left alone.
///
/// Safe to call at any time, and again after a crash of its own. Gives those with which it did not succeed.
///
/// # Errors
/// A folder that cannot be listed.
pub fn finish_interrupted(folder: &Path) -> Result<Vec<Unfinished>, SnapshotError> {
    let prepared = prepared_files(folder)?;
    let mut unfinished = Vec::new();
    for found in &prepared {
        let path = Prepared::path(folder, found.base_id, found.role, Path::new(&found.name));
        let target = folder.join(&found.name);
        let waits_for_volume = |other: &Prepared| other.role == Role::Volume && other.base_id == found.base_id;
        let result = match found.role {
            Role::Volume => take_back_if_dead(folder, found.base_id, &path, &target),
            Role::Snapshot if prepared.iter().any(waits_for_volume) => Ok(()),
            Role::Snapshot => show_if_dead(folder, found.base_id, &path, &target),
        };
        // Where the file is gone, its own process, or another like us, has come first.
        if let Err(error) = result
            && path.exists()
        {
            let volume = (found.role == Role::Volume).then_some(target);
            unfinished.push(Unfinished { prepared: path, volume, error });
        }
    }
    Ok(unfinished)
}

fn take_back_if_dead(folder: &Path, base_id: Uuid, prepared: &Path, volume: &Path) -> Result<(), SnapshotError> {
    if !volume.exists() {
        // Deleted since. Its data, if it had got its second name already, stays under that.
        return take_back(folder, base_id, volume);
    }
    // A living process holds its prepared file. The volume itself is touched only if that is free: whoever wants to use
    // it must not find it busy because somebody has looked.
    let _prepared = match FileStorage::open(prepared, Lock::Exclusive) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return Ok(()),
        Err(error) => return Err(FileError::when(prepared, "lock it")(error).into()),
    };
    let _volume = match Image::open_writable(volume) {
        Ok(image) => image,
        Err(error) if is_locked(&error) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    // Before the locks were ours, the process may have got on: then this is the new child, and nothing is to be taken back.
    if prepared.exists() { take_back(folder, base_id, volume) } else { Ok(()) }
}

fn show_if_dead(folder: &Path, base_id: Uuid, prepared: &Path, snapshot: &Path) -> Result<(), SnapshotError> {
    let base = Image::open_writable(&base_path(folder, base_id));
    // A list made while files appear can lack the volume's, which was there first. Looked at again, under the lock, it
    // does not: as long as that file waits, nothing is to be shown.
    let waits_for_volume = |other: &Prepared| other.role == Role::Volume && other.base_id == base_id;
    if !prepared.exists() || prepared_files(folder)?.iter().any(waits_for_volume) {
        return Ok(());
    }
    let mut base = match base {
        Ok(base) => base,
        Err(error) if is_locked(&error) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    base.set_hidden(true)?;
    show_snapshot(folder, prepared, snapshot)
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
