//! `serve`: disks that arrive, whole or broken.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Stdio;
use std::time::Duration;

use testkit::golden;

use crate::program::{command, done, expected, guest, names, refused, space};
use crate::stream::{chain, percents, raw, same, shell, shell_ended};

#[test]
fn golden_images_arrive_through_pipes() {
    let images = ["base.vhd", "fixed-4m.vhd", "empty-10m.vhd"];
    let folder = golden::unpack(&images);
    for name in images {
        let at = folder.path();
        let size = fs::metadata(at.join(name)).unwrap().len();
        for size in [String::new(), format!("--destination-size {size}")] {
            shell(at, &format!("rm -f x.img; cat {name} | $TOOL serve --source-format vhd --destination x.img {size}"));
            assert_eq!(testkit::sha256(&fs::read(at.join("x.img")).unwrap()), expected(name), "{name} {size}");
        }
    }
}

#[test]
fn it_ends_with_the_image_even_if_the_pipe_stays_open() {
    for name in ["base.vhd", "fixed-4m.vhd"] {
        let folder = golden::unpack(&[name]);
        let tool = assert_cmd::cargo::cargo_bin!("vhd-tool");
        let mut child = std::process::Command::new(tool)
            .args(["serve", "--source-format", "vhd", "--destination", "x.img"])
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pipe = child.stdin.take().unwrap();
        pipe.write_all(&golden::bytes(name)).unwrap();
        let ended = (0..300).find_map(|_| {
            std::thread::sleep(Duration::from_millis(100));
            child.try_wait().unwrap()
        });
        assert!(ended.expect("it does not wait for more").success(), "{name}");
        drop(pipe);
        // Nothing in a fixed disk tells that no more comes: that is said.
        let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
        assert_eq!(said.contains("was taken for complete"), name == "fixed-4m.vhd", "{said}");
        let closed = command(folder.path(), &["serve", "--source-format", "vhd", "--destination", "y.img"])
            .write_stdin(golden::bytes(name))
            .assert()
            .success();
        assert!(!String::from_utf8_lossy(&closed.get_output().stderr).contains("taken for complete"));
        assert_eq!(testkit::sha256(&fs::read(folder.path().join("x.img")).unwrap()), expected(name));
    }
}

/// A sender that pauses for long, more than once, is waited for.
#[test]
fn a_stream_that_pauses_in_the_middle_arrives() {
    let folder = chain();
    let at = folder.path();
    done(at, &["stream", "--source", "leaf.img", "--destination", "a.vhd", "--destination-format", "vhd"]);
    let pause = "{ head -c 1000000; sleep 11; head -c 3000000; sleep 6; cat; } < a.vhd";
    shell(at, &format!("{pause} | $TOOL serve --source-format vhd --destination back.img"));
    same(at, "back.img", "leaf.img");
}

#[test]
fn an_image_in_another_order_is_refused_with_what_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    shell(at, "$TOOL create a.vhd --size 4M -q && echo content | $TOOL write a.vhd --offset 0 -q");
    let mut bytes = fs::read(at.join("a.vhd")).unwrap();
    testkit::old_layout::tables_behind_blocks(&mut bytes);
    fs::write(at.join("a.vhd"), bytes).unwrap();
    let parts = ["cannot be read front to back", "before what was read already", "hint: `stream --source FILE"];
    let serve = ["serve", "--source", "a.vhd", "--source-format", "vhd", "--destination", "x.img"];
    refused(at, &serve, 5, &parts);
    assert!(!at.join("x.img").exists());
    shell(
        at,
        "$TOOL stream --source a.vhd --source-format vhd --destination-format vhd | $TOOL serve --source-format vhd --destination x.img",
    );
    done(at, &["compare", "a.vhd", "x.img"]);
}

