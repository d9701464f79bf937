//! What a collector has to do, and where others have lost data; every volume reads the same through all of it.

use std::fs;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use coalesce_worker::{
    Abort, Budget, Coalesce, CoalesceError, CollectOptions, Collected, CopyMethod, Direction, Limits, MergeError,
    MergeOptions, Outcome, Repository, Request,
};
use testkit::filesystem::Tmpfs;
use testkit::scene::{self, Scene};
use testkit::{pattern, worker};
use vhd_core::{
    BlockSize, ByteCount, ChainOptions, Existing, NewImage, NewKind, Sector, SectorRange, Volume, create_file,
};

fn open(folder: &Path) -> Repository {
    let (repository, recovered) = Repository::open(folder, ChainOptions::default()).unwrap();
    assert!(recovered.waiting.is_empty(), "{recovered:?}");
    repository
}

fn collect_with(folder: &Path, budget: &Budget, abort: &Abort) -> Collected {
    let options = CollectOptions {
        threads: NonZeroUsize::new(1),
        budget,
        abort,
        method: CopyMethod::Auto,
        detect_zeroes: false,
        board: None,
    };
    let (repository, _) = Repository::open(folder, ChainOptions::default()).unwrap();
    repository.collect(&options).unwrap()
}

fn collect(folder: &Path) -> Collected {
    collect_with(folder, &Budget::default(), &Abort::new())
}

/// Does something to a repository, after which its volumes read as before and its images are sound.
fn unchanged<T>(folder: &Path, work: impl FnOnce() -> T) -> T {
    let before = scene::volumes(folder);
    let result = work();
    assert!(scene::volumes(folder) == before, "a volume has changed");
    scene::check(folder);
    result
}

fn merge(scene: &Scene, node: &str, into: &str) -> Result<coalesce_worker::Outcome, CoalesceError> {
    worker::coalesce(&down(scene, node, into), &ChainOptions::default())
}

fn down(scene: &Scene, node: &str, into: &str) -> Request {
    Request { node: scene.file(node), into: Some(scene.file(into)), direction: Direction::Down, keep: false }
}

/// A hidden base, a hidden child of it, and a volume on that; each has something that the others have not.
fn chain() -> Scene {
    let scene = Scene::default();
    scene.dynamic("base.vhd", 400);
    scene.write("base.vhd", 0..200, 1);
    scene.hide("base.vhd");
    scene.child("mid.vhd", "base.vhd");
    scene.write("mid.vhd", 150..250, 2);
    scene.scatter("mid.vhd", 2..12, 2);
    scene.hide("mid.vhd");
    scene.child("leaf.vhd", "mid.vhd");
    scene.write("leaf.vhd", 100..110, 3);
    scene
}

/// The same with some megabytes in the hidden child.
fn slow_chain() -> Scene {
    let scene = Scene::with_blocks(BlockSize::DEFAULT);
    scene.dynamic("base.vhd", 65536);
    scene.write("base.vhd", 0..40000, 1);
    scene.hide("base.vhd");
    scene.child("mid.vhd", "base.vhd");
    scene.write("mid.vhd", 0..32768, 2);
    scene.hide("mid.vhd");
    scene.child("leaf.vhd", "mid.vhd");
    scene.write("leaf.vhd", 100..110, 3);
    scene.settle();
    scene
}

fn megabytes_per_second(rate: u64) -> Budget {
    Budget::new(Limits { bytes_per_second: NonZeroU64::new(rate << 20), in_flight: None })
}

#[test]
fn a_hidden_leaf_is_deleted_and_its_ancestors_with_it() {
    let scene = chain();
    scene.dynamic("other.vhd", 8);
    scene.hide("leaf.vhd");
    let collected = unchanged(scene.path(), || collect(scene.path()));
    assert_eq!(collected.deleted.len(), 3);
    assert_eq!(scene::images(scene.path()), 1);
}

#[test]
fn a_hidden_node_with_a_pending_relink_is_kept_until_that_is_done() {
    let scene = chain();
    let repository = open(scene.path());
    let before = scene::volumes(scene.path());
    let prepared = Coalesce::prepare(&repository, &down(&scene, "mid.vhd", "base.vhd")).unwrap();
    let user = Volume::open(&scene.file("leaf.vhd"), &ChainOptions::default()).unwrap();
    let outcome = worker::execute(prepared).unwrap();
    assert_eq!(outcome.waits_for, Some(scene.file("leaf.vhd").canonicalize().unwrap()));
    let (_, recovered) = Repository::open(scene.path(), ChainOptions::default()).unwrap();
    assert_eq!(recovered.waiting.len(), 1);
    assert!(scene.file("mid.vhd").exists());
    user.close().unwrap();
    open(scene.path());
    assert!(!scene.file("mid.vhd").exists());
    assert!(scene::volumes(scene.path()) == before);
    assert_eq!(scene::depth(&scene.file("leaf.vhd")), 2);
}

