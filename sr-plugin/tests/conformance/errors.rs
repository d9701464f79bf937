//! Errors that have a name or number which the toolstack acts on.

use serde_json::json;
use testkit::filesystem::Tmpfs;
use vhd_core::ByteCount;

use crate::contract::METHODS;
use crate::plugin::Plugin;
use crate::scene::{Scene, uri, with};

const NO_KEY: &str = "11111111-2222-4333-8444-555555555555";

#[test]
fn a_repository_that_is_not_attached_is_named() {
    let scene = Scene::new();
    let strange = ["", "none", NO_KEY, "../attached/x", "\0", &"x".repeat(5000)];
    for method in METHODS.iter().filter(|method| method.has("sr") && method.name != "SR.detach") {
        let mut arguments = scene.arguments(method);
        for sr in strange {
            arguments.insert("sr".into(), json!(sr));
            let (code, parameters) = scene.refused(method.name, &json!(arguments));
            assert_eq!(
                (code.as_str(), &parameters[..]),
                ("SR_BACKEND_FAILURE", &["Sr_not_attached".into(), sr.into()][..])
            );
        }
    }
    let volume = scene.volume();
    let (_, parameters) = scene.refused("Volume.copy", &scene.about(&volume, &json!({ "dest_sr": NO_KEY })));
    assert_eq!(parameters, ["Sr_not_attached", NO_KEY]);
}

#[test]
fn detaching_what_is_not_attached_is_done_already() {
    let scene = Scene::new();
    for sr in ["", "none", NO_KEY] {
        scene.done("SR.detach", &json!({ "dbg": "test", "sr": sr }));
    }
    for _ in 0..2 {
        scene.done("SR.detach", &json!({ "dbg": "test", "sr": scene.sr }));
    }
    let (_, parameters) = scene.refused("SR.ls", &json!({ "dbg": "test", "sr": scene.sr }));
    assert_eq!(parameters, ["Sr_not_attached", &scene.sr]);
}

#[test]
fn a_volume_that_there_is_not_is_named() {
    let scene = Scene::new();
    let long = "x".repeat(5000);
    let strange = ["", ".", "..", "none", NO_KEY, "../sr/x", "a/b", "\0", &long, &long[..252]];
    for method in METHODS.iter().filter(|method| method.has("key") && method.name != "Volume.destroy") {
        let mut arguments = scene.arguments(method);
        for key in strange {
            arguments.insert("key".into(), json!(key));
            let (code, parameters) = scene.refused(method.name, &json!(arguments));
            let expected = ["Volume_does_not_exist".to_owned(), key.to_owned()];
            assert_eq!((code.as_str(), &parameters[..]), ("SR_BACKEND_FAILURE", &expected[..]), "{}", method.name);
        }
    }
    let volume = scene.volume();
    for (method, other) in
        [("Volume.revert", "snapshot"), ("Volume.compose", "key2"), ("Volume.list_changed_blocks", "key2")]
    {
        for key in ["", "none", "a/b", &long] {
            let more = json!({ "offset": 0, "length": -1, other: key });
            let (_, parameters) = scene.refused(method, &scene.about(&volume, &more));
            assert_eq!(parameters, ["Volume_does_not_exist", key], "{method}");
        }
    }
    for key in strange {
        scene.call("Volume.destroy", key);
        // Without the other, whatever the volume holds is different.
        scene.done("Volume.compare", &scene.about(&volume, &json!({ "key2": key })));
    }
    assert!(scene.listed().contains(&volume));
}

#[test]
fn a_repository_that_there_is_not_is_named() {
    let plugin = Plugin::install();
    let nowhere = plugin.place().join("nowhere");
    let arguments = json!({ "dbg": "test", "configuration": uri(&nowhere) });
    let (code, parameters) = plugin.refused("SR.attach", &arguments);
    assert_eq!((code.as_str(), parameters[0].as_str()), ("SR_BACKEND_FAILURE", "SR_does_not_exist"));
    assert_eq!(plugin.done("SR.probe", &arguments), json!([]));
    assert!(!nowhere.exists());
}

#[test]
fn a_volume_in_use_is_not_changed() {
    let scene = Scene::new();
    let volume = scene.volume();
    scene.write(&volume, 0, 8, 1);
    let snapshot = scene.snapshot(&volume);
    scene.write(&volume, 0, 8, 2);
    let listed = scene.listed();
    let parent = scene.volume();
    let in_use = scene.open(&volume);
    scene.refused_as(24, "Volume.destroy", &scene.about(&volume, &json!({})));
    scene.refused_as(24, "Volume.resize", &scene.about(&volume, &json!({ "new_size": 64 << 20 })));
    scene.refused_as(24, "Volume.revert", &scene.about(&volume, &json!({ "snapshot": snapshot })));
    scene.refused_as(24, "Volume.compose", &scene.about(&volume, &json!({ "key2": parent })));
    assert_eq!(scene.call("Volume.stat", &volume)["virtual_size"], 4 << 20);
    in_use.close().unwrap();
    assert_eq!(scene.read(&volume, 0), 2);
    scene.call("Volume.destroy", &parent);
    assert_eq!(scene.listed(), listed);
    scene.call("Volume.destroy", &volume);
    assert_eq!(scene.listed(), [snapshot]);
}

