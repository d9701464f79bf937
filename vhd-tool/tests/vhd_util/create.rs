use std::fs;
use std::path::Path;

use testkit::{golden, inject, pattern};
use vhd_core::check::{self, Severity};
use vhd_core::{ChainOptions, DiskType, Image, Lock, ReadOnly, Sector, SectorCount, SectorRange, Volume};

use crate::program::{done, files, guest, process, refused, write};

fn open(path: &Path) -> Image<ReadOnly> {
    Image::open(path, Lock::None).expect("the image opens")
}

/// Clears what differs between any two images in a footer: its time, its checksum and its id.
fn without_identity(bytes: &mut [u8], footer: usize) {
    for range in [24..28, 64..68, 68..84] {
        bytes[footer..][range].fill(0);
    }
}

/// Makes an image, writes what the golden one holds, and compares all bytes.
#[test]
fn images_are_byte_for_byte_those_of_blktap() {
    let folder = tempfile::tempdir().unwrap();
    for (name, options) in [
        ("empty-10m.vhd", &["-s", "10"][..]),
        ("max-2040g.vhd", &["-s", "2088960"]),
        ("prealloc.vhd", &["-s", "10", "-S", "4096"]),
        ("fixed-4m.vhd", &["-s", "4", "-r"]),
        ("meta.vhd", &["-s", "10"]),
    ] {
        let path = folder.path().join(name);
        assert_eq!(done(folder.path(), &[&["create", "--debug", "-n", name], options].concat()), "");
        if name == "meta.vhd" {
            done(folder.path(), &["set", "-n", name, "-f", "hidden", "-v", "1"]);
            done(folder.path(), &["set", "-n", name, "-f", "marker", "-v", "5"]);
            let (hash, nonce) = ("ab".repeat(32), "01".repeat(32));
            done(folder.path(), &["key", "-n", name, "-s", "-H", &hash, "-N", &nonce]);
        }
        let golden = golden::manifest().into_iter().find(|image| image.file == name).unwrap();
        let volume = Volume::open(&path, &ChainOptions::default()).unwrap();
        for (start, count, tag) in golden.writes.unwrap_or_default() {
            let range = SectorRange::new(Sector(start), SectorCount(count));
            volume.write(range, &pattern::fill(range, tag)).unwrap();
        }
        volume.close().unwrap();
        let [mut ours, mut theirs] = [fs::read(&path).unwrap(), golden::bytes(name)];
        assert_eq!(ours.len(), theirs.len(), "{name}");
        for bytes in [&mut ours, &mut theirs] {
            let end = bytes.len() - 512;
            without_identity(bytes, end);
            if name != "fixed-4m.vhd" {
                without_identity(bytes, 0);
            }
        }
        assert!(ours == theirs, "{name}");
    }
}

#[test]
fn sizes_are_rounded_up_to_whole_blocks() {
    let folder = tempfile::tempdir().unwrap();
    for (given, made) in [("1", 2), ("2", 2), ("3", 4), ("10", 10), ("2088959", 2_088_960)] {
        done(folder.path(), &["create", "-n", "a.vhd", "-s", given]);
        assert_eq!(open(&folder.path().join("a.vhd")).footer().current_size().0, made << 20, "{given}");
    }
}

#[test]
fn what_no_disk_can_be_is_refused_and_nothing_is_replaced() {
    let folder = golden::unpack(&["fixed-4m.vhd"]);
    let before = files(folder.path());
    let too_many = u64::MAX.to_string();
    for size in ["0", "2088961", too_many.as_str(), "-1", "x", "1.5"] {
        refused(folder.path(), &["create", "-n", "fixed-4m.vhd", "-s", size], 22);
    }
    refused(folder.path(), &["create", "-n", "fixed-4m.vhd", "-s", "4", "-S", "2097153"], 22);
    refused(folder.path(), &["create", "-n", "fixed-4m.vhd", "-s", "4", "-S", "3"], 22);
    refused(folder.path(), &["create", "-n", "fixed-4m.vhd"], 22);
    refused(folder.path(), &["create", "-s", "4"], 22);
    refused(folder.path(), &["create", "-n", "none/a.vhd", "-s", "4"], 2);
    assert_eq!(files(folder.path()), before);
}