#[test]
fn a_node_with_two_children_is_not_merged() {
    let scene = chain();
    scene.child("beside.vhd", "base.vhd");
    scene.child("twin.vhd", "mid.vhd");
    scene.write("twin.vhd", 0..3, 4);
    let collected = unchanged(scene.path(), || collect(scene.path()));
    assert!(collected.merged.is_empty() && collected.deleted.is_empty(), "{collected:?}");
    assert_eq!(scene::images(scene.path()), 5);
}

#[test]
fn a_raw_parent_is_merged_into() {
    let scene = Scene::default();
    scene.raw("disk.img", 300);
    scene.child("mid.vhd", "disk.img");
    scene.scatter("mid.vhd", 0..30, 2);
    scene.hide("mid.vhd");
    scene.child("leaf.vhd", "mid.vhd");
    unchanged(scene.path(), || merge(&scene, "mid.vhd", "disk.img").unwrap());
    assert_eq!(scene::layers(&scene.file("leaf.vhd")).len(), 2);
    assert!(!scene.file("mid.vhd").exists());
}

#[test]
fn a_parent_that_is_smaller_than_its_child_grows_first() {
    for fixed in [false, true] {
        let scene = Scene::default();
        if fixed {
            scene.fixed("base.vhd", 64);
        } else {
            scene.dynamic("base.vhd", 64);
        }
        scene.write("base.vhd", 0..64, 1);
        scene.hide("base.vhd");
        scene.larger_child("mid.vhd", "base.vhd", 3000);
        scene.write("mid.vhd", 2990..3000, 2);
        scene.hide("mid.vhd");
        scene.child("leaf.vhd", "mid.vhd");
        unchanged(scene.path(), || merge(&scene, "mid.vhd", "base.vhd").unwrap());
        assert_eq!(scene::depth(&scene.file("leaf.vhd")), 2);
    }
}

/// Blocks are shared: of one that the child has in part, the rest is still the parent's.
#[test]
fn only_sectors_that_are_set_overwrite() {
    let scene = chain();
    let before = scene::content(&scene.file("base.vhd"));
    unchanged(scene.path(), || merge(&scene, "mid.vhd", "base.vhd").unwrap());
    let now = scene::content(&scene.file("base.vhd"));
    let set = |sector: u64| {
        (150..250).contains(&sector)
            || (16..96).contains(&sector) && sector % 8 < if (sector / 8).is_multiple_of(3) { 4 } else { 1 }
    };
    for sector in 0..400_u64 {
        let at = sector as usize * 512..sector as usize * 512 + 512;
        let expected =
            if set(sector) { pattern::sector(Sector(sector), 2).to_vec() } else { before[at.clone()].to_vec() };
        assert!(now[at] == expected, "sector {sector}");
    }
}

#[test]
fn all_grandchildren_are_relinked() {
    let scene = chain();
    for (name, tag) in [("second.vhd", 4), ("third.vhd", 5), ("fourth.vhd", 6)] {
        scene.child(name, "mid.vhd");
        scene.write(name, 10..20, tag);
    }
    let outcome = unchanged(scene.path(), || merge(&scene, "mid.vhd", "base.vhd").unwrap());
    assert_eq!(outcome.relinked.len(), 4);
    for name in scene::volumes(scene.path()).keys() {
        assert_eq!(scene::depth(&scene.file(name)), 2, "{name}");
    }
}

#[test]
fn a_leaf_in_use_delays_deletion_and_loses_nothing() {
    let scene = chain();
    let expected = scene::content(&scene.file("leaf.vhd"));
    let user = Volume::open(&scene.file("leaf.vhd"), &ChainOptions::default()).unwrap();
    for _ in 0..2 {
        collect(scene.path());
        assert!(scene::layers(&scene.file("leaf.vhd")).iter().all(|path| path.exists()));
        let mut bytes = vec![0; expected.len()];
        user.read(SectorRange::between(Sector(0), Sector(400)), &mut bytes).unwrap();
        assert!(bytes == expected, "its user reads what it read");
    }
    user.close().unwrap();
    unchanged(scene.path(), || collect(scene.path()));
    assert_eq!(scene::images(scene.path()), 1);
}

