//! The XenAPI extensions: XML-RPC in and out, read by another parser.

use std::process::Command;

use serde_json::{Value, json};

use crate::plugin::run;
use crate::scene::{Scene, names};

/// Reads a list of methodResponses, and prints the only value of each, as JSON.
const PARSER: &str = "import json, sys, xmlrpc.client as x
print(json.dumps([value for text in json.load(sys.stdin) for value in x.loads(text)[0]]))";

/// Makes calls, and reads what they answer.
#[track_caller]
fn calls(scene: &Scene, name: &str, calls: &[Vec<u8>]) -> Vec<Value> {
    let answer = |xml: &Vec<u8>| {
        let answer = run(Command::new(scene.extensions().join(name)).arg("--xmlrpc"), xml);
        assert_eq!((answer.code, answer.stderr.as_str()), (Some(0), ""), "{answer:?}");
        answer.stdout
    };
    let answers: Vec<String> = calls.iter().map(answer).collect();
    let parsed = run(Command::new("python3").args(["-c", PARSER]), json!(answers).to_string().as_bytes());
    assert_eq!(parsed.code, Some(0), "{answers:?}: {}", parsed.stderr);
    let values: Vec<Value> = serde_json::from_str(&parsed.stdout).expect("it is what was asked for");
    assert_eq!(values.len(), calls.len(), "one value each: {values:?}");
    values
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
    let description: Vec<String> =
        serde_json::from_value(answer["ErrorDescription"].clone()).expect("it is what was asked for");
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
    let parameters = [&[][..], &[scene.sr.as_str()]];
    for answer in calls(&scene, "VHD.status", &parameters.map(|parameters| xml("VHD.status", parameters))) {
        assert_eq!(answer["Status"], "Success", "{answer}");
        let value: Value = serde_json::from_str(answer["Value"].as_str().unwrap()).unwrap();
        assert_eq!(value.as_object().unwrap().keys().collect::<Vec<_>>(), [&scene.sr]);
    }
}

#[test]
fn failures_have_codes() {
    let scene = Scene::new();
    let answers = calls(&scene, "VHD.status", &[xml("VHD.status", &["&lt;none&gt;"])]);
    assert_eq!(failure(&answers[0], "SR_BACKEND_FAILURE")[1..], ["Sr_not_attached", "<none>"]);
    // There is no worker that could be told.
    let answers = calls(&scene, "VHD.coalesce", &[xml("VHD.coalesce", &[&scene.sr])]);
    failure(&answers[0], "SR_BACKEND_FAILURE_202");
    let wrong = [&[][..], &["fast"], &["0"], &["-1"], &["a b c"]];
    for answer in calls(&scene, "VHD.set_rate", &wrong.map(|parameters| xml("VHD.set_rate", parameters))) {
        failure(&answer, "SR_BACKEND_FAILURE_143");
    }
}

#[test]
fn what_is_no_call_is_a_failure() {
    let scene = Scene::new();
    let texts = ["", "hello", "{}", "<methodCall>", "<other/>", &"x".repeat(1 << 20), &"<a>".repeat(100_000)];
    let mut wrong: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    wrong.push(xml("VHD.status", &["&unknown;"]));
    for answer in calls(&scene, "VHD.status", &wrong) {
        failure(&answer, "SR_BACKEND_FAILURE_143");
    }
    let answers = calls(&scene, "VHD.status", &[vec![0xff; 1 << 20]]);
    assert_eq!(answers[0]["Status"], "Failure");
}

#[test]
fn answers_are_well_formed_whatever_they_repeat() {
    let scene = Scene::new();
    let strange = ["&#1;", "&#27;[31m", "]]&gt;", "&#xFFFE;", "\u{8}", "a&#127;"];
    for answer in calls(&scene, "VHD.status", &strange.map(|text| xml("VHD.status", &[text]))) {
        failure(&answer, "SR_BACKEND_FAILURE");
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
