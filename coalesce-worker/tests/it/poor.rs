//! Lives of volumes on file systems that can less: what each volume reads as is known from outside.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use coalesce_worker::{
    Abort, Budget, Coalesce, CoalesceError, CopyMethod, Deleted, Direction, MergeError, MergeOptions, Repository,
    Request, Snapshotted,
};
use testkit::filesystem::Fuse2fs;
use testkit::model::{Model, Start};
use testkit::poorfs::{Errno, PoorFs, Refusal};
use testkit::scene::{self, Scene};
use testkit::{pattern, worker};
use vhd_core::{BlockSize, ByteCount, ChainOptions, Image, Lock, Sector, SectorRange};

fn open(folder: &Path) -> Repository {
    let (repository, recovered) = Repository::open(folder, ChainOptions::default()).unwrap();
    assert!(recovered.waiting.is_empty(), "{recovered:?}");
    repository
}

fn write(model: &mut Model, volume: &Path, sectors: std::ops::Range<u64>, tag: u16) {
    let range = SectorRange::between(Sector(sectors.start), Sector(sectors.end));
    let data = pattern::fill(range, tag);
    model.change(volume, |open, content| {
        open.write(range, &data).unwrap();
        content[sectors.start as usize * 512..sectors.end as usize * 512].copy_from_slice(&data);
    });
}

fn merge(model: &Model, node: &Path, direction: Direction) {
    worker::coalesce(&Request { node: node.into(), into: None, direction, keep: false }, &ChainOptions::default())
        .unwrap();
    model.verify();
}

/// Merges a volume down, is stopped half way, and goes on.
fn stopped_and_resumed(model: &Model, node: &Path) {
    let request = Request { node: node.into(), into: None, direction: Direction::Down, keep: false };
    for is_stopped in [true, false] {
        let (budget, abort, moved) = (Budget::default(), Abort::new(), AtomicU64::new(0));
        let progress = |so_far: ByteCount| {
            if is_stopped && so_far.0 > 0 && moved.fetch_add(1, Ordering::Relaxed) == 2 {
                abort.abort();
            }
        };
        let repository = open(model.path());
        let prepared = Coalesce::prepare(&repository, &request).unwrap();
        let merged = prepared.execute(&MergeOptions {
            threads: NonZeroUsize::new(1),
            progress: &progress,
            merged: &|| (),
            budget: &budget,
            abort: &abort,
            method: CopyMethod::Auto,
            detect_zeroes: false,
            checkpoint_every: Some(ByteCount(4096)),
        });
        match merged {
            Err(CoalesceError::Merge(MergeError::Aborted(_))) => assert!(is_stopped),
            merged => assert!(!is_stopped, "{:?}", merged.unwrap()),
        }
        model.verify();
    }
}

