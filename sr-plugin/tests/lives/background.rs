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
        thread::sleep(Duration::from_millis(20));
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
