//! Finding, making, attaching and detaching repositories in folders.

use std::fs;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::plugin::Plugin;
use crate::scene::{Scene, attach, create, uri, with};

fn configured(configuration: &Value) -> Value {
    json!({ "dbg": "test", "configuration": configuration })
}

#[test]
fn what_create_answers_is_enough_to_attach() {
    let plugin = Plugin::install();
    let folder = plugin.place().join("sr");
    let given = with(&uri(&folder), &json!({ "someone's": "own" }));
    let made = create(&plugin, &given);
    let uuid = made["sr_uuid"].as_str().unwrap();
    assert_eq!(made, with(&given, &json!({ "sr_uuid": uuid })));
    assert_eq!(plugin.done("Plugin.ls", &json!({ "dbg": "test" })), json!([]), "created is not attached");
    let sr = plugin.done("SR.attach", &configured(&made));
    assert_eq!(plugin.done("SR.stat", &json!({ "dbg": "test", "sr": sr }))["uuid"], uuid);
}

#[test]
fn attaching_again_changes_nothing() {
    let scene = Scene::new();
    let volume = scene.volume();
    for _ in 0..2 {
        let sr = scene.done("SR.attach", &configured(&uri(&scene.folder)));
        assert_eq!(sr, scene.sr);
        let sr = scene.done("SR.attach", &configured(&with(&uri(&scene.folder), &json!({ "sr_uuid": scene.sr }))));
        assert_eq!(sr, scene.sr);
        assert_eq!(scene.done("Plugin.ls", &json!({ "dbg": "test" })), json!([scene.sr]));
        assert_eq!(scene.listed(), std::slice::from_ref(&volume));
    }
}

#[test]
fn nothing_is_lost_by_detaching() {
    let scene = Scene::new();
    let volume = scene.volume();
    let before = scene.call("Volume.stat", &volume);
    let sr = json!({ "dbg": "test", "sr": scene.sr });
    let stat = scene.done("SR.stat", &sr);
    scene.done("SR.detach", &sr);
    assert_eq!(scene.done("Plugin.ls", &json!({ "dbg": "test" })), json!([]));
    scene.done("SR.attach", &configured(&uri(&scene.folder)));
    assert_eq!(scene.call("Volume.stat", &volume), before);
    assert_eq!(scene.done("SR.stat", &sr)["name"], stat["name"]);
}

#[test]
fn all_that_are_attached_are_listed() {
    let scene = Scene::new();
    let mut expected = vec![scene.sr.clone(), scene.another_sr(), scene.another_sr()];
    expected.sort_unstable();
    let mut listed: Vec<String> = serde_json::from_value(scene.done("Plugin.ls", &json!({ "dbg": "test" }))).unwrap();
    listed.sort_unstable();
    assert_eq!(listed, expected);
    let diagnostics = scene.done("Plugin.diagnostics", &json!({ "dbg": "test" }));
    let diagnostics = diagnostics.as_str().unwrap();
    assert!(expected.iter().all(|sr| diagnostics.contains(sr)), "{diagnostics}");
    assert!(!diagnostics.contains("a repository"), "no names: {diagnostics}");
}

#[test]
fn probing_leads_to_what_can_be_attached() {
    let plugin = Plugin::install();
    // Whatever this host has: every result is one that the daemon accepts.
    let everywhere = plugin.done("SR.probe", &configured(&json!({})));
    for found in everywhere.as_array().unwrap() {
        assert_eq!((&found["complete"], found.get("sr")), (&json!(false), None), "{found}");
    }
    let folder = plugin.place().join("sr");
    fs::create_dir(&folder).unwrap();
    let empty = plugin.done("SR.probe", &configured(&uri(&folder)));
    assert_eq!((empty[0].get("sr"), &empty[0]["configuration"]), (None, &uri(&folder)));
    let with_uuid = with(&uri(&folder), &json!({ "sr_uuid": Uuid::new_v4() }));
    plugin.done("SR.probe", &configured(&with_uuid));
    assert!(crate::scene::names(&folder).is_empty(), "probing leaves nothing");

    let made = create(&plugin, &uri(&folder));
    for asked in [&uri(&folder), &with_uuid, &made] {
        let found = plugin.done("SR.probe", &configured(asked));
        assert_eq!(found.as_array().map(Vec::len), Some(1));
        assert_eq!((&found[0]["configuration"], &found[0]["complete"]), (&made, &json!(true)));
        assert_eq!(found[0]["sr"]["sr"], made["sr_uuid"]);
        assert_eq!(found[0]["sr"]["name"], "a repository");
    }
    assert_eq!(plugin.done("Plugin.ls", &json!({ "dbg": "test" })), json!([]), "probing attaches nothing");
    assert_eq!(plugin.done("SR.attach", &configured(&made)), made["sr_uuid"]);
}

