use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use crate::program::{done, write};

#[test]
fn clusters_of_a_whole_chain() {
    let folder = tempfile::tempdir().unwrap();
    let of = |args: &[&str]| done(folder.path(), args);
    of(&["create", "base.vhd", "--size", "33M"]);
    assert_eq!(of(&["read_headers", "base.vhd"]), r#"{"virtual_size":34603008,"cluster_bits":21,"data_clusters":[]}"#);
    write(folder.path(), "base.vhd", 0, &[1; 3 << 20]);
    write(folder.path(), "base.vhd", 32 << 20, &[1; 512]);
    of(&["create", "leaf.vhd", "--parent", "base.vhd"]);
    write(folder.path(), "leaf.vhd", 5 << 20, &[1; 512]);
    write(folder.path(), "leaf.vhd", 14 << 20, &[0; 512]);
    assert_eq!(
        of(&["read_headers", "leaf.vhd"]),
        r#"{"virtual_size":34603008,"cluster_bits":21,"data_clusters":[0,1,2,7,16]}"#
    );
    assert_eq!(
        of(&["read_headers_interval", "leaf.vhd"]),
        r#"{"virtual_size":34603008,"cluster_bits":21,"data_clusters":[[0,2],[7,7],[16,16]]}"#
    );
}

#[test]
fn smaller_blocks_are_told_as_clusters_and_raw_parents_by_their_holes() {
    let folder = tempfile::tempdir().unwrap();
    let raw = File::create(folder.path().join("raw.img")).unwrap();
    raw.set_len(20 << 20).unwrap();
    raw.write_all_at(&[1; 4096], 9 << 20).unwrap();
    done(folder.path(), &["create", "small.vhd", "--size", "20M", "--block-size", "512K"]);
    write(folder.path(), "small.vhd", (2 << 20) + (512 << 10), &[1; 512]);
    done(folder.path(), &["create", "child.vhd", "--parent", "raw.img", "--parent-raw"]);
    write(folder.path(), "child.vhd", 0, &[1; 512]);
    let clusters = |file| done(folder.path(), &["read_headers", file]);
    assert_eq!(clusters("small.vhd"), r#"{"virtual_size":20971520,"cluster_bits":21,"data_clusters":[1]}"#);
    assert_eq!(clusters("child.vhd"), r#"{"virtual_size":20971520,"cluster_bits":21,"data_clusters":[0,4]}"#);
}

/// The example that the format of the answer is known by.
#[test]
fn what_qemu_converts_is_read_as_xapi_expects() {
    let folder = tempfile::tempdir().unwrap();
    let raw = File::create(folder.path().join("test.raw")).unwrap();
    raw.write_all_at(&vec![7; 6 << 20], 0).unwrap();
    raw.write_all_at(&vec![7; 6 << 20], 26 << 20).unwrap();
    let args = ["convert", "-f", "raw", "-O", "vpc", "test.raw", "test.vhd"];
    assert!(Command::new("qemu-img").args(args).current_dir(folder.path()).status().unwrap().success());
    assert_eq!(
        done(folder.path(), &["read_headers_interval", "test.vhd"]),
        r#"{"virtual_size":33562624,"cluster_bits":21,"data_clusters":[[0,2],[13,15]]}"#
    );
}
