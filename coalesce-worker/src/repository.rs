//! A folder of images, and the state folder in it: locks, journals, and files that wait for their names.

mod recover;

pub use recover::{Recovered, Unfinished, WaitReason};

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use vhd_core::{
    ChainOptions, FileError, Files, Folder, FolderError, ParentPlaces, explain_lock, folder_of, sync_folder,
};

use crate::abort::Abort;
use crate::journal::Journal;
use crate::mounts::{check_identity, identity_of};
use crate::record::{MergeIntent, Record};

/// The state folder's name.
const STATE: &str = ".vhd";
/// How long to wait for another process to end its structural change; it takes some syncs, never the moving of data.
const PATIENCE: Duration = Duration::from_secs(30);

/// A folder of images whose structure is changed by journaled steps only.
#[derive(Debug)]
pub struct Repository {
    folder: PathBuf,
    options: ChainOptions,
    /// Device and inode of the folder that was opened.
    identity: (u64, u64),
    /// The last scan, so that the next one reads only what has changed since.
    scanned: Mutex<Option<Folder>>,
}

/// The right to change names, parents and hidden states in a repository. Data is never moved under it.
#[derive(Debug)]
pub(crate) struct StructureLock {
    _file: File,
    /// What ends the work that it was taken for.
    abort: Abort,
}

impl StructureLock {
    /// What ends the work that it was taken for, between two steps: the journal of what is then half done stays.
    pub(crate) fn abort(&self) -> &Abort {
        &self.abort
    }
}

impl Repository {
    /// Opens a folder, and finishes or takes back what processes that died have left half done in it.
    ///
    /// # Errors
    /// A folder that cannot be listed; journals that cannot be read or written. What cannot be finished now is no error:
    /// [`Recovered`] tells of it, and the next opening tries again.
    ///
    /// # Crash safety
    /// Recovery can be interrupted at any point and done again.
    pub fn open(folder: &Path, options: ChainOptions) -> Result<(Self, Recovered), FileError> {
        let repository = Self::look_at(folder, options)?;
        let recovered = repository.recover()?;
        Ok((repository, recovered))
    }

    /// Opens a folder only to look at it: changes nothing, and leaves to others what processes that died have left.
    ///
    /// # Errors
    /// A folder that is not there.
    pub fn look_at(folder: &Path, options: ChainOptions) -> Result<Self, FileError> {
        let folder = folder.canonicalize().map_err(FileError::when(folder, "open the folder"))?;
        let identity = identity_of(&folder)?;
        Ok(Self { folder, options, identity, scanned: Mutex::new(None) })
    }

    /// Checks that its folder is the one that was opened. Its file system may have been unmounted since, which leaves a
    /// folder of the same name that must not be taken for an empty repository, or written to.
    ///
    /// # Errors
    /// Another folder, or none.
    pub(crate) fn check_folder(&self) -> Result<(), FileError> {
        check_identity(&self.folder, self.identity)
    }

    /// Its folder, without links.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Which parents may be opened.
    pub fn options(&self) -> &ChainOptions {
        &self.options
    }

