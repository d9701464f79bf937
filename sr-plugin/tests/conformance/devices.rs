//! Repositories on block devices, as root: what is made, mounted, and left alone.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use testkit::loop_device::LoopDevice;
use uuid::Uuid;

use crate::plugin::{Plugin, run};
use crate::scene::{attach, create, names, with};

/// As small as an XFS may be.
const SIZE: u64 = 300 << 20;

/// A plugin, and a device with nothing on it.
struct Disk {
    // Dropped first: it unmounts.
    plugin: Plugin,
    device: LoopDevice,
}

impl Disk {
    fn new() -> Self {
        let plugin = Plugin::install();
        let device = LoopDevice::new(&plugin.place().join("disk"), SIZE);
        Self { plugin, device }
    }

    fn configuration(&self) -> Value {
        json!({ "device": self.device.path })
    }

    fn made(&self, program: &str, options: &[&str]) {
        let ended = run(Command::new(program).args(options).arg(&self.device.path), b"");
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }

    fn mounts(&self) -> Vec<PathBuf> {
        let mounts = fs::read_to_string("/proc/mounts").expect("it is readable");
        let device = self.device.path.to_str().expect("it is readable");
        let lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        lines.filter(|line| line[0] == device).map(|line| PathBuf::from(line[1])).collect()
    }

    /// The first and last of the device, where everything leaves its mark.
    fn marks(&self) -> Vec<u8> {
        let file = File::open(self.plugin.place().join("disk")).expect("it is readable");
        let mut bytes = vec![0; 2 << 20];
        file.read_exact_at(&mut bytes[..1 << 20], 0).expect("it is readable");
        file.read_exact_at(&mut bytes[1 << 20..], SIZE - (1 << 20)).expect("it is readable");
        bytes
    }

    fn creation(&self) -> Value {
        json!({
            "dbg": "test", "uuid": Uuid::new_v4(), "configuration": self.configuration(), "name": "", "description": "",
        })
    }

    fn call(&self, method: &str, sr: &str) -> Value {
        self.plugin.done(method, &json!({ "dbg": "test", "sr": sr }))
    }

    fn volume(&self, sr: &str) -> Value {
        let create = json!({ "name": "", "description": "", "size": 1 << 20, "sharable": false });
        self.plugin.done("Volume.create", &with(&json!({ "dbg": "test", "sr": sr }), &create))
    }
}

#[test]
fn an_empty_device_gets_a_file_system() {
    let disk = Disk::new();
    let probed = disk.plugin.done("SR.probe", &json!({ "dbg": "test", "configuration": disk.configuration() }));
    assert_eq!(probed[0].get("sr"), None, "{probed}");
    let made = create(&disk.plugin, &disk.configuration());
    assert!(disk.mounts().is_empty(), "created is not attached");

    let arguments = json!({ "dbg": "test", "configuration": made });
    let sr = disk.plugin.done("SR.attach", &arguments);
    assert_eq!(disk.plugin.done("SR.attach", &arguments), sr);
    let [mounted] = &disk.mounts()[..] else { panic!("it is mounted once: {:?}", disk.mounts()) };
    assert!(mounted.starts_with(disk.plugin.place()), "{}", mounted.display());
    let sr = sr.as_str().unwrap();
    let volume = disk.volume(sr);
    assert!(disk.call("SR.stat", sr)["total_space"].as_u64() <= Some(SIZE));
    for configuration in [&disk.configuration(), &made] {
        let probed = disk.plugin.done("SR.probe", &json!({ "dbg": "test", "configuration": configuration }));
        assert_eq!(probed[0]["configuration"], made, "an attached one is found, too");
    }

    disk.call("SR.detach", sr);
    assert!(disk.mounts().is_empty());
    assert!(names(&disk.plugin.place().join("state/mnt")).is_empty(), "no folder to mount at is left");
    let probed = disk.plugin.done("SR.probe", &json!({ "dbg": "test", "configuration": disk.configuration() }));
    assert_eq!(probed[0]["configuration"], made, "a detached one is found");
    assert!(disk.mounts().is_empty());

    // Without the uuid, as who its record says.
    let again = json!({ "dbg": "test", "configuration": disk.configuration() });
    assert_eq!(disk.plugin.done("SR.attach", &again), sr);
    assert_eq!(disk.call("SR.ls", sr)[0]["key"], volume["key"]);
    let key = json!({ "dbg": "test", "sr": sr, "key": volume["key"] });
    disk.plugin.done("Volume.destroy", &key);
    disk.call("SR.destroy", sr);
    assert!(disk.mounts().is_empty());
    assert!(names(&disk.plugin.place().join("state/mnt")).is_empty());
}

