//! What a review has found.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use testkit::inject::{CHANGING, kill_at};
use vhd_core::{ChainOptions, Volume};

use crate::disks::{changed, collect, content, differing, image, write};
use crate::plugin::{Plugin, Sr, arguments, program};

const MIB: u64 = 1 << 20;
const BLOCK: u64 = 128;

fn scene() -> (Plugin, Sr, String, String) {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let volume = plugin.create(&sr, "volume", 4 * MIB);
    write(&sr, &volume, 0, 10, 1);
    plugin.volume(&sr, "enable_cbt", &volume, &json!({}));
    let snapshot = plugin.new_volume(&sr, "snapshot", &volume);
    (plugin, sr, volume, snapshot)
}

fn check_told(plugin: &Plugin, sr: &Sr, from: &str, to: &str) {
    let told = changed(plugin, sr, from, to);
    let truth = differing(&content(&sr.folder, from), &content(&sr.folder, to));
    assert!(told.is_superset(&truth), "told {told:?}, but {truth:?} differ");
}

#[test]
fn a_clone_hides_no_changes() {
    let (plugin, sr, volume, first) = scene();
    write(&sr, &volume, 5 * BLOCK, 10, 2);
    plugin.new_volume(&sr, "clone", &volume);
    check_told(&plugin, &sr, &first, &volume);
    let second = plugin.new_volume(&sr, "snapshot", &volume);
    check_told(&plugin, &sr, &first, &second);
}

#[test]
fn being_reverted_to_hides_no_changes() {
    let (plugin, sr, volume, first) = scene();
    let other = plugin.create(&sr, "other", 4 * MIB);
    write(&sr, &volume, 5 * BLOCK, 10, 2);
    plugin.volume(&sr, "revert", &other, &json!({ "snapshot": volume }));
    check_told(&plugin, &sr, &first, &volume);
}

#[test]
fn a_volume_is_no_point_in_time_to_count_from() {
    let (plugin, sr, volume, _) = scene();
    let other = plugin.create(&sr, "other", 4 * MIB);
    plugin.volume(&sr, "enable_cbt", &other, &json!({}));
    plugin.volume(&sr, "revert", &other, &json!({ "snapshot": volume }));
    write(&sr, &volume, 5 * BLOCK, 10, 2);
    plugin.new_volume(&sr, "snapshot", &volume);
    check_told(&plugin, &sr, &volume, &other);
}

#[test]
fn composing_hides_no_changes() {
    let (plugin, sr, volume, first) = scene();
    let other = plugin.create(&sr, "other", 4 * MIB);
    write(&sr, &other, 9 * BLOCK, 10, 3);
    plugin.volume(&sr, "compose", &volume, &json!({ "key2": other }));
    check_told(&plugin, &sr, &first, &volume);
}

#[test]
fn a_snapshot_by_another_tool_hides_no_changes() {
    let (plugin, sr, volume, first) = scene();
    write(&sr, &volume, 5 * BLOCK, 10, 2);
    let mut tool = Command::new(program("vhd-tool"));
    tool.args(["--quiet", "snapshot"]).arg(image(&sr, &volume)).arg(sr.folder.join("foreign.vhd"));
    assert!(tool.status().unwrap().success());
    check_told(&plugin, &sr, &first, &volume);
}

/// A revert that was killed before it began, while the worker replaced the volume's file.
#[test]
fn a_merge_is_not_taken_for_a_revert() {
    let (plugin, sr, volume, first) = scene();
    write(&sr, &volume, 5 * BLOCK, 10, 2);
    let _second = plugin.new_volume(&sr, "snapshot", &volume);
    write(&sr, &volume, 9 * BLOCK, 10, 3);
    let third = plugin.new_volume(&sr, "snapshot", &volume);
    write(&sr, &volume, 12 * BLOCK, 10, 3);
    plugin.volume(&sr, "destroy", &third, &json!({}));
    let id = vhd_core::Image::<vhd_core::ReadOnly>::open(&image(&sr, &volume), vhd_core::Lock::None).unwrap();
    let id = id.footer().unique_id().to_string();
    let intent = json!({ "change": "revert", "key": volume, "snapshot": first, "image": id });
    fs::write(sr.folder.join(".sr.intent"), intent.to_string()).unwrap();
    collect(&sr);
    check_told(&plugin, &sr, &first, &volume);
}

#[test]
fn a_damaged_volume_hinders_no_other() {
    let (plugin, sr, _, _) = scene();
    let damaged = plugin.create(&sr, "damaged", MIB);
    fs::write(image(&sr, &damaged), vec![7; 65536]).unwrap();
    let _ = plugin.try_call("Volume.destroy", &arguments(&sr, &damaged, &json!({})));
    plugin.create(&sr, "another", MIB);
}

