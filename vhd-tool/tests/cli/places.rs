//! Where disks that are sent end up: descriptors, their own sources, the ends of disks.

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use testkit::loop_device::LoopDevice;

use crate::program::{done, refused};
use crate::stream::{chain, raw, same, shell, shell_ended};

const RELATIVE: &str = "$TOOL stream --source-format vhd --source leaf.vhd --relative-to";

#[test]
fn a_descriptor_stands_at_the_end_of_what_was_sent() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    raw(at, "disk.img", 3 << 20, &[(4096, 5000)]);
    for protocol in ["none", "chunked", "tar --tar-filename-prefix A/"] {
        let script = format!(
            "{{ $TOOL stream --source disk.img --destination-protocol {protocol}; printf TRAILER; }} > file
            {{ $TOOL stream --source disk.img --destination-protocol {protocol}; printf TRAILER; }} | cat > piped
            exec 7> twice; for i in 1 2; do $TOOL stream --source disk.img --destination-protocol {protocol} --destination-fd 7; done
            {{ cat piped piped; }} | wc -c; wc -c < twice"
        );
        let lengths = String::from_utf8(shell(at, &script)).unwrap();
        same(at, "file", "piped");
        let lengths: Vec<u64> = lengths.lines().map(|line| line.trim().parse().unwrap()).collect();
        assert_eq!(lengths[0] - 2 * "TRAILER".len() as u64, lengths[1], "{protocol}");
    }
}

#[test]
fn the_base_of_a_difference_is_no_destination() {
    let folder = chain();
    let at = folder.path();
    fs::hard_link(at.join("base.img"), at.join("link.img")).unwrap();
    let before = fs::read(at.join("base.img")).unwrap();
    for destination in ["base.img", "link.img"] {
        for how in [["--destination-format", "vhd"], ["--destination-protocol", "chunked"]] {
            let args = ["stream", "--source-format", "vhd", "--source", "leaf.vhd", "--relative-to", "base.img"];
            refused(at, &[&args[..], &how, &["--destination", destination]].concat(), 5, &["is read through it"]);
        }
    }
    assert!(fs::read(at.join("base.img")).unwrap() == before);
}

#[test]
fn digits_do_not_go_where_the_disk_goes() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    raw(at, "disk.img", 3 << 20, &[(4096, 5000)]);
    for destination in ["--destination file:///dev/stdout", "--destination-fd 7 7>&1", "--destination stdout:"] {
        let all: String = (0..=100).map(|percent| format!("{percent:03}")).collect();
        shell(at, &format!("$TOOL stream --source disk.img --progress --machine {destination} 2> digits | cat > sent"));
        same(at, "disk.img", "sent");
        assert_eq!(fs::read_to_string(at.join("digits")).unwrap(), all, "{destination}");
    }
}

#[test]
fn chunks_tell_where_a_disk_ends() {
    let folder = chain();
    let at = folder.path();
    raw(at, "disk.img", (8 << 20) + 100, &[(0, 5)]);
    for options in ["", "--prezeroed"] {
        shell(
            at,
            &format!(
                "$TOOL stream --source disk.img --destination-protocol chunked {options} |
                $TOOL serve --source-protocol chunked --destination got{options}.img"
            ),
        );
        same(at, "disk.img", &format!("got{options}.img"));
    }
    // One that has grown since, and holds nothing there.
    done(at, &["resize", "leaf.vhd", "20M"]);
    done(at, &["convert", "leaf.vhd", "grown.img", "--to", "raw"]);
    let script = format!(
        "cp base.img applied.img; {RELATIVE} base.vhd --destination-protocol chunked |
        $TOOL serve --source-protocol chunked --destination applied.img"
    );
    shell(at, &script);
    same(at, "grown.img", "applied.img");
}

