//! The folder that the daemon finds.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::thread;

use serde_json::json;

use crate::contract::METHODS;
use crate::plugin::{Plugin, ended};
use crate::scene::{Scene, names};

#[test]
fn the_folder_has_one_executable_and_a_link_for_each_method() {
    let plugin = Plugin::install();
    let folder = plugin.folder();
    let mut expected: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
    expected.extend(["sr-plugin", "settings.json"]);
    expected.sort_unstable();
    assert_eq!(names(&folder), expected);
    for method in METHODS {
        let path = folder.join(method.name);
        assert!(path.is_symlink(), "{}", method.name);
        assert_eq!(path.canonicalize().unwrap(), folder.canonicalize().unwrap().join("sr-plugin"));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o755);
    }
    assert_eq!(names(&plugin.root()), ["volume"], "nothing is left of making it");
    assert_eq!(names(&plugin.root().join("volume")), ["org.xen.xapi.storage.vhd"]);
    assert_eq!(folder.metadata().unwrap().permissions().mode() & 0o777, 0o755, "others may look into it");
}

#[test]
fn the_plugin_says_who_it_is() {
    let plugin = Plugin::install();
    let query = plugin.done("Plugin.Query", &json!({ "dbg": "test" }));
    // xapi knows it by the last part of its folder's name, and asks for at least this version.
    assert_eq!((&query["plugin"], &query["required_api_version"]), (&json!("vhd"), &json!("5.0")));
    let features: Vec<&str> = query["features"].as_array().unwrap().iter().filter_map(|name| name.as_str()).collect();
    let known = [
        "VDI_RESIZE_ONLINE",
        "VDI_CONFIG_CBT",
        "VDI_COMPOSE",
        "VDI_REVERT",
        "VDI_ACTIVATE_READONLY",
        "VDI_ATTACH_OFFLINE",
        "VDI_MIRROR",
        "VDI_MIRROR_IN",
        "VDI_READ_CACHING",
        "SR_METADATA",
        "SR_STATS",
        "LARGE_VDI",
        "THIN_PROVISIONING",
    ];
    for feature in &features {
        assert!(known.contains(feature), "{feature} is not one to declare");
    }
    for needed in ["VDI_CONFIG_CBT", "VDI_COMPOSE", "VDI_REVERT"] {
        assert!(features.contains(&needed), "{needed} has a file, and is not switched on by that");
    }
}

#[test]
fn another_installation_takes_the_place_of_the_first() {
    let scene = Scene::new();
    let volume = scene.volume();
    fs::write(scene.folder().join("Volume.old"), "of an earlier version").unwrap();
    for _ in 0..2 {
        scene.install_again(&["--no-worker".into()]);
        assert!(!scene.folder().join("Volume.old").exists());
        assert_eq!(names(&scene.root()), ["volume"]);
        assert_eq!(scene.done("Plugin.ls", &json!({ "dbg": "test" })), json!([scene.sr]));
        assert_eq!(scene.listed(), std::slice::from_ref(&volume));
    }
    // From what is installed, too: nothing is put at its end twice.
    let binary = scene.folder().join("sr-plugin");
    let before = fs::read(&binary).unwrap();
    let mut command = Command::new(&binary);
    command.arg("install").arg(scene.root()).arg("--state").arg(scene.place().join("state")).arg("--no-worker");
    assert_eq!(crate::plugin::run(&mut command, b"").code, Some(0));
    assert!(before == fs::read(&binary).unwrap(), "the executable is another");
    assert_eq!(scene.listed(), [volume]);
}

#[test]
fn calls_that_run_meanwhile_keep_their_settings() {
    let scene = Scene::new();
    let mut command = scene.command("SR.ls", &["--json"]);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap();
    let exe = format!("/proc/{}/exe", child.id());
    while !fs::read_link(&exe).unwrap().ends_with("sr-plugin") {
        thread::yield_now();
    }
    scene.install_again(&["--no-worker".into()]);
    let arguments = json!({ "dbg": "test", "sr": scene.sr }).to_string();
    child.stdin.take().unwrap().write_all(arguments.as_bytes()).unwrap();
    assert_eq!(ended(child.wait_with_output().unwrap()).result("SR.ls"), json!([]));
}
