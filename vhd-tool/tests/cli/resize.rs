use std::fs;

use testkit::golden;

use crate::program::{done, expected, files, guest, json, refused, space, write};

fn size(folder: &std::path::Path, name: &str) -> u64 {
    json(folder, &["info", name])["size"].as_u64().expect("a number")
}

#[test]
fn a_disk_grows_by_zeros_and_becomes_smaller_again() {
    let folder = tempfile::tempdir().unwrap();
    for kind in ["dynamic", "fixed"] {
        let name = &format!("{kind}.vhd");
        done(folder.path(), &["create", name, "--size", "4M", "--type", kind]);
        write(folder.path(), name, 1 << 20, b"data");
        let before = guest(folder.path(), name);
        let text = done(folder.path(), &["resize", name, "6M"]);
        assert_eq!(text, format!("resized {name}: 6.0 MiB (6291456 bytes), before 4.0 MiB (4194304 bytes)\n"));
        assert_eq!(size(folder.path(), name), 6 << 20);
        assert_ne!(guest(folder.path(), name), before);
        let resized = json(folder.path(), &["resize", name, "4M"]);
        assert_eq!((&resized["size"], &resized["previous_size"]), (&(4 << 20).into(), &(6 << 20).into()));
        assert_eq!(guest(folder.path(), name), before);
        assert!(done(folder.path(), &["resize", name, "4M"]).contains("already"));
        done(folder.path(), &["check", name]);
    }
    assert_eq!(fs::metadata(folder.path().join("fixed.vhd")).unwrap().len(), (4 << 20) + 512);
}

#[test]
fn data_beyond_the_end_is_kept_unless_it_is_discarded() {
    let folder = tempfile::tempdir().unwrap();
    for kind in ["dynamic", "fixed"] {
        let name = &format!("{kind}.vhd");
        done(folder.path(), &["create", name, "--size", "64M", "--type", kind]);
        write(folder.path(), name, 0, &[1; 4096]);
        let small = guest(folder.path(), name);
        write(folder.path(), name, 4 << 20, &[3; 8 << 20]);
        let before = files(folder.path());
        // The last of 8 MiB from 4 MiB on.
        refused(folder.path(), &["resize", name, "8M"], 5, &[name, "8388608", "sector 24575", "hint: --discard"]);
        assert_eq!(files(folder.path()), before);

        let held = space(&folder.path().join(name));
        done(folder.path(), &["resize", name, "1M", "--discard"]);
        assert_eq!(size(folder.path(), name), 1 << 20);
        // The file system may need some for a file in more pieces.
        let given_back = held - space(&folder.path().join(name));
        assert!(given_back >= (8 << 20) - (64 << 10), "its space is given back: {given_back}");
        done(folder.path(), &["check", name]);
        // Nothing comes back.
        done(folder.path(), &["resize", name, "64M"]);
        assert_eq!(guest(folder.path(), name), small);
    }
}

#[test]
fn what_a_parent_shows_is_data_too() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    done(folder.path(), &["snapshot", "leaf.vhd", "snap.vhd"]);
    let before = files(folder.path());
    refused(
        folder.path(),
        &["resize", "snap.vhd", "1M"],
        5,
        &["snap.vhd: data lies beyond 1048576 bytes", "--discard"],
    );
    assert_eq!(files(folder.path()), before);
    let old = size(folder.path(), "snap.vhd");
    done(folder.path(), &["resize", "snap.vhd", "1M", "--discard"]);
    assert_eq!(guest(folder.path(), "leaf.vhd"), expected("leaf.vhd"));
    done(folder.path(), &["resize", "snap.vhd", &old.to_string()]);
    // All but the first MiB reads as zeros, whatever the parent holds.
    let (rest, _) = crate::program::ended(folder.path(), &["read", "snap.vhd", "--offset", "1M", "--length", "1M"], 0);
    assert!(rest.bytes().all(|byte| byte == 0));
}

#[test]
fn a_base_a_volume_with_children_and_one_in_use_are_refused() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "meta.vhd"]);
    let before = files(folder.path());
    refused(folder.path(), &["resize", "meta.vhd", "1G"], 5, &["meta.vhd: a hidden base"]);
    for more in [&[][..], &["--discard"]] {
        let shrink = [&["resize", "base.vhd", "512"], more].concat();
        refused(folder.path(), &shrink, 5, &["mid.vhd is a child of it", "hint: "]);
    }
    let _open = vhd_core::Image::open_writable(&folder.path().join("mid.vhd")).unwrap();
    refused(folder.path(), &["resize", "mid.vhd", "1G"], 5, &["mid.vhd", "locked", "hint: another process"]);
    assert_eq!(files(folder.path()), before);
}

#[test]
fn sizes_that_cannot_be_are_wrong_usage() {
    let folder = golden::unpack(&["base.vhd"]);
    let before = files(folder.path());
    for (size, part) in [("1000", "1000 bytes"), ("0", "0 bytes"), ("2041G", "2190433320960"), ("many", "not a size")] {
        refused(folder.path(), &["resize", "base.vhd", size, "--discard"], 2, &["error: ", part]);
    }
    refused(folder.path(), &["resize", "base.vhd"], 2, &["SIZE"]);
    assert_eq!(files(folder.path()), before);
}
