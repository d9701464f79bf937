use std::fs;

use testkit::golden;
use vhd_core::{FileStorage, Lock};

use crate::program::{done, ended, expected, files, guest, json, names, refused};

#[test]
fn it_tells_what_it_has_done_and_where_the_old_bytes_are() {
    let folder = golden::unpack(&["no-first-footer.vhd"]);
    let text = done(folder.path(), &["repair", "no-first-footer.vhd"]);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with("no-first-footer.vhd: the copy of the footer "), "{text}");
    assert!(lines[0].ends_with(" [footer-copy-lost]"), "{text}");
    assert_eq!(lines[1], "no-first-footer.vhd: 512 bytes replaced");
    assert!(lines[2].contains("no-first-footer.vhd.undo; --undo takes the repair back"), "{text}");
    assert_eq!(guest(folder.path(), "no-first-footer.vhd"), expected("base.vhd"));
    done(folder.path(), &["check", "no-first-footer.vhd"]);
    let again = done(folder.path(), &["repair", "no-first-footer.vhd"]);
    assert_eq!(again, "no-first-footer.vhd: nothing to repair\n");
    assert_eq!(done(folder.path(), &["repair", "no-first-footer.vhd", "--quiet"]), "");
}

#[test]
fn a_dry_run_tells_all_and_changes_nothing() {
    let folder = golden::unpack(&["bat-beyond-eof.vhd"]);
    let before = files(folder.path());
    let text = done(folder.path(), &["repair", "bat-beyond-eof.vhd", "--dry-run", "--quiet"]);
    let planned = json(folder.path(), &["repair", "bat-beyond-eof.vhd", "--dry-run"]);
    assert_eq!(files(folder.path()), before);
    assert!(text.contains(" its BAT entry is cleared [bat-entry]\n"), "{text}");
    assert!(text.contains(" bytes would be replaced\n"), "{text}");
    let lost = &planned["lost"][0];
    let (sector, count) = (lost["sector"].as_u64().unwrap(), lost["count"].as_u64().unwrap());
    assert_eq!(count, 4096);
    assert!(text.contains(&format!(": lost: sectors {sector}..{}\n", sector + count)), "{text}");

    // What was planned is what is done.
    let done = json(folder.path(), &["repair", "bat-beyond-eof.vhd"]);
    for name in ["repaired", "lost", "left", "bytes_replaced", "resumed"] {
        assert_eq!(planned[name], done[name], "{name}");
    }
    assert_eq!((&planned["dry_run"], &done["dry_run"]), (&true.into(), &false.into()));
    assert!(planned["undo"].is_null());
    assert!(done["undo"].as_str().unwrap().ends_with("/bat-beyond-eof.vhd.undo"));
}

#[test]
fn undo_gives_every_byte_back() {
    let folder = golden::unpack(&["torn-batmap.vhd", "no-end-footer.vhd"]);
    let before = files(folder.path());
    for name in ["torn-batmap.vhd", "no-end-footer.vhd"] {
        done(folder.path(), &["repair", name]);
        assert_ne!(files(folder.path()), before);
        let text = done(folder.path(), &["repair", name, "--undo"]);
        assert_eq!(text, format!("{name}: the repair is taken back\n"));
        assert_eq!(files(folder.path()), before);
    }
    refused(
        folder.path(),
        &["repair", "torn-batmap.vhd", "--undo"],
        5,
        &["there is no undo file", "hint: ", "--backup"],
    );
    done(folder.path(), &["repair", "torn-batmap.vhd"]);
    assert_eq!(json(folder.path(), &["repair", "torn-batmap.vhd", "--undo"])["interrupted"], false);
}

#[test]
fn undo_spares_what_has_been_done_since() {
    let folder = golden::unpack(&["torn-batmap.vhd"]);
    done(folder.path(), &["repair", "torn-batmap.vhd"]);
    // A new block makes the file longer.
    crate::program::write(folder.path(), "torn-batmap.vhd", 16 << 20, &[5; 4096]);
    let before = files(folder.path());
    refused(folder.path(), &["repair", "torn-batmap.vhd", "--undo"], 5, &["changed since it was repaired"]);
    assert_eq!(files(folder.path()), before);
}

