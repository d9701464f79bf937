//! Why a coalesce does not take place, or not to its end.

use std::path::PathBuf;
use std::sync::Arc;

use vhd_core::{
    ByteCount, ChainError, FileError, FolderError, LinkError, MetadataError, OpenError, ReadError, StorageError,
    WriteError,
};

use crate::delete::is_busy;
use crate::merge::MergeError;

/// Why nothing, or not all, was done.
#[derive(Debug, thiserror::Error)]
pub enum CoalesceError {
    /// The chain cannot be opened.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// An image cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An image cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Size, hidden state or parent of an image cannot be changed.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// The merge stopped.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// A folder cannot be listed.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A step on a file failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is nothing to merge into.
    #[error("{}: has no parent to be merged into", node.display())]
    NoParent {
        /// The image.
        node: PathBuf,
    },
    /// The image to merge into is not below the node.
    #[error("{}: is not an ancestor of {}", into.display(), node.display())]
    NotAnAncestor {
        /// The image to merge into.
        into: PathBuf,
        /// The node.
        node: PathBuf,
    },
    /// Somebody else reads through an image of the run, or may, and would read wrong afterwards.
    #[error("{}: has another child, {}, which would read wrong afterwards", node.display(), child.display())]
    OtherChild {
        /// The image of the run.
        node: PathBuf,
        /// Its other child.
        child: PathBuf,
    },
    /// A raw disk cannot take the name of a VHD.
    #[error("{}: is a raw disk and cannot take the name of {}; merge with --keep", target.display(), node.display())]
    RawTarget {
        /// The raw disk.
        target: PathBuf,
        /// The node.
        node: PathBuf,
    },
    /// A file that moved to another folder would no longer find its own parent.
    #[error("{}: cannot take the name of {}, which is in another folder; merge with --keep", target.display(), node.display())]
    OtherFolder {
        /// The image to merge into.
        target: PathBuf,
        /// The node.
        node: PathBuf,
    },
    /// The run is not what it was when it was looked at first.
    #[error("{}: the chain has changed meanwhile; try again", node.display())]
    Changed {
        /// The node.
        node: PathBuf,
    },
    /// Nobody knows whose child a file is.
    #[error("{}: cannot be read, and may need an image of the run: make it readable, or move it to another folder", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        #[source]
        source: Arc<OpenError>,
    },
    /// What was merged is no longer where a child looks for it.
    #[error(
        "{}: restored or replaced after data had been merged into it, and {} reads from it already; \
         put the one back that was merged into, or restore both",
        target.display(), child.display()
    )]
    NotMerged {
        /// What was merged into.
        target: PathBuf,
        /// An image that has been linked to it.
        child: PathBuf,
    },
    /// Another merge, with an image of this one in it, has moved its data and not come to its end.
    #[error("{}: an earlier merge of it still has to be finished", node.display())]
    Unfinished {
        /// Its node.
        node: PathBuf,
    },
    /// A name in a device folder is not ours to change.
    #[error("{}: is a device, and devices are neither renamed nor deleted; merge with --keep", path.display())]
    Device {
        /// The device.
        path: PathBuf,
    },
    /// What reads it by its other name, such as a backup made of hard links, would read wrong afterwards.
    #[error("{}: has a second name (hard link); what reads it by that would read wrong afterwards", path.display())]
    SecondName {
        /// The image.
        path: PathBuf,
    },
    /// A raw or fixed disk holds all of its sectors, and moving all of them up makes nothing better.
    #[error("{}: a raw or fixed disk, which is not merged upwards", path.display())]
    FlatSource {
        /// The disk.
        path: PathBuf,
    },
    /// Merging up changes the parent of the newest image; keeping it would leave what was merged unused.
    #[error("--keep goes with merging down only")]
    KeepUp,
    /// The new blocks do not fit.
    #[error("{}: the merge needs {needed} more bytes in this file system, {free} are free: {} are missing", path.display(), needed.0 - free.0)]
    NoSpace {
        /// The image to merge into.
        path: PathBuf,
        /// Space needed at least.
        needed: ByteCount,
        /// Space that is free.
        free: ByteCount,
    },
}

impl From<OpenError> for CoalesceError {
    fn from(error: OpenError) -> Self {
        Self::Chain(error.into())
    }
}

impl From<StorageError> for CoalesceError {
    fn from(error: StorageError) -> Self {
        Self::Chain(error.into())
    }
}

impl From<LinkError> for CoalesceError {
    fn from(error: LinkError) -> Self {
        Self::Metadata(error.into())
    }
}

impl CoalesceError {
    /// Tells whether somebody else has locked an image of the run.
    pub fn is_busy(&self) -> bool {
        match self {
            Self::Chain(ChainError::Open(error)) => is_busy(error),
            Self::File(error) => error.source.kind() == std::io::ErrorKind::ResourceBusy,
            _ => false,
        }
    }

    /// Tells whether the file system was full when something was to be written.
    pub(crate) fn is_out_of_space(&self) -> bool {
        let causes = std::iter::successors(Some(self as &dyn std::error::Error), |error| error.source());
        causes
            .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
            .any(|error| error.kind() == std::io::ErrorKind::StorageFull)
    }

    /// Tells whether trying again cannot help, because the run is no longer one that can be merged.
    pub(crate) fn is_final(&self) -> bool {
        matches!(
            self,
            Self::OtherChild { .. }
                | Self::Changed { .. }
                | Self::RawTarget { .. }
                | Self::OtherFolder { .. }
                | Self::FlatSource { .. }
        )
    }
}
