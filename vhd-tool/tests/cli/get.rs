use testkit::golden;

use crate::program::{done, ended, json};

#[test]
fn every_field_of_a_child_as_xapis_tool_prints_it() {
    let folder = golden::unpack(&["leaf.vhd"]);
    for (key, value) in [
        ("features", ""),
        ("data-offset", "512"),
        ("time-stamp", "848625660"),
        ("creator-application", "tap\0"),
        ("creator_version", "65539"),
        ("creator-host-os", "Other 0"),
        ("original-size", "67108864"),
        ("current-size", "67108864"),
        ("geometry", "{ cylinders = 963; heads = 8; sectors = 17 }"),
        ("disk-type", "Differencing_hard_disk"),
        ("footer-checksum", "-4044"),
        ("uuid", "9a497c34-2427-4976-88d6-6dc7a47cd64f"),
        ("saved-state", "false"),
        ("table-offset", "1536"),
        ("max-table-entries", "32"),
        ("block-size-sectors-shift", "12"),
        ("header-checksum", "-7801"),
        ("parent_unique_id", "3222b98e-d11f-47cb-b3a8-4a73e5ff7caa"),
        ("parent-time-stamp", "848625660"),
        ("parent-unicode-name", "mid.vhd"),
        ("parent-locator-0", "(MacX 200 200, 16, 0xc00, file://./mid.vhd)"),
        ("parent-locator-7", "(None 0 0, 0, 0x0, )"),
        ("batmap-version", "1.2"),
        ("batmap-offset", "2560"),
        ("batmap-size-in-sectors", "1"),
        ("batmap-checksum", "-1"),
    ] {
        assert_eq!(done(folder.path(), &["get", "leaf.vhd", key]), format!("{value}\n"), "{key}");
    }
    assert_eq!(json(folder.path(), &["get", "leaf.vhd", "current-size"]), "67108864");
}

#[test]
fn an_unknown_key_lists_those_that_the_image_has() {
    let folder = golden::unpack(&["base.vhd", "fixed-4m.vhd"]);
    for key in ["size", "parent-locator-8", "parent-locator-", "batmap"] {
        let (stdout, stderr) = ended(folder.path(), &["get", "base.vhd", key], 124);
        assert_eq!(stdout, "");
        assert!(stderr.contains("Known keys are: features, data-offset, time-stamp,"), "{stderr}");
    }
    let (_, stderr) = ended(folder.path(), &["get", "fixed-4m.vhd", "table-offset"], 124);
    assert!(stderr.contains("uuid, saved-state") && !stderr.contains("table-offset,"), "{stderr}");
    assert_eq!(done(folder.path(), &["get", "fixed-4m.vhd", "data-offset"]), "-1\n");
}