/// Nothing tells its length but the stream itself.
#[test]
fn a_raw_disk_that_ends_in_zeros_arrives_whole() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    raw(at, "disk.img", 5 << 20, &[(4096, 5000)]);
    fs::write(at.join("short.img"), [7; 10_000]).unwrap();
    for destination in ["new.img", "short.img"] {
        let serve = "$TOOL serve --source-format raw --source-protocol none";
        shell(at, &format!("cat disk.img | {serve} --destination {destination}"));
        same(at, "disk.img", destination);
    }
}

#[test]
fn nothing_stays_behind_the_end_of_a_disk() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    raw(at, "disk.img", 3 << 20, &[(4096, 5000)]);
    for options in ["", "--prezeroed"] {
        fs::write(at.join("long.img"), vec![0; 5 << 20]).unwrap();
        shell(at, &format!("$TOOL stream --source disk.img --destination long.img {options}"));
        same(at, "disk.img", "long.img");
    }
}

/// A raw stream does not tell its end; the device that it goes to does.
#[test]
fn a_raw_disk_is_as_long_as_the_device_that_it_is_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let device = LoopDevice::new(&folder.path().join("device"), 4 << 20);
    let target = format!("file://{}", device.path.display());
    let disk: Vec<u8> = (0..4 << 20).map(|at: u32| (at % 253) as u8).collect();
    for (sent, succeeds) in [(4 << 20, true), ((3 << 20) + 17, false), (0, false)] {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let mut tool = Command::new(env!("CARGO_BIN_EXE_vhd-tool"));
        tool.args(["serve", "--source-format", "raw", "--source-protocol", "none", "--destination", &target]);
        let mut tool = tool.stdin(Stdio::from(OwnedFd::from(theirs))).stderr(Stdio::null()).spawn().unwrap();
        ours.write_all(&disk[..sent]).unwrap();
        // A stream that is whole may stay open.
        let open = succeeds.then_some(ours);
        assert_eq!(tool.wait().unwrap().success(), succeeds, "{sent}");
        drop(open);
    }
    let mut found = fs::read(&device.path).unwrap();
    found.truncate(disk.len());
    assert!(found == disk);
    fs::write(folder.path().join("longer.img"), [&disk[..], &[1; 512]].concat()).unwrap();
    for source in ["--source longer.img", "< longer.img"] {
        let longer = shell_ended(
            folder.path(),
            &format!("$TOOL serve --source-format raw --source-protocol none --destination {target} {source}"),
        );
        let text = String::from_utf8_lossy(&longer.stderr);
        assert!(longer.status.code() == Some(5) && text.contains("the disk ends at 4194304"), "{source}: {text}");
    }
    // What is asked for is cut.
    shell(
        folder.path(),
        &format!(
            "$TOOL serve --source-format raw --source longer.img --destination {target} --destination-size 4194304"
        ),
    );
}

/// What can be read and written at any place is a file or a device; other descriptors are filled front to back.
#[test]
fn devices_are_sources_and_descriptors_of_any_kind_are_filled() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let device = LoopDevice::new(&at.join("device"), 3 << 20);
    fs::write(&device.path, [7; 100_000]).unwrap();
    let source = device.path.to_str().unwrap();
    done(at, &["stream", "--source", source, "--source-format", "raw", "--destination", "copy.img"]);
    assert!(fs::read(at.join("copy.img")).unwrap() == fs::read(&device.path).unwrap());
    for source in ["/dev/zero", "."] {
        refused(
            at,
            &["stream", "--source", source, "--destination", "none.img"],
            5,
            &["must be a file or a block device"],
        );
    }
    shell(at, "$TOOL stream --source copy.img --destination-fd 7 7> /dev/null");
}

