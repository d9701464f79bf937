use std::fs;

use testkit::{golden, sha256};
use vhd_core::Image;

use crate::program::{done, files, guest, refused};

fn poisoned() -> golden::Golden {
    golden::manifest().into_iter().find(|image| image.journal.is_some()).unwrap()
}

#[test]
fn a_resize_of_blktaps_is_taken_back() {
    let (image, folder) = (poisoned(), golden::unpack(&["poisoned.vhd", "poisoned.journal"]));
    let revert = ["revert", "--debug", "-n", "poisoned.vhd", "-j", "poisoned.journal"];
    assert_eq!(done(folder.path(), &revert), "");
    assert!(!folder.path().join("poisoned.journal").exists());
    assert_eq!(files(folder.path())["poisoned.vhd"], image.sha256_after_revert.unwrap());
    assert_eq!(guest(folder.path(), "poisoned.vhd"), image.guest_sha256_after_revert.unwrap());
    assert_eq!(done(folder.path(), &["check", "-n", "poisoned.vhd"]), "poisoned.vhd is valid\n");
    refused(folder.path(), &revert, 2);
}

#[test]
fn a_damaged_journal_is_refused_and_nothing_is_written() {
    let folder = golden::unpack(&["poisoned.vhd"]);
    let sound = golden::bytes("poisoned.journal");
    let last = sound.len() - 1;
    // Head, entries, old bytes of a table and of a block.
    for at in [0, 9, 31, 35, 58, 512, 521, 600, 2700, 4900, 1_000_000, last] {
        let mut journal = sound.clone();
        journal[at] ^= 0x40;
        fs::write(folder.path().join("j"), journal).unwrap();
        let before = files(folder.path());
        refused(folder.path(), &["revert", "-n", "poisoned.vhd", "-j", "j"], 22);
        assert_eq!(files(folder.path()), before, "byte {at}");
    }
    fs::write(folder.path().join("j"), &sound[..last]).unwrap();
    let before = files(folder.path());
    refused(folder.path(), &["revert", "-n", "poisoned.vhd", "-j", "j"], 22);
    assert_eq!(files(folder.path()), before);
}

#[test]
fn a_journal_of_another_image_is_refused() {
    let folder = golden::unpack(&["poisoned.journal", "meta.vhd", "fixed-4m.vhd"]);
    let before = files(folder.path());
    refused(folder.path(), &["revert", "-n", "meta.vhd", "-j", "poisoned.journal"], 22);
    refused(folder.path(), &["revert", "-n", "fixed-4m.vhd", "-j", "poisoned.journal"], 22);
    refused(folder.path(), &["revert", "-n", "poisoned.journal", "-j", "meta.vhd"], 22);
    refused(folder.path(), &["revert", "-n", "none.vhd", "-j", "poisoned.journal"], 2);
    refused(folder.path(), &["revert", "-n", "meta.vhd"], 22);
    assert_eq!(files(folder.path()), before);
}

/// A journal that somebody forgot: what it would bring back is older than what the image holds by now.
#[test]
fn an_image_that_was_used_since_is_not_taken_back() {
    let folder = golden::unpack(&["poisoned.vhd", "poisoned.journal"]);
    fs::copy(folder.path().join("poisoned.journal"), folder.path().join("j")).unwrap();
    let revert = ["revert", "-n", "poisoned.vhd", "-j"];
    done(folder.path(), &[&revert[..], &["poisoned.journal"]].concat());
    let taken_back = fs::read(folder.path().join("poisoned.vhd")).unwrap();

    // Taking it back again changes nothing, and is done.
    fs::copy(folder.path().join("j"), folder.path().join("again")).unwrap();
    done(folder.path(), &[&revert[..], &["again"]].concat());
    assert_eq!(sha256(&taken_back), files(folder.path())["poisoned.vhd"]);

    let mut image = Image::open_writable(&folder.path().join("poisoned.vhd")).unwrap();
    image.set_hidden(true).unwrap();
    image.close().unwrap();
    let before = files(folder.path());
    refused(folder.path(), &[&revert[..], &["j"]].concat(), 116);
    assert_eq!(files(folder.path()), before);
}
