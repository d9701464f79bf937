use std::fs;
use std::path::Path;

use testkit::golden;
use vhd_core::{Image, Lock, ReadOnly, Uuid};

use crate::program::{command, done, ended, files, guest, refused, write};

fn open(folder: &Path, name: &str) -> Image<ReadOnly> {
    Image::open(&folder.join(name), Lock::None).expect("the image opens")
}

fn parent_of(folder: &Path, name: &str) -> String {
    done(folder, &["query", "-p", "-n", name]).rsplit('/').next().expect("a path has a name").trim_end().to_owned()
}

#[test]
fn a_child_is_laid_out_as_blktap_lays_it_out_and_reads_as_its_parent() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd", "raw-parent.img"]);
    let before = files(folder.path());
    for (golden, parent, raw) in [("leaf.vhd", "mid.vhd", false), ("on-raw.vhd", "raw-parent.img", true)] {
        let raw: &[&str] = if raw { &["-m"] } else { &[] };
        done(folder.path(), &[&["snapshot", "--debug", "-n", "new.vhd", "-p", parent], raw].concat());
        let (ours, theirs) = (fs::read(folder.path().join("new.vhd")).unwrap(), golden::bytes(golden));
        // All of the header but its checksum and the parent's time, and the locators.
        for range in [512..548, 552..568, 572..1536, 3072..4608] {
            assert!(ours[range.clone()] == theirs[range.clone()], "{golden}: {range:?}");
        }
        assert_eq!(ours.len(), 4608 + 512, "an empty image");
        if golden == "leaf.vhd" {
            assert_eq!(guest(folder.path(), "new.vhd"), guest(folder.path(), "mid.vhd"));
        }
        fs::remove_file(folder.path().join("new.vhd")).unwrap();
    }
    assert_eq!(files(folder.path()), before, "parents are not touched");
}

#[test]
fn room_to_grow_is_made_as_asked() {
    let folder = golden::unpack(&["base.vhd"]);
    done(folder.path(), &["snapshot", "-n", "a.vhd", "-p", "base.vhd", "-S", "4096"]);
    assert_eq!(done(folder.path(), &["query", "-vS", "-n", "a.vhd"]), "64\n4096\n");
    done(folder.path(), &["snapshot", "-n", "b.vhd", "-p", "base.vhd", "-S", "2"]);
    assert_eq!(done(folder.path(), &["query", "-vS", "-n", "b.vhd"]), "64\n64\n");
    refused(folder.path(), &["snapshot", "-n", "c.vhd", "-p", "base.vhd", "-S", "9999999"], 22);
    assert!(!folder.path().join("c.vhd").exists());
}

#[test]
fn an_empty_parent_is_passed_over_unless_that_is_not_wanted() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "empty-10m.vhd"]);
    let here = folder.path();
    done(here, &["snapshot", "-n", "empty.vhd", "-p", "mid.vhd", "-e"]);
    done(here, &["snapshot", "-n", "empty2.vhd", "-p", "empty.vhd", "-e"]);
    assert_eq!(parent_of(here, "empty2.vhd"), "empty.vhd");
    done(here, &["snapshot", "-n", "child.vhd", "-p", "empty2.vhd"]);
    assert_eq!(parent_of(here, "child.vhd"), "mid.vhd");
    assert_eq!(guest(here, "child.vhd"), guest(here, "mid.vhd"));
    write(here, "empty.vhd", 0, b"x");
    done(here, &["snapshot", "-n", "child.vhd", "-p", "empty2.vhd"]);
    assert_eq!(parent_of(here, "child.vhd"), "empty.vhd");
    // An empty image without a parent is the end.
    done(here, &["snapshot", "-n", "child.vhd", "-p", "empty-10m.vhd"]);
    assert_eq!(parent_of(here, "child.vhd"), "empty-10m.vhd");
}

#[test]
fn an_empty_parent_on_a_raw_disk_is_passed_over_too() {
    let folder = golden::unpack(&["raw-parent.img"]);
    done(folder.path(), &["snapshot", "-n", "empty.vhd", "-p", "raw-parent.img", "-m", "-l", "1"]);
    done(folder.path(), &["snapshot", "-n", "child.vhd", "-p", "empty.vhd"]);
    assert_eq!(parent_of(folder.path(), "child.vhd"), "raw-parent.img");
    assert_eq!(open(folder.path(), "child.vhd").header().unwrap().parent_unique_id(), Uuid::nil());
    assert_eq!(done(folder.path(), &["query", "-d", "-n", "child.vhd"]), "chain depth: 2\n");
    assert_eq!(guest(folder.path(), "child.vhd"), guest(folder.path(), "empty.vhd"));
}

#[test]
fn the_size_is_that_of_the_parent_that_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    done(here, &["create", "-n", "base.vhd", "-s", "4"]);
    done(here, &["snapshot", "-n", "grown.vhd", "-p", "base.vhd"]);
    let mut grown = Image::open_writable(&here.join("grown.vhd")).unwrap();
    grown.set_size(vhd_core::ByteCount(8 << 20), vhd_core::ByteCount(4 << 20)).unwrap();
    grown.close().unwrap();
    done(here, &["snapshot", "-n", "child.vhd", "-p", "grown.vhd"]);
    assert_eq!(
        (parent_of(here, "child.vhd").as_str(), &*done(here, &["query", "-v", "-n", "child.vhd"])),
        ("base.vhd", "8\n")
    );
}

