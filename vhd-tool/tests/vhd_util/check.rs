use std::fs::{self, File};
use std::time::{Duration, SystemTime};

use testkit::golden;

use crate::program::{done, ended, files, refused, write};

/// Unpacks images and gives parents the times of their last change that their children have recorded.
fn unpack(names: &[&str]) -> tempfile::TempDir {
    let folder = golden::unpack(names);
    for name in names {
        let child = names.iter().find(|child| golden::chain_of(child).get(1).is_some_and(|parent| parent == name));
        let Some(child) = child else { continue };
        let header = fs::read(folder.path().join(child)).unwrap();
        let seconds = u32::from_be_bytes(header[512 + 56..512 + 60].try_into().unwrap());
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(946_684_800 + u64::from(seconds));
        File::options().write(true).open(folder.path().join(name)).unwrap().set_modified(time).unwrap();
    }
    folder
}

#[test]
fn sound_images_are_valid() {
    let names = ["base.vhd", "mid.vhd", "leaf.vhd", "fixed-4m.vhd", "empty-10m.vhd", "prealloc.vhd", "meta.vhd"];
    let folder = unpack(&names);
    let before = files(folder.path());
    for name in names {
        for options in [&[][..], &["-B"], &["-i"], &["-i", "-B"], &["-I"], &["-t"], &["-b"]] {
            let valid = done(folder.path(), &[&["check", "--debug", "-n", name], options].concat());
            assert_eq!(valid, format!("{name} is valid\n"));
        }
    }
    assert_eq!(files(folder.path()), before);
}

/// blktap's program sizes the batmap so that its own check fails.
#[test]
fn odd_numbers_of_blocks_are_valid() {
    let folder = unpack(&["odd-blocks.vhd", "max-2040g.vhd"]);
    for name in ["odd-blocks.vhd", "max-2040g.vhd"] {
        assert_eq!(done(folder.path(), &["check", "-n", name]), format!("{name} is valid\n"));
    }
}

#[test]
fn damage_is_named_before_the_headers() {
    let damaged = ["overlapping-blocks.vhd", "bat-beyond-eof.vhd", "no-first-footer.vhd"];
    let folder = golden::unpack(&damaged);
    for name in damaged {
        let (out, _) = ended(folder.path(), &["check", "-n", name], 22);
        let reason = out.find(&format!("{name} appears invalid; dumping metadata\nVHD Footer Summary:\n")).unwrap();
        assert!(reason > 0, "no reason: {out}");
    }
    done(folder.path(), &["check", "-B", "-n", "overlapping-blocks.vhd"]);
    ended(folder.path(), &["check", "-i", "-n", "no-first-footer.vhd"], 22);
}

#[test]
fn files_that_are_no_images() {
    let folder = golden::unpack(&["raw-parent.img"]);
    let (out, _) = ended(folder.path(), &["check", "-n", "raw-parent.img"], 22);
    assert!(out.ends_with("raw-parent.img appears invalid; dumping metadata\n"), "{out}");
    fs::write(folder.path().join("empty"), "").unwrap();
    ended(folder.path(), &["check", "-n", "empty"], 22);
    refused(folder.path(), &["check", "-n", "none.vhd"], 2);
    refused(folder.path(), &["check"], 22);
    let (help, _) = ended(folder.path(), &["check", "-h"], 0);
    assert!(help.contains("-n"));
}

/// The storage manager checks images whose parents it changes all the time.
#[test]
fn a_parent_that_has_changed_is_only_told() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd"]);
    let (out, told) = ended(folder.path(), &["check", "--debug", "-n", "mid.vhd"], 0);
    assert_eq!(out, "mid.vhd is valid\n");
    assert!(told.contains("base.vhd"), "{told}");
    assert_eq!(done(folder.path(), &["check", "-t", "-n", "mid.vhd"]), "mid.vhd is valid\n");
}

#[test]
fn parents_are_checked_too_where_that_is_asked_for() {
    let folder = unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let all = done(folder.path(), &["check", "-p", "-n", "leaf.vhd"]);
    let valid: Vec<_> = all.lines().map(|line| line.rsplit('/').next().unwrap()).collect();
    assert_eq!(valid, ["leaf.vhd is valid", "mid.vhd is valid", "base.vhd is valid"]);
    let base = folder.path().join("base.vhd");
    fs::write(&base, golden::bytes("overlapping-blocks.vhd")).unwrap();
    ended(folder.path(), &["check", "-n", "leaf.vhd"], 0);
    ended(folder.path(), &["check", "-p", "-n", "leaf.vhd"], 22);
    // Somebody else is not its parent, and none at all is none.
    fs::write(&base, golden::bytes("meta.vhd")).unwrap();
    ended(folder.path(), &["check", "-t", "-n", "mid.vhd"], 22);
    ended(folder.path(), &["check", "-t", "-I", "-n", "mid.vhd"], 0);
    fs::remove_file(&base).unwrap();
    ended(folder.path(), &["check", "-n", "mid.vhd"], 22);
    let (_, told) = ended(folder.path(), &["check", "-n", "leaf.vhd"], 0);
    assert!(told.contains("base.vhd"), "{told}");
}

