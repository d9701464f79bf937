//! Each lock, tried while another process holds it: a call that needs the lock waits or is refused, and has changed nothing.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use coalesce_worker::{Coalesce, Direction, Repository, Request};
use testkit::scene::{self, Scene};
use testkit::worker;
use vhd_core::{ByteCount, ChainOptions, FileStorage, Image, Lock, SectorCount};

/// What is done to a repository; the error as text.
type Step = fn(&Repository, &Path) -> Result<(), String>;

fn text<T, E: std::fmt::Debug>(result: Result<T, E>) -> Result<(), String> {
    result.map(drop).map_err(|error| format!("{error:?}"))
}

fn merge(repository: &Repository, folder: &Path, direction: Direction) -> Result<(), String> {
    let request = Request { node: folder.join("leaf.vhd"), into: Some(folder.join("mid.vhd")), direction, keep: false };
    let prepared = Coalesce::prepare(repository, &request).map_err(|error| format!("{error:?}"))?;
    text(worker::execute(prepared))
}

/// Everything that changes the structure of a repository, and of which the volume `leaf.vhd` is part.
const STEPS: [(&str, Step); 10] = [
    ("snapshot", |it, folder| text(it.snapshot(&folder.join("leaf.vhd"), &folder.join("new.vhd")))),
    ("clone", |it, folder| text(it.snapshot_within(&folder.join("leaf.vhd"), &folder.join("new.vhd"), 9))),
    ("revert", |it, folder| text(it.revert(&folder.join("leaf.vhd"), &folder.join("snap.vhd")))),
    ("delete", |it, folder| text(it.delete(&folder.join("leaf.vhd")))),
    ("hide", |it, folder| text(it.hide(&folder.join("leaf.vhd")))),
    ("resize", |it, folder| text(it.resize(&folder.join("leaf.vhd"), SectorCount(600).bytes()))),
    ("compact", |it, folder| text(it.compact(&folder.join("leaf.vhd"), |_: ByteCount| ()))),
    ("compose", |it, folder| text(it.compose(&folder.join("leaf.vhd"), &folder.join("apart.vhd")))),
    ("merge down", |it, folder| merge(it, folder, Direction::Down)),
    ("merge up", |it, folder| merge(it, folder, Direction::Up)),
];

fn scene() -> Scene {
    let scene = Scene::default();
    scene.dynamic("base.vhd", 400);
    scene.write("base.vhd", 0..200, 1);
    scene.hide("base.vhd");
    scene.child("mid.vhd", "base.vhd");
    scene.write("mid.vhd", 150..250, 2);
    scene.hide("mid.vhd");
    scene.child("leaf.vhd", "mid.vhd");
    scene.write("leaf.vhd", 100..110, 3);
    scene.write_zeros("leaf.vhd", 300..320);
    scene.child("snap.vhd", "base.vhd");
    scene.write("snap.vhd", 0..5, 4);
    scene.dynamic("apart.vhd", 400);
    scene.write("apart.vhd", 0..5, 5);
    scene.settle();
    scene
}

fn open(folder: &Path) -> Repository {
    Repository::open(folder, ChainOptions::default()).unwrap().0
}

/// What shows a change without a file being opened: a step may have it to itself.
fn images(folder: &Path) -> Vec<(OsString, u64, SystemTime)> {
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let (entry, metadata) = entry.map(|entry| (entry.file_name(), entry.metadata().unwrap())).unwrap();
            (entry, metadata.len(), metadata.modified().unwrap())
        })
        .filter(|(name, ..)| name != ".vhd")
        .collect();
    found.sort();
    found
}

#[test]
fn structure_is_changed_by_one_at_a_time() {
    for (name, step) in STEPS {
        let scene = scene();
        let repository = open(scene.path());
        fs::create_dir_all(scene.file(".vhd")).unwrap();
        let lock = File::options().create(true).truncate(false).write(true).open(scene.file(".vhd/lock")).unwrap();
        lock.lock().unwrap();
        let before = images(scene.path());
        let released = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let result = step(&repository, scene.path());
                (result, released.load(Ordering::SeqCst))
            });
            // Long enough for all of it, if it did not wait; were it too short, too little would be looked at.
            for _ in 0..30 {
                std::thread::sleep(Duration::from_millis(10));
                assert!(images(scene.path()) == before, "{name} changes something while another holds the lock");
            }
            released.store(true, Ordering::SeqCst);
            drop(lock);
            let (result, was_released) = waiter.join().unwrap();
            assert!(was_released, "{name} has not waited");
            assert_eq!(result, Ok(()), "{name}");
        });
        assert!(images(scene.path()) != before, "{name} has done nothing");
    }
}

