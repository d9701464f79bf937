//! A repository whose file system goes and comes back.

use std::fs;
use std::path::Path;
use std::process::Command;

use testkit::filesystem::{FileSystem, MountedImage};
use vhd_core::ByteCount;

use crate::disks::Disk;
use crate::process::{Worker, program, until};

/// A mounted file system, and in a folder of it what is to be merged.
fn repository() -> (MountedImage, Disk) {
    let mount = MountedImage::new(FileSystem::Ext4, ByteCount(64 << 20));
    let mut disk = Disk::small();
    disk.delete_snapshots();
    copy(disk.path(), mount.path());
    (mount, disk)
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from.join("."), to.to_path_buf()]).status().unwrap().success());
}

fn images(folder: &Path) -> usize {
    let names = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path());
    names.filter(|path| path.extension().is_some_and(|extension| extension == "vhd")).count()
}

#[test]
fn a_file_system_that_is_gone_is_unreachable_until_it_is_back() {
    for leaves_a_copy in [false, true] {
        let (mut mount, disk) = repository();
        let worker = Worker::start(&[mount.path()], &[]);
        until("all is merged", || (images(mount.path()) == 1).then_some(()));
        until("the worker lets go", || {
            let output = Command::new("umount").arg(mount.path()).output().unwrap();
            output.status.success().then_some(())
        });
        if leaves_a_copy {
            copy(disk.path(), mount.path());
        }
        let beneath = images(mount.path());
        let why = until("the worker tells that it is gone", || worker.status().repositories[0].unreachable.clone());
        assert!(why.contains("unreachable") && why.contains("mount"), "{why}");
        let text = worker.told(&["status"]);
        assert!(text.contains("unreachable: ") && !text.contains(" to merge"), "{text}");
        assert!(worker.ask(&["collect"]).status.success());
        assert_eq!(images(mount.path()), beneath, "what is beneath is left alone");
        assert!(leaves_a_copy || !mount.path().join(".vhd").exists());

        mount.back();
        fs::remove_dir_all(mount.path().join(".vhd")).unwrap();
        for entry in fs::read_dir(mount.path()).unwrap().flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "vhd") {
                fs::remove_file(entry.path()).unwrap();
            }
        }
        copy(disk.path(), mount.path());
        until("it is collected again", || (images(mount.path()) == 1).then_some(()));
        until("the worker tells that it is back", || {
            worker.status().repositories[0].unreachable.is_none().then_some(())
        });
        drop(worker);
    }
}

#[test]
fn a_file_system_that_comes_late_is_collected() {
    let (mut mount, _disk) = repository();
    mount.away();
    let worker = Worker::start(&[mount.path()], &["--poll", "1"]);
    until("the bare folder has been looked at", || worker.status().repositories[0].last_scan);
    assert!(fs::read_dir(mount.path()).unwrap().next().is_none(), "nothing is left in it");
    mount.back();
    until("all is merged", || (images(mount.path()) == 1).then_some(()));
    drop(worker);
}

#[test]
fn a_folder_without_images_is_not_called_done() {
    let folder = tempfile::tempdir().unwrap();
    let output = program(&["once"]).arg(folder.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("no images") && text.contains("mount") && !text.contains("nothing to do"), "{text}");
    let output = program(&["once", "--dry-run"]).arg(folder.path()).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("no images"));
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
}
