//! `resize`, and `revert` of what it leaves where it is interrupted.

mod cases;
mod interrupted;
mod journal;

use std::fs;
use std::path::{Path, PathBuf};

use testkit::golden;
use testkit::inject::{fail_at, kill_at};
use vhd_core::{Chain, ChainOptions, Image, Lock, ReadOnly, Sector, SectorRange, Volume};

use crate::program::{command, done, ended, files, guest, process, refused};
use cases::{Case, RESIZE, REVERT, write};
use journal::parse;

fn header(path: &Path) -> (u64, u32) {
    let image: Image<ReadOnly> = Image::open(path, Lock::None).unwrap();
    (image.footer().current_size().0, image.header().unwrap().max_table_entries())
}

#[test]
fn a_disk_grows_under_a_journal() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd", "empty-10m.vhd"]);
    let all =
        || command(folder.path(), &["read", "-r", "0", "-c", "131072", "-n", "leaf.vhd"]).output().unwrap().stdout;
    let before = all();
    let grow = ["resize", "--debug", "-s", "8193", "-n", "leaf.vhd", "-j", "jrnl"];
    assert_eq!(done(folder.path(), &grow), "");
    assert!(!folder.path().join("jrnl").exists());
    assert_eq!(header(&folder.path().join("leaf.vhd")), (8194 << 20, 4097));
    assert!(all() == before && before.len() == 64 << 20);
    done(folder.path(), &["check", "-t", "-b", "-n", "leaf.vhd"]);
    // It has that size already.
    done(folder.path(), &grow);

    done(folder.path(), &["resize", "-s", "2088960", "-n", "empty-10m.vhd", "-j", "jrnl"]);
    done(folder.path(), &["check", "-n", "empty-10m.vhd"]);
    assert!(!folder.path().join("jrnl").exists());
}

#[test]
fn within_the_bat_it_is_fast() {
    let folder = golden::unpack(&["prealloc.vhd", "empty-10m.vhd"]);
    let length = fs::metadata(folder.path().join("prealloc.vhd")).unwrap().len();
    assert_eq!(done(folder.path(), &["resize", "--debug", "-s", "4096", "-n", "prealloc.vhd", "-f"]), "");
    assert_eq!(header(&folder.path().join("prealloc.vhd")), (4 << 30, 2048));
    assert_eq!(fs::metadata(folder.path().join("prealloc.vhd")).unwrap().len(), length);
    assert_eq!(done(folder.path(), &["read", "-e", "-n", "prealloc.vhd"]), "17 5\n");
    let before = files(folder.path());
    refused(folder.path(), &["resize", "-s", "4098", "-n", "prealloc.vhd", "-f"], 22);
    refused(folder.path(), &["resize", "-s", "12", "-n", "empty-10m.vhd", "-f"], 22);
    assert_eq!(files(folder.path()), before);
}

/// Volumes of parents need not be active.
#[test]
fn a_parent_that_is_not_there_is_told() {
    let folder = golden::unpack(&["mid.vhd"]);
    let (out, told) = ended(folder.path(), &["resize", "--debug", "-s", "66", "-n", "mid.vhd", "-j", "jrnl"], 0);
    assert_eq!(out, "");
    assert!(told.contains("base.vhd"), "{told}");
    assert_eq!(header(&folder.path().join("mid.vhd")), (66 << 20, 33));
}

#[test]
fn what_cannot_be_resized_is_left_alone() {
    let folder = golden::unpack(&["fixed-4m.vhd", "empty-10m.vhd", "poisoned.vhd", "meta.vhd"]);
    let before = files(folder.path());
    let cases: [(&[&str], i32); 8] = [
        (&["-s", "8", "-n", "empty-10m.vhd", "-j", "new"], 38),
        (&["-s", "8", "-n", "empty-10m.vhd", "-f"], 38),
        (&["-s", "8", "-n", "fixed-4m.vhd", "-j", "new"], 22),
        (&["-s", "100", "-n", "empty-10m.vhd", "-j", "meta.vhd"], 17),
        (&["-s", "2088962", "-n", "empty-10m.vhd", "-j", "new"], 22),
        (&["-s", "18446744073709551615", "-n", "empty-10m.vhd", "-j", "new"], 22),
        (&["-s", "200", "-n", "poisoned.vhd", "-j", "new"], 22),
        (&["-s", "100", "-n", "none.vhd", "-j", "new"], 2),
    ];
    for (args, code) in cases {
        refused(folder.path(), &[&["resize"], args].concat(), code);
    }
    refused(folder.path(), &["resize", "-s", "100", "-n", "empty-10m.vhd"], 22);
    refused(folder.path(), &["resize", "-s", "100", "-n", "empty-10m.vhd", "-j", "no/folder"], 2);
    assert_eq!(files(folder.path()), before);
}

