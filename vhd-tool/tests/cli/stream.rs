//! `stream`: disks that are sent, looked at with other eyes and with ours.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command as Shell, Stdio};
use std::time::Duration;

use testkit::{golden, peers};

use crate::program::{done, ended, expected, guest, json, names, refused, space, write};

/// A sparse raw disk of `size` bytes with some data at the given places.
pub(crate) fn raw(folder: &Path, name: &str, size: u64, data: &[(u64, usize)]) {
    let file = File::create(folder.join(name)).expect("the folder is writable");
    file.set_len(size).expect("the folder has room");
    for &(at, length) in data {
        let bytes: Vec<u8> = (0..length).map(|i| (at as usize + i * 7) as u8 | 1).collect();
        file.write_all_at(&bytes, at).expect("the folder has room");
    }
}

/// Runs a shell in which `$TOOL` is the program; expects success and gives standard output.
pub(crate) fn shell(folder: &Path, script: &str) -> Vec<u8> {
    let output = shell_ended(folder, script);
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// As [`shell`], whatever comes of it.
pub(crate) fn shell_ended(folder: &Path, script: &str) -> std::process::Output {
    let tool = assert_cmd::cargo::cargo_bin!("vhd-tool");
    let mut shell = Shell::new("bash");
    shell.args(["-c", &format!("set -o pipefail; {script}")]).env("TOOL", tool).current_dir(folder);
    shell.output().expect("bash runs")
}

pub(crate) fn same(folder: &Path, a: &str, b: &str) {
    let read = |name: &str| fs::read(folder.join(name)).expect("the file is there");
    assert!(read(a) == read(b), "{a} and {b} differ");
}

/// Three layers, each of which overrides some sectors of the others, and zeros some.
pub(crate) fn chain() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("there is room");
    let at = folder.path();
    done(at, &["create", "base.vhd", "--size", "13M"]);
    write(at, "base.vhd", 0, &[1; 3 << 20]);
    write(at, "base.vhd", (12 << 20) + 512, &[1; 4096]);
    done(at, &["create", "mid.vhd", "--parent", "base.vhd", "-q"]);
    write(at, "mid.vhd", 512, &[2; 1024]);
    write(at, "mid.vhd", 1 << 20, &[0; 2048]);
    write(at, "mid.vhd", (9 << 20) + 1536, &[2; 512]);
    done(at, &["create", "leaf.vhd", "--parent", "mid.vhd", "-q"]);
    write(at, "leaf.vhd", 1024, &[3; 512]);
    write(at, "leaf.vhd", (13 << 20) - 512, &[3; 512]);
    write(at, "leaf.vhd", (12 << 20) + 512, &[0; 512]);
    for name in ["base", "mid", "leaf"] {
        done(at, &["convert", &format!("{name}.vhd"), &format!("{name}.img"), "--to", "raw"]);
    }
    folder
}

