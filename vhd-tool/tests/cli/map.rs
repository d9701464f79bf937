use std::fs;

use testkit::golden;

use crate::program::{done, expected, json, refused};

#[test]
fn the_extents_lead_to_the_content_of_the_disk() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let map = json(folder.path(), &["map", "leaf.vhd"]);
    let mut disk = Vec::new();
    let mut layers = Vec::new();
    for extent in map.as_array().unwrap() {
        assert_eq!(extent["start"], disk.len());
        let length = extent["length"].as_u64().unwrap() as usize;
        if extent["kind"] == "zero" {
            assert!(extent["file"].is_null());
            disk.resize(disk.len() + length, 0);
            continue;
        }
        assert_eq!(extent["kind"], "data");
        layers.push(extent["layer"].as_u64().unwrap());
        let file = fs::read(folder.path().join(extent["file"].as_str().unwrap())).unwrap();
        let at = extent["offset"].as_u64().unwrap() as usize;
        disk.extend_from_slice(&file[at..at + length]);
    }
    assert_eq!(testkit::sha256(&disk), expected("leaf.vhd"));
    layers.sort_unstable();
    layers.dedup();
    assert_eq!(layers, [0, 1, 2]);
}

#[test]
fn an_empty_disk_is_one_extent_of_zeros() {
    let folder = golden::unpack(&["max-2040g.vhd"]);
    let map = json(folder.path(), &["map", "max-2040g.vhd"]);
    assert_eq!(map, serde_json::json!([{ "start": 0, "length": 2040_u64 << 30, "kind": "zero" }]));
    let text = done(folder.path(), &["map", "max-2040g.vhd"]);
    assert_eq!(text.lines().count(), 2, "a head and a line: {text}");
    assert!(text.ends_with(" 2190433320960  zero\n"), "{text}");
}

#[test]
fn a_bad_bat_entry_is_an_error_with_its_place() {
    let folder = golden::unpack(&["bat-beyond-eof.vhd"]);
    let output = crate::program::ended(folder.path(), &["map", "bat-beyond-eof.vhd"], 5);
    for part in ["bat-beyond-eof.vhd", "block 31", "offset 1099511496704"] {
        assert!(output.1.contains(part), "{part} is not in {}", output.1);
    }
    refused(folder.path(), &["map"], 2, &["<FILE>"]);
}
