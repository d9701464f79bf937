use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use testkit::golden;
use vhd_core::{ChainOptions, Volume};

use crate::program::{done, ended, files, guest, json, json_ended, names, refused, write};

/// A volume whose only snapshot has been deleted.
fn to_be_merged() -> TempDir {
    let folder = golden::unpack(&["fixed-4m.vhd"]);
    done(folder.path(), &["snapshot", "fixed-4m.vhd", "snap.vhd"]);
    write(folder.path(), "fixed-4m.vhd", 100, b"x");
    done(folder.path(), &["delete", "snap.vhd"]);
    folder
}

/// Everything in a folder and beneath it, with times.
fn everything(folder: &Path) -> String {
    let mut find = Command::new("find");
    let output = find.arg(folder).args(["-printf", "%P %s %T@ %C@\n"]).output().expect("find is there");
    format!("{}{:?}", String::from_utf8(output.stdout).expect("tests use UTF-8 names"), files(folder))
}

#[test]
fn what_nobody_needs_is_deleted_and_the_rest_merged() {
    let folder = to_be_merged();
    let before = guest(folder.path(), "fixed-4m.vhd");
    let text = done(folder.path(), &["gc", "."]);
    assert!(text.contains("  merged    ") && text.contains("fixed-4m.vhd") && text.contains(" moved\n"), "{text}");
    assert_eq!(names(folder.path()), ["fixed-4m.vhd"]);
    assert_eq!(guest(folder.path(), "fixed-4m.vhd"), before);
    assert!(done(folder.path(), &["gc", "."]).ends_with("\n  nothing to do\n"));
    assert_eq!(done(folder.path(), &["gc", ".", "--quiet"]), "");
}

#[test]
fn a_dry_run_tells_all_and_changes_no_byte() {
    let folder = to_be_merged();
    fs::remove_dir_all(folder.path().join(".vhd")).unwrap();
    let before = everything(folder.path());
    let text = done(folder.path(), &["gc", ".", "--dry-run", "--quiet"]);
    let plan = json(folder.path(), &["gc", ".", "--dry-run"]);
    assert_eq!(everything(folder.path()), before);
    assert!(text.contains("\n  merge     ") && text.contains(" of space needed\n"), "{text}");
    let run = &plan["repositories"][0]["merge"][0];
    assert_eq!(run["nodes"], 2);

    // What was planned is what is done.
    let report = json(folder.path(), &["gc", "."]);
    let merged = &report["repositories"][0]["merged"][0];
    for name in ["node", "into", "direction", "nodes", "bytes"] {
        assert_eq!(merged[name], run[name], "{name}");
    }
}

#[test]
fn a_volume_in_use_waits_and_says_so() {
    let folder = to_be_merged();
    let user = Volume::open(&folder.path().join("fixed-4m.vhd"), &ChainOptions::default()).unwrap();
    for args in [&["gc", "."][..], &["gc", ".", "--dry-run"]] {
        let (text, _) = ended(folder.path(), args, 3);
        assert!(text.contains("\n  waiting   ") && text.contains("is in use"), "{text}");
        let report = json_ended(folder.path(), args, 3);
        assert_eq!(report["repositories"][0]["waiting"].as_array().unwrap().len(), 1, "{report}");
    }
    user.close().unwrap();
    done(folder.path(), &["gc", "."]);
    assert_eq!(names(folder.path()).len(), 1);
}

#[test]
fn a_damaged_image_is_isolated_and_hinders_no_other() {
    let folder = to_be_merged();
    fs::write(folder.path().join("odd.vhd"), [7; 4096]).unwrap();
    let (text, _) = ended(folder.path(), &["gc", "."], 3);
    assert!(text.contains("  isolated  ") && text.contains("odd.vhd: ") && text.contains("  merged    "), "{text}");
    assert_eq!(names(folder.path()), ["fixed-4m.vhd", "odd.vhd"]);
}

#[test]
fn several_folders_are_collected_and_one_that_is_missing_hinders_no_other() {
    let (one, two) = (to_be_merged(), to_be_merged());
    let (first, second) = (one.path().display().to_string(), two.path().display().to_string());
    let (_, errors) = ended(one.path(), &["gc", &first, "missing", &second], 5);
    assert!(errors.contains("error: missing: cannot open the folder"), "{errors}");
    assert_eq!((names(one.path()).len(), names(two.path()).len()), (1, 1));
}

/// Whatever it is waiting for, here somebody who changes the structure, it ends when it is told to.
#[test]
fn it_ends_when_it_is_told_to() {
    let folder = to_be_merged();
    let lock = fs::File::create(folder.path().join(".vhd/lock")).unwrap();
    lock.lock().unwrap();
    let mut gc = Command::new(env!("CARGO_BIN_EXE_vhd-tool"));
    let mut gc = gc.args(["gc", "."]).current_dir(folder.path()).stderr(Stdio::piped()).spawn().unwrap();
    thread::sleep(Duration::from_millis(300));
    let told = Instant::now();
    Command::new("kill").arg(gc.id().to_string()).status().unwrap();
    assert_eq!(gc.wait().unwrap().code(), Some(5));
    assert!(told.elapsed() < Duration::from_secs(2), "{:?}", told.elapsed());
    let mut errors = String::new();
    gc.stderr.take().unwrap().read_to_string(&mut errors).unwrap();
    assert!(errors.contains("stopped; the next collection goes on from there"), "{errors}");
    drop(lock);
    done(folder.path(), &["gc", "."]);
    assert_eq!(names(folder.path()), ["fixed-4m.vhd"]);
}

#[test]
fn wrong_options_are_refused() {
    let folder = to_be_merged();
    refused(folder.path(), &["gc", ".", "--rate", "0"], 2, &["nothing would move at that rate"]);
    refused(folder.path(), &["gc"], 2, &["DIR"]);
}
