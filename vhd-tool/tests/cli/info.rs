use testkit::golden;

use crate::program::{done, json, refused};

#[test]
fn a_child_tells_all_that_it_records() {
    let folder = golden::unpack(&["leaf.vhd"]);
    let info = json(folder.path(), &["info", "leaf.vhd"]);
    for (name, value) in [
        ("type", "differencing".into()),
        ("size", (64_u64 << 20).into()),
        ("file_length", 42_029_568_u64.into()),
        ("uuid", "9a497c34-2427-4976-88d6-6dc7a47cd64f".into()),
        ("timestamp", "2026-11-22T01:21:00Z".into()),
        ("hidden", false.into()),
        ("saved_state", false.into()),
        ("footer", "at the end".into()),
        ("block_size", (2 << 20).into()),
        ("bat_entries", 32.into()),
        ("allocated_blocks", 20.into()),
        ("bad_blocks", 0.into()),
    ] {
        let value: serde_json::Value = value;
        assert_eq!(info[name], value, "{name}");
    }
    assert_eq!(info["creator"]["application"], "tap");
    assert_eq!(info["creator"]["version"], "0x00010003");
    assert_eq!(info["geometry"]["cylinders"], 963);
    assert_eq!(info["batmap"]["state"], "present");
    assert_eq!(info["parent"]["name"], "mid.vhd");
    assert_eq!(info["parent"]["uuid"], "3222b98e-d11f-47cb-b3a8-4a73e5ff7caa");
    let locators = info["parent"]["locators"].as_array().unwrap();
    let texts: Vec<_> = locators.iter().map(|locator| (&locator["code"], &locator["text"])).collect();
    assert_eq!(
        texts,
        [
            (&"MacX".into(), &"file://./mid.vhd".into()),
            (&"W2ku".into(), &".\\mid.vhd".into()),
            (&"W2ru".into(), &".\\mid.vhd".into()),
        ]
    );
}

#[test]
fn marker_key_hash_and_hidden_are_shown() {
    let folder = golden::unpack(&["meta.vhd"]);
    let info = json(folder.path(), &["info", "meta.vhd"]);
    assert_eq!(info["hidden"], true);
    assert_eq!(info["batmap"]["marker"], 5);
    assert_eq!(info["batmap"]["key_hash"], true);
    let text = done(folder.path(), &["info", "meta.vhd"]);
    for line in ["  hidden            yes\n", "  marker            5\n", "  key hash          present\n"] {
        assert!(text.contains(line), "{line:?} is not in {text}");
    }
}

#[test]
fn a_fixed_image_has_no_tables() {
    let folder = golden::unpack(&["fixed-4m.vhd"]);
    let info = json(folder.path(), &["info", "fixed-4m.vhd"]);
    assert_eq!(info["type"], "fixed");
    assert!(info["batmap"].is_null() && info["block_size"].is_null() && info["parent"].is_null());
}

#[test]
fn the_origin_of_the_footer_is_shown() {
    let folder = golden::unpack(&["no-end-footer.vhd", "footer-511.vhd"]);
    let footer = |name| json(folder.path(), &["info", name])["footer"].as_str().unwrap().to_owned();
    assert!(footer("no-end-footer.vhd").starts_with("only at the start"));
    assert!(footer("footer-511.vhd").contains("511"));
}

#[test]
fn damage_does_not_hide_the_rest() {
    let folder = golden::unpack(&["bat-beyond-eof.vhd", "poisoned.vhd"]);
    assert_eq!(json(folder.path(), &["info", "bat-beyond-eof.vhd"])["bad_blocks"], 1);
    assert_eq!(json(folder.path(), &["info", "poisoned.vhd"])["resize_unfinished"], true);
    assert_eq!(json(folder.path(), &["info", "poisoned.vhd", "--chain"])[0]["resize_unfinished"], true);
}

#[test]
fn a_chain_is_listed_from_the_top() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd", "on-raw.vhd", "raw-parent.img"]);
    let kinds = |name: &str| {
        let layers = json(folder.path(), &["info", name, "--chain"]);
        let layers = layers.as_array().unwrap().clone();
        layers.iter().map(|layer| layer["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(kinds("leaf.vhd"), ["differencing", "differencing", "dynamic"]);
    assert_eq!(kinds("on-raw.vhd"), ["differencing", "raw"]);
    let text = done(folder.path(), &["info", "on-raw.vhd", "--chain"]);
    assert!(text.contains("(a raw disk)"), "{text}");
}

#[test]
fn a_missing_parent_is_an_error_only_with_chain() {
    let folder = golden::unpack(&["leaf.vhd"]);
    done(folder.path(), &["info", "leaf.vhd"]);
    let parts = ["leaf.vhd: its parent cannot be used", "mid.vhd", "hint: "];
    refused(folder.path(), &["info", "leaf.vhd", "--chain"], 5, &parts);
}

#[test]
fn what_is_no_image_is_an_error_with_file_and_offset() {
    let folder = golden::unpack(&["raw-parent.img"]);
    refused(folder.path(), &["info", "raw-parent.img"], 5, &["raw-parent.img: not a VHD", "offset 4999680", "hint: "]);
    refused(folder.path(), &["info", "nowhere.vhd"], 5, &["nowhere.vhd: cannot open", "No such file"]);
}