#[test]
fn too_little_space_skips_that_candidate_only() {
    let disk = Tmpfs::new(ByteCount(30 << 20));
    let path = |name: &str| disk.path().join(name);
    let write = |name: &str, sectors: std::ops::Range<u64>, tag| {
        let volume = Volume::open(&path(name), &ChainOptions::default()).unwrap();
        let range = SectorRange::between(Sector(sectors.start), Sector(sectors.end));
        volume.write(range, &pattern::fill(range, tag)).unwrap();
        volume.close().unwrap();
    };
    let repository = open(disk.path());
    for (name, megabytes) in [("large.vhd", 14), ("small.vhd", 2)] {
        let kind = NewKind::Dynamic { block_size: BlockSize::DEFAULT };
        create_file(&path(name), &NewImage::new(ByteCount(64 << 20), kind), Existing::Keep).unwrap();
        for (sectors, tag) in [(0..megabytes * 2048, 1), (65536..65536 + 2048, 2)] {
            write(name, sectors, tag);
            repository.snapshot(&path(name), &path("snapshot.vhd")).unwrap();
            repository.delete(&path("snapshot.vhd")).unwrap();
        }
    }
    // Below a volume in use data moves up, and nothing can be taken away from where it was.
    let user = vhd_core::Image::open_writable(&path("large.vhd")).unwrap();
    let collected = unchanged(disk.path(), || collect(disk.path()));
    assert!(collected.failed.is_empty(), "{collected:?}");
    assert!(collected.waiting.iter().any(|waiting| waiting.reason.contains("missing")), "{collected:?}");
    assert_eq!(scene::depth(&path("small.vhd")), 1);
    assert_eq!(scene::depth(&path("large.vhd")), 3);
    drop(user);
}

/// The lock on names and parents is never held while data moves; whoever needs an image of the run gets it.
#[test]
fn snapshots_and_deletions_go_on_during_a_slow_merge() {
    for volume in ["leaf.vhd", "beside.vhd"] {
        let scene = slow_chain();
        scene.dynamic("beside.vhd", 8);
        scene.write("beside.vhd", 0..8, 7);
        scene.dynamic("gone.vhd", 8);
        let before = scene::volumes(scene.path());
        let (budget, abort) = (megabytes_per_second(4), Abort::new());
        thread::scope(|scope| {
            let collecting = scope.spawn(|| collect_with(scene.path(), &budget, &abort));
            while scene::state_files(scene.path()).is_empty() {
                thread::sleep(Duration::from_millis(5));
            }
            thread::sleep(Duration::from_millis(50));
            let start = Instant::now();
            let repository = open(scene.path());
            repository.snapshot(&scene.file(volume), &scene.file("new.vhd")).unwrap();
            if volume != "leaf.vhd" {
                repository.delete(&scene.file("gone.vhd")).unwrap();
            }
            assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
            abort.abort();
            _ = collecting.join();
        });
        assert!(scene::content(&scene.file("new.vhd")) == before[volume]);
        assert!(scene::content(&scene.file("leaf.vhd")) == before["leaf.vhd"]);
        unchanged(scene.path(), || collect(scene.path()));
    }
}

fn execute(
    scene: &Scene,
    budget: &Budget,
    abort: &Abort,
    progress: &(dyn Fn(ByteCount) + Sync),
) -> Result<Outcome, CoalesceError> {
    let repository = open(scene.path());
    let prepared = Coalesce::prepare(&repository, &down(scene, "mid.vhd", "base.vhd")).unwrap();
    let options = MergeOptions {
        threads: NonZeroUsize::new(1),
        progress,
        merged: &|| (),
        budget,
        abort,
        method: CopyMethod::ReadWrite,
        detect_zeroes: false,
        checkpoint_every: None,
    };
    prepared.execute(&options)
}

/// Whoever is told of the progress panics: that ends the merge, and nothing waits for a thread that is gone.
#[test]
fn a_panic_ends_a_merge_like_an_abort() {
    let scene = slow_chain();
    let before = scene::volumes(scene.path());
    let progress = |_: ByteCount| panic!("told of the progress");
    let merge = || execute(&scene, &Budget::default(), &Abort::new(), &progress);
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(merge)).unwrap_err();
    assert!(scene::volumes(scene.path()) == before);
    unchanged(scene.path(), || collect(scene.path()));
}

