//! Journals: of each operation, about images of the repository and about what lies outside; and one that a merge has
//! written.

use std::fs;

use coalesce_worker::{Abort, Budget, Coalesce, CopyMethod, Direction, MergeOptions, Repository, Request};
use vhd_core::ChainOptions;

use super::Seed;
use crate::fuzz::journal::furnish;
use crate::fuzz::place::Place;

/// A path that leads outside.
const PATHS: [(&str, &str); 4] = [
    ("up", "../outside/outside.vhd"),
    ("link", "link.vhd"),
    ("folder-link", "out/outside.vhd"),
    ("secret", "../outside/secret.img"),
];

pub(super) fn journals() -> Vec<Seed> {
    let mut found: Vec<(String, Vec<u8>)> = Vec::new();
    let inside = |name: &str, text: String| (name.to_owned(), text.into_bytes());
    found.extend([
        inside("snapshot", snapshot("leaf.vhd", "s.vhd", "0b.vhd", ".vhd/new.vhd", ".vhd/twin.vhd")),
        inside("snapshot-done", snapshot(".vhd/new.vhd", "s.vhd", "leaf.vhd", "gone", ".vhd/twin.vhd")),
        inside("delete", delete("base.vhd", 1)),
        inside("resize", resize("leaf.vhd", 3)),
        inside("revert", revert("leaf.vhd", "mid.vhd", ".vhd/new.vhd")),
        inside("compose", compose("leaf.vhd", "mid.vhd")),
        inside("merge-down", merge("down", "base.vhd", 1, "mid.vhd", 2)),
        inside("merge-up", merge("up", "leaf.vhd", 3, "mid.vhd", 2)),
        inside("merged", merge("down", "base.vhd", 1, "mid.vhd", 2) + "\n{\"record\":\"merged\"}"),
        inside(
            "merge-begun",
            merge("down", "base.vhd", 1, "mid.vhd", 2)
                + "\n{\"record\":\"checkpoint\",\"sector\":18446744073709551615}",
        ),
        inside("linked", linked("base.vhd", 1, "leaf.vhd")),
        inside("foreign", "{\"record\":\"of a later version\"}".into()),
        inside("no-journal", "no journal".into()),
    ]);
    for (how, path) in PATHS {
        let outside = [
            ("snapshot", snapshot("leaf.vhd", "s.vhd", "0b.vhd", path, path)),
            ("snapshot-base", snapshot(".vhd/new.vhd", path, path, "gone", ".vhd/twin.vhd")),
            ("delete", delete(path, 6)),
            ("resize", resize(path, 6)),
            ("revert", revert("leaf.vhd", path, path)),
            ("compose", compose("leaf.vhd", path)),
            ("merge", merge("down", path, 6, "mid.vhd", 2) + "\n{\"record\":\"merged\"}"),
            ("linked", linked(path, 6, "leaf.vhd")),
            ("header", merge("down", "base.vhd", 1, "mid.vhd", 2) + "\n{\"record\":\"merged\"}\n" + &header(path)),
        ];
        found.extend(outside.map(|(name, text)| (format!("{name}-{how}"), text.into_bytes())));
    }
    found.push(("of-a-merge".into(), of_a_merge()));
    found.into_iter().map(|(name, bytes)| ("journal", name, bytes)).collect()
}

fn id(number: u128) -> String {
    vhd_core::Uuid::from_u128(number).to_string()
}

fn file(path: &str, number: u128) -> String {
    format!(r#"{{"path":"{path}","unique_id":"{}"}}"#, id(number))
}

fn snapshot(volume: &str, snapshot: &str, base: &str, prepared: &str, twin: &str) -> String {
    format!(
        r#"{{"record":"snapshot","volume":"{volume}","snapshot":"{snapshot}","base":"{base}","new_volume_id":"{}","prepared_volume":"{prepared}","prepared_snapshot":"{twin}"}}"#,
        id(4)
    )
}

fn delete(path: &str, number: u128) -> String {
    format!(r#"{{"record":"delete","path":"{path}","unique_id":"{}"}}"#, id(number))
}

fn resize(path: &str, number: u128) -> String {
    format!(r#"{{"record":"resize","file":{},"length":4096}}"#, file(path, number))
}

fn revert(volume: &str, displaced: &str, prepared: &str) -> String {
    format!(r#"{{"record":"revert","volume":"{volume}","displaced":"{displaced}","prepared":"{prepared}"}}"#)
}

fn compose(child: &str, parent: &str) -> String {
    let (child, parent) = (file(child, 3), file(parent, 6));
    format!(r#"{{"record":"compose","child":{child},"becomes":"{}","parent":{parent}}}"#, id(9))
}

fn merge(direction: &str, target: &str, of: u128, source: &str, from: u128) -> String {
    let (target, source) = (file(target, of), file(source, from));
    format!(
        r#"{{"record":"merge","direction":"{direction}","keep":false,"target":{target},"target_length":8192,"target_hidden":true,"sources":[{source}],"node_is_volume":false,"volume":null,"beneath":null}}"#
    )
}

fn linked(path: &str, number: u128, reader: &str) -> String {
    format!(r#"{{"record":"linked","obsolete":[{}],"readers":["{reader}"]}}"#, file(path, number))
}

fn header(path: &str) -> String {
    let bytes = |byte: &str| vec![byte; 1024].join(",");
    format!(r#"{{"record":"header","image":"{path}","at":512,"old":[{}],"new":[{}]}}"#, bytes("1"), bytes("2"))
}

/// What a merge has written by the time that all data has moved.
fn of_a_merge() -> Vec<u8> {
    let place = Place::new(&[]);
    let folder = place.inside();
    furnish(&folder);
    let (repository, _) = Repository::open(&folder, ChainOptions::default()).expect("the repository opens");
    let request = Request { node: folder.join("mid.vhd"), into: None, direction: Direction::Down, keep: false };
    let journal = std::sync::Mutex::new(Vec::new());
    let merged = || {
        let state = fs::read_dir(folder.join(".vhd")).expect("it is there").flatten().map(|entry| entry.path());
        let path = state.into_iter().find(|path| path.extension().is_some_and(|it| it == "journal"));
        *journal.lock().expect("nobody panics") = fs::read(path.expect("there is one")).expect("it is readable");
    };
    let (budget, abort) = (Budget::default(), Abort::new());
    let options = MergeOptions {
        threads: None,
        progress: &|_| {},
        merged: &merged,
        budget: &budget,
        abort: &abort,
        method: CopyMethod::Auto,
        detect_zeroes: false,
        checkpoint_every: None,
    };
    let prepared = Coalesce::prepare(&repository, &request).expect("the chain can be merged");
    prepared.execute(&options).expect("the chain can be merged");
    journal.into_inner().expect("nobody panics")
}