#[test]
fn recovery_waits_for_whoever_changes_the_structure() {
    let scene = scene();
    let id = Image::open(&scene.file("leaf.vhd"), Lock::None).unwrap().footer().unique_id();
    scene.hide("leaf.vhd");
    fs::create_dir_all(scene.file(".vhd")).unwrap();
    let record = format!(r#"{{"record":"delete","path":"leaf.vhd","unique_id":"{id}"}}"#);
    crate::world::leave_journal(scene.path(), "0.journal", &record);
    let lock = File::options().create(true).truncate(false).write(true).open(scene.file(".vhd/lock")).unwrap();
    lock.lock().unwrap();
    std::thread::scope(|scope| {
        let recovery = scope.spawn(|| open(scene.path()));
        std::thread::sleep(Duration::from_millis(200));
        assert!(scene.file("leaf.vhd").exists(), "recovery has not waited");
        drop(lock);
        recovery.join().unwrap();
    });
    assert!(!scene.file("leaf.vhd").exists());
}

/// Of a volume that somebody writes to, and of one that somebody only holds, nothing changes.
#[test]
fn an_image_in_use_is_refused() {
    for (name, step) in STEPS {
        for exclusively in [false, true] {
            let scene = scene();
            let repository = open(scene.path());
            let kind = if exclusively { Lock::Exclusive } else { Lock::Shared };
            let _user = FileStorage::open(&scene.file("leaf.vhd"), kind).unwrap();
            let before = images(scene.path());
            let result = step(&repository, scene.path());
            assert!(result.is_err_and(|error| error.contains("ResourceBusy")), "{name}, exclusively: {exclusively}");
            assert!(images(scene.path()) == before, "{name}, exclusively: {exclusively}");
            assert_eq!(scene::state_files(scene.path()), <[String; 0]>::default());
        }
    }
}

/// What lies beneath the volume is held as well by whatever changes it.
#[test]
fn a_parent_in_use_is_not_merged() {
    for held in ["leaf.vhd", "mid.vhd"] {
        for direction in [Direction::Down, Direction::Up] {
            let scene = scene();
            let repository = open(scene.path());
            let _user = FileStorage::open(&scene.file(held), Lock::Shared).unwrap();
            let before = images(scene.path());
            assert!(merge(&repository, scene.path(), direction).is_err_and(|it| it.contains("ResourceBusy")), "{held}");
            assert!(images(scene.path()) == before);
        }
    }
}

/// A journal whose process lives is that process's affair.
#[test]
fn a_merge_under_way_is_not_recovered() {
    let scene = scene();
    let repository = open(scene.path());
    let request = Request {
        node: scene.file("leaf.vhd"),
        into: Some(scene.file("mid.vhd")),
        direction: Direction::Down,
        keep: false,
    };
    let before = scene::volumes(scene.path());
    let prepared = Coalesce::prepare(&repository, &request).unwrap();
    let looks = Mutex::new(Vec::new());
    let look = |_| {
        let journals = scene::state_files(scene.path());
        let recovered = Repository::open(scene.path(), ChainOptions::default()).map(|(_, recovered)| recovered);
        looks.lock().unwrap().push((recovered, journals == scene::state_files(scene.path())));
    };
    worker::with_options(&look, |options| prepared.execute(options)).unwrap();
    let looks = looks.into_inner().unwrap();
    assert!(!looks.is_empty());
    for (recovered, is_same) in looks {
        let recovered = recovered.unwrap();
        let is_alone = (recovered.finished, recovered.interrupted.len(), recovered.waiting.len()) == (0, 0, 0);
        assert!(is_alone && is_same, "{recovered:?}");
    }
    assert!(scene::volumes(scene.path()) == before);
    assert_eq!(scene::images(scene.path()), 4);
}

/// A merge that begins holds its images before it says so; and others only look.
#[test]
fn a_volume_that_is_locked_for_a_moment_is_waited_for() {
    let scene = scene();
    let repository = Repository::open(scene.path(), ChainOptions::default()).unwrap().0;
    let user = Image::open_writable(&scene.file("snap.vhd")).unwrap();
    std::thread::scope(|scope| {
        let deleted = scope.spawn(|| repository.delete(&scene.file("snap.vhd")));
        std::thread::sleep(Duration::from_millis(600));
        drop(user);
        deleted.join().unwrap().unwrap();
    });
    assert!(!scene.file("snap.vhd").exists());
}
