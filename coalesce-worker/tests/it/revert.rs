//! A volume becomes a clone of another.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use coalesce_worker::{RevertError, SnapshotError, Snapshotted};
use testkit::scene::{self, Scene};
use testkit::worker;
use vhd_core::{ChainOptions, Image};

/// A base with two volumes that hold data and one that does not.
fn snapshots() -> Scene {
    let scene = Scene::default();
    scene.dynamic("base.vhd", 256);
    scene.write("base.vhd", 0..60, 1);
    scene.hide("base.vhd");
    scene.child("volume.vhd", "base.vhd");
    scene.write("volume.vhd", 10..30, 2);
    scene.larger_child("larger.vhd", "base.vhd", 300);
    scene.write("larger.vhd", 290..300, 3);
    scene.child("empty.vhd", "base.vhd");
    scene
}

fn revert(scene: &Scene, volume: &str, snapshot: &str) -> Result<Snapshotted, RevertError> {
    let repository = worker::repository_of(&scene.file("base.vhd"), &ChainOptions::default());
    repository.revert(&scene.file(volume), &scene.file(snapshot))
}

#[test]
fn the_volume_reads_as_the_snapshot_and_nothing_else_changes() {
    let scene = snapshots();
    fs::set_permissions(scene.file("volume.vhd"), Permissions::from_mode(0o640)).unwrap();
    let before = scene::volumes(scene.path());
    let Snapshotted::NewBase(base) = revert(&scene, "volume.vhd", "larger.vhd").unwrap() else {
        panic!("it holds data")
    };
    let mut after = before.clone();
    after.insert("volume.vhd".into(), before["larger.vhd"].clone());
    assert_eq!(scene::volumes(scene.path()), after);
    for volume in ["volume.vhd", "larger.vhd"] {
        assert_eq!(scene::layers(&scene.file(volume))[1].file_name(), base.file_name());
    }
    assert_eq!(scene.file("volume.vhd").metadata().unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(scene::images(scene.path()), 6);
    assert!(scene::state_files(scene.path()).is_empty());
    scene::check(scene.path());

    scene.write("volume.vhd", 0..300, 9);
    assert_eq!(scene::content(&scene.file("larger.vhd")), before["larger.vhd"]);
}

#[test]
fn a_snapshot_that_holds_nothing_shares_its_parent() {
    let scene = snapshots();
    let shared = revert(&scene, "volume.vhd", "empty.vhd").unwrap();
    assert_eq!(shared, Snapshotted::SharedParent(scene.file("base.vhd").canonicalize().unwrap()));
    assert_eq!(scene::content(&scene.file("volume.vhd")), scene::content(&scene.file("base.vhd")));
    assert_eq!(scene::images(scene.path()), 5);
    assert!(scene::state_files(scene.path()).is_empty());
    scene::check(scene.path());
    revert(&scene, "volume.vhd", "empty.vhd").unwrap();
    assert_eq!(scene::images(scene.path()), 6, "again");
    worker::collect(scene.path());
    assert_eq!(scene::images(scene.path()), 4, "what it held is gone");
}

#[test]
fn what_cannot_be_reverted_is_left_alone() {
    let scene = snapshots();
    scene.child("above.vhd", "larger.vhd");
    fs::hard_link(scene.file("volume.vhd"), scene.file("same.vhd")).unwrap();
    scene.settle();
    let before = scene::files(scene.path());
    let refused = |volume: &str, snapshot: &str| revert(&scene, volume, snapshot).unwrap_err();
    assert!(matches!(refused("volume.vhd", "volume.vhd"), RevertError::Itself { .. }));
    assert!(matches!(refused("volume.vhd", "same.vhd"), RevertError::Itself { .. }));
    assert!(matches!(refused("base.vhd", "volume.vhd"), RevertError::Hidden { .. }));
    let hidden = refused("volume.vhd", "base.vhd");
    assert!(matches!(hidden, RevertError::Snapshot(SnapshotError::Hidden { .. })), "{hidden}");
    assert!(matches!(refused("volume.vhd", "missing.vhd"), RevertError::File(_)));
    for used in ["volume.vhd", "empty.vhd"] {
        let user = Image::open_writable(&scene.file(used)).unwrap();
        assert!(matches!(refused("volume.vhd", "empty.vhd"), RevertError::Open(_)), "{used} is in use");
        drop(user);
    }
    let mut after = scene::files(scene.path());
    after.retain(|name, _| !name.starts_with(".vhd/"));
    assert!(after == before);
}

/// Whoever is a child of the volume finds what it held again, under its other name.
#[test]
fn children_of_the_volume_keep_what_they_read() {
    let scene = snapshots();
    scene.child("above.vhd", "volume.vhd");
    scene.write("above.vhd", 5..20, 7);
    let before = scene::volumes(scene.path());
    revert(&scene, "volume.vhd", "larger.vhd").unwrap();
    worker::collect(scene.path());
    let mut after = before.clone();
    after.insert("volume.vhd".into(), before["larger.vhd"].clone());
    assert_eq!(scene::volumes(scene.path()), after);
    scene::check(scene.path());
}
