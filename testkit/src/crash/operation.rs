//! What a recorded program did, step by step.

use super::tree::{DataChange, Inode, NameChange};

/// One step.
#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) change: Change,
    /// What a failure message says of it.
    pub(super) text: String,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    /// A file's content or length changes.
    Data { inode: Inode, change: DataChange },
    /// A name changes.
    Name(NameChange),
    /// A file or folder, or everything, becomes durable as it was after the first `covers` operations: what ended after
    /// the sync began is not covered.
    Sync { inode: Option<Inode>, covers: usize },
}
