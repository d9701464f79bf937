//! The XenAPI extensions: XML-RPC in and out, read by another parser.

use std::process::Command;

use serde_json::Value;

use crate::plugin::{Ended, run};
use crate::scene::{Scene, names};

/// Prints a methodResponse's only value as JSON.
const PARSER: &str = "import json, sys, xmlrpc.client as x; print(json.dumps(x.loads(sys.stdin.buffer.read())[0]))";

fn call(scene: &Scene, name: &str, xml: &[u8]) -> Value {
    let answer = answer(scene, name, xml);
    assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""), "{answer:?}");
    let parsed = run(Command::new("python3").args(["-c", PARSER]), answer.stdout.as_bytes());
    assert_eq!(parsed.code, Some(0), "{}: {}", answer.stdout, parsed.stderr);
    let mut values: Vec<Value> = serde_json::from_str(&parsed.stdout).unwrap();
    assert_eq!(values.len(), 1, "{values:?}");
    values.remove(0)
}

fn answer(scene: &Scene, name: &str, xml: &[u8]) -> Ended {
    run(Command::new(scene.extensions().join(name)).arg("--xmlrpc"), xml)
}

fn xml(name: &str, parameters: &[&str]) -> Vec<u8> {
    let all = std::iter::once(&"OpaqueRef:1").chain(parameters);
    let all: String = all.map(|text| format!("<param><value><string>{text}</string></value></param>")).collect();
    format!("<?xml version='1.0'?><methodCall><methodName>{name}</methodName><params>{all}</params></methodCall>")
        .into_bytes()
}

#[track_caller]
fn failure(answer: &Value, code: &str) -> Vec<String> {
    assert_eq!(answer["Status"], "Failure", "{answer}");
    let description: Vec<String> = serde_json::from_value(answer["ErrorDescription"].clone()).unwrap();
    assert_eq!(description[0], code, "{description:?}");
    assert_eq!(answer.as_object().map(serde_json::Map::len), Some(2), "{answer}");
    description
}

#[test]
fn each_is_installed_under_its_name() {
    let scene = Scene::new();
    assert_eq!(names(&scene.extensions()), ["VHD.coalesce", "VHD.set_rate", "VHD.status"]);
    for name in names(&scene.extensions()) {
        let path = scene.extensions().join(&name);
        assert_eq!(path.canonicalize().unwrap(), scene.folder().canonicalize().unwrap().join("sr-plugin"));
    }
}

#[test]
fn status_is_a_string_of_json() {
    let scene = Scene::new();
    for parameters in [&[][..], &[scene.sr.as_str()]] {
        let answer = call(&scene, "VHD.status", &xml("VHD.status", parameters));
        assert_eq!(answer["Status"], "Success", "{answer}");
        let value: Value = serde_json::from_str(answer["Value"].as_str().unwrap()).unwrap();
        assert_eq!(value.as_object().unwrap().keys().collect::<Vec<_>>(), [&scene.sr]);
    }
}

#[test]
fn failures_have_codes() {
    let scene = Scene::new();
    let error = failure(&call(&scene, "VHD.status", &xml("VHD.status", &["&lt;none&gt;"])), "SR_BACKEND_FAILURE");
    assert_eq!(error[1..], ["Sr_not_attached", "<none>"]);
    // There is no worker that could be told.
    failure(&call(&scene, "VHD.coalesce", &xml("VHD.coalesce", &[&scene.sr])), "SR_BACKEND_FAILURE_202");
    for wrong in [&[][..], &["fast"], &["0"], &["-1"], &["a b c"]] {
        failure(&call(&scene, "VHD.set_rate", &xml("VHD.set_rate", wrong)), "SR_BACKEND_FAILURE_143");
    }
}

#[test]
fn what_is_no_call_is_a_failure() {
    let scene = Scene::new();
    let long = "x".repeat(1 << 20);
    let deep = "<a>".repeat(100_000);
    let unknown_entity = xml("VHD.status", &["&unknown;"]);
    let wrong: [&[u8]; 8] =
        [b"", b"hello", b"{}", b"<methodCall>", b"<other/>", long.as_bytes(), deep.as_bytes(), &unknown_entity];
    for wrong in wrong {
        failure(&call(&scene, "VHD.status", wrong), "SR_BACKEND_FAILURE_143");
    }
    assert_eq!(call(&scene, "VHD.status", b"\xff\xfe")["Status"], "Failure");
}

#[test]
fn answers_are_well_formed_whatever_they_repeat() {
    let scene = Scene::new();
    for strange in ["&#1;", "&#27;[31m", "]]&gt;", "&#xFFFE;", "\u{b}", "\u{1f}"] {
        failure(&call(&scene, "VHD.status", &xml("VHD.status", &[strange])), "SR_BACKEND_FAILURE");
    }
}

#[test]
fn other_words_are_wrong_usage() {
    let scene = Scene::new();
    for words in [&[][..], &["--json"], &["--xmlrpc", "more"]] {
        let ended = run(Command::new(scene.extensions().join("VHD.status")).args(words), b"");
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
        assert!(ended.stderr.contains("usage: "), "{ended:?}");
    }
    let help = run(Command::new(scene.extensions().join("VHD.status")).arg("--help"), b"");
    assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""));
    assert!(help.stdout.contains("VHD.status(session"), "{}", help.stdout);
}
