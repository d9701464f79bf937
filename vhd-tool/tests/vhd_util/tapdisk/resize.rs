//! A disk with data becomes larger, and then its guest goes on writing.

use std::fs;
use std::path::Path;
use std::process::Command;

use testkit::layout::assert_layout;
use testkit::old_layout::tables_behind_blocks;
use testkit::scratch;

use super::guest::{BLOCK, Content, Guest};
use crate::program::{done, refused};

/// Sizes before and after, in MiB.
const SIZES: [(u64, u64); 4] = [(256, 512), (30 << 10, 40 << 10), (40 << 10, 80 << 10), (2 << 10, 2040 << 10)];

/// Makes disks of all sizes, with and without a snapshot and each time with data; grows them; lets the guest go on.
///
/// `room` gives the size, in MiB, that the BAT has room for.
fn grown(room: fn(u64) -> Option<u64>, grow: fn(&Path, u64)) {
    for ((before, after), has_snapshot) in SIZES.into_iter().flat_map(|sizes| [(sizes, false), (sizes, true)]) {
        let case = format!("{before} to {after} MiB, {}", if has_snapshot { "with a snapshot" } else { "alone" });
        let folder = scratch::folder();
        let (here, path) = (folder.path(), folder.path().join("disk.vhd"));
        let room = room(after).map(|room| ["-S".to_owned(), room.to_string()]).into_iter().flatten();
        let room: Vec<String> = room.collect();
        let args = |args: &[&'static str]| args.iter().map(ToString::to_string).chain(room.clone()).collect::<Vec<_>>();
        let run = |args: Vec<String>| done(here, &args.iter().map(String::as_str).collect::<Vec<_>>());

        let mut create = args(&["create", "-n", "disk.vhd", "-s"]);
        create.insert(4, before.to_string());
        run(create);
        let mut content = Content::new(before * 2048);
        if has_snapshot {
            let mut guest = Guest::start(&path, content);
            guest.fill(5);
            guest.fill(2);
            guest.disk.pause().expect("the leaf is writable");
            fs::rename(&path, here.join("base.vhd")).expect("the file is there");
            run(args(&["snapshot", "-n", "disk.vhd", "-p", "base.vhd"]));
            content = guest.content;
        }
        let mut guest = Guest::start(&path, content);
        for block in [3, 0, 7] {
            guest.fill(block);
        }
        guest.write(9 * BLOCK + 5..9 * BLOCK + 77);
        guest.disk.pause().expect("the leaf is writable");
        let mut content = guest.content;

        grow(&path, after);
        content.grow(after * 2048);
        content.assert_file(&case, &path);
        let mut guest = Guest::start(&path, content);
        guest.touch();
        guest.assert(&case);
        for block in [4, after / 2 - 1, 0, 9] {
            guest.fill(block);
        }
        guest.touch();
        guest.assert(&case);
        guest.disk.pause().expect("the leaf is writable");
        guest.content.assert_file(&case, &path);
        guest.content.assert_tapdisk(&case, &path);
        done(here, &["check", "-n", "disk.vhd"]);
        assert_layout(&path);
    }
}

#[test]
fn under_a_journal() {
    grown(
        |_| None,
        |path, mib| {
            done(path.parent().unwrap(), &["resize", "-s", &mib.to_string(), "-n", "disk.vhd", "-j", "journal"]);
        },
    );
}

#[test]
fn where_the_bat_has_room() {
    grown(Some, |path, mib| {
        done(path.parent().unwrap(), &["resize", "-s", &mib.to_string(), "-n", "disk.vhd", "-f"]);
    });
}

#[test]
fn by_vhd_tool() {
    grown(|_| None, |path, mib| vhd_tool(path, mib, &[]));
}

fn vhd_tool(path: &Path, mib: u64, options: &[&str]) {
    let mut vhd_tool = Command::new(assert_cmd::cargo::cargo_bin!("vhd-tool"));
    let output = vhd_tool.arg("resize").arg(path).arg(format!("{mib}M")).args(options).output();
    let output = output.expect("the program starts");
    assert!(output.status.success(), "{output:?}");
}

/// tapdisk does not see the BAT's entries behind the end of a disk, and puts new blocks where they point to.
#[test]
fn after_it_became_smaller() {
    let folder = scratch::folder();
    let path = folder.path().join("disk.vhd");
    done(folder.path(), &["create", "-n", "disk.vhd", "-s", "64"]);
    let mut guest = Guest::start(&path, Content::new(64 << 11));
    for block in [20, 3, 25, 31] {
        guest.fill(block);
    }
    guest.disk.pause().expect("the leaf is writable");
    vhd_tool(&path, 32, &["--discard"]);
    let mut content = Content::new(32 << 11);
    content.take(&guest.content, 0..16);
    let mut guest = Guest::start(&path, content);
    guest.assert("when it is smaller");
    for block in [5, 6, 7] {
        guest.fill(block);
    }
    guest.touch();
    guest.disk.pause().expect("the leaf is writable");
    let mut content = guest.content;
    content.assert_file("when it is smaller", &path);
    vhd_tool(&path, 64, &[]);
    content.grow(64 << 11);
    for block in 16..32 {
        content.expect_zeros(block);
    }
    content.assert_file("when it is large again", &path);
    let mut guest = Guest::start(&path, content);
    guest.fill(20);
    guest.touch();
    guest.assert("when it is large again");
    guest.disk.pause().expect("the leaf is writable");
    assert_layout(&path);
}

/// The next block of a guest that writes goes where the file's footer would be.
#[test]
fn while_a_guest_writes_is_refused() {
    let folder = scratch::folder();
    let (here, path) = (folder.path(), folder.path().join("disk.vhd"));
    done(here, &["create", "-n", "disk.vhd", "-s", "64", "-S", "128"]);
    let mut guest = Guest::start(&path, Content::new(64 << 11));
    guest.fill(3);
    let mut moments = 0;
    guest.write_beside(9 * BLOCK + 100..9 * BLOCK + 200, &mut || {
        moments += 1;
        let before = fs::read(&path).expect("the file is there");
        refused(here, &["resize", "-s", "128", "-n", "disk.vhd", "-f"], 16);
        assert!(fs::read(&path).expect("the file is there") == before, "moment {moments}: nothing is changed");
    });
    assert!(moments >= 3);
    guest.assert("after a refusal");
    guest.disk.pause().expect("the leaf is writable");
    guest.content.assert_file("after a refusal", &path);
    assert_layout(&path);
    done(here, &["resize", "-s", "128", "-n", "disk.vhd", "-f"]);
}

/// The storage manager makes a base as large as the child that it merges into it, while a guest reads the base.
#[test]
fn of_a_base_that_a_guest_reads() {
    let folder = scratch::folder();
    let here = folder.path();
    done(here, &["create", "-n", "base.vhd", "-s", "64", "-S", "128"]);
    let mut guest = Guest::start(&here.join("base.vhd"), Content::new(64 << 11));
    guest.fill(3);
    guest.write(9 * BLOCK + 5..9 * BLOCK + 77);
    guest.disk.pause().expect("the image is writable");
    done(here, &["snapshot", "-n", "disk.vhd", "-p", "base.vhd", "-S", "128"]);
    let mut guest = Guest::start(&here.join("disk.vhd"), guest.content);
    guest.fill(5);
    done(here, &["resize", "-s", "128", "-n", "base.vhd", "-f"]);
    guest.fill(3);
    guest.assert("beside a larger base");
    // Blocks of this one would move while they are read.
    let mut bytes = fs::read(here.join("base.vhd")).expect("the file is there");
    tables_behind_blocks(&mut bytes);
    fs::write(here.join("old.vhd"), &bytes).expect("the folder is writable");
    let reader = fs::File::open(here.join("old.vhd")).expect("the file is there");
    refused(here, &["resize", "-s", "130", "-n", "old.vhd", "-j", "journal"], 16);
    refused(here, &["resize", "-s", "128", "-n", "old.vhd", "-f"], 16);
    assert!(fs::read(here.join("old.vhd")).expect("the file is there") == bytes, "nothing is changed");
    drop(reader);
    done(here, &["resize", "-s", "130", "-n", "old.vhd", "-j", "journal"]);
    assert_layout(&here.join("old.vhd"));
}
