use std::thread;

use super::*;

const MIB: u64 = 1 << 20;

fn rate(bytes: u64) -> Limits {
    Limits { bytes_per_second: NonZeroU64::new(bytes), in_flight: None }
}

/// Far longer than anything here takes on a machine under load, and far shorter than what it is told from.
const AGES: Duration = Duration::from_secs(60);

/// Takes pieces one after the other, in a time that only they make pass; tells how long that takes.
fn simulate(state: &mut State, piece: u64, count: u32) -> Duration {
    let start = state.counted;
    let mut now = start;
    for _ in 0..count {
        while let Some(wait) = state.time_to_wait(now, 0) {
            now += wait;
        }
        state.spend(ByteCount(piece));
    }
    now - start
}

/// A rate is neither exceeded nor missed.
#[test]
fn a_rate_holds() {
    // Pieces smaller than the burst, and larger.
    for piece in [MIB / 16, 4 * MIB] {
        let budget = Budget::new(rate(64 * MIB));
        let count = u32::try_from(64 * MIB / piece).unwrap();
        // The last piece is still owed.
        let due = Duration::from_secs(1) - Duration::from_secs_f64(piece as f64 / (64.0 * MIB as f64));
        let taken = simulate(&mut budget.shared.state(), piece, count);
        assert!(taken.abs_diff(due) < Duration::from_millis(1), "{taken:?}, {due:?} were due");
    }
}

/// However few of them get to run at once, together they are no faster than one.
#[test]
fn threads_share_one_rate() {
    let budget = Budget::new(rate(64 * MIB));
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| take_all(&budget, 20, MIB / 4));
        }
    });
    // Less what an idle budget has saved, and the last piece, which is still owed.
    let due = Duration::from_secs_f64((20.0 - 0.25) / 64.0) - BURST;
    assert!(start.elapsed() >= due, "after {:?}, {due:?} were due", start.elapsed());
}

#[test]
fn waiters_are_served_in_the_order_in_which_they_came() {
    let budget = Budget::new(Limits { bytes_per_second: None, in_flight: NonZeroU32::new(1) });
    let served = Mutex::new(Vec::new());
    let first = budget.take(ByteCount(1), &Abort::new()).unwrap();
    thread::scope(|scope| {
        for waiter in 0..6 {
            let (budget, served) = (&budget, &served);
            scope.spawn(move || {
                let _permit = budget.take(ByteCount(1), &Abort::new()).unwrap();
                served.lock().unwrap().push(waiter);
            });
            while budget.shared.state().queue.len() <= waiter {
                thread::yield_now();
            }
        }
        drop(first);
    });
    assert_eq!(served.into_inner().unwrap(), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_bucket_saves_no_more_than_the_burst() {
    let budget = Budget::new(rate(10 * MIB));
    let mut state = budget.shared.state();
    let idle_until = state.counted + Duration::from_millis(300);
    state.count(idle_until);
    // Two megabytes at ten a second, less the half that was saved, and less the last piece.
    let (taken, due) = (simulate(&mut state, MIB / 10, 20), Duration::from_millis(140));
    assert!(taken.abs_diff(due) < Duration::from_millis(1), "{taken:?}, {due:?} were due");
}

fn take_all(budget: &Budget, pieces: u32, piece: u64) {
    for _ in 0..pieces {
        drop(budget.take(ByteCount(piece), &Abort::new()).unwrap());
    }
}

#[test]
fn a_new_rate_holds_for_those_who_wait() {
    for limits in [rate(1 << 30), Limits::default()] {
        let budget = Budget::new(rate(1024));
        take_all(&budget, 1, MIB);
        let start = Instant::now();
        thread::scope(|scope| {
            let waiter = scope.spawn(|| take_all(&budget, 1, MIB));
            thread::sleep(Duration::from_millis(50));
            assert!(!waiter.is_finished(), "a megabyte is owed at a kilobyte per second");
            budget.set_limits(limits);
            waiter.join().unwrap();
        });
        assert!(start.elapsed() < AGES, "after {:?}", start.elapsed());
    }
}

#[test]
fn operations_in_flight_stay_within_the_limit() {
    let limit = |limit| Limits { bytes_per_second: None, in_flight: NonZeroU32::new(limit) };
    let budget = Budget::new(limit(3));
    let (now, most, done) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    let work = |rounds: u32| {
        for _ in 0..rounds {
            let permit = budget.take(ByteCount(1), &Abort::new()).unwrap();
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::sleep(Duration::from_micros(200));
            now.fetch_sub(1, Ordering::SeqCst);
            drop(permit);
            done.fetch_add(1, Ordering::SeqCst);
        }
    };
    let run = || {
        thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| work(40));
            }
        });
    };
    run();
    assert_eq!((most.swap(0, Ordering::SeqCst), done.swap(0, Ordering::SeqCst)), (3, 480));
    budget.set_limits(limit(1));
    run();
    assert_eq!((most.load(Ordering::SeqCst), done.load(Ordering::SeqCst), budget.in_flight()), (1, 480, 0));
}

#[test]
fn operations_begun_without_a_limit_count_once_there_is_one() {
    let budget = Budget::default();
    let early = budget.take(ByteCount(1), &Abort::new()).unwrap();
    budget.set_limits(Limits { bytes_per_second: None, in_flight: NonZeroU32::new(1) });
    thread::scope(|scope| {
        let waiter = scope.spawn(|| take_all(&budget, 1, 1));
        thread::sleep(Duration::from_millis(30));
        assert!(!waiter.is_finished());
        drop(early);
        waiter.join().unwrap();
    });
}

#[test]
fn an_abort_ends_every_kind_of_wait_at_once() {
    let one = Limits { bytes_per_second: None, in_flight: NonZeroU32::new(1) };
    for (limits, paused) in [(rate(1), false), (one, false), (Limits::default(), true)] {
        let budget = Budget::new(limits);
        let _first = budget.take(ByteCount(MIB), &Abort::new()).unwrap();
        if paused {
            budget.pause();
        }
        let (parent, other) = (Abort::new(), Abort::new());
        thread::scope(|scope| {
            let waiter = |abort: Abort| {
                let budget = &budget;
                scope.spawn(move || (budget.take(ByteCount(1), &abort).map(drop), Instant::now()))
            };
            let (first, second, last) = (waiter(other.clone()), waiter(parent.child()), waiter(other.clone()));
            thread::sleep(Duration::from_millis(30));
            for (abort, waiters) in [(&parent, vec![second]), (&other, vec![first, last])] {
                let told = Instant::now();
                abort.abort();
                for waiter in waiters {
                    let (taken, at) = waiter.join().unwrap();
                    assert_eq!(taken, Err(Aborted));
                    assert!(at - told < AGES, "after {:?}", at - told);
                }
            }
        });
        assert!(budget.shared.state().queue.is_empty());
        assert_eq!(budget.in_flight(), 1);
    }
}

#[test]
fn what_is_aborted_takes_nothing_even_without_limits() {
    let abort = Abort::new();
    abort.abort();
    assert!(Budget::default().take(ByteCount(1), &abort).is_err());
}

#[test]
fn a_pause_holds_all_until_it_ends() {
    let budget = Budget::default();
    let done = AtomicU32::new(0);
    budget.pause();
    assert!(budget.is_paused());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                take_all(&budget, 1, MIB);
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        thread::sleep(Duration::from_millis(50));
        assert_eq!(done.load(Ordering::SeqCst), 0);
        budget.resume();
    });
    assert_eq!(done.load(Ordering::SeqCst), 4);
    assert!(!budget.is_paused() && !budget.shared.limited.load(Ordering::SeqCst));
}
