//! Repositories whose file system goes, comes late, or comes back.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Map, Value, json};
use testkit::filesystem::{FileSystem, MountedImage};
use testkit::inject::while_waiting_in;
use testkit::loop_device::LoopDevice;
use vhd_core::ByteCount;

use crate::contract::METHODS;
use crate::plugin::{Plugin, ended, run};
use crate::scene::{Scene, create, names, uri, with};

fn file_system() -> MountedImage {
    MountedImage::new(FileSystem::Ext4, ByteCount(16 << 20))
}

/// A repository in a folder of a mounted file system.
fn scene(mount: &MountedImage, folder: &str) -> Scene {
    Scene::of(Plugin::install(), mount.path().join(folder), &json!({}))
}

fn about(scene: &Scene) -> Value {
    json!({ "dbg": "test", "sr": scene.sr })
}

/// What every method that needs the repository is called with.
fn calls(scene: &Scene) -> Vec<(&'static str, Map<String, Value>)> {
    let needs_it = METHODS.iter().filter(|method| method.has("sr") && !["SR.detach", "SR.stat"].contains(&method.name));
    let arguments = |method: &crate::contract::Method| match method.name {
        // One that could be destroyed would be another repository.
        "SR.destroy" => Map::from_iter([("dbg".to_owned(), json!("test")), ("sr".to_owned(), json!(scene.sr))]),
        _ => scene.arguments(method),
    };
    needs_it.map(|method| (method.name, arguments(method))).collect()
}

