//! A leaf that tapdisk has open is given another parent, as the storage manager does after each merge beneath it.

use std::fs;
use std::ops::Range;
use std::path::Path;

use testkit::layout::assert_layout;
use testkit::scratch;

use super::guest::{BLOCK, Content, Guest};
use crate::program::{done, ended, files};

/// Sizes of disks, in GiB. Between the tables and the first block of some there is no room for three sectors.
const SIZES: [u64; 12] = [1, 7, 8, 30, 50, 60, 64, 100, 128, 256, 1024, 2040];

/// Makes a base, a child of it and a leaf, with data in all; what the leaf's disk holds.
fn chain(here: &Path, gib: u64) -> Content {
    done(here, &["create", "-n", "base.vhd", "-s", &(gib << 10).to_string()]);
    let mut content = Content::new(gib << 21);
    for (node, child) in [("base.vhd", Some("mid.vhd")), ("mid.vhd", Some("leaf.vhd")), ("leaf.vhd", None)] {
        let mut guest = Guest::start(&here.join(node), content);
        guest.fill(3);
        guest.write(BLOCK + 7..BLOCK + 9);
        guest.disk.pause().expect("the image is writable");
        content = guest.content;
        if let Some(child) = child {
            done(here, &["snapshot", "-n", child, "-p", node]);
        }
    }
    content
}

/// The header, and the sectors of locators that it points to.
fn parts(bytes: &[u8]) -> Vec<Range<usize>> {
    let number = |at: usize, length: usize| {
        bytes[at..at + length].iter().fold(0, |number, &byte| number << 8 | usize::from(byte))
    };
    let entries = (512 + 576..512 + 768).step_by(24).filter(|&entry| number(entry, 4) != 0);
    let locators = entries.map(|entry| number(entry + 16, 8)..number(entry + 16, 8) + number(entry + 4, 4));
    std::iter::once(512..1536).chain(locators).collect()
}

/// Relinks a leaf and looks at each byte of its file.
fn relink(here: &Path, parent: &str) {
    let before = fs::read(here.join("leaf.vhd")).expect("the leaf is there");
    done(here, &["modify", "--debug", "-p", parent, "-n", "leaf.vhd"]);
    let after = fs::read(here.join("leaf.vhd")).expect("the leaf is there");
    assert_eq!(after.len(), before.len(), "the length of the file");
    let parts = parts(&before);
    let changed = (0..before.len()).step_by(512).filter(|&at| before[at..at + 512] != after[at..at + 512]);
    let elsewhere: Vec<usize> = changed.filter(|at| !parts.iter().any(|part| part.contains(at))).collect();
    assert_eq!(elsewhere, [0; 0], "sectors that are neither header nor locator");
    assert_ne!(before[512..1536], after[512..1536], "it has another parent");
}

/// A leaf in one of the states that tapdisk has it in: the guest writes before and after it is relinked.
fn relinked(start: impl Fn(&Path, Content) -> Guest) {
    for gib in SIZES {
        let case = format!("{gib} GiB");
        let folder = scratch::folder();
        let here = folder.path();
        let mut guest = start(&here.join("leaf.vhd"), chain(here, gib));
        guest.assert(&case);
        done(here, &["coalesce", "--debug", "-n", "mid.vhd"]);
        guest.assert(&case);
        relink(here, "base.vhd");
        guest.assert(&case);
        guest.fill(6);
        guest.touch();
        guest.write(11 * BLOCK..11 * BLOCK + 8);
        guest.assert(&case);
        fs::remove_file(here.join("mid.vhd")).expect("the file is there");
        guest.disk.pause().expect("the leaf is writable");
        guest.content.assert_file(&case, &here.join("leaf.vhd"));
        done(here, &["check", "-n", "leaf.vhd"]);
        assert_layout(&here.join("leaf.vhd"));
        guest.disk.unpause().expect("the chain is there");
        guest.touch();
        guest.assert(&case);
    }
}

