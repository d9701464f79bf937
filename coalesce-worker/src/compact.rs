//! Making the files of images as small as their content allows.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use vhd_core::{
    ByteCount, Chain, ChainError, CompactError, Compaction, FileError, FileIdentity, FileStorage, FolderError, Image,
    Layer, Lock, OpenError, ReadWrite, folder_of,
};

use crate::in_use::lock_source;
use crate::journal::Journal;
use crate::record::{FileId, Record};
use crate::repository::Repository;

/// Why an image was not compacted.
#[derive(Debug, thiserror::Error)]
pub enum CompactingError {
    /// It cannot be opened, or somebody uses it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It cannot be read or written.
    #[error(transparent)]
    Compact(#[from] CompactError),
    /// The folder cannot be listed.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A step on a file failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// An image that reads through it appeared just now.
    #[error("{}: an image that is read through it came or went meanwhile; try again", path.display())]
    Changed {
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

/// What became of a request to compact an image.
#[derive(Debug)]
pub struct Compacted {
    /// What it gave back.
    pub compaction: Compaction,
    /// Why blocks of zeros of a differencing image had to stay: what it is read through cannot be read.
    pub unknown_parents: Option<ParentsError>,
}

/// Why the parents of an image cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ParentsError {
    /// They cannot be opened.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// Somebody changes one.
    #[error(transparent)]
    Busy(#[from] FileError),
}

/// The parents of an image, locked against whoever would change them.
#[derive(Debug)]
pub struct LockedParents {
    chain: Chain,
    _locks: Vec<FileStorage>,
}

impl LockedParents {
    /// What is read through them.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }
}

/// Opens what `image` is read through, and locks it against changes; `None` where it has no parent.
///
/// # Errors
/// Parents that cannot be opened, or that somebody changes.
pub fn open_locked_parents<Mode>(
    image: &Image<Mode>,
    options: &vhd_core::ChainOptions,
) -> Result<Option<LockedParents>, ParentsError> {
    let Some(found) = options.open_parents(image, image.path())? else { return Ok(None) };
    let lock =
        |layer: &Layer| FileStorage::open(layer.path(), Lock::Shared).map_err(FileError::when(layer.path(), "lock it"));
    let locks = found.layers().iter().map(lock).collect::<Result<Vec<_>, _>>()?;
    // What was read before it was locked may have changed since.
    let Some(chain) = options.open_parents(image, image.path())? else { return Ok(None) };
    for (layer, lock) in chain.layers().iter().zip(&locks) {
        let now = FileIdentity::at(layer.path()).map_err(FileError::when(layer.path(), "look at it"))?;
        if now != lock.identity() {
            let changed = std::io::Error::new(std::io::ErrorKind::ResourceBusy, "another file has come in its place");
            return Err(FileError::when(layer.path(), "lock it")(changed).into());
        }
    }
    Ok((chain.layers().len() == locks.len()).then_some(LockedParents { chain, _locks: locks }))
}

impl Repository {
    /// Gives back all space of an image's file that its content does not need. A merge that holds the image is asked to let
    /// go. After each portion `progress` is told how far into the disk it was.
    ///
    /// Hidden images and images with children are compacted, too: nothing changes for those who read them. All that
    /// read through them are locked meanwhile, as they would go on reading from where blocks were.
    ///
    /// # Errors
    /// What [`CompactingError`] lists. An image in use, by itself or by those who read through it, is refused.
    ///
    /// # Crash safety
    /// As [`Image::compact`]; whoever opens the repository next mends what that leaves unsightly.
    pub fn compact(&self, image: &Path, progress: impl FnMut(ByteCount)) -> Result<Compacted, CompactingError> {
        let path = image.canonicalize().map_err(FileError::when(image, "open it"))?;
        if folder_of(&path) != self.folder() {
            return Err(CompactingError::OtherFolder { path, folder: self.folder().into() });
        }
        let mut image = self.claim(&path)?;
        let _readers = self.lock_readers(&image)?;
        let (parents, unknown_parents) = match open_locked_parents(&image, self.options()) {
            Ok(parents) => (parents, None),
            Err(error) => (None, Some(error)),
        };
        let file = FileId { path: self.relative(&path), unique_id: image.footer().unique_id() };
        let journal = {
            let _structure = self.lock_structure()?;
            Journal::begin(&self.state(), &Record::Compact(file))?
        };
        let compaction = image.compact(parents.as_ref().map(LockedParents::chain), progress)?;
        // What is left is a journal of something that has been done: whoever opens the repository next finds that.
        let _ = journal.remove();
        Ok(Compacted { compaction, unknown_parents })
    }

    /// Locks all that is read through an image.
    fn lock_readers(&self, image: &Image<ReadWrite>) -> Result<Vec<FileStorage>, CompactingError> {
        let readers = self.readers_of(image)?;
        let locks = readers.iter().map(|path| lock_source(path)).collect::<Result<_, _>>()?;
        // One that came while the others were being locked is not, and from now on none can come.
        if self.readers_of(image)? != readers {
            return Err(CompactingError::Changed { path: image.path().into() });
        }
        Ok(locks)
    }

    /// Finds all that is read through an image, damaged files too.
    fn readers_of(&self, image: &Image<ReadWrite>) -> Result<BTreeSet<PathBuf>, CompactingError> {
        let folder = self.scan()?;
        let mut readers = BTreeSet::new();
        let mut open: Vec<_> = folder.dependants(image.path(), image.footer().unique_id());
        while let Some(path) = open.pop() {
            if path != image.path() && readers.insert(path.to_path_buf()) {
                let id = folder.find(path).map(|node| folder.node(node).unique_id);
                open.extend(folder.dependants(path, id.unwrap_or_default()));
            }
        }
        Ok(readers)
    }
}
