//! The form for people and for start-up scripts: arguments by position.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use serde_json::{Map, Value, json};

use crate::contract::{METHODS, Method, Type};
use crate::plugin::{Ended, Plugin, run};
use crate::scene::Scene;

fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A method's positional words, and its options.
fn words(method: &Method, arguments: &Map<String, Value>) -> (Vec<String>, Vec<String>) {
    let (mut positional, mut options) = (Vec::new(), Vec::new());
    for (name, kind) in method.all_parameters() {
        let value = &arguments[name];
        match value.as_object().filter(|_| kind == Type::Map) {
            None => positional.push(word(value)),
            Some(map) => {
                for (name, value) in map {
                    options.extend(["--configuration".to_owned(), name.clone(), word(value)]);
                }
            }
        }
    }
    (positional, options)
}

#[track_caller]
fn wrong_usage(ended: &Ended, what: &str) {
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{what}: {ended:?}");
    assert!(ended.stderr.contains("usage: "), "{what}: {ended:?}");
}

#[track_caller]
fn failed(ended: &Ended, parts: &[&str]) {
    assert!(!matches!(ended.code, None | Some(0 | 2)), "{ended:?}");
    assert_eq!(ended.stdout, "");
    parts.iter().for_each(|part| assert!(ended.stderr.contains(part), "{part:?}: {ended:?}"));
    assert!(serde_json::from_str::<Value>(&ended.stderr).is_err(), "a message, no object: {ended:?}");
}

#[test]
fn every_method_takes_its_arguments_by_position() {
    let scene = Scene::new();
    for method in METHODS {
        let (positional, options) = words(method, &scene.arguments(method));
        scene.words(method.name, &[positional, options].concat()).result(method.name);
    }
}

#[test]
fn both_forms_print_the_same() {
    let scene = Scene::new();
    let volume = scene.volume();
    let about = scene.about(&volume, &json!({ "key2": volume }));
    for (name, words) in [
        ("Plugin.Query", vec!["test"]),
        ("Plugin.ls", vec!["test"]),
        ("SR.ls", vec!["test", &scene.sr]),
        ("Volume.stat", vec!["test", &scene.sr, &volume]),
        ("Volume.compare", vec!["test", &scene.sr, &volume, &volume]),
        ("SR.set_name", vec!["test", &scene.sr, "name"]),
    ] {
        let json = scene.json(name, &crate::scene::with(&about, &json!({ "new_name": "name" })));
        assert_eq!(scene.words(name, &words).stdout, json.stdout, "{name}");
    }
}

#[test]
fn configuration_may_stand_anywhere_and_be_repeated() {
    let scene = Scene::new();
    let places = ["one", "two", "three", "four"].map(|name| scene.place().join(name));
    let uuids = ["a", "b", "c", "d"].map(|digit| format!("{}-0000-4000-8000-000000000000", digit.repeat(8)));
    for (at, (place, uuid)) in places.iter().zip(&uuids).enumerate() {
        let uri = format!("file://{}", place.display());
        let mut words = vec!["test", uuid, "a name", ""];
        let options = [["--configuration", "uri", &uri], ["--configuration", "depth_limit", "7"]];
        words.splice(at..at, options[0]);
        words.extend(options[1]);
        let made = scene.words("SR.create", &words).result("SR.create");
        assert_eq!(made, json!({ "uri": uri, "depth_limit": "7", "sr_uuid": uuid }));
        let stat = ["--configuration", "uri", &uri, "test"];
        let found = scene.words("SR.probe", &stat).result("SR.probe");
        assert_eq!((&found[0]["sr"]["name"], &found[0]["sr"]["uuid"]), (&json!("a name"), &json!(uuid)));
    }
    // None at all.
    scene.words("SR.probe", &["test"]).result("SR.probe");
}

