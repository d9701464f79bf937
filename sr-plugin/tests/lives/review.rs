//! What a review has found.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use testkit::inject::{CHANGING, kill_at};
use uuid::Uuid;
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

/// As [`check_told`], or nothing is told at all.
fn check_told_or_refused(plugin: &Plugin, sr: &Sr, from: &str, to: &str) {
    let call = arguments(sr, from, &json!({ "key2": to, "offset": 0, "length": -1 }));
    match plugin.try_call("Volume.list_changed_blocks", &call) {
        Err(refused) => assert!(refused[1].contains("no tracked snapshot in common"), "{refused:?}"),
        Ok(_) => check_told(plugin, sr, from, to),
    }
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
    check_told_or_refused(&plugin, &sr, &volume, &other);
}

#[test]
fn composing_hides_no_changes() {
    let (plugin, sr, volume, first) = scene();
    let other = plugin.create(&sr, "other", 4 * MIB);
    write(&sr, &other, 9 * BLOCK, 10, 3);
    plugin.volume(&sr, "compose", &volume, &json!({ "key2": other }));
    check_told_or_refused(&plugin, &sr, &first, &volume);
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
    let intent = json!({ "change": "revert", "key": volume, "snapshot": first, "image": id, "new_image": Uuid::nil() });
    fs::write(sr.folder.join(".sr.intent"), json!([intent]).to_string()).unwrap();
    collect(&sr);
    check_told_or_refused(&plugin, &sr, &first, &volume);
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
                let other = json!({ "sr": sr.id, "name": "n", "description": "", "size": MIB, "sharable": false });
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

/// Numbers that look random (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn zeros(sr: &Sr, key: &str, start: u64, count: u64) {
    use vhd_core::{Sector, SectorCount, SectorRange};
    let volume = Volume::open(&image(sr, key), &ChainOptions::default()).unwrap();
    volume.write(SectorRange::new(Sector(start), SectorCount(count)), &vec![0; (count * 512) as usize]).unwrap();
    volume.close().unwrap();
}

#[test]
fn changes_are_told_whatever_is_done() {
    let seeds: u64 = std::env::var("SEEDS").ok().and_then(|it| it.parse().ok()).unwrap_or(3);
    for seed in 1..=seeds {
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 ^ seed.wrapping_mul(0x1234_5677));
        let plugin = Plugin::install();
        let sr = plugin.sr("sr");
        let volume = plugin.create(&sr, "volume", 3 * MIB);
        write(&sr, &volume, 0, 2000, 1);
        plugin.volume(&sr, "enable_cbt", &volume, &json!({}));
        // Each with what it held: data that is destroyed is still known here.
        let mut known: Vec<(String, Vec<u8>)> = Vec::new();
        let mut story = Vec::new();
        let mut size = 3 * MIB;
        for tag in 2..30 {
            let pick = |numbers: &mut Numbers| numbers.below(1000) as usize;
            let at = pick(&mut numbers);
            let with_data: Vec<String> = known
                .iter()
                .map(|it| it.0.clone())
                .filter(|key| {
                    image(&sr, key).exists() && plugin.volume(&sr, "stat", key, &json!({})).get("volume_type").is_none()
                })
                .collect();
            match numbers.below(13) {
                0..=2 => {
                    let start = numbers.below(size / 512 - 300);
                    story.push(format!("write {start}"));
                    write(&sr, &volume, start, 1 + numbers.below(300), tag);
                }
                3 => {
                    let start = numbers.below(size / 512 - 300);
                    story.push(format!("zeros {start}"));
                    zeros(&sr, &volume, start, 1 + numbers.below(300));
                }
                4..=6 => {
                    let key = plugin.new_volume(&sr, "snapshot", &volume);
                    story.push(format!("snapshot {key}"));
                    known.push((key.clone(), content(&sr.folder, &key)));
                }
                7 if !with_data.is_empty() => {
                    let of = &with_data[at % with_data.len()];
                    let key = plugin.new_volume(&sr, "snapshot", of);
                    story.push(format!("snapshot {key} of {of}"));
                    known.push((key.clone(), content(&sr.folder, &key)));
                }
                8 if !with_data.is_empty() => {
                    let to = &with_data[at % with_data.len()];
                    story.push(format!("revert {to}"));
                    plugin.volume(&sr, "revert", &volume, &json!({ "snapshot": to }));
                    size = plugin.volume(&sr, "stat", &volume, &json!({}))["virtual_size"].as_u64().unwrap();
                }
                9 if !with_data.is_empty() => {
                    let key = &with_data[at % with_data.len()];
                    story.push(format!("data_destroy {key}"));
                    plugin.volume(&sr, "data_destroy", key, &json!({}));
                }
                10 if !known.is_empty() => {
                    let (key, _) = known.remove(at % known.len());
                    story.push(format!("destroy {key}"));
                    plugin.volume(&sr, "destroy", &key, &json!({}));
                }
                11 => {
                    story.push("collect".into());
                    collect(&sr);
                    plugin.keys(&sr);
                }
                12 if !with_data.is_empty() => {
                    let of = &with_data[at % with_data.len()];
                    story.push(format!("clone of {of}"));
                    plugin.new_volume(&sr, "clone", of);
                    if numbers.below(2) == 0 {
                        size += MIB / 2;
                        story.push(format!("resize {size}"));
                        plugin.volume(&sr, "resize", &volume, &json!({ "new_size": size }));
                    }
                }
                _ => {}
            }
            let mut all = known.clone();
            all.push((volume.clone(), content(&sr.folder, &volume)));
            let refs: Vec<usize> = vec![numbers.below(all.len() as u64) as usize, all.len() - 1];
            for to in refs {
                for from in &all {
                    let mut ours = from.1.clone();
                    ours.resize(all[to].1.len().max(ours.len()), 0);
                    let mut theirs = all[to].1.clone();
                    theirs.resize(ours.len(), 0);
                    let truth: BTreeSet<u64> = differing(&ours, &theirs)
                        .into_iter()
                        .filter(|b| *b < all[to].1.len().div_ceil(65536) as u64)
                        .collect();
                    // Two that have nothing in common any more are refused.
                    let others = json!({ "key2": all[to].0, "offset": 0, "length": -1 });
                    let Ok(told) = plugin.try_call("Volume.list_changed_blocks", &arguments(&sr, &from.0, &others))
                    else {
                        continue;
                    };
                    let told = crate::disks::bits(&told);
                    assert!(
                        told.is_superset(&truth),
                        "seed {seed}: {} to {}: told {told:?}, but {truth:?} differ\n{story:#?}",
                        from.0,
                        all[to].0
                    );
                }
            }
        }
    }
}

