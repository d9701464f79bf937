//! Every method by its executable: arguments in any order, more than needed, too few, and of the wrong type.

use serde_json::{Map, Value, json};

use crate::contract::{METHODS, Method, Type};
use crate::scene::Scene;

/// An object with its members in the order that is given.
fn object<'v>(members: impl Iterator<Item = (&'v String, &'v Value)>) -> String {
    let members: Vec<String> = members.map(|(name, value)| format!("{}:{value}", json!(name))).collect();
    format!("{{{}}}", members.join(","))
}

fn valid(of: fn(&Map<String, Value>) -> String) {
    let scene = Scene::new();
    for method in METHODS {
        let arguments = scene.arguments(method);
        scene.json_bytes(method.name, of(&arguments).as_bytes()).result(method.name);
    }
}

#[test]
fn every_method_answers_what_it_must() {
    valid(|arguments| object(arguments.iter()));
}

#[test]
fn members_come_in_any_order() {
    valid(|arguments| object(arguments.iter().rev()));
}

#[test]
fn members_that_nobody_knows_are_ignored() {
    valid(|arguments| {
        let mut arguments = arguments.clone();
        arguments.insert("".into(), json!(null));
        arguments.insert("allow_caching".into(), json!({ "sr": [1.5, null, true], "key": {} }));
        object(arguments.iter())
    });
}

fn refused(scene: &Scene, method: &Method, arguments: &Map<String, Value>, what: &str) {
    let ended = scene.json_bytes(method.name, object(arguments.iter()).as_bytes());
    let (code, parameters) = ended.error();
    assert_eq!(code, "SR_BACKEND_FAILURE_143", "{} with {what}: {parameters:?}", method.name);
    let parameter = what.split(':').next().unwrap_or_default();
    let detail = parameters.last().map(String::as_str).unwrap_or_default();
    assert!(detail.contains(&format!("`{parameter}`")), "{}: {what}: {detail:?} names it", method.name);
}

/// What refusals must have left alone.
fn state(scene: &Scene) -> Vec<Value> {
    let dbg = json!({ "dbg": "test", "sr": scene.sr });
    let mut stat = scene.done("SR.stat", &dbg);
    stat["free_space"] = json!(0);
    vec![stat, scene.done("SR.ls", &dbg), scene.done("Plugin.ls", &dbg)]
}

#[test]
fn each_argument_must_be_there() {
    let scene = Scene::new();
    for method in METHODS {
        let arguments = scene.arguments(method);
        let before = state(&scene);
        for (name, _) in method.all_parameters() {
            let mut arguments = arguments.clone();
            arguments.remove(name);
            refused(&scene, method, &arguments, name);
            // Another name is another name, in whatever case.
            arguments.insert(name.to_uppercase(), json!("x"));
            refused(&scene, method, &arguments, name);
        }
        assert_eq!(state(&scene), before, "{}", method.name);
    }
}

#[test]
fn each_argument_must_be_of_its_type() {
    let texts = [json!(null), json!(1), json!(1.5), json!(true), json!(["x"]), json!({}), json!({ "x": "y" })];
    let integers =
        [json!(null), json!("1"), json!(1.0), json!(1e30), json!(u64::MAX), json!(true), json!([1]), json!({})];
    let booleans = [json!(null), json!("true"), json!(0), json!(1.0), json!([true]), json!({})];
    let maps = [
        json!(null),
        json!("x"),
        json!(1),
        json!(false),
        json!([]),
        json!([["uri", "x"]]),
        json!({ "uri": 1 }),
        json!({ "uri": null }),
        json!({ "uri": ["x"] }),
    ];
    let scene = Scene::new();
    for method in METHODS {
        let arguments = scene.arguments(method);
        let before = state(&scene);
        for (name, kind) in method.all_parameters() {
            let wrong = match kind {
                Type::Text => &texts[..],
                Type::Integer => &integers,
                Type::Boolean => &booleans,
                _ => &maps,
            };
            for value in wrong {
                let mut arguments = arguments.clone();
                arguments.insert(name.into(), value.clone());
                refused(&scene, method, &arguments, &format!("{name}:{value}"));
            }
        }
        assert_eq!(state(&scene), before, "{}", method.name);
    }
}