#[test]
fn statistics() {
    let folder = golden::unpack(&["prealloc.vhd"]);
    let out = done(folder.path(), &["check", "-s", "-n", "prealloc.vhd"]);
    assert_eq!(out, "prealloc.vhd: secs allocated: 0x1000 secs written: 0x5 (0.12%)\n");
    refused(folder.path(), &["check", "-s", "-B", "-n", "prealloc.vhd"], 22);
    refused(folder.path(), &["check", "-b", "-B", "-n", "prealloc.vhd"], 22);
}

/// What a bitmap does not show is no reason, unless it is looked for.
#[test]
fn stray_data() {
    let folder = golden::unpack(&["prealloc.vhd"]);
    let path = folder.path().join("prealloc.vhd");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 512 - 700] = 7;
    fs::write(&path, bytes).unwrap();
    done(folder.path(), &["check", "-n", "prealloc.vhd"]);
    ended(folder.path(), &["check", "-b", "-n", "prealloc.vhd"], 22);
}

/// What a crash of a writer leaves reads right: it is told, and mended by whatever writes to the image next.
#[test]
fn what_a_crash_has_left_does_not_stop_whoever_collects() {
    let folder = unpack(&["base.vhd", "mid.vhd"]);
    let told = |image: &str| ended(folder.path(), &["check", "-n", image], 0).1;
    fs::write(folder.path().join("base.vhd"), golden::bytes("torn-batmap.vhd")).unwrap();
    assert!(told("base.vhd").contains("checksum"), "{}", told("base.vhd"));
    ended(folder.path(), &["coalesce", "-n", "mid.vhd"], 0);
    assert_eq!(told("base.vhd"), "");

    let mid = folder.path().join("mid.vhd");
    let copy = fs::read(&mid).unwrap()[..512].to_vec();
    done(folder.path(), &["set", "-n", "mid.vhd", "-f", "hidden", "-v", "1"]);
    let mut bytes = fs::read(&mid).unwrap();
    assert_ne!(bytes[..512], copy);
    bytes[..512].copy_from_slice(&copy);
    fs::write(&mid, bytes).unwrap();
    assert!(told("mid.vhd").contains("differ"), "{}", told("mid.vhd"));
    done(folder.path(), &["modify", "-n", "mid.vhd", "-p", "base.vhd"]);
    assert_eq!(told("mid.vhd"), "");
}

#[test]
fn a_name_is_one_line() {
    let folder = golden::unpack(&["meta.vhd"]);
    fs::rename(folder.path().join("meta.vhd"), folder.path().join("a\nb.vhd")).unwrap();
    for args in [["check", "-n", "a\nb.vhd"], ["query", "-pn", "a\nb.vhd"]] {
        assert_eq!(done(folder.path(), &args).lines().count(), 1);
    }
}

/// What each layer holds, and what of it no layer beneath does.
#[test]
fn statistics_of_a_chain() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    done(at, &["create", "-n", "base.vhd", "-s", "8"]);
    write(at, "base.vhd", 0, &[1; 10 * 512]);
    done(at, &["snapshot", "-n", "mid.vhd", "-p", "base.vhd"]);
    write(at, "mid.vhd", 5 * 512, &[2; 10 * 512]);
    done(at, &["snapshot", "-n", "leaf.vhd", "-p", "mid.vhd"]);
    write(at, "leaf.vhd", 0, &[3; 20 * 512]);
    write(at, "leaf.vhd", 6 << 20, &[3; 512]);
    let all = done(at, &["check", "-t", "-p", "-s", "-n", "leaf.vhd"]);
    let expected = [
        "base.vhd: secs allocated: 0x1000 secs written: 0xa (0.24%)",
        "mid.vhd: secs allocated: 0x1000 secs written: 0xa (0.24%) secs not in parent: 0x5 (50.00%) \
         secs not in ancestors: 0x5 (50.00%)",
        "leaf.vhd: secs allocated: 0x2000 secs written: 0x15 (0.26%) secs not in parent: 0xb (52.38%) \
         secs not in ancestors: 0x6 (28.57%)",
    ];
    assert_eq!(all.lines().collect::<Vec<_>>(), expected);
    assert_eq!(
        done(at, &["check", "-t", "-s", "-n", "leaf.vhd"]),
        "leaf.vhd: secs allocated: 0x2000 secs written: 0x15 (0.26%)\n"
    );
}
