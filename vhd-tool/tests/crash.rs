//! Real processes killed at each system call that changes a file or a name, and what is found afterwards.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use coalesce_worker::Repository;
use testkit::{golden, guest_sha256, scratch};
use vhd_core::check::{self, Severity};
use vhd_core::{Chain, ChainOptions, Folder, Image};

/// The system calls that our commands change anything with.
const CHANGING: [&str; 13] = [
    "pwrite64",
    "write",
    "ftruncate",
    "fallocate",
    "fsync",
    "fdatasync",
    "link",
    "linkat",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
];

fn vhd_tool() -> &'static str {
    env!("CARGO_BIN_EXE_vhd-tool")
}

/// Runs `vhd-tool` and kills it as it enters the `number`th call of `call`; tells whether it got that far.
fn killed_at(call: &str, number: usize, arguments: &[&str]) -> bool {
    let inject = format!("inject={call}:signal=SIGKILL:when={number}");
    let status = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject, vhd_tool(), "--quiet"])
        .args(arguments)
        .stdout(Stdio::null())
        .status()
        .unwrap_or_else(|error| panic!("strace: {error}; run `make setup` first"));
    let killed = status.signal() == Some(9) || status.code() == Some(137);
    assert!(killed || status.success(), "{arguments:?} at {call} {number}: {status}");
    killed
}

fn hash(path: &Path) -> String {
    guest_sha256(&Chain::open(path, &ChainOptions::default()).unwrap()).unwrap()
}

fn recover(folder: &Path) {
    let (_, recovered) = Repository::open(folder, ChainOptions::default()).unwrap();
    assert!(recovered.waiting.is_empty(), "{recovered:?}");
}

/// What is left in the state folder beside the lock.
fn state_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder.join(".vhd")) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| !path.ends_with("lock")).collect()
}

fn check_all(folder: &Path, context: &str) {
    let forest = Folder::scan(folder, vhd_core::Files::Images).unwrap();
    assert!(forest.damaged().is_empty(), "{context}: {:?}", forest.damaged());
    for (id, node) in forest.nodes() {
        assert!(
            node.parent.is_none() || forest.parent(id).is_some(),
            "{context}: {} lost its parent",
            node.path.display()
        );
        let report = check::file(&node.path).unwrap();
        assert!(report.worst() < Some(Severity::Warning), "{context}: {:?}", report.findings());
    }
}

#[test]
fn a_snapshot_killed_anywhere_is_there_or_not_and_the_volume_is_whole() {
    let mut states = 0;
    let mut appeared = 0;
    for call in CHANGING {
        for number in 1.. {
            let folder = scratch::folder();
            golden::unpack_into(folder.path(), &["fixed-4m.vhd"]);
            let path = |name: &str| folder.path().join(name);
            let (volume, twin) = (path("fixed-4m.vhd"), path("twin.vhd"));
            let before = hash(&volume);
            let context = format!("killed at {call} {number}");
            let killed = killed_at(call, number, &["snapshot", volume.to_str().unwrap(), twin.to_str().unwrap()]);
            assert_eq!(hash(&volume), before, "{context}");
            if twin.exists() {
                assert_eq!(hash(&twin), before, "{context}");
            }
            recover(folder.path());
            assert_eq!(hash(&volume), before, "{context}");
            check_all(folder.path(), &context);
            assert_eq!(state_files(folder.path()), <[PathBuf; 0]>::default(), "{context}");
            let forest = Folder::scan(folder.path(), vhd_core::Files::Images).unwrap();
            let visible: Vec<_> =
                forest.nodes().filter(|(_, node)| !node.hidden).map(|(_, node)| node.path.clone()).collect();
            if twin.exists() {
                assert_eq!(hash(&twin), before, "{context}");
                assert_eq!(visible, [volume, twin], "{context}");
                appeared += 1;
            } else {
                assert_eq!(visible, [volume], "{context}");
            }
            if !killed {
                break;
            }
            states += 1;
        }
    }
    println!("{states} states, the snapshot was there in {appeared}");
    assert!(states > 30 && appeared > CHANGING.len(), "{states} states, {appeared} with a snapshot");
}

/// Kills `coalesce` everywhere; every leaf reads as before at once, and the same command, given again, ends the work.
fn kill_coalesce(images: &[&str], node: &str, into: &str, leaves: &[&str], layers: usize) {
    let reference = golden::unpack(images);
    let hashes: Vec<_> = leaves.iter().map(|name| hash(&reference.path().join(name))).collect();
    let mut states = 0;
    for call in CHANGING {
        // Of the many writes of data, a sample.
        let step = if call == "pwrite64" { 7 } else { 1 };
        for number in (1..).step_by(step) {
            let folder = scratch::folder();
            golden::unpack_into(folder.path(), images);
            let path = |name: &str| folder.path().join(name);
            for inner in images.iter().filter(|name| !leaves.contains(name)) {
                Image::open_writable(&path(inner)).unwrap().set_hidden(true).unwrap();
            }
            let verify = |context: &str| {
                for (name, before) in leaves.iter().zip(&hashes) {
                    assert_eq!(&hash(&path(name)), before, "{context}: {name}");
                }
            };
            let context = format!("{node} killed at {call} {number}");
            let (node, into) = (path(node), path(into));
            let arguments = ["coalesce", node.to_str().unwrap(), "--into", into.to_str().unwrap(), "--threads", "1"];
            let killed = killed_at(call, number, &arguments);
            verify(&context);
            if into.exists() && node.exists() {
                let again = Command::new(vhd_tool()).arg("--quiet").args(arguments).status().unwrap();
                assert!(again.success(), "{context}");
                verify(&context);
            }
            for name in leaves {
                let chain = Chain::open(&path(name), &ChainOptions::default()).unwrap();
                assert_eq!(chain.layers().len(), layers, "{context}");
            }
            if into.exists() {
                assert_eq!(
                    Folder::scan(folder.path(), vhd_core::Files::Images).unwrap().nodes().count(),
                    leaves.len() + layers - 1,
                    "{context}"
                );
                check_all(folder.path(), &context);
            }
            if !killed {
                break;
            }
            states += 1;
        }
    }
    println!("{states} states");
    assert!(states > 15, "{states} states");
}

#[test]
fn a_coalesce_killed_anywhere_loses_nothing_when_it_relinks() {
    let images = ["base.vhd", "mid.vhd", "leaf.vhd", "sibling.vhd"];
    kill_coalesce(&images, "mid.vhd", "base.vhd", &["leaf.vhd", "sibling.vhd"], 2);
}

#[test]
fn a_coalesce_killed_anywhere_loses_nothing_when_it_takes_a_name() {
    kill_coalesce(&["base.vhd", "mid.vhd", "leaf.vhd"], "leaf.vhd", "base.vhd", &["leaf.vhd"], 1);
}