#[test]
fn an_abort_is_quick_and_the_next_run_goes_on_from_there() {
    let scene = slow_chain();
    let (budget, abort) = (megabytes_per_second(40), Abort::new());
    let all = ByteCount(16 << 20);
    let aborted = std::sync::Mutex::new(None);
    let half = |moved: ByteCount| {
        if moved.0 >= all.0 / 2 && !abort.is_aborted() {
            *aborted.lock().unwrap() = Some(Instant::now());
            abort.abort();
        }
    };
    let error = unchanged(scene.path(), || execute(&scene, &budget, &abort, &half).unwrap_err());
    let taken = aborted.lock().unwrap().unwrap().elapsed();
    assert!(matches!(error, CoalesceError::Merge(MergeError::Aborted(_))), "{error}");
    assert!(taken < Duration::from_millis(200) + CHECKING, "{taken:?}");
    // One that is stopped before its first checkpoint keeps those of the one before.
    let stopped = Abort::new();
    stopped.abort();
    unchanged(scene.path(), || execute(&scene, &Budget::default(), &stopped, &|_| {}).unwrap_err());
    let outcome = unchanged(scene.path(), || execute(&scene, &Budget::default(), &Abort::new(), &|_| {}).unwrap());
    assert!(outcome.resumed.0 > 0, "{outcome:?}");
    println!("stopped at half of {all} bytes, {} were moved after that", outcome.moved.data);
    assert_eq!(outcome.resumed.0 + outcome.moved.data.0, all.0);
}

/// What reading the volumes again may take on a busy machine.
const CHECKING: Duration = Duration::from_secs(1);

#[test]
fn a_corrupt_image_is_isolated_and_the_rest_collected() {
    let scene = chain();
    fs::write(scene.file("broken.vhd"), vec![0x5a; 70_000]).unwrap();
    fs::write(scene.file("empty.vhd"), []).unwrap();
    let before = scene::volumes(scene.path());
    let collected = collect(scene.path());
    assert!(collected.failed.is_empty(), "{collected:?}");
    assert!(collected.isolated.iter().any(|isolated| isolated.path.ends_with("broken.vhd")), "{collected:?}");
    assert!(scene::volumes(scene.path()) == before);
    assert_eq!(scene::depth(&scene.file("leaf.vhd")), 1);
    assert!(fs::read(scene.file("broken.vhd")).unwrap() == vec![0x5a; 70_000]);
}

#[test]
fn the_tree_of_a_corrupt_image_is_left_alone() {
    let scene = chain();
    scene.child("above.vhd", "mid.vhd");
    let mut bytes = fs::read(scene.file("above.vhd")).unwrap();
    let end = bytes.len() - 512;
    bytes[..512].fill(0);
    bytes[end..].fill(0);
    fs::write(scene.file("above.vhd"), bytes).unwrap();
    let before = scene::files(scene.path());
    let collected = collect(scene.path());
    assert!(collected.merged.is_empty() && collected.deleted.is_empty(), "{collected:?}");
    let mut now = scene::files(scene.path());
    now.retain(|name, _| !name.contains('/'));
    assert!(now == before);
}

#[test]
fn an_empty_leaf_is_merged_away_and_costs_nothing() {
    let scene = Scene::default();
    scene.dynamic("base.vhd", 400);
    scene.write("base.vhd", 0..200, 1);
    scene.hide("base.vhd");
    scene.child("leaf.vhd", "base.vhd");
    let collected = unchanged(scene.path(), || collect(scene.path()));
    assert_eq!(collected.merged[0].outcome.moved.data, ByteCount(0));
    assert_eq!(scene::images(scene.path()), 1);
}

#[test]
fn bytes_that_nobody_knows_are_kept() {
    let scene = chain();
    let mut bytes = fs::read(scene.file("leaf.vhd")).unwrap();
    let end = bytes.len() - 512;
    for at in [0, end] {
        bytes[at + 200..at + 210].copy_from_slice(b"not for us");
        bytes[at + 64..at + 68].fill(0);
        let sum: u32 = bytes[at..at + 512].iter().map(|&byte| u32::from(byte)).sum();
        bytes[at + 64..at + 68].copy_from_slice(&(!sum).to_be_bytes());
    }
    fs::write(scene.file("leaf.vhd"), bytes).unwrap();
    fs::write(scene.file("notes.txt"), "ours").unwrap();
    unchanged(scene.path(), || merge(&scene, "mid.vhd", "base.vhd").unwrap());
    let bytes = fs::read(scene.file("leaf.vhd")).unwrap();
    let end = bytes.len() - 512;
    for at in [0, end] {
        assert_eq!(&bytes[at + 200..at + 210], b"not for us");
    }
    assert_eq!(fs::read(scene.file("notes.txt")).unwrap(), b"ours");
}