#[test]
fn damaged_metadata_hinder_no_listing() {
    let (plugin, sr, volume, first) = scene();
    plugin.new_volume(&sr, "snapshot", &volume);
    fs::write(sr.folder.join("odd.vhd.json"), "{").unwrap();
    plugin.keys(&sr);
    plugin.volume(&sr, "destroy", &first, &json!({}));
    plugin.keys(&sr);
}

#[test]
fn a_snapshot_whose_data_goes_is_never_missing() {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let volume = plugin.create(&sr, "volume", MIB);
    plugin.volume(&sr, "enable_cbt", &volume, &json!({}));
    for call in CHANGING {
        for number in 1.. {
            let key = plugin.new_volume(&sr, "snapshot", &volume);
            let mut command = Command::new(plugin.executable("Volume.data_destroy"));
            command.args(["test", &sr.id, &key]);
            let hit = kill_at(&command, call, number).hit;
            assert!(plugin.keys(&sr).contains(&key), "{call} {number}");
            plugin.volume(&sr, "destroy", &key, &json!({}));
            if !hit {
                break;
            }
        }
    }
}

#[test]
fn listings_in_a_loop_miss_nothing() {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let volume = plugin.create(&sr, "volume", MIB);
    plugin.volume(&sr, "enable_cbt", &volume, &json!({}));
    let snapshots: Vec<String> = (0..40).map(|_| plugin.new_volume(&sr, "snapshot", &volume)).collect();
    let all: BTreeSet<String> = plugin.keys(&sr).into_iter().collect();
    let end = AtomicBool::new(false);
    let missed = std::thread::scope(|scope| {
        let lists = scope.spawn(|| {
            let mut missed = Vec::new();
            while !end.load(Ordering::Relaxed) {
                let now: BTreeSet<String> = plugin.keys(&sr).into_iter().collect();
                missed.extend(all.symmetric_difference(&now).cloned());
            }
            missed
        });
        for key in &snapshots {
            plugin.volume(&sr, "data_destroy", key, &json!({}));
        }
        end.store(true, Ordering::Relaxed);
        lists.join().unwrap()
    });
    assert!(missed.is_empty(), "missing for a moment: {missed:?}");
}

/// A volume that is started after a call on it was killed keeps nobody from the repository, and nothing half done shows.
#[test]
fn a_volume_in_use_after_a_kill_hinders_no_other() {
    let mut wrong = Vec::new();
    for method in ["Volume.snapshot", "Volume.destroy", "Volume.revert"] {
        for call in CHANGING {
            for number in 1..60 {
                let (plugin, sr, volume, first) = scene();
                write(&sr, &volume, 5 * BLOCK, 10, 2);
                let before: BTreeSet<String> = plugin.keys(&sr).into_iter().collect();
                let mut command = Command::new(plugin.executable(method));
                command.args(["test", &sr.id]);
                if method == "Volume.revert" {
                    command.arg(&first);
                }
                command.arg(&volume);
                if !kill_at(&command, call, number).hit {
                    break;
                }
                let Ok(held) = Volume::open(&image(&sr, &volume), &ChainOptions::default()) else { continue };
                let listed = plugin.call("SR.ls", &json!({ "sr": sr.id }));
                for it in listed.as_array().unwrap() {
                    if !before.contains(it["key"].as_str().unwrap()) && it["name"] != "volume" {
                        wrong.push(format!("{method} {call} {number}: a base is listed"));
                    }
                }
                let other =
                    json!({ "sr": sr.id, "name": "n", "description": "", "size": MIB, "sharable": false });
                if let Err(error) = plugin.try_call("Volume.create", &other) {
                    wrong.push(format!("{method} {call} {number}: {error:?}"));
                }
                held.close().unwrap();
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_damaged_child_keeps_its_parents() {
    let (plugin, sr, volume, first) = scene();
    for key in [&volume, &first] {
        fs::remove_file(sr.folder.join(format!("{key}.vhd.json"))).unwrap();
    }
    plugin.volume(&sr, "destroy", &first, &json!({}));
    // Such as an image whose two footers are torn, that could be mended.
    let mut bytes = fs::read(image(&sr, &volume)).unwrap();
    let end = bytes.len();
    bytes[0] ^= 1;
    bytes[end - 512] ^= 1;
    fs::write(image(&sr, &volume), &bytes).unwrap();
    let before = fs::read_dir(&sr.folder).unwrap().count();
    let destroyed: Result<Value, _> = plugin.try_call("SR.destroy", &json!({ "sr": sr.id }));
    assert!(destroyed.is_err(), "{before} files before, now {}", fs::read_dir(&sr.folder).unwrap().count());
}
