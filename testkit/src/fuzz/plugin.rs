//! Calls of the storage plugin.

use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::Value;
use sr_plugin::host::{Attached, Host, Settings};
use sr_plugin::interface;
use sr_plugin::method::Method;
use vhd_core::Uuid;

use super::journal;
use super::place::Place;

/// The repository that is attached.
pub(super) const SR: Uuid = Uuid::from_u128(0xa);
/// The most calls of an input.
const MOST_CALLS: usize = 8;
/// The largest disk: under a sanitizer, several with as many blocks as there can be take longer than an input may.
const LARGEST: i64 = 64 << 30;
/// What the plugin would accept.
const MADE: RangeInclusive<i64> = LARGEST..=2040 << 30;

/// Calls the plugin: each line is the name of a method and its arguments, as one JSON object or as words. `$0`, `$1`… stand
/// for the keys of the volumes that calls have made. A repository with a chain of three images is attached.
///
/// Configurations lead to folders inside, whatever they say, and to no device; disks are of at most 64 GiB.
///
/// # Panics
/// Where a call does, or anything outside the repositories changes.
pub fn plugin(data: &[u8]) {
    let place = Place::new(&[]);
    let (root, folder) = (place.root(), place.inside().join("sr"));
    fs::create_dir(&folder).expect("the folder is ours");
    journal::furnish(&folder);
    // Outside is one folder higher up than where a repository of its own would be.
    fs::remove_file(folder.join("out")).expect("it is there");
    let state = root.join("state");
    let settings = Settings { worker_socket: state.join("nobody"), state, worker: None };
    let host = Host { settings };
    let attached = Attached { folder, mounted: None, mount: None, configuration: BTreeMap::new() };
    host.attach(SR, &attached).expect("the folder is ours");
    let mut keys: Vec<String> = Vec::new();
    for line in data.split(|&byte| byte == b'\n').take(MOST_CALLS) {
        let name = line.iter().position(|&byte| byte == b' ').unwrap_or(line.len());
        let (name, rest) = line.split_at(name);
        let Some(method) = std::str::from_utf8(name).ok().and_then(interface::method) else { continue };
        if let Some(answer) = call(&host, method, &with_keys(rest, &keys), &place.inside()) {
            keys.extend(answer.get("key").and_then(Value::as_str).map(str::to_owned));
        }
    }
    place.check();
}

/// Reads the arguments in either form, and calls the method where they are good.
fn call(host: &Host, method: &Method, rest: &[u8], inside: &Path) -> Option<Value> {
    let arguments = if rest.trim_ascii_start().starts_with(b"{") {
        let confined = match serde_json::from_slice::<Value>(rest) {
            Ok(mut value) => {
                confine(&mut value, inside);
                value.to_string().into_bytes()
            }
            Err(_) => rest.to_vec(),
        };
        method.arguments_of_json(&confined).inspect_err(|failure| drop(failure.to_json())).ok()?
    } else {
        let words = String::from_utf8_lossy(rest);
        let mut words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        for at in 1..words.len() {
            if let Some(confined) = confined(&words[at - 1], &words[at], inside) {
                words[at] = confined;
            }
        }
        for word in &mut words {
            if word.parse::<i64>().is_ok_and(|number| MADE.contains(&number)) {
                *word = LARGEST.to_string();
            }
        }
        let _ = (method.usage(), method.help());
        method.arguments_of_words(&words).ok()?
    };
    (method.run)(host, arguments).inspect_err(|failure| drop(failure.to_json())).ok()
}

fn confine(value: &mut Value, inside: &Path) {
    for name in ["size", "new_size"] {
        let size = value.get_mut(name).filter(|size| size.as_i64().is_some_and(|size| MADE.contains(&size)));
        if let Some(size) = size {
            *size = LARGEST.into();
        }
    }
    let Some(configuration) = value.get_mut("configuration").and_then(Value::as_object_mut) else { return };
    for (name, value) in configuration {
        if let Some(confined) = value.as_str().and_then(|text| confined(name, text, inside)) {
            *value = confined.into();
        }
    }
}

/// What a member of a configuration is to be, that it leads to a folder inside; `None` where it may stay.
fn confined(name: &str, text: &str, inside: &Path) -> Option<String> {
    match name {
        "uri" if text.starts_with("file://") => {
            let last = text.rsplit('/').next().unwrap_or_default();
            let last: String = last.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
            Some(format!("file://{}/{last}", inside.display()))
        }
        "device" => Some("no-device".into()),
        _ => None,
    }
}

/// Puts keys in the place of `$0` to `$9`.
fn with_keys(text: &[u8], keys: &[String]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        let key = tail.first().filter(|digit| *first == b'$' && digit.is_ascii_digit());
        match key.and_then(|digit| keys.get(usize::from(digit - b'0'))) {
            Some(key) => {
                bytes.extend(key.as_bytes());
                rest = &tail[1..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}
