//! The life of a volume in a file repository, by the command lines of the storage manager.

use std::fs;
use std::path::Path;

use testkit::inject::kill_at;

use crate::program::{command, done, ended, guest, process, refused, write};

/// A snapshot as the storage manager takes one: the file gets another name, and two children.
fn snapshot(here: &Path, volume: &str, base: &str, snapshot: &str) {
    fs::rename(here.join(volume), here.join(base)).expect("the file is there");
    for child in [volume, snapshot] {
        done(here, &["snapshot", "--debug", "-n", child, "-p", base]);
    }
    done(here, &["set", "--debug", "-n", base, "-f", "hidden", "-v", "1"]);
}

/// Merges a base into its parent, as the collector does, and has its children follow.
fn merge(here: &Path, node: &str, parent: &str, children: &[&str]) -> String {
    let answer = done(here, &["coalesce", "--debug", "-n", node]);
    for child in children {
        done(here, &["modify", "--debug", "-p", parent, "-n", child]);
    }
    fs::remove_file(here.join(node)).expect("the file is there");
    answer
}

#[test]
fn create_write_snapshot_coalesce_relink_delete() {
    merged_away(tempfile::tempdir().unwrap().path());
}

/// A disk gets snapshots, which are merged away again, in an empty folder.
pub(crate) fn merged_away(here: &Path) {
    done(here, &["create", "--debug", "-n", "disk.vhd", "-s", "64"]);
    assert_eq!(
        done(here, &["query", "--debug", "-vsafp", "-n", "disk.vhd"]),
        "64\n3584\ndisk.vhd has no parent\nhidden: 0\n0\n"
    );
    write(here, "disk.vhd", 1000, &[1; 5000]);
    let monday = guest(here, "disk.vhd");

    snapshot(here, "disk.vhd", "base1.vhd", "monday.vhd");
    write(here, "disk.vhd", 3000, &vec![2; 3_000_000]);
    let tuesday = guest(here, "disk.vhd");
    snapshot(here, "disk.vhd", "base2.vhd", "tuesday.vhd");
    write(here, "disk.vhd", 63 << 20, &[3; 4096]);
    let wednesday = guest(here, "disk.vhd");
    assert_eq!([guest(here, "monday.vhd"), guest(here, "tuesday.vhd")], [monday, tuesday.clone()]);

    let glob = here.join("*.vhd").display().to_string();
    let lines = done(here, &["scan", "-f", "-m", &glob]);
    let tree: Vec<Vec<&str>> = lines.lines().map(|line| line.split(' ').collect()).collect();
    let short: Vec<_> = tree.iter().map(|fields| [fields[0], fields[3], fields[4]].join(" ")).collect();
    assert_eq!(
        short,
        [
            "vhd=base1.vhd hidden=1 parent=none",
            "vhd=base2.vhd hidden=1 parent=base1.vhd",
            "vhd=disk.vhd hidden=0 parent=base2.vhd",
            "vhd=monday.vhd hidden=0 parent=base1.vhd",
            "vhd=tuesday.vhd hidden=0 parent=base2.vhd",
        ]
    );

    // Monday goes, and with it the need for two bases.
    done(here, &["set", "--debug", "-n", "monday.vhd", "-f", "hidden", "-v", "1"]);
    fs::remove_file(here.join("monday.vhd")).unwrap();
    let answer = merge(here, "base2.vhd", "base1.vhd", &["disk.vhd", "tuesday.vhd"]);
    let sectors = (3000_u64 + 3_000_000).div_ceil(512) - 3000 / 512;
    assert_eq!(answer, format!("Coalesced {sectors} sectors"));
    assert_eq!([guest(here, "disk.vhd"), guest(here, "tuesday.vhd")], [wednesday.clone(), tuesday]);

    // Then Tuesday, and the base takes the place of the disk.
    fs::remove_file(here.join("tuesday.vhd")).unwrap();
    assert_eq!(done(here, &["coalesce", "--debug", "-n", "disk.vhd"]), "Coalesced 8 sectors");
    fs::rename(here.join("base1.vhd"), here.join("disk.vhd")).unwrap();
    done(here, &["set", "--debug", "-n", "disk.vhd", "-f", "hidden", "-v", "0"]);
    assert_eq!(guest(here, "disk.vhd"), wednesday);
    let line = done(here, &["scan", "-f", "-c", "-m", &glob]);
    let size = fs::metadata(here.join("disk.vhd")).unwrap().len();
    assert_eq!(line, format!("vhd=disk.vhd capacity=67108864 size={size} hidden=0 parent=none\n"));
    assert_eq!(fs::read_dir(here).unwrap().count(), 1, "nothing else is left");
}