#[test]
fn a_raw_disk_of_any_size_goes_through_a_vhd_and_back() {
    for (size, data) in [
        (513 * 512, &[(0, 512), (512 * 512, 512)][..]),
        (2 << 20, &[(4096, 100)]),
        ((7 << 20) + 1536, &[(1 << 20, 3 << 20), ((7 << 20) + 1024, 512)]),
        (64 << 20, &[(5 << 20, 7)]),
        (5000, &[(4990, 10)]),
        (512, &[]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        raw(at, "disk.img", size, data);
        done(at, &["stream", "--source", "disk.img", "--destination", "a.vhd", "--destination-format", "vhd"]);
        shell(at, "$TOOL stream --source disk.img --destination-format vhd > b.vhd");
        shell(at, "$TOOL stream --source disk.img --destination-format vhd | cat > c.vhd");
        let vhd = fs::metadata(at.join("a.vhd")).unwrap().len();
        for name in ["a", "b", "c"] {
            let image = format!("{name}.vhd");
            assert_eq!(fs::metadata(at.join(&image)).unwrap().len(), vhd, "{name} {size}");
            done(at, &["check", &image]);
            peers::qemu_img(&["info", "-f", "vpc", at.join(&image).to_str().unwrap()]);
            shell(at, &format!("cat {image} | $TOOL serve --source-format vhd --destination {name}.img"));
            let mut expected = fs::read(at.join("disk.img")).unwrap();
            expected.resize(expected.len().next_multiple_of(512), 0);
            assert!(fs::read(at.join(format!("{name}.img"))).unwrap() == expected, "{name} {size}");
            let qemu = peers::qemu_sha256(&at.join(&image));
            assert_eq!(qemu, testkit::sha256(&expected), "qemu reads {image} of {size}");
        }
    }
}

#[test]
fn holes_are_left_out() {
    let folder = tempfile::tempdir().unwrap();
    raw(folder.path(), "disk.img", 500 << 30, &[(300 << 30, 512)]);
    done(folder.path(), &["stream", "--source", "disk.img", "--destination", "a.vhd", "--destination-format", "vhd"]);
    assert!(fs::metadata(folder.path().join("a.vhd")).unwrap().len() < 4 << 20);
    done(folder.path(), &["serve", "--source", "a.vhd", "--source-format", "vhd", "--destination", "back.img"]);
    assert!(space(&folder.path().join("back.img")) <= 64 << 10);
    done(folder.path(), &["compare", "disk.img", "back.img"]);
}

#[test]
fn golden_chains_are_flattened() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd", "fixed-4m.vhd"]);
    for name in ["leaf.vhd", "fixed-4m.vhd", "base.vhd"] {
        let stream = ["stream", "--source", name, "--source-format", "vhd", "--destination", "flat.vhd"];
        done(folder.path(), &[&stream[..], &["--destination-format", "vhd"]].concat());
        assert_eq!(guest(folder.path(), "flat.vhd"), expected(name));
        assert_eq!(peers::qemu_sha256(&folder.path().join("flat.vhd")), expected(name));
        let uuid = |file: &str| json(folder.path(), &["info", file])["uuid"].clone();
        assert_eq!(uuid("flat.vhd"), uuid(name), "children of it find it");
        fs::remove_file(folder.path().join("flat.vhd")).unwrap();
        done(folder.path(), &["stream", "--source", name, "--source-format", "vhd", "--destination", "flat.img"]);
        assert_eq!(testkit::sha256(&fs::read(folder.path().join("flat.img")).unwrap()), expected(name));
        fs::remove_file(folder.path().join("flat.img")).unwrap();
    }
}

#[test]
fn a_difference_applies_to_a_copy_of_the_base_and_opens_as_its_child() {
    for (source, base) in [("leaf", "base"), ("leaf", "mid"), ("mid", "base"), ("mid", "leaf"), ("leaf", "leaf")] {
        let folder = chain();
        let at = folder.path();
        let (image, over, raw) = (format!("{source}.vhd"), format!("{base}.vhd"), format!("{source}.img"));
        shell(
            at,
            &format!(
                "$TOOL stream --source {image} --source-format vhd --relative-to {over} --destination-format vhd \
                 --path /nowhere:. --destination-fd 7 7> delta.vhd
                 cp {base}.img copy.img
                 cat delta.vhd | $TOOL serve --source-format vhd --source-fd 8 --destination copy.img 8<&0"
            ),
        );
        same(at, "copy.img", &raw);
        done(at, &["compare", "delta.vhd", &raw]);
        let chunks = format!("stream --source {image} --source-format vhd --relative-to {over}");
        shell(
            at,
            &format!(
                "cp {base}.img again.img
                 $TOOL {chunks} --destination-protocol chunked |
                 $TOOL serve --source-protocol chunked --destination again.img"
            ),
        );
        same(at, "again.img", &raw);
    }
}

