use std::num::NonZeroU64;
use std::thread;

use vhd_core::FileError;

use super::*;
use crate::budget::Limits;

const MIB: ByteCount = ByteCount(1 << 20);

fn totals(bytes: ByteCount, resumed_at: ByteCount) -> RunTotals {
    let (target, node) = ("/sr/base.vhd".into(), "/sr/node.vhd".into());
    RunTotals { target, node, nodes: 2, direction: Direction::Down, bytes, resumed_at }
}

#[test]
fn a_run_is_on_the_board_as_long_as_its_handle_lives() {
    let board = Board::new(Arc::default());
    let repository = board.repository(Path::new("/sr"), None);
    assert_eq!(board.status().state, State::Idle);

    let run = repository.begin(totals(ByteCount(10 << 20), MIB));
    run.add(MIB);
    run.add(MIB);
    run.set_phase(Phase::Finishing);
    let status = board.status();
    assert_eq!((status.state, status.bytes_moved_total), (State::Working, 2 << 20));
    let seen = &status.repositories[0].runs[0];
    assert_eq!((seen.bytes_done, seen.bytes_total, seen.phase), (3 << 20, 10 << 20, Phase::Finishing));
    assert_eq!((seen.nodes, seen.direction), (2, Direction::Down));

    run.merged();
    let failed = repository.begin(totals(ByteCount(10 << 20), ByteCount(0)));
    failed.add(MIB);
    drop(failed);
    let status = board.status();
    assert_eq!((status.state, status.bytes_moved_total, status.nodes_merged_total), (State::Idle, 3 << 20, 1));
    assert!(status.repositories[0].runs.is_empty());
}

#[test]
fn the_rate_and_what_is_left_come_from_what_was_moved() {
    let board = Board::new(Arc::default());
    let run = board.repository(Path::new("/sr"), None).begin(totals(ByteCount(1 << 40), ByteCount(1 << 30)));
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(400) {
        run.add(MIB);
        thread::sleep(Duration::from_millis(10));
    }
    let seen = board.status().repositories.remove(0).runs.remove(0);
    let moved = seen.bytes_done - (1 << 30);
    let seconds = start.elapsed().as_secs_f64();
    // What was there before counts for nothing.
    assert!((seen.bytes_per_second as f64 - moved as f64 / seconds).abs() < 0.2 * moved as f64 / seconds, "{seen:?}");
    assert_eq!(seen.seconds_left, Some((seen.bytes_total - seen.bytes_done).div_ceil(seen.bytes_per_second)));
    assert!(locked(&run.progress.rate).next_mark() > Duration::from_millis(250), "nobody but the run itself marked");
}

#[test]
fn nothing_is_counted_twice_or_lost_while_runs_come_and_go() {
    let board = Board::new(Arc::default());
    let repository = board.repository(Path::new("/sr"), None);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let run = repository.begin(totals(MIB, ByteCount(0)));
                    run.add(ByteCount(1));
                    run.merged();
                }
            });
        }
        let mut last = 0;
        while last < 800 {
            let status = board.status();
            assert!(status.bytes_moved_total >= last, "a counter must not fall");
            last = status.bytes_moved_total;
        }
    });
    let status = board.status();
    assert_eq!((status.bytes_moved_total, status.nodes_merged_total), (800, 800));
}

#[test]
fn a_scan_an_error_and_the_limits_are_told() {
    let budget = Arc::new(Budget::default());
    let board = Board::new(Arc::clone(&budget));
    let uuid = Some(Uuid::from_u128(1));
    let repository = board.repository(Path::new("/sr"), uuid);
    assert_eq!(board.status().repositories[0].last_scan, None);
    repository.scanned(Scan { backlog_nodes: 7, deepest_chain: 3, ..Scan::default() });
    let cause = std::io::Error::other("no such luck");
    repository.failed(&FileError { path: "/sr/a.vhd".into(), action: "open it", source: cause });
    budget.set_limits(Limits { bytes_per_second: NonZeroU64::new(9), in_flight: None });
    budget.pause();
    let status = board.status();
    assert_eq!((status.state, status.bytes_per_second, status.errors_total), (State::Paused, NonZeroU64::new(9), 1));
    let seen = &status.repositories[0];
    assert_eq!((seen.uuid, seen.backlog_nodes, seen.deepest_chain), (uuid, 7, 3));
    assert!(seen.last_scan.is_some());
    assert_eq!(seen.last_error.as_deref(), Some("/sr/a.vhd: cannot open it: no such luck"));
}
