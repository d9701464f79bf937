use std::fs;

use testkit::{golden, pattern};
use vhd_core::{Sector, SectorCount, SectorRange};

use crate::program::{command, done, ended, refused};

/// All that `-p` prints of an image of blktap's; times are in UTC.
const MID: &str = "\
VHD Footer Summary:
-------------------
Cookie              : conectix
Features            : (0x00000002) <RESV>
File format version : Major: 1, Minor: 0
Data offset         : 512
Timestamp           : Sun Nov 22 01:21:00 2026
Creator Application : 'tap'
Creator version     : Major: 1, Minor: 3
Creator OS          : Unknown!
Original disk size  : 64 MB (67108864 Bytes)
Current disk size   : 64 MB (67108864 Bytes)
Geometry            : Cyl: 963, Hds: 8, Sctrs: 17
                    : = 63 MB (67055616 Bytes)
Disk type           : Differencing hard disk
Checksum            : 0xffffeee9|0xffffeee9 (Good!)
UUID                : 3222b98e-d11f-47cb-b3a8-4a73e5ff7caa
Saved state         : No
Hidden              : 0

VHD Header Summary:
-------------------
Cookie              : cxsparse
Data offset (unusd) : 18446744073709551615
Table offset        : 1536
Header version      : 0x00010000
Max BAT size        : 32
Block size          : 2097152 (2 MB)
Parent name         : base.vhd
Parent UUID         : fd0bc2b5-b117-45b3-bc39-61c890597f24
Parent timestamp    : Sun Nov 22 01:20:59 2026
Checksum            : 0xffffe1f8|0xffffe1f8 (Good!)

VHD Parent Locators:
--------------------
locator:            : 0
       code         : PLAT_CODE_MACX
       data_space   : 512
       data_length  : 17
       data_offset  : 3072
       decoded name : ./base.vhd

locator:            : 1
       code         : PLAT_CODE_W2KU
       data_space   : 512
       data_length  : 20
       data_offset  : 3584
       decoded name : ./base.vhd

locator:            : 2
       code         : PLAT_CODE_W2RU
       data_space   : 512
       data_length  : 20
       data_offset  : 4096
       decoded name : ./base.vhd

VHD Batmap Summary:
-------------------
Batmap offset       : 2560
Batmap size (secs)  : 1
Batmap version      : 0x00010002
Checksum            : 0xffffffbf|0xffffffbf (Good!)

";

const FIXED: &str = "\
VHD Footer Summary:
-------------------
Cookie              : conectix
Features            : (0x00000002) <RESV>
File format version : Major: 1, Minor: 0
Data offset         : 18446744073709551615
Timestamp           : Sun Nov 22 01:20:59 2026
Creator Application : 'tap'
Creator version     : Major: 1, Minor: 3
Creator OS          : Unknown!
Original disk size  : 4 MB (4194304 Bytes)
Current disk size   : 4 MB (4194304 Bytes)
Geometry            : Cyl: 120, Hds: 4, Sctrs: 17
                    : = 3 MB (4177920 Bytes)
Disk type           : Fixed hard disk
Checksum            : 0xffffea15|0xffffea15 (Good!)
UUID                : 5c3d0b34-8c26-4c39-a968-19ce2b7c22aa
Saved state         : No
Hidden              : 0

";

/// Runs the program and gives what it prints in binary.
fn binary(folder: &std::path::Path, args: &[&str]) -> Vec<u8> {
    command(folder, args).assert().success().get_output().stdout.clone()
}

#[test]
fn headers() {
    let folder = golden::unpack(&["mid.vhd", "fixed-4m.vhd"]);
    assert_eq!(done(folder.path(), &["read", "--debug", "-p", "-n", "mid.vhd"]), MID);
    assert_eq!(done(folder.path(), &["read", "-p", "-n", "fixed-4m.vhd"]), FIXED);
    let hex = done(folder.path(), &["read", "-px", "-n", "fixed-4m.vhd"]);
    assert!(hex.contains("Current disk size   : 0x4 MB (0x400000 Bytes)\n"), "{hex}");
    assert!(hex.contains("Geometry            : Cyl: 0x78, Hds: 0x4, Sctrs: 0x11\n"), "{hex}");
    let meta = golden::unpack(&["meta.vhd"]);
    let lines = format!("Batmap keyhash nonce: {}\nBatmap keyhash hash : {}\n", "01".repeat(32), "ab".repeat(32));
    assert!(done(meta.path(), &["read", "-p", "-n", "meta.vhd"]).contains(&lines));
}

