//! Files that are no disks but hold some: taken for raw disks only where that is asked for.

use std::fs;
use std::path::Path;

use testkit::{golden, peers};

use crate::program::{command, done, names, refused};
use crate::stream::{raw, same};

/// The first bytes of a container, what it is called, and what helps.
type Container = (&'static str, Vec<u8>, &'static str, &'static str);

fn at(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut head = vec![0; offset];
    head.extend(bytes);
    head.resize(70_000, 0x5a);
    head
}

/// Containers that the tools of the tests do not make.
fn containers() -> Vec<Container> {
    let mut tail = vec![7; 69_632];
    tail[69_120..69_124].copy_from_slice(b"koly");
    let end = |bytes: &[u8]| at(0, bytes);
    vec![
        ("cowd", end(b"COWD\x01\0\0\0"), "a VMDK image", "qemu-img convert"),
        ("sesparse", end(b"\xbe\xba\xfe\xca\0\0\0\0"), "a VMDK image", "qemu-img convert"),
        ("old.parallels", end(b"WithoutFreeSpace"), "a Parallels image", "qemu-img convert"),
        ("dmg", tail, "an Apple disk image", "qemu-img convert"),
        ("bz2", end(b"BZh91AY&SY"), "compressed by bzip2", "unpack"),
        ("zst", end(b"\x28\xb5\x2f\xfd"), "compressed by zstd", "unpack"),
        ("lz4", end(b"\x04\x22\x4d\x18"), "compressed by lz4", "unpack"),
        ("xz", end(b"\xfd7zXZ\0"), "compressed by xz", "unpack"),
        ("zip", end(b"PK\x03\x04"), "a zip archive", "take the disk out"),
        ("7z", end(b"7z\xbc\xaf\x27\x1c"), "a 7z archive", "take the disk out"),
        ("rar", end(b"Rar!\x1a\x07"), "a rar archive", "take the disk out"),
        ("posix.tar", at(257, b"ustar\0"), "a tar archive", "take the disk out"),
    ]
}

/// Containers that real programs make.
fn made(folder: &Path) -> Vec<(&'static str, &'static str, &'static str)> {
    raw(folder, "disk", 4 << 20, &[(0, 4096), (1 << 20, 700)]);
    let mut found = Vec::new();
    for (name, format, options, told) in [
        ("a.vhdx", "vhdx", "", "a VHDX image"),
        ("a.qcow2", "qcow2", "", "a QCOW image"),
        ("a.qcow", "qcow", "", "a QCOW image"),
        ("a.qed", "qed", "", "a QED image"),
        ("a.vdi", "vdi", "", "a VDI image"),
        ("a.parallels", "parallels", "", "a Parallels image"),
        ("a.vmdk", "vmdk", "", "a VMDK image"),
        ("flat.vmdk", "vmdk", "subformat=monolithicFlat", "a VMDK image"),
    ] {
        let path = |name: &str| folder.join(name).display().to_string();
        let (disk, made) = (path("disk"), path(name));
        let options: &[&str] = if options.is_empty() { &[] } else { &["-o", options] };
        peers::qemu_img(&[&["convert", "-f", "raw", "-O", format], options, &[&disk, &made]].concat());
        found.push((name, told, "qemu-img convert"));
    }
    crate::stream::shell(folder, "gzip -k disk; mkdir Ref:1; cp disk Ref:1/00000000; cp disk ova.xml");
    crate::stream::shell(folder, "tar --format=v7 --force-local -cf a.xva ova.xml Ref:1; tar -cf a.ova ova.xml");
    crate::stream::shell(folder, "rm -r Ref:1 ova.xml");
    found.extend([
        ("disk.gz", "compressed by gzip", "unpack"),
        ("a.xva", "a tar archive", "take the disk out"),
        ("a.ova", "a tar archive", "take the disk out"),
    ]);
    found
}

/// Holds every command that takes a raw file to it.
fn is_refused_unless_asked_for(at: &Path, name: &str, told: &str, help: &str) {
    let told_of = told;
    let told = [&format!("{name}: is {told}"), help];
    let parts = |option: &'static str| [&told[..], &[option]].concat();
    fs::create_dir(at.join("out")).expect("the folder is writable");
    let convert = ["convert", name, "out/x", "--to", "raw"];
    refused(at, &convert, 5, &parts("--from raw"));
    let stream = ["stream", "--source", name, "--destination", "out/x"];
    refused(at, &stream, 5, &parts("--source-format raw"));
    refused(at, &["compare", name, "disk"], 5, &parts("--a-format raw"));
    refused(at, &["compare", "disk", name], 5, &parts("--b-format raw"));
    let delta =
        ["stream", "--source", "disk", "--destination-format", "vhd", "--destination", "out/x", "--relative-to"];
    refused(at, &[&delta[..], &[name]].concat(), 5, &parts("--relative-format raw"));
    let bytes = fs::read(at.join(name)).expect("the file is there");
    let serve = ["serve", "--destination", "out/x"];
    // What only its end shows cannot be told in a stream before that is written.
    if name != "dmg" {
        let output = command(at, &serve).write_stdin(&bytes[..]).assert().code(5).get_output().clone();
        let error = String::from_utf8(output.stderr).expect("the program prints UTF-8");
        assert!(error.contains(&format!("is {told_of}")) && error.contains("--source-format raw"), "{error}");
    }
    assert_eq!(names(&at.join("out")), [""; 0], "{name}");

    done(at, &[&convert[..], &["--from", "raw"]].concat());
    same(at, "out/x", name);
    done(at, &["compare", "out/x", name, "--a-format", "raw", "--b-format", "raw"]);
    fs::remove_file(at.join("out/x")).expect("it was made");
    done(at, &[&stream[..], &["--source-format", "raw"]].concat());
    same(at, "out/x", name);
    fs::remove_file(at.join("out/x")).expect("it was made");
    command(at, &[&serve[..], &["--source-format", "raw"]].concat()).write_stdin(&bytes[..]).assert().success();
    same(at, "out/x", name);
    fs::remove_file(at.join("out/x")).expect("it was made");
    done(at, &[&delta[..], &[name, "--relative-format", "raw"]].concat());
    fs::remove_dir_all(at.join("out")).expect("it was made");
}

#[test]
fn what_holds_a_disk_is_not_taken_for_one() {
    let folder = tempfile::tempdir().unwrap();
    let made = made(folder.path());
    for (name, bytes, told, help) in containers() {
        let whole = bytes.len() / 512 * 512;
        fs::write(folder.path().join(name), &bytes[..whole]).unwrap();
        is_refused_unless_asked_for(folder.path(), name, told, help);
    }
    for (name, told, help) in made {
        let file = fs::File::options().write(true).open(folder.path().join(name)).unwrap();
        // Whole sectors, so that what is made of it is as long.
        file.set_len(file.metadata().unwrap().len().next_multiple_of(512)).unwrap();
        is_refused_unless_asked_for(folder.path(), name, told, help);
    }
}

#[test]
fn what_a_guest_puts_onto_its_disk_is_a_disk() {
    let folder = tempfile::tempdir().unwrap();
    for (name, head) in [
        ("luks", at(0, b"LUKS\xba\xbe\0\x02")),
        ("iso", at(32_769, b"CD001\x01")),
        ("mbr", at(510, b"\x55\xaa")),
        ("gpt", at(512, b"EFI PART")),
        ("lvm", at(512, b"LABELONE")),
        ("ext4", at(1080, b"\x53\xef")),
        ("zeros", vec![0; 70_144]),
        ("text", vec![b'#'; 70_144]),
        ("short", vec![7; 3]),
    ] {
        fs::write(folder.path().join(name), &head).unwrap();
        done(folder.path(), &["convert", name, "x.vhd", "--to", "dynamic", "--force"]);
        done(folder.path(), &["compare", name, "x.vhd"]);
        done(folder.path(), &["stream", "--source", name, "--destination", "null:"]);
    }
}

/// The image says that its parent is a raw disk, and what the guest of that has written decides nothing.
#[test]
fn a_raw_parent_may_hold_anything() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("disk"), &at(0, b"QFI\xfb\0\0\0\x03")[..65_536]).unwrap();
    done(folder.path(), &["create", "child.vhd", "--parent", "disk", "--parent-raw"]);
    done(folder.path(), &["convert", "child.vhd", "x", "--to", "raw"]);
    same(folder.path(), "x", "disk");
}

