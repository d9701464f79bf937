//! Collections of whole repositories.

use std::fs;
use std::path::{Path, PathBuf};

use coalesce_worker::{Abort, Coalesce, CoalesceError, Collected, Direction, MergeError, Repository, Survey};
use testkit::model::{Model, Start, read_all};
use testkit::{pattern, worker};
use vhd_core::{
    BlockSize, ByteCount, Chain, ChainOptions, Folder, Image, NewImage, ParentLink, Sector, SectorCount, SectorRange,
    Volume,
};

fn open(folder: &Path) -> Repository {
    Repository::open(folder, ChainOptions::default()).unwrap().0
}

fn collect(folder: &Path) -> Collected {
    let collected = worker::collect(folder);
    assert!(collected.failed.is_empty(), "{collected:?}");
    collected
}

fn write(model: &mut Model, volume: &Path, start: u64, count: u64, tag: u16) {
    let range = SectorRange::new(Sector(start), SectorCount(count));
    model.change(volume, |open, content| {
        let data = pattern::fill(range, tag);
        open.write(range, &data).unwrap();
        content[start as usize * 512..][..data.len()].copy_from_slice(&data);
    });
}

fn images(folder: &Path) -> usize {
    Folder::scan(folder, vhd_core::Files::Images).unwrap().nodes().count()
}

/// A volume with `levels` snapshots, each of which changes something, and the snapshots.
fn with_snapshots(levels: u16) -> (Model, PathBuf, Vec<PathBuf>) {
    let mut model = Model::default();
    model.create(Start::Dynamic(BlockSize::new(4096).unwrap()), 400);
    let volume = model.volumes().remove(0);
    let mut snapshots = Vec::new();
    for level in 1..=levels {
        write(&mut model, &volume, u64::from(level) * 5, 20, level);
        let before = model.volumes();
        model.snapshot(&volume);
        snapshots.extend(model.volumes().into_iter().filter(|path| !before.contains(path)));
    }
    write(&mut model, &volume, 3, 7, 99);
    (model, volume, snapshots)
}

fn delete(model: &mut Model, volume: &Path) {
    open(model.path()).delete(volume).unwrap();
    model.forget(volume);
}

#[test]
fn deleted_snapshots_are_merged_away() {
    let (mut model, volume, snapshots) = with_snapshots(5);
    for snapshot in &snapshots {
        delete(&mut model, snapshot);
    }
    collect(model.path());
    model.verify();
    assert_eq!(images(model.path()), 1);
    assert!(volume.exists());
}

#[test]
fn what_only_a_deleted_volume_needed_goes_with_it() {
    let (mut model, volume, snapshots) = with_snapshots(4);
    delete(&mut model, &volume);
    for snapshot in &snapshots[1..] {
        delete(&mut model, snapshot);
    }
    let collected = collect(model.path());
    model.verify();
    assert!(!collected.deleted.is_empty());
    assert_eq!(images(model.path()), 1);
}

#[test]
fn a_chain_below_a_volume_in_use_is_merged_without_touching_it() {
    let (mut model, volume, snapshots) = with_snapshots(5);
    for snapshot in &snapshots {
        delete(&mut model, snapshot);
    }
    let user = Volume::open(&volume, &ChainOptions::default()).unwrap();
    let looks = || fs::metadata(&volume).map(|it| (it.len(), it.modified().unwrap())).unwrap();
    let before = looks();
    let collected = collect(model.path());
    assert!(!collected.merged.is_empty(), "{collected:?}");
    assert_eq!(looks(), before);
    let mut bytes = vec![0; model.content(&volume).len()];
    user.read(SectorRange::new(Sector(0), SectorCount(400)), &mut bytes).unwrap();
    assert!(bytes == model.content(&volume), "the user reads the same through what it has open");
    user.close().unwrap();
    collect(model.path());
    model.verify();
    assert_eq!(images(model.path()), 1);
}

#[test]
fn the_cheaper_direction_is_taken() {
    for (base, top, expected) in [(300, 4, Direction::Down), (4, 300, Direction::Up)] {
        let mut model = Model::default();
        model.create(Start::Dynamic(BlockSize::new(4096).unwrap()), 400);
        let volume = model.volumes().remove(0);
        write(&mut model, &volume, 0, base, 1);
        model.snapshot(&volume);
        let snapshot = model.volumes().into_iter().find(|path| *path != volume).unwrap();
        write(&mut model, &volume, 50, top, 2);
        delete(&mut model, &snapshot);
        let repository = open(model.path());
        let survey = Survey::of(&repository).unwrap();
        let runs: Vec<_> = survey.runs().map(|run| run.direction).collect();
        assert_eq!(runs, [expected]);
        collect(model.path());
        model.verify();
        assert_eq!(images(model.path()), 1);
        assert!(!Image::open(&volume, vhd_core::Lock::None).unwrap().is_differencing());
    }
}

