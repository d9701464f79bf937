//! Places that no repository may be at, and names that lead out of one.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use testkit::filesystem::Tmpfs;
use testkit::loop_device::LoopDevice;
use uuid::Uuid;
use vhd_core::ByteCount;

use crate::contract::METHODS;
use crate::plugin::{Plugin, run};
use crate::scene::{Scene, attach, names, uri, with};

/// What is in a folder, of which nothing may change.
fn seen(folder: &Path) -> Vec<String> {
    let mut names = names(folder);
    names.retain(|name| name.starts_with("sr") || name.starts_with(".sr") || name.starts_with(".vhd"));
    names
}

fn check_refused(plugin: &Plugin, configuration: &Value) {
    let more = json!({ "uuid": Uuid::new_v4(), "name": "", "description": "" });
    let configured = json!({ "dbg": "test", "configuration": configuration });
    for (method, arguments) in [("SR.create", with(&configured, &more)), ("SR.attach", configured.clone())] {
        let (code, parameters) = plugin.refused(method, &arguments);
        assert_eq!(code, "SR_BACKEND_FAILURE_143", "{method} {configuration}: {parameters:?}");
    }
}

#[test]
fn folders_of_the_system_are_no_repositories() {
    let plugin = Plugin::install();
    let link = plugin.place().join("link");
    symlink("/etc", &link).unwrap();
    let through = format!("file://{}/systemd", link.display());
    let link = format!("file://{}", link.display());
    let before: Vec<_> = ["/", "/etc", "/usr", "/dev", "/run"].map(|folder| seen(Path::new(folder))).into();
    for uri in [
        "file:///",
        "file:////",
        "file:///.",
        "file:///etc",
        "file:///etc/",
        "file:////etc",
        "file:///etc/vhd-test",
        "file:///./etc",
        "file://%2fetc",
        "file://%2Fetc",
        "file:///%65tc",
        "file:///srv/../etc",
        "file:///srv%2f..%2fetc",
        "file:///%2e%2e/etc",
        "file:///srv%2Fvhd",
        "file:///srv/%00",
        "file:///proc",
        "file:///proc/self",
        "file:///sys",
        "file:///dev",
        "file:///usr",
        "file:///usr/share",
        "file:///bin",
        "file:///boot",
        "file:///lib",
        "file:///run",
        "file:///var",
        "file://",
        "file:",
        &link,
        &through,
    ] {
        check_refused(&plugin, &json!({ "uri": uri }));
    }
    let after: Vec<_> = ["/", "/etc", "/usr", "/dev", "/run"].map(|folder| seen(Path::new(folder))).into();
    assert_eq!(before, after);
    assert!(!Path::new("/etc/vhd-test").exists());
}

#[test]
fn folders_where_data_is_kept_are_fine() {
    let plugin = Plugin::install();
    for parent in ["/srv", "/mnt", "/media", "/var/tmp", "/var/lib", "/home", "/tmp", "/dev/shm", "/run", "/opt"] {
        let made = fs::create_dir(parent).is_ok();
        let folder = tempfile::tempdir_in(parent).unwrap();
        let sr = attach(&plugin, &uri(&folder.path().join("sr")));
        plugin.done("SR.destroy", &json!({ "dbg": "test", "sr": sr }));
        drop(folder);
        if made {
            let _ = fs::remove_dir(parent);
        }
    }
    // A link to one is followed once, when it is attached.
    let link = plugin.place().join("link");
    fs::create_dir(plugin.place().join("real")).unwrap();
    symlink("real", &link).unwrap();
    let sr = attach(&plugin, &uri(&link));
    fs::remove_file(&link).unwrap();
    symlink("/etc", &link).unwrap();
    assert_eq!(plugin.done("SR.ls", &json!({ "dbg": "test", "sr": sr })), json!([]));
}

#[test]
fn what_is_no_device_is_not_written() {
    let plugin = Plugin::install();
    let file = plugin.place().join("disk.img");
    fs::write(&file, vec![0; 20 << 20]).unwrap();
    let link = plugin.place().join("link");
    symlink(&file, &link).unwrap();
    for device in [file.as_path(), &link, Path::new("/etc"), Path::new("/dev/zero"), Path::new("/dev/../etc/passwd")] {
        check_refused(&plugin, &json!({ "device": device }));
    }
    assert!(fs::read(&file).unwrap().iter().all(|&byte| byte == 0));
}

