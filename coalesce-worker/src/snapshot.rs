//! Snapshots and clones: a volume's file becomes a hidden base, and the volume and its twin are children of it.
//!
//! ```text
//!                        V ──────▶ (its parent)                 before
//!   V ──▶ U.vhd hidden ──────────▶ (its parent)                 after
//!   S ──▶ U.vhd
//! ```
//!
//! Both children are made beforehand, in the state folder. Then V gets its second name, `U.vhd`, and one rename puts the
//! new child in its place: V's content never changes and V is never missing. That rename decides: a process that dies
//! before it leaves a snapshot that is taken back, one that dies after it leaves one that is completed. `names.rs` tells of
//! file systems on which a file cannot have two names.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use uuid::Uuid;
use vhd_core::{
    ChainError, CreateError, Existing, FileError, FileStorage, FolderError, Image, LinkError, Lock, MetadataError,
    NewImage, OpenError, ParentLink, ReadError, ReadOnly, ReadWrite, Timestamp, create_file, folder_of,
    rename_without_replacing, sync_folder,
};

use crate::journal::Journal;
use crate::names::{put_back, remove_if_there, set_aside};
use crate::record::{FileId, Record, SnapshotIntent};
use crate::repository::{Repository, StructureLock};

/// What a snapshot did to the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Snapshotted {
    /// The volume's file is now this hidden base.
    NewBase(PathBuf),
    /// The volume had written nothing since this, its parent, which it now shares with the snapshot.
    SharedParent(PathBuf),
}

/// The second child that a volume is given beside itself.
#[derive(Debug)]
pub(crate) struct Twin<'a> {
    /// Where it goes: in the repository's folder, or to wait in its state folder.
    pub(crate) path: &'a Path,
    /// Who it is to be.
    pub(crate) unique_id: Uuid,
    /// How many images the volume's chain may have.
    pub(crate) limit: u32,
    /// Whether to look at all files for children of the volume, and to refuse one that has any.
    pub(crate) look_for_children: bool,
}

