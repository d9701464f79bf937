//! What is durable and what is not, and which parts of the latter may be found after a power failure.

use std::sync::Arc;

use super::content::Piece;
use super::operation::{Change, Operation};
use super::tree::{DataChange, Inode, NameChange, Place, Portion, Tree};

/// An operation that may be lost.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    /// Its number.
    pub(super) number: usize,
    /// It is not lost itself, but follows some that may be.
    pub(super) durable: bool,
}

/// The disk at some moment of a recording.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    operations: Arc<[Operation]>,
    durable: Tree,
    pub(super) pending: Vec<Pending>,
}

impl NameChange {
    /// The folder whose sync makes the change durable: that of the new name.
    fn folder(&self) -> Inode {
        match self {
            Self::Add { place, .. } | Self::Remove { place, .. } => place.folder,
            Self::Move { to, .. } | Self::Exchange { to, .. } => to.folder,
        }
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        let (first, second) = match self {
            Self::Add { place, .. } | Self::Remove { place, .. } => (place, None),
            Self::Move { from, to, .. } | Self::Exchange { from, to, .. } => (from, Some(to)),
        };
        std::iter::once(first).chain(second)
    }

    /// Tells whether the change starts from what `earlier` did.
    fn follows(&self, earlier: &Self) -> bool {
        let shares = self.places().any(|place| earlier.places().any(|other| other == place));
        let inside = match earlier {
            Self::Add { entry, .. } => entry.is_folder && self.places().any(|place| place.folder == entry.inode),
            _ => false,
        };
        shares || inside
    }
}

/// The bytes of a file from the first piece to the last.
fn span(pieces: &[Piece]) -> (u64, u64) {
    (pieces.first().map_or(0, Piece::start), pieces.last().map_or(0, Piece::end))
}

impl DataChange {
    /// Tells whether no file system loses `earlier`, of the same file, and keeps this.
    fn follows(&self, earlier: &Self) -> bool {
        match (earlier, self) {
            (Self::Write { .. }, _) => false,
            (_, Self::Zero { .. } | Self::SetLen { .. }) => true,
            (Self::SetLen { old, len }, Self::Write { pieces }) => span(pieces).1 > *old.min(len),
            (Self::Zero { pieces: zeros }, Self::Write { pieces }) => {
                let (zeros, written) = (span(zeros), span(pieces));
                zeros.0 < written.1 && written.0 < zeros.1
            }
        }
    }
}

impl Disk {
    pub(super) fn new(operations: Arc<[Operation]>, durable: Tree) -> Self {
        Self { operations, durable, pending: Vec::new() }
    }

    pub(super) fn operation(&self, pending: usize) -> &Change {
        &self.operations[self.pending[pending].number].change
    }

    /// Does an operation.
    pub(super) fn step(&mut self, number: usize) {
        match self.operations[number].change {
            Change::Data { .. } | Change::Name(_) => self.pending.push(Pending { number, durable: false }),
            Change::Sync { inode, covers } => {
                self.sync(inode, covers);
                self.settle();
            }
        }
    }

    fn sync(&mut self, synced: Option<Inode>, covers: usize) {
        // A move that is durable has taken a name from another folder: so are the changes that made that name.
        let mut moves: Vec<&NameChange> = Vec::new();
        for pending in self.pending.iter_mut().rev().filter(|pending| pending.number < covers) {
            match &self.operations[pending.number].change {
                Change::Data { inode, .. } => pending.durable |= synced.is_none_or(|synced| synced == *inode),
                Change::Name(change) => {
                    let needed = moves.iter().any(|later| later.follows(change));
                    pending.durable |= needed || synced.is_none_or(|synced| synced == change.folder());
                    if pending.durable && matches!(change, NameChange::Move { .. } | NameChange::Exchange { .. }) {
                        moves.push(change);
                    }
                }
                Change::Sync { .. } => {}
            }
        }
    }

    /// Makes what is durable, and follows nothing that may be lost, part of what is durable.
    fn settle(&mut self) {
        let mut names_lost = false;
        self.pending.retain(|pending| match &self.operations[pending.number].change {
            Change::Data { inode, change } if pending.durable => {
                self.durable.apply_data(*inode, change, &Portion::Whole);
                false
            }
            Change::Name(change) if pending.durable && !names_lost => {
                assert!(self.durable.apply_name(change), "{change:?} follows only what is durable");
                false
            }
            Change::Name(_) => {
                names_lost = true;
                true
            }
            _ => true,
        });
    }

    /// Lists, for each pending operation, the earlier ones that are not lost if it is not.
    pub(super) fn needs(&self) -> Vec<Vec<usize>> {
        let follows = |later: usize, earlier: usize| match (self.operation(later), self.operation(earlier)) {
            (Change::Data { inode: a, change: later }, Change::Data { inode: b, change: earlier }) => {
                a == b && later.follows(earlier)
            }
            (Change::Name(later), Change::Name(earlier)) => later.follows(earlier),
            _ => false,
        };
        let writes = |i: &usize| matches!(self.operation(*i), Change::Data { change: DataChange::Write { .. }, .. });
        // Nothing follows a write, and most are writes.
        let others: Vec<usize> = (0..self.pending.len()).filter(|i| !writes(i)).collect();
        let needs = |i| others.iter().copied().take_while(|&j| j < i).filter(|&j| follows(i, j)).collect();
        (0..self.pending.len()).map(needs).collect()
    }

    /// Gives what is found if of each pending operation that portion is on the disk.
    pub(super) fn found(&self, portions: &[Portion]) -> Tree {
        let mut tree = self.durable.clone();
        for (pending, portion) in self.pending.iter().zip(portions) {
            match &self.operations[pending.number].change {
                Change::Data { inode, change } => tree.apply_data(*inode, change, portion),
                // What it starts from may be lost: then it is, too.
                Change::Name(change) if *portion != Portion::Nothing => _ = tree.apply_name(change),
                _ => {}
            }
        }
        tree
    }
}