#[test]
fn a_file_system_is_used_as_it_is() {
    let disk = Disk::new();
    disk.made("mkfs.ext4", &["-qF", "-L", "mine"]);
    let folder = disk.plugin.place().join("mine");
    fs::create_dir(&folder).unwrap();
    let mount =
        |path: &Path| assert!(Command::new("mount").arg(&disk.device.path).arg(path).status().unwrap().success());
    let unmount = |path: &Path| assert!(Command::new("umount").arg(path).status().unwrap().success());
    mount(&folder);
    fs::write(folder.join("notes.txt"), "mine").unwrap();
    unmount(&folder);

    let sr = attach(&disk.plugin, &disk.configuration());
    assert_eq!(fs::read_to_string(disk.mounts()[0].join("notes.txt")).unwrap(), "mine");
    disk.volume(&sr);
    disk.call("SR.detach", &sr);
    mount(&folder);
    let found = (fs::read_to_string(folder.join("notes.txt")).unwrap(), names(&folder).len());
    unmount(&folder);
    assert_eq!(found.0, "mine");
    assert!(found.1 > 2, "the volume is there as well");
}

#[test]
fn a_repository_in_use_is_not_unmounted() {
    let disk = Disk::new();
    let sr = attach(&disk.plugin, &disk.configuration());
    let busy = File::open(disk.mounts()[0].join("sr.json")).unwrap();
    disk.plugin.refused_as(16, "SR.detach", &json!({ "dbg": "test", "sr": sr }));
    assert_eq!(disk.plugin.done("Plugin.ls", &json!({ "dbg": "test" })), json!([sr]), "it is attached still");
    disk.call("SR.stat", &sr);
    drop(busy);
    disk.call("SR.detach", &sr);
    assert!(disk.mounts().is_empty());
}

#[test]
fn a_device_with_something_else_is_refused() {
    // The first partition of a table: Linux, from sector 2048, 4096 sectors.
    let mut table = vec![0; 512];
    table[446..462].copy_from_slice(&[0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0]);
    table[510..].copy_from_slice(&[0x55, 0xaa]);
    let disk = Disk::new();
    let holds = |what: &str| {
        let before = disk.marks();
        disk.plugin.refused("SR.create", &disk.creation());
        disk.plugin.refused("SR.attach", &json!({ "dbg": "test", "configuration": disk.configuration() }));
        // Either is fine, as long as it leads nowhere.
        let probed = disk.plugin.json("SR.probe", &json!({ "dbg": "test", "configuration": disk.configuration() }));
        if probed.code == Some(0) {
            let probed = probed.result("SR.probe");
            assert!(probed.as_array().unwrap().iter().all(|found| found.get("sr").is_none()), "{what}: {probed}");
        }
        assert!(before == disk.marks(), "{what} is not what it was");
        assert!(disk.mounts().is_empty());
        let left = fs::read_dir(disk.plugin.place().join("state/mnt")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{what}: a folder to mount at is left");
    };
    let write = |bytes: &[u8], at| {
        File::options().write(true).open(&disk.device.path).unwrap().write_all_at(bytes, at).unwrap();
    };
    write(&table, 0);
    holds("a table of partitions");
    write(&[0; 512], 0);
    disk.made("mkswap", &[]);
    holds("swap space");
    write(&[0; 8192], 0);
    write(b"conectix", SIZE - 512);
    write(b"conectix", 0);
    holds("an image");
    write(&[0; 512], SIZE - 512);
    write(b"QFI\xfb", 0);
    holds("an image of another kind");
    write(&[0; 512], 0);
    write(b"somebody's", SIZE - 4096);
    holds("data of no kind that is known");
}

#[test]
fn devices_that_are_none_are_refused() {
    let plugin = Plugin::install();
    for device in ["/dev/none-such", "/dev/null", "/"] {
        let configuration = json!({ "dbg": "test", "configuration": { "device": device } });
        let more = json!({ "uuid": Uuid::new_v4(), "name": "", "description": "" });
        plugin.refused("SR.create", &with(&configuration, &more));
        plugin.refused("SR.attach", &configuration);
    }
}

#[test]
fn tools_are_found_without_an_environment() {
    let disk = Disk::new();
    let mut command = disk.plugin.command("SR.create", &["--json"]);
    let made = run(command.env_clear(), disk.creation().to_string().as_bytes()).result("SR.create");
    let attach = json!({ "dbg": "test", "configuration": made }).to_string();
    let mut command = disk.plugin.command("SR.attach", &["--json"]);
    run(command.env_clear().env("PATH", "/nowhere"), attach.as_bytes()).result("SR.attach");
    assert_eq!(disk.mounts().len(), 1);
}
