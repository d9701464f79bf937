//! A plugin with an attached repository, volumes in it, and arguments for every method.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use testkit::layout::kept;
use uuid::Uuid;
use vhd_core::{ChainOptions, Sector, SectorCount, SectorRange};

use crate::contract::{Method, Type};
use crate::plugin::{Ended, Plugin};

const MIB: i64 = 1 << 20;

/// A plugin with an attached repository.
#[derive(Debug)]
pub(crate) struct Scene {
    plugin: Plugin,
    pub(crate) sr: String,
    pub(crate) folder: PathBuf,
}

impl Deref for Scene {
    type Target = Plugin;

    fn deref(&self) -> &Plugin {
        &self.plugin
    }
}

/// The configuration of a repository in a folder.
pub(crate) fn uri(folder: &Path) -> Value {
    json!({ "uri": format!("file://{}", folder.display()) })
}

/// Members of both objects.
pub(crate) fn with(one: &Value, other: &Value) -> Value {
    let members = [one, other].into_iter().filter_map(Value::as_object).flatten();
    Value::Object(members.map(|(name, value)| (name.clone(), value.clone())).collect())
}

impl Scene {
    pub(crate) fn new() -> Self {
        let plugin = Plugin::install();
        let folder = plugin.place().join("sr");
        Self::of(plugin, folder, &json!({}))
    }

    /// With more members in the repository's configuration.
    pub(crate) fn configured(more: &Value) -> Self {
        let plugin = Plugin::install();
        let folder = plugin.place().join("sr");
        Self::of(plugin, folder, more)
    }

    /// With a repository in a folder.
    pub(crate) fn of(plugin: Plugin, folder: PathBuf, more: &Value) -> Self {
        let sr = attach(&plugin, &with(&uri(&folder), more));
        Self { plugin, sr, folder }
    }

    /// Makes another repository in a new folder, and attaches it.
    pub(crate) fn another_sr(&self) -> String {
        attach(&self.plugin, &uri(&self.unused_folder()))
    }

    fn unused_folder(&self) -> PathBuf {
        self.place().join(format!("sr-{}", Uuid::new_v4()))
    }

    /// Arguments about a volume.
    pub(crate) fn about(&self, key: &str, more: &Value) -> Value {
        with(&json!({ "dbg": "test", "sr": self.sr, "key": key }), more)
    }

    /// Makes a volume of 4 MiB.
    #[track_caller]
    pub(crate) fn volume(&self) -> String {
        let arguments = json!({
            "dbg": "test", "sr": self.sr, "name": "a volume", "description": "of a test", "size": 4 * MIB,
            "sharable": false,
        });
        key(&self.done("Volume.create", &arguments))
    }

    /// Takes a snapshot.
    #[track_caller]
    pub(crate) fn snapshot(&self, of: &str) -> String {
        key(&self.call("Volume.snapshot", of))
    }

    /// Calls a method that takes a volume and nothing else.
    #[track_caller]
    pub(crate) fn call(&self, method: &str, key: &str) -> Value {
        kept(&self.folder, || self.done(method, &self.about(key, &json!({}))))
    }

    /// As [`call`](Self::call), whatever comes of it.
    pub(crate) fn tried(&self, method: &str, key: &str) -> Ended {
        self.json(method, &self.about(key, &json!({})))
    }

    /// The keys of all volumes.
    #[track_caller]
    pub(crate) fn listed(&self) -> Vec<String> {
        let volumes = self.done("SR.ls", &json!({ "dbg": "test", "sr": self.sr }));
        let mut keys: Vec<String> = volumes.as_array().into_iter().flatten().map(key).collect();
        keys.sort_unstable();
        keys
    }

    /// A volume's image.
    pub(crate) fn image(&self, key: &str) -> PathBuf {
        self.folder.join(format!("{key}.vhd"))
    }

    /// Opens a volume as a datapath does.
    pub(crate) fn open(&self, key: &str) -> vhd_core::Volume {
        vhd_core::Volume::open(&self.image(key), &ChainOptions::default()).expect("the volume opens")
    }