/// The answer of a check, which may tell of parents that have changed since.
fn check(here: &Path, args: &[&str], code: i32) -> String {
    ended(here, &[&["check", "--debug"], args].concat(), code).0
}

#[test]
fn grow_fail_revert_grow_fast_and_repair() {
    grown(tempfile::tempdir().unwrap().path());
}

/// A disk grows, is interrupted in that, and is mended, in an empty folder.
pub(crate) fn grown(here: &Path) {
    done(here, &["create", "--debug", "-n", "disk.vhd", "-s", "64", "-S", "128"]);
    write(here, "disk.vhd", 1000, &vec![1; 9_000_000]);
    snapshot(here, "disk.vhd", "base.vhd", "snap.vhd");
    write(here, "disk.vhd", 5 << 20, &[2; 5000]);
    assert_eq!(check(here, &["-n", "disk.vhd", "-B"], 0), "disk.vhd is valid\n");

    // A host that fails in a resize: the volume is not used until the journal has taken it back.
    let old = fs::read(here.join("disk.vhd")).unwrap();
    let grow = ["resize", "--debug", "-s", "194", "-n", "disk.vhd", "-j", "resize-journal"];
    assert!(kill_at(&process(here, &grow), "fdatasync", 4).hit);
    assert!(check(here, &["-n", "disk.vhd"], 22).contains("disk.vhd appears invalid; "));
    ended(here, &grow, 22);
    assert_eq!(done(here, &["revert", "--debug", "-n", "disk.vhd", "-j", "resize-journal"]), "");
    assert!(fs::read(here.join("disk.vhd")).unwrap() == old);
    assert!(!here.join("resize-journal").exists());

    assert_eq!(done(here, &grow), "");
    assert_eq!(done(here, &["query", "--debug", "-v", "-n", "disk.vhd"]), "194\n");
    assert_eq!(done(here, &["resize", "--debug", "-s", "128", "-n", "base.vhd", "-f"]), "");
    assert_eq!(done(here, &["query", "--debug", "-v", "-n", "base.vhd"]), "128\n");
    write(here, "disk.vhd", 193 << 20, &[3; 4096]);
    let whole = guest(here, "disk.vhd");
    let bits =
        command(here, &["read", "--debug", "-B", "-n", "disk.vhd"]).assert().success().get_output().stdout.clone();
    let allocated: u32 = bits.iter().map(|byte| byte.count_ones()).sum();
    assert_eq!(done(here, &["query", "--debug", "-a", "-n", "disk.vhd"]), format!("{allocated}\n"));

    // The footer at the end is lost, as where a merge by another program has run out of space.
    let path = here.join("disk.vhd");
    let length = fs::metadata(&path).unwrap().len();
    fs::File::options().write(true).open(&path).unwrap().set_len(length - 512).unwrap();
    check(here, &["-n", "disk.vhd"], 22);
    assert_eq!(check(here, &["-n", "disk.vhd", "-i"], 0), "disk.vhd is valid\n");
    assert_eq!(done(here, &["repair", "-n", "disk.vhd"]), "");
    assert_eq!(check(here, &["-n", "disk.vhd"], 0), "disk.vhd is valid\n");
    assert_eq!(guest(here, "disk.vhd"), whole);
}

#[test]
fn without_a_command_there_is_help() {
    let folder = tempfile::tempdir().unwrap();
    let help = done(folder.path(), &[]);
    for command in
        ["coalesce", "copy", "create", "fill", "key", "modify", "query", "read", "repair", "resize", "revert"]
    {
        assert!(help.contains(command), "{help}");
    }
    refused(folder.path(), &["merge"], 22);
}
