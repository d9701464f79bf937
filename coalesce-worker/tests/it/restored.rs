//! Files are restored, replaced or written to while a merge is interrupted: in place, so that their inodes stay. Every volume goes
//! on reading as it did just after that.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coalesce_worker::{Abort, Coalesce, Direction, Repository, Request};
use testkit::poorfs::{PoorFs, Refusal};
use testkit::scene::{self, Scene};
use testkit::{pattern, worker};
use vhd_core::{ByteCount, ChainOptions, FileStorage, Image, Lock, MergeMark, Sector, SectorRange};

const UNIT: u64 = 4096;
const SECTORS: u64 = 16 * UNIT;

/// What a disk holds that was written from end to end.
fn full(tag: u16) -> Vec<u8> {
    pattern::fill(SectorRange::between(Sector(0), Sector(SECTORS)), tag)
}

/// A volume on a hidden base, both full.
fn volume_on_base(scene: &Scene) {
    scene.dynamic("base.vhd", SECTORS);
    scene.write("base.vhd", 0..SECTORS, 1);
    scene.hide("base.vhd");
    scene.child("leaf.vhd", "base.vhd");
    scene.write("leaf.vhd", 0..SECTORS, 2);
}

fn down(scene: &Scene, node: &str) -> Request {
    Request { node: scene.file(node), into: None, direction: Direction::Down, keep: false }
}

fn open(folder: &Path) -> Repository {
    let (repository, recovered) = Repository::open(folder, ChainOptions::default()).unwrap();
    assert!(recovered.waiting.is_empty(), "{recovered:?}");
    repository
}

/// Merges, and stops after so many stretches of 2 MiB, or once all has been merged; gives where a merge of the same would go on.
fn interrupt(request: &Request, units: Option<u64>) -> Option<Sector> {
    let (abort, seen) = (Abort::new(), AtomicU64::new(0));
    let progress = |moved: ByteCount| {
        let now = moved.0 / (UNIT * 512);
        if now > seen.swap(now, Ordering::Relaxed) {
            // Checkpoints take a moment.
            std::thread::sleep(Duration::from_millis(50));
        }
        if units.is_some_and(|units| now >= units) {
            abort.abort();
        }
    };
    let repository = open(request.node.parent().unwrap());
    let prepared = Coalesce::prepare(&repository, request).unwrap();
    let stopped = worker::interrupt(prepared, &progress, &abort);
    stopped.unwrap_err();
    units?;
    Coalesce::prepare(&repository, request).unwrap().resumes_at()
}

/// The files of a folder, to be put back where they were by writing over what is there then.
struct Backup(BTreeMap<PathBuf, Vec<u8>>);

impl Backup {
    fn of(scene: &Scene, names: &[&str]) -> Self {
        Self(names.iter().map(|name| (scene.file(name), fs::read(scene.file(name)).unwrap())).collect())
    }

    fn restore(&self) {
        for (path, content) in &self.0 {
            fs::write(path, content).unwrap();
        }
    }
}

/// Goes on, and checks that the volume is what it has to be, whole, with nothing left over.
fn goes_on(scene: &Scene, request: &Request, expected: &[u8]) {
    assert!(scene::content(&request.node) == expected, "the test itself has changed the volume");
    let repository = open(scene.path());
    assert!(scene::content(&request.node) == expected, "recovery has changed the volume");
    if scene::layers(&request.node).len() > 1 {
        worker::execute(Coalesce::prepare(&repository, request).unwrap()).unwrap();
    }
    assert!(scene::content(&request.node) == expected, "the merge has changed the volume");
    scene::check(scene.path());
    assert_eq!(scene::images(scene.path()), 1);
    assert_eq!(scene::state_files(scene.path()), <[String; 0]>::default());
    let merged = Image::open(&request.node, Lock::None).unwrap();
    assert_eq!(merged.footer().merge_mark(), None);
}

#[test]
fn a_backup_of_all_files_is_not_taken_for_what_was_merged() {
    for units in [Some(9), None] {
        let scene = Scene::default();
        volume_on_base(&scene);
        let backup = Backup::of(&scene, &["base.vhd", "leaf.vhd"]);
        assert_eq!(interrupt(&down(&scene, "leaf.vhd"), units) > Some(Sector(0)), units.is_some());
        backup.restore();
        goes_on(&scene, &down(&scene, "leaf.vhd"), &full(2));
    }
}

