//! Snapshots, and what is found after one that was interrupted.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use coalesce_worker::{DeleteError, Deleted, SnapshotError, Snapshotted};
use testkit::scene::{self, Scene};
use testkit::worker::{self, snapshot};
use testkit::{golden, guest_sha256};
use vhd_core::{
    BlockSize, ByteCount, Chain, ChainOptions, Existing, Image, Lock, NewImage, NewKind, Sector, SectorCount,
    SectorRange, Volume, create_file,
};

fn sectors(start: u64, count: u64) -> SectorRange {
    SectorRange::new(Sector(start), SectorCount(count))
}

fn options() -> ChainOptions {
    ChainOptions::default()
}

fn hash(path: &Path) -> String {
    guest_sha256(&Chain::open(path, &options()).unwrap()).unwrap()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.is_file());
    paths.sort();
    paths
}

#[test]
fn the_volume_becomes_a_hidden_base_with_two_children() {
    let folder = golden::unpack(&["base.vhd"]);
    let (volume, twin) = (folder.path().join("base.vhd"), folder.path().join("snap.vhd"));
    let before = hash(&volume);
    let Snapshotted::NewBase(base) = snapshot(&volume, &twin).unwrap() else { panic!("it holds data") };
    for path in [&volume, &twin] {
        let chain = Chain::open(path, &options()).unwrap();
        assert_eq!(chain.layers().len(), 2);
        assert_eq!(chain.layers()[1].path().file_name(), base.file_name());
        assert_eq!(hash(path), before);
    }
    assert!(Image::open(&base, Lock::None).unwrap().footer().hidden());
    assert_eq!(files(folder.path()).len(), 3, "nothing else is left");

    let write = Volume::open(&volume, &options()).unwrap();
    write.write(sectors(5, 1), &[9; 512]).unwrap();
    write.close().unwrap();
    assert_ne!(hash(&volume), before);
    assert_eq!(hash(&twin), before);
}

/// Also by a merge, which puts another file in the volume's place.
#[test]
fn a_volume_and_its_snapshots_belong_to_whom_it_belonged() {
    let folder = golden::unpack(&["base.vhd"]);
    let path = |name: &str| folder.path().join(name);
    std::os::unix::fs::chown(path("base.vhd"), Some(1234), Some(5678)).unwrap();
    fs::set_permissions(path("base.vhd"), fs::Permissions::from_mode(0o640)).unwrap();
    snapshot(&path("base.vhd"), &path("s1.vhd")).unwrap();
    let write = Volume::open(&path("base.vhd"), &options()).unwrap();
    write.write(sectors(5, 1), &[9; 512]).unwrap();
    write.close().unwrap();
    let is_theirs = |name: &str| {
        let found = fs::metadata(path(name)).unwrap();
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o777), (1234, 5678, 0o640), "{name}");
    };
    is_theirs("base.vhd");
    is_theirs("s1.vhd");
    worker::repository_of(&path("base.vhd"), &options()).delete(&path("s1.vhd")).unwrap();
    worker::collect(folder.path());
    assert_eq!(files(folder.path()), [path("base.vhd")]);
    is_theirs("base.vhd");
}

#[test]
fn a_volume_that_has_written_nothing_adds_no_level() {
    let folder = golden::unpack(&["base.vhd"]);
    let path = |name: &str| folder.path().join(name);
    snapshot(&path("base.vhd"), &path("s1.vhd")).unwrap();
    let second = snapshot(&path("base.vhd"), &path("s2.vhd")).unwrap();
    assert!(matches!(second, Snapshotted::SharedParent(_)));
    assert_eq!(Chain::open(&path("base.vhd"), &options()).unwrap().layers().len(), 2);
    assert_eq!(Chain::open(&path("s2.vhd"), &options()).unwrap().layers().len(), 2);
    assert_eq!(files(folder.path()).len(), 4);
}

#[test]
fn what_cannot_be_snapshotted_is_left_alone() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "meta.vhd"]);
    let path = |name: &str| folder.path().join(name);
    let refused = |volume: &str, twin: PathBuf| snapshot(&path(volume), &twin).unwrap_err();
    let before = files(folder.path());
    assert!(matches!(refused("base.vhd", path("x.vhd")), SnapshotError::HasChild { .. }));
    assert!(matches!(refused("meta.vhd", path("x.vhd")), SnapshotError::Hidden { .. }));
    assert!(matches!(refused("mid.vhd", path("base.vhd")), SnapshotError::Create(_)));
    assert!(matches!(refused("mid.vhd", "/tmp/x.vhd".into()), SnapshotError::OtherFolder { .. }));
    let writer = Image::open_writable(&path("mid.vhd")).unwrap();
    assert!(refused("mid.vhd", path("x.vhd")).to_string().contains("mid.vhd"));
    drop(writer);
    assert_eq!(files(folder.path()), before);
}