#[test]
fn a_file_that_is_there_is_replaced_and_a_link_to_it_stays() {
    let folder = golden::unpack(&["fixed-4m.vhd"]);
    std::os::unix::fs::symlink("fixed-4m.vhd", folder.path().join("link.vhd")).unwrap();
    done(folder.path(), &["create", "-n", "link.vhd", "-s", "6"]);
    let image = open(&folder.path().join("fixed-4m.vhd"));
    assert_eq!((image.footer().disk_type(), image.footer().current_size().0), (DiskType::Dynamic, 6 << 20));
    assert!(folder.path().join("link.vhd").is_symlink());
    assert_eq!(files(folder.path()).len(), 2, "nothing else is left");
}

#[test]
fn an_image_in_use_is_not_replaced() {
    let folder = golden::unpack(&["fixed-4m.vhd"]);
    let before = files(folder.path());
    let _open = Image::open_writable(&folder.path().join("fixed-4m.vhd")).unwrap();
    refused(folder.path(), &["create", "-n", "fixed-4m.vhd", "-s", "4"], 16);
    assert_eq!(files(folder.path()), before);
}

/// On volume groups the storage manager asks for tables that reach 2 TiB, more than a disk can have.
#[test]
fn room_is_made_for_as_much_as_the_storage_manager_asks_for() {
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), &["create", "--debug", "-n", "a.vhd", "-s", "10", "-S", "2097152"]);
    let tables = 1536 + (4 << 20) + 512 + (128 << 10);
    assert_eq!(done(folder.path(), &["query", "-vsS", "-n", "a.vhd"]), format!("10\n{}\n2097152\n", tables + 512));
    write(folder.path(), "a.vhd", 0, &[1; 512]);
    done(folder.path(), &["snapshot", "--debug", "-n", "b.vhd", "-p", "a.vhd", "-S", "2097152"]);
    write(folder.path(), "b.vhd", 4 << 20, &[2; 512]);
    assert_eq!(done(folder.path(), &["coalesce", "--debug", "-n", "b.vhd"]), "Coalesced 1 sectors");
    done(folder.path(), &["modify", "--debug", "-z", "-n", "b.vhd"]);
    assert_eq!(guest(folder.path(), "b.vhd"), guest(folder.path(), "a.vhd"));
    for image in ["a.vhd", "b.vhd"] {
        let report = check::file(&folder.path().join(image)).unwrap();
        assert!(report.worst() < Some(Severity::Warning), "{:?}", report.findings());
    }
}

#[test]
fn a_file_that_is_replaced_keeps_its_owner_and_mode() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.vhd");
    std::fs::write(&path, "old").unwrap();
    chown(&path, Some(33), Some(34)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    done(folder.path(), &["create", "-n", "disk.vhd", "-s", "4"]);
    let found = path.metadata().unwrap();
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (33, 34, 0o600));
}

#[test]
fn a_fixed_disk_has_all_of_its_space_at_once() {
    use std::os::unix::fs::MetadataExt;
    let folder = tempfile::tempdir().unwrap();
    for (options, has_space) in [(&["-s", "64", "-r"][..], true), (&["-s", "64"], false)] {
        done(folder.path(), &[&["create", "-n", "disk.vhd"], options].concat());
        let taken = folder.path().join("disk.vhd").metadata().unwrap().blocks() * 512;
        assert_eq!(taken >= 64 << 20, has_space, "{options:?}: {taken}");
    }
    let before = files(folder.path());
    let create = process(folder.path(), &["create", "-n", "disk.vhd", "-s", "64", "-r"]);
    let failed = inject::fail_from(&create, "fallocate", 1, "ENOSPC");
    assert!(failed.hit && failed.output.status.code() == Some(28), "{failed:?}");
    assert_eq!(files(folder.path()), before);
}
