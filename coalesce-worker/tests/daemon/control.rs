//! What people tell the worker.

use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use coalesce_worker::State;

use crate::disks::Disk;
use crate::process::{Worker, program, until};

/// A worker in the middle of a slow merge, downwards.
fn merging(disk: &mut Disk) -> Worker {
    disk.delete_snapshots();
    // The merge of a volume that was written to just now cannot be resumed: its time may not show the next write.
    thread::sleep(Duration::from_millis(100));
    let worker = Worker::start(&[disk.path()], &["--poll", "86400", "--rate", "8M"]);
    until("a checkpoint is likely", || (worker.merging().bytes_done > 14 << 20).then_some(()));
    worker
}

#[test]
fn status_tells_progress_and_a_change_of_the_rate_shows() {
    let mut disk = Disk::large();
    disk.delete_snapshots();
    let worker = Worker::start(&[disk.path()], &["--rate", "4M"]);
    worker.merging();
    thread::sleep(Duration::from_secs(1));
    let text = worker.told(&["status"]);
    println!("{text}");
    assert!(text.starts_with("working (process ") && text.contains(", at most 4.00 MiB/s\n"), "{text}");
    assert!(text.contains(" %  ") && text.contains(" left\n"), "{text}");
    let (status, run) = (worker.status(), worker.merging());
    assert_eq!((status.state, status.pid), (State::Working, worker.child.id()));
    assert!(run.bytes_done < run.bytes_total && run.seconds_left.is_some());
    assert!((1 << 20..8 << 20).contains(&run.bytes_per_second), "{run}");

    worker.told(&["set-rate", "none", "--in-flight", "2"]);
    let start = Instant::now();
    disk.merged();
    assert!(start.elapsed() < Duration::from_secs(3), "after {:?}", start.elapsed());
    let status = worker.settled();
    assert_eq!((status.bytes_per_second, status.in_flight.map(u32::from)), (None, Some(2)));
    assert_eq!((status.state, status.repositories[0].backlog_bytes), (State::Idle, 0));
}

#[test]
fn a_pause_stops_everything_until_it_ends() {
    let mut disk = Disk::large();
    let worker = merging(&mut disk);
    worker.told(&["pause"]);
    thread::sleep(Duration::from_millis(100));
    let before = worker.merging().bytes_done;
    thread::sleep(Duration::from_millis(500));
    assert_eq!(worker.merging().bytes_done, before);
    assert_eq!(worker.status().state, State::Paused);
    worker.told(&["set-rate", "none"]);
    worker.told(&["resume"]);
    disk.merged();
}

#[test]
fn work_that_comes_up_in_a_pause_is_done_after_it() {
    let mut disk = Disk::small();
    let worker = Worker::start(&[disk.path()], &["--poll", "86400"]);
    worker.settled();
    worker.told(&["pause"]);
    disk.delete_snapshots();
    thread::sleep(Duration::from_millis(500));
    assert!(disk.images() > 1);
    worker.told(&["resume"]);
    disk.merged();
}

#[test]
fn an_abort_leaves_what_the_next_collection_goes_on_with() {
    let mut disk = Disk::large();
    let worker = merging(&mut disk);
    let start = Instant::now();
    let told = worker.told(&["abort"]);
    let took = start.elapsed();
    println!("aborted within {took:?}");
    assert!(took < Duration::from_secs(1), "after {took:?}");
    assert_eq!(told, format!("stopped in {}\n", disk.path().display()));
    assert!(worker.status().repositories[0].runs.is_empty());
    disk.model.verify();
    thread::sleep(Duration::from_millis(1500));
    assert!(worker.status().repositories[0].runs.is_empty(), "it does not start again by itself");
    assert_eq!(worker.told(&["abort"]), "nothing was being merged\n");

    worker.told(&["collect", &disk.path().display().to_string()]);
    let resumed = until("it goes on", || worker.status().repositories[0].runs.first().cloned());
    println!("resumed: {resumed}");
    assert!(resumed.bytes_done >= 4 << 20, "{resumed}");
    worker.told(&["set-rate", "none"]);
    disk.merged();
}

#[test]
fn a_signal_ends_the_process_and_the_next_collection_goes_on() {
    for name in ["TERM", "INT"] {
        let mut disk = Disk::large();
        let mut worker = merging(&mut disk);
        worker.signal("HUP");
        thread::sleep(Duration::from_millis(50));
        assert!(worker.child.try_wait().unwrap().is_none(), "SIGHUP is ignored");
        worker.signal(name);
        let (status, took) = worker.ended();
        println!("SIG{name}: ended within {took:?}");
        assert_eq!(status.code(), Some(0));
        assert!(took < Duration::from_secs(1), "after {took:?}");
        assert!(!worker.socket().exists());
        disk.model.verify();

        let once = program(&["once", "--json"]).arg(disk.path()).output().unwrap();
        assert_eq!(once.status.code(), Some(0), "{once:?}");
        let report: serde_json::Value = serde_json::from_slice(&once.stdout).unwrap();
        let run = &report["repositories"][0]["merged"][0];
        assert!(run["bytes_resumed"].as_u64().unwrap() > 0, "{report:#}");
        disk.merged();
    }
}

#[test]
fn once_is_stopped_by_a_signal_too() {
    let mut disk = Disk::large();
    disk.delete_snapshots();
    let mut command = program(&["once", "--rate", "8M"]);
    let child = command.arg(disk.path()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    thread::sleep(Duration::from_secs(2));
    let pid = child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-s", "INT", &pid]).status().unwrap().success());
    let start = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "after {:?}", start.elapsed());
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(text.contains("stopped; the next collection goes on from there"), "{text}");
    disk.model.verify();
}

#[test]
fn a_second_worker_on_the_same_socket_is_refused() {
    let disk = Disk::small();
    let worker = Worker::start(&[disk.path()], &[]);
    let second = program(&["run"]).arg(disk.path()).arg("--socket").arg(worker.socket()).output().unwrap();
    let text = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(5), "{text}");
    assert!(text.contains("another worker listens here") && text.contains("hint: "), "{text}");
    assert_eq!(worker.status().pid, worker.child.id());
}

#[test]
fn without_a_worker_commands_tell_what_to_do() {
    for args in [&["status"][..], &["pause"], &["resume"], &["abort"], &["collect"], &["set-rate", "1M"]] {
        let output = program(args).args(["--socket", "/nowhere/socket"]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(5), "{text}");
        assert!(text.contains("no worker answers at /nowhere/socket"), "{text}");
        assert!(text.contains("hint: start one with `coalesce-worker run DIR`"), "{text}");
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let disk = Disk::small();
    let worker = Worker::start(&[disk.path()], &[]);
    let refused = worker.ask(&["collect", "/somewhere/else"]);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("/somewhere/else: is none of this worker's repositories"), "{text}");
    for args in [&["set-rate"][..], &["set-rate", "0"], &["set-rate", "fast"], &["run"], &["run", "a", "--uuid", "a"]] {
        assert_eq!(worker.ask(args).status.code(), Some(2), "{args:?}");
    }
}
