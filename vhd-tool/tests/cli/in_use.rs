//! Every command that changes images, beside a program that takes no locks and has one of them open, as tapdisk has: that
//! file stays what it is.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use testkit::scene::{self, Scene};

use crate::program::command;

/// A base with two hidden children in a row and a volume on them, a lone volume, and something to delete.
fn forest() -> Scene {
    let scene = Scene::default();
    scene.dynamic("base.vhd", 128);
    scene.write("base.vhd", 0..90, 1);
    scene.hide("base.vhd");
    scene.child("mid.vhd", "base.vhd");
    scene.write("mid.vhd", 50..100, 2);
    scene.hide("mid.vhd");
    scene.child("leaf.vhd", "mid.vhd");
    scene.write("leaf.vhd", 5..20, 3);
    scene.dynamic("lone.vhd", 128);
    scene.write("lone.vhd", 0..8, 4);
    scene.write_zeros("lone.vhd", 0..8);
    scene
}

const FILES: [&str; 4] = ["base.vhd", "mid.vhd", "leaf.vhd", "lone.vhd"];

const COMMANDS: &[&[&str]] = &[
    &["write", "leaf.vhd", "--offset", "0"],
    &["write", "lone.vhd", "--offset", "0"],
    &["resize", "leaf.vhd", "1M"],
    &["resize", "lone.vhd", "32K", "--discard"],
    &["compact", "leaf.vhd"],
    &["compact", "lone.vhd"],
    &["repair", "lone.vhd"],
    &["snapshot", "leaf.vhd", "new.vhd"],
    &["clone", "leaf.vhd", "new.vhd"],
    &["delete", "leaf.vhd"],
    &["delete", "lone.vhd"],
    &["coalesce", "mid.vhd"],
    &["coalesce", "leaf.vhd", "--into", "base.vhd"],
    &["coalesce", "leaf.vhd", "--up"],
    &["coalesce", "mid.vhd", "--keep"],
    &["gc", "."],
    &["create", "lone.vhd", "--size", "1M", "--force"],
    &[
        "stream",
        "--source",
        "leaf.vhd",
        "--source-format",
        "vhd",
        "--destination-format",
        "vhd",
        "--destination",
        "lone.vhd",
    ],
    &["convert", "leaf.vhd", "lone.vhd", "--to", "dynamic", "--force"],
];

/// Which files these are, and what they hold.
fn states(folder: &Path) -> BTreeMap<String, (u64, Vec<u8>)> {
    let state = |name: &str| {
        let path = folder.join(name);
        Some((name.to_owned(), (fs::metadata(&path).ok()?.ino(), testkit::read_beside(&path).expect("it is readable"))))
    };
    FILES.iter().filter_map(|name| state(name)).collect()
}

fn every_command_beside(is_writer: bool) {
    let mut refused = 0;
    for arguments in COMMANDS {
        for held in FILES {
            let scene = forest();
            let before = states(scene.path());
            let leaf = scene::content(&scene.file("leaf.vhd"));
            let program = File::options().read(true).write(is_writer).open(scene.file(held)).expect("it opens");
            let output = command(scene.path(), arguments).write_stdin([9; 512]).output().expect("the command runs");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(matches!(output.status.code(), Some(0 | 3 | 5)), "{arguments:?} beside {held}: {text}");
            refused += usize::from(output.status.code() != Some(0));
            let after = states(scene.path());
            assert!(after.get(held) == before.get(held), "{arguments:?} has changed {held}: {text}");
            drop(program);
            if output.status.code() == Some(5) {
                assert!(
                    after == before,
                    "{arguments:?} was refused because of {held} and has changed something: {text}"
                );
                assert!(scene::content(&scene.file("leaf.vhd")) == leaf);
            }
            for name in FILES.iter().filter(|name| after.contains_key(**name)) {
                scene::content(&scene.file(name));
            }
        }
    }
    assert!(refused >= COMMANDS.len(), "{refused}");
}

#[test]
fn a_file_that_a_reader_has_open_stays_as_it_is() {
    every_command_beside(false);
}

#[test]
fn a_file_that_a_writer_has_open_stays_as_it_is() {
    every_command_beside(true);
}

/// A paused tapdisk has nothing open: its control program knows of it. One that does not answer may know of it.
#[test]
fn what_a_paused_tapdisk_serves_stays_as_it_is() {
    for answers in [true, false] {
        let mut refused = 0;
        for arguments in COMMANDS.iter().filter(|arguments| arguments[0] != "convert") {
            let scene = forest();
            let programs = tempfile::tempdir().unwrap();
            let tap_ctl = programs.path().join("tap-ctl");
            let served = ["leaf.vhd", "lone.vhd"].map(|name| scene.file(name).display().to_string());
            let says = served.map(|path| format!("echo 'pid=7 minor=1 state=0x2a args=vhd:{path}'"));
            let script = format!("#!/bin/sh\n{}\nexit {}\n", says.join("\n"), u8::from(!answers));
            fs::write(&tap_ctl, script).unwrap();
            fs::set_permissions(&tap_ctl, fs::Permissions::from_mode(0o755)).unwrap();
            let path = format!("{}:{}", programs.path().display(), std::env::var("PATH").unwrap());
            let before = states(scene.path());
            let output = command(scene.path(), arguments).env("PATH", path).write_stdin([9; 512]).output().unwrap();
            let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
            assert!(matches!(output.status.code(), Some(3 | 5)), "{arguments:?}: {text}");
            assert!(states(scene.path()) == before, "{arguments:?}: {text}");
            refused += usize::from(output.status.code() == Some(5));
        }
        assert!(refused > 10, "{refused}");
    }
}