#[test]
fn a_difference_holds_only_the_sectors_that_differ_where_that_is_asked_for() {
    let folder = chain();
    let at = folder.path();
    let stream = ["stream", "--source", "leaf.vhd", "--source-format", "vhd", "--relative-to", "mid.vhd"];
    let sectors = ["--sector-deltas", "--destination-format", "vhd", "--destination", "delta.vhd"];
    done(at, &[&stream[..], &sectors].concat());
    let map = json(at, &["map", "delta.vhd"]);
    let of_top = map.as_array().unwrap().iter().filter(|extent| extent["layer"] == 0);
    assert_eq!(of_top.map(|extent| extent["length"].as_u64().unwrap()).sum::<u64>(), 3 * 512, "{map}");
    let info = json(at, &["info", "delta.vhd"]);
    assert_eq!(info["type"], "differencing");
    // A base that shares no layer with the disk: all that either holds.
    done(at, &["convert", "base.vhd", "other.vhd", "--to", "dynamic"]);
    let stream = ["stream", "--source", "leaf.vhd", "--source-format", "vhd", "--relative-to", "other.vhd"];
    done(at, &[&stream[..], &["--destination-format", "vhd", "--destination", "apart.vhd"]].concat());
    done(at, &["compare", "apart.vhd", "leaf.img"]);
}

#[test]
fn hybrid_reads_the_device_where_the_image_holds_data() {
    let folder = chain();
    let at = folder.path();
    // What the device holds elsewhere is not looked at.
    let device = File::options().write(true).open(at.join("leaf.img")).unwrap();
    device.write_all_at(&[9; 4096], 6 << 20).unwrap();
    fs::copy(at.join("leaf.img"), at.join("device")).unwrap();
    let stream = ["stream", "--source", "device:leaf.vhd", "--source-format", "hybrid"];
    done(at, &[&stream[..], &["--destination-format", "vhd", "--destination", "a.vhd"]].concat());
    done(at, &["compare", "a.vhd", "leaf.vhd"]);
    let relative = ["--relative-to", "base.vhd", "--destination-format", "vhd", "--destination", "b.vhd"];
    done(at, &[&stream[..], &relative].concat());
    done(at, &["compare", "b.vhd", "leaf.vhd"]);
    fs::write(at.join("small"), [0; 4096]).unwrap();
    let small = ["stream", "--source", "small:leaf.vhd", "--source-format", "hybrid", "--destination", "c.img"];
    refused(at, &small, 5, &["small: has 4096 bytes, fewer than the disk"]);
}

#[test]
fn raw_bytes_go_into_files_with_holes_and_into_pipes_with_zeros() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    raw(at, "disk.img", (9 << 20) + 77, &[(3 << 20, 5000)]);
    done(at, &["stream", "--source", "disk.img", "--destination", "file://a.img"]);
    shell(at, "$TOOL stream --source disk.img > b.img; $TOOL stream --source disk.img | cat > c.img");
    for name in ["a.img", "b.img", "c.img"] {
        same(at, name, "disk.img");
    }
    assert!(space(&at.join("a.img")) < 64 << 10 && space(&at.join("b.img")) < 64 << 10);
    // What was there is gone.
    fs::write(at.join("old.img"), vec![7; 12 << 20]).unwrap();
    done(at, &["stream", "--source", "disk.img", "--destination", "old.img"]);
    same(at, "old.img", "disk.img");
    done(at, &["stream", "--source", "disk.img", "--destination", "null:"]);
}

#[test]
fn chunks_and_archives_go_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (size, data) in [
        ((9 << 20) + 512, &[(3 << 20, 5000), ((5 << 20) - 1, 2)][..]),
        (3 << 20, &[(0, 1 << 20)]),
        (4096, &[]),
        ((1 << 20) + 7, &[((1 << 20) + 6, 1)]),
    ] {
        raw(at, "disk.img", size, data);
        for options in ["chunked", "chunked --prezeroed", "tar --tar-filename-prefix Ref:1/"] {
            shell(
                at,
                &format!(
                    "rm -f back.img; $TOOL stream --source disk.img --destination-protocol {options} |
                     $TOOL serve --source-protocol {options} --destination back.img --destination-size {size}"
                ),
            );
            same(at, "back.img", "disk.img");
        }
    }
}

