//! Repositories from their making to their end.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::disks::{check, collect, collect_by_command, content, contents, image, write, write_by_command};
use crate::foreign::folder_of_another_tool;
use crate::plugin::{Plugin, Sr, arguments};

const MIB: u64 = 1 << 20;

/// A volume with snapshots, clones and another volume; what each holds is known.
fn filled(plugin: &Plugin, sr: &Sr) -> BTreeMap<&'static str, String> {
    let volume = plugin.create(sr, "volume", 8 * MIB);
    write_by_command(sr, &volume, 0, 300, 1);
    let first = plugin.new_volume(sr, "snapshot", &volume);
    write_by_command(sr, &volume, 100, 300, 2);
    let second = plugin.new_volume(sr, "snapshot", &volume);
    write_by_command(sr, &volume, 9000, 70, 3);
    let of_first = plugin.new_volume(sr, "clone", &first);
    write_by_command(sr, &of_first, 50, 5000, 4);
    let of_volume = plugin.new_volume(sr, "clone", &volume);
    let other = plugin.create(sr, "other", 3 * MIB + 512);
    write_by_command(sr, &other, 6000, 100, 5);
    let names = ["volume", "first", "second", "of_first", "of_volume", "other"];
    names.into_iter().zip([volume, first, second, of_first, of_volume, other]).collect()
}

#[test]
fn a_life() {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let keys = filled(&plugin, &sr);
    let mut expected = contents(&plugin, &sr);
    assert_eq!(expected.len(), 6);
    collect_by_command(&sr);
    assert_eq!(contents(&plugin, &sr), expected, "a collection changes nothing");

    // Destroyed: the others stay as they are, and merging makes the chains short again.
    plugin.volume(&sr, "destroy", &keys["second"], &json!({}));
    plugin.volume(&sr, "destroy", &keys["of_volume"], &json!({}));
    expected.remove(&keys["second"]);
    expected.remove(&keys["of_volume"]);
    collect_by_command(&sr);
    assert_eq!(contents(&plugin, &sr), expected);

    // Reverted: the content of the snapshot under the volume's key.
    plugin.volume(&sr, "set_name", &keys["volume"], &json!({ "new_name": "mine" }));
    plugin.volume(&sr, "revert", &keys["volume"], &json!({ "snapshot": keys["first"] }));
    expected.insert(keys["volume"].clone(), expected[&keys["first"]].clone());
    assert_eq!(contents(&plugin, &sr), expected);
    assert_eq!(plugin.volume(&sr, "stat", &keys["volume"], &json!({}))["name"], "mine");

    // Larger: what is new is zeros.
    plugin.volume(&sr, "resize", &keys["other"], &json!({ "new_size": 9 * MIB }));
    expected.get_mut(&keys["other"]).unwrap().resize(9 * MIB as usize, 0);
    assert_eq!(plugin.volume(&sr, "stat", &keys["other"], &json!({}))["virtual_size"], 9 * MIB);

    // Copied, here and into another repository.
    let elsewhere = plugin.sr("elsewhere");
    let copy = plugin.volume(&sr, "copy", &keys["of_first"], &json!({ "dest_sr": elsewhere.id }));
    let copy = copy["key"].as_str().unwrap();
    assert_eq!(content(&elsewhere.folder, copy), expected[&keys["of_first"]]);
    collect_by_command(&sr);
    assert_eq!(contents(&plugin, &sr), expected);
    check(&sr);

    // Its folder, copied elsewhere, is the same repository.
    let listed = |sr: &Sr| plugin.call("SR.ls", &json!({ "sr": sr.id }));
    let before = listed(&sr);
    plugin.call("SR.detach", &json!({ "sr": sr.id }));
    let moved = plugin.path("moved");
    let status = Command::new("cp").arg("-a").arg(&sr.folder).arg(&moved).status().unwrap();
    assert!(status.success());
    fs::remove_dir_all(&sr.folder).unwrap();
    let moved = plugin.attach(&moved, &json!({ "uri": format!("file://{}", moved.display()) }));
    assert_eq!(moved.id, sr.id, "who it is stands in the folder");
    let uris = |listed: &Value| -> Vec<Value> {
        let without_uri = |volume: &Value| {
            let mut volume = volume.as_object().unwrap().clone();
            volume.remove("uri");
            // Copying may leave holes out.
            volume.remove("physical_utilisation");
            Value::Object(volume)
        };
        listed.as_array().unwrap().iter().map(without_uri).collect()
    };
    assert_eq!(uris(&listed(&moved)), uris(&before));
    assert_eq!(contents(&plugin, &moved), expected);

    // Its end.
    let not_empty = plugin.try_call("SR.destroy", &json!({ "sr": moved.id })).unwrap_err();
    assert!(not_empty[1].contains("4 volumes are left"), "{not_empty:?}");
    for key in plugin.keys(&moved) {
        plugin.volume(&moved, "destroy", &key, &json!({}));
    }
    plugin.call("SR.destroy", &json!({ "sr": moved.id }));
    assert_eq!(fs::read_dir(&moved.folder).unwrap().count(), 0);
    assert_eq!(plugin.call("Plugin.ls", &json!({})), json!([elsewhere.id]));
}