#[test]
fn configurations_that_make_no_sense_are_refused() {
    let plugin = Plugin::install();
    let file = plugin.place().join("file");
    fs::write(&file, "x").unwrap();
    for configuration in [
        json!({ "uri": "" }),
        json!({ "uri": "/srv" }),
        json!({ "uri": "nfs://host/srv" }),
        json!({ "device": "sdb" }),
        json!({ "uri": "file:///srv", "device": "/dev/sdb" }),
    ] {
        for method in ["SR.probe", "SR.attach"] {
            plugin.refused_as(143, method, &configured(&configuration));
        }
        let more = json!({ "uuid": Uuid::new_v4(), "name": "", "description": "" });
        plugin.refused_as(143, "SR.create", &with(&configured(&configuration), &more));
    }
    let more = json!({ "uuid": Uuid::new_v4(), "name": "", "description": "" });
    for place in [uri(&file), uri(&plugin.place().join("no/such/folder")), json!({ "uri": "file:///%00" })] {
        plugin.refused("SR.attach", &configured(&place));
        plugin.refused("SR.create", &with(&configured(&place), &more));
    }
    plugin.refused_as(143, "SR.attach", &configured(&json!({ "uri": "file:///tmp", "sr_uuid": "none" })));
    let no_uuid = json!({ "uuid": "none", "name": "", "description": "" });
    let place = uri(&plugin.place().join("new"));
    plugin.refused_as(143, "SR.create", &with(&configured(&place), &no_uuid));
    assert!(!plugin.place().join("new").exists());
}

#[test]
fn creating_does_not_touch_what_is_there() {
    let scene = Scene::new();
    let volume = scene.volume();
    let again = |uuid: &Value| {
        let more = json!({ "uuid": uuid, "name": "n", "description": "d" });
        scene.json("SR.create", &with(&configured(&uri(&scene.folder)), &more))
    };
    let (code, _) = again(&json!(Uuid::new_v4())).error();
    assert_eq!(code, "SR_BACKEND_FAILURE_42", "it has another uuid");
    again(&json!(scene.sr)).result("SR.create");
    assert_eq!(scene.listed(), [volume]);
}

#[test]
fn a_repository_is_attached_only_as_who_it_is() {
    let plugin = Plugin::install();
    let made = create(&plugin, &uri(&plugin.place().join("sr")));
    let other = with(&made, &json!({ "sr_uuid": Uuid::new_v4() }));
    plugin.refused("SR.attach", &configured(&other));
    assert_eq!(plugin.done("Plugin.ls", &json!({ "dbg": "test" })), json!([]));
}

#[test]
fn folders_have_any_name() {
    let plugin = Plugin::install();
    let folder = plugin.place().join("ü %20 #?");
    let escaped = format!("file://{}/%C3%BC%20%2520%20%23%3F", plugin.place().display());
    let sr = attach(&plugin, &json!({ "uri": escaped }));
    assert!(folder.is_dir());
    let create = json!({ "dbg": "d", "sr": sr, "name": "", "description": "", "size": 512, "sharable": false });
    let volume = plugin.done("Volume.create", &create);
    let uri = volume["uri"][0].as_str().unwrap();
    assert!(uri.contains("/%C3%BC%20%2520%20%23%3F/"), "{uri}");
}

#[test]
fn a_depth_limit_that_is_none_is_refused() {
    let plugin = Plugin::install();
    for limit in ["", "abc", "-1", "0", "30.5"] {
        let configuration = with(&uri(&plugin.place().join("sr")), &json!({ "depth_limit": limit }));
        let more = json!({ "uuid": Uuid::new_v4(), "name": "", "description": "" });
        plugin.refused_as(143, "SR.create", &with(&configured(&configuration), &more));
        plugin.refused_as(143, "SR.attach", &configured(&configuration));
    }
}

#[test]
fn a_damaged_record_of_what_is_attached_is_not_taken_for_detached() {
    let scene = Scene::new();
    let record = scene.place().join(format!("state/attached/{}.json", scene.sr));
    fs::write(&record, "{").unwrap();
    let (_, parameters) = scene.refused("SR.detach", &json!({ "dbg": "test", "sr": scene.sr }));
    assert!(parameters[1].contains("damaged"), "{parameters:?}");
    assert!(record.exists());
}
