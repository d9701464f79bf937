//! Reverting: a volume becomes a clone of a snapshot, and what it held goes.
//!
//! ```text
//!   S ──▶ (its parent)                       before
//!   V ──▶ (its parent)
//!
//!   S ──▶ U.vhd hidden ──▶ (its parent)      after; where S has written nothing, both are children of its parent
//!   V ──▶ U.vhd
//! ```
//!
//! It is a snapshot of S whose twin, made in the state folder, takes the place of V's file by one rename. That rename
//! decides for V; whoever finds the journal of a process that died before it leaves V as it is, because somebody may
//! have written to it since.

use std::path::{Path, PathBuf};

use vhd_core::{FileError, FolderError, OpenError};

use crate::repository::Repository;
use crate::snapshot::{SnapshotError, Snapshotted, Twin, is_same_file};

/// Why a volume was not reverted.
#[derive(Debug, thiserror::Error)]
pub enum RevertError {
    /// The snapshot cannot be cloned.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The volume or the snapshot cannot be opened, or somebody uses it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The folder cannot be listed.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A step on a file failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is no volume.
    #[error("{}: a hidden base, not a volume; its children would read something else", path.display())]
    Hidden {
        /// The image.
        path: PathBuf,
    },
    /// Its content is needed.
    #[error("{}: {} is a child of it, and would lose its parent", path.display(), child.display())]
    HasChild {
        /// The volume.
        path: PathBuf,
        /// The child.
        child: PathBuf,
    },
    /// Nobody can tell whether its content is needed.
    #[error("{}: {} is damaged, and may be a child of it; mend or remove that file first", path.display(), damaged.display())]
    MayHaveChild {
        /// The volume.
        path: PathBuf,
        /// The file that has lost the name of its parent.
        damaged: PathBuf,
    },
    /// One of them lies elsewhere.
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
    /// permissions stay, and what it held is gone. The snapshot, which may be any volume, reads as before. What only the
    /// volume's former file needed is left for the collector.
    ///
    /// Tells what the clone is a child of.
    ///
    /// # Errors
    /// What [`RevertError`] lists. A volume or snapshot in use is refused, and so is a volume that has children.
    ///
    /// # Crash safety
    /// One rename decides: the volume has all of its old content or all of the snapshot's. A process that dies before may
    /// leave the snapshot with a new base, as after a snapshot of it; whoever opens the repository next removes the rest.
    pub fn revert(&self, volume: &Path, snapshot: &Path) -> Result<Snapshotted, RevertError> {
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
        let forest = self.scan()?;
        if let Some(child) = forest.dependants(&volume, held.footer().unique_id()).first() {
            return Err(RevertError::HasChild { path: volume, child: child.to_path_buf() });
        }
        if let Some(file) = forest.damaged().iter().find(|file| file.may_need_any()) {
            return Err(RevertError::MayHaveChild { path: volume, damaged: file.path.clone() });
        }
        let twin = Twin { path: &volume, replaces: true, limit: u32::MAX };
        Ok(self.add_twin(image, &twin, &structure)?)
    }
}
