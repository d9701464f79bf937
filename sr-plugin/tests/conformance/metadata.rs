//! What volumes are called and what the toolstack puts with them.

use std::thread;

use serde_json::{Value, json};

use crate::scene::{Scene, key};

fn set(scene: &Scene, volume: &str, k: &str, v: &str) {
    scene.done("Volume.set", &scene.about(volume, &json!({ "k": k, "v": v })));
}

#[test]
fn keys_come_back_as_they_were_put() {
    let scene = Scene::new();
    let volume = scene.volume();
    let long = "x".repeat(100_000);
    let keys = [
        ("vdi-type", "user"),
        ("snapshot_time", "20261122T00:42:12Z"),
        ("is_a_snapshot", "true"),
        ("snapshot_of", "OpaqueRef:1"),
        ("content_id", ""),
        ("_sm_config_host_OpaqueRef:1", "RW"),
        ("tagsläuft", "läuft 🖴"),
        ("", "an empty name"),
        ("name", "not the volume's"),
        ("long", &long),
        ("lines", "a\r\nb\0\u{7f}\\\""),
        ("number", "1e3"),
        ("object", "{\"a\": null}"),
    ];
    for snapshot in [None, Some(scene.snapshot(&volume))] {
        let volume = snapshot.as_ref().unwrap_or(&volume);
        for (k, v) in keys {
            set(&scene, volume, k, "another");
            set(&scene, volume, k, v);
        }
        let expected: Value = keys.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        assert_eq!(scene.call("Volume.stat", volume)["keys"], expected);
        for (k, _) in keys {
            scene.done("Volume.unset", &scene.about(volume, &json!({ "k": k })));
            scene.done("Volume.unset", &scene.about(volume, &json!({ "k": k })));
        }
        assert_eq!(scene.call("Volume.stat", volume)["keys"], json!({}));
    }
}

#[test]
fn twins_have_the_description_but_not_the_keys() {
    let scene = Scene::new();
    let volume = scene.volume();
    set(&scene, &volume, "vdi-type", "user");
    scene.done("Volume.set_name", &scene.about(&volume, &json!({ "new_name": "another name" })));
    scene.done("Volume.set_description", &scene.about(&volume, &json!({ "new_description": "another use" })));
    let snapshot = scene.call("Volume.snapshot", &volume);
    let of_snapshot = scene.call("Volume.clone", &key(&snapshot));
    let of_volume = scene.call("Volume.clone", &volume);
    let copy = scene.done("Volume.copy", &scene.about(&volume, &json!({ "dest_sr": scene.another_sr() })));
    for (twin, writable) in [(&snapshot, false), (&of_snapshot, true), (&of_volume, true), (&copy, true)] {
        assert_eq!((&twin["name"], &twin["description"]), (&json!("another name"), &json!("another use")));
        assert_eq!((&twin["keys"], &twin["read_write"]), (&json!({}), &json!(writable)));
        assert_eq!(twin["virtual_size"], 4 << 20);
        assert_ne!(key(twin), volume);
    }
    assert_eq!(scene.call("Volume.stat", &volume)["keys"], json!({ "vdi-type": "user" }));
    for twin in [&snapshot, &of_snapshot, &of_volume] {
        assert_eq!(scene.call("Volume.stat", &key(twin)), *twin);
    }
}

#[test]
fn snapshots_are_described_like_volumes_but_not_written() {
    let scene = Scene::new();
    let volume = scene.volume();
    let snapshot = scene.snapshot(&volume);
    set(&scene, &snapshot, "is_a_snapshot", "true");
    scene.done("Volume.set_name", &scene.about(&snapshot, &json!({ "new_name": "n" })));
    scene.done("Volume.set_description", &scene.about(&snapshot, &json!({ "new_description": "d" })));
    let stat = scene.call("Volume.stat", &snapshot);
    assert_eq!((&stat["name"], &stat["description"], &stat["read_write"]), (&json!("n"), &json!("d"), &json!(false)));
    scene.refused("Volume.resize", &scene.about(&snapshot, &json!({ "new_size": 64 << 20 })));
    scene.refused("Volume.revert", &scene.about(&snapshot, &json!({ "snapshot": snapshot })));
    scene.refused("Volume.compose", &scene.about(&snapshot, &json!({ "key2": volume })));
    assert_eq!(scene.call("Volume.stat", &snapshot), stat);
}

#[test]
fn what_is_listed_is_what_stat_tells() {
    let scene = Scene::new();
    for _ in 0..2 {
        let volume = scene.volume();
        scene.write(&volume, 0, 8, 1);
        scene.snapshot(&volume);
    }
    let listed = scene.done("SR.ls", &json!({ "dbg": "test", "sr": scene.sr }));
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), 4);
    for volume in listed {
        let mut stat = scene.call("Volume.stat", &key(volume));
        assert_eq!(*volume, stat);
        let uri = stat["uri"].take();
        let path = uri[0].as_str().and_then(|uri| uri.strip_prefix("vhd+file://")).expect("a scheme, and a path");
        assert_eq!(std::path::Path::new(path), scene.image(&key(volume)).canonicalize().unwrap());
    }
}