#[test]
fn bytes_may_come_one_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    raw(at, "disk.img", 70_000, &[(0, 600), (69_000, 1000)]);
    done(at, &["stream", "--source", "disk.img", "--destination-protocol", "tar", "--destination", "a.tar"]);
    done(at, &["stream", "--source", "disk.img", "--destination-protocol", "chunked", "--destination", "a.chunks"]);
    for (file, protocol) in [("disk.img", "none"), ("a.tar", "tar"), ("a.chunks", "chunked")] {
        let slow = format!("dd if={file} bs=1 status=none");
        shell(
            at,
            &format!(
                "rm -f back.img; {slow} | $TOOL serve --source-protocol {protocol} --destination back.img \
                 --destination-size 70000"
            ),
        );
        same(at, "back.img", "disk.img");
    }
}

#[test]
fn every_stream_that_breaks_off_is_an_error_and_leaves_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    raw(at, "disk.img", 3 << 20, &[(0, 600), ((2 << 20) + 7, 1000)]);
    for (protocol, format) in [("none", "vhd"), ("tar", "raw"), ("chunked", "raw"), ("none", "raw")] {
        let to = ["--destination-protocol", protocol, "--destination-format", format, "--destination", "whole"];
        let _ = fs::remove_file(at.join("whole"));
        done(at, &[&["stream", "--source", "disk.img"][..], &to].concat());
        let whole = fs::read(at.join("whole")).unwrap();
        let size = if format == "vhd" { whole.len() } else { 3 << 20 }.to_string();
        let serve = ["serve", "--source-format", format, "--source-protocol", protocol, "--destination", "x"];
        let last = whole.len();
        for cut in [0, 1, 11, 13, 511, 512, 600, 1536, 2048, 9000, 1 << 20, last / 2, last - 600, last - 13, last - 1] {
            let mut command = command(at, &[&serve[..], &["--destination-size", &size]].concat());
            let output = command.write_stdin(&whole[..cut]).assert().code(5).get_output().clone();
            let text = String::from_utf8(output.stderr).unwrap();
            assert!(text.starts_with("error: "), "{protocol} {format} {cut}: {text}");
            assert_eq!(names(at), ["disk.img", "whole"]);
        }
        command(at, &[&serve[..], &["--destination-size", &size]].concat()).write_stdin(whole).assert().success();
        same(at, "x", "disk.img");
        fs::remove_file(at.join("x")).unwrap();
    }
}

#[test]
fn what_arrives_in_part_in_place_is_called_incomplete() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("x"), [7; 4096]).unwrap();
    let output =
        command(at, &["serve", "--destination", "x", "--destination-size", "9999"]).write_stdin("abc").assert();
    let text = String::from_utf8(output.code(5).get_output().stderr.clone()).unwrap();
    assert!(
        text.contains("the source ends at offset 3") && text.contains("hint: the destination is written in place"),
        "{text}"
    );
}

#[test]
fn a_tampered_archive_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    raw(at, "disk.img", 2 << 20, &[(0, 600), ((1 << 20) + 7, 1000)]);
    done(at, &["stream", "--source", "disk.img", "--destination-protocol", "tar", "--destination", "a.tar"]);
    let good = fs::read(at.join("a.tar")).unwrap();
    let serve = ["serve", "--source-protocol", "tar", "--destination", "x", "--destination-size", "2097152"];
    let resized = |bytes: &mut Vec<u8>, header: usize, size: &[u8; 12]| {
        bytes[header + 124..header + 136].copy_from_slice(size);
        bytes[header + 148..header + 156].fill(b' ');
        let sum: u32 = bytes[header..header + 512].iter().map(|&byte| u32::from(byte)).sum();
        bytes[header + 148..header + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    };
    let checksum = 512 + (1 << 20);
    let mut cases: Vec<(&str, Vec<u8>)> = Vec::new();
    for (part, at) in [("has checksum", 700), ("no member starts here", 3), ("no member starts here", checksum + 4)] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        cases.push((part, bad));
    }
    for size in [b"77777777777\0", b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", b"00004000001\0"] {
        let mut bad = good.clone();
        resized(&mut bad, 0, size);
        cases.push(("a member of", bad));
        let mut bad = good.clone();
        resized(&mut bad, checksum, size);
        cases.push(("no checksum of block 0", bad));
    }
    cases.push(("no checksum of block 0", [&good[..checksum], &good[checksum + 1024..]].concat()));
    cases.push(("comes after block", [&good[..checksum + 1024], &good[..]].concat()));
    for (part, bad) in cases {
        let output = command(at, &serve).write_stdin(bad).assert().code(5).get_output().clone();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(part), "{part}: {text}");
        assert_eq!(names(at), ["a.tar", "disk.img"]);
    }
    refused(at, &["serve", "--source-protocol", "tar", "--destination", "x"], 2, &["--destination-size"]);
}

