//! What comes on standard input, and what leaves on standard output.

use serde_json::json;

use crate::contract::METHODS;
use crate::plugin::{Plugin, run};
use crate::scene::Scene;

#[test]
fn white_space_around_the_arguments_is_no_matter() {
    let plugin = Plugin::install();
    for text in ["{\"dbg\":\"d\"}", "{\"dbg\":\"d\"}\n", " \r\n\t{ \"dbg\" :\n\"d\" }\n\n "] {
        plugin.json_bytes("Plugin.ls", text.as_bytes()).result("Plugin.ls");
    }
    run(&mut plugin.command("Plugin.ls", &["-j"]), b"{\"dbg\":\"d\"}").result("Plugin.ls");
}

#[test]
fn what_is_no_object_is_an_error() {
    let plugin = Plugin::install();
    let wrong: [&[u8]; 14] = [
        b"",
        b" \n",
        b"hello",
        b"{",
        b"{\"dbg\":\"d\"",
        b"{\"dbg\":\"d\",}",
        b"{'dbg':'d'}",
        b"[]",
        b"null",
        b"\"dbg\"",
        b"{\"dbg\":\"d\"}{\"dbg\":\"d\"}",
        b"{\"dbg\":\"d\"} x",
        b"{\"dbg\":\"\xff\"}",
        b"\0",
    ];
    for input in wrong {
        let (code, _) = plugin.json_bytes("Plugin.ls", input).error();
        assert_eq!(code, "SR_BACKEND_FAILURE_143", "{:?}", String::from_utf8_lossy(input));
    }
}

#[test]
fn deep_input_is_an_error_and_no_overflow() {
    let plugin = Plugin::install();
    for opening in ["[", "{\"a\":"] {
        let input = format!("{{\"dbg\":\"d\",\"x\":{}", opening.repeat(200_000));
        plugin.json_bytes("Plugin.ls", input.as_bytes()).error();
    }
}

#[test]
fn all_input_is_read_however_long() {
    let scene = Scene::new();
    let long = "x".repeat(1 << 20);
    scene.done("Plugin.ls", &json!({ "dbg": "d", "unknown": long }));
    scene.done("Plugin.ls", &json!({ "dbg": long }));
    // Refused, but read: whoever writes must not be killed.
    scene.json_bytes("Plugin.ls", long.as_bytes()).error();
    scene.refused("SR.stat", &json!({ "dbg": "d", "sr": "none", "unknown": long }));
    scene.json_bytes("SR.stat", &vec![0xff; 1 << 20]).error();
    let volume = scene.volume();
    scene.done("Volume.set_description", &scene.about(&volume, &json!({ "new_description": long })));
    assert_eq!(scene.call("Volume.stat", &volume)["description"], long);
}

#[test]
fn strings_go_in_and_out_as_they_are() {
    let scene = Scene::new();
    let volume = scene.volume();
    for text in ["", " ", "\0", "a\nb", "\"quoted\"", "\\", "naïve 盘 🖴", "--name", "\u{7f}\u{1}"] {
        scene.done("Volume.set_name", &scene.about(&volume, &json!({ "new_name": text })));
        assert_eq!(scene.call("Volume.stat", &volume)["name"], text, "{text:?}");
        let (_, parameters) = scene.refused("SR.stat", &json!({ "dbg": text, "sr": text }));
        assert_eq!(parameters, ["Sr_not_attached", text]);
    }
}

#[test]
fn errors_are_objects_for_every_method() {
    let plugin = Plugin::install();
    for method in METHODS {
        plugin.json_bytes(method.name, b"").error();
        plugin.json_bytes(method.name, b"{}").error();
    }
}