/// As above, of a node that is no volume: nothing but the target tells.
#[test]
fn a_backup_of_all_files_under_two_volumes_is_not_taken_for_what_was_merged() {
    for units in [Some(9), None] {
        let scene = Scene::default();
        volume_on_base(&scene);
        scene.hide("leaf.vhd");
        let files = ["base.vhd", "leaf.vhd", "child-1.vhd", "child-2.vhd"];
        files[2..].iter().for_each(|child| scene.child(child, "leaf.vhd"));
        scene.settle();
        let backup = Backup::of(&scene, &files);
        interrupt(&down(&scene, "leaf.vhd"), units);
        backup.restore();
        open(scene.path());
        assert!(children(&scene) == [full(2), full(2)]);
        worker::collect(scene.path());
        assert!(children(&scene) == [full(2), full(2)]);
        assert_eq!(scene::images(scene.path()), 3);
        scene::check(scene.path());
    }
}

#[test]
fn a_target_from_an_earlier_moment_of_the_merge_is_as_far_as_it_was() {
    let scene = Scene::default();
    volume_on_base(&scene);
    let early = interrupt(&down(&scene, "leaf.vhd"), Some(4));
    let backup = Backup::of(&scene, &["base.vhd"]);
    let late = interrupt(&down(&scene, "leaf.vhd"), Some(6));
    assert!(Some(Sector(0)) < early && early < late, "{early:?}, {late:?}");
    backup.restore();
    assert_eq!(Coalesce::prepare(&open(scene.path()), &down(&scene, "leaf.vhd")).unwrap().resumes_at(), early);
    goes_on(&scene, &down(&scene, "leaf.vhd"), &full(2));
}

/// A backup of the sources was taken when they held something else.
#[test]
fn a_source_that_was_restored_is_merged_as_it_is_now() {
    for is_hidden in [false, true] {
        for units in [Some(9), None] {
            let scene = Scene::default();
            volume_on_base(&scene);
            if is_hidden {
                scene.hide("leaf.vhd");
            }
            let backup = Backup::of(&scene, &["leaf.vhd"]);
            let volume = Image::open_writable(&scene.file("leaf.vhd")).unwrap();
            volume.write(SectorRange::between(Sector(0), Sector(SECTORS)), &full(3)).unwrap();
            volume.close().unwrap();
            interrupt(&down(&scene, "leaf.vhd"), units);
            backup.restore();
            goes_on(&scene, &down(&scene, "leaf.vhd"), &full(2));
        }
    }
}

#[test]
fn a_merge_into_a_raw_disk_goes_on_as_far_as_that_holds_it() {
    let scene = Scene::default();
    scene.raw("base.raw", SECTORS);
    scene.child("node.vhd", "base.raw");
    scene.write("node.vhd", 0..SECTORS, 2);
    scene.hide("node.vhd");
    scene.child("leaf.vhd", "node.vhd");
    let backup = Backup::of(&scene, &["base.raw"]);
    let request = down(&scene, "node.vhd");
    for is_restored in [false, true] {
        assert!(interrupt(&request, Some(6)) > Some(Sector(0)));
        if is_restored {
            backup.restore();
            let resumes_at = Coalesce::prepare(&open(scene.path()), &request).unwrap().resumes_at();
            assert_eq!(resumes_at, Some(Sector(0)));
        }
        assert!(scene::content(&scene.file("leaf.vhd")) == full(2));
    }
    interrupt(&request, None);
    backup.restore();
    let repository = open(scene.path());
    assert!(scene::content(&scene.file("leaf.vhd")) == full(2));
    worker::execute(Coalesce::prepare(&repository, &request).unwrap()).unwrap();
    assert!(scene::content(&scene.file("leaf.vhd")) == full(2));
    assert!(fs::read(scene.file("base.raw")).unwrap() == full(2));
}

/// Two volumes on a node. The first reads from the target already, the second is in use: the merge waits.
fn half_relinked() -> (Scene, Backup) {
    let scene = Scene::default();
    volume_on_base(&scene);
    scene.hide("leaf.vhd");
    for child in ["child-1.vhd", "child-2.vhd"] {
        scene.child(child, "leaf.vhd");
        scene.write(child, 0..8, 4);
    }
    let backup = Backup::of(&scene, &["base.vhd", "leaf.vhd", "child-1.vhd", "child-2.vhd"]);
    // Nobody but a process that dies between the two leaves it at that, so the journal is of one that was aborted before.
    interrupt(&down(&scene, "leaf.vhd"), None);
    let user = FileStorage::open(&scene.file("child-2.vhd"), Lock::Shared).unwrap();
    let (_, recovered) = Repository::open(scene.path(), ChainOptions::default()).unwrap();
    assert_eq!(recovered.waiting.len(), 1, "{recovered:?}");
    drop(user);
    assert_eq!(scene::layers(&scene.file("child-1.vhd")).len(), 2);
    assert_eq!(scene::layers(&scene.file("child-2.vhd")).len(), 3);
    (scene, backup)
}

