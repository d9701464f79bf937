//! Volumes that another tool has made, whose keys are no UUIDs: the toolstack then has a UUID of its own for each.

use std::fs;
use std::path::PathBuf;

use serde_json::json;
use testkit::golden;
use uuid::Uuid;

use crate::disks::{content, write};
use crate::plugin::{Plugin, Sr, arguments};

/// A folder as the storage manager leaves it: volumes and hidden nodes, and nothing else.
pub(crate) fn folder_of_another_tool(plugin: &Plugin) -> PathBuf {
    let folder = plugin.path("foreign");
    fs::create_dir(&folder).unwrap();
    let unpacked = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    for entry in fs::read_dir(unpacked.path()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    folder
}

fn scene() -> (Plugin, Sr) {
    let plugin = Plugin::install();
    let folder = folder_of_another_tool(&plugin);
    let configuration = json!({ "uri": format!("file://{}", folder.display()) });
    let sr = plugin.attach(&folder, &configuration);
    (plugin, sr)
}

#[test]
fn a_snapshot_tells_what_it_is_of() {
    let (plugin, sr) = scene();
    let before = content(&sr.folder, "leaf");
    let snapshot = plugin.new_volume(&sr, "snapshot", "leaf");
    for (k, v) in [("is_a_snapshot", "true"), ("snapshot_of", "what the toolstack calls it")] {
        plugin.volume(&sr, "set", &snapshot, &json!({ "k": k, "v": v }));
    }
    let of_snapshot = plugin.new_volume(&sr, "snapshot", &snapshot);
    let toolstacks = Uuid::new_v4().to_string();
    for key in [toolstacks.as_str(), "leaf"] {
        write(&sr, "leaf", 3, 10, 9);
        assert_ne!(content(&sr.folder, "leaf"), before);
        plugin.volume(&sr, "revert", key, &json!({ "snapshot": snapshot }));
        assert_eq!(content(&sr.folder, "leaf"), before);
    }
    // What is of no volume, or of another that is there, stays an error.
    let revert = |key: &str, snapshot: &str| {
        plugin.try_call("Volume.revert", &arguments(&sr, key, &json!({ "snapshot": snapshot })))
    };
    assert_eq!(revert("another", &snapshot).unwrap_err(), ["Volume_does_not_exist", "another"]);
    revert(&toolstacks, &of_snapshot).unwrap_err();
    let own = plugin.create(&sr, "own", 4 << 20);
    let of_own = plugin.new_volume(&sr, "snapshot", &own);
    assert_eq!(revert(&toolstacks, &of_own).unwrap_err(), ["Volume_does_not_exist", &toolstacks]);
    assert_eq!(content(&sr.folder, "leaf"), before);
    plugin.volume(&sr, "destroy", "leaf", &json!({}));
    assert_eq!(revert(&toolstacks, &snapshot).unwrap_err(), ["Volume_does_not_exist", &toolstacks]);
}

/// Taken by an earlier version, the snapshot knows only what the toolstack has put there.
#[test]
fn what_the_toolstack_has_put_there_tells_it_too() {
    let (plugin, sr) = scene();
    let before = content(&sr.folder, "leaf");
    let snapshot = plugin.new_volume(&sr, "snapshot", "leaf");
    plugin.volume(&sr, "set", &snapshot, &json!({ "k": "snapshot_of", "v": "leaf" }));
    let path = sr.folder.join(format!("{snapshot}.vhd.json"));
    let mut metadata: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    metadata.as_object_mut().unwrap().remove("snapshot_of");
    fs::write(&path, metadata.to_string()).unwrap();
    write(&sr, "leaf", 3, 10, 9);
    plugin.volume(&sr, "revert", &Uuid::new_v4().to_string(), &json!({ "snapshot": snapshot }));
    assert_eq!(content(&sr.folder, "leaf"), before);
}
