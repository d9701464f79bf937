//! Options that every command has.

use std::fs;

use testkit::golden;

use crate::program::{done, ended, expected, guest, refused};

/// A child in one folder, its parent in another.
fn apart() -> tempfile::TempDir {
    let folder = golden::unpack(&["fixed-4m.vhd"]);
    fs::create_dir(folder.path().join("sub")).expect("the folder is writable");
    fs::create_dir(folder.path().join("other")).expect("the folder is writable");
    let (_, notes) = ended(folder.path(), &["create", "sub/child.vhd", "--parent", "fixed-4m.vhd"], 0);
    assert!(notes.contains("sub/child.vhd opens only with --parent-root"), "{notes}");
    folder
}

#[test]
fn a_parent_in_another_folder_is_refused_with_the_options_that_allow_it() {
    let folder = apart();
    let parts = [
        "sub/child.vhd: its parent cannot be used",
        "fixed-4m.vhd: outside the folders",
        "hint: ",
        "--parent-root",
        "--any-parent",
    ];
    for args in [&["read", "sub/child.vhd"][..], &["--parent-root", "other", "read", "sub/child.vhd"]] {
        refused(folder.path(), args, 5, &parts);
    }
}

#[test]
fn a_root_or_trust_lets_the_parent_be_opened() {
    let folder = apart();
    for options in [&["--parent-root", "."][..], &["--parent-root", "other", "--parent-root", "."], &["--any-parent"]] {
        done(folder.path(), &[options, &["compare", "sub/child.vhd", "fixed-4m.vhd"]].concat());
        done(folder.path(), &[&["compare", "sub/child.vhd", "fixed-4m.vhd"], options].concat());
    }
    assert_eq!(guest(folder.path(), "sub/child.vhd"), expected("fixed-4m.vhd"));
}

#[test]
fn another_image_under_the_name_of_the_parent_needs_an_option() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd"]);
    done(folder.path(), &["create", "base.vhd", "--size", "64M", "--force"]);
    let parts = ["base.vhd: its unique id is ", "hint: ", "--ignore-parent-uuid"];
    refused(folder.path(), &["map", "mid.vhd"], 5, &parts);
    done(folder.path(), &["map", "mid.vhd", "--ignore-parent-uuid"]);
}

#[test]
fn quiet_leaves_only_data_and_errors() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    for args in [
        &["create", "a.vhd", "--size", "1M"][..],
        &["create", "b.vhd", "--parent", "a.vhd"],
        &["convert", "leaf.vhd", "c.img", "--to", "raw"],
        &["compare", "leaf.vhd", "c.img"],
        &["snapshot", "leaf.vhd", "d.vhd"],
        &["clone", "leaf.vhd", "e.vhd"],
        &["coalesce", "mid.vhd"],
    ] {
        let (stdout, stderr) = ended(folder.path(), &[args, &["--quiet"]].concat(), 0);
        assert_eq!((stdout.as_str(), stderr.as_str()), ("", ""), "{args:?}");
    }
    let (stdout, stderr) = ended(folder.path(), &["-q", "read", "a.vhd", "--length", "3"], 0);
    assert_eq!((stdout.as_str(), stderr.as_str()), ("\0\0\0", ""));
    assert_ne!(ended(folder.path(), &["-q", "tree", "."], 0).0, "");
    refused(folder.path(), &["-q", "read", "nowhere.vhd"], 5, &["error: nowhere.vhd"]);
}

#[test]
fn without_a_terminal_progress_is_one_last_line_for_short_work() {
    let folder = golden::unpack(&["base.vhd"]);
    let (_, stderr) = ended(folder.path(), &["convert", "base.vhd", "a.img", "--to", "raw"], 0);
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with("convert: 64.0 MiB in ") && stderr.ends_with("/s\n"), "{stderr}");
}
