//! When the worker works, and when it does not.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use vhd_core::{BlockSize, ByteCount, Chain, ChainOptions, Existing, NewImage, NewKind, Volume, create_file};

use crate::disks::Disk;
use crate::process::{Worker, until};

const NEVER: [&str; 2] = ["--poll", "86400"];

/// From now until something has been merged or is being merged.
fn time_to_start(worker: &Worker) -> Duration {
    let start = Instant::now();
    until("it has started", || {
        let status = worker.status();
        let merging = status.repositories.iter().any(|repository| !repository.runs.is_empty());
        (merging || status.nodes_merged_total > 0).then(|| start.elapsed())
    })
}

#[test]
fn it_starts_within_a_second_of_a_snapshot_being_deleted() {
    for how in [Disk::remove_snapshots, Disk::delete_snapshots] {
        let mut disk = Disk::small();
        let worker = Worker::start(&[disk.path()], &NEVER);
        worker.settled();
        how(&mut disk);
        let took = time_to_start(&worker);
        println!("started after {took:?}");
        assert!(took < Duration::from_secs(1), "after {took:?}");
        disk.merged();
    }
}

#[test]
fn what_there_is_at_the_start_is_collected_in_all_repositories() {
    let mut disks = [Disk::small(), Disk::small(), Disk::small()];
    disks.iter_mut().for_each(Disk::delete_snapshots);
    let folders: Vec<_> = disks.iter().map(Disk::path).collect();
    let worker = Worker::start(&folders, &NEVER);
    disks.iter().for_each(Disk::merged);
    let status = worker.settled();
    assert_eq!(status.repositories.len(), 3);
    assert_eq!((status.errors_total, status.repositories[2].backlog_nodes), (0, 0));
}

#[test]
fn new_work_does_not_wait_for_a_long_merge() {
    let mut disk = Disk::large();
    disk.remove_snapshots();
    let worker = Worker::start(&[disk.path()], &["--poll", "86400", "--rate", "4M", "--threads", "2"]);
    worker.merging();
    // A volume of its own, with a snapshot that is deleted while the merge goes on.
    let (volume, snapshot) = (disk.path().join("new.vhd"), disk.path().join("new-snapshot.vhd"));
    let new = NewImage::new(ByteCount(4 << 20), NewKind::Dynamic { block_size: BlockSize::DEFAULT });
    create_file(&volume, &new, Existing::Keep).unwrap();
    testkit::worker::snapshot(&volume, &snapshot).unwrap();
    fs::remove_file(snapshot).unwrap();
    let start = Instant::now();
    let images = || fs::read_dir(disk.path()).unwrap().count();
    let before = images();
    until("the other volume is merged", || (images() < before).then_some(()));
    let took = start.elapsed();
    println!("merged beside another after {took:?}");
    assert!(took < Duration::from_secs(2), "after {took:?}");
    assert!(!worker.status().repositories[0].runs.is_empty(), "the long merge goes on");
    worker.told(&["set-rate", "none"]);
    until("all is merged", || (disk.images() == 2).then_some(()));
    disk.model.verify();
}

#[test]
fn what_waits_for_a_volume_goes_on_as_soon_as_it_is_released() {
    let mut disk = Disk::small();
    disk.delete_snapshots();
    let writer = Volume::open(&disk.volume, &ChainOptions::default()).unwrap();
    let worker = Worker::start(&[disk.path()], &NEVER);
    let status = worker.settled();
    assert!(!status.repositories[0].waiting.is_empty(), "{status}");
    println!("{status}");
    writer.close().unwrap();
    disk.merged();

    let mut disk = Disk::small();
    disk.delete_snapshots();
    let open = Chain::open(&disk.volume, &ChainOptions::default()).unwrap();
    let worker = Worker::start(&[disk.path()], &NEVER);
    worker.settled();
    drop(open);
    disk.merged();
}

#[test]
fn a_worker_with_nothing_to_do_does_nothing() {
    let mut idle = Disk::small();
    let mut waits = Disk::small();
    idle.delete_snapshots();
    waits.delete_snapshots();
    let user = Volume::open(&waits.volume, &ChainOptions::default()).unwrap();
    let worker = Worker::start(&[idle.path(), waits.path()], &NEVER);
    idle.merged();
    worker.settled();
    let (before, log) = (worker.processor_time(), worker.log());
    thread::sleep(Duration::from_secs(2));
    let used = worker.processor_time() - before;
    println!("processor time in two seconds: {used:?}");
    assert!(used <= Duration::from_millis(20), "{used:?}: {}", worker.log());
    assert_eq!(worker.log(), log, "nor does it look");
    user.close().unwrap();
    waits.merged();
}

#[test]
fn a_folder_that_is_not_there_is_tried_again_and_hinders_no_other() {
    let mut disk = Disk::small();
    disk.delete_snapshots();
    let place = tempfile::tempdir().unwrap();
    let missing = place.path().join("missing");
    let worker = Worker::start(&[&missing, disk.path()], &["--poll", "1"]);
    disk.merged();
    let status = worker.status();
    let error = status.repositories[0].last_error.clone().unwrap();
    assert!(error.contains("missing: cannot open the folder"), "{error}");

    let mut late = Disk::small();
    late.delete_snapshots();
    std::os::unix::fs::symlink(late.path(), &missing).unwrap();
    late.merged();
    until("the error is gone", || worker.status().repositories[0].last_error.is_none().then_some(()));
}

#[test]
fn metrics_are_written_to_files() {
    let mut disk = Disk::small();
    disk.delete_snapshots();
    let place = tempfile::tempdir().unwrap();
    let (prometheus, rrd) = (place.path().join("worker.prom"), place.path().join("worker"));
    let uuid = "0123abcd-0000-4000-8000-000000000001";
    let named = format!("{}={uuid}", disk.path().display());
    let (prom_text, rrd_text) = (prometheus.display().to_string(), rrd.display().to_string());
    let options = ["--prometheus", &prom_text, "--rrd", &rrd_text, "--uuid", &named];
    let mut worker = Worker::start(&[disk.path()], &options);
    disk.merged();
    worker.settled();
    let text = fs::read_to_string(&prometheus).unwrap();
    let merged = text.lines().find(|line| line.starts_with("vhd_coalesce_nodes_merged_total{")).unwrap();
    assert!(!merged.ends_with(" 0"), "{merged}");

    let bytes = fs::read(&rrd).unwrap();
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    assert_eq!(&bytes[..11], b"DATASOURCES");
    let values = number(19);
    let at = 31 + 8 * values;
    let metadata: serde_json::Value = serde_json::from_slice(&bytes[at + 4..at + 4 + number(at)]).unwrap();
    let sources = metadata["datasources"].as_object().unwrap();
    assert_eq!((sources.len(), values), (6, 6));
    assert_eq!(sources["coalesce_copied_0123abcd"]["owner"], format!("sr {uuid}"));

    worker.signal("TERM");
    assert_eq!(worker.ended().0.code(), Some(0));
    assert!(!rrd.exists(), "xcp-rrdd knows by that that there will be no more");
}