    /// Fills some of a volume's sectors.
    pub(crate) fn write(&self, key: &str, sector: u64, count: u64, byte: u8) {
        let range = SectorRange::new(Sector(sector), SectorCount(count));
        let volume = self.open(key);
        volume.write(range, &vec![byte; count as usize * 512]).expect("it is writable");
        volume.close().expect("it closes");
    }

    /// The first byte of a sector.
    pub(crate) fn read(&self, key: &str, sector: u64) -> u8 {
        let chain = vhd_core::Chain::open(&self.image(key), &ChainOptions::default()).expect("the volume opens");
        let mut bytes = [0; 512];
        chain.read(SectorRange::new(Sector(sector), SectorCount(1)), &mut bytes).expect("it is readable");
        bytes[0]
    }

    /// Arguments with which a method succeeds, once.
    pub(crate) fn arguments(&self, method: &Method) -> Map<String, Value> {
        let mut arguments = Map::new();
        for (name, kind) in method.all_parameters() {
            arguments.insert(name.into(), self.argument(method.name, name, kind));
        }
        if method.has("key2") {
            self.relate(&mut arguments, method.name);
        }
        if method.name == "Volume.revert" {
            let key = arguments["key"].as_str().unwrap_or_default().to_owned();
            arguments.insert("snapshot".into(), json!(self.snapshot(&key)));
        }
        arguments
    }

    fn argument(&self, method: &str, parameter: &str, kind: Type) -> Value {
        match (method, parameter) {
            ("SR.destroy" | "SR.detach", "sr") => json!(self.another_sr()),
            (_, "sr" | "dest_sr") => json!(self.sr),
            (_, "uuid") => json!(Uuid::new_v4()),
            ("SR.create", "configuration") => uri(&self.unused_folder()),
            (_, "configuration") => uri(&self.folder),
            (_, "size") => json!(MIB),
            (_, "new_size") => json!(8 * MIB),
            (_, "offset") => json!(0),
            (_, "length") => json!(-1),
            ("Volume.data_destroy", "key") => {
                let volume = self.volume();
                self.call("Volume.enable_cbt", &volume);
                json!(self.snapshot(&volume))
            }
            (_, "key" | "key2") => json!(self.volume()),
            _ if kind == Type::Boolean => json!(false),
            _ => json!(format!("a {parameter}")),
        }
    }

    /// Volumes of which one is the other's snapshot, where changes are asked for.
    fn relate(&self, arguments: &mut Map<String, Value>, method: &str) {
        if method == "Volume.list_changed_blocks" {
            let volume = arguments["key2"].as_str().unwrap_or_default().to_owned();
            self.call("Volume.enable_cbt", &volume);
            arguments.insert("key".into(), json!(self.snapshot(&volume)));
        }
    }
}

/// The key of a volume.
#[track_caller]
pub(crate) fn key(volume: &Value) -> String {
    volume["key"].as_str().expect("it is a volume").to_owned()
}

/// Makes a repository, and attaches it as the toolstack does.
#[track_caller]
pub(crate) fn attach(plugin: &Plugin, configuration: &Value) -> String {
    let configuration = create(plugin, configuration);
    let sr = plugin.done("SR.attach", &json!({ "dbg": "test", "configuration": configuration }));
    sr.as_str().expect("it is a string").to_owned()
}

/// Makes a repository, and gives the configuration to attach it with.
#[track_caller]
pub(crate) fn create(plugin: &Plugin, configuration: &Value) -> Value {
    let arguments = json!({
        "dbg": "test", "uuid": Uuid::new_v4(), "configuration": configuration, "name": "a repository",
        "description": "of a test",
    });
    plugin.done("SR.create", &arguments)
}

/// The names of what is in a folder.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder is there");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("it is readable").file_name().into_string().expect("it is UTF-8")).collect();
    names.sort_unstable();
    names
}