#[test]
fn headers_of_damaged_images_as_far_as_they_go() {
    let folder = golden::unpack(&["mid.vhd", "poisoned.vhd", "no-end-footer.vhd", "torn-batmap.vhd", "raw-parent.img"]);
    let (path, sound) = (folder.path().join("mid.vhd"), fs::read(folder.path().join("mid.vhd")).unwrap());
    let show = |bytes: &[u8], code: i32| {
        fs::write(&path, bytes).unwrap();
        ended(folder.path(), &["read", "-p", "-n", "mid.vhd"], code).0
    };
    let mut bytes = sound.clone();
    bytes[512 + 1000] = 1;
    assert_eq!(show(&bytes, 0).matches("(Bad!)").count(), 1);
    bytes = sound.clone();
    bytes[512..1536].fill(0);
    assert_eq!(show(&bytes, 22), MID.split("VHD Header").next().unwrap());
    bytes = sound.clone();
    bytes[512 + 576 + 16] = 0xff;
    assert!(show(&bytes, 0).contains("failed to read parent name\n"));
    bytes = sound.clone();
    bytes[2048..2560].fill(0);
    assert_eq!(show(&bytes, 22), MID.split("VHD Batmap").next().unwrap());
    bytes = sound.clone();
    bytes[512 + 64..512 + 68].copy_from_slice(&[0, 0x1b, 0, 0x5b]);
    assert!(!show(&bytes, 0).contains('\u{1b}'), "no commands for the terminal");
    assert!(show(&sound[..1000], 22).starts_with("VHD Footer Summary:\n"));
    assert_eq!(show(&[], 22), "");

    let of = |name: &str, code: i32| ended(folder.path(), &["read", "-p", "-n", name], code).0;
    assert!(of("poisoned.vhd", 0).contains("Cookie              : v_poison\n"));
    assert!(of("no-end-footer.vhd", 0).contains("Cookie              : conectix\n"));
    let torn = of("torn-batmap.vhd", 0);
    assert!(torn.trim_end().ends_with("(Bad!)"), "{torn}");
    of("raw-parent.img", 22);
    refused(folder.path(), &["read", "-p", "-n", "none.vhd"], 2);
    refused(folder.path(), &["read", "-n", "mid.vhd"], 22);
    refused(folder.path(), &["read", "-p"], 22);
}

/// The storage manager packs what `-B` prints, and counts its bits.
#[test]
fn the_bat_as_a_bitmap() {
    let folder = golden::unpack(&["base.vhd", "prealloc.vhd", "odd-blocks.vhd", "fixed-4m.vhd"]);
    for (name, bytes, set) in [("base.vhd", 4, 24), ("prealloc.vhd", 1, 1), ("odd-blocks.vhd", 513, 0)] {
        let bits = binary(folder.path(), &["read", "--debug", "-B", "-n", name]);
        assert_eq!(bits.len(), bytes, "{name}");
        assert_eq!(bits.iter().map(|byte| byte.count_ones()).sum::<u32>(), set, "{name}");
    }
    let bits = binary(folder.path(), &["read", "-B", "-n", "base.vhd"]);
    for block in 0..32_usize {
        let entry = done(folder.path(), &["read", "-b", &block.to_string(), "-n", "base.vhd"]);
        let clear = entry == format!("block: {block}: offset: not allocated\n");
        assert_eq!(bits[block / 8] >> (7 - block % 8) & 1 == 0, clear, "{entry}");
    }
    assert_eq!(bits, [0xdf, 0x7f, 0x0b, 0xf7]);
    refused(folder.path(), &["read", "-B", "-n", "fixed-4m.vhd"], 22);
}

#[test]
fn places_of_sectors_and_blocks() {
    let folder = golden::unpack(&["prealloc.vhd", "fixed-4m.vhd"]);
    let read = |args: &[&str]| done(folder.path(), &[&["read", "-n", "prealloc.vhd"], args].concat());
    let entry = read(&["-b", "0"]);
    let first: u64 = entry.trim_end().rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!(entry, format!("block: 0: offset: {first}\n"));
    assert_eq!(read(&["-xb", "0"]), format!("block: 0: offset: {first:#x}\n"));
    let place = |sector: u64, block: u64, within: u64, offset: &str| {
        format!("logical sector {sector}: block number: {block}, sector offset: {within}, file offset: {offset}\n")
    };
    let offset = first + 512 + 18 * 512;
    assert_eq!(read(&["-t", "18"]), place(18, 0, 18, &offset.to_string()));
    let hex = format!("logical sector 0x12: block number: 0, sector offset: 0x12, file offset: {offset:#x}\n");
    assert_eq!(read(&["-x", "-t", "18"]), hex);
    let (one, two) = (place(4100, 1, 4, "not allocated"), place(4101, 1, 5, "not allocated"));
    assert_eq!(read(&["-t", "4100", "-c", "2"]), [one, two].concat());
    let none = "block: 3: offset: not allocated\nblock: 4: offset: not allocated\n";
    assert_eq!(read(&["-b", "3", "-c", "2"]), none);
    // Room for more than the disk has.
    assert_eq!(read(&["-b", "2047"]), "block: 2047: offset: not allocated\n");
    assert_eq!(read(&["-m", "1", "-c", "2"]), "block 1 not allocated\nblock 2 not allocated\n");
    assert_eq!(read(&["-d", "1"]), "block 1 not allocated\n");
    assert_eq!(done(folder.path(), &["read", "-t", "3", "-n", "fixed-4m.vhd"]), place(3, 0, 3, "1536"));
    for (args, code) in [
        (&["-t", "20480"][..], 34),
        (&["-t", "20479", "-c", "2"], 34),
        (&["-b", "2048"], 34),
        (&["-b", "2047", "-c", "2"], 34),
        (&["-b", "-1"], 22),
    ] {
        refused(folder.path(), &[&["read", "-n", "prealloc.vhd"], args].concat(), code);
    }
    refused(folder.path(), &["read", "-b", "0", "-n", "fixed-4m.vhd"], 22);
}

