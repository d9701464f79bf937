//! What all merges of a process together may take from the disks: bytes per second and operations at once.

use std::collections::VecDeque;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use vhd_core::ByteCount;

use crate::abort::{Abort, Aborted};

/// What an idle budget saves up, as a time: that much may be moved at once afterwards.
const BURST: Duration = Duration::from_millis(50);
/// The longest sleep before the state is looked at again; a rate may be as low as one byte per second.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// How much may be taken. `None` means without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes moved per second.
    pub bytes_per_second: Option<NonZeroU64>,
    /// Operations in flight.
    pub in_flight: Option<NonZeroU32>,
}

/// The budget of a process, shared by reference. All of it can be changed while it is in use, with effect at once.
///
/// Bytes come from a token bucket that holds 50 ms' worth. A request may be larger than that: it goes as soon as nothing is
/// owed, and whoever comes next waits until it has been made up for. Waiters are served in the order in which they came.
///
/// Without limits a request costs a few atomic operations.
#[derive(Debug)]
pub struct Budget {
    shared: Arc<Shared>,
    waker: Waker,
}

#[derive(Debug)]
struct Shared {
    /// Whether anything in `state` may make a request wait.
    limited: AtomicBool,
    in_flight: AtomicU32,
    state: Mutex<State>,
    /// Goes with `state`: something has changed.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    paused: bool,
    /// Bytes that may go now; less than zero when they have gone already.
    tokens: f64,
    /// When `tokens` was right.
    counted: Instant,
    /// Tickets of those who wait, first come first.
    queue: VecDeque<u64>,
    next_ticket: u64,
}

impl Budget {
    /// Makes a budget with these limits.
    pub fn new(limits: Limits) -> Self {
        let state = State {
            limits,
            paused: false,
            tokens: 0.0,
            counted: Instant::now(),
            queue: VecDeque::new(),
            next_ticket: 0,
        };
        let shared = Arc::new(Shared {
            limited: AtomicBool::new(state.is_limited()),
            in_flight: AtomicU32::new(0),
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        Self { waker: Waker::from(Arc::clone(&shared)), shared }
    }

    /// The limits as they are.
    pub fn limits(&self) -> Limits {
        self.shared.state().limits
    }

    /// Changes the limits, for those who wait already too. An operation that is under way, or about to begin, goes on.
    pub fn set_limits(&self, limits: Limits) {
        self.change(|state| {
            state.count(Instant::now());
            state.limits = limits;
        });
    }

    /// Makes all who ask wait, until [`Budget::resume`]. Operations under way go on.
    pub fn pause(&self) {
        self.change(|state| state.paused = true);
    }

    /// Ends a pause.
    pub fn resume(&self) {
        self.change(|state| state.paused = false);
    }

    /// Tells whether it is paused.
    pub fn is_paused(&self) -> bool {
        self.shared.state().paused
    }

    /// Operations under way.
    pub fn in_flight(&self) -> u32 {
        self.shared.in_flight.load(Ordering::SeqCst)
    }

    /// Waits until `bytes` may be moved in one operation, which is under way as long as the permit lives.
    ///
    /// # Errors
    /// [`Aborted`] as soon as `abort` is raised; nothing has been taken then.
    pub fn take(&self, bytes: ByteCount, abort: &Abort) -> Result<Permit<'_>, Aborted> {
        abort.check()?;
        if self.shared.limited.load(Ordering::SeqCst) {
            self.wait(bytes, abort)?;
        } else {
            self.shared.in_flight.fetch_add(1, Ordering::SeqCst);
        }
        Ok(Permit { shared: &self.shared })
    }

    fn change(&self, how: impl FnOnce(&mut State)) {
        let mut state = self.shared.state();
        how(&mut state);
        self.shared.limited.store(state.is_limited(), Ordering::SeqCst);
        self.shared.changed.notify_all();
    }

    fn wait(&self, bytes: ByteCount, abort: &Abort) -> Result<(), Aborted> {
        let _woken = abort.wakes(&self.waker);
        let mut state = self.shared.state();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.queue.push_back(ticket);
        let taken = loop {
            if abort.is_aborted() {
                break Err(Aborted);
            }
            let first = state.queue.front() == Some(&ticket);
            let sleep = if first { state.time_to_wait(Instant::now(), self.in_flight()) } else { Some(LONGEST_SLEEP) };
            let Some(sleep) = sleep else { break Ok(()) };
            let woken = self.shared.changed.wait_timeout(state, sleep);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        };
        state.queue.retain(|&waiting| waiting != ticket);
        if taken.is_ok() {
            state.spend(bytes);
            self.shared.in_flight.fetch_add(1, Ordering::SeqCst);
        }
        self.shared.changed.notify_all();
        taken
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        // Under the lock: whoever waits has either not looked yet, or is asleep.
        let _state = self.state();
        self.changed.notify_all();
    }
}

impl State {
    fn is_limited(&self) -> bool {
        self.paused || self.limits != Limits::default()
    }

    /// Adds what has come in since it was counted last.
    fn count(&mut self, now: Instant) {
        let elapsed = now - std::mem::replace(&mut self.counted, now);
        self.tokens = match self.limits.bytes_per_second {
            Some(rate) => {
                let rate = rate.get() as f64;
                (self.tokens + rate * elapsed.as_secs_f64()).min(rate * BURST.as_secs_f64())
            }
            None => 0.0,
        };
    }

    fn spend(&mut self, bytes: ByteCount) {
        if self.limits.bytes_per_second.is_some() {
            self.tokens -= bytes.0 as f64;
        }
    }

    /// How long the first in the queue waits before it looks again; `None` when it may go.
    fn time_to_wait(&mut self, now: Instant, in_flight: u32) -> Option<Duration> {
        if self.paused || self.limits.in_flight.is_some_and(|limit| in_flight >= limit.get()) {
            return Some(LONGEST_SLEEP);
        }
        self.count(now);
        let rate = self.limits.bytes_per_second?.get() as f64;
        // A little more than nothing, so that rounding does not let it wake too early and look again.
        let seconds = -self.tokens / rate;
        (seconds > 0.0).then(|| Duration::from_secs_f64(seconds.min(LONGEST_SLEEP.as_secs_f64()) + 1e-6))
    }
}

/// The right to one operation; dropped when it has ended.
#[derive(Debug)]
#[must_use = "the operation counts as ended once this is dropped"]
pub struct Permit<'a> {
    shared: &'a Shared,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.shared.in_flight.fetch_sub(1, Ordering::SeqCst);
        // Only where there are limits does anybody wait for this.
        if self.shared.limited.load(Ordering::SeqCst) {
            let _state = self.shared.state();
            self.shared.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests;
