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
        let twin = Twin { path: &volume, replaces: true, limit: u32::MAX, look_for_children: true };
        Ok(self.add_twin(image, &twin, &structure)?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;
    use vhd_core::{
        BlockSize, ByteCount, Chain, ChainOptions, Existing, Image, Lock, NewImage, NewKind, ParentLink, Sector,
        SectorCount, SectorRange, Timestamp, Volume, create_file,
    };

    use super::*;
    use crate::journal::Journal;
    use crate::record::{Record, SnapshotIntent};

    fn write(volume: &Path, byte: u8) {
        let open = Volume::open(volume, &ChainOptions::default()).unwrap();
        open.write(SectorRange::new(Sector(0), SectorCount(1)), &[byte; 512]).unwrap();
        open.close().unwrap();
    }

    fn first_byte(volume: &Path) -> u8 {
        let mut bytes = [0; 512];
        let chain = Chain::open(volume, &ChainOptions::default()).unwrap();
        chain.read(SectorRange::new(Sector(0), SectorCount(1)), &mut bytes).unwrap();
        bytes[0]
    }

    /// A volume with ones and a snapshot with twos, and what a process leaves that dies when the snapshot has its new
    /// base, and perhaps the volume's file has been replaced.
    fn interrupted(replaced: bool) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let kind = NewKind::Dynamic { block_size: BlockSize::new(4096).unwrap() };
        for (name, byte) in [("volume.vhd", 1), ("snapshot.vhd", 2)] {
            create_file(&path(name), &NewImage::new(ByteCount(1 << 20), kind.clone()), Existing::Keep).unwrap();
            write(&path(name), byte);
        }
        let (repository, _) = Repository::open(folder.path(), ChainOptions::default()).unwrap();
        drop(repository.lock_structure().unwrap());
        let image = Image::open(&path("snapshot.vhd"), Lock::None).unwrap();
        let link = ParentLink::to_named(Path::new("base.vhd"), image.footer().unique_id(), Timestamp::now()).unwrap();
        let [above, twin] = [(); 2].map(|()| NewImage::child_of(&image, link.clone()));
        let [prepared_above, prepared_twin] = [&above, &twin].map(|new| {
            let path = repository.state().join(format!("{}.vhd", new.unique_id));
            create_file(&path, new, Existing::Keep).unwrap();
            path
        });
        let intent = SnapshotIntent {
            volume: "snapshot.vhd".into(),
            snapshot: "volume.vhd".into(),
            replaces: true,
            base: "base.vhd".into(),
            new_volume_id: above.unique_id,
            prepared_volume: repository.relative(&prepared_above),
            prepared_snapshot: repository.relative(&prepared_twin),
        };
        drop(Journal::begin(&repository.state(), &Record::Snapshot(intent)).unwrap());
        fs::hard_link(path("snapshot.vhd"), path("base.vhd")).unwrap();
        fs::rename(prepared_above, path("snapshot.vhd")).unwrap();
        if replaced {
            fs::rename(prepared_twin, path("volume.vhd")).unwrap();
        }
        folder
    }

    /// Opens the repository, in which then nothing is left to do.
    fn recover(folder: &TempDir) {
        let (repository, recovered) = Repository::open(folder.path(), ChainOptions::default()).unwrap();
        assert!(recovered.finished == 1 && recovered.waiting.is_empty(), "{recovered:?}");
        assert_eq!(fs::read_dir(repository.state()).unwrap().count(), 1, "the lock");
        assert_eq!(first_byte(&folder.path().join("snapshot.vhd")), 2);
        assert!(Image::open(&folder.path().join("base.vhd"), Lock::None).unwrap().footer().hidden());
    }

    #[test]
    fn what_was_not_replaced_stays_with_what_was_written_to_it_since() {
        let folder = interrupted(false);
        let volume = folder.path().join("volume.vhd");
        assert_eq!(first_byte(&volume), 1);
        write(&volume, 3);
        recover(&folder);
        assert_eq!(first_byte(&volume), 3);
    }

    #[test]
    fn what_was_replaced_stays_with_what_was_written_to_it_since() {
        let folder = interrupted(true);
        let volume = folder.path().join("volume.vhd");
        assert_eq!(first_byte(&volume), 2);
        write(&volume, 3);
        recover(&folder);
        assert_eq!(first_byte(&volume), 3);
    }

    #[test]
    fn what_was_deleted_since_stays_away() {
        for replaced in [false, true] {
            let folder = interrupted(replaced);
            let volume = folder.path().join("volume.vhd");
            fs::remove_file(&volume).unwrap();
            recover(&folder);
            assert!(!volume.exists());
        }
    }
}