    /// Looks at all files of the folder. What has not changed since the last look is not read again.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub fn scan(&self) -> Result<Folder, FolderError> {
        self.scan_until(&Abort::new())
    }

    /// As [`scan`](Self::scan), but no longer than until the abort, which is an error.
    pub(crate) fn scan_until(&self, abort: &Abort) -> Result<Folder, FolderError> {
        let mut scanned = self.scanned.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut folder = Folder::scan_while(&self.folder, Files::All, scanned.as_ref(), &|| !abort.is_aborted())?;
        *scanned = Some(folder.clone());
        self.remember_parents(&mut folder);
        Ok(folder)
    }

    /// Has `work` look at the folder while nobody changes names, parents or hidden states in it. It had better not take long:
    /// everybody who does waits.
    ///
    /// # Errors
    /// A lock that cannot be had.
    pub fn look<T>(&self, work: impl FnOnce() -> T) -> Result<T, FileError> {
        let _structure = self.lock_structure()?;
        Ok(work())
    }

    /// Where journals and unfinished files are.
    pub(crate) fn state(&self) -> PathBuf {
        self.folder.join(STATE)
    }

    /// Names a file as journals do.
    pub(crate) fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.folder).unwrap_or(path).into()
    }

    /// Finds the file that a path leads to, without links; `None` where that is not in the repository's folder.
    pub(crate) fn own_file(&self, path: &Path) -> Result<Option<PathBuf>, FileError> {
        let real = path.canonicalize().map_err(FileError::when(path, "open it"))?;
        Ok(Some(real).filter(|real| folder_of(real) == self.folder()))
    }

    /// Finds a file that a journal names.
    pub(crate) fn absolute(&self, path: &Path) -> PathBuf {
        self.folder.join(path)
    }

    /// Tells whether a path that a journal names leads into the repository, or to where parents may be: whoever can
    /// write to the repository can write a journal, and that must not reach further than he does.
    pub(crate) fn is_ours(&self, path: &Path) -> bool {
        let path = self.absolute(path);
        let real = path.canonicalize().ok().or_else(|| {
            // Nothing is there, or a link that leads nowhere.
            let folder = folder_of(&path).canonicalize().ok()?;
            let name = path.file_name()?;
            fs::symlink_metadata(&path).is_err().then(|| folder.join(name))
        });
        let real = real.or_else(|| {
            // Its folder is gone, too, and with it all that could be done to the file.
            let is_plain = |part| matches!(part, Component::Normal(_) | Component::RootDir);
            (!folder_of(&path).exists() && path.components().all(is_plain)).then(|| path.clone())
        });
        let allowed = match &self.options.parents {
            ParentPlaces::Anywhere => return real.is_some(),
            ParentPlaces::Within(roots) => roots,
        };
        let roots = allowed.iter().filter_map(|root| root.canonicalize().ok()).chain([self.folder.clone()]);
        real.is_some_and(|real| roots.into_iter().any(|root| real != root && real.starts_with(root)))
    }

    /// Waits for everybody else who changes the structure, and keeps them away.
    pub(crate) fn lock_structure(&self) -> Result<StructureLock, FileError> {
        self.lock_structure_until(&Abort::new())
    }

    /// As [`lock_structure`](Self::lock_structure), but no longer than until the abort.
    pub(crate) fn lock_structure_until(&self, abort: &Abort) -> Result<StructureLock, FileError> {
        self.check_folder()?;
        let state = self.state();
        match fs::create_dir(&state) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => check_is_folder(&state)?,
            made => {
                made.map_err(FileError::when(&state, "make the state folder"))?;
                sync_folder(&self.folder)?;
            }
        }
        let path = state.join("lock");
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let flags = flags.bits().cast_signed();
        let file = File::options().create(true).truncate(false).write(true).custom_flags(flags).open(&path);
        let file = file.map_err(FileError::when(&path, "open the lock"))?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => {
                    self.check_folder()?;
                    return Ok(StructureLock { _file: file, abort: abort.clone() });
                }
                Err(TryLockError::WouldBlock) if start.elapsed() < PATIENCE => {
                    let slept = abort.sleep(Duration::from_millis(2));
                    slept
                        .map_err(|aborted| FileError::when(&path, "lock the repository")(io::Error::other(aborted)))?;
                }
                Err(error) => return Err(FileError::when(&path, "lock the repository")(explain_lock(error.into()))),
            }
        }
    }

    /// As [`lock_structure_until`](Self::lock_structure_until), where anybody has ever changed the structure, and may again: makes no file.
    pub(crate) fn lock_structure_that_is_there(&self, abort: &Abort) -> Option<StructureLock> {
        self.state().join("lock").exists().then(|| self.lock_structure_until(abort).ok()).flatten()
    }

    /// Lists the files that a merge or collection is about to delete, when nobody can have them open any more.
    pub(crate) fn obsolete(&self) -> Result<Vec<PathBuf>, FileError> {
        let obsolete = self.journaled()?.into_iter().filter_map(|record| match record {
            Record::Linked { obsolete, .. } => Some(obsolete),
            _ => None,
        });
        Ok(obsolete.flatten().map(|file| self.absolute(&file.path)).collect())
    }

    /// Lists the merges that have begun and not ended.
    pub(crate) fn interrupted(&self) -> Result<Vec<MergeIntent>, FileError> {
        let merges = self.journaled()?.into_iter().filter_map(|record| match record {
            Record::Merge(intent) => Some(intent),
            _ => None,
        });
        Ok(merges.collect())
    }

    /// Tells whether a merge that has not ended takes data out of an image: what it held may be in one beneath it already.
    ///
    /// # Errors
    /// Journals that cannot be read.
    pub fn is_merged_from(&self, image: &Path) -> Result<bool, FileError> {
        let image = self.relative(image);
        Ok(self.interrupted()?.iter().any(|merge| merge.sources.iter().any(|source| source.path == image)))
    }

    fn journaled(&self) -> Result<Vec<Record>, FileError> {
        let mut records = Vec::new();
        for path in Journal::list(&self.state())? {
            records.extend(Journal::peek(&path)?);
        }
        Ok(records)
    }
}

/// Refuses a state folder that is a link: what is done in it would be done somewhere else.
fn check_is_folder(state: &Path) -> Result<(), FileError> {
    let found = fs::symlink_metadata(state).map_err(FileError::when(state, "look at the state folder"))?;
    if found.is_dir() {
        return Ok(());
    }
    Err(FileError::when(state, "use it as the state folder")(io::ErrorKind::NotADirectory.into()))
}
