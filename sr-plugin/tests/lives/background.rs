//! The worker that the plugin starts, and what it is told.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::disks::{content, write};
use crate::plugin::{Plugin, program};

const MIB: u64 = 1 << 20;

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(20), "not {what} in time");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_worker_comes_with_the_repository_merges_what_is_destroyed_and_goes_with_it() {
    let worker = program("coalesce-worker");
    let plugin = Plugin::install_with(&["--worker", worker.to_str().unwrap()]);
    let sr = plugin.sr("sr");
    let diagnostics = || plugin.call("Plugin.diagnostics", &json!({})).as_str().unwrap().to_owned();
    eventually("looked after", || diagnostics().contains("backlog: 0 images"));

    let volume = plugin.create(&sr, "volume", 4 * MIB);
    write(&sr, &volume, 0, 900, 1);
    let snapshot = plugin.new_volume(&sr, "snapshot", &volume);
    write(&sr, &volume, 500, 900, 2);
    let before = content(&sr.folder, &volume);
    assert!(diagnostics().contains("deepest chain: "), "{}", diagnostics());
    plugin.volume(&sr, "destroy", &snapshot, &json!({}));
    let images = || {
        std::fs::read_dir(&sr.folder)
            .unwrap()
            .flatten()
            .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "vhd"))
            .count()
    };
    eventually("merged", || images() == 1);
    assert_eq!(content(&sr.folder, &volume), before);

    // By the extensions, too.
    for (call, expected) in [
        (format!("VHD.status {}", sr.id), "backlog_nodes"),
        (format!("VHD.coalesce {}", sr.id), ""),
        (format!("VHD.set_rate {} 100M", sr.id), ""),
        ("VHD.set_rate none".to_owned(), ""),
    ] {
        let value = extension(&plugin, &call);
        assert!(value.contains(expected), "{call}: {value}");
    }
    plugin.call("SR.detach", &json!({ "sr": sr.id }));
    let socket = plugin.path("run").join(format!("{}.sock", sr.id));
    let running =
        || Command::new(&worker).arg("status").arg("--socket").arg(&socket).output().unwrap().status.success();
    assert!(!running(), "it ends with the repository");
}

/// Calls an extension as xapi does; gives its value.
fn extension(plugin: &Plugin, call: &str) -> String {
    let (name, words) = call.split_once(' ').unwrap();
    let parameters: String = ["OpaqueRef:session", words]
        .iter()
        .map(|text| format!("<param><value><string>{text}</string></value></param>"))
        .collect();
    let text = format!(
        "<?xml version='1.0'?><methodCall><methodName>{name}</methodName><params>{parameters}</params></methodCall>"
    );
    let script = "import subprocess, sys, xmlrpc.client\n\
        done = subprocess.run([sys.argv[1], '--xmlrpc'], input=sys.argv[2].encode(), capture_output=True, check=True)\n\
        answer = xmlrpc.client.loads(done.stdout)[0][0]\n\
        assert answer['Status'] == 'Success', answer\n\
        print(answer['Value'])\n";
    let output = Command::new("python3")
        .args(["-c", script])
        .arg(plugin.path("extensions").join(name))
        .arg(text)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn metrics_are_named_only_where_they_are_asked_for() {
    let plugin = Plugin::install();
    let sr = plugin.sr("sr");
    let stat = |id: &str| -> Value { plugin.call("SR.stat", &json!({ "sr": id }))["datasources"].clone() };
    assert_eq!(stat(&sr.id), json!([]));
    plugin.call("SR.detach", &json!({ "sr": sr.id }));
    let configuration = json!({ "uri": format!("file://{}", sr.folder.display()), "datasources": "true" });
    let sr = plugin.attach(&sr.folder, &configuration);
    assert_eq!(stat(&sr.id), json!([format!("xeno+shm:///vhd-{}", sr.id)]));
}

/// The workers of a folder, but for those that have ended. What a worker runs itself is in its process group.
fn running(folder: &std::path::Path) -> Vec<String> {
    let folder = format!("run\0{}\0", folder.display());
    let of = |entry: std::fs::DirEntry| {
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).ok();
        let command = read("cmdline").filter(|command| command.contains(&folder))?;
        let stat = read("stat")?;
        let words: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        (words[0] != "Z" && entry.file_name() == words[2]).then_some(command)
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(of).collect()
}

#[test]
fn no_worker_outlives_a_detach_that_follows_at_once() {
    let worker = program("coalesce-worker");
    let plugin = Plugin::install_with(&["--worker", worker.to_str().unwrap()]);
    let sr = plugin.sr("sr");
    let configuration = json!({ "uri": format!("file://{}", sr.folder.display()), "sr_uuid": sr.id });
    for round in 0..30 {
        if round % 2 == 0 {
            plugin.call("SR.detach", &json!({ "sr": sr.id }));
            assert_eq!(running(&sr.folder), Vec::<String>::new(), "round {round}");
            plugin.attach(&sr.folder, &configuration);
        }
        // A program that has just been started has no command line yet.
        eventually("started", || running(&sr.folder).len() == 1);
        plugin.call("SR.detach", &json!({ "sr": sr.id }));
        assert_eq!(running(&sr.folder), Vec::<String>::new(), "round {round}");
        plugin.attach(&sr.folder, &configuration);
    }
    // Nor one that another call has started meanwhile.
    for round in 0..10 {
        let volume = plugin.create(&sr, "volume", 4 * MIB);
        let calls: Vec<_> = (0..3)
            .map(|_| plugin.start("Volume.snapshot", &crate::plugin::arguments(&sr, &volume, &json!({}))))
            .collect();
        plugin.call("SR.detach", &json!({ "sr": sr.id }));
        for call in calls {
            let _ = crate::plugin::ended(call);
        }
        assert_eq!(running(&sr.folder), Vec::<String>::new(), "round {round}");
        plugin.attach(&sr.folder, &configuration);
    }
    plugin.call("SR.detach", &json!({ "sr": sr.id }));
    // What is left of one that has ended, and whose number another process has, ends nothing.
    let mut other = Command::new("sleep").arg("60").spawn().unwrap();
    let record = plugin.path("run").join(format!("{}.worker", sr.id));
    std::fs::write(record, json!({ "id": other.id(), "start": 1 }).to_string()).unwrap();
    plugin.attach(&sr.folder, &configuration);
    plugin.call("SR.detach", &json!({ "sr": sr.id }));
    assert_eq!(other.try_wait().unwrap(), None);
    other.kill().unwrap();
    other.wait().unwrap();
}
