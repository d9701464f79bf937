//! When to collect a repository. Decides and does nothing.
//!
//! A collection opens and locks files and so causes events like anybody else's. They are told apart by what the folder
//! looks like: a collection that found nothing more to do leaves a fingerprint, and as long as that is right there is
//! nothing to do, whatever events there are.

use std::time::{Duration, Instant};

use super::fingerprint::Fingerprint;

/// The rest after a collection before another one that may be in vain, as a multiple of how long it took.
const REST: u32 = 10;
const SHORTEST_REST: Duration = Duration::from_millis(100);
/// The first wait before a folder that changed during a collection is collected again; each further one is twice as long.
const FIRST_AGAIN: Duration = Duration::from_secs(1);
/// How often to look for room beside a collection.
const LOOK_FOR_ROOM: Duration = Duration::from_millis(200);

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    /// Collect; nobody else does.
    Collect,
    /// Collect what has come up since the collection that is under way looked.
    CollectBeside,
}

/// How a collection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It has merged or deleted something, so that there may be more to do.
    Progress,
    /// It found nothing that it could do.
    Nothing {
        /// It would have, but for something that passes.
        waits: bool,
    },
    /// Somebody has told it to stop, and not to go on before there is a reason.
    Stopped,
    /// The repository cannot be collected.
    Failed,
    /// Its folder is not there: nothing tells when it is again.
    Unreachable,
}

/// A collection that is over.
#[derive(Clone, Copy, Debug)]
struct Last {
    at: Instant,
    took: Duration,
}

impl Last {
    fn rested(&self) -> Instant {
        self.at + SHORTEST_REST.max(self.took * REST)
    }
}

/// When a repository was collected, and when it will be.
#[derive(Debug)]
pub(super) struct Schedule {
    poll: Duration,
    /// How many collections are under way: two at most.
    collections: u32,
    last: Option<Last>,
    /// The last that ended beside another one.
    beside: Option<Last>,
    /// What the folder looked like when a collection had left nothing to do; `None` where there was no folder.
    left: Option<Fingerprint>,
    waits: bool,
    /// Somebody has asked for a collection.
    asked: bool,
    /// There were events during the collection.
    changed: bool,
    /// Two collections were under way at once, so that neither has seen all.
    overlapped: bool,
    /// One of them has been stopped.
    stopped: bool,
    again: Option<Instant>,
    next_wait: Duration,
}

impl Schedule {
    pub(super) fn new(poll: Duration) -> Self {
        Self {
            poll,
            collections: 0,
            last: None,
            beside: None,
            left: None,
            waits: false,
            asked: false,
            changed: false,
            overlapped: false,
            stopped: false,
            again: None,
            next_wait: FIRST_AGAIN,
        }
    }

    /// Somebody wants a collection, whatever the folder looks like.
    pub(super) fn ask(&mut self) {
        self.asked = true;
    }

    /// Tells whether the release of some file may make more possible than there is now.
    pub(super) fn waits_for_release(&self) -> bool {
        self.collections == 0 && self.waits
    }

    /// Tells what to do, and takes it that this is done. `changed`: there were events. `room`: the collection under way has
    /// threads to spare.
    pub(super) fn next(
        &mut self,
        now: Instant,
        changed: bool,
        room: bool,
        look: impl FnOnce() -> Option<Fingerprint>,
    ) -> Next {
        if self.collections > 0 {
            self.changed |= changed;
            let rested = self.beside.is_none_or(|beside| now >= beside.rested());
            if self.collections > 1 || !self.changed || !room || !rested {
                return Next::Nothing;
            }
            (self.changed, self.overlapped) = (false, true);
            self.collections += 1;
            return Next::CollectBeside;
        }
        let Some(last) = self.last else { return self.start() };
        let due = self.asked || now >= last.at + self.poll || self.again.is_some_and(|again| now >= again);
        if due || changed && look() != self.left {
            return self.start();
        }
        if changed && self.waits {
            // Perhaps it is what is waited for, perhaps nothing.
            if now >= last.rested() {
                return self.start();
            }
            self.again = Some(self.again.map_or(last.rested(), |again| again.min(last.rested())));
        }
        Next::Nothing
    }

    fn start(&mut self) -> Next {
        (self.asked, self.changed, self.overlapped, self.again) = (false, false, false, None);
        self.collections = 1;
        Next::Collect
    }

    /// When to ask again what to do, though nothing may have happened.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        if self.collections > 0 {
            let rested = self.beside.map_or(now, |beside| beside.rested());
            return (self.collections == 1 && self.changed).then(|| rested.max(now + LOOK_FOR_ROOM));
        }
        let poll = self.last.map(|last| last.at + self.poll);
        poll.into_iter().chain(self.again).min()
    }

    /// A collection is over. It took so long; before it and after it the folder looked like this.
    pub(super) fn ended(
        &mut self,
        now: Instant,
        took: Duration,
        ended: Ended,
        before: Option<Fingerprint>,
        after: Option<Fingerprint>,
    ) {
        self.collections = self.collections.saturating_sub(1);
        let last = Last { at: now, took };
        self.stopped |= ended == Ended::Stopped;
        if self.collections > 0 {
            self.beside = Some(last);
            return;
        }
        let ended = if std::mem::take(&mut self.stopped) { Ended::Stopped } else { ended };
        self.last = Some(last);
        self.beside = None;
        self.left = after;
        self.waits = ended == Ended::Nothing { waits: true };
        let was_asked = self.asked;
        match ended {
            Ended::Stopped => (self.asked, self.again) = (false, None),
            Ended::Failed => {}
            Ended::Unreachable => self.again = Some(now + FIRST_AGAIN.min(self.poll)),
            Ended::Progress => self.again = Some(now),
            Ended::Nothing { .. } if self.overlapped || was_asked => self.again = Some(now),
            Ended::Nothing { .. } if before != after => {
                // It may have been somebody else, or a merge that has got nowhere.
                self.again = Some(now + self.next_wait);
                self.next_wait = (self.next_wait * 2).min(self.poll);
                return;
            }
            Ended::Nothing { .. } => {}
        }
        self.next_wait = FIRST_AGAIN.min(self.poll);
    }
}

#[cfg(test)]
mod tests;