#[test]
fn a_volume_that_is_composed_shows_its_parent_where_it_holds_nothing() {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let (parent, child) = (plugin.create(&sr, "parent", 4 * MIB), plugin.create(&sr, "child", 4 * MIB));
    write(&sr, &parent, 0, 2000, 1);
    write(&sr, &child, 1000, 2000, 2);
    let mut expected = content(&sr.folder, &parent);
    let held = content(&sr.folder, &child);
    expected[1000 * 512..3000 * 512].copy_from_slice(&held[1000 * 512..3000 * 512]);
    for _ in 0..2 {
        plugin.volume(&sr, "compose", &child, &json!({ "key2": parent }));
        assert_eq!(contents(&plugin, &sr), BTreeMap::from([(child.clone(), expected.clone())]));
    }
    collect(&sr);
    assert_eq!(contents(&plugin, &sr), BTreeMap::from([(child, expected)]));
    assert_eq!(
        fs::read_dir(&sr.folder)
            .unwrap()
            .filter(|entry| { entry.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "vhd") })
            .count(),
        1
    );
    check(&sr);
}

#[test]
fn a_repository_of_another_tool_is_attached_and_listed() {
    let plugin = Plugin::install();
    let folder = folder_of_another_tool(&plugin);
    fs::write(folder.join("notes.txt"), "somebody's").unwrap();
    let configuration = json!({ "uri": format!("file://{}", folder.display()) });
    let sr = plugin.attach(&folder, &configuration);
    let visible: Vec<String> = plugin.keys(&sr);
    assert!(visible.contains(&"leaf".to_owned()), "{visible:?}");
    for hidden in ["base", "mid"] {
        let path = folder.join(format!("{hidden}.vhd"));
        let image = vhd_core::Image::<vhd_core::ReadOnly>::open(&path, vhd_core::Lock::None).unwrap();
        assert_eq!(visible.contains(&hidden.to_owned()), !image.footer().hidden(), "{hidden}");
    }
    let before = content(&folder, "leaf");
    plugin.volume(&sr, "set", "leaf", &json!({ "k": "vdi-type", "v": "user" }));
    let leaf = plugin.volume(&sr, "stat", "leaf", &json!({}));
    assert_eq!(leaf["keys"], json!({ "vdi-type": "user" }));
    assert!(leaf.get("uuid").is_none(), "{leaf}");
    let snapshot = plugin.new_volume(&sr, "snapshot", "leaf");
    assert_eq!(content(&folder, &snapshot), before);
    plugin.call("SR.detach", &json!({ "sr": sr.id }));
    assert_eq!(plugin.attach(&folder, &configuration).id, sr.id, "always the same");
}

#[test]
fn a_damaged_volume_stays_in_the_list() {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let (good, bad) = (plugin.create(&sr, "good", 2 * MIB), plugin.create(&sr, "bad", 2 * MIB));
    fs::write(image(&sr, &bad), [0; 4096]).unwrap();
    let listed = plugin.call("SR.ls", &json!({ "sr": sr.id }));
    let of = |key: &str| listed.as_array().unwrap().iter().find(|volume| volume["key"] == key).cloned().unwrap();
    assert_eq!(of(&good)["virtual_size"], 2 * MIB);
    assert_eq!((&of(&bad)["name"], &of(&bad)["virtual_size"]), (&json!("bad"), &json!(0)));
    assert!(of(&bad)["keys"]["damaged"].as_str().unwrap().contains("footer"), "{}", of(&bad));
    assert!(plugin.try_call("Volume.snapshot", &arguments(&sr, &bad, &json!({}))).is_err());
    plugin.new_volume(&sr, "snapshot", &good);
}

/// As old as the data: both are restored from one copy.
#[test]
fn an_old_copy_of_the_folder_brings_the_old_metadata_back() {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let key = plugin.create(&sr, "old", MIB);
    write(&sr, &key, 0, 10, 1);
    let old = (content(&sr.folder, &key), plugin.volume(&sr, "stat", &key, &json!({})));
    let copy = plugin.path("copy");
    assert!(Command::new("cp").arg("-a").arg(&sr.folder).arg(&copy).status().unwrap().success());
    write(&sr, &key, 0, 10, 2);
    plugin.volume(&sr, "set_name", &key, &json!({ "new_name": "new" }));
    plugin.new_volume(&sr, "snapshot", &key);
    fs::remove_dir_all(&sr.folder).unwrap();
    fs::rename(&copy, &sr.folder).unwrap();
    assert_eq!((content(&sr.folder, &key), plugin.volume(&sr, "stat", &key, &json!({}))), old);
    assert_eq!(plugin.keys(&sr), [key]);
}