#[test]
fn a_device_that_is_mounted_elsewhere_is_left_alone() {
    let plugin = Plugin::install();
    let device = LoopDevice::new(&plugin.place().join("disk"), 16 << 20);
    assert_eq!(run(Command::new("mkfs.ext4").args(["-qF"]).arg(&device.path), b"").code, Some(0));
    let folder = plugin.place().join("mounted");
    fs::create_dir(&folder).unwrap();
    assert_eq!(run(Command::new("mount").arg(&device.path).arg(&folder), b"").code, Some(0));
    let link = plugin.place().join("link");
    symlink(&device.path, &link).unwrap();
    for device in [&device.path, &link] {
        let configuration = json!({ "device": device });
        let more = json!({ "uuid": Uuid::new_v4(), "name": "", "description": "" });
        let configured = json!({ "dbg": "test", "configuration": configuration });
        for (method, arguments) in [("SR.create", with(&configured, &more)), ("SR.attach", configured.clone())] {
            let (code, parameters) = plugin.refused(method, &arguments);
            assert_eq!(code, "SR_BACKEND_FAILURE_16", "{parameters:?}");
            assert!(parameters[1].contains("mounted"), "{parameters:?}");
        }
    }
    let found = names(&folder);
    assert_eq!(run(Command::new("umount").arg(&folder), b"").code, Some(0));
    assert_eq!(found, ["lost+found"]);
}

#[test]
fn keys_lead_to_nothing_outside() {
    let scene = Scene::new();
    let (outside, own) = (scene.place().join("outside.vhd"), scene.volume());
    fs::copy(scene.image(&own), &outside).unwrap();
    let before = fs::read(&outside).unwrap();
    let fifo = scene.image("fifo");
    assert_eq!(run(Command::new("mkfifo").arg(&fifo), b"").code, Some(0));
    symlink(&outside, scene.image("link")).unwrap();
    // Nor is a second name of a volume a volume.
    symlink(format!("{own}.vhd"), scene.image("alias")).unwrap();
    symlink("nowhere", scene.image("dangling")).unwrap();
    fs::create_dir(scene.image("folder")).unwrap();
    let keys = ["link", "alias", "dangling", "folder", "fifo", "../outside", "./link", "a/../link", ".", ".."];
    let parameters = ["key", "key2", "snapshot"];
    for method in METHODS.iter().filter(|method| method.has("key")) {
        for parameter in parameters.into_iter().filter(|parameter| method.has(parameter)) {
            let mut arguments = scene.arguments(method);
            for key in keys {
                arguments.insert(parameter.into(), json!(key));
                let ended = scene.json(method.name, &json!(arguments));
                // Nothing to remove, nothing to compare with.
                if method.name == "Volume.destroy" || (method.name, parameter) == ("Volume.compare", "key2") {
                    assert_eq!(ended.code, Some(0), "{} {parameter} {key}", method.name);
                    continue;
                }
                let (code, told) = ended.error();
                let expected = ["Volume_does_not_exist".to_owned(), key.to_owned()];
                let detail = format!("{} {parameter}", method.name);
                assert_eq!((code.as_str(), &told[..]), ("SR_BACKEND_FAILURE", &expected[..]), "{detail}");
            }
        }
    }
    assert_eq!(fs::read(&outside).unwrap(), before);
    for link in ["link", "alias", "dangling"] {
        assert!(fs::symlink_metadata(scene.image(link)).unwrap().is_symlink(), "{link}");
    }
    let listed = scene.listed();
    assert!(listed.contains(&own) && keys.iter().all(|key| !listed.contains(&(*key).to_owned())), "{listed:?}");
    scene.call("Volume.stat", &own);
}

#[test]
fn what_the_plugin_keeps_is_not_read_through_links() {
    let scene = Scene::new();
    let volume = scene.volume();
    let outside = scene.place().join("outside");
    fs::write(&outside, r#"{ "name": "secret", "tracking": {} }"#).unwrap();
    let metadata = scene.folder.join(format!("{volume}.vhd.json"));
    fs::remove_file(&metadata).unwrap();
    symlink(&outside, &metadata).unwrap();
    scene.tried("Volume.stat", &volume).error();
    fs::remove_file(&metadata).unwrap();
    let record = scene.folder.join("sr.json");
    let kept = fs::read(&record).unwrap();
    fs::write(&outside, &kept).unwrap();
    fs::remove_file(&record).unwrap();
    symlink(&outside, &record).unwrap();
    scene.json("SR.ls", &json!({ "dbg": "test", "sr": scene.sr })).error();
}

#[test]
fn a_disk_of_no_size_gets_the_least() {
    let full = Tmpfs::new(ByteCount(8 << 20));
    let scene = Scene::of(Plugin::install(), full.path().join("sr"), &json!({}));
    for size in [0, 1, 512, 1 << 20, 2 << 20] {
        let create = json!({ "name": "", "description": "", "size": size, "sharable": false });
        let made = scene.done("Volume.create", &with(&json!({ "dbg": "test", "sr": scene.sr }), &create));
        assert_eq!(made["virtual_size"], 2 << 20, "{size}");
    }
}