#[test]
fn destroying_takes_the_clone_along() {
    let scene = Scene::new();
    let (volume, bystander) = (scene.volume(), scene.volume());
    let clone = key(&scene.call("Volume.clone", &volume));
    set(&scene, &volume, "clone-on-boot", &clone);
    scene.call("Volume.destroy", &volume);
    scene.call("Volume.destroy", &volume);
    assert_eq!(scene.listed(), std::slice::from_ref(&bystander));
    // One that names itself, or nothing that could be.
    for clone in [bystander.as_str(), "none", "a/b", ""] {
        let volume = scene.volume();
        set(&scene, &volume, "clone-on-boot", clone);
        scene.call("Volume.destroy", &volume);
        scene.call("Volume.destroy", &bystander);
        assert!(scene.listed().is_empty(), "{clone:?}");
    }
    let volume = scene.volume();
    set(&scene, &volume, "clone-on-boot", &volume);
    scene.call("Volume.destroy", &volume);
    assert!(scene.listed().is_empty());
}

#[test]
fn a_clone_in_use_is_not_orphaned() {
    let scene = Scene::new();
    let volume = scene.volume();
    let clone = key(&scene.call("Volume.clone", &volume));
    set(&scene, &volume, "clone-on-boot", &clone);
    let in_use = scene.open(&clone);
    scene.refused_as(24, "Volume.destroy", &scene.about(&volume, &json!({})));
    in_use.close().unwrap();
    scene.call("Volume.destroy", &volume);
    assert_eq!(scene.listed(), [""; 0]);
}

#[test]
fn concurrent_calls_lose_nothing() {
    let scene = Scene::new();
    let volume = scene.volume();
    thread::scope(|scope| {
        for number in 0..16 {
            let (scene, volume) = (&scene, &volume);
            scope.spawn(move || {
                set(scene, volume, &format!("k{number}"), "v");
                scene.snapshot(volume);
            });
        }
    });
    assert_eq!(scene.call("Volume.stat", &volume)["keys"].as_object().map(serde_json::Map::len), Some(16));
    assert_eq!(scene.listed().len(), 17);
}

#[test]
fn a_repository_is_described() {
    let scene = Scene::new();
    let sr = json!({ "dbg": "test", "sr": scene.sr });
    for text in ["", "näme", &"x".repeat(10_000)] {
        let more = json!({ "new_name": text, "new_description": text });
        scene.done("SR.set_name", &crate::scene::with(&sr, &more));
        scene.done("SR.set_description", &crate::scene::with(&sr, &more));
        let stat = scene.done("SR.stat", &sr);
        assert_eq!((&stat["name"], &stat["description"]), (&json!(text), &json!(text)));
    }
    let stat = scene.done("SR.stat", &sr);
    assert_eq!((&stat["datasources"], &stat["health"][0]), (&json!([]), &json!("Healthy")));
    assert!(stat["total_space"].as_i64() >= stat["free_space"].as_i64(), "{stat}");
    std::fs::rename(&scene.folder, scene.place().join("moved")).unwrap();
    assert_eq!(scene.done("SR.stat", &sr)["health"][0], "Unreachable");
    scene.refused_as(47, "SR.ls", &sr);
}

#[test]
fn contents_follow_the_volume() {
    let scene = Scene::new();
    let volume = scene.volume();
    scene.call("Volume.enable_cbt", &volume);
    scene.write(&volume, 0, 8, 1);
    let snapshot = scene.snapshot(&volume);
    scene.write(&volume, 128, 8, 2);
    let pair = |one: &str, other: &str| scene.about(one, &json!({ "key2": other, "offset": 0, "length": -1 }));
    let differing = scene.done("Volume.compare", &pair(&volume, &snapshot));
    assert_eq!((&differing["blocksize"], &differing["ranges"]), (&json!(512), &json!([[128, 8]])));
    let changed = scene.done("Volume.list_changed_blocks", &pair(&snapshot, &volume));
    assert_eq!(changed, json!({ "granularity": 65536, "bitmap": "QAAAAAAAAAA=" }));
    assert_eq!(scene.call("Volume.similar_content", &volume), json!([snapshot]));
    scene.done("Volume.revert", &scene.about(&volume, &json!({ "snapshot": snapshot })));
    assert_eq!((scene.read(&volume, 0), scene.read(&volume, 128)), (1, 0));
    scene.call("Volume.data_destroy", &snapshot);
    let stat = scene.call("Volume.stat", &snapshot);
    assert_eq!((&stat["volume_type"], &stat["cbt_enabled"]), (&json!(["CBT_Metadata", null]), &json!(true)));
    scene.call("Volume.disable_cbt", &volume);
    assert_eq!(scene.call("Volume.stat", &volume)["cbt_enabled"], false);
    let child = scene.volume();
    scene.done("Volume.compose", &scene.about(&child, &json!({ "key2": volume })));
    assert_eq!((scene.read(&child, 0), scene.tried("Volume.stat", &volume).code), (1, Some(1)));
}
