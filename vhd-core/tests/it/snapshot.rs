//! Snapshots, and what is found after one that was interrupted.

use std::fs;
use std::path::{Path, PathBuf};

use testkit::{golden, guest_sha256};
use vhd_core::{
    BlockSize, ByteCount, Chain, ChainOptions, Existing, Image, Lock, NewImage, NewKind, SnapshotError, Snapshotted,
    Volume, create_file, finish_interrupted, snapshot,
};

use super::sectors;

fn options() -> ChainOptions {
    ChainOptions::default()
}

fn hash(path: &Path) -> String {
    guest_sha256(&Chain::open(path, &options()).unwrap()).unwrap()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

#[test]
fn the_volume_becomes_a_hidden_base_with_two_children() {
    let folder = golden::unpack(&["base.vhd"]);
    let (volume, twin) = (folder.path().join("base.vhd"), folder.path().join("snap.vhd"));
    let before = hash(&volume);
    let Snapshotted::NewBase(base) = snapshot(&volume, &twin, &options()).unwrap() else { panic!("it holds data") };
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

#[test]
fn a_volume_that_has_written_nothing_adds_no_level() {
    let folder = golden::unpack(&["base.vhd"]);
    let path = |name: &str| folder.path().join(name);
    snapshot(&path("base.vhd"), &path("s1.vhd"), &options()).unwrap();
    let second = snapshot(&path("base.vhd"), &path("s2.vhd"), &options()).unwrap();
    assert!(matches!(second, Snapshotted::SharedParent(_)));
    assert_eq!(Chain::open(&path("base.vhd"), &options()).unwrap().layers().len(), 2);
    assert_eq!(Chain::open(&path("s2.vhd"), &options()).unwrap().layers().len(), 2);
    assert_eq!(files(folder.path()).len(), 4);
}

#[test]
fn what_cannot_be_snapshotted_is_left_alone() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "meta.vhd"]);
    let path = |name: &str| folder.path().join(name);
    let refused = |volume: &str, twin: PathBuf| snapshot(&path(volume), &twin, &options()).unwrap_err();
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

/// The states that a process can leave behind when it dies, made by hand from the documented steps.
#[test]
fn an_interrupted_snapshot_is_taken_back_or_finished() {
    let id = vhd_core::Uuid::from_u128(42);
    for died_after in 0..5 {
        let folder = golden::unpack(&["base.vhd"]);
        let path = |name: &str| folder.path().join(name);
        let (volume, base) = (path("base.vhd"), path(&format!("{id}.vhd")));
        let (prepared_volume, prepared_twin) =
            (path(&format!(".{id}.volume.base.vhd")), path(&format!(".{id}.snapshot.s.vhd")));
        let before = hash(&volume);
        let unique_id = Image::open(&volume, Lock::None).unwrap().footer().unique_id();
        let link =
            vhd_core::ParentLink::to_named(Path::new(&format!("{id}.vhd")), unique_id, vhd_core::Timestamp(0)).unwrap();
        let child = || {
            let kind = NewKind::Differencing { block_size: BlockSize::DEFAULT, parent: link.clone() };
            NewImage::new(ByteCount(64 << 20), kind)
        };
        create_file(&prepared_volume, &child(), Existing::Keep).unwrap();
        if died_after >= 1 {
            create_file(&prepared_twin, &child(), Existing::Keep).unwrap();
        }
        if died_after >= 2 {
            fs::hard_link(&volume, &base).unwrap();
        }
        if died_after >= 3 {
            fs::rename(&prepared_volume, &volume).unwrap();
        }
        if died_after >= 4 {
            let mut hidden = Image::open_writable(&base).unwrap();
            hidden.set_hidden(true).unwrap();
        }
        assert_eq!(hash(&volume), before, "the volume reads the same at every moment");

        finish_interrupted(folder.path()).unwrap();
        let found = files(folder.path());
        assert_eq!(hash(&volume), before);
        if died_after < 3 {
            assert_eq!(found, std::slice::from_ref(&volume), "taken back, died after step {died_after}");
            assert!(!Image::open(&volume, Lock::None).unwrap().footer().hidden());
        } else {
            assert_eq!(found.len(), 3, "finished, died after step {died_after}");
            assert_eq!(hash(&path("s.vhd")), before);
            assert!(Image::open(&base, Lock::None).unwrap().footer().hidden());
        }
        finish_interrupted(folder.path()).unwrap();
        assert_eq!(files(folder.path()), found, "a second recovery changes nothing");
    }
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
    let elsewhere = snapshot(&links.join("v.vhd"), &links.join("s.vhd"), &options()).unwrap_err();
    assert!(matches!(elsewhere, SnapshotError::OtherFolder { .. }), "{elsewhere}");
    snapshot(&links.join("v.vhd"), &real.join("s.vhd"), &options()).unwrap();
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
                    let unfinished = finish_interrupted(folder.path()).unwrap();
                    assert!(unfinished.is_empty(), "{unfinished:?}");
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
                let mut tries = (0..10_000).map(|_| snapshot(&path("v.vhd"), &twin, &options()));
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
fn a_leftover_hinders_only_its_own_volume() {
    let folder = golden::unpack(&["fixed-4m.vhd", "empty-10m.vhd"]);
    let path = |name: &str| folder.path().join(name);
    let id = vhd_core::Uuid::from_u128(9);
    fs::write(path("broken.vhd"), b"broken").unwrap();
    for leftover in ["volume.gone.vhd", "volume.broken.vhd", "snapshot.broken.vhd"] {
        fs::write(path(&format!(".{id}.{leftover}")), b"x").unwrap();
    }
    snapshot(&path("fixed-4m.vhd"), &path("s.vhd"), &options()).unwrap();
    let unfinished = finish_interrupted(folder.path()).unwrap();
    assert_eq!(unfinished.len(), 1, "{unfinished:?}");
    assert_eq!(unfinished[0].volume, Some(path("broken.vhd")));
}