/// Checks that no call takes the repository for another that is empty, and that nothing is left by those who tried.
#[track_caller]
fn check_unreachable(scene: &Scene, calls: &[(&'static str, Map<String, Value>)], beneath: &Path) {
    let before = names(beneath);
    for (method, arguments) in calls {
        let (code, parameters) = scene.refused(method, &json!(arguments));
        assert_eq!(code, "SR_BACKEND_FAILURE_47", "{method}: {parameters:?}");
        assert!(parameters[1].contains("mount"), "{method} tells what to do: {parameters:?}");
    }
    let stat = scene.done("SR.stat", &about(scene));
    assert_eq!(stat["health"][0], "Unreachable", "{stat}");
    assert!(stat["health"][1].as_str().is_some_and(|text| text.contains("mount")), "{stat}");
    assert_eq!(scene.done("Plugin.ls", &json!({ "dbg": "test" })), json!([scene.sr]));
    assert_eq!(names(beneath), before);
}

#[test]
fn a_mount_that_is_gone_is_no_empty_repository() {
    for folder in ["", "sr"] {
        let mut mount = file_system();
        let scene = scene(&mount, folder);
        let calls = calls(&scene);
        let listed = scene.listed();
        mount.away();
        check_unreachable(&scene, &calls, mount.path());
        mount.back();
        assert_eq!(scene.listed(), listed);
        assert_eq!(scene.done("SR.stat", &about(&scene))["health"][0], "Healthy");
        for (method, arguments) in calls.iter().filter(|(method, _)| method.starts_with("Volume.")) {
            // One that an earlier of these calls has removed is no volume, but the repository is there.
            let ended = scene.json(method, &json!(arguments));
            assert!(ended.code == Some(0) || ended.error().0 != "SR_BACKEND_FAILURE_47", "{method}");
        }
    }
}

#[test]
fn what_is_left_beneath_the_mount_point_is_not_taken_for_the_repository() {
    for folder in ["", "sr"] {
        let mut mount = file_system();
        let scene = scene(&mount, folder);
        let calls = calls(&scene);
        let listed = scene.listed();
        let copy = scene.place().join("copy");
        assert!(Command::new("cp").arg("-a").args([mount.path(), &copy]).status().unwrap().success());
        mount.away();
        let into = Command::new("cp").arg("-a").arg(copy.join(".")).arg(mount.path()).status();
        assert!(into.unwrap().success());
        check_unreachable(&scene, &calls, &mount.path().join(folder));
        // Neither is it when the toolstack attaches once more.
        let again =
            json!({ "dbg": "test", "configuration": with(&uri(&scene.folder), &json!({ "sr_uuid": scene.sr })) });
        scene.refused_as(47, "SR.attach", &again);
        mount.back();
        assert_eq!(scene.listed(), listed);
        scene.done("SR.attach", &again);
        mount.away();
        scene.done("SR.detach", &about(&scene));
        mount.back();
    }
}

#[test]
fn a_file_system_may_come_back_by_another_device() {
    let mut mount = file_system();
    let scene = scene(&mount, "sr");
    let volume = scene.volume();
    let device = || std::os::unix::fs::MetadataExt::dev(&fs::metadata(mount.path()).unwrap());
    let before = device();
    mount.away();
    let _taken: Vec<LoopDevice> =
        (0..2).map(|number| LoopDevice::new(&scene.place().join(format!("disk-{number}")), 1 << 20)).collect();
    mount.back();
    let device = || std::os::unix::fs::MetadataExt::dev(&fs::metadata(mount.path()).unwrap());
    // Other tests take and release devices meanwhile; mostly it is another.
    let _ = before == device();
    assert_eq!(scene.listed(), [volume]);
}

#[test]
fn another_disk_at_the_mount_point_is_another_repository() {
    let mut mount = file_system();
    let scene = scene(&mount, "sr");
    let calls = calls(&scene);
    mount.away();
    let other = Plugin::install();
    let mut second = file_system();
    create(&other, &uri(&second.path().join("sr")));
    fs::create_dir(scene.place().join("unused")).unwrap();
    let moved = |from: &Path, to: &Path| {
        assert!(Command::new("mount").arg("--bind").args([from, to]).status().unwrap().success());
    };
    moved(second.path(), mount.path());
    check_unreachable(&scene, &calls, &mount.path().join("sr"));
    assert!(Command::new("umount").arg(mount.path()).status().unwrap().success());
    second.away();
    mount.back();
    scene.listed();
}

#[test]
fn a_folder_whose_mount_comes_late_is_not_attached() {
    let mut mount = file_system();
    let scene = scene(&mount, "");
    let volume = scene.volume();
    scene.done("SR.detach", &about(&scene));
    mount.away();
    for more in [json!({}), json!({ "sr_uuid": scene.sr })] {
        let configuration = json!({ "dbg": "test", "configuration": with(&uri(&scene.folder), &more) });
        let (code, parameters) = scene.refused("SR.attach", &configuration);
        assert_eq!(code, "SR_BACKEND_FAILURE_47");
        assert!(parameters[1].contains("sr.json") && parameters[1].contains("mount"), "{parameters:?}");
        assert!(names(mount.path()).is_empty());
    }
    assert_eq!(scene.done("Plugin.ls", &json!({ "dbg": "test" })), json!([]));
    mount.back();
    let configuration = with(&uri(&scene.folder), &json!({ "sr_uuid": scene.sr }));
    scene.done("SR.attach", &json!({ "dbg": "test", "configuration": configuration }));
    assert_eq!(scene.listed(), [volume]);
}

/// Starts a call that has to wait for the repository's lock.
fn waiting(scene: &Scene, method: &str, arguments: &Value) -> Child {
    let mut command = scene.command(method, &["--json"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    child.stdin.take().expect("it is piped").write_all(arguments.to_string().as_bytes()).expect("it reads");
    let id = format!(" {} ", child.id());
    let is_waiting = || {
        fs::read_to_string("/proc/locks")
            .expect("it is readable")
            .lines()
            .any(|line| line.contains("->") && line.contains(&id))
    };
    while !is_waiting() {
        assert_eq!(child.try_wait().expect("it can be asked"), None, "{method} does not wait");
        std::thread::yield_now();
    }
    child
}

/// What is told as done has left nothing to be done; what has gone before it was is told as a failure.
#[test]
fn a_mount_that_goes_in_mid_call_is_noticed() {
    let mut mount = file_system();
    let scene = scene(&mount, "sr");
    let volume = scene.volume();
    let (mut failed, mut size) = (0, 8_u64 << 20);
    for call in ["fsync", "fdatasync"] {
        for number in 1.. {
            size += 4 << 20;
            let resize = scene.command("Volume.resize", &["test", &scene.sr, &volume, &size.to_string()]);
            let injected = while_waiting_in(&resize, call, number, || mount.away_lazily());
            mount.back();
            let intent = scene.folder.join(".sr.intent").exists();
            assert!(!injected.output.status.success() || !intent, "at {call} {number}");
            failed += usize::from(!injected.output.status.success());
            if !injected.hit {
                break;
            }
        }
    }
    assert!(failed > 2, "{failed}");
    let listed = scene.done("SR.ls", &about(&scene));
    assert_eq!(listed[0]["virtual_size"], json!(size));
}

#[test]
fn a_mount_that_goes_while_a_call_waits_is_noticed() {
    let mut mount = file_system();
    let scene = scene(&mount, "sr");
    let volume = scene.volume();
    fs::create_dir_all(scene.place().join("unused")).unwrap();
    let lock = File::open(scene.folder.join(".sr.lock")).unwrap();
    lock.lock().unwrap();
    let create = json!({ "name": "", "description": "", "size": 4 << 20, "sharable": false });
    let calls = [
        waiting(&scene, "Volume.create", &with(&about(&scene), &create)),
        waiting(&scene, "Volume.destroy", &scene.about(&volume, &json!({}))),
        waiting(&scene, "Volume.snapshot", &scene.about(&volume, &json!({}))),
    ];
    let busy = Command::new("umount").arg(mount.path()).output().unwrap();
    assert!(!busy.status.success(), "calls keep it where it is");
    mount.away_lazily();
    // What was beneath the mount point when it was made is a folder of the same name.
    fs::create_dir(mount.path().join("sr")).unwrap();
    drop(lock);
    for call in calls {
        let (code, parameters) = ended(call.wait_with_output().unwrap()).error();
        assert_eq!(code, "SR_BACKEND_FAILURE_47", "{parameters:?}");
    }
    assert!(names(&mount.path().join("sr")).is_empty());
    mount.back();
    assert_eq!(scene.listed(), [volume]);
}

#[test]
fn a_device_that_is_unmounted_is_no_empty_repository() {
    let plugin = Plugin::install();
    let device = LoopDevice::new(&plugin.place().join("disk"), 300 << 20);
    let made = create(&plugin, &json!({ "device": device.path }));
    let attach = json!({ "dbg": "test", "configuration": made });
    let sr = plugin.done("SR.attach", &attach);
    let call = |method: &str, more: &Value| plugin.json(method, &with(&json!({ "dbg": "test", "sr": sr }), more));
    let new = json!({ "name": "", "description": "", "size": 4 << 20, "sharable": false });
    let volume = call("Volume.create", &new).result("Volume.create");
    let mounted = plugin.place().join("state/mnt").join(sr.as_str().unwrap());
    assert_eq!(run(Command::new("umount").arg(&mounted), b"").code, Some(0));
    for (method, more) in
        [("SR.ls", json!({})), ("Volume.create", new.clone()), ("Volume.destroy", json!({ "key": volume["key"] }))]
    {
        let (code, parameters) = call(method, &more).error();
        assert_eq!(code, "SR_BACKEND_FAILURE_47", "{method}: {parameters:?}");
        assert!(parameters[1].contains("SR.attach"), "{parameters:?}");
    }
    assert_eq!(call("SR.stat", &json!({})).result("SR.stat")["health"][0], "Unreachable");
    assert!(names(&mounted).is_empty());
    plugin.done("SR.attach", &attach);
    assert_eq!(call("SR.ls", &json!({})).result("SR.ls")[0]["key"], volume["key"]);
    assert_eq!(run(Command::new("umount").arg(&mounted), b"").code, Some(0));
    call("SR.detach", &json!({})).result("SR.detach");
    assert_eq!(plugin.done("Plugin.ls", &json!({ "dbg": "test" })), json!([]));
    assert!(!mounted.exists());
}

#[test]
fn a_folder_that_others_have_filled_gets_an_identity() {
    let mut mount = file_system();
    let scene = scene(&mount, "");
    let volume = scene.volume();
    scene.done("SR.detach", &about(&scene));
    fs::remove_file(scene.folder.join("sr.json")).unwrap();
    // What probing answers is enough, and so is the folder alone; another uuid is not.
    let probed = scene.done("SR.probe", &json!({ "dbg": "test", "configuration": uri(&scene.folder) }));
    let other = with(&uri(&scene.folder), &json!({ "sr_uuid": scene.sr }));
    scene.refused_as(47, "SR.attach", &json!({ "dbg": "test", "configuration": other }));
    for configuration in [uri(&scene.folder), probed[0]["configuration"].clone()] {
        let sr = scene.done("SR.attach", &json!({ "dbg": "test", "configuration": configuration }));
        assert_eq!(sr, probed[0]["configuration"]["sr_uuid"]);
        let listed = scene.done("SR.ls", &json!({ "dbg": "test", "sr": sr }));
        assert_eq!(listed[0]["key"], json!(volume));
        mount.away();
        scene.refused_as(47, "SR.ls", &json!({ "dbg": "test", "sr": sr }));
        mount.back();
        scene.done("SR.detach", &json!({ "dbg": "test", "sr": sr }));
        fs::remove_file(scene.folder.join("sr.json")).unwrap();
    }
}