#[test]
fn what_is_left_of_a_vhd_is_no_raw_disk() {
    let folder = golden::unpack(&["fixed-4m.vhd", "base.vhd"]);
    let at = folder.path();
    let read = |name: &str| fs::read(at.join(name)).unwrap();
    let (fixed, dynamic) = (read("fixed-4m.vhd"), read("base.vhd"));
    let disk = fixed[..4 << 20].to_vec();
    let cut = |bytes: &[u8], count: usize| bytes[..bytes.len() - count].to_vec();
    let mut cases: Vec<(String, Vec<u8>)> = Vec::new();
    for count in (2..512).step_by(13).chain([502, 503, 504, 505, 510, 511]) {
        cases.push((format!("the footer cut by {count}"), cut(&fixed, count)));
    }
    let mut head = cut(&dynamic, 512);
    head[100] ^= 1;
    cases.push(("a damaged copy".into(), head.clone()));
    head[..512].fill(0);
    cases.push(("a header alone".into(), head));
    for (case, bytes) in cases {
        fs::write(at.join("disk.img"), bytes).unwrap();
        for args in [&["convert", "disk.img", "x", "--to", "raw"][..], &["compare", "disk.img", "disk.img"]] {
            refused(at, args, 5, &["disk.img: not a VHD, or its footer is lost", "hint: "]);
        }
        refused(at, &["stream", "--source", "disk.img", "--destination", "x"], 5, &["disk.img: is a VHD"]);
        assert!(!at.join("x").exists(), "{case}");
    }
    // Without any of its footer the disk is there, and nothing else.
    fs::write(at.join("disk.img"), &disk).unwrap();
    done(at, &["convert", "disk.img", "x", "--to", "raw"]);
    same(at, "x", "disk.img");
    // With its footer, but without data before that, something is missing.
    for count in [1, 100, 511, 512, 513] {
        let mut short = fixed.clone();
        short.drain((4 << 20) - count..4 << 20);
        fs::write(at.join("short.img"), short).unwrap();
        let told = format!("before its footer: {count} are missing");
        for args in [
            &["convert", "short.img", "y", "--to", "raw"][..],
            &["read", "short.img"],
            &["compare", "short.img", "disk.img"],
            &["stream", "--source", "short.img", "--source-format", "vhd", "--destination", "y"],
        ] {
            refused(at, args, 5, &[&told]);
        }
        let serve = ["serve", "--source", "short.img", "--source-format", "vhd", "--destination", "y"];
        refused(at, &serve, 5, &["error: "]);
        assert!(!at.join("y").exists());
    }
}

#[test]
fn an_image_is_not_sent_as_a_raw_disk_unless_asked_for() {
    let folder = golden::unpack(&["fixed-4m.vhd", "base.vhd"]);
    for name in ["fixed-4m.vhd", "base.vhd"] {
        let stream = ["stream", "--source", name, "--destination", "x"];
        refused(folder.path(), &stream, 5, &["is a VHD", "--source-format vhd", "--source-format raw"]);
        done(folder.path(), &[&stream[..], &["--source-format", "raw"]].concat());
        same(folder.path(), "x", name);
        fs::remove_file(folder.path().join("x")).unwrap();
    }
    refused(folder.path(), &["convert", "base.vhd", "x", "--to", "raw", "--from", "hdd"], 2, &["--from"]);
    done(folder.path(), &["convert", "base.vhd", "x", "--to", "raw", "--from", "raw"]);
    same(folder.path(), "x", "base.vhd");
}

#[test]
fn an_image_of_another_format_named_as_a_vhd_is_called_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("disk.vhd"), at(0, b"vhdxfile")).unwrap();
    refused(folder.path(), &["convert", "disk.vhd", "x", "--to", "raw"], 5, &["disk.vhd: is a VHDX image"]);
}