#[test]
fn blktaps_journal_reads_as_ours_are_written() {
    let journal = parse(&golden::bytes("poisoned.journal"));
    let kinds: Vec<u32> = journal.entries.iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, [1, 2, 3, 5, 6, 7, 8, 8]);
    assert_eq!(journal.footer_at, journal.entries[0].at);
}

/// A resize that has ended, but whose journal is still there: it is taken back only if nobody has used the image since.
#[test]
fn a_forgotten_journal_does_not_take_back_what_was_written_since() {
    let [case, ..] = Case::all();
    let folder = case.copy();
    assert!(fail_at(&process(folder.path(), &RESIZE), "unlink", 1, "EIO").hit);
    let (path, journal) = (folder.path().join("disk.vhd"), folder.path().join("jrnl"));
    assert!(fs::read(&path).unwrap() == case.after);
    let kept = fs::read(&journal).unwrap();
    done(folder.path(), &REVERT);
    assert!(fs::read(&path).unwrap() == case.before);

    // As above, and a guest writes to a new block.
    fs::write(&path, &case.after).unwrap();
    fs::write(&journal, kept).unwrap();
    let volume = Volume::open(&path, &ChainOptions::default()).unwrap();
    write(&volume, 4000, 4001);
    volume.close().unwrap();
    let before = files(folder.path());
    refused(folder.path(), &REVERT, 116);
    assert_eq!(files(folder.path()), before);
}

#[test]
fn what_grows_reads_as_zeros() {
    for case in Case::all() {
        let folder = case.copy();
        let path = folder.path().join("disk.vhd");
        let read = |sectors: u64| {
            let chain = Chain::open(&path, &ChainOptions::default()).unwrap();
            let mut bytes = vec![0; sectors as usize * 512];
            chain.read(SectorRange::between(Sector(0), Sector(sectors)), &mut bytes).unwrap();
            bytes
        };
        let old_size = header(&path).0 / 512;
        let before = read(old_size);
        let hash = guest(folder.path(), "disk.vhd");
        ended(folder.path(), &RESIZE, 0);
        let now = read(8192);
        assert!(now[..before.len()] == before && now[before.len()..].iter().all(|&byte| byte == 0), "{}", case.name);
        assert_ne!(guest(folder.path(), "disk.vhd"), hash);
        ended(folder.path(), &["check", "-t", "-n", "disk.vhd"], 0);
    }
}

/// Logical volumes: the journal is one, too, and is not removed.
#[test]
fn image_and_journal_on_devices() {
    use testkit::loop_device::LoopDevice;
    let folder = tempfile::tempdir().unwrap();
    let disk = LoopDevice::new(&folder.path().join("disk"), 12 << 20);
    let journal = LoopDevice::new(&folder.path().join("journal"), 6 << 20);
    let image = golden::bytes("empty-10m.vhd");
    let mut device = vec![0; 12 << 20];
    device[..image.len()].copy_from_slice(&image);
    let footer = device.len() - 512..device.len();
    device[footer].copy_from_slice(&image[..512]);
    fs::write(&disk.path, device).unwrap();
    let paths: Vec<PathBuf> = vec![disk.path.clone(), journal.path.clone()];
    let [disk, log] = [0, 1].map(|i| paths[i].to_str().unwrap().to_owned());
    let grow = ["resize", "-s", "4096", "-n", &disk, "-j", &log];
    assert_eq!(done(folder.path(), &grow), "");
    assert_eq!(header(Path::new(&disk)).0, 4 << 30);
    assert!(fs::read(&log).unwrap()[..512].iter().all(|&byte| byte == 0));
    refused(folder.path(), &["revert", "-n", &disk, "-j", &log], 22);

    // Stopped half way: there is a journal, and no second one; it is taken back.
    let before = fs::read(&disk).unwrap();
    let grow = ["resize", "-s", "8192", "-n", &disk, "-j", &log];
    assert!(kill_at(&process(folder.path(), &grow), "fdatasync", 6).hit);
    refused(folder.path(), &["check", "-n", "none", "-j"], 22);
    ended(folder.path(), &["check", "-n", &disk], 22);
    refused(folder.path(), &["resize", "-f", "-s", "8192", "-n", &disk], 22);
    assert_eq!(done(folder.path(), &["revert", "-n", &disk, "-j", &log]), "");
    let now = fs::read(&disk).unwrap();
    let tables = header(Path::new(&disk)).1 as usize * 4;
    assert!(now[..1536 + tables.min(1536)] == before[..1536 + tables.min(1536)]);
    assert!(now[now.len() - 512..] == before[before.len() - 512..]);
    done(folder.path(), &["check", "-n", &disk]);
}
