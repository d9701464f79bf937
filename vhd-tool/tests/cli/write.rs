use testkit::golden;

use crate::program::{command, done, files, refused, write};

fn read(folder: &std::path::Path, name: &str) -> Vec<u8> {
    command(folder, &["read", name]).assert().success().get_output().stdout.clone()
}

#[test]
fn bytes_change_and_nothing_around_them() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let parents = || (files(folder.path())["base.vhd"].clone(), files(folder.path())["mid.vhd"].clone());
    let before = parents();
    let mut model = read(folder.path(), "leaf.vhd");
    // Within one sector, across sectors, across a block, and several pieces long; edges read through the chain.
    for (offset, length) in [(1000, 3), (511, 1026), (2_097_100, 200), (4_000_001, 3_000_000), (67_108_863, 1)] {
        let data: Vec<u8> = (0..length).map(|i| (i * 7 + offset) as u8 | 1).collect();
        write(folder.path(), "leaf.vhd", offset as u64, &data);
        model[offset..offset + length].copy_from_slice(&data);
    }
    assert!(read(folder.path(), "leaf.vhd") == model);
    assert_eq!(parents(), before, "parents are never written");
    assert_eq!(done(folder.path(), &["check", "leaf.vhd"]), "leaf.vhd: nothing found\n");
}

#[test]
fn past_the_end_what_fits_is_written_and_counted() {
    let folder = golden::unpack(&["fixed-4m.vhd"]);
    let assert =
        command(folder.path(), &["write", "fixed-4m.vhd", "--offset", "4194294"]).write_stdin("0123456789X").assert();
    let stderr = String::from_utf8(assert.code(5).get_output().stderr.clone()).unwrap();
    for part in ["fixed-4m.vhd", "ends at 4194304", "10 bytes were written"] {
        assert!(stderr.contains(part), "{part:?} is not in {stderr}");
    }
    assert_eq!(&read(folder.path(), "fixed-4m.vhd")[4_194_294..], b"0123456789");
    // Exactly to the end is no error.
    write(folder.path(), "fixed-4m.vhd", 4_194_294, b"abcdefghij");
    assert_eq!(&read(folder.path(), "fixed-4m.vhd")[4_194_294..], b"abcdefghij");
}

#[test]
fn nothing_is_written_where_nothing_can_be() {
    let folder = golden::unpack(&["fixed-4m.vhd", "overlapping-blocks.vhd", "meta.vhd", "poisoned.vhd", "leaf.vhd"]);
    let before = files(folder.path());
    for (name, offset, part) in [
        ("fixed-4m.vhd", "5M", "past the end"),
        ("overlapping-blocks.vhd", "0", "blocks 1 and 3 overlap at offset 29421056"),
        ("meta.vhd", "0", "hidden base"),
        ("poisoned.vhd", "0", "resize"),
        ("leaf.vhd", "0", "its parent cannot be used"),
    ] {
        refused(folder.path(), &["write", name, "--offset", offset], 5, &[name, part, "hint: "]);
    }
    refused(folder.path(), &["write", "fixed-4m.vhd"], 2, &["--offset"]);
    assert_eq!(files(folder.path()), before);
}

#[test]
fn an_image_in_use_is_refused() {
    let folder = golden::unpack(&["fixed-4m.vhd"]);
    let _open = vhd_core::Image::open_writable(&folder.path().join("fixed-4m.vhd")).unwrap();
    refused(
        folder.path(),
        &["write", "fixed-4m.vhd", "--offset", "0"],
        5,
        &["fixed-4m.vhd", "locked", "hint: another"],
    );
}

#[test]
fn no_input_changes_nothing() {
    let folder = golden::unpack(&["base.vhd"]);
    let before = files(folder.path());
    write(folder.path(), "base.vhd", 100, b"");
    assert_eq!(files(folder.path()), before);
}
