use std::fs;

use testkit::filesystem::Tmpfs;
use testkit::golden;
use vhd_core::check::{self, Severity};
use vhd_core::{ByteCount, FooterOrigin, Image, Lock, ReadOnly};

use crate::program::{done, files, guest, process, refused, write};

/// The sectors in the answer, which must be `Coalesced N sectors` and no more.
fn sectors(answer: &str) -> u64 {
    let number = answer.strip_prefix("Coalesced ").and_then(|rest| rest.strip_suffix(" sectors"));
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"))
}

#[test]
fn an_image_is_merged_into_its_parent_and_nothing_else_happens() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let here = folder.path();
    let (mut before, mid, leaf) = (files(here), guest(here, "mid.vhd"), guest(here, "leaf.vhd"));
    let answer = done(here, &["coalesce", "--debug", "-n", "mid.vhd"]);
    let golden = golden::manifest().into_iter().find(|image| image.file == "mid.vhd").unwrap();
    let most: u64 = golden.writes.unwrap().iter().map(|(_, count, _)| count).sum();
    assert!((4096..=most).contains(&sectors(&answer)), "{answer}");
    assert_eq!((guest(here, "base.vhd"), guest(here, "mid.vhd"), guest(here, "leaf.vhd")), (mid.clone(), mid, leaf));
    let mut after = files(here);
    assert_ne!(before.remove("base.vhd"), after.remove("base.vhd"));
    assert_eq!(after, before, "no other file is changed or made");
    let report = check::file(&here.join("base.vhd")).unwrap();
    assert!(report.worst() < Some(Severity::Warning), "{:?}", report.findings());
    // Once more, as after a crash.
    assert_eq!(done(here, &["coalesce", "-n", "mid.vhd"]), answer);
}

#[test]
fn a_raw_parent_is_merged_into() {
    let folder = golden::unpack(&["raw-parent.img", "on-raw.vhd"]);
    let before = guest(folder.path(), "on-raw.vhd");
    assert_eq!(done(folder.path(), &["coalesce", "-s", "-n", "on-raw.vhd"]), "Coalesced 20 sectors");
    assert_eq!(testkit::sha256(&fs::read(folder.path().join("raw-parent.img")).unwrap()), before);
    assert_eq!(guest(folder.path(), "on-raw.vhd"), before);
}

#[test]
fn an_empty_child_moves_nothing() {
    let folder = golden::unpack(&["base.vhd"]);
    done(folder.path(), &["snapshot", "-n", "child.vhd", "-p", "base.vhd"]);
    let before = files(folder.path());
    assert_eq!(done(folder.path(), &["coalesce", "-n", "child.vhd"]), "Coalesced 0 sectors");
    assert_eq!(files(folder.path()), before);
}

#[test]
fn a_smaller_parent_grows() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    done(here, &["create", "-n", "base.vhd", "-s", "4"]);
    write(here, "base.vhd", 0, &[1; 4096]);
    done(here, &["snapshot", "-n", "child.vhd", "-p", "base.vhd"]);
    let mut child = Image::open_writable(&here.join("child.vhd")).unwrap();
    child.set_size(ByteCount(8 << 20), ByteCount(4 << 20)).unwrap();
    child.close().unwrap();
    write(here, "child.vhd", 7 << 20, &[2; 4096]);
    let before = guest(here, "child.vhd");
    assert_eq!(done(here, &["coalesce", "-n", "child.vhd"]), "Coalesced 8 sectors");
    assert_eq!((guest(here, "base.vhd"), guest(here, "child.vhd")), (before.clone(), before));
}

#[test]
fn progress_comes_before_the_answer() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd"]);
    let answer = done(folder.path(), &["coalesce", "-p", "-n", "mid.vhd"]);
    let (progress, last) = answer.rsplit_once('\n').unwrap();
    assert!(sectors(last) > 4096);
    assert!(progress.ends_with("\r100.00%"), "{progress:?}");
    for step in progress.split('\r').skip(1) {
        assert_eq!(step.len(), 7, "{step:?}");
        assert!(step.strip_suffix('%').is_some_and(|number| number.trim().parse::<f64>().is_ok()), "{step:?}");
    }
}