/// Everything that the engine does to volumes, in a new folder on some file system.
fn life(place: &Path) {
    let mut model = Model::within(place);
    let blocks = BlockSize::new(4096).unwrap();
    let volume = model.create(Start::Dynamic(blocks), 600);
    write(&mut model, &volume, 0..200, 1);
    let first = model.snapshot(&volume);
    model.verify();
    write(&mut model, &volume, 100..300, 2);
    let second = model.snapshot(&volume);
    write(&mut model, &volume, 290..400, 3);
    let clone = model.snapshot(&second);
    write(&mut model, &clone, 7..90, 4);
    model.verify();

    model.resize(&volume, 800);
    model.resize(&volume, 700);
    write(&mut model, &volume, 650..700, 5);
    open(model.path()).revert(&volume, &first).unwrap();
    model.expect(&volume, model.content(&first).to_vec());
    model.verify();
    write(&mut model, &volume, 10..20, 6);
    open(model.path()).compact(&clone, |_| {}).unwrap();
    model.verify();

    // What a volume was becomes the base of its only child, and is merged either way.
    let fixed = model.create(Start::Fixed, 300);
    write(&mut model, &fixed, 0..300, 7);
    let twin = model.snapshot(&fixed);
    write(&mut model, &twin, 4..9, 8);
    assert_eq!(open(model.path()).delete(&fixed).unwrap(), Deleted::Removed);
    model.forget(&fixed);
    merge(&model, &twin, Direction::Down);
    let small = model.create(Start::Dynamic(blocks), 300);
    write(&mut model, &small, 0..9, 8);
    let large = model.snapshot(&small);
    write(&mut model, &large, 50..300, 8);
    assert_eq!(open(model.path()).delete(&small).unwrap(), Deleted::Removed);
    model.forget(&small);
    merge(&model, &large, Direction::Up);
    model.create(Start::OnRaw(blocks), 100);
    model.verify();

    for unneeded in [&second, &first] {
        let deleted = open(model.path()).delete(unneeded).unwrap();
        assert_eq!(deleted, Deleted::Removed);
        model.forget(unneeded);
    }
    model.verify();
    let long = model.create(Start::Dynamic(blocks), 600);
    write(&mut model, &long, 0..600, 9);
    let snapshot = model.snapshot(&long);
    write(&mut model, &long, 0..500, 10);
    open(model.path()).delete(&snapshot).unwrap();
    model.forget(&snapshot);
    stopped_and_resumed(&model, &long);
    let collected = worker::collect(model.path());
    assert!(collected.failed.is_empty() && collected.isolated.is_empty(), "{collected:?}");
    assert!(collected.waiting.is_empty(), "{collected:?}");
    model.verify();
    assert_eq!(scene::state_files(model.path()), <[String; 0]>::default());
    let names = fs::read_dir(model.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let odd: Vec<_> = names.filter(|name| name.starts_with('.') && name != ".vhd").collect();
    assert!(odd.is_empty(), "{odd:?}");
}

#[test]
fn a_life_without_any_one_ability() {
    for refusal in Refusal::BEARABLE {
        testkit::tell!("without {refusal}");
        life(PoorFs::new(&[refusal]).path());
    }
}

#[test]
fn a_life_without_all_of_them() {
    life(PoorFs::new(&Refusal::BEARABLE).path());
    life(PoorFs::new(&[Refusal::RenameFlags, Refusal::HardLinks(Errno::NOSYS), Refusal::FineTimes]).path());
}

#[test]
fn a_life_on_fuse2fs() {
    life(Fuse2fs::new(ByteCount(64 << 20)).path());
}

/// What a snapshot has left that failed when it was to give itself its name, after it had taken the volume's place.
fn left_without_a_name(folder: &Path) -> Scene {
    let scene = Scene::within(folder);
    scene.dynamic("v.vhd", 400);
    scene.write("v.vhd", 0..200, 1);
    let Snapshotted::NewBase(base) = worker::snapshot(&scene.file("v.vhd"), &scene.file("s.vhd")).unwrap() else {
        panic!("it holds data")
    };
    let id = |name: &str| Image::open(&scene.file(name), Lock::None).unwrap().footer().unique_id();
    let (volume, prepared) = (id("v.vhd"), format!(".vhd/{}.vhd", id("s.vhd")));
    fs::rename(scene.file("s.vhd"), scene.file(&prepared)).unwrap();
    let base = base.file_name().unwrap().to_str().unwrap();
    let record = format!(
        r#"{{"record":"snapshot","volume":"v.vhd","snapshot":"s.vhd","base":"{base}","new_volume_id":"{volume}","#
    ) + &format!(r#""prepared_volume":".vhd/{volume}.vhd","prepared_snapshot":"{prepared}"}}"#);
    let journal = testkit::fuzz::framed(record.as_bytes());
    fs::write(scene.file(".vhd/00000000-0000-0000-0000-00000000aa01.journal"), journal).unwrap();
    scene
}

#[test]
fn a_snapshot_left_without_a_name_gets_it() {
    for refused in [&[][..], &[Refusal::RenameFlags], &Refusal::BEARABLE] {
        let poor = PoorFs::new(refused);
        let scene = left_without_a_name(poor.path());
        let before = scene::content(&scene.file("v.vhd"));
        scene.write("v.vhd", 0..10, 2);
        open(scene.path());
        assert!(scene::content(&scene.file("s.vhd")) == before, "{refused:?}");
        assert_eq!(scene::state_files(scene.path()), <[String; 0]>::default());
        worker::snapshot(&scene.file("v.vhd"), &scene.file("s2.vhd")).unwrap();
        scene::check(scene.path());
    }
}

/// The call was repeated, and had its snapshot share the base that the first one had made.
#[test]
fn a_snapshot_that_was_taken_again_needs_no_name() {
    let poor = PoorFs::new(&[Refusal::RenameFlags]);
    let scene = left_without_a_name(poor.path());
    let base = Image::open(&scene.file("v.vhd"), Lock::None).unwrap().header().unwrap().parent_unique_id();
    let parent = fs::read_dir(scene.path()).unwrap().map(|entry| entry.unwrap().path());
    let parent = parent
        .filter(|path| path.is_file())
        .find(|path| Image::open(path, Lock::None).unwrap().footer().unique_id() == base);
    let parent = parent.unwrap().file_name().unwrap().to_str().unwrap().to_owned();
    scene.child("s.vhd", &parent);
    let before = scene::volumes(scene.path());
    open(scene.path());
    assert!(scene::volumes(scene.path()) == before);
    assert_eq!(scene::state_files(scene.path()), <[String; 0]>::default());
}

/// What is there under the name is not ours, and stays, as does what waits.
#[test]
fn a_foreign_file_under_the_name_of_a_snapshot_is_kept() {
    for refused in [&[][..], &[Refusal::RenameFlags], &Refusal::BEARABLE] {
        let poor = PoorFs::new(refused);
        let scene = left_without_a_name(poor.path());
        fs::write(scene.file("s.vhd"), "not ours").unwrap();
        let (_, recovered) = Repository::open(scene.path(), ChainOptions::default()).unwrap();
        let told: Vec<String> = recovered.waiting.iter().map(|waiting| waiting.reason.to_string()).collect();
        assert_eq!(told.len(), 1, "{refused:?}");
        assert!(told[0].ends_with("s.vhd: cannot give the snapshot its name"), "{told:?}");
        assert_eq!(fs::read(scene.file("s.vhd")).unwrap(), b"not ours");
        fs::remove_file(scene.file("s.vhd")).unwrap();
        open(scene.path());
        assert!(scene.file("s.vhd").exists());
    }
}

/// Where files have but one name, a process may die between two renames.
#[test]
fn a_volume_that_is_left_without_its_name_gets_it_back() {
    let record = r#"{"record":"snapshot","volume":"v.vhd","snapshot":"s.vhd","base":"aside.vhd","#.to_owned()
        + r#""new_volume_id":"00000000-0000-0000-0000-00000000bb01","prepared_volume":".vhd/new.vhd","#
        + r#""prepared_snapshot":".vhd/twin.vhd"}"#;
    let reverted = r#"{"record":"revert","volume":"v.vhd","displaced":"aside.vhd","prepared":".vhd/new.vhd"}"#;
    for record in [record.as_str(), reverted] {
        let poor = PoorFs::new(&[Refusal::RenameFlags, Refusal::HardLinks(Errno::PERM)]);
        let scene = Scene::within(poor.path());
        scene.dynamic("v.vhd", 400);
        scene.write("v.vhd", 0..200, 1);
        let before = scene::volumes(scene.path());
        fs::create_dir(scene.file(".vhd")).unwrap();
        fs::rename(scene.file("v.vhd"), scene.file("aside.vhd")).unwrap();
        for child in [".vhd/new.vhd", ".vhd/twin.vhd"] {
            scene.child(child, "aside.vhd");
        }
        let journal = testkit::fuzz::framed(record.as_bytes());
        fs::write(scene.file(".vhd/00000000-0000-0000-0000-00000000aa01.journal"), journal).unwrap();
        open(scene.path());
        assert!(scene::volumes(scene.path()) == before, "{record}");
        assert_eq!(scene::images(scene.path()), 1);
        assert_eq!(scene::state_files(scene.path()), <[String; 0]>::default());
    }
}
