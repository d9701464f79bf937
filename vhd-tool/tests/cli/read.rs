use std::io::Read;
use std::process::Stdio;

use testkit::golden;

use crate::program::{command, expected, refused};

fn bytes(folder: &std::path::Path, args: &[&str]) -> Vec<u8> {
    command(folder, args).assert().success().get_output().stdout.clone()
}

#[test]
fn whole_disks_read_as_the_manifest_says() {
    for name in ["base.vhd", "leaf.vhd", "sibling.vhd", "on-raw.vhd", "fixed-4m.vhd", "prealloc.vhd", "meta.vhd"] {
        let chain = golden::chain_of(name);
        let folder = golden::unpack(&chain.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(testkit::sha256(&bytes(folder.path(), &["read", name])), expected(name), "{name}");
    }
}

#[test]
fn any_range_of_bytes_is_the_part_of_the_whole() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let whole = bytes(folder.path(), &["read", "leaf.vhd"]);
    // Around a block's end (2 MiB), inside one sector, across many pieces.
    for (offset, length) in [(2_096_639, 1027), (1, 1), (511, 2), (700_001, 3_000_000), (0, 0), (67_108_863, 1)] {
        let (from, count) = (offset.to_string(), length.to_string());
        let part = bytes(folder.path(), &["read", "leaf.vhd", "--offset", &from, "--length", &count]);
        assert!(part == whole[offset..offset + length], "{length} bytes at {offset}");
    }
}

#[test]
fn reading_ends_with_the_disk() {
    let folder = golden::unpack(&["fixed-4m.vhd"]);
    let tail = bytes(folder.path(), &["read", "fixed-4m.vhd", "--offset", "4194204", "--length", "1G"]);
    assert_eq!(tail.len(), 100);
    assert!(bytes(folder.path(), &["read", "fixed-4m.vhd", "--offset", "4M"]).is_empty());
    let past = ["read", "fixed-4m.vhd", "--offset", "5M"];
    refused(folder.path(), &past, 5, &["fixed-4m.vhd", "5242880", "4194304"]);
}

#[test]
fn an_interrupted_resize_is_not_read() {
    let folder = golden::unpack(&["poisoned.vhd"]);
    refused(folder.path(), &["read", "poisoned.vhd"], 5, &["poisoned.vhd", "resize", "hint: "]);
}

#[test]
fn a_reader_that_leaves_early_is_no_error() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    for args in [&["read", "leaf.vhd"][..], &["map", "leaf.vhd"], &["info", "leaf.vhd"]] {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin!("vhd-tool"));
        command.current_dir(folder.path()).args(args).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut first = [0; 8];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {stderr}");
        assert!(!stderr.contains("panic") && !stderr.contains("error"), "{args:?}: {stderr}");
    }
}