/// Why a snapshot was not taken, or an interrupted one not finished.
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
    /// The volume's chain would become deeper than is wanted, or than this repository opens.
    #[error("{}: with a new base its chain would be {depth} images deep, and at most {limit} are allowed; coalesce it first", path.display())]
    TooDeep {
        /// The volume.
        path: PathBuf,
        /// How many images its chain would have, the volume counted.
        depth: usize,
        /// How many it may have.
        limit: usize,
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

impl Repository {
    /// Takes a snapshot of the volume in file `volume`, as a new file `snapshot` in the same folder; a clone is the same.
    ///
    /// A volume that has written nothing since its parent shares that parent and gets no new level. A merge that holds
    /// the volume is asked to let go, and goes on later.
    ///
    /// # Errors
    /// What [`SnapshotError`] lists. A volume that somebody writes to is locked and refused.
    ///
    /// # Crash safety
    /// The volume reads the same throughout. The snapshot is there whole or not at all once the repository has been
    /// opened again.
    pub fn snapshot(&self, volume: &Path, snapshot: &Path) -> Result<Snapshotted, SnapshotError> {
        self.snapshot_of(
            volume,
            &Twin { path: snapshot, unique_id: Uuid::new_v4(), limit: u32::MAX, look_for_children: true },
        )
    }

    /// As [`snapshot`](Self::snapshot), and refuses to give the volume a chain of more than `limit` images, itself counted.
    /// To share a parent adds none, and is never refused. Nor does either make a chain that the repository's own options
    /// would not open.
    ///
    /// Takes the same time however many images there are: nobody looks whether the volume has children, as a volume
    /// should not. Those that it has all the same lose sight of it, until a collection finds out who their parent is.
    ///
    /// # Errors
    /// As [`snapshot`](Self::snapshot), and [`SnapshotError::TooDeep`].
    ///
    /// # Crash safety
    /// As [`snapshot`](Self::snapshot).
    pub fn snapshot_within(&self, volume: &Path, snapshot: &Path, limit: u32) -> Result<Snapshotted, SnapshotError> {
        self.snapshot_of(volume, &Twin { path: snapshot, unique_id: Uuid::new_v4(), limit, look_for_children: false })
    }

    fn snapshot_of(&self, volume: &Path, twin: &Twin<'_>) -> Result<Snapshotted, SnapshotError> {
        let snapshot = twin.path;
        // Not the link that leads to it: its file is to get another name.
        let volume = &volume.canonicalize().map_err(FileError::when(volume, "open it"))?;
        let other_folder = || SnapshotError::OtherFolder { volume: volume.into(), snapshot: snapshot.into() };
        let in_our_folder = |path: &Path| folder_of(path).canonicalize().is_ok_and(|folder| folder == self.folder());
        let name = snapshot.file_name().filter(|_| in_our_folder(snapshot) && in_our_folder(volume));
        let target = self.folder().join(name.ok_or_else(other_folder)?);
        let image = self.claim(volume)?;
        let structure = self.lock_structure()?;
        if fs::symlink_metadata(&target).is_ok() {
            return Err(CreateError::Exists { path: snapshot.into() }.into());
        }
        self.add_twin(image, &Twin { path: &target, ..*twin }, &structure)
    }

    /// Gives a locked volume a twin, with a new base or on the parent that it has.
    pub(crate) fn add_twin(
        &self,
        mut image: Image<ReadWrite>,
        twin: &Twin<'_>,
        structure: &StructureLock,
    ) -> Result<Snapshotted, SnapshotError> {
        let volume = &image.path().to_path_buf();
        let parents = self.options().open_parents(&image, volume)?;
        if image.footer().hidden() {
            return Err(SnapshotError::Hidden { path: volume.into() });
        }
        let parent = parents.as_ref().map(|chain| chain.top().path().to_path_buf());
        if let Some(parent) = parent
            && image.allocated_blocks().next().transpose()?.is_none()
            && let Some(_held) = hold_parent(&parent)?
        {
            let unique_id = image.header().expect("it has a parent").parent_unique_id();
            let mut new = NewImage::child_of(&image, ParentLink::new(self.folder(), &parent, unique_id)?);
            new.unique_id = twin.unique_id;
            create_file(twin.path, &new, Existing::Keep)?;
            self.keep_parents_of([twin.path]);
            return Ok(Snapshotted::SharedParent(parent));
        }
        // The volume, a new base, and what that then stands on.
        let depth = 2 + parents.as_ref().map_or(0, |chain| chain.layers().len());
        let limit = usize::try_from(twin.limit).unwrap_or(usize::MAX).min(self.options().max_depth);
        if depth > limit {
            return Err(SnapshotError::TooDeep { path: volume.into(), depth, limit });
        }
        drop(parents);
        if twin.look_for_children
            && let Some(child) = self.scan()?.dependants(volume, image.footer().unique_id()).first()
        {
            return Err(SnapshotError::HasChild { path: volume.into(), child: child.to_path_buf() });
        }
        self.branch(volume, twin, &mut image, structure)
    }

    /// Where a new image waits for its name.
    fn prepared(&self, new: &NewImage) -> PathBuf {
        self.state().join(format!("{}.vhd", new.unique_id))
    }

    /// Makes the volume's file the base of two children, journaled.
    fn branch(
        &self,
        volume: &Path,
        twin: &Twin<'_>,
        image: &mut Image<ReadWrite>,
        structure: &StructureLock,
    ) -> Result<Snapshotted, SnapshotError> {
        let base_name = PathBuf::from(format!("{}.vhd", Uuid::new_v4()));
        let link = ParentLink::to_named(&base_name, image.footer().unique_id(), Timestamp::now())?;
        let (new_volume, mut new_snapshot) = (NewImage::child_of(image, link.clone()), NewImage::child_of(image, link));
        new_snapshot.unique_id = twin.unique_id;
        let intent = SnapshotIntent {
            volume: self.relative(volume),
            snapshot: self.relative(twin.path),
            base: base_name,
            new_volume_id: new_volume.unique_id,
            prepared_volume: self.relative(&self.prepared(&new_volume)),
            prepared_snapshot: self.relative(&self.prepared(&new_snapshot)),
        };
        let journal = Journal::begin(&self.state(), &Record::Snapshot(intent.clone()))?;
        let base = self.absolute(&intent.base);
        let result: Result<(), SnapshotError> = (|| {
            for new in [&new_volume, &new_snapshot] {
                let path = self.prepared(new);
                create_file(&path, new, Existing::Keep)?;
                copy_owner(volume, &path)?;
            }
            set_aside(volume, &base)?;
            sync_folder(self.folder())?;
            let put = fs::rename(self.prepared(&new_volume), volume);
            Ok(put.map_err(FileError::when(volume, "put the new child in the volume's place"))?)
        })();
        match result {
            Ok(()) => {
                sync_folder(self.folder())?;
                image.set_hidden(true)?;
                self.show_snapshot(&intent)?;
                self.keep_parents_of([volume, twin.path]);
                // What is left is a journal of something that has been done: whoever opens the repository next finds that.
                let _ = journal.remove();
                Ok(Snapshotted::NewBase(base))
            }
            Err(error) => {
                // What cannot be taken back now is taken back by whoever opens the repository next.
                let _ = self.take_back_snapshot(&intent, structure).map(|()| journal.remove());
                Err(error)
            }
        }
    }

    /// Finishes the snapshot of a process that died, or takes it back.
    pub(crate) fn finish_snapshot(
        &self,
        intent: &SnapshotIntent,
        structure: &StructureLock,
    ) -> Result<(), SnapshotError> {
        let new_volume = FileId { path: intent.volume.clone(), unique_id: intent.new_volume_id };
        let (base, volume) = (self.absolute(&intent.base), self.absolute(&intent.volume));
        // The new child may have been deleted or replaced since it took the volume's place; the base tells.
        let took_place = new_volume.is_at(&volume)?
            || base.exists() && !is_same_file(&base, &volume) && !self.absolute(&intent.prepared_volume).exists();
        if !took_place {
            return self.take_back_snapshot(intent, structure);
        }
        if !base.exists() {
            // Deleted since, and with it what the snapshot would show.
            return Ok(());
        }
        // Those who have it open read through it, and no reader looks at what is written.
        Image::open_writable_beside(&base)?.set_hidden(true)?;
        self.show_snapshot(intent)
    }

    fn show_snapshot(&self, intent: &SnapshotIntent) -> Result<(), SnapshotError> {
        let (prepared, snapshot) = (self.absolute(&intent.prepared_snapshot), self.absolute(&intent.snapshot));
        if prepared.exists() {
            let named = match rename_without_replacing(&prepared, &snapshot) {
                // What a process has claimed the name with that died then.
                Err(error) if is_taken(&error) && is_empty(&snapshot) => fs::rename(&prepared, &snapshot),
                // The call failed, and when it was repeated made the same under the name.
                Err(error) if is_taken(&error) && is_child(&snapshot, &self.absolute(&intent.base)) => {
                    fs::remove_file(&prepared)
                }
                named => named,
            };
            named.map_err(FileError::when(&snapshot, "give the snapshot its name"))?;
        }
        Ok(sync_folder(self.folder())?)
    }

    fn take_back_snapshot(&self, intent: &SnapshotIntent, _: &StructureLock) -> Result<(), SnapshotError> {
        put_back(&self.absolute(&intent.volume), &self.absolute(&intent.base))?;
        remove_if_there(&self.absolute(&intent.prepared_snapshot))?;
        remove_if_there(&self.absolute(&intent.prepared_volume))?;
        Ok(sync_folder(self.folder())?)
    }
}

/// Keeps an image from being merged; one that is being merged now is no parent for a new child.
fn hold_parent(parent: &Path) -> Result<Option<FileStorage>, FileError> {
    match FileStorage::open(parent, Lock::Shared) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(None),
        held => held.map(Some).map_err(FileError::when(parent, "hold it")),
    }
}

