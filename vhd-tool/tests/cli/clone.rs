use testkit::golden;

use crate::program::{done, expected, guest, json, names, refused, write};

#[test]
fn volume_and_clone_go_their_own_ways() {
    let folder = golden::unpack(&["fixed-4m.vhd"]);
    let text = done(folder.path(), &["clone", "fixed-4m.vhd", "copie-é.vhd"]);
    assert!(text.starts_with("clone of fixed-4m.vhd is copie-é.vhd; "), "{text}");
    assert_eq!(names(folder.path()).len(), 3);
    write(folder.path(), "copie-é.vhd", 4096, b"only in the clone");
    assert_eq!(guest(folder.path(), "fixed-4m.vhd"), expected("fixed-4m.vhd"));
    let changed = guest(folder.path(), "copie-é.vhd");
    assert_ne!(changed, expected("fixed-4m.vhd"));
    write(folder.path(), "fixed-4m.vhd", 0, b"only in the volume");
    assert_eq!(guest(folder.path(), "copie-é.vhd"), changed);
}

#[test]
fn json_names_the_base() {
    let folder = golden::unpack(&["fixed-4m.vhd"]);
    let made = json(folder.path(), &["clone", "fixed-4m.vhd", "copy.vhd"]);
    assert_eq!(made["file"], "copy.vhd");
    assert_eq!(guest(folder.path(), made["base"].as_str().unwrap()), expected("fixed-4m.vhd"));
    refused(folder.path(), &["clone", "fixed-4m.vhd", "copy.vhd"], 5, &["copy.vhd: exists already", "another name"]);
}
