//! Each call killed, or failing, at every single system call that changes something.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use serde_json::{Value, json};
use testkit::inject::{CHANGING, Injected, fail_at, fail_from, kill_at};

use crate::disks::{changed, collect, content, differing, verify, write};
use crate::plugin::{Plugin, Sr, arguments};

const MIB: u64 = 1 << 20;

/// A repository, as it was before a call and as it is when the call is through.
struct Case {
    plugin: Plugin,
    sr: Sr,
    method: &'static str,
    words: Vec<String>,
    keys: BTreeMap<&'static str, String>,
    before: State,
    after: State,
    /// What is in the folder once it is through and all has been collected.
    files: BTreeMap<String, usize>,
}

/// Everything about the volumes but what they are called by, with what they hold.
type State = Vec<(String, Vec<u8>)>;

fn state(plugin: &Plugin, sr: &Sr) -> State {
    let listed = plugin.call("SR.ls", &json!({ "sr": sr.id }));
    let of = |volume: &Value| {
        let key = volume["key"].as_str().unwrap().to_owned();
        let mut about = volume.as_object().unwrap().clone();
        for name in ["key", "uuid", "uri", "physical_utilisation"] {
            about.remove(name);
        }
        let content = if about.contains_key("volume_type") { Vec::new() } else { content(&sr.folder, &key) };
        (Value::Object(about).to_string(), content)
    };
    let mut state: State = listed.as_array().unwrap().iter().map(of).collect();
    state.sort_unstable();
    state
}

/// Counts the files of each kind: what they are called without the keys of volumes. The list of relatives is made when it
/// is asked for.
fn files(sr: &Sr) -> BTreeMap<String, usize> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(&sr.folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let kind = name.split_once('.').map_or("", |(_, kind)| kind);
        *files.entry(kind.to_owned()).or_default() += usize::from(kind != "sr.trees");
    }
    files.retain(|_, count| *count > 0);
    files
}

impl Case {
    fn new(method: &'static str, words: &[&str]) -> Self {
        let plugin = Plugin::install();
        let sr = plugin.sr("sr");
        let volume = plugin.create(&sr, "volume", MIB);
        plugin.volume(&sr, "enable_cbt", &volume, &json!({}));
        write(&sr, &volume, 0, 100, 1);
        let base = plugin.new_volume(&sr, "snapshot", &volume);
        write(&sr, &volume, 300, 100, 2);
        let last = plugin.new_volume(&sr, "snapshot", &volume);
        write(&sr, &volume, 500, 100, 3);
        let extra = plugin.create(&sr, "extra", MIB);
        write(&sr, &extra, 3, 400, 4);
        let keys = BTreeMap::from([("volume", volume), ("base", base), ("last", last), ("extra", extra)]);
        let word = |word: &&str| keys.get(word).cloned().unwrap_or_else(|| (*word).to_owned());
        let words = ["test".to_owned(), sr.id.clone()].into_iter().chain(words.iter().map(word)).collect();
        // So that it is known who is related.
        plugin.volume(&sr, "similar_content", &keys["volume"], &json!({}));
        let saved = plugin.path("saved");
        assert!(Command::new("cp").arg("-a").arg(&sr.folder).arg(saved).status().unwrap().success());
        let before = state(&plugin, &sr);
        let mut case = Self { plugin, sr, method, words, keys, before, after: State::new(), files: BTreeMap::new() };
        assert!(case.command().output().unwrap().status.success());
        case.after = state(&case.plugin, &case.sr);
        assert_ne!(case.before, case.after, "{method}");
        collect(&case.sr);
        case.files = files(&case.sr);
        case
    }

    fn command(&self) -> Command {
        let mut command = Command::new(self.plugin.executable(self.method));
        command.args(&self.words);
        command
    }

