use testkit::golden;

use crate::program::{done, ended, json_ended, refused};

#[test]
fn the_exit_code_is_by_severity() {
    for (name, code, finding) in [
        ("base.vhd", 0, None),
        ("footer-511.vhd", 3, Some("footer-511")),
        ("torn-batmap.vhd", 3, Some("batmap-checksum")),
        ("no-first-footer.vhd", 3, Some("footer-copy-lost")),
        ("no-end-footer.vhd", 4, Some("footer-end-lost")),
        ("overlapping-blocks.vhd", 4, Some("block-overlap")),
        ("bat-beyond-eof.vhd", 4, Some("bat-entry")),
        ("poisoned.vhd", 4, Some("resize-unfinished")),
    ] {
        let folder = golden::unpack(&[name]);
        let checked = json_ended(folder.path(), &["check", name], code);
        let findings = checked["files"][0]["findings"].as_array().unwrap();
        match finding {
            None => assert_eq!(findings.len(), 0, "{name}: {checked}"),
            Some(code) => assert!(findings.iter().any(|finding| finding["code"] == code), "{name}: {checked}"),
        }
    }
}

#[test]
fn a_finding_has_severity_offset_code_and_meaning() {
    let folder = golden::unpack(&["overlapping-blocks.vhd"]);
    let checked = json_ended(folder.path(), &["check", "overlapping-blocks.vhd"], 4);
    let finding = &checked["files"][0]["findings"][0];
    assert_eq!(finding["severity"], "error");
    assert_eq!(finding["offset"], 29_421_056);
    assert!(finding["meaning"].as_str().unwrap().contains("blocks 1 and 3"));
    assert_eq!(checked["worst"], "error");
    let (text, _) = ended(folder.path(), &["check", "overlapping-blocks.vhd"], 4);
    assert!(text.starts_with("overlapping-blocks.vhd: error at offset 29421056: "), "{text}");
    let (finding, remedy) = text.split_once('\n').unwrap();
    assert!(finding.ends_with("[block-overlap]") && remedy.starts_with("  `vhd-tool repair`"), "{text}");
    assert!(text.contains(checked["files"][0]["findings"][0]["remedy"].as_str().unwrap()));
}

#[test]
fn chain_checks_every_parent() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    assert_eq!(done(folder.path(), &["check", "leaf.vhd", "--chain"]).matches("nothing found").count(), 3);
    let damaged = golden::bytes("torn-batmap.vhd");
    std::fs::write(folder.path().join("base.vhd"), damaged).unwrap();
    done(folder.path(), &["check", "leaf.vhd"]);
    let checked = json_ended(folder.path(), &["check", "leaf.vhd", "--chain"], 3);
    assert!(checked["files"][2]["file"].as_str().unwrap().ends_with("base.vhd"));
    assert_eq!(checked["files"][2]["findings"][0]["code"], "batmap-checksum");
}

#[test]
fn a_missing_parent_is_an_error() {
    let folder = golden::unpack(&["leaf.vhd"]);
    let checked = json_ended(folder.path(), &["check", "leaf.vhd"], 4);
    assert_eq!(checked["files"][0]["findings"][0]["code"], "parent-missing");
}

#[test]
fn what_is_no_image_has_one_error() {
    let folder = golden::unpack(&["raw-parent.img"]);
    let checked = json_ended(folder.path(), &["check", "raw-parent.img"], 4);
    assert_eq!(checked["files"][0]["findings"][0]["code"], "footer-lost");
    refused(folder.path(), &["check", "nowhere.vhd"], 5, &["nowhere.vhd"]);
}

#[test]
fn deep_reads_the_data_and_compares_times() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd"]);
    assert!(done(folder.path(), &["check", "mid.vhd"]).contains("nothing found"));
    let deep = json_ended(folder.path(), &["check", "mid.vhd", "--deep"], 0);
    assert_eq!(deep["files"][0]["findings"][0]["code"], "parent-modified", "it was unpacked just now");
}