#[test]
fn what_cannot_be_merged_is_refused_and_nothing_changes() {
    let folder = golden::unpack(&["base.vhd", "leaf.vhd", "raw-parent.img", "poisoned.vhd"]);
    // Another image by the name of the parent.
    fs::copy(folder.path().join("base.vhd"), folder.path().join("mid.vhd")).unwrap();
    let before = files(folder.path());
    refused(folder.path(), &["coalesce", "-n", "leaf.vhd"], 22);
    refused(folder.path(), &["coalesce", "-n", "base.vhd"], 22);
    refused(folder.path(), &["coalesce", "-n", "raw-parent.img"], 22);
    refused(folder.path(), &["coalesce", "-n", "poisoned.vhd"], 22);
    refused(folder.path(), &["coalesce", "-n", "none.vhd"], 2);
    refused(folder.path(), &["coalesce"], 22);
    assert_eq!(files(folder.path()), before);
    fs::remove_file(folder.path().join("mid.vhd")).unwrap();
    refused(folder.path(), &["coalesce", "-n", "leaf.vhd"], 2);
}

#[test]
fn images_in_use_are_not_merged() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd"]);
    for image in ["base.vhd", "mid.vhd"] {
        let user = Image::open_writable(&folder.path().join(image)).unwrap();
        // `refused` would read the file, and wait until the user lets go.
        let output = process(folder.path(), &["coalesce", "-n", "mid.vhd"]).output().unwrap();
        drop(user);
        assert_eq!(output.status.code(), Some(16), "{output:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{output:?}");
    }
}

/// What goes into the holes of blocks that are there, no plan can foresee.
#[test]
fn a_disk_that_is_full_in_mid_merge_is_survived() {
    let disk = Tmpfs::new(ByteCount(48 << 20));
    let here = disk.path();
    done(here, &["create", "-n", "base.vhd", "-s", "64"]);
    (0..14).for_each(|block| write(here, "base.vhd", block << 21, &[1; 4096]));
    done(here, &["snapshot", "-n", "mid.vhd", "-p", "base.vhd"]);
    (0..14).for_each(|block| write(here, "mid.vhd", block << 21, &vec![2; 2 << 20]));
    done(here, &["snapshot", "-n", "leaf.vhd", "-p", "mid.vhd"]);
    let before = guest(here, "leaf.vhd");
    refused(here, &["coalesce", "-n", "mid.vhd"], 28);
    assert_eq!(guest(here, "leaf.vhd"), before);
    let base: Image<ReadOnly> = Image::open(&here.join("base.vhd"), Lock::None).unwrap();
    assert_eq!(base.footer_origin(), FooterOrigin::End, "the parent keeps its footer");
    let report = check::file(&here.join("base.vhd")).unwrap();
    assert!(report.worst() < Some(Severity::Warning), "{:?}", report.findings());

    let remount = std::process::Command::new("mount").args(["-o", "remount,size=200m"]).arg(here).status();
    assert!(remount.unwrap().success());
    assert_eq!(done(here, &["coalesce", "-n", "mid.vhd"]), format!("Coalesced {} sectors", 14 * 4096));
    assert_eq!([guest(here, "leaf.vhd"), guest(here, "base.vhd")], [before.clone(), before]);
}

/// What needs new blocks is known before anything is written.
#[test]
fn a_disk_that_is_too_full_is_not_even_begun_with() {
    let disk = Tmpfs::new(ByteCount(16 << 20));
    let here = disk.path();
    done(here, &["create", "-n", "base.vhd", "-s", "64"]);
    done(here, &["snapshot", "-n", "child.vhd", "-p", "base.vhd"]);
    write(here, "child.vhd", 0, &vec![2; 10 << 20]);
    let before = files(here);
    refused(here, &["coalesce", "-n", "child.vhd"], 28);
    assert_eq!(files(here), before);
}