    /// Interferes with one system call; tells whether the program got that far.
    fn try_at(&self, call: &str, number: usize, inject: &dyn Fn(&Command, &str, usize) -> Injected) -> bool {
        fs::remove_dir_all(&self.sr.folder).unwrap();
        let copied = Command::new("cp").arg("-a").arg(self.plugin.path("saved")).arg(&self.sr.folder).status();
        assert!(copied.unwrap().success());
        let injected = inject(&self.command(), call, number);
        if !injected.hit {
            return false;
        }
        let what = format!("{} at {call} {number}", self.method);
        let said = String::from_utf8_lossy(&injected.output.stderr).into_owned();
        let succeeded = injected.output.status.success();
        // Where nothing can be written, nothing can be said.
        let is_silent = said.is_empty() && call != "write" && injected.output.status.code() == Some(1);
        assert!(!is_silent, "{what}: {said}");

        // Whatever changes something next finishes what is half done.
        self.plugin.call("SR.set_name", &json!({ "sr": self.sr.id, "new_name": "sr" }));
        self.verify_relatives(&what);
        let found = state(&self.plugin, &self.sr);
        assert!(
            found == self.after || !succeeded && found == self.before,
            "{what}: {said}\n{}",
            self.described(&found)
        );
        verify(&self.plugin, &self.sr);
        self.verify_changes(&what);
        if found == self.before {
            let again = self.command().output().unwrap();
            assert!(again.status.success(), "{what}, again: {}", String::from_utf8_lossy(&again.stderr));
            let found = state(&self.plugin, &self.sr);
            assert!(found == self.after, "{what}, again: {}", self.described(&found));
        }
        collect(&self.sr);
        assert!(state(&self.plugin, &self.sr) == self.after, "{what}, collected");
        verify(&self.plugin, &self.sr);
        self.verify_changes(&what);
        let (mut found, mut expected) = (files(&self.sr), self.files.clone());
        // What a snapshot held need not be known.
        assert!(found.remove("vhd.held") <= expected.remove("vhd.held"), "{what}, collected");
        assert_eq!(found, expected, "{what}, collected");
        true
    }

    fn described(&self, found: &State) -> String {
        let names = |state: &State| state.iter().map(|(about, _)| about.clone()).collect::<Vec<_>>().join("\n");
        format!("before:\n{}\nafter:\n{}\nfound:\n{}", names(&self.before), names(&self.after), names(found))
    }

    /// Checks that all are known who share data with a volume: as many as a look at all volumes finds.
    fn verify_relatives(&self, what: &str) {
        let similar = || {
            let arguments = arguments(&self.sr, &self.keys["base"], &json!({}));
            self.plugin.try_call("Volume.similar_content", &arguments)
        };
        let known = similar();
        let _ = fs::remove_file(self.sr.folder.join(".sr.trees"));
        assert_eq!(known, similar(), "{what}");
    }

    /// Checks that no changed block is forgotten.
    fn verify_changes(&self, what: &str) {
        let (base, volume) = (&self.keys["base"], &self.keys["volume"]);
        let told = changed(&self.plugin, &self.sr, base, volume);
        let real: BTreeSet<u64> = differing(&content(&self.sr.folder, base), &content(&self.sr.folder, volume));
        assert!(told.is_superset(&real), "{what}: {told:?} are told, {real:?} have changed");
    }
}

/// Every call that changes something, interrupted at every step.
fn interrupted(inject: impl Fn(&Command, &str, usize) -> Injected + Sync) -> usize {
    let cases: [(&'static str, &[&str]); 9] = [
        ("Volume.create", &["new", "a new one", "1048576", "false"]),
        ("Volume.snapshot", &["volume"]),
        ("Volume.clone", &["last"]),
        ("Volume.destroy", &["last"]),
        ("Volume.data_destroy", &["last"]),
        ("Volume.revert", &["base", "volume"]),
        ("Volume.resize", &["volume", "41943040"]),
        ("Volume.compose", &["extra", "last"]),
        ("Volume.set_name", &["volume", "renamed"]),
    ];
    let (queue, tried) = (Mutex::new(cases.iter()), Mutex::new(0));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((method, words)) = { queue.lock().unwrap().next() } {
                    let case = Case::new(method, words);
                    for call in CHANGING {
                        let hit = (1..).take_while(|number| case.try_at(call, *number, &inject)).count();
                        *tried.lock().unwrap() += hit;
                    }
                }
            });
        }
    });
    tried.into_inner().unwrap()
}

#[test]
fn calls_killed_at_every_step_leave_all_or_nothing() {
    let tried = interrupted(kill_at);
    testkit::tell!("{tried} kills");
    assert!(tried > 250, "{tried}");
}

#[test]
fn calls_that_fail_at_every_step_lose_nothing_and_succeed_later() {
    let tried = interrupted(|program, call, number| fail_at(program, call, number, "EIO"));
    testkit::tell!("{tried} failures");
    assert!(tried > 250, "{tried}");
}

#[test]
fn calls_on_a_full_disk_lose_nothing_and_succeed_later() {
    let tried = interrupted(|program, call, number| fail_from(program, call, number, "ENOSPC"));
    testkit::tell!("{tried} failures");
    assert!(tried > 250, "{tried}");
}
