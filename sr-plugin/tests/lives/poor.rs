//! Repositories on file systems that can less.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use testkit::pattern;
use testkit::poorfs::{Errno, PoorFs, Refusal};
use vhd_core::{Sector, SectorCount, SectorRange};

use crate::disks::{changed, collect_by_command, content, differing, verify, write};
use crate::plugin::{Plugin, Sr};

const MIB: u64 = 1 << 20;

/// What a disk must hold after a pattern has been written to it.
fn written(mut before: Vec<u8>, start: u64, count: u64, tag: u16) -> Vec<u8> {
    let data = pattern::fill(SectorRange::new(Sector(start), SectorCount(count)), tag);
    before[start as usize * 512..][..data.len()].copy_from_slice(&data);
    before
}

fn life(plugin: &Plugin, sr: &Sr) {
    let volume = plugin.create(sr, "volume", 4 * MIB);
    plugin.volume(sr, "enable_cbt", &volume, &json!({}));
    write(sr, &volume, 0, 300, 1);
    let first = written(vec![0; 4 << 20], 0, 300, 1);
    let snapshot = plugin.new_volume(sr, "snapshot", &volume);
    write(sr, &volume, 200, 1000, 2);
    let second = written(first.clone(), 200, 1000, 2);
    let later = plugin.new_volume(sr, "snapshot", &volume);
    let clone = plugin.new_volume(sr, "clone", &snapshot);
    write(sr, &clone, 5000, 70, 3);
    assert_eq!(changed(plugin, sr, &snapshot, &later), differing(&first, &second));
    assert!(content(&sr.folder, &volume) == second && content(&sr.folder, &snapshot) == first);

    plugin.volume(sr, "revert", &volume, &json!({ "snapshot": snapshot }));
    plugin.volume(sr, "resize", &clone, &json!({ "new_size": 6 * MIB }));
    plugin.volume(sr, "set_name", &clone, &json!({ "new_name": "mine" }));
    plugin.volume(sr, "destroy", &later, &json!({}));
    collect_by_command(sr);
    let mut of_clone = written(first.clone(), 5000, 70, 3);
    of_clone.resize(6 << 20, 0);
    assert!(content(&sr.folder, &volume) == first && content(&sr.folder, &clone) == of_clone);
    let copy = plugin.volume(sr, "copy", &clone, &json!({ "dest_sr": sr.id }));
    assert!(content(&sr.folder, copy["key"].as_str().unwrap()) == of_clone);
    verify(plugin, sr);
    for key in plugin.keys(sr) {
        plugin.volume(sr, "destroy", &key, &json!({}));
    }
    collect_by_command(sr);
    plugin.call("SR.destroy", &json!({ "sr": sr.id }));
    let left: Vec<_> = fs::read_dir(&sr.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

fn sr_in(plugin: &Plugin, folder: &Path) -> Sr {
    plugin.sr(folder.join("sr").to_str().unwrap())
}

#[test]
fn a_life_without_any_one_ability() {
    let plugin = Plugin::install();
    for refusal in Refusal::BEARABLE {
        testkit::tell!("without {refusal}");
        let poor = PoorFs::new(&[refusal]);
        life(&plugin, &sr_in(&plugin, poor.path()));
    }
    let poor = PoorFs::new(&Refusal::BEARABLE);
    life(&plugin, &sr_in(&plugin, poor.path()));
}

#[test]
fn without_locks_a_repository_is_neither_made_nor_attached() {
    let plugin = Plugin::install();
    for errno in [Errno::NOLCK, Errno::NOSYS] {
        let poor = PoorFs::new(&[Refusal::Flock(errno)]);
        let configuration = json!({ "uri": format!("file://{}", poor.path().display()) });
        let uuid = "c0ffee00-0000-4000-8000-000000000001";
        let create = json!({ "uuid": uuid, "configuration": configuration, "name": "n", "description": "d" });
        for (method, arguments) in [("SR.create", create), ("SR.attach", json!({ "configuration": configuration }))] {
            let error = plugin.try_call(method, &arguments).unwrap_err();
            assert_eq!(error[0], "The SR is not available", "{error:?}");
            assert!(error[1].contains("its file system has no file locks (flock)"), "{error:?}");
            assert_eq!(fs::read_dir(poor.path()).unwrap().count(), 0, "{method}");
        }
        assert_eq!(plugin.call("Plugin.ls", &json!({})), json!([]));
    }
}

/// Where a call of an earlier version failed when its snapshot was to get its name, the volume could not be used any more.
#[test]
fn a_volume_whose_snapshot_was_left_without_a_name_can_be_used_again() {
    let plugin = Plugin::install();
    let poor = PoorFs::new(&[Refusal::RenameFlags]);
    let sr = sr_in(&plugin, poor.path());
    let volume = plugin.create(&sr, "volume", MIB);
    write(&sr, &volume, 0, 100, 1);
    let before = content(&sr.folder, &volume);
    // On the real folder: the only rename that must not replace anything is the one that gives the snapshot its name.
    let mut call = Command::new(plugin.executable("Volume.snapshot"));
    call.args(["test", &sr.id, &volume]);
    let elsewhere = json!({ "uri": format!("file://{}", poor.real().join("sr").display()) });
    plugin.call("SR.detach", &json!({ "sr": sr.id }));
    plugin.call("SR.attach", &json!({ "configuration": elsewhere }));
    assert!(testkit::inject::kill_at(&call, "renameat2", 1).hit);
    plugin.call("SR.detach", &json!({ "sr": sr.id }));
    let journals = fs::read_dir(sr.folder.join(".vhd")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(journals.filter(|name| name.to_str().unwrap().ends_with(".journal")).count(), 1);
    assert!(sr.folder.join(".sr.intent").exists());

    let configuration: Value = json!({ "uri": format!("file://{}", sr.folder.display()) });
    let sr = plugin.attach(&sr.folder, &configuration);
    write(&sr, &volume, 50, 100, 2);
    plugin.new_volume(&sr, "snapshot", &volume);
    plugin.volume(&sr, "resize", &volume, &json!({ "new_size": 2 * MIB }));
    let with_the_first = plugin.keys(&sr);
    assert_eq!(with_the_first.len(), 3, "the snapshot that was left is there");
    assert_eq!(with_the_first.iter().filter(|key| content(&sr.folder, key) == before).count(), 1);
    verify(&plugin, &sr);
}

#[test]
fn the_plugin_is_installed_and_replaced_where_renames_take_no_flags() {
    let poor = PoorFs::new(&[Refusal::RenameFlags]);
    let install = || {
        let mut install = Command::new(env!("CARGO_BIN_EXE_sr-plugin"));
        let output = install.arg("install").arg(poor.path()).arg("--no-worker").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let names = fs::read_dir(poor.path()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["volume"], "nothing else is left");
        let folder = poor.path().join("volume/org.xen.xapi.storage.vhd");
        assert!(Command::new(folder.join("Plugin.Query")).arg("test").output().unwrap().status.success());
        fs::read_dir(folder).unwrap().count()
    };
    assert_eq!(install(), install());
}
