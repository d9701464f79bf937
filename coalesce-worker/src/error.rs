//! Why a coalesce does not take place, or not to its end.

use std::path::PathBuf;

use vhd_core::{
    ByteCount, ChainError, FileError, FolderError, LinkError, MetadataError, OpenError, ReadError, SnapshotError,
    StorageError, WriteError,
};

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
    /// A snapshot that was interrupted cannot be finished.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
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
    /// A name in a device folder is not ours to change.
    #[error("{}: is a device, and devices are neither renamed nor deleted; merge with --keep", path.display())]
    Device {
        /// The device.
        path: PathBuf,
    },
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