#[test]
fn bitmaps_and_batmap() {
    let folder = golden::unpack(&["prealloc.vhd", "base.vhd", "fixed-4m.vhd"]);
    let read = |args: &[&str]| done(folder.path(), &[&["read", "-n", "prealloc.vhd"], args].concat());
    let lines: String =
        (15..24).map(|sec| format!("block 0: sec: {sec}: {}\n", u8::from((17..22).contains(&sec)))).collect();
    assert_eq!(read(&["-i", "15", "-c", "9"]), lines);
    assert_eq!(read(&["-i", "4095", "-c", "2"]), "block 0: sec: 4095: 0\nblock 1: sec: 0: 0\n");
    assert_eq!(read(&["-i", "15", "-x"]), "block 0: sec: 0xf: 0\n");
    assert_eq!(read(&["-e"]), "17 5\n");
    assert_eq!(done(folder.path(), &["read", "-e", "-x", "-n", "prealloc.vhd"]), "0x11 0x5\n");
    assert_eq!(read(&["-e", "18", "-c", "3"]), "18 3\n");
    assert_eq!(read(&["-e", "0"]), "");
    assert_eq!(done(folder.path(), &["read", "-e", "-n", "fixed-4m.vhd"]), "0 8192\n");
    assert_eq!(
        done(folder.path(), &["read", "-j", "0", "-c", "2", "-n", "base.vhd"]),
        "batmap for block 0: 1\nbatmap for block 1: 0\n"
    );
    let bitmap = binary(folder.path(), &["read", "-m", "0", "-n", "prealloc.vhd"]);
    assert_eq!((bitmap.len(), &bitmap[..4]), (512, &[0, 0, 0x7c, 0][..]));
    let batmap = binary(folder.path(), &["read", "-a", "-n", "base.vhd"]);
    assert_eq!((batmap.len(), batmap[0]), (512, 0x80));
    refused(folder.path(), &["read", "-i", "20480", "-n", "prealloc.vhd"], 34);
    refused(folder.path(), &["read", "-e", "20480", "-n", "prealloc.vhd"], 34);
    refused(folder.path(), &["read", "-i", "0", "-c", "18446744073709551615", "-n", "prealloc.vhd"], 34);
    refused(folder.path(), &["read", "-a", "-n", "fixed-4m.vhd"], 22);
}

#[test]
fn content_through_the_chain() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let expected: Vec<u8> = [(4094, 1, 1), (4095, 2, 3), (4097, 1, 2)]
        .into_iter()
        .flat_map(|(first, count, tag)| pattern::fill(SectorRange::new(Sector(first), SectorCount(count)), tag))
        .collect();
    let all = binary(folder.path(), &["read", "-r", "4094", "-c", "4", "-n", "leaf.vhd"]);
    assert!(all == expected);
    let some = binary(folder.path(), &["read", "-R", "2096200", "-c", "1500", "-n", "leaf.vhd"]);
    assert!(some == expected[2_096_200 - 4094 * 512..][..1500]);
    let data = binary(folder.path(), &["read", "-d", "1", "-n", "mid.vhd"]);
    assert!(data == pattern::fill(SectorRange::new(Sector(4096), SectorCount(4096)), 2));
    refused(folder.path(), &["read", "-r", "131072", "-n", "leaf.vhd"], 34);
    refused(folder.path(), &["read", "-R", "0", "-c", "67108865", "-n", "leaf.vhd"], 34);
    refused(folder.path(), &["read", "-r", "36028797018963968", "-n", "leaf.vhd"], 34);
    fs::remove_file(folder.path().join("base.vhd")).unwrap();
    refused(folder.path(), &["read", "-r", "0", "-n", "leaf.vhd"], 2);
}

#[test]
fn tables_that_lie_give_errors() {
    let folder = golden::unpack(&["bat-beyond-eof.vhd", "poisoned.vhd"]);
    let entries = done(folder.path(), &["read", "-b", "0", "-c", "32", "-n", "bat-beyond-eof.vhd"]);
    assert_eq!(entries.lines().count(), 32);
    let (_, told) = ended(folder.path(), &["read", "-e", "-n", "bat-beyond-eof.vhd"], 22);
    assert!(told.contains("the BAT puts block"), "{told}");
    refused(folder.path(), &["read", "-r", "0", "-n", "poisoned.vhd"], 22);
}
