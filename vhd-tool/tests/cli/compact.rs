use std::fs;
use std::path::Path;

use testkit::golden;
use vhd_core::{ChainOptions, Sector, SectorCount, SectorRange, Volume};

use crate::program::{done, ended, expected, files, guest, json, refused, space, write};

/// A disk of five blocks of 2 MiB, of which the second and third are zeros.
fn holey(folder: &Path, name: &str) {
    done(folder, &["create", name, "--size", "64M"]);
    write(folder, name, 0, &[7; 10 << 20]);
    write(folder, name, 2 << 20, &[0; 2 << 20]);
    zero(folder, name, 4 << 20, 2 << 20);
    write(folder, name, (8 << 20) + 4096, &[0; 1 << 20]);
}

fn zero(folder: &Path, name: &str, at: u64, length: u64) {
    let volume = Volume::open(&folder.join(name), &ChainOptions::default()).expect("the image opens");
    let range = SectorRange::new(Sector(at / 512), SectorCount(length / 512));
    volume.write_zeroes(range).expect("the image can be written");
    volume.close().expect("the image closes");
}

fn length(folder: &Path, name: &str) -> u64 {
    fs::metadata(folder.join(name)).expect("the file is there").len()
}

#[test]
fn a_dry_run_tells_what_would_be_given_back_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    holey(folder.path(), "disk.vhd");
    let before = files(folder.path());
    assert!(!folder.path().join(".vhd").exists(), "nothing here needs a state folder");
    let text = done(folder.path(), &["compact", "disk.vhd", "--dry-run"]);
    for part in
        ["would compact disk.vhd: 6.0 MiB long, before 10.0 MiB", "0 empty blocks, 2 of zeros", "moved: 2 blocks"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let foreseen = json(folder.path(), &["compact", "disk.vhd", "--dry-run"]);
    assert_eq!((&foreseen["zero_blocks"], &foreseen["moved_blocks"]), (&2.into(), &2.into()));
    assert_eq!((&foreseen["holes"], &foreseen["dry_run"]), (&(1 << 20).into(), &true.into()));
    assert!(foreseen["space_after"].is_null() && foreseen["unknown_parents"].is_null());
    assert_eq!(files(folder.path()), before);
    assert!(!folder.path().join(".vhd").exists());
    let done = json(folder.path(), &["compact", "disk.vhd"]);
    for key in ["zero_blocks", "moved_blocks", "released", "holes", "length_before", "length_after", "space_before"] {
        assert_eq!(done[key], foreseen[key], "{key}");
    }
}

#[test]
fn the_disk_stays_and_its_file_becomes_shorter() {
    let folder = tempfile::tempdir().unwrap();
    holey(folder.path(), "disk.vhd");
    let (before, held) = (guest(folder.path(), "disk.vhd"), space(&folder.path().join("disk.vhd")));
    let text = done(folder.path(), &["compact", "disk.vhd"]);
    assert!(text.starts_with("compacted disk.vhd: 6.0 MiB long, before 10.0 MiB\n"), "{text}");
    assert_eq!(guest(folder.path(), "disk.vhd"), before);
    assert_eq!(length(folder.path(), "disk.vhd"), 4096 + 3 * (2 << 20) + 2 * 4096 + 512);
    assert!(held - space(&folder.path().join("disk.vhd")) >= (3 << 20) - (64 << 10));
    done(folder.path(), &["check", "disk.vhd"]);
    let again = json(folder.path(), &["compact", "disk.vhd"]);
    assert_eq!((&again["released"], &again["moved_blocks"]), (&0.into(), &0.into()));
    assert_eq!(again["length_after"], again["length_before"]);
    let (stdout, stderr) = ended(folder.path(), &["compact", "disk.vhd", "--quiet"], 0);
    assert_eq!((stdout.as_str(), stderr.as_str()), ("", ""));
}

#[test]
fn images_of_a_chain_are_compacted_and_read_the_same() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    for name in ["base.vhd", "mid.vhd", "leaf.vhd"] {
        done(folder.path(), &["compact", name]);
        done(folder.path(), &["check", name]);
        for name in ["base.vhd", "mid.vhd", "leaf.vhd"] {
            assert_eq!(guest(folder.path(), name), expected(name), "{name}");
        }
    }
}

#[test]
fn without_its_parents_blocks_of_zeros_stay() {
    let folder = tempfile::tempdir().unwrap();
    holey(folder.path(), "base.vhd");
    done(folder.path(), &["create", "child.vhd", "--parent", "base.vhd"]);
    // Over nothing, and over data.
    write(folder.path(), "child.vhd", 20 << 20, &[0; 4096]);
    write(folder.path(), "child.vhd", 0, &[0; 4096]);
    fs::rename(folder.path().join("base.vhd"), folder.path().join("gone")).unwrap();
    let (_, notes) = ended(folder.path(), &["compact", "child.vhd", "--dry-run"], 0);
    assert!(notes.contains("child.vhd: blocks that hold only zeros stay: ") && notes.contains("base.vhd"), "{notes}");
    let done = json(folder.path(), &["compact", "child.vhd"]);
    assert_eq!(done["zero_blocks"], 0);
    assert!(done["unknown_parents"].as_str().unwrap().contains("base.vhd"));
    fs::rename(folder.path().join("gone"), folder.path().join("base.vhd")).unwrap();
    let before = guest(folder.path(), "child.vhd");
    assert_eq!(json(folder.path(), &["compact", "child.vhd"])["zero_blocks"], 1);
    assert_eq!(guest(folder.path(), "child.vhd"), before);
    let _changing = vhd_core::Image::open_writable(&folder.path().join("base.vhd")).unwrap();
    let busy = json(folder.path(), &["compact", "child.vhd"]);
    assert!(busy["unknown_parents"].as_str().unwrap().contains("locked"), "{busy}");
}

#[test]
fn an_image_in_use_is_refused_also_by_those_who_read_through_it() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let before = files(folder.path());
    let open =
        vhd_core::Chain::open_locked(&folder.path().join("leaf.vhd"), &ChainOptions::default(), vhd_core::Lock::Shared);
    for name in ["base.vhd", "mid.vhd", "leaf.vhd"] {
        refused(folder.path(), &["compact", name], 5, &[name, "in use by another p", "hint: another process"]);
    }
    drop(open);
    assert_eq!(files(folder.path()), before);
    refused(folder.path(), &["compact", "nowhere.vhd"], 5, &["nowhere.vhd"]);
}

#[test]
fn fixed_images_stay_as_they_are() {
    let folder = golden::unpack(&["fixed-4m.vhd"]);
    let before = files(folder.path());
    let text = done(folder.path(), &["compact", "fixed-4m.vhd"]);
    assert!(text.contains("4.0 MiB long, before 4.0 MiB"), "{text}");
    assert_eq!(files(folder.path()), before);
}
