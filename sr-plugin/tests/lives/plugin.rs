//! An installed plugin, called through its executables only.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// A plugin that is installed in a folder of its own.
pub(crate) struct Plugin {
    folder: TempDir,
}

/// A repository that is attached.
#[derive(Clone, Debug)]
pub(crate) struct Sr {
    pub(crate) folder: PathBuf,
    pub(crate) id: String,
}

impl Plugin {
    /// Installs it; merges are left to the test.
    pub(crate) fn install() -> Self {
        Self::install_with(&["--no-worker"])
    }

    /// Installs it with these options.
    pub(crate) fn install_with(options: &[&str]) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut install = Command::new(env!("CARGO_BIN_EXE_sr-plugin"));
        install
            .arg("install")
            .arg(path("root"))
            .arg("--state")
            .arg(path("run"))
            .arg("--worker-socket")
            .arg(path("none"))
            .arg("--extensions")
            .arg(path("extensions"));
        let output = install.args(options).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Self { folder }
    }

    /// A path in its folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The executable of a method.
    pub(crate) fn executable(&self, method: &str) -> PathBuf {
        self.path("root/volume/org.xen.xapi.storage.vhd").join(method)
    }

    /// The executable of a method, about to be started with `--json`.
    pub(crate) fn command(&self, method: &str) -> Command {
        let mut command = Command::new(self.executable(method));
        command.arg("--json").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Starts a call.
    pub(crate) fn start(&self, method: &str, arguments: &Value) -> Child {
        let mut all = arguments.as_object().unwrap().clone();
        all.insert("dbg".into(), "test".into());
        let mut child = self.command(method).spawn().unwrap();
        let text = Value::Object(all).to_string();
        // One that was killed already reads nothing.
        let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
        child
    }

    /// Calls a method; gives its error's parameters where it fails.
    pub(crate) fn try_call(&self, method: &str, arguments: &Value) -> Result<Value, Vec<String>> {
        ended(self.start(method, arguments))
    }

    /// Calls a method that is to succeed.
    pub(crate) fn call(&self, method: &str, arguments: &Value) -> Value {
        self.try_call(method, arguments).unwrap_or_else(|error| panic!("{method} {arguments}: {error:?}"))
    }

    /// Makes and attaches a repository.
    pub(crate) fn sr(&self, name: &str) -> Sr {
        let folder = self.path(name);
        let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
        let configuration = json!({ "uri": format!("file://{}", folder.display()) });
        let arguments =
            json!({ "uuid": uuid.trim(), "configuration": configuration, "name": name, "description": "for a test" });
        let configuration = self.call("SR.create", &arguments);
        self.attach(&folder, &configuration)
    }

    /// Attaches a repository.
    pub(crate) fn attach(&self, folder: &Path, configuration: &Value) -> Sr {
        let id = self.call("SR.attach", &json!({ "configuration": configuration }));
        Sr { folder: folder.into(), id: id.as_str().unwrap().into() }
    }

    /// Calls a method of a volume that is to succeed.
    pub(crate) fn volume(&self, sr: &Sr, method: &str, key: &str, others: &Value) -> Value {
        self.call(&format!("Volume.{method}"), &arguments(sr, key, others))
    }

    /// Calls a method that gives a new volume; gives its key.
    pub(crate) fn new_volume(&self, sr: &Sr, method: &str, key: &str) -> String {
        self.volume(sr, method, key, &json!({}))["key"].as_str().unwrap().into()
    }

    /// Makes a volume; gives its key.
    pub(crate) fn create(&self, sr: &Sr, name: &str, size: u64) -> String {
        let arguments =
            json!({ "sr": sr.id, "name": name, "description": "of a test", "size": size, "sharable": false });
        self.call("Volume.create", &arguments)["key"].as_str().unwrap().into()
    }

    /// The keys of all volumes.
    pub(crate) fn keys(&self, sr: &Sr) -> Vec<String> {
        let listed = self.call("SR.ls", &json!({ "sr": sr.id }));
        listed.as_array().unwrap().iter().map(|volume| volume["key"].as_str().unwrap().into()).collect()
    }
}

/// The arguments of a volume's method.
pub(crate) fn arguments(sr: &Sr, key: &str, others: &Value) -> Value {
    let mut all = Map::from_iter([("sr".to_owned(), sr.id.clone().into()), ("key".to_owned(), key.into())]);
    all.extend(others.as_object().unwrap().clone());
    Value::Object(all)
}

/// Waits for a call; gives its error's parameters where it fails, or nothing of one that was killed.
pub(crate) fn ended(child: Child) -> Result<Value, Vec<String>> {
    let output = child.wait_with_output().unwrap();
    if output.stdout.is_empty() {
        assert_eq!(output.status.code(), None, "{}", String::from_utf8_lossy(&output.stderr));
        return Err(Vec::new());
    }
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    if output.status.success() {
        return Ok(value);
    }
    let parameters = value["params"].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned());
    Err(parameters.collect())
}

/// Another program of the project: built beside the plugin, by cargo where that has not been asked for it.
pub(crate) fn program(package: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_sr-plugin")).with_file_name(package);
    if !path.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        assert!(cargo.args(["build", "--quiet", "--package", package]).status().unwrap().success());
    }
    path
}
