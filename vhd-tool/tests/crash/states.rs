//! Power failures at every moment of every operation, with what was not synced lost, kept and torn in many ways.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use testkit::crash::{Options, Recording, State};
use testkit::scratch;

use crate::case::{Case, End, Prepared};
use crate::program::Program;
use crate::table::test_each_case;

/// How much more than usual is tried.
pub(crate) fn torture() -> usize {
    std::env::var("TORTURE").ok().map_or(1, |factor| factor.parse().unwrap())
}

/// Of how many states one is tried, where there are many.
fn share() -> usize {
    std::env::var("SHARE").ok().map_or(1, |share| share.parse().unwrap())
}

/// Does something with each of many, on all cores. The engine has its own pool of threads, which is not to wait for us.
pub(crate) fn side_by_side<T: Send>(items: impl Iterator<Item = T> + Send, work: impl Fn(T) + Sync) {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let items = Mutex::new(items);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let next = items.lock().unwrap().next();
                    let Some(item) = next else { return };
                    work(item);
                }
            });
        }
    });
}

/// What has been tried of one operation.
#[derive(Debug, Default)]
struct Tried {
    states: AtomicUsize,
    finished: AtomicUsize,
    interrupted: AtomicUsize,
    names_taken: AtomicUsize,
    collected: AtomicUsize,
    failures: Mutex<Vec<String>>,
    /// States whose recovery is interrupted in turn.
    again: Mutex<Vec<State>>,
}

impl Tried {
    fn count(counter: &AtomicUsize, counts: bool) {
        counter.fetch_add(usize::from(counts), Ordering::Relaxed);
    }

    /// Checks one state; `sampled` of so many are also collected.
    fn state(&self, prepared: &Prepared, state: &State, end: End, sampled: usize) {
        let folder = scratch::folder();
        state.write_to(folder.path());
        let checked = catch_unwind(AssertUnwindSafe(|| {
            let opened = prepared.verify(folder.path(), end);
            if state.index().is_multiple_of(sampled) {
                prepared.verify_collected(folder.path(), end);
                Self::count(&self.collected, true);
            }
            opened
        }));
        Self::count(&self.states, true);
        match checked {
            Ok(opened) => {
                Self::count(&self.finished, opened.finished);
                Self::count(&self.interrupted, opened.interrupted);
                Self::count(&self.names_taken, opened.name_taken);
            }
            Err(panic) => {
                let why = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                let failure = format!("{}: {why}\n{}", prepared.case.name, state.describe());
                self.failures.lock().unwrap().push(failure);
            }
        }
    }
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [states, finished, interrupted, names, collected] =
            [&self.states, &self.finished, &self.interrupted, &self.names_taken, &self.collected]
                .map(|counter| counter.load(Ordering::Relaxed));
        write!(
            f,
            "{states} ({finished} finished or taken back, {interrupted} to be resumed, {names} names taken, {collected} collected)"
        )
    }
}

/// Tries the states of an operation.
fn try_operation(prepared: &Prepared, tried: &Tried) {
    let recording = prepared.record();
    // Where much is merged, there are many operations, and each state takes longer.
    let (singles, random) = if prepared.case.free.is_some() { (1, 6) } else { (24, 1200) };
    let states = recording.states(Options { singles, random: random * torture(), seed: 1 });
    let is_tried = |state: &State| state.index() < 50 || state.index().is_multiple_of(share());
    side_by_side(states.filter(is_tried), |state| {
        let end = if state.has_ended() { End::Reached } else { End::Unknown };
        tried.state(prepared, &state, end, 16);
        let has_journal = || state.paths().iter().any(|path| path.ends_with(".journal"));
        // Operations of few steps have few states.
        if (state.index() < 12 || state.index().is_multiple_of(97)) && has_journal() {
            tried.again.lock().unwrap().push(state);
        }
    });
}

/// Interrupts the recovery of some of them, too.
fn try_recovery(prepared: &Prepared, first: &Tried, tried: &Tried) {
    let mut states = std::mem::take(&mut *first.again.lock().unwrap());
    states.sort_by_key(State::index);
    let step = (states.len() / (12 * torture())).max(1);
    let sample: Vec<State> = states.into_iter().step_by(step).collect();
    side_by_side(sample.into_iter(), |state| {
        let folder = scratch::folder();
        state.write_to(folder.path());
        let recording = Recording::of(folder.path(), &Program::Recover.command(folder.path()));
        let end = if state.has_ended() { End::Reached } else { End::Unknown };
        for again in recording.states(Options { singles: 12, random: 12, seed: 1 }) {
            tried.state(prepared, &again, end, 16);
        }
    });
}

/// Fails where a power failure at any moment of an operation, or of the recovery after it, loses something.
fn power_failures_lose_nothing(case: Case) {
    let (prepared, tried, recovery) = (case.prepare(), Tried::default(), Tried::default());
    try_operation(&prepared, &tried);
    try_recovery(&prepared, &tried, &recovery);
    testkit::tell!("{}: {tried} crash states tried; of the recovery {recovery}", prepared.case.name);
    let failures = [tried.failures.into_inner().unwrap(), recovery.failures.into_inner().unwrap()].concat();
    assert!(failures.is_empty(), "{} failures, such as\n{}", failures.len(), failures.join("\n"));
    assert!(tried.states.into_inner() > 2, "nothing was recorded");
}

test_each_case!(power_failures_lose_nothing);