#[test]
fn that_has_not_been_written_to() {
    relinked(Guest::start);
}

#[test]
fn that_has_new_blocks() {
    relinked(|leaf, content| {
        let mut guest = Guest::start(leaf, content);
        guest.write(4 * BLOCK..4 * BLOCK + 1);
        guest.fill(5);
        guest
    });
}

#[test]
fn that_was_paused() {
    relinked(|leaf, content| {
        let mut guest = Guest::start(leaf, content);
        guest.disk.pause().expect("the leaf is writable");
        guest.disk.unpause().expect("the chain is there");
        guest
    });
}

/// In the middle of the guest's first write to a block: the block is there, and the BAT does not show it yet.
#[test]
fn in_the_middle_of_a_write() {
    for (gib, moment) in SIZES.into_iter().flat_map(|gib| [(gib, 1), (gib, 2), (gib, 3)]) {
        let case = format!("{gib} GiB, moment {moment}");
        let folder = scratch::folder();
        let here = folder.path();
        let mut guest = Guest::start(&here.join("leaf.vhd"), chain(here, gib));
        done(here, &["coalesce", "--debug", "-n", "mid.vhd"]);
        let mut moments = 0;
        guest.write_beside(9 * BLOCK + 100..9 * BLOCK + 200, &mut || {
            moments += 1;
            if moments == moment {
                relink(here, "base.vhd");
            }
        });
        assert!(moments >= 3);
        guest.assert(&case);
        guest.disk.pause().expect("the leaf is writable");
        guest.content.assert_file(&case, &here.join("leaf.vhd"));
        assert_layout(&here.join("leaf.vhd"));
    }
}

#[test]
fn whose_new_parent_has_too_long_a_name_is_left_alone() {
    for gib in SIZES {
        let folder = scratch::folder();
        let here = folder.path();
        let mut guest = Guest::start(&here.join("leaf.vhd"), chain(here, gib));
        let name = "n".repeat(251) + ".vhd";
        fs::copy(here.join("base.vhd"), here.join(&name)).expect("the folder is writable");
        for is_running in [true, false] {
            let before = files(here);
            let output =
                crate::program::command(here, &["modify", "-p", &name, "-n", "leaf.vhd"]).output().expect("it runs");
            assert!(!output.status.success(), "{gib} GiB: {output:?}");
            assert!(!output.stderr.is_empty());
            assert_eq!(files(here), before, "{gib} GiB, running: {is_running}");
            guest.assert("refused");
            guest.disk.pause().expect("the leaf is writable");
            guest.disk.unpause().expect("the chain is there");
        }
    }
}

/// The parent of a name of the same length is where the old one was.
#[test]
fn to_a_raw_disk() {
    let folder = scratch::folder();
    let here = folder.path();
    fs::write(here.join("raw.img"), vec![7; 64 << 20]).expect("the folder is writable");
    fs::copy(here.join("raw.img"), here.join("new.img")).expect("the folder is writable");
    done(here, &["snapshot", "-n", "leaf.vhd", "-p", "raw.img", "-m"]);
    let mut guest = Guest::start(&here.join("leaf.vhd"), Content::new(64 << 11));
    guest.fill(0);
    guest.fill(31);
    let length = fs::metadata(here.join("leaf.vhd")).expect("the leaf is there").len();
    ended(here, &["modify", "-p", "new.img", "-m", "-n", "leaf.vhd"], 0);
    assert_eq!(fs::metadata(here.join("leaf.vhd")).expect("the leaf is there").len(), length);
    fs::remove_file(here.join("raw.img")).expect("the file is there");
    guest.fill(2);
    guest.touch();
    guest.disk.pause().expect("the leaf is writable");
    assert_layout(&here.join("leaf.vhd"));
    guest.disk.unpause().expect("the chain is there");
    guest.assert("on a raw disk");
}