#[test]
fn booleans_are_of_any_case_and_numbers_decimal() {
    let scene = Scene::new();
    for (word, expected) in [("true", true), ("True", true), ("TRUE", true), ("false", false), ("False", false)] {
        let words = ["test", &scene.sr, "", "", "1048576", word];
        assert_eq!(scene.words("Volume.create", &words).result("Volume.create")["sharable"], expected, "{word}");
    }
    let arguments = scene.arguments(crate::contract::method("Volume.list_changed_blocks"));
    let words = ["test", &scene.sr, &word(&arguments["key"]), &word(&arguments["key2"]), "0", "-1"];
    let changed = scene.words("Volume.list_changed_blocks", &words).result("Volume.list_changed_blocks");
    assert_eq!(changed["granularity"], 65536);
}

#[test]
fn help_names_every_parameter() {
    let plugin = Plugin::install();
    for method in METHODS {
        for words in [&["-h"][..], &["--help"], &["test", "--help"]] {
            let ended = plugin.words(method.name, words);
            assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""), "{}", method.name);
            let usage = ended.stdout.lines().next().expect("it prints a usage");
            assert!(usage.starts_with(&format!("usage: {} ", method.name)), "{usage}");
            let words: Vec<&str> = usage.split([' ', '[', ']', '.']).filter(|word| !word.is_empty()).collect();
            let mut rest = words.iter();
            for (name, kind) in method.all_parameters() {
                let name = if kind == Type::Map { "--configuration".into() } else { name.to_uppercase() };
                assert!(rest.any(|word| *word == name), "{name} in its place: {usage}");
                assert_eq!(ended.stdout.matches(&format!("\n  {name} ")).count(), 1, "{name}: {}", ended.stdout);
            }
        }
    }
}

#[test]
fn wrong_usage_is_told_on_standard_error_only() {
    let scene = Scene::new();
    for method in METHODS {
        let (positional, options) = words(method, &scene.arguments(method));
        let all = [positional.clone(), options.clone()].concat();
        let more = |words: &[&str]| [all.clone(), words.iter().map(|word| (*word).to_owned()).collect()].concat();
        let missing = [positional[..positional.len() - 1].to_vec(), options].concat();
        wrong_usage(&scene.words(method.name, &missing), &format!("{} {missing:?}", method.name));
        for extra in [&["more"][..], &["--unknown"], &["--configuration"], &["--configuration", "name"]] {
            wrong_usage(&scene.words(method.name, &more(extra)), &format!("{} {extra:?}", method.name));
        }
    }
    let before = scene.listed();
    for number in ["", "x", "1.0", "1e3", "0x10", "99999999999999999999", "1 "] {
        wrong_usage(&scene.words("Volume.create", &["test", &scene.sr, "", "", number, "false"]), number);
    }
    for boolean in ["", "yes", "0", "truee"] {
        wrong_usage(&scene.words("Volume.create", &["test", &scene.sr, "", "", "512", boolean]), boolean);
    }
    assert_eq!(scene.listed(), before, "nothing has been made");
}

#[test]
fn words_that_are_no_text_are_wrong_usage() {
    let plugin = Plugin::install();
    let mut command = plugin.command("SR.stat", &["test"]);
    wrong_usage(&run(command.arg(OsStr::from_bytes(b"\xff\xfe")), b""), "not UTF-8");
}

#[test]
fn failures_are_a_message() {
    let scene = Scene::new();
    failed(&scene.words("SR.stat", &["test", "none"]), &["Sr_not_attached", "none"]);
    failed(&scene.words("Volume.stat", &["test", &scene.sr, "none"]), &["Volume_does_not_exist", "none"]);
    let too_large = ["test", &scene.sr, "", "", "9223372036854775807", "false"];
    failed(&scene.words("Volume.create", &too_large), &["SR_BACKEND_FAILURE_79", "9223372036854775807"]);
    let words = ["test", "--configuration", "uri", "file:///nowhere/at/all"];
    failed(&scene.words("SR.attach", &words), &["SR_does_not_exist", "/nowhere/at/all"]);
}

#[test]
fn words_after_two_dashes_are_values() {
    let scene = Scene::new();
    let volume = scene.volume();
    scene.words("Volume.set_name", &["test", "--", &scene.sr, &volume, "--json"]).result("Volume.set_name");
    assert_eq!(scene.call("Volume.stat", &volume)["name"], "--json");
}