#[test]
fn a_composition_that_is_refused_loses_no_snapshot() {
    let (plugin, sr, volume, first) = scene();
    plugin.volume(&sr, "data_destroy", &first, &json!({}));
    plugin.volume(&sr, "stat", &first, &json!({}));
    let small = plugin.create(&sr, "small", MIB);
    plugin.try_call("Volume.compose", &arguments(&sr, &small, &json!({ "key2": first }))).unwrap_err();
    assert!(plugin.keys(&sr).contains(&first));
    check_told(&plugin, &sr, &volume, &volume);
}

#[test]
fn a_composition_that_is_finished_late_is_finished_whole() {
    let mut wrong = Vec::new();
    for call in CHANGING {
        for number in 1..60 {
            let plugin = Plugin::install();
            let sr = plugin.sr("sr");
            let (child, parent) = (plugin.create(&sr, "child", MIB), plugin.create(&sr, "parent", MIB));
            write(&sr, &parent, 0, 10, 1);
            let mut command = Command::new(plugin.executable("Volume.compose"));
            command.args(["test", &sr.id, &child, &parent]);
            if !kill_at(&command, call, number).hit {
                break;
            }
            for used in [&child, &parent] {
                let Ok(held) = Volume::open(&image(&sr, used), &ChainOptions::default()) else { continue };
                let other = json!({ "sr": sr.id, "name": "n", "description": "", "size": MIB, "sharable": false });
                if let Err(error) = plugin.try_call("Volume.create", &other) {
                    wrong.push(format!("{call} {number}: {error:?}"));
                }
                held.close().unwrap();
            }
            plugin.call("SR.set_name", &json!({ "sr": sr.id, "new_name": "sr" }));
            let is_listed = plugin.keys(&sr).contains(&parent);
            if is_listed != sr.folder.join(format!("{parent}.vhd.json")).exists() {
                wrong.push(format!("{call} {number}: listed: {is_listed}, and what is known of it not"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn killed_calls_leave_no_files_behind() {
    let (plugin, sr, volume, _) = scene();
    let mut command = Command::new(plugin.executable("Volume.set_name"));
    command.args(["test", &sr.id, &volume, "other"]);
    assert!(kill_at(&command, "rename", 1).hit);
    plugin.volume(&sr, "set_name", &volume, &json!({ "new_name": "third" }));
    collect(&sr);
    let left: Vec<String> = fs::read_dir(&sr.folder)
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .filter(|it| it.ends_with(".new"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The listing does not know yet that the volume goes, and no longer what was known of it.
#[test]
fn what_is_being_destroyed_is_not_listed_under_another_name() {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let volumes: Vec<String> = (0..100).map(|_| plugin.create(&sr, "volume", MIB)).collect();
    let end = AtomicBool::new(false);
    let strangers = std::thread::scope(|scope| {
        let lists = scope.spawn(|| {
            let mut strangers = Vec::new();
            while !end.load(Ordering::Relaxed) {
                let listed = plugin.call("SR.ls", &json!({ "sr": sr.id }));
                let odd = listed.as_array().unwrap().iter().filter(|it| it["name"] != "volume");
                strangers.extend(odd.map(ToString::to_string));
            }
            strangers
        });
        for key in &volumes {
            plugin.volume(&sr, "destroy", key, &json!({}));
        }
        end.store(true, Ordering::Relaxed);
        lists.join().unwrap()
    });
    assert!(strangers.is_empty(), "{strangers:#?}");
}
