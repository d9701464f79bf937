use testkit::golden;
use vhd_core::{Image, Lock, ReadOnly};

use crate::program::{done, files, guest, refused};

#[test]
fn a_child_holds_all_of_its_disk_afterwards() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd"]);
    let (before, parent) = (guest(folder.path(), "mid.vhd"), files(folder.path())["base.vhd"].clone());
    assert_eq!(done(folder.path(), &["fill", "--debug", "-n", "mid.vhd"]), "");
    assert_eq!(guest(folder.path(), "mid.vhd"), before);
    assert_eq!(done(folder.path(), &["read", "-e", "-n", "mid.vhd"]), "0 131072\n");
    assert_eq!(files(folder.path())["base.vhd"], parent);
    done(folder.path(), &["check", "-t", "-b", "-n", "mid.vhd"]);
    std::fs::remove_file(folder.path().join("base.vhd")).unwrap();
    refused(folder.path(), &["fill", "-n", "mid.vhd"], 2);
}

#[test]
fn blocks_alone_change_nothing_of_the_disk() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "fixed-4m.vhd"]);
    let before = guest(folder.path(), "mid.vhd");
    let extents = done(folder.path(), &["read", "-e", "-n", "mid.vhd"]);
    done(folder.path(), &["fill", "-b", "-n", "mid.vhd"]);
    assert_eq!(guest(folder.path(), "mid.vhd"), before);
    assert_eq!(done(folder.path(), &["read", "-e", "-n", "mid.vhd"]), extents);
    let image: Image<ReadOnly> = Image::open(&folder.path().join("mid.vhd"), Lock::None).unwrap();
    assert_eq!(image.allocated_blocks().count(), 32);
    done(folder.path(), &["check", "-t", "-n", "mid.vhd"]);

    let fixed = files(folder.path())["fixed-4m.vhd"].clone();
    done(folder.path(), &["fill", "-n", "fixed-4m.vhd"]);
    assert_eq!(files(folder.path())["fixed-4m.vhd"], fixed);
}