fn frame(offset: u64, length: u32, bytes: &[u8]) -> Vec<u8> {
    [&offset.to_le_bytes()[..], &length.to_le_bytes(), bytes].concat()
}

#[test]
fn absurd_frames_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let serve = ["serve", "--source-protocol", "chunked", "--destination", "x"];
    for (frame, size, part) in [
        (frame(0, u32::MAX, b"abc"), None, "within the bytes of a frame"),
        (frame(u64::MAX, 1, b"a"), None, "18446744073709551616"),
        (frame(i64::MAX as u64, 1, b"a"), None, "9223372036854775808"),
        (frame(4096, 1, b"a"), Some("4096"), "the disk ends at 4096"),
        (frame(4000, 97, &[1; 97]), Some("4096"), "the disk ends at 4096"),
    ] {
        let size: Vec<&str> = size.map_or(Vec::new(), |size| vec!["--destination-size", size]);
        let output =
            command(at, &[&serve[..], &size].concat()).write_stdin(frame).assert().code(5).get_output().clone();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(part), "{part}: {text}");
        assert_eq!(names(at), [""; 0]);
    }
    let sized = [&serve[..], &["--destination-size", "10000"]].concat();
    let whole = [frame(8000, 3, b"abc"), frame(0, 2, b"xy"), frame(0, 0, b"")].concat();
    command(at, &sized).write_stdin(whole).assert().success();
    let written = fs::read(at.join("x")).unwrap();
    assert_eq!((written.len(), &written[..3], &written[7999..8004]), (10000, &b"xy\0"[..], &b"\0abc\0"[..]));
}

/// Chunks start and end anywhere, also in a sector that another has brought a part of.
#[test]
fn chunks_that_share_sectors_all_arrive_in_an_image() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let mut disk = vec![0; 3 << 20];
    let mut sent = Vec::new();
    for (start, length) in [(0_usize, 512_usize), (700, 100), (800, 3000), (5000, 24), (5100, 4096), (2_097_000, 400)] {
        let bytes: Vec<u8> = (0..length).map(|i| (start + i * 3) as u8 | 1).collect();
        disk[start..start + length].copy_from_slice(&bytes);
        sent.extend(frame(start as u64, length as u32, &bytes));
    }
    sent.extend(frame(0, 0, &[]));
    fs::write(at.join("chunks"), sent).unwrap();
    let serve = ["serve", "--source", "chunks", "--source-protocol", "chunked", "--destination-size", "3145728"];
    done(at, &[&serve[..], &["--destination-format", "vhd", "--destination", "a.vhd"]].concat());
    assert_eq!(guest(at, "a.vhd"), testkit::sha256(&disk));
}

#[test]
fn a_difference_needs_the_disk_that_it_changes() {
    let folder = chain();
    let at = folder.path();
    refused(at, &["serve", "--source", "leaf.img", "--destination", "./leaf.img"], 2, &["the same file"]);
    let own = shell_ended(at, "$TOOL serve --destination leaf.img < leaf.img");
    assert_eq!((own.status.code(), fs::metadata(at.join("leaf.img")).unwrap().len()), (Some(2), 13 << 20));
    let serve = ["serve", "--source", "leaf.vhd", "--source-format", "vhd", "--destination"];
    refused(at, &[&serve[..], &["new.img"]].concat(), 5, &["must be a copy of that disk"]);
    done(at, &[&serve[..], &["mid.img"]].concat());
    same(at, "mid.img", "leaf.img");
}

