use std::thread;

use super::*;

const MIB: u64 = 1 << 20;

fn rate(bytes: u64) -> Limits {
    Limits { bytes_per_second: NonZeroU64::new(bytes), in_flight: None }
}

/// Takes pieces until `duration` is over; tells how many bytes that were.
fn take_for(budget: &Budget, piece: u64, duration: Duration) -> u64 {
    let (abort, start) = (Abort::new(), Instant::now());
    let mut taken = 0;
    while start.elapsed() < duration {
        drop(budget.take(ByteCount(piece), &abort).unwrap());
        taken += piece;
    }
    taken
}

#[test]
fn a_rate_holds() {
    // Pieces smaller than the burst, and larger.
    for piece in [MIB / 16, 4 * MIB] {
        let budget = Budget::new(rate(64 * MIB));
        let start = Instant::now();
        let taken = take_for(&budget, piece, Duration::from_millis(600));
        // The last piece is still owed, and the bucket may have been full.
        let most = 64.0 * MIB as f64 * (start.elapsed() + BURST).as_secs_f64() * 1.02 + piece as f64;
        let least = 64.0 * MIB as f64 * 0.6 * 0.85 - piece as f64;
        assert!((least..most).contains(&(taken as f64)), "{taken} bytes, between {least} and {most} were due");
    }
}

#[test]
fn threads_share_one_rate() {
    let budget = Budget::new(rate(64 * MIB));
    let start = Instant::now();
    let each: Vec<u64> = thread::scope(|scope| {
        let take = || take_for(&budget, MIB / 4, Duration::from_millis(600));
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let elapsed = start.elapsed().as_secs_f64();
    let taken = each.iter().sum::<u64>() as f64;
    let due = 64.0 * MIB as f64 * elapsed;
    assert!((0.85 * due..1.1 * due + 64.0 * MIB as f64 * 0.05).contains(&taken), "{taken} bytes, {due} were due");
    let fair = taken / 4.0;
    assert!(each.iter().all(|&bytes| bytes as f64 > fair * 0.6), "{each:?} is not fair");
}

#[test]
fn a_bucket_saves_no_more_than_the_burst() {
    let budget = Budget::new(rate(10 * MIB));
    thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    take_all(&budget, 20, MIB / 10);
    // Two megabytes at ten a second, less the half that was saved, and less the last piece.
    assert!(start.elapsed() >= Duration::from_millis(130), "after {:?}", start.elapsed());
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
        assert!(start.elapsed() < Duration::from_millis(500), "after {:?}", start.elapsed());
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
                    assert!(at - told < Duration::from_millis(50), "after {:?}", at - told);
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
