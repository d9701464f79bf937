//! Who works on which unit, and how far everything before has been done.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vhd_core::{Sector, WriteError};

use super::{Merge, MergeError, MergeOptions};
use crate::abort::Abort;
use crate::plan::Unit;
use crate::target::Target;
use crate::yielding;

/// Units whose new blocks are reserved together, so that they lie side by side; more would only fill memory with bitmaps.
const WINDOW: usize = 1024;
/// Checkpoints of a merge, at least; each is worth the syncs that it takes.
const CHECKPOINTS: u64 = 32;
/// The least that is moved between two checkpoints, and the most.
const SMALLEST_STEP: u64 = 4 << 20;
const LARGEST_STEP: u64 = 256 << 20;
/// A checkpoint that takes longer than this is too large: whoever aborts has to wait for it.
const LONGEST_SYNC: Duration = Duration::from_millis(80);

/// The units of a plan, handed out in order to some threads.
pub(super) struct Units<'a> {
    units: &'a [Unit],
    queue: Mutex<Queue>,
    /// Goes with `queue`: a worker has left.
    left: Condvar,
    /// The unit that each worker is at; those before the least of them have been moved.
    at: Vec<AtomicUsize>,
    abort: Abort,
}

/// A worker, until it has come to the end, or failed.
pub(super) struct Leaving<'u, 'a> {
    units: &'u Units<'a>,
    worker: usize,
    pub(super) failed: bool,
}

impl Drop for Leaving<'_, '_> {
    fn drop(&mut self) {
        let Units { units, at, abort, left, .. } = self.units;
        if self.failed {
            abort.abort();
        } else {
            at[self.worker].store(units.len(), Ordering::Release);
        }
        self.units.queue().working -= 1;
        left.notify_all();
    }
}

struct Queue {
    next: usize,
    /// The end of those whose blocks have been reserved.
    reserved: usize,
    working: usize,
}

impl<'a> Units<'a> {
    pub(super) fn new(units: &'a [Unit], options: &MergeOptions<'_>) -> Self {
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let workers = options.threads.map_or_else(cores, NonZeroUsize::get).min(units.len().max(1));
        Self {
            units,
            queue: Mutex::new(Queue { next: 0, reserved: 0, working: workers }),
            left: Condvar::new(),
            at: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            abort: options.abort.child(),
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn workers(&self) -> usize {
        self.at.len()
    }

    /// Stops the workers, when one has failed or somebody outside says so.
    pub(super) fn abort(&self) -> &Abort {
        &self.abort
    }

    /// Hands out the next unit, its blocks reserved.
    pub(super) fn next(&self, worker: usize, target: &Target) -> Result<Option<&'a Unit>, WriteError> {
        let mut queue = self.queue();
        let index = queue.next;
        self.at[worker].store(index, Ordering::Release);
        let Some(unit) = self.units.get(index) else { return Ok(None) };
        if index == queue.reserved {
            let end = self.units.len().min(index + WINDOW);
            let new_blocks: Vec<_> = self.units[index..end].iter().flat_map(|unit| &unit.new_blocks).copied().collect();
            target.reserve(&new_blocks)?;
            queue.reserved = end;
        }
        queue.next += 1;
        Ok(Some(unit))
    }

    /// For a worker that begins: it leaves when this is dropped, also by a panic.
    pub(super) fn leaving(&self, worker: usize) -> Leaving<'_, 'a> {
        Leaving { units: self, worker, failed: true }
    }

    /// All units before this one have been moved.
    fn done(&self) -> usize {
        self.at.iter().map(|at| at.load(Ordering::Acquire)).min().unwrap_or(self.units.len())
    }

    /// Makes durable what has been moved and records it, now and then, until the workers have left.
    pub(super) fn watch(
        &self,
        merge: &Merge<'_>,
        moved: &AtomicU64,
        checkpoint: &mut (dyn FnMut(Sector) -> Result<(), MergeError> + Send),
    ) -> Result<(), MergeError> {
        let (mut recorded, mut recorded_data) = (0, merge.moved_before.0);
        let given = merge.options.checkpoint_every.map(|step| step.0);
        let largest = (merge.plan.data.0 / CHECKPOINTS).clamp(SMALLEST_STEP, LARGEST_STEP);
        let mut step = given.unwrap_or(largest);
        loop {
            let queue = self.queue();
            let (queue, _) = self
                .left
                .wait_timeout_while(queue, yielding::INTERVAL, |queue| queue.working > 0)
                .unwrap_or_else(PoisonError::into_inner);
            if queue.working == 0 {
                return Ok(());
            }
            drop(queue);
            if merge.is_wanted() {
                self.abort.abort();
                return Err(MergeError::Yielded);
            }
            let (done, data) = (self.done(), moved.load(Ordering::Relaxed));
            if self.abort.is_aborted() || done <= recorded || data < recorded_data.saturating_add(step) {
                continue;
            }
            let start = Instant::now();
            let sector = self.units.get(done).map_or(self.units[done - 1].sectors.end, |unit| unit.sectors.start);
            if let Err(error) = checkpoint(sector) {
                self.abort.abort();
                return Err(error);
            }
            (recorded, recorded_data) = (done, data);
            step = match start.elapsed() {
                _ if given.is_some() => step,
                taken if taken > LONGEST_SYNC => (step / 2).max(SMALLEST_STEP),
                taken if taken < LONGEST_SYNC / 4 => (step * 2).min(largest),
                _ => step,
            };
        }
    }
}