#[test]
fn a_link_to_a_volume_stays_a_link() {
    let outer = tempfile::tempdir().unwrap();
    let (real, links) = (outer.path().join("real"), outer.path().join("links"));
    fs::create_dir(&real).unwrap();
    fs::create_dir(&links).unwrap();
    golden::unpack_into(&real, &["fixed-4m.vhd"]);
    std::os::unix::fs::symlink("../real/fixed-4m.vhd", links.join("v.vhd")).unwrap();
    let before = hash(&real.join("fixed-4m.vhd"));
    let elsewhere = snapshot(&links.join("v.vhd"), &links.join("s.vhd")).unwrap_err();
    assert!(matches!(elsewhere, SnapshotError::OtherFolder { .. }), "{elsewhere}");
    snapshot(&links.join("v.vhd"), &real.join("s.vhd")).unwrap();
    assert!(fs::symlink_metadata(links.join("v.vhd")).unwrap().is_symlink());
    for path in [real.join("fixed-4m.vhd"), real.join("s.vhd"), links.join("v.vhd")] {
        assert_eq!(hash(&path), before, "{}", path.display());
    }
}

/// Others look into the folder, and finish what they find, while snapshots are under way.
#[test]
fn snapshots_under_way_are_left_alone() {
    let folder = testkit::scratch::folder();
    let path = |name: &str| folder.path().join(name);
    let kind = NewKind::Dynamic { block_size: BlockSize::DEFAULT };
    create_file(&path("v.vhd"), &NewImage::new(ByteCount(16 << 20), kind), Existing::Keep).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let recovered = worker::repository_of(&path("v.vhd"), &options()).recover().unwrap();
                    assert!(recovered.waiting.is_empty(), "{recovered:?}");
                }
            });
        }
        let taken = (|| -> Result<(), String> {
            for i in 0..100 {
                // The others hold the lock for a moment when they look.
                let volume =
                    (0..10_000).find_map(|_| Volume::open(&path("v.vhd"), &options()).ok()).ok_or("always busy")?;
                volume.write(sectors(i, 1), &[5; 512]).unwrap();
                volume.close().unwrap();
                let twin = path(&format!("s{i}.vhd"));
                let mut tries = (0..10_000).map(|_| snapshot(&path("v.vhd"), &twin));
                let last = tries
                    .find(|taken| !taken.as_ref().is_err_and(|error| format!("{error:?}").contains("ResourceBusy")));
                last.ok_or("always busy")?.map_err(|error| format!("snapshot {i}: {error:?}"))?;
            }
            Ok(())
        })();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        taken.unwrap();
    });
    assert_eq!(files(folder.path()).len(), 201);
}

#[test]
fn what_was_deleted_is_gone_or_hidden() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "fixed-4m.vhd"]);
    let path = |name: &str| folder.path().join(name);
    let repository = worker::repository_of(&path("base.vhd"), &options());
    let before = hash(&path("mid.vhd"));
    let user = Image::open_writable(&path("fixed-4m.vhd")).unwrap();
    repository.delete(&path("fixed-4m.vhd")).unwrap_err();
    drop(user);
    assert_eq!(repository.delete(&path("fixed-4m.vhd")).unwrap(), Deleted::Removed);
    assert_eq!(repository.delete(&path("base.vhd")).unwrap(), Deleted::Hidden);
    assert!(matches!(repository.delete(&path("base.vhd")).unwrap_err(), DeleteError::Hidden { .. }));
    assert_eq!(hash(&path("mid.vhd")), before);
    assert_eq!(files(folder.path()), ["base.vhd", "mid.vhd"].map(path));
}

#[test]
fn a_chain_gets_no_deeper_than_the_limit() {
    let scene = Scene::default();
    scene.dynamic("v.vhd", 64);
    scene.write("v.vhd", 0..8, 1);
    let volume = scene.file("v.vhd");
    let repository = worker::repository_of(&volume, &options());
    let within = |name: &str, limit: u32| repository.snapshot_within(&volume, &scene.file(name), limit);
    let too_deep = |taken: Result<Snapshotted, SnapshotError>| match taken {
        Err(SnapshotError::TooDeep { depth, limit, .. }) => (depth, limit),
        other => panic!("{other:?}"),
    };
    assert_eq!(too_deep(within("no.vhd", 1)), (2, 1), "a base alone is one deep");
    within("s1.vhd", 2).unwrap();
    within("s2.vhd", 2).unwrap();
    assert_eq!(scene::depth(&volume), 2, "they share the base");
    scene.write("v.vhd", 8..16, 2);
    let before = scene::files(scene.path());
    let error = within("no.vhd", 2).unwrap_err();
    assert!(error.to_string().contains("3 images deep"), "{error}");
    assert!(scene::files(scene.path()) == before);
    within("s3.vhd", 3).unwrap();
    assert_eq!(scene::depth(&volume), 3);

    scene.write("v.vhd", 0..8, 3);
    let shallow = ChainOptions { max_depth: 3, ..options() };
    let unlimited = worker::repository_of(&volume, &shallow).snapshot(&volume, &scene.file("no.vhd"));
    assert_eq!(too_deep(unlimited), (4, 3), "what nobody here could open again");
    repository.snapshot(&volume, &scene.file("s4.vhd")).unwrap();
}
