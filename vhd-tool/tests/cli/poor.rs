//! File systems that can less, and a host without /proc.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use testkit::inject::{fail_from, kill_at};
use testkit::poorfs::{Errno, PoorFs, Refusal};
use testkit::{golden, pattern, scene};
use vhd_core::{Sector, SectorCount, SectorRange};

use crate::program::{done, ended, files, guest, names, refused, write};

fn tool(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("vhd-tool"));
    command.current_dir(folder).args(args);
    command
}

/// A volume of 4 MiB whose only snapshot has been deleted; gives what it holds.
fn to_be_merged(folder: &Path) -> String {
    golden::unpack_into(folder, &["fixed-4m.vhd"]);
    let mut content = fs::read(folder.join("fixed-4m.vhd")).expect("it is there");
    done(folder, &["snapshot", "fixed-4m.vhd", "snap.vhd"]);
    let range = SectorRange::new(Sector(100), SectorCount(3000));
    let data = pattern::fill(range, 7);
    write(folder, "fixed-4m.vhd", 100 * 512, &data);
    done(folder, &["delete", "snap.vhd"]);
    content.truncate(4 << 20);
    content[100 * 512..][..data.len()].copy_from_slice(&data);
    testkit::sha256(&content)
}

fn collected(folder: &Path, expected: &str) {
    done(folder, &["gc", "."]);
    assert_eq!(names(folder), ["fixed-4m.vhd"]);
    assert_eq!(guest(folder, "fixed-4m.vhd"), expected);
    scene::check(folder);
}

#[test]
fn a_collection_that_was_killed_is_finished_without_any_one_ability() {
    let all: [&[Refusal]; 1] = [&Refusal::BEARABLE];
    for refused in Refusal::BEARABLE.iter().map(std::slice::from_ref).chain(all) {
        testkit::tell!("without {refused:?}");
        let poor = PoorFs::new(refused);
        let expected = to_be_merged(poor.path());
        for (call, number) in [("pwrite64", 4), ("fdatasync", 5), ("unlink", 1)] {
            kill_at(&tool(poor.path(), &["gc", "."]), call, number);
            assert_eq!(guest(poor.path(), "fixed-4m.vhd"), expected, "{refused:?} {call}");
        }
        collected(poor.path(), &expected);
    }
}