#[test]
fn an_archive_has_the_members_that_importers_expect() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    raw(at, "disk.img", 6 << 20, &[(3 << 20, 5000)]);
    let script = "$TOOL stream --source disk.img --destination-protocol tar --tar-filename-prefix Ref:1/ > a.tar
        tar tf a.tar; tar xf a.tar --force-local
        sha1sum Ref:1/00000003 | cut -c -40 | tr -d '\\n' | cmp - Ref:1/00000003.checksum";
    let listed = String::from_utf8(shell(at, script)).unwrap();
    let members: Vec<&str> = listed.lines().collect();
    assert_eq!(
        members,
        [
            "Ref:1/00000000",
            "Ref:1/00000000.checksum",
            "Ref:1/00000003",
            "Ref:1/00000003.checksum",
            "Ref:1/00000005",
            "Ref:1/00000005.checksum"
        ]
    );
    let tar = |prefix: &str| {
        shell_ended(
            at,
            &format!(
                "$TOOL stream --source disk.img --destination-protocol tar --tar-filename-prefix {prefix} > b.tar"
            ),
        )
    };
    let (most, more) = (tar(&"p".repeat(60)), tar(&"p".repeat(61)));
    assert!(most.status.success() && more.status.code() == Some(2), "{most:?} {more:?}");
    // Without a prefix, the folder of the first block is that of the disk.
    let serve = "$TOOL serve --source-protocol tar --destination-size 6291456 --destination back.img < a.tar";
    shell(at, serve);
    same(at, "back.img", "disk.img");
}

#[test]
fn people_see_what_would_be_sent() {
    let folder = tempfile::tempdir().unwrap();
    raw(folder.path(), "disk.img", 1 << 20, &[(8192, 4096)]);
    let text = done(folder.path(), &["stream", "--source", "disk.img", "--destination-protocol", "human"]);
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words, ["0", "8192", "zeros", "8192", "4096", "data", "12288", "1036288", "zeros"]);
    // What is moved in several pieces is one run.
    raw(folder.path(), "long.img", 4 << 20, &[(0, 3 << 20)]);
    let text = done(folder.path(), &["stream", "--source", "long.img", "--destination-protocol", "human"]);
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words, ["0", "3145728", "data", "3145728", "1048576", "zeros"]);
}

/// All percents, as a program reads them.
pub(crate) fn percents() -> String {
    (0..=100).map(|percent| format!("{percent:03}")).collect()
}

#[test]
fn a_parent_in_another_folder_is_found_by_its_name() {
    let folder = chain();
    let at = folder.path();
    fs::create_dir(at.join("parents")).unwrap();
    for parent in ["base.vhd", "mid.vhd"] {
        fs::rename(at.join(parent), at.join("parents").join(parent)).unwrap();
    }
    let stream = "$TOOL stream --source leaf.vhd --source-format vhd --destination-format raw --destination";
    let output = shell_ended(at, &format!("{stream} lost.img --path /nowhere:."));
    assert!(!output.status.success() && !at.join("lost.img").exists());
    shell(at, &format!("{stream} found.img --path /nowhere:parents:."));
    same(at, "found.img", "leaf.img");
}

#[test]
fn a_machine_reads_three_digits_for_each_percent_and_nothing_else() {
    let folder = chain();
    let at = folder.path();
    let xapi = "--tar-filename-prefix '' --progress --machine --direct";
    for format in ["vhd", "raw"] {
        let out = shell(
            at,
            &format!(
                "$TOOL stream --source-protocol none --source-format hybrid --source leaf.img:leaf.vhd \
                 --destination-protocol none --destination-format {format} --destination-fd 7 {xapi} \
                 --path /dev/mapper:. 7> out"
            ),
        );
        assert_eq!(String::from_utf8(out).unwrap(), percents());
    }
    // Where the disk goes to standard output, the digits go elsewhere.
    let output = shell_ended(at, &format!("$TOOL stream --source leaf.img {xapi}"));
    assert!(output.stdout == fs::read(at.join("leaf.img")).unwrap());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), percents());
    let (stdout, stderr) = ended(at, &["stream", "--source", "leaf.img", "--destination", "null:", "--progress"], 0);
    assert!(stdout.is_empty() && stderr.starts_with("stream: 13.0 MiB in "), "{stderr}");
    assert_eq!(ended(at, &["stream", "--source", "leaf.img", "--destination", "null:"], 0), Default::default());
}

