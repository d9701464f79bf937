//! Deleting volumes: a file that others need becomes a hidden base, any other goes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use vhd_core::{
    DamagedFile, FileError, FolderError, Header, Image, Lock, MetadataError, OpenError, ReadOnly, ReadWrite,
    StorageError, Uuid, folder_of, sync_folder,
};

use crate::in_use::open_image;
use crate::journal::Journal;
use crate::record::{FileId, Record};
use crate::repository::{Repository, StructureLock};
use crate::yielding::{self, YieldRequest};

/// What became of a deleted volume's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone.
    Removed,
    /// Others read through it: it is a hidden base now, and goes when they no longer need it.
    Hidden,
}

/// Why a volume was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    /// It cannot be opened, or somebody uses it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It cannot be hidden.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The folder cannot be listed.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A step on a file failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is no volume any more.
    #[error("{}: a hidden base, not a volume; the collector removes it when nobody needs it", path.display())]
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
}

impl Repository {
    /// Deletes a volume or snapshot. What only it needed is left for the collector.
    ///
    /// # Errors
    /// What [`DeleteError`] lists. A volume in use is refused.
    ///
    /// # Crash safety
    /// Hiding it decides: once that is durable the volume is gone, and whoever opens the repository next does the rest.
    /// A process that dies before leaves it as it was.
    pub fn delete(&self, volume: &Path) -> Result<Deleted, DeleteError> {
        self.delete_by(volume, |image, structure| self.hide_and_remove(image, structure))
    }

    /// As [`delete`](Self::delete), and leaves all but the hiding to the collector: takes the same time however many images
    /// there are.
    ///
    /// # Errors
    /// As [`delete`](Self::delete).
    ///
    /// # Crash safety
    /// As [`delete`](Self::delete).
    pub fn hide(&self, volume: &Path) -> Result<(), DeleteError> {
        self.delete_by(volume, |mut image, _| Ok(image.set_hidden(true)?))
    }

    /// Has `work` delete a volume, journaled.
    fn delete_by<T>(
        &self,
        volume: &Path,
        work: impl FnOnce(Image<ReadWrite>, &StructureLock) -> Result<T, DeleteError>,
    ) -> Result<T, DeleteError> {
        let image = self.claim_own(volume)?;
        let structure = self.lock_structure()?;
        let id = FileId { path: self.relative(image.path()), unique_id: image.footer().unique_id() };
        let journal = Journal::begin(&self.state(), &Record::Delete(id))?;
        let deleted = work(image, &structure)?;
        // What is left is a journal of something that has been done: whoever opens the repository next finds that.
        let _ = journal.remove();
        Ok(deleted)
    }

    fn claim_own(&self, volume: &Path) -> Result<Image<ReadWrite>, DeleteError> {
        let other_folder = || DeleteError::OtherFolder { path: volume.into(), folder: self.folder().into() };
        let volume = self.own_file(volume)?.ok_or_else(other_folder)?;
        let image = self.claim(&volume)?;
        if image.footer().hidden() {
            return Err(DeleteError::Hidden { path: volume });
        }
        Ok(image)
    }

    /// Does the rest for a process that died.
    pub(crate) fn finish_delete(&self, id: &FileId, structure: &StructureLock) -> Result<(), DeleteError> {
        let path = self.absolute(&id.path);
        let is_hidden = || Ok::<_, OpenError>(Image::<ReadOnly>::open(&path, Lock::None)?.footer().hidden());
        // One that is visible was never hidden, or has been brought back since, and may hold what is new.
        if id.is_at(&path)? && is_hidden()? {
            let image = open_image(&path)?;
            if image.footer().hidden() {
                self.hide_and_remove(image, structure)?;
            }
        }
        Ok(())
    }

    fn hide_and_remove(&self, mut image: Image<ReadWrite>, _: &StructureLock) -> Result<Deleted, DeleteError> {
        image.set_hidden(true)?;
        let path = image.path().to_path_buf();
        let folder = self.scan()?;
        let is_needed = !folder.dependants(&path, image.footer().unique_id()).is_empty();
        if is_needed || folder.damaged().iter().any(DamagedFile::may_need_any) {
            return Ok(Deleted::Hidden);
        }
        remove_durably(&path)?;
        let parent = image.header().filter(|_| image.is_differencing()).map(Header::parent_unique_id);
        let is_last = |id: &Uuid| folder.dependants(Path::new(""), *id).iter().all(|child| **child == *path);
        self.keep_freed(&path, parent.filter(is_last));
        Ok(Deleted::Removed)
    }

    /// Opens a volume for writing. A merge that holds it is asked to let go.
    pub(crate) fn claim(&self, volume: &Path) -> Result<Image<ReadWrite>, OpenError> {
        let mut request: Option<YieldRequest> = None;
        let start = Instant::now();
        loop {
            match open_image(volume) {
                Err(error) if is_busy(&error) && start.elapsed() < yielding::PATIENCE => {
                    match &request {
                        Some(request) => request.renew(),
                        None => request = YieldRequest::to_whoever_merges(self, volume),
                    }
                    // A merge that is about to begin holds its images before it says so.
                    if request.is_none() && start.elapsed() > yielding::MOMENT {
                        return Err(error);
                    }
                }
                opened => return opened,
            }
        }
    }
}

/// Tells whether somebody else has locked the image.
pub(crate) fn is_busy(error: &OpenError) -> bool {
    matches!(error, OpenError::Storage(StorageError { source, .. }) if source.kind() == io::ErrorKind::ResourceBusy)
}

/// Removes a file's name, durably.
pub(crate) fn remove_durably(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => {
            removed.map_err(FileError::when(path, "delete it"))?;
            sync_folder(folder_of(path))
        }
    }
}
