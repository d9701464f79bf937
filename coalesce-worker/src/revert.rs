//! Reverting: a volume becomes a clone of a snapshot, and what it held is left for the collector.
//!
//! ```text
//!   S ──▶ (its parent)                       before
//!   V ──▶ (its parent)
//!
//!   S ──▶ U.vhd hidden ──▶ (its parent)      after; where S has written nothing, both are children of its parent
//!   V ──▶ U.vhd
//!   D.vhd hidden ──▶ (its parent)            V's former file, which nobody needs any more, or a child of V's does
//! ```
//!
//! The clone is made in the state folder. Then V's file gets its second name, `D.vhd`, and one rename puts the clone in its
//! place. That rename decides: a process that dies before leaves V as it is. No file but these is looked at, so it takes
//! the same time however many images there are.

use std::fs;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use vhd_core::{FileError, Image, MetadataError, OpenError, ReadWrite, sync_folder};

use crate::in_use::open_image;
use crate::journal::Journal;
use crate::names::{put_back, remove_if_there, set_aside};
use crate::record::Record;
use crate::repository::{Repository, StructureLock};
use crate::snapshot::{SnapshotError, Snapshotted, Twin, copy_owner, is_same_file};

/// Why a volume was not reverted.
#[derive(Debug, thiserror::Error)]
pub enum RevertError {
    /// The snapshot cannot be cloned.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The volume or the snapshot cannot be opened, or somebody uses it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The volume's former file cannot be hidden.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// A step on a file failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is no volume.
    #[error("{}: a hidden base, not a volume; its children would read something else", path.display())]
    Hidden {
        /// The image.
        path: PathBuf,
    },
    /// It lies elsewhere.
    #[error("{}: not in the repository {}", path.display(), folder.display())]
    OtherFolder {
        /// The image.
        path: PathBuf,
        /// The repository.
        folder: PathBuf,
    },
    /// Volume and snapshot are one file.
    #[error("{}: cannot be reverted to itself", path.display())]
    Itself {
        /// The file.
        path: PathBuf,
    },
}

impl Repository {
    /// Makes `volume` a clone of `snapshot`: it has the snapshot's content and size from then on, its file's owner and
    /// permissions stay, and what it held is left for the collector. The snapshot, which may be any volume, reads as before.
    ///
    /// Tells what the clone is a child of.
    ///
    /// # Errors
    /// What [`RevertError`] lists. A volume or snapshot in use is refused.
    ///
    /// # Crash safety
    /// One rename decides: the volume has all of its old content or all of the snapshot's. A process that dies before may
    /// leave the snapshot with a new base, as after a snapshot of it; whoever opens the repository next removes the rest.
    pub fn revert(&self, volume: &Path, snapshot: &Path) -> Result<Snapshotted, RevertError> {
        self.revert_as(volume, snapshot, Uuid::new_v4())
    }

    /// As [`revert`](Self::revert), and tells beforehand who the volume's new image is going to be.
    ///
    /// # Errors
    /// As [`revert`](Self::revert).
    ///
    /// # Crash safety
    /// As [`revert`](Self::revert).
    pub fn revert_as(&self, volume: &Path, snapshot: &Path, unique_id: Uuid) -> Result<Snapshotted, RevertError> {
        let own = |path: &Path| {
            let other_folder = || RevertError::OtherFolder { path: path.into(), folder: self.folder().into() };
            self.own_file(path)?.ok_or_else(other_folder)
        };
        let (volume, snapshot) = (own(volume)?, own(snapshot)?);
        if is_same_file(&volume, &snapshot) {
            return Err(RevertError::Itself { path: volume });
        }
        // Held until another file is in its place: nobody shall write to what goes.
        let held = self.claim(&volume)?;
        if held.footer().hidden() {
            return Err(RevertError::Hidden { path: volume });
        }
        let image = self.claim(&snapshot)?;
        let structure = self.lock_structure()?;
        let (displaced, prepared) = (self.folder().join(new_name()), self.state().join(new_name()));
        let intent = Record::Revert {
            volume: self.relative(&volume),
            displaced: self.relative(&displaced),
            prepared: self.relative(&prepared),
        };
        let journal = Journal::begin(&self.state(), &intent)?;
        let twin = Twin { path: &prepared, unique_id, limit: u32::MAX, look_for_children: false };
        let result = self
            .add_twin(image, &twin, &structure)
            .map_err(RevertError::from)
            .and_then(|made| self.displace(held, &displaced, &prepared).map(|()| made));
        // Where it failed, this takes it back. What cannot be done now is done by whoever opens the repository next.
        let finished = self.finish_revert(&volume, &displaced, &prepared, &structure);
        if finished.is_ok() {
            self.keep_parents_of([&*volume]);
            let _ = journal.remove();
        }
        result
    }

    /// Puts what waits as `prepared` in the place of a volume, whose file is hidden under another name then.
    fn displace(&self, mut held: Image<ReadWrite>, displaced: &Path, prepared: &Path) -> Result<(), RevertError> {
        let volume = held.path().to_path_buf();
        copy_owner(&volume, prepared)?;
        set_aside(&volume, displaced)?;
        sync_folder(self.folder())?;
        fs::rename(prepared, &volume).map_err(FileError::when(&volume, "put the clone in the volume's place"))?;
        sync_folder(self.folder())?;
        Ok(held.set_hidden(true)?)
    }

    /// Finishes what a process that died was about to do to a volume, or takes it back.
    ///
    /// # Crash safety
    /// Can be repeated.
    pub(crate) fn finish_revert(
        &self,
        volume: &Path,
        displaced: &Path,
        prepared: &Path,
        _: &StructureLock,
    ) -> Result<(), RevertError> {
        let (volume, displaced, prepared) = (self.absolute(volume), self.absolute(displaced), self.absolute(prepared));
        if is_same_file(&displaced, &volume) || prepared.exists() {
            put_back(&volume, &displaced)?;
        }
        if displaced.exists() {
            open_image(&displaced)?.set_hidden(true)?;
        }
        remove_if_there(&prepared)?;
        Ok(sync_folder(self.folder())?)
    }
}

fn new_name() -> String {
    format!("{}.vhd", Uuid::new_v4())
}
