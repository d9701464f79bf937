//! Images on block devices under the names of volumes: links in a folder to nodes in another. Needs root, for loop devices.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use testkit::loop_device::LoopDevice;
use vhd_core::{Image, Lock, ReadOnly};

use crate::program::{done, guest, refused, write};

const MIB: u64 = 1 << 20;

/// A device by the name of a volume in the folder `group`.
fn volume(folder: &Path, name: &str, size: u64) -> LoopDevice {
    fs::create_dir_all(folder.join("group")).expect("the folder is writable");
    let device = LoopDevice::new(&folder.join(format!("{name}.disk")), size);
    symlink(&device.path, folder.join("group").join(name)).expect("the folder is writable");
    device
}

#[test]
fn volumes_live_as_files_do() {
    let folder = tempfile::tempdir().unwrap();
    let group = folder.path().join("group");
    let _devices = [
        volume(folder.path(), "VHD-base", 12 * MIB),
        volume(folder.path(), "VHD-mid", 12 * MIB),
        volume(folder.path(), "VHD-leaf", 8 * MIB),
    ];
    let path = |name: &str| group.join(name).display().to_string();
    let (base, mid, leaf) = (path("VHD-base"), path("VHD-mid"), path("VHD-leaf"));
    done(folder.path(), &["create", "--debug", "-n", &base, "-s", "20", "-S", "4096"]);
    write(&group, "VHD-base", 0, &[1; 8192]);
    done(folder.path(), &["snapshot", "--debug", "-n", &mid, "-p", &base, "-S", "4096"]);
    write(&group, "VHD-mid", 4096, &[2; 8192]);
    done(folder.path(), &["snapshot", "--debug", "-n", &leaf, "-p", &mid]);
    write(&group, "VHD-leaf", 8 * MIB, &[3; 512]);
    let before = guest(&group, "VHD-leaf");

    // The names of the volumes, not those of the nodes that they lead to.
    assert_eq!(done(folder.path(), &["query", "-pu", "-n", &leaf]), "./VHD-mid\n");
    let real = group.canonicalize().unwrap().join("VHD-mid").display().to_string();
    let answers = done(folder.path(), &["query", "--debug", "-vsafp", "-n", &leaf]);
    assert_eq!(answers, format!("20\n{}\n{real}\nhidden: 0\n1\n", 8192 + 2 * MIB + 512));
    assert_eq!(done(folder.path(), &["query", "-dS", "-n", &leaf]), "chain depth: 3\n20\n");
    done(folder.path(), &["set", "--debug", "-n", &mid, "-f", "hidden", "-v", "1"]);
    let lines = "vhd=VHD-base capacity=20971520 size=12582912 hidden=0 parent=none\n\
         vhd=VHD-leaf capacity=20971520 size=8388608 hidden=0 parent=VHD-mid\n\
         vhd=VHD-mid capacity=20971520 size=12582912 hidden=1 parent=VHD-base\n";
    assert_eq!(done(&group, &["scan", "-f", "-m", "VHD-*"]), lines);

    assert_eq!(done(folder.path(), &["coalesce", "--debug", "-n", &mid]), "Coalesced 16 sectors");
    done(folder.path(), &["modify", "--debug", "-p", &base, "-n", &leaf]);
    fs::remove_file(&mid).unwrap();
    assert_eq!(guest(&group, "VHD-leaf"), before);
    assert_eq!(done(folder.path(), &["query", "-pu", "-n", &leaf]), "./VHD-base\n");
    let entries: Vec<_> = fs::read_dir(&group).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(entries.len(), 2, "nothing else is made beside the volumes: {entries:?}");
}

#[test]
fn a_raw_volume_is_a_parent() {
    let folder = tempfile::tempdir().unwrap();
    let group = folder.path().join("group");
    let (raw, _child) = (volume(folder.path(), "LV-raw", 4 * MIB), volume(folder.path(), "VHD-child", 8 * MIB));
    fs::OpenOptions::new().write(true).open(&raw.path).unwrap().write_all_at(&[7; 4096], 0).unwrap();
    done(&group, &["snapshot", "--debug", "-n", "VHD-child", "-p", "LV-raw", "-m"]);
    write(&group, "VHD-child", 512, &[8; 512]);
    let before = guest(&group, "VHD-child");
    assert_eq!(done(&group, &["query", "-v", "-n", "VHD-child"]), "4\n");
    assert_eq!(done(&group, &["coalesce", "-n", "VHD-child"]), "Coalesced 1 sectors");
    assert_eq!(testkit::sha256(&fs::read(&raw.path).unwrap()), before);
}

/// What is on a device before does not show.
#[test]
fn what_others_have_left_on_a_device_does_not_show() {
    let folder = tempfile::tempdir().unwrap();
    let device = volume(folder.path(), "VHD-a", 5 * MIB);
    let stale = || fs::write(&device.path, vec![0xaa; 5 << 20]).unwrap();
    let group = folder.path().join("group");
    for options in [&["-s", "4"][..], &["-s", "4", "-r"]] {
        stale();
        done(&group, &[&["create", "-n", "VHD-a"], options].concat());
        assert_eq!(guest(&group, "VHD-a"), testkit::sha256(&vec![0; 4 << 20]));
        assert!(folder.path().join("group/VHD-a").is_symlink());
    }
    stale();
    refused(&group, &["create", "-n", "VHD-a", "-s", "6", "-r"], 28);
    assert!(fs::read(&device.path).unwrap() == vec![0xaa; 5 << 20], "nothing is lost");
}

/// As volumes are deflated and inflated: the footer is written first where the volume is to end, and last where it ends.
#[test]
fn a_volume_ends_where_it_is_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let device = volume(folder.path(), "VHD-a", 8 * MIB);
    let group = folder.path().join("group");
    done(&group, &["create", "-n", "VHD-a", "-s", "20"]);
    write(&group, "VHD-a", 0, &[1; 512]);
    let before = guest(&group, "VHD-a");
    done(&group, &["modify", "--debug", "-s", &(4 * MIB).to_string(), "-n", "VHD-a"]);
    assert_eq!(guest(&group, "VHD-a"), before);
    refused(&group, &["modify", "-s", &(2 * MIB).to_string(), "-n", "VHD-a"], 22);
    refused(&group, &["modify", "-s", &(9 * MIB).to_string(), "-n", "VHD-a"], 28);
    drop(device);

    let file = folder.path().join("VHD-a.disk");
    File::options().write(true).open(&file).unwrap().set_len(4 * MIB).unwrap();
    let image: Image<ReadOnly> = Image::open(&file, Lock::None).unwrap();
    assert_eq!(image.footer_origin(), vhd_core::FooterOrigin::End, "the smaller volume has its footer");
    assert_eq!(guest(folder.path(), "VHD-a.disk"), before);
}

#[test]
fn what_a_volume_holds_is_dropped_even_where_there_is_no_room() {
    let folder = tempfile::tempdir().unwrap();
    for size in [5 * MIB, 9 * MIB] {
        let name = format!("VHD-{size}");
        let _device = volume(folder.path(), &name, size);
        let group = folder.path().join("group");
        done(&group, &["create", "-n", &name, "-s", "4096"]);
        write(&group, &name, 0, &vec![1; 512]);
        write(&group, &name, 3 << 30, &vec![1; 512]);
        assert_eq!(done(&group, &["query", "-a", "-n", &name]), "2\n");
        done(&group, &["modify", "--debug", "-z", "-n", &name]);
        assert_eq!(done(&group, &["query", "-as", "-n", &name]), format!("{}\n0\n", 1536 + 8192 + 1024 + 512));
    }
}