#[test]
fn a_snapshot_that_is_killed_anywhere_is_there_or_not() {
    for refused in [&[Refusal::RenameFlags][..], &[Refusal::RenameFlags, Refusal::HardLinks(Errno::PERM)]] {
        let poor = PoorFs::new(refused);
        let mut killed = 0;
        for call in ["renameat2", "linkat", "rename", "unlink"] {
            for number in 1.. {
                let folder = tempfile::tempdir_in(poor.path()).unwrap();
                let here = folder.path();
                golden::unpack_into(here, &["fixed-4m.vhd"]);
                let before = guest(here, "fixed-4m.vhd");
                if !kill_at(&tool(here, &["snapshot", "fixed-4m.vhd", "snap.vhd"]), call, number).hit {
                    break;
                }
                killed += 1;
                let what = format!("{refused:?} {call} {number}");
                done(here, &["gc", "."]);
                assert_eq!(guest(here, "fixed-4m.vhd"), before, "{what}");
                assert!(!here.join("snap.vhd").exists() || guest(here, "snap.vhd") == before, "{what}");
                assert_eq!(scene::state_files(here), <[String; 0]>::default(), "{what}");
                scene::check(here);
                done(here, &["snapshot", "fixed-4m.vhd", "again.vhd"]);
                assert_eq!(guest(here, "again.vhd"), before, "{what}");
            }
        }
        assert!(killed >= 8, "{killed}");
    }
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn a_copy_method_that_is_impossible_says_so_and_harms_nothing() {
    let poor = PoorFs::new(&[Refusal::RenameFlags]);
    let expected = to_be_merged(poor.path());
    let fails = |output: &Output, method: &str| {
        let text = told(output);
        assert_eq!(output.status.code(), Some(5), "{text}");
        let why = format!("the copy method {method} is impossible between these files; auto takes one that is not: ");
        assert!(text.contains(&why), "{text}");
        assert_eq!(guest(poor.path(), "fixed-4m.vhd"), expected, "{text}");
    };
    let gc = |method: &str| tool(poor.path(), &["gc", ".", "--copy-method", method]);
    fails(&gc("reflink").output().unwrap(), "reflink");
    for error in ["EXDEV", "EOPNOTSUPP", "ENOSYS", "EINVAL"] {
        let injected = fail_from(&gc("copy-file-range"), "copy_file_range", 1, error);
        assert!(injected.hit, "{error}");
        fails(&injected.output, "copy-file-range");
    }
    collected(poor.path(), &expected);
    let expected = {
        fs::remove_file(poor.path().join("fixed-4m.vhd")).unwrap();
        to_be_merged(poor.path())
    };
    // What the file system has no such call for the kernel copies by itself.
    assert!(gc("copy-file-range").output().unwrap().status.success());
    assert_eq!(guest(poor.path(), "fixed-4m.vhd"), expected);
}

#[test]
fn without_locks_what_changes_an_image_says_so_and_changes_nothing() {
    let poor = PoorFs::new(&[Refusal::Flock(Errno::NOLCK)]);
    golden::unpack_into(poor.real(), &["base.vhd", "mid.vhd", "fixed-4m.vhd"]);
    let before = files(poor.path());
    let why = ["its file system has no file locks (flock)", "No locks available"];
    for args in [
        &["snapshot", "fixed-4m.vhd", "new.vhd"][..],
        &["coalesce", "mid.vhd"],
        &["delete", "fixed-4m.vhd"],
        &["resize", "fixed-4m.vhd", "8M"],
        &["compact", "base.vhd"],
        &["write", "fixed-4m.vhd", "--offset", "0"],
    ] {
        refused(poor.path(), args, 5, &why);
        let _ = fs::remove_dir_all(poor.path().join(".vhd"));
        assert_eq!(files(poor.path()), before, "{args:?}");
    }
    let (_, told) = ended(poor.path(), &["gc", "."], 5);
    assert!(why.iter().all(|part| told.contains(part)), "{told}");
    assert_eq!(files(poor.path()), before, "gc");
    done(poor.path(), &["check", "mid.vhd", "--chain"]);
}

/// Runs the program where nothing is mounted at /proc.
fn without_proc(folder: &Path, args: &[&str]) -> String {
    let output = tool_without_proc(args).current_dir(folder).output().expect("unshare is there");
    assert!(output.status.success(), "{args:?}: {}", told(&output));
    String::from_utf8(output.stdout).expect("the program prints UTF-8")
}

fn tool_without_proc(args: &[&str]) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount -t tmpfs none /proc && exec \"$@\"", "sh"]);
    command.arg(assert_cmd::cargo::cargo_bin!("vhd-tool")).args(args);
    command
}

#[test]
fn a_life_without_proc() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    golden::unpack_into(here, &["fixed-4m.vhd"]);
    let before = guest(here, "fixed-4m.vhd");
    without_proc(here, &["snapshot", "fixed-4m.vhd", "snap.vhd"]);
    without_proc(here, &["create", "child.vhd", "--parent", "snap.vhd"]);
    assert_eq!(guest(here, "child.vhd"), before);
    without_proc(here, &["check", "child.vhd", "--chain"]);
    without_proc(here, &["convert", "child.vhd", "flat.img", "--to", "raw"]);
    assert_eq!(testkit::sha256(&fs::read(here.join("flat.img")).unwrap()), before);
    without_proc(here, &["vhd-util", "coalesce", "-n", "child.vhd"]);
    without_proc(here, &["delete", "child.vhd"]);
    without_proc(here, &["delete", "snap.vhd"]);
    without_proc(here, &["gc", "."]);
    assert_eq!(names(here), ["fixed-4m.vhd", "flat.img"]);
    assert_eq!(guest(here, "fixed-4m.vhd"), before);
}

/// The gate holds without /proc, too.
#[test]
fn without_proc_no_parent_is_opened_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    for folder in [&here, &there] {
        fs::create_dir(folder).unwrap();
    }
    golden::unpack_into(&here, &["mid.vhd"]);
    golden::unpack_into(&there, &["base.vhd"]);
    std::os::unix::fs::symlink("../there/base.vhd", here.join("base.vhd")).unwrap();
    let output = tool_without_proc(&["read", "mid.vhd", "--length", "512"]).current_dir(&here).output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", told(&output));
    assert!(told(&output).contains("outside the folders that parents are allowed in"), "{}", told(&output));
}