/// There is space for a part of what is to be merged, and again for a part once that has left its old place.
#[test]
fn what_does_not_fit_at_once_is_merged_in_steps() {
    for (volume_in_use, base_blocks) in [(false, 6), (true, 6)] {
        let disk = testkit::filesystem::Tmpfs::new(vhd_core::ByteCount(48 << 20));
        let path = |name: &str| disk.path().join(name);
        let kind = vhd_core::NewKind::Dynamic { block_size: BlockSize::DEFAULT };
        let new = vhd_core::NewImage::new(vhd_core::ByteCount(128 << 20), kind);
        vhd_core::create_file(&path("v.vhd"), &new, vhd_core::Existing::Keep).unwrap();
        let fill = |name: &str, blocks: std::ops::Range<u64>, tag: u16| {
            let volume = Volume::open(&path(name), &ChainOptions::default()).unwrap();
            for block in blocks {
                let range = SectorRange::new(Sector(block * 4096), SectorCount(4096));
                volume.write(range, &pattern::fill(range, tag)).unwrap();
            }
            volume.close().unwrap();
        };
        let repository = open(disk.path());
        // Neither direction fits: 12 blocks above, 7 MiB free.
        for (tag, blocks) in [(1, 20..20 + base_blocks), (2, 0..8), (3, 4..10)] {
            fill("v.vhd", blocks, tag);
            if tag < 3 {
                repository.snapshot(&path("v.vhd"), &path("s.vhd")).unwrap();
                repository.delete(&path("s.vhd")).unwrap();
            }
        }
        let hash = || {
            testkit::guest_sha256(&vhd_core::Chain::open(&path("v.vhd"), &ChainOptions::default()).unwrap()).unwrap()
        };
        let before = hash();
        let free = || free_space(disk.path());
        let filler = free() - (5 << 20);
        fs::write(path("filler"), vec![1; filler as usize]).unwrap();
        if !volume_in_use {
            stop_after_a_step(&repository);
            assert_eq!(hash(), before);
        }
        let user = volume_in_use.then(|| Image::open_writable(&path("v.vhd")).unwrap());
        let collected = collect(disk.path());
        assert_eq!(hash(), before);
        if volume_in_use {
            assert!(collected.merged.is_empty(), "{collected:?}");
            let reason = &collected.waiting.iter().find(|waiting| waiting.reason.contains("missing")).unwrap().reason;
            println!("{reason}");
        } else {
            assert_eq!(collected.merged.len(), 1, "{collected:?}");
            assert_eq!(images(disk.path()), 1);
            let report = vhd_core::check::file(&path("v.vhd")).unwrap();
            assert!(report.worst() < Some(vhd_core::check::Severity::Warning), "{:?}", report.findings());
        }
        drop(user);
    }
}

/// Has what is planned begin, and stops it after a step or two: its journal tells which images it holds.
fn stop_after_a_step(repository: &Repository) {
    let request = Survey::of(repository).unwrap().runs().next().unwrap().request();
    let journal = || {
        let state = repository.folder().join(".vhd");
        let paths = fs::read_dir(state).unwrap().map(|entry| entry.unwrap().path());
        let journal = paths.into_iter().find(|path| path.extension().is_some_and(|it| it == "journal"));
        journal.map_or_else(String::new, |path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned())
    };
    let abort = Abort::new();
    let progress = |moved| {
        assert!(journal().contains(r#""record":"holds""#));
        if moved > ByteCount(12 << 20) {
            abort.abort();
        }
    };
    let stopped = worker::interrupt(Coalesce::prepare(repository, &request).unwrap(), &progress, &abort);
    assert!(matches!(stopped, Err(CoalesceError::Merge(MergeError::Aborted(_)))), "{stopped:?}");
}

fn free_space(path: &Path) -> u64 {
    let stat = rustix::fs::statvfs(path).unwrap();
    stat.f_bavail * stat.f_frsize
}

/// A backup made of hard links shares the files: what is merged into them would show in the backup.
#[test]
fn images_with_second_names_are_left_alone() {
    let (mut model, volume, snapshots) = with_snapshots(2);
    for snapshot in &snapshots {
        delete(&mut model, snapshot);
    }
    let backup = tempfile::tempdir_in(model.path().parent().unwrap()).unwrap();
    for entry in fs::read_dir(model.path()).unwrap().map(Result::unwrap).filter(|it| it.path().is_file()) {
        fs::hard_link(entry.path(), backup.path().join(entry.file_name())).unwrap();
    }
    let copy = backup.path().join(volume.file_name().unwrap());
    let in_backup = || read_all(&Chain::open(&copy, &ChainOptions::default()).unwrap());
    let before = in_backup();
    let collected = collect(model.path());
    assert!(collected.waiting[0].reason.contains("has a second name"), "{collected:?}");
    assert_eq!(in_backup(), before);
    model.verify();

    fs::remove_dir_all(backup.path()).unwrap();
    assert_eq!(collect(model.path()).waiting.len(), 0);
    assert_eq!(images(model.path()), 1);
    model.verify();
}

/// A volume should have no children; a snapshot that does not look for them leaves them with a name that is another's.
#[test]
fn a_child_whose_parent_was_renamed_finds_it_again() {
    let (mut model, volume, _) = with_snapshots(0);
    write(&mut model, &volume, 0, 50, 1);
    let child = model.path().join("child.vhd");
    let parent = Image::open(&volume, vhd_core::Lock::None).unwrap();
    let link = ParentLink::new(model.path(), &volume, parent.footer().unique_id()).unwrap();
    vhd_core::create_file(&child, &NewImage::child_of(&parent, link), vhd_core::Existing::Keep).unwrap();
    let before = read_all(&Chain::open(&child, &ChainOptions::default()).unwrap());

    let snapshot = model.path().join("snapshot.vhd");
    let repository = open(model.path());
    assert!(repository.snapshot(&volume, &snapshot).is_err(), "one that looks refuses");
    repository.snapshot_within(&volume, &snapshot, 30).unwrap();
    write(&mut model, &volume, 20, 10, 2);
    assert!(Chain::open(&child, &ChainOptions::default()).is_err());
    let collected = collect(model.path());
    assert!(collected.isolated.is_empty() && collected.waiting.is_empty(), "{collected:?}");
    for twin in [&child, &snapshot] {
        assert_eq!(read_all(&Chain::open(twin, &ChainOptions::default()).unwrap()), before);
    }
    model.verify();
    assert_eq!(collect(model.path()).merged.len(), 0);
}