#[test]
fn a_chain_has_a_limit() {
    let scene = Scene::configured(&json!({ "depth_limit": "3" }));
    let volume = scene.volume();
    let mut taken = 0;
    let refusal = loop {
        scene.write(&volume, taken, 1, 1);
        let ended = scene.tried("Volume.snapshot", &volume);
        if ended.code != Some(0) {
            break ended.error();
        }
        taken += 1;
        assert!(taken < 10, "there is no limit");
    };
    assert_eq!((refusal.0.as_str(), taken), ("SR_BACKEND_FAILURE_109", 2), "{:?}", refusal.1);
    assert_eq!(scene.listed().len(), 3, "nothing is left of the one that failed");
    scene.refused_as(109, "Volume.clone", &scene.about(&volume, &json!({})));
    assert_eq!(scene.listed().len(), 3);
}

#[test]
fn disks_have_sizes_that_make_sense() {
    let scene = Scene::new();
    let create = json!({ "dbg": "test", "sr": scene.sr, "name": "", "description": "", "sharable": false });
    let too_large = (2040_i64 << 30) + 1;
    for size in [-1, i64::MIN, too_large, i64::MAX] {
        scene.refused_as(79, "Volume.create", &with(&create, &json!({ "size": size })));
    }
    assert!(scene.listed().is_empty());
    for size in [1, 512, 513, 10_000_001] {
        let made = scene.done("Volume.create", &with(&create, &json!({ "size": size })));
        assert!(made["virtual_size"].as_i64() >= Some(size), "{made}");
    }
    let volume = scene.volume();
    for new_size in [0, -1, i64::MIN, 1 << 20, (4 << 20) - 512, too_large, i64::MAX] {
        scene.refused_as(79, "Volume.resize", &scene.about(&volume, &json!({ "new_size": new_size })));
    }
    for new_size in [4 << 20, (4 << 20) + 1, 100 << 20] {
        scene.done("Volume.resize", &scene.about(&volume, &json!({ "new_size": new_size })));
        assert!(scene.call("Volume.stat", &volume)["virtual_size"].as_i64() >= Some(new_size));
    }
}

#[test]
fn a_repository_with_volumes_is_not_destroyed() {
    let scene = Scene::new();
    let (volume, sr) = (scene.volume(), json!({ "dbg": "test", "sr": scene.sr }));
    let snapshot = scene.snapshot(&volume);
    scene.refused_as(39, "SR.destroy", &sr);
    scene.call("Volume.destroy", &volume);
    scene.refused_as(39, "SR.destroy", &sr);
    assert_eq!(scene.listed(), std::slice::from_ref(&snapshot));
    scene.call("Volume.destroy", &snapshot);
    std::fs::write(scene.folder.join("notes.txt"), "not the plugin's").unwrap();
    scene.done("SR.destroy", &sr);
    assert_eq!(crate::scene::names(&scene.folder), ["notes.txt"]);
    assert_eq!(scene.done("Plugin.ls", &json!({ "dbg": "test" })), json!([]));
    let probed = scene.done("SR.probe", &json!({ "dbg": "test", "configuration": uri(&scene.folder) }));
    assert_eq!(probed[0].get("sr"), None, "{probed}");
}

#[test]
fn one_repository_is_not_attached_from_two_places() {
    let scene = Scene::new();
    let other = scene.place().join("other");
    std::fs::create_dir(&other).unwrap();
    let configuration = with(&uri(&other), &json!({ "sr_uuid": scene.sr }));
    scene.refused_as(16, "SR.attach", &json!({ "dbg": "test", "configuration": configuration }));
    scene.listed();
}

#[test]
fn a_full_file_system_is_told_and_harms_nothing() {
    let full = Tmpfs::new(ByteCount(2 << 20));
    let scene = Scene::of(Plugin::install(), full.path().to_path_buf(), &json!({}));
    let volume = scene.volume();
    scene.write(&volume, 0, 8, 1);
    let doomed = scene.volume();
    let filling = full.path().join("filling");
    let _ = std::fs::write(&filling, vec![1; 4 << 20]);
    let before = scene.listed();
    let create = json!({
        "dbg": "test", "sr": scene.sr, "name": "", "description": "", "size": 4 << 20, "sharable": false,
    });
    scene.refused_as(44, "Volume.create", &create);
    scene.refused_as(44, "Volume.snapshot", &scene.about(&volume, &json!({})));
    scene.refused_as(44, "Volume.set", &scene.about(&volume, &json!({ "k": "k", "v": "x".repeat(10_000) })));
    assert_eq!(scene.listed(), before);
    scene.call("Volume.destroy", &doomed);
    assert_eq!(scene.listed(), std::slice::from_ref(&volume), "what makes room does not need any");
    std::fs::remove_file(filling).unwrap();
    assert_eq!(scene.call("Volume.stat", &volume)["keys"], json!({}));
    assert_eq!(scene.read(&volume, 0), 1);
    scene.snapshot(&volume);
    assert_eq!(scene.listed().len(), 2);
}
