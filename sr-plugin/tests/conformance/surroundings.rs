//! How the daemon starts it: under tracing, with what is left of an environment, from any folder, and waiting for the end
//! of its output.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::contract::method;
use crate::plugin::{Ended, Plugin, run};
use crate::scene::{Scene, attach, uri};

/// What the daemon's tracing does with an executable.
const OBSERVER: &str =
    "import runpy, sys; sys.argv = [sys.argv[1], '--json']; runpy.run_path(sys.argv[0], run_name='__main__')";

fn listed(scene: &Scene, command: &mut Command) -> Ended {
    run(command, json!({ "dbg": "test", "sr": scene.sr }).to_string().as_bytes())
}

#[test]
fn python_runs_it_too() {
    let scene = Scene::new();
    let volume = scene.volume();
    let observed = |name: &str, arguments: &Value| {
        let path = scene.folder().join(name);
        run(Command::new("python3").args(["-c", OBSERVER]).arg(path), arguments.to_string().as_bytes())
    };
    let about = scene.about(&volume, &json!({}));
    assert_eq!(observed("Volume.stat", &about).result("Volume.stat"), scene.done("Volume.stat", &about));
    let (_, parameters) = observed("Volume.stat", &scene.about("none", &json!({}))).error();
    assert_eq!(parameters, ["Volume_does_not_exist", "none"]);
}

#[test]
fn the_environment_does_not_matter() {
    let scene = Scene::new();
    scene.volume();
    let expected = scene.json("SR.ls", &json!({ "dbg": "test", "sr": scene.sr })).stdout;
    assert_eq!(listed(&scene, scene.command("SR.ls", &["--json"]).env_clear()).stdout, expected);
    let mut cut = scene.command("SR.ls", &["--json"]);
    cut.env_clear().env("PATH", "").env("HOME", "/no").env("LANG", "tr_TR").env("RUST_BACKTRACE", "1");
    assert_eq!(listed(&scene, &mut cut).stdout, expected);
}

#[test]
fn the_working_folder_does_not_matter() {
    let scene = Scene::new();
    let expected = scene.json("SR.ls", &json!({ "dbg": "test", "sr": scene.sr })).stdout;
    assert_eq!(listed(&scene, scene.command("SR.ls", &["--json"]).current_dir("/")).stdout, expected);
    let gone = scene.place().join("gone");
    fs::create_dir(&gone).unwrap();
    let script = "cd \"$1\" && rmdir \"$1\" && exec \"$2\" --json";
    let mut from_nowhere = Command::new("sh");
    from_nowhere.args(["-c", script, "sh"]).arg(&gone).arg(scene.folder().join("SR.ls"));
    assert_eq!(listed(&scene, &mut from_nowhere).stdout, expected);
    let mut relative = Command::new("./SR.ls");
    assert_eq!(listed(&scene, relative.arg("--json").current_dir(scene.folder())).stdout, expected);
}

#[test]
fn names_are_of_any_case() {
    let plugin = Plugin::install();
    for name in ["plugin.query", "PLUGIN.QUERY", "Plugin.query"] {
        symlink("sr-plugin", plugin.folder().join(name)).unwrap();
        let ended = run(&mut plugin.command(name, &["--json"]), b"{\"dbg\":\"d\"}");
        ended.result("Plugin.Query");
    }
}

#[test]
fn closed_ends_are_no_reason_to_fail() {
    let plugin = Plugin::install();
    let script = "echo '{\"dbg\":\"d\"}' | \"$1\" --json >&- 2>&-; exit $?";
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(plugin.folder().join("Plugin.Query"));
    assert_eq!(run(&mut command, b"").code, Some(0));
}

#[test]
fn nobody_waits_for_the_worker() {
    let plugin = Plugin::install_with(|place| {
        let worker = place.join("worker");
        let script =
            format!("#!/bin/sh\necho $$ > {0}.new; mv {0}.new {0}; exec sleep 30\n", place.join("pid").display());
        fs::write(&worker, script).unwrap();
        fs::set_permissions(&worker, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        vec!["--worker".into(), worker.display().to_string()]
    });
    let start = Instant::now();
    let sr = attach(&plugin, &uri(&plugin.place().join("sr")));
    assert!(start.elapsed() < Duration::from_secs(10), "it waits for the worker");
    let pid = plugin.place().join("pid");
    while !pid.exists() {
        assert!(start.elapsed() < Duration::from_secs(20), "the worker does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = fs::read_to_string(pid).unwrap().trim().to_owned();
    let stream = |number: u32| fs::read_link(format!("/proc/{pid}/fd/{number}")).unwrap();
    let (streams, folder) = ([0, 1, 2].map(stream), fs::read_link(format!("/proc/{pid}/cwd")).unwrap());
    let detached = plugin.json("SR.detach", &json!({ "dbg": "test", "sr": sr }));
    assert!(Command::new("kill").arg(&pid).status().unwrap().success());
    assert!(streams.iter().all(|stream| stream == Path::new("/dev/null")), "{streams:?}");
    assert_eq!(folder, Path::new("/"), "it keeps nothing from being unmounted");
    detached.result("SR.detach");
}

#[test]
fn settings_that_are_damaged_are_an_error() {
    let plugin = Plugin::install();
    fs::write(plugin.folder().join("settings.json"), "{").unwrap();
    for name in ["Plugin.ls", "SR.ls"] {
        let arguments = json!({ "dbg": "test", "sr": "x" });
        let (_, parameters) = plugin.refused(method(name).name, &arguments);
        assert!(parameters.iter().any(|text| text.contains("settings.json")), "{parameters:?}");
    }
}