#[test]
fn zeros_replace_what_was_there_unless_that_is_zero_already() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    raw(at, "disk.img", (5 << 20) + 512, &[(3 << 20, 512)]);
    done(at, &["stream", "--source", "disk.img", "--destination", "a.vhd", "--destination-format", "vhd"]);
    let serve = ["serve", "--source", "a.vhd", "--source-format", "vhd", "--destination", "x"];
    fs::write(at.join("x"), vec![7; 6 << 20]).unwrap();
    done(at, &serve);
    same(at, "x", "disk.img");
    assert!(space(&at.join("x")) < 64 << 10);
    fs::write(at.join("x"), vec![7; 4096]).unwrap();
    done(at, &[&serve[..], &["--prezeroed"]].concat());
    let kept = fs::read(at.join("x")).unwrap();
    assert_eq!((kept.len(), kept[0], kept[4096]), ((5 << 20) + 512, 7, 0));
}

#[test]
fn a_vhd_can_be_made_of_what_arrives() {
    let folder = chain();
    let at = folder.path();
    let size = (13 << 20).to_string();
    let sized = ["--destination-size", &size, "--destination-format", "vhd", "--destination"];
    done(at, &[&["serve", "--source", "leaf.img"][..], &sized, &["a.vhd"]].concat());
    done(at, &["compare", "a.vhd", "leaf.vhd"]);
    done(at, &["stream", "--source", "leaf.img", "--destination-protocol", "chunked", "--destination", "chunks"]);
    let chunks = ["serve", "--source", "chunks", "--source-protocol", "chunked"];
    done(at, &[&chunks[..], &sized, &["b.vhd"]].concat());
    done(at, &["compare", "b.vhd", "leaf.vhd"]);
    refused(
        at,
        &[&chunks[..], &["--destination-format", "vhd", "--destination", "c.vhd"]].concat(),
        2,
        &["--destination-size"],
    );
}

#[test]
fn a_machine_reads_three_digits_for_each_percent() {
    let folder = chain();
    let at = folder.path();
    done(at, &["stream", "--source", "leaf.img", "--destination", "a.vhd", "--destination-format", "vhd"]);
    let length = fs::metadata(at.join("a.vhd")).unwrap().len();
    let rest = "--tar-filename-prefix '' --destination file://x --destination-format raw --progress --machine --direct";
    for (file, options) in [
        ("a.vhd", "--source-format vhd --source-protocol none".to_owned()),
        ("a.vhd", format!("--source-format vhd --source-protocol none --destination-size {length} --prezeroed")),
        ("leaf.img", format!("--source-format raw --source-protocol none --destination-size {}", 13 << 20)),
    ] {
        let out = shell(at, &format!("rm -f x; cat {file} | $TOOL serve {options} --source-fd 9 {rest} 9<&0"));
        assert_eq!(String::from_utf8(out).unwrap(), percents());
        same(at, "x", "leaf.img");
    }
    let broken = shell_ended(at, &format!("head -c 100000 a.vhd | $TOOL serve --source-format vhd {rest}"));
    assert_eq!(broken.status.code(), Some(5));
    assert!(!String::from_utf8(broken.stdout).unwrap().contains("100"));
}

#[test]
fn blocks_past_two_to_the_31_sectors_are_ordinary() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    raw(at, "disk.img", 64 << 20, &[(1 << 20, 2 << 20), (63 << 20, 512)]);
    done(at, &["stream", "--source", "disk.img", "--destination", "a.vhd", "--destination-format", "vhd"]);
    // The last block and the footer move up to where no signed sector reaches.
    let bytes = fs::read(at.join("a.vhd")).unwrap();
    let block = (2 << 20) + 512;
    let from = bytes.len() - 512 - block;
    let to = (0x8000_0000_u64 + 8) * 512;
    let file = File::options().write(true).open(at.join("a.vhd")).unwrap();
    file.set_len(from as u64).unwrap();
    file.write_all_at(&bytes[from..], to).unwrap();
    file.write_all_at(&0x8000_0008_u32.to_be_bytes(), 1536 + 31 * 4).unwrap();
    drop(file);
    done(at, &["compare", "a.vhd", "disk.img"]);
    done(at, &["stream", "--source", "a.vhd", "--source-format", "vhd", "--destination", "b.img"]);
    same(at, "b.img", "disk.img");
}
