use testkit::golden;

use crate::program::{done, expected, files, guest, json, names, refused, write};

#[test]
fn the_volume_becomes_a_hidden_base_with_two_children() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let taken = json(folder.path(), &["snapshot", "leaf.vhd", "snap.vhd"]);
    assert_eq!((&taken["volume"], &taken["file"]), (&"leaf.vhd".into(), &"snap.vhd".into()));
    assert_eq!(taken["new_base"], true);
    let base = taken["base"].as_str().unwrap();
    for name in ["leaf.vhd", "snap.vhd", base] {
        assert_eq!(guest(folder.path(), name), expected("leaf.vhd"), "{name}");
    }
    assert_eq!(json(folder.path(), &["info", base])["hidden"], true);
    let uuid = &json(folder.path(), &["info", base])["uuid"];
    for name in ["leaf.vhd", "snap.vhd"] {
        let info = json(folder.path(), &["info", name]);
        assert_eq!(&info["parent"]["uuid"], uuid);
        assert_eq!(info["hidden"], false);
    }
    assert_eq!(names(folder.path()).len(), 5);
}

#[test]
fn a_volume_that_has_written_nothing_adds_no_level() {
    let folder = golden::unpack(&["base.vhd"]);
    done(folder.path(), &["snapshot", "base.vhd", "one.vhd"]);
    let taken = json(folder.path(), &["snapshot", "base.vhd", "two.vhd"]);
    assert_eq!(taken["new_base"], false);
    assert_eq!(names(folder.path()).len(), 4, "a base, the volume, two snapshots");
    write(folder.path(), "base.vhd", 0, b"changed");
    assert_eq!(json(folder.path(), &["snapshot", "base.vhd", "three.vhd"])["new_base"], true);
    assert_eq!(guest(folder.path(), "one.vhd"), expected("base.vhd"));
    assert_ne!(guest(folder.path(), "three.vhd"), expected("base.vhd"));
}

#[test]
fn what_cannot_be_a_snapshot_is_refused_and_changes_nothing() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "meta.vhd"]);
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    let before = files(folder.path());
    for (volume, snapshot, part) in [
        ("mid.vhd", "base.vhd", "base.vhd: exists already"),
        ("meta.vhd", "new.vhd", "hidden base"),
        ("base.vhd", "new.vhd", "mid.vhd is a child of it"),
        ("mid.vhd", "sub/new.vhd", "must be in the folder"),
        ("nowhere.vhd", "new.vhd", "nowhere.vhd"),
    ] {
        refused(folder.path(), &["snapshot", volume, snapshot], 5, &["error: ", part]);
    }
    assert_eq!(files(folder.path()), before);
}

#[test]
fn a_volume_in_use_is_refused() {
    let folder = golden::unpack(&["base.vhd"]);
    let before = files(folder.path());
    let _open = vhd_core::Image::open_writable(&folder.path().join("base.vhd")).unwrap();
    refused(folder.path(), &["snapshot", "base.vhd", "new.vhd"], 5, &["base.vhd", "locked", "hint: another process"]);
    assert_eq!(files(folder.path()), before);
}
