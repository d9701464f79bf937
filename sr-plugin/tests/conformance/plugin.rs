//! An installed plugin, and calls of it in both forms.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use serde_json::{Deserializer, Value};
use tempfile::TempDir;

use crate::contract::method;
use crate::wire;

/// The plugin, installed in a folder of its own.
#[derive(Debug)]
pub(crate) struct Plugin {
    place: TempDir,
}

/// What a process has left.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Plugin {
    /// Installs it, without a worker.
    pub(crate) fn install() -> Self {
        Self::install_with(|_| vec!["--no-worker".into()])
    }

    /// Installs it, with options that may name what is in its place.
    pub(crate) fn install_with(options: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let plugin = Self { place: testkit::scratch::folder() };
        let options = options(plugin.place());
        plugin.install_again(&options);
        plugin
    }

    /// Runs the installation once more.
    pub(crate) fn install_again(&self, options: &[String]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sr-plugin"));
        command.arg("install").arg(self.root()).arg("--state").arg(self.place().join("state"));
        command.arg("--worker-socket").arg(self.place().join("none")).arg("--extensions").arg(self.extensions());
        let ended = run(command.args(options), b"");
        assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{}", ended.stdout);
    }

    /// A folder for whatever a test needs, with all of the plugin in it.
    pub(crate) fn place(&self) -> &Path {
        self.place.path()
    }

    /// The daemon's root.
    pub(crate) fn root(&self) -> PathBuf {
        self.place().join("root")
    }

    /// The folder of the executables.
    pub(crate) fn folder(&self) -> PathBuf {
        self.root().join("volume/org.xen.xapi.storage.vhd")
    }

    /// The folder of the XenAPI extensions.
    pub(crate) fn extensions(&self) -> PathBuf {
        self.place().join("extensions")
    }

    /// A method's executable, about to be started.
    pub(crate) fn command(&self, method: &str, words: &[&str]) -> Command {
        let mut command = Command::new(self.folder().join(method));
        command.args(words);
        command
    }

    /// Calls a method in the JSON form.
    pub(crate) fn json(&self, method: &str, arguments: &Value) -> Ended {
        self.json_bytes(method, arguments.to_string().as_bytes())
    }

    /// As [`json`](Self::json), with anything on standard input.
    pub(crate) fn json_bytes(&self, method: &str, input: &[u8]) -> Ended {
        run(&mut self.command(method, &["--json"]), input)
    }

    /// Calls a method in the JSON form, and expects a result of the right type.
    #[track_caller]
    pub(crate) fn done(&self, method: &str, arguments: &Value) -> Value {
        self.json(method, arguments).result(method)
    }

    /// Calls a method in the JSON form, and expects an error. Gives code and parameters.
    #[track_caller]
    pub(crate) fn refused(&self, method: &str, arguments: &Value) -> (String, Vec<String>) {
        self.json(method, arguments).error()
    }

    /// Calls a method in the JSON form, and expects a numbered error.
    #[track_caller]
    pub(crate) fn refused_as(&self, number: u32, method: &str, arguments: &Value) {
        let (code, parameters) = self.refused(method, arguments);
        assert_eq!(code, format!("SR_BACKEND_FAILURE_{number}"), "{method} {arguments}: {parameters:?}");
        assert_eq!(parameters.len(), 2, "the short text and the detail: {parameters:?}");
    }

    /// Calls a method in the human form.
    pub(crate) fn words<S: AsRef<str>>(&self, method: &str, words: &[S]) -> Ended {
        let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
        run(&mut self.command(method, &words), b"")
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        // A test that fails leaves its devices mounted.
        let mounted = std::fs::read_dir(self.place().join("state/mnt")).into_iter().flatten().flatten();
        for folder in mounted {
            let _ = Command::new("umount").arg("--lazy").arg(folder.path()).output();
        }
    }
}

impl Ended {
    /// The result of a call that has succeeded: one JSON value of the method's type, and nothing else.
    #[track_caller]
    pub(crate) fn result(&self, name: &str) -> Value {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{name}: {}", self.stdout);
        let value = self.value();
        wire::check(method(name).result, &value).unwrap_or_else(|error| panic!("{name}: {error}"));
        value
    }

    /// Code and parameters of a call in the JSON form that has failed.
    #[track_caller]
    pub(crate) fn error(&self) -> (String, Vec<String>) {
        assert!(self.code.is_some_and(|code| code != 0), "it has failed by itself: {self:?}");
        wire::error(&self.value()).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }

    /// The only value on standard output.
    #[track_caller]
    fn value(&self) -> Value {
        let values: Result<Vec<Value>, _> = Deserializer::from_str(&self.stdout).into_iter().collect();
        let mut values = values.unwrap_or_else(|error| panic!("{error}: {self:?}"));
        assert_eq!(values.len(), 1, "one value: {self:?}");
        values.remove(0)
    }
}

/// Runs a program, and feeds it `input`, all of which it has to read.
#[track_caller]
pub(crate) fn run(command: &mut Command, input: &[u8]) -> Ended {
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("it is piped");
    let (output, written) = thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.write_all(input));
        (child.wait_with_output().expect("it ends"), writer.join().expect("it only writes"))
    });
    written.unwrap_or_else(|error| panic!("{command:?} does not read all of its input: {error}"));
    ended(output)
}

/// What a process has left.
pub(crate) fn ended(output: Output) -> Ended {
    let text = |bytes| String::from_utf8(bytes).expect("the plugin prints UTF-8");
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}
