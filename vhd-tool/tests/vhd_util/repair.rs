use std::fs;

use testkit::golden;

use crate::program::{done, ended, files, refused};

#[test]
fn a_missing_footer_at_the_end_is_written_where_the_data_ends() {
    let folder = golden::unpack(&["no-end-footer.vhd", "base.vhd"]);
    let (out, _) = ended(folder.path(), &["check", "--debug", "-n", "no-end-footer.vhd"], 22);
    assert!(out.contains("no-end-footer.vhd appears invalid; "), "{out}");
    assert_eq!(done(folder.path(), &["check", "-i", "-n", "no-end-footer.vhd"]), "no-end-footer.vhd is valid\n");
    assert_eq!(done(folder.path(), &["repair", "-n", "no-end-footer.vhd"]), "");
    assert_eq!(done(folder.path(), &["check", "--debug", "-n", "no-end-footer.vhd"]), "no-end-footer.vhd is valid\n");
    let now = files(folder.path());
    assert_eq!(now["no-end-footer.vhd"], now["base.vhd"]);
}

#[test]
fn each_footer_is_made_from_the_other() {
    let folder = golden::unpack(&["no-first-footer.vhd", "footer-511.vhd", "base.vhd"]);
    for image in ["no-first-footer.vhd", "footer-511.vhd", "base.vhd"] {
        let before = fs::read(folder.path().join("base.vhd")).unwrap();
        assert_eq!(done(folder.path(), &["repair", "--debug", "-n", image]), "");
        done(folder.path(), &["check", "-n", image]);
        let now = fs::read(folder.path().join(image)).unwrap();
        assert!(now[..before.len() - 512] == before[..before.len() - 512], "{image}: only footers change");
        assert!(now[..512] == now[now.len() - 512..], "{image}");
    }
}

#[test]
fn the_backup_counts_where_that_is_asked_for() {
    let folder = golden::unpack(&["empty-10m.vhd"]);
    let path = folder.path().join("empty-10m.vhd");
    let before = fs::read(&path).unwrap();
    let mut bytes = before.clone();
    let end = bytes.len() - 512;
    // Another size, and hidden: a footer that is whole, but older.
    bytes[end + 85] = 1;
    testkit::seal(&mut bytes[end..], 64);
    fs::write(&path, &bytes).unwrap();
    done(folder.path(), &["repair", "-b", "-n", "empty-10m.vhd"]);
    assert!(fs::read(&path).unwrap() == before);

    bytes = before;
    bytes[..512].fill(0);
    fs::write(&path, &bytes).unwrap();
    refused(folder.path(), &["repair", "-b", "-n", "empty-10m.vhd"], 22);
    assert!(fs::read(&path).unwrap() == bytes);
}

#[test]
fn what_needs_more_than_footers_is_left_alone() {
    let folder = golden::unpack(&["poisoned.vhd", "overlapping-blocks.vhd", "raw-parent.img"]);
    let before = files(folder.path());
    for image in ["poisoned.vhd", "overlapping-blocks.vhd", "raw-parent.img"] {
        refused(folder.path(), &["repair", "-n", image], 22);
    }
    refused(folder.path(), &["repair", "-n", "none.vhd"], 2);
    refused(folder.path(), &["repair"], 22);
    assert_eq!(files(folder.path()), before);
}

/// blktap's program can neither open nor repair an image whose writer was killed between batmap and its checksum.
#[test]
fn a_torn_batmap_is_mended() {
    let folder = golden::unpack(&["torn-batmap.vhd"]);
    let told = || ended(folder.path(), &["check", "-n", "torn-batmap.vhd"], 0).1;
    assert!(told().contains("checksum"), "{}", told());
    done(folder.path(), &["repair", "-n", "torn-batmap.vhd"]);
    assert_eq!(told(), "");
}