fn children(scene: &Scene) -> [Vec<u8>; 2] {
    ["child-1.vhd", "child-2.vhd"].map(|name| scene::content(&scene.file(name)))
}

#[test]
fn all_files_are_restored_after_the_first_child_was_relinked() {
    let (scene, backup) = half_relinked();
    backup.restore();
    let before = children(&scene);
    open(scene.path());
    assert!(children(&scene) == before);
    assert_eq!(scene::state_files(scene.path()), <[String; 0]>::default());
    worker::collect(scene.path());
    assert!(children(&scene) == before);
    assert_eq!(scene::images(scene.path()), 3);
    scene::check(scene.path());
}

/// What the first child lacks then is in the sources alone: they stay, and it is told.
#[test]
fn only_the_target_is_restored_after_the_first_child_was_relinked() {
    let (scene, backup) = half_relinked();
    let before = children(&scene);
    let merged = Backup::of(&scene, &["base.vhd"]);
    fs::write(scene.file("base.vhd"), &backup.0[&scene.file("base.vhd")]).unwrap();
    for _ in 0..2 {
        let (_, recovered) = Repository::open(scene.path(), ChainOptions::default()).unwrap();
        let told = recovered.waiting[0].reason.to_string();
        assert!(told.contains("restored or replaced") && told.contains("child-1.vhd"), "{told}");
        assert_eq!(scene::images(scene.path()), 4);
    }
    merged.restore();
    open(scene.path());
    assert!(children(&scene) == before);
    assert_eq!(scene::images(scene.path()), 3);
    scene::check(scene.path());
}

/// On a file system that counts time in seconds a volume is written to in the second of its last change.
#[test]
fn a_write_in_the_same_second_is_not_lost() {
    let poor = PoorFs::new(&[Refusal::FineTimes]);
    for round in 0..4 {
        let folder = poor.path().join(round.to_string());
        fs::create_dir(&folder).unwrap();
        let scene = Scene::within(&folder);
        volume_on_base(&scene);
        let units = (round % 2 == 0).then_some(3);
        interrupt(&down(&scene, "leaf.vhd"), units);
        scene.write("leaf.vhd", 0..UNIT, 5);
        let expected = [&full(5)[..UNIT as usize * 512], &full(2)[UNIT as usize * 512..]].concat();
        goes_on(&scene, &down(&scene, "leaf.vhd"), &expected);
    }
}

/// A checkpoint is true of an image that says so itself, and of sources that have not been touched.
#[test]
fn an_undisturbed_merge_reads_nothing_again() {
    let scene = Scene::default();
    volume_on_base(&scene);
    scene.settle();
    let resumes_at = interrupt(&down(&scene, "leaf.vhd"), Some(9)).unwrap();
    let mark = Image::open(&scene.file("base.vhd"), Lock::None).unwrap().footer().merge_mark().unwrap();
    assert_eq!(mark.merged_before, resumes_at);
    assert!(mark.merged_before < MergeMark::ALL);
    let [journal] = &scene::state_files(scene.path())[..] else { panic!("one journal") };
    assert!(journal.starts_with(&mark.merge.to_string()), "{journal}");
    // To read it again, or to write it again, would bring to light what has happened to the first sector.
    let path = scene.file("base.vhd");
    let first = full(2)[..512].to_vec();
    let at =
        fs::read(&path).unwrap().windows(512).step_by(512).position(|sector| sector == first).unwrap() as u64 * 512;
    fs::File::options().write(true).open(&path).unwrap().write_all_at(b"changed", at).unwrap();
    worker::execute(Coalesce::prepare(&open(scene.path()), &down(&scene, "leaf.vhd")).unwrap()).unwrap();
    let expected = [b"changed", &full(2)[7..]].concat();
    assert!(scene::content(&scene.file("leaf.vhd")) == expected);
}