/// Senders fill up the last chunk with zeros: those need no room on the device; data does.
#[test]
fn a_last_chunk_that_reaches_past_a_device_may_hold_zeros_there() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let device = LoopDevice::new(&at.join("device"), 4 << 20);
    let frame =
        |offset: u64, bytes: &[u8]| [&offset.to_le_bytes()[..], &(bytes.len() as u32).to_le_bytes(), bytes].concat();
    let last = (4 << 20) - 4096;
    for (behind, code) in [(0, 0), (5, 5)] {
        let chunk = [vec![3; 4096], vec![behind; 8192]].concat();
        fs::write(at.join("chunks"), [frame(last, &chunk), frame(0, &[])].concat()).unwrap();
        let script =
            format!("$TOOL serve --source chunks --source-protocol chunked --destination {}", device.path.display());
        let ended = shell_ended(at, &script);
        let text = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(code), "{text}");
        assert_eq!(text.contains("the disk ends at 4194304"), code == 5, "{text}");
    }
    assert!(fs::read(&device.path).unwrap()[last as usize..] == [3; 4096]);
}

/// What a device held before is nowhere read as the disk that it is written with.
#[test]
fn what_a_device_held_before_is_gone() {
    for (source, format) in [("disk.img", "raw"), ("disk.vhd", "vhd")] {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path();
        let device = LoopDevice::new(&at.join("device"), 12 << 20);
        let just_so = LoopDevice::new(&at.join("just-so"), 11 << 20);
        // Something in the middle, and nothing in the first, other and last blocks.
        raw(at, "disk.img", 11 << 20, &[(5 << 20, 5000)]);
        done(at, &["stream", "--source", "disk.img", "--destination", "disk.vhd", "--destination-format", "vhd"]);
        for command in ["stream", "serve"] {
            let file = std::fs::OpenOptions::new().write(true).open(&device.path).unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, &vec![7; 12 << 20], 0).unwrap();
            drop(file);
            let target = format!("file://{}", device.path.display());
            let mut options = vec![command, "--source", source, "--source-format", format, "--destination", &target];
            // Nothing else tells where a raw stream is to end.
            options.extend((command == "serve" && format == "raw").then_some("--destination-size=11534336"));
            done(at, &options);
            let target = format!("file://{}", just_so.path.display());
            done(at, &["stream", "--source", source, "--source-format", format, "--destination", &target]);
            assert!(fs::read(&just_so.path).unwrap() == fs::read(at.join("disk.img")).unwrap());
            let found = fs::read(&device.path).unwrap();
            assert!(found[..11 << 20] == fs::read(at.join("disk.img")).unwrap(), "{command} {format}");
            assert!(found[11 << 20..].iter().all(|&byte| byte == 7), "{command} {format}: what lies behind the disk");
        }
    }
}

/// A file that is written front to back is no longer than what was sent; a device keeps what lies behind it.
#[test]
fn an_image_that_is_sent_over_something_else_is_the_same_image() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    raw(at, "disk.img", 3 << 20, &[(4096, 5000)]);
    done(at, &["convert", "disk.img", "disk.vhd", "--from", "raw", "--to", "dynamic"]);
    let stream = ["stream", "--source", "disk.vhd", "--source-format", "vhd", "--destination-format", "vhd"];
    done(at, &[&stream[..], &["--destination", "new.vhd"]].concat());
    fs::write(at.join("old.vhd"), vec![7; 9 << 20]).unwrap();
    done(at, &[&stream[..], &["--destination", "old.vhd"]].concat());
    same(at, "new.vhd", "old.vhd");
    let device = LoopDevice::new(&at.join("device"), 12 << 20);
    let target = format!("file://{}", device.path.display());
    done(at, &[&stream[..], &["--destination", &target]].concat());
    let (sent, found) = (fs::read(at.join("new.vhd")).unwrap(), fs::read(&device.path).unwrap());
    assert!(found.len() == 12 << 20 && found[..sent.len()] == sent);
}

#[test]
fn what_is_appended_to_stays() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    raw(at, "disk.img", 1 << 20, &[(4096, 5000)]);
    let stream = "$TOOL stream --source disk.img --destination-protocol none >> file";
    shell(at, &format!("printf HEAD > file; {stream}; {stream}"));
    let disk = fs::read(at.join("disk.img")).unwrap();
    assert!(fs::read(at.join("file")).unwrap() == [&b"HEAD"[..], &disk, &disk].concat());
}