#[test]
fn the_limit_of_the_depth_counts_the_child() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd", "raw-parent.img"]);
    let snapshot = |parent, limit| ["snapshot", "-n", "new.vhd", "-p", parent, "-l", limit];
    refused(folder.path(), &snapshot("leaf.vhd", "3"), 28);
    done(folder.path(), &snapshot("leaf.vhd", "4"));
    refused(folder.path(), &snapshot("base.vhd", "1"), 28);
    done(folder.path(), &snapshot("base.vhd", "2"));
    // That of a child of a raw disk is not looked at.
    done(folder.path(), &[&snapshot("raw-parent.img", "1")[..], &["-m"]].concat());
}

#[test]
fn the_key_is_inherited_and_the_marker_is_not() {
    let folder = golden::unpack(&["meta.vhd"]);
    done(folder.path(), &["snapshot", "-n", "child.vhd", "-p", "meta.vhd"]);
    let key = format!("{} {}\n", "01".repeat(32), "ab".repeat(32));
    assert_eq!(done(folder.path(), &["key", "-p", "-n", "child.vhd"]), key);
    assert_eq!(done(folder.path(), &["query", "-mf", "-n", "child.vhd"]), "hidden: 0\nmarker: 0\n");
}

#[test]
fn nothing_that_the_child_reads_through_is_replaced_by_it() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "raw-parent.img"]);
    let before = files(folder.path());
    refused(folder.path(), &["snapshot", "-n", "base.vhd", "-p", "mid.vhd"], 22);
    refused(folder.path(), &["snapshot", "-n", "mid.vhd", "-p", "mid.vhd"], 22);
    refused(folder.path(), &["snapshot", "-n", "raw-parent.img", "-p", "raw-parent.img", "-m"], 22);
    assert_eq!(files(folder.path()), before);
}

#[test]
fn parents_that_cannot_be_are_refused() {
    let folder = golden::unpack(&["raw-parent.img", "poisoned.vhd"]);
    let before = files(folder.path());
    refused(folder.path(), &["snapshot", "-n", "a.vhd", "-p", "none.vhd"], 2);
    refused(folder.path(), &["snapshot", "-n", "a.vhd", "-p", "raw-parent.img"], 22);
    refused(folder.path(), &["snapshot", "-n", "a.vhd", "-p", "."], 22);
    refused(folder.path(), &["snapshot", "-n", "a.vhd"], 22);
    assert_eq!(files(folder.path()), before);
}

#[test]
fn names_need_not_be_ascii() {
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), &["create", "-n", "größe 磁盘.vhd", "-s", "2"]);
    done(folder.path(), &["snapshot", "-n", "ребёнок.vhd", "-p", "größe 磁盘.vhd"]);
    assert_eq!(parent_of(folder.path(), "ребёнок.vhd"), "größe 磁盘.vhd");
}

#[test]
fn an_image_whose_resize_was_interrupted_gets_no_child() {
    let folder = golden::unpack(&["poisoned.vhd"]);
    let said = refused(folder.path(), &["snapshot", "-n", "child.vhd", "-p", "poisoned.vhd"], 22);
    assert!(said.contains("resize"), "{said}");
    assert!(!folder.path().join("child.vhd").exists());
}

#[test]
fn a_guest_that_writes_a_footer_on_its_raw_disk_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    done(at, &["create", "-n", "fixed.vhd", "-s", "4", "-r"]);
    fs::copy(at.join("fixed.vhd"), at.join("raw.img")).unwrap();
    done(at, &["snapshot", "-m", "-n", "child.vhd", "-p", "raw.img"]);
    assert_eq!(done(at, &["query", "-d", "-n", "child.vhd"]), "chain depth: 2\n");
    done(at, &["check", "-n", "child.vhd"]);
    // What is named as an image, and is one, is no raw disk, whatever the child says.
    fs::rename(at.join("raw.img"), at.join("raw.vhd")).unwrap();
    done(at, &["snapshot", "-m", "-n", "other.vhd", "-p", "raw.vhd"]);
    assert!(ended(at, &["check", "-n", "other.vhd"], 22).0.contains("raw"));
}

#[test]
fn parents_in_other_folders_are_allowed_by_the_environment() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for name in ["parents", "children"] {
        fs::create_dir(at.join(name)).unwrap();
    }
    done(at, &["create", "-n", "parents/a.vhd", "-s", "4"]);
    let (_, told) = ended(at, &["snapshot", "-n", "children/b.vhd", "-p", "parents/a.vhd"], 0);
    assert!(told.contains("VHD_UTIL_PARENT_ROOTS"), "{told}");
    let depth = ["query", "-d", "-n", "children/b.vhd"];
    command(at, &depth).assert().failure();
    command(at, &depth).env("VHD_UTIL_PARENT_ROOTS", at.join("parents")).assert().success();
}
