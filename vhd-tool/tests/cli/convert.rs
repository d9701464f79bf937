use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};

use testkit::golden;

use crate::program::{done, expected, files, guest, json, names, refused, space};

#[test]
fn a_chain_is_flattened_into_each_kind() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    for to in ["raw", "dynamic", "fixed"] {
        let name = format!("new-{to}.img");
        done(folder.path(), &["convert", "leaf.vhd", &name, "--to", to]);
        let hash = match to {
            "raw" => testkit::sha256(&fs::read(folder.path().join(&name)).unwrap()),
            _ => guest(folder.path(), &name),
        };
        assert_eq!(hash, expected("leaf.vhd"), "{to}");
        let info = (to != "raw").then(|| json(folder.path(), &["info", &name]));
        assert!(info.is_none_or(|info| info["type"] == to), "{to}");
        // The disk has 64 MiB, most of it zeros.
        let space = space(&folder.path().join(&name));
        assert!(space < 13 << 20, "{to}: {space}");
    }
}

#[test]
fn a_raw_disk_comes_back_the_same() {
    let folder = golden::unpack(&["raw-parent.img"]);
    done(folder.path(), &["convert", "raw-parent.img", "a.vhd", "--to", "dynamic"]);
    done(folder.path(), &["convert", "a.vhd", "b.img", "--to", "raw"]);
    let files = files(folder.path());
    assert_eq!(files["b.img"], files["raw-parent.img"]);
}

#[test]
fn a_raw_disk_that_ends_within_a_sector_is_padded() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("odd.img"), [7; 1000]).unwrap();
    done(folder.path(), &["convert", "odd.img", "a.vhd", "--to", "dynamic"]);
    done(folder.path(), &["convert", "a.vhd", "b.img", "--to", "raw"]);
    let mut padded = vec![7; 1000];
    padded.resize(1024, 0);
    assert_eq!(fs::read(folder.path().join("b.img")).unwrap(), padded);
}

#[test]
fn holes_and_zeros_take_no_space() {
    let folder = tempfile::tempdir().unwrap();
    let mut raw = File::create(folder.path().join("disk.img")).unwrap();
    raw.set_len(1 << 40).unwrap();
    raw.write_all(&vec![0; 3 << 20]).unwrap();
    raw.seek(SeekFrom::Start(500 << 30)).unwrap();
    raw.write_all(&[9; 512]).unwrap();
    let made = json(folder.path(), &["convert", "disk.img", "disk.vhd", "--to", "dynamic"]);
    assert_eq!((&made["size"], &made["data"]), (&(1_u64 << 40).into(), &4096.into()));
    assert_eq!(json(folder.path(), &["info", "disk.vhd"])["allocated_blocks"], 1);
    done(folder.path(), &["convert", "disk.vhd", "back.img", "--to", "raw"]);
    assert!(space(&folder.path().join("back.img")) <= 64 << 10);
    done(folder.path(), &["compare", "disk.img", "back.img"]);
}

#[test]
fn an_existing_file_is_replaced_only_with_force() {
    let folder = golden::unpack(&["fixed-4m.vhd", "empty-10m.vhd"]);
    let before = files(folder.path());
    let convert = ["convert", "fixed-4m.vhd", "empty-10m.vhd", "--to", "dynamic"];
    refused(folder.path(), &convert, 5, &["empty-10m.vhd: exists already", "hint: --force"]);
    assert_eq!(files(folder.path()), before);
    done(folder.path(), &[&convert[..], &["--force"]].concat());
    assert_eq!(guest(folder.path(), "empty-10m.vhd"), expected("fixed-4m.vhd"));
}

#[test]
fn the_source_and_its_parents_are_never_replaced() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd"]);
    let before = files(folder.path());
    for name in ["mid.vhd", "base.vhd", "./base.vhd"] {
        refused(folder.path(), &["convert", "mid.vhd", name, "--to", "raw", "--force"], 5, &["would be replaced"]);
    }
    assert_eq!(files(folder.path()), before);
}

#[test]
fn a_file_named_vhd_is_never_taken_for_a_raw_disk() {
    let folder = golden::unpack(&["raw-parent.img"]);
    fs::rename(folder.path().join("raw-parent.img"), folder.path().join("lost.vhd")).unwrap();
    refused(folder.path(), &["convert", "lost.vhd", "x.img", "--to", "raw"], 5, &["lost.vhd: not a VHD", "hint: "]);
    assert_eq!(names(folder.path()), ["lost.vhd"]);
}

#[test]
fn a_footer_that_has_changed_is_damage_and_no_raw_disk() {
    let folder = golden::unpack(&["fixed-4m.vhd"]);
    let mut bytes = fs::read(folder.path().join("fixed-4m.vhd")).unwrap();
    let at = bytes.len() - 400;
    bytes[at] ^= 1;
    fs::write(folder.path().join("disk.img"), bytes).unwrap();
    refused(folder.path(), &["convert", "disk.img", "x.img", "--to", "raw"], 5, &["disk.img", "checksum"]);
}

#[test]
fn a_failure_leaves_nothing_behind() {
    let folder = golden::unpack(&["bat-beyond-eof.vhd"]);
    refused(folder.path(), &["convert", "bat-beyond-eof.vhd", "x.img", "--to", "raw"], 5, &["block 31", "offset"]);
    assert_eq!(names(folder.path()), ["bat-beyond-eof.vhd"]);
}