fn is_taken(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AlreadyExists
}

fn is_empty(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() == 0)
}

/// Tells whether an image names another as its parent by its id.
fn is_child(path: &Path, parent: &Path) -> bool {
    let open = |path: &Path| Image::<ReadOnly>::open(path, Lock::None).ok();
    let Some((child, parent)) = open(path).zip(open(parent)) else { return false };
    child.header().is_some_and(|header| header.parent_unique_id() == parent.footer().unique_id())
}

/// Tells whether two names lead to one file.
pub(crate) fn is_same_file(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    identity(a).ok().zip(identity(b).ok()).is_some_and(|(a, b)| a == b)
}

/// Gives a file the owner and the permissions of another.
pub(crate) fn copy_owner(from: &Path, to: &Path) -> Result<(), FileError> {
    let metadata = fs::metadata(from).map_err(FileError::when(from, "read its owner"))?;
    let ours = fs::metadata(to).map_err(FileError::when(to, "read its owner"))?;
    if (metadata.uid(), metadata.gid()) != (ours.uid(), ours.gid()) {
        chown(to, Some(metadata.uid()), Some(metadata.gid()))
            .map_err(FileError::when(to, "give it the volume's owner"))?;
    }
    fs::set_permissions(to, metadata.permissions()).map_err(FileError::when(to, "give it the volume's permissions"))
}
