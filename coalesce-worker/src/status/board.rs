//! The board on which those who work write what they do.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use uuid::Uuid;
use vhd_core::ByteCount;

use super::rate::Rate;
use super::{Direction, Isolated, Phase, RepositoryStatus, RunStatus, State, Status, Waiting};
use crate::budget::Budget;

/// The board of a process. Clones are the same board.
///
/// # Lock order
/// The list of repositories, what is known of one, the list of its runs, the rate of one.
#[derive(Clone, Debug)]
pub struct Board {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    budget: Arc<Budget>,
    started: u64,
    repositories: Mutex<Vec<Arc<Row>>>,
}

/// A repository as the board has it.
#[derive(Debug)]
struct Row {
    path: PathBuf,
    uuid: Option<Uuid>,
    found: Mutex<Found>,
    runs: Mutex<Vec<Arc<Progress>>>,
    /// Of runs that have ended.
    bytes_moved: AtomicU64,
    nodes_merged: AtomicU64,
    errors: AtomicU64,
}

#[derive(Debug, Default)]
struct Found {
    scan: Scan,
    scanned: Option<u64>,
    unreachable: Option<String>,
    error: Option<String>,
}

/// What a scan of a repository finds.
#[derive(Clone, Debug, Default)]
pub struct Scan {
    /// What could be merged but for something that passes.
    pub waiting: Vec<Waiting>,
    /// What is left alone.
    pub isolated: Vec<Isolated>,
    /// Nodes that are to be merged.
    pub backlog_nodes: u64,
    /// What is to be moved for that.
    pub backlog_bytes: ByteCount,
    /// Images in the deepest chain.
    pub deepest_chain: u32,
    /// Free space of the file system.
    pub free_bytes: ByteCount,
    /// What the files occupy.
    pub physical_bytes: ByteCount,
}

/// What is known of a run before it starts.
#[derive(Clone, Debug)]
pub struct RunTotals {
    /// The image that all is merged into.
    pub target: PathBuf,
    /// The newest image of the run.
    pub node: PathBuf,
    /// How many images are merged.
    pub nodes: u32,
    /// Where the data goes.
    pub direction: Direction,
    /// What is to be moved.
    pub bytes: ByteCount,
    /// What of that has been moved already, before the run was interrupted.
    pub resumed_at: ByteCount,
}