#[test]
fn the_undo_file_goes_where_it_is_told_to() {
    let folder = golden::unpack(&["footer-511.vhd"]);
    let backup = folder.path().join("backup");
    fs::create_dir(&backup).unwrap();
    let before = files(folder.path());
    done(folder.path(), &["repair", "footer-511.vhd", "--backup", "backup"]);
    assert_eq!(names(folder.path()), ["footer-511.vhd"]);
    assert_eq!(names(&backup), ["footer-511.vhd.undo"]);
    refused(folder.path(), &["repair", "footer-511.vhd", "--undo"], 5, &["there is no undo file"]);
    done(folder.path(), &["repair", "footer-511.vhd", "--undo", "--backup", "backup"]);
    assert_eq!(files(folder.path()), before);
    assert!(names(&backup).is_empty());
    refused(
        folder.path(),
        &["repair", "footer-511.vhd", "--backup", "nowhere"],
        5,
        &["nowhere: cannot open the folder"],
    );
}

/// An undo file is no image, and no child of one.
#[test]
fn an_undo_file_hinders_no_collection() {
    let folder = golden::unpack(&["no-first-footer.vhd"]);
    done(folder.path(), &["repair", "no-first-footer.vhd"]);
    let text = done(folder.path(), &["gc", "."]);
    assert!(!text.contains("isolated"), "{text}");
    let tree = done(folder.path(), &["tree", "."]);
    assert!(!tree.contains(".undo"), "{tree}");
}

#[test]
fn what_nothing_proves_is_refused_with_both_choices() {
    let folder = golden::unpack(&["overlapping-blocks.vhd"]);
    let before = files(folder.path());
    let parts = ["without block 1 its sectors ", "without block 3 its sectors ", "hint: nothing was changed"];
    refused(folder.path(), &["repair", "overlapping-blocks.vhd"], 5, &parts);
    refused(folder.path(), &["repair", "overlapping-blocks.vhd", "--dry-run"], 5, &parts);
    assert_eq!(files(folder.path()), before);
}

#[test]
fn an_interrupted_resize_needs_its_journal() {
    let folder = golden::unpack(&["poisoned.vhd"]);
    refused(folder.path(), &["read", "poisoned.vhd"], 5, &["hint: `repair FILE`"]);
    refused(folder.path(), &["repair", "poisoned.vhd"], 5, &["no journal in its folder", "hint: --journal"]);
    let elsewhere = golden::unpack(&["poisoned.journal"]);
    let journal = elsewhere.path().join("poisoned.journal").display().to_string();
    let text = done(folder.path(), &["repair", "poisoned.vhd", "--journal", &journal]);
    assert!(text.contains("[resize-unfinished]\n") && text.contains("nobody needs "), "{text}");
    let image = golden::manifest().into_iter().find(|image| image.file == "poisoned.vhd").unwrap();
    assert_eq!(Some(&files(folder.path())["poisoned.vhd"]), image.sha256_after_revert.as_ref());
    assert_eq!(Some(guest(folder.path(), "poisoned.vhd")), image.guest_sha256_after_revert);
}

#[test]
fn what_cannot_be_repaired_is_refused() {
    let folder = golden::unpack(&["raw-parent.img", "no-first-footer.vhd"]);
    refused(folder.path(), &["repair", "raw-parent.img"], 5, &["not a VHD", "hint: too little is left"]);
    refused(folder.path(), &["repair", "nowhere.vhd"], 5, &["nowhere.vhd"]);
    refused(folder.path(), &["repair", "no-first-footer.vhd", "--undo", "--dry-run"], 2, &["--dry-run"]);
    refused(folder.path(), &["repair"], 2, &["FILE"]);
    let _user = FileStorage::open(&folder.path().join("no-first-footer.vhd"), Lock::Shared).unwrap();
    let before = files(folder.path());
    refused(
        folder.path(),
        &["repair", "no-first-footer.vhd"],
        5,
        &["in use by another process", "hint: another process"],
    );
    assert_eq!(files(folder.path()), before);
}

#[test]
fn the_help_tells_the_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let (help, _) = ended(folder.path(), &["repair", "--help"], 0);
    assert!(help.contains("Exit codes: 0 repaired, or nothing had to be; 5 not repaired"), "{help}");
    for option in ["--dry-run", "--undo", "--backup <DIR>", "--journal <JOURNAL>", "--json"] {
        assert!(help.contains(option), "{option} in {help}");
    }
}