#[test]
fn what_makes_no_sense_is_refused_and_leaves_nothing() {
    let folder = chain();
    let at = folder.path();
    let before = names(at);
    let leaf = ["stream", "--source", "leaf.vhd", "--source-format", "vhd", "--destination", "x"];
    for (options, code, part) in [
        (&["--relative-to", "base.vhd"][..], 2, "cannot be sent without a protocol"),
        (&["--relative-to", "base.vhd", "--destination-protocol", "tar"], 2, "cannot be sent as tar"),
        (&["--destination-format", "vhd", "--destination-protocol", "chunked"], 2, "a VHD cannot be sent in chunks"),
        (&["--source-protocol", "chunked"], 2, "`serve` takes disks from streams"),
        (&["--relative-to", "nowhere.vhd", "--destination-format", "vhd"], 5, "nowhere.vhd"),
    ] {
        refused(at, &[&leaf[..], options].concat(), code, &[part]);
    }
    refused(at, &["stream", "--source", "leaf.vhd", "--source-format", "hybrid"], 2, &["DEVICE:VHD"]);
    refused(at, &["stream", "--source", "stdin:"], 2, &["must be a file"]);
    refused(at, &["stream", "--source", "."], 5, &["must be a file"]);
    refused(at, &["stream", "--source", "leaf.img", "--destination-fd", "77"], 5, &["file descriptor 77"]);
    let own = ["stream", "--source", "leaf.vhd", "--source-format", "vhd", "--destination", "base.vhd"];
    refused(at, &own, 5, &["base.vhd: would be replaced"]);
    let long = "x".repeat(61);
    let tar = ["stream", "--source", "leaf.img", "--destination", "x", "--destination-protocol", "tar"];
    refused(at, &[&tar[..], &["--tar-filename-prefix", &long]].concat(), 2, &["longer than 60"]);
    assert_eq!(names(at), before);
}

#[test]
fn a_reader_that_goes_away_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    raw(folder.path(), "disk.img", 64 << 20, &[(0, 8 << 20)]);
    let output = shell_ended(folder.path(), "$TOOL stream --source disk.img --destination-format vhd | head -c 100");
    assert_eq!(output.status.code(), Some(5));
    assert!(String::from_utf8(output.stderr).unwrap().contains("cannot write to the destination"));
}

/// Runs the program with a file as its input or output, and gives the most memory that it used.
fn memory(folder: &Path, args: &[&str], stdin: Stdio, stdout: Stdio) -> u64 {
    let mut tool = Shell::new(assert_cmd::cargo::cargo_bin!("vhd-tool"));
    let mut child = tool.current_dir(folder).args(args).stdin(stdin).stdout(stdout).spawn().expect("it starts");
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    loop {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        most = peak.unwrap_or(0).max(most);
        if let Some(ended) = child.try_wait().expect("it can be waited for") {
            assert!(ended.success(), "{args:?}");
            return most << 10;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn memory_does_not_grow_with_the_disk() {
    const MOST: u64 = 64 << 20;
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    raw(at, "disk.img", 2040 << 30, &[(0, 4096), (1 << 40, 64 << 20), ((2040 << 30) - 512, 512)]);
    let stream = ["stream", "--source", "disk.img", "--destination-format", "vhd"];
    let sent = memory(at, &stream, Stdio::null(), File::create(at.join("a.vhd")).unwrap().into());
    assert!((1..MOST).contains(&sent), "{sent}");
    let serve = ["serve", "--source-format", "vhd", "--destination", "back.img"];
    let received = memory(at, &serve, File::open(at.join("a.vhd")).unwrap().into(), Stdio::null());
    assert!((1..MOST).contains(&received), "{received}");
    testkit::tell!("memory for a disk of 2040 GiB: {} KiB to send, {} KiB to receive", sent >> 10, received >> 10);
    done(at, &["compare", "disk.img", "back.img"]);
    assert!(space(&at.join("back.img")) < 80 << 20);
}