impl Board {
    /// Makes an empty board; the budget tells it of limits and pauses.
    pub fn new(budget: Arc<Budget>) -> Self {
        let shared = Shared { budget, started: unix_seconds(), repositories: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Adds a repository; it stays as long as the board.
    pub fn repository(&self, path: &Path, uuid: Option<Uuid>) -> Entry {
        let entry = Arc::new(Row {
            path: path.into(),
            uuid,
            found: Mutex::default(),
            runs: Mutex::default(),
            bytes_moved: AtomicU64::new(0),
            nodes_merged: AtomicU64::new(0),
            errors: AtomicU64::new(0),
        });
        locked(&self.shared.repositories).push(Arc::clone(&entry));
        Entry { entry, is_beside: false }
    }

    /// Tells how everything stands now.
    pub fn status(&self) -> Status {
        let repositories: Vec<_> = locked(&self.shared.repositories).iter().map(|entry| entry.status()).collect();
        let limits = self.shared.budget.limits();
        let state = if self.shared.budget.is_paused() {
            State::Paused
        } else if repositories.iter().any(|repository| !repository.runs.is_empty()) {
            State::Working
        } else {
            State::Idle
        };
        Status {
            pid: std::process::id(),
            state,
            bytes_per_second: limits.bytes_per_second,
            in_flight: limits.in_flight,
            started: self.shared.started,
            bytes_moved_total: repositories.iter().map(|repository| repository.bytes_moved_total).sum(),
            nodes_merged_total: repositories.iter().map(|repository| repository.nodes_merged_total).sum(),
            errors_total: repositories.iter().map(|repository| repository.errors_total).sum(),
            repositories,
        }
    }
}

impl Row {
    fn status(&self) -> RepositoryStatus {
        let found = locked(&self.found);
        let scan = found.scan.clone();
        let (scanned, unreachable, error) = (found.scanned, found.unreachable.clone(), found.error.clone());
        drop(found);
        // What a run has moved is counted with the run or with the repository, and never with both or neither.
        let runs = locked(&self.runs);
        let moved = self.bytes_moved.load(Ordering::SeqCst) + runs.iter().map(|run| run.moved()).sum::<u64>();
        let nodes_merged = self.nodes_merged.load(Ordering::SeqCst);
        RepositoryStatus {
            path: self.path.clone(),
            uuid: self.uuid,
            runs: runs.iter().map(|run| run.status()).collect(),
            waiting: scan.waiting,
            isolated: scan.isolated,
            backlog_nodes: scan.backlog_nodes,
            backlog_bytes: scan.backlog_bytes.0,
            deepest_chain: scan.deepest_chain,
            free_bytes: scan.free_bytes.0,
            physical_bytes: scan.physical_bytes.0,
            unreachable,
            last_scan: scanned,
            last_error: error,
            bytes_moved_total: moved,
            nodes_merged_total: nodes_merged,
            errors_total: self.errors.load(Ordering::SeqCst),
        }
    }
}

/// A repository's place on the board.
#[derive(Clone, Debug)]
pub struct Entry {
    entry: Arc<Row>,
    /// Another collection tells what scans find.
    is_beside: bool,
}

impl Entry {
    /// The same place for a collection beside another one: its scans, to which what the other one works on is in use, are
    /// not put up.
    pub fn beside(&self) -> Self {
        Self { is_beside: true, ..self.clone() }
    }

    /// Runs that are being merged.
    pub fn runs(&self) -> usize {
        locked(&self.entry.runs).len()
    }

    /// Takes the last error away: what went wrong then has gone well since.
    pub fn succeeded(&self) {
        locked(&self.entry.found).error = None;
    }

    /// Puts up what a scan has found just now.
    pub fn scanned(&self, scan: Scan) {
        if self.is_beside {
            return;
        }
        let mut found = locked(&self.entry.found);
        found.scan = scan;
        found.unreachable = None;
        found.scanned = Some(unix_seconds());
    }

    /// Counts an error, and puts it up as the last one, with its causes.
    pub fn failed(&self, error: &dyn std::error::Error) {
        self.entry.errors.fetch_add(1, Ordering::SeqCst);
        locked(&self.entry.found).error = Some(with_causes(error));
    }

    /// Puts up why the repository cannot be reached, until a scan reaches it again.
    pub fn unreachable(&self, why: &dyn std::error::Error) {
        locked(&self.entry.found).unreachable = Some(with_causes(why));
    }

    /// Puts up a run, as long as the answer lives.
    pub fn begin(&self, totals: RunTotals) -> RunHandle {
        let start = Instant::now();
        let rate = Rate::new(Duration::ZERO);
        let progress = Arc::new(Progress {
            totals,
            start,
            moved: AtomicU64::new(0),
            finishing: AtomicBool::new(false),
            next_mark: AtomicU64::new(rate.next_mark().as_millis() as u64),
            rate: Mutex::new(rate),
        });
        locked(&self.entry.runs).push(Arc::clone(&progress));
        RunHandle { entry: Arc::clone(&self.entry), progress, merged: false }
    }
}

/// How far a run is.
#[derive(Debug)]
struct Progress {
    totals: RunTotals,
    start: Instant,
    /// Bytes, by this process.
    moved: AtomicU64,
    finishing: AtomicBool,
    /// Milliseconds from the start.
    next_mark: AtomicU64,
    rate: Mutex<Rate>,
}

impl Progress {
    fn moved(&self) -> u64 {
        self.moved.load(Ordering::SeqCst)
    }

    fn add(&self, bytes: ByteCount) {
        let moved = self.moved.fetch_add(bytes.0, Ordering::SeqCst) + bytes.0;
        let now = self.start.elapsed();
        if now.as_millis() as u64 >= self.next_mark.load(Ordering::Relaxed) {
            let mut rate = locked(&self.rate);
            // Others may have been here first.
            if now >= rate.next_mark() {
                rate.mark(now, moved);
                self.next_mark.store(rate.next_mark().as_millis() as u64, Ordering::Relaxed);
            }
        }
    }

    fn status(&self) -> RunStatus {
        let RunTotals { target, node, nodes, direction, bytes, resumed_at } = self.totals.clone();
        let moved = self.moved();
        let done = resumed_at.0 + moved;
        let rate = locked(&self.rate).per_second(self.start.elapsed(), moved);
        let left = bytes.0.saturating_sub(done);
        RunStatus {
            target,
            node,
            nodes,
            direction,
            phase: if self.finishing.load(Ordering::SeqCst) { Phase::Finishing } else { Phase::Copying },
            bytes_done: done,
            bytes_total: bytes.0,
            bytes_per_second: rate,
            seconds_left: (rate > 0).then(|| left.div_ceil(rate)),
        }
    }
}

/// A run's place on the board, which it leaves when this is dropped.
#[derive(Debug)]
pub struct RunHandle {
    entry: Arc<Row>,
    progress: Arc<Progress>,
    merged: bool,
}

impl RunHandle {
    /// Tells that data has been moved. Costs a few atomic operations.
    pub fn add(&self, bytes: ByteCount) {
        self.progress.add(bytes);
    }

    /// Tells how far the run is.
    pub fn set_phase(&self, phase: Phase) {
        self.progress.finishing.store(phase == Phase::Finishing, Ordering::SeqCst);
    }

    /// Ends the run with its nodes merged; one that is only dropped has not got so far.
    pub fn merged(mut self) {
        self.merged = true;
    }
}

impl Drop for RunHandle {
    fn drop(&mut self) {
        let mut runs = locked(&self.entry.runs);
        runs.retain(|run| !Arc::ptr_eq(run, &self.progress));
        self.entry.bytes_moved.fetch_add(self.progress.moved(), Ordering::SeqCst);
        if self.merged {
            // One of the images stays.
            let gone = self.progress.totals.nodes.saturating_sub(1);
            self.entry.nodes_merged.fetch_add(u64::from(gone), Ordering::SeqCst);
        }
    }
}

fn locked<T: fmt::Debug>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests;
