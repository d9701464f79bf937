use std::fs;

use testkit::golden;

use crate::program::{done, ended, json, json_ended, refused, write};

#[test]
fn the_same_disk_in_two_forms_is_equal() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    done(folder.path(), &["convert", "leaf.vhd", "leaf.img", "--to", "raw"]);
    assert_eq!(done(folder.path(), &["compare", "leaf.vhd", "leaf.img"]), "leaf.vhd and leaf.img are equal\n");
    assert_eq!(json(folder.path(), &["compare", "leaf.img", "leaf.vhd"])["equal"], true);
}

#[test]
fn the_first_difference_is_found_to_the_byte() {
    let folder = golden::unpack(&["base.vhd"]);
    fs::copy(folder.path().join("base.vhd"), folder.path().join("copy.vhd")).unwrap();
    let byte = command_byte(folder.path(), 40_000_123);
    write(folder.path(), "copy.vhd", 60_000_000, b"later");
    write(folder.path(), "copy.vhd", 40_000_123, &[byte ^ 0xff]);
    for args in [["compare", "base.vhd", "copy.vhd"], ["compare", "copy.vhd", "base.vhd"]] {
        let compared = json_ended(folder.path(), &args, 1);
        assert_eq!(compared["equal"], false);
        assert_eq!(compared["difference"]["kind"], "content");
        assert_eq!(compared["difference"]["offset"], 40_000_123);
    }
    let (text, _) = ended(folder.path(), &["compare", "base.vhd", "copy.vhd"], 1);
    assert!(text.starts_with("base.vhd and copy.vhd differ at byte 40000123: "), "{text}");
}

fn command_byte(folder: &std::path::Path, offset: u64) -> u8 {
    let offset = offset.to_string();
    let args = ["read", "base.vhd", "--offset", &offset, "--length", "1"];
    crate::program::command(folder, &args).assert().success().get_output().stdout[0]
}

#[test]
fn data_against_a_hole_differs_and_zeros_against_a_hole_do_not() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.vhd", "b.vhd"] {
        done(folder.path(), &["create", name, "--size", "16M"]);
    }
    write(folder.path(), "b.vhd", 5_000_000, &[0; 100_000]);
    done(folder.path(), &["compare", "a.vhd", "b.vhd"]);
    write(folder.path(), "b.vhd", 9_999_999, b"x");
    assert_eq!(json_ended(folder.path(), &["compare", "a.vhd", "b.vhd"], 1)["difference"]["offset"], 9_999_999);
}

#[test]
fn of_disks_of_different_size_the_common_part_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), &["create", "a.vhd", "--size", "16M"]);
    done(folder.path(), &["create", "b.vhd", "--size", "20M"]);
    write(folder.path(), "b.vhd", 17 << 20, b"beyond the end of a");
    let compared = json_ended(folder.path(), &["compare", "a.vhd", "b.vhd"], 1);
    assert_eq!(compared["difference"]["kind"], "size");
    assert_eq!(compared["sizes"], serde_json::json!([16 << 20, 20 << 20]));
    let (text, _) = ended(folder.path(), &["compare", "a.vhd", "b.vhd"], 1);
    assert_eq!(text, "a.vhd has 16777216 bytes and b.vhd 20971520; what both have is equal\n");
    write(folder.path(), "a.vhd", 3, b"x");
    assert_eq!(json_ended(folder.path(), &["compare", "a.vhd", "b.vhd"], 1)["difference"]["offset"], 3);
}

#[test]
fn failure_is_neither_equal_nor_different() {
    let folder = golden::unpack(&["fixed-4m.vhd", "leaf.vhd"]);
    refused(folder.path(), &["compare", "fixed-4m.vhd", "nowhere.img"], 5, &["nowhere.img"]);
    refused(folder.path(), &["compare", "fixed-4m.vhd", "leaf.vhd"], 5, &["leaf.vhd", "mid.vhd"]);
    refused(folder.path(), &["compare", "fixed-4m.vhd"], 2, &["<B>"]);
}
