//! Numbers at their extremes, field by field: an error that names the field, or a read that is right, and little memory.
//!
//! A program of its own, as the memory that is measured is the process's.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::error::Error;
use std::fs;
use std::sync::Arc;

use testkit::pattern;
use testkit::sparse::SparseStorage;
use vhd_core::{
    BlockSize, ByteCount, Container, FileOffset, Image, NewImage, NewKind, ParentLink, ReadOnly, Sector, SectorCount,
    SectorRange, Storage, Timestamp, Uuid, create,
};

const MOST_MEMORY: u64 = 160 << 20;
const GIB: u64 = 1 << 30;

/// What becomes of an image with such a number.
#[derive(Clone, Copy)]
enum Expected {
    /// It is refused, and the error says this.
    Refused(&'static str),
    /// It is opened. What is read is right, or an error.
    Opened,
}
use Expected::{Opened, Refused};

/// A field: where its record starts, where it is in that, and how wide it is.
struct Field {
    record: Record,
    at: usize,
    width: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Record {
    Footer,
    Header,
    Bat,
}

const fn footer(at: usize, width: usize) -> Field {
    Field { record: Record::Footer, at, width }
}

const fn header(at: usize, width: usize) -> Field {
    Field { record: Record::Header, at, width }
}

/// An entry of the BAT.
const fn entry(number: usize) -> Field {
    Field { record: Record::Bat, at: number * 4, width: 4 }
}

fn container(memory: &Arc<SparseStorage>) -> Container {
    Container::new("extreme.vhd", memory.clone())
}

fn made(kind: NewKind) -> Vec<u8> {
    let memory = Arc::new(SparseStorage::default());
    create(&container(&memory), &NewImage::new(ByteCount(256 << 10), kind)).unwrap();
    let image = Image::writable_from_container(container(&memory)).unwrap();
    for start in [0, 40, 100, 501] {
        let range = SectorRange::new(Sector(start), SectorCount(9));
        image.write(range, &pattern::fill(range, 1)).unwrap();
    }
    image.close().unwrap();
    let mut bytes = vec![0; memory.len().unwrap().0 as usize];
    memory.read_at(&mut bytes, FileOffset(0)).unwrap();
    bytes
}

fn dynamic() -> Vec<u8> {
    made(NewKind::Dynamic { block_size: BlockSize::new(16 << 10).unwrap() })
}

fn differencing() -> Vec<u8> {
    let parent = ParentLink::to_named("parent.vhd".as_ref(), Uuid::from_u128(1), Timestamp(0)).unwrap();
    made(NewKind::Differencing { block_size: BlockSize::new(16 << 10).unwrap(), parent })
}

/// Puts a number into a field, and sets the checksums right.
fn with(mut bytes: Vec<u8>, field: &Field, value: u64) -> Vec<u8> {
    let start = match field.record {
        Record::Footer => bytes.len() - 512,
        Record::Header => 512,
        Record::Bat => 1536,
    };
    let at = start + field.at;
    bytes[at..at + field.width].copy_from_slice(&value.to_be_bytes()[8 - field.width..]);
    let end = bytes.len() - 512;
    testkit::seal(&mut bytes[end..], 64);
    if bytes.starts_with(b"conectix") {
        testkit::seal(&mut bytes[512..1536], 36);
        bytes.copy_within(end.., 0);
    }
    bytes
}

fn memory_in_use() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

/// Tries an image in every way there is.
fn check(what: &str, bytes: &[u8], expected: Expected) {
    testkit::fuzz::image(bytes);
    let memory = Arc::new(SparseStorage::new(bytes));
    let opened = Image::<ReadOnly>::from_container(container(&memory));
    match (opened, expected) {
        (Ok(_), Opened) => {}
        (Ok(_), Refused(_)) => panic!("{what}: is opened"),
        (Err(error), expected) => {
            let cause = error.source().map(ToString::to_string).unwrap_or_default();
            let all = format!("{error}: {cause}");
            let Refused(text) = expected else { panic!("{what}: {all}") };
            assert!(all.contains(text) && all.contains("extreme.vhd"), "{what}: {all}");
        }
    }
    let used = memory_in_use();
    assert!(used < MOST_MEMORY, "{what}: {used} bytes of memory");
}

#[test]
fn footers() {
    let end = dynamic().len() as u64;
    for (name, field, values) in [
        (
            "data offset",
            footer(16, 8),
            &[
                (0, Refused("bad header at offset 0")),
                (511, Refused("bad header at offset 511")),
                (1, Refused("bad header at offset 1")),
                (end - 1024, Refused("bad header at offset")),
                (end - 1023, Refused("the header at offset")),
                (end - 512, Refused("the header at offset")),
                (end, Refused("the header at offset")),
                (i64::MAX as u64, Refused("the header at offset 9223372036854775807 would end")),
                (u64::MAX - 1023, Refused("the header at offset 18446744073709550592")),
                (u64::MAX, Refused("the header at offset 18446744073709551615 would end at 18446744073709552639")),
            ][..],
        ),
        (
            "current size",
            footer(48, 8),
            &[
                (0, Opened),
                (1, Opened),
                (511, Opened),
                (512, Opened),
                ((256 << 10) - 1, Opened),
                ((256 << 10) + 512, Refused("the disk has 17 blocks, but the BAT only 16")),
                (2040 * GIB, Refused("blocks, but the BAT only 16")),
                (2040 * GIB + 1, Refused("blocks, but the BAT only 16")),
                (1 << 63, Refused("blocks, but the BAT only 16")),
                (u64::MAX, Refused("the disk has 1125899906842624 blocks, but the BAT only 16")),
            ],
        ),
        ("original size", footer(40, 8), &[(0, Opened), (1, Opened), (u64::MAX, Opened)]),
        ("geometry", footer(56, 4), &[(0, Opened), (u64::MAX, Opened)]),
        ("timestamp", footer(24, 4), &[(0, Opened), (u64::MAX, Opened)]),
        (
            "disk type",
            footer(60, 4),
            &[
                (0, Refused("disk type is 0")),
                (1, Refused("disk type is 1")),
                (2, Refused("the fixed disk has 262144 bytes, but the file only")),
                (4, Opened),
                (5, Refused("disk type is 5")),
                (u64::MAX, Refused("disk type is 4294967295")),
            ],
        ),
    ] {
        for &(value, expected) in values {
            check(&format!("{name} {value}"), &with(dynamic(), &field, value), expected);
        }
    }
}

#[test]
fn fixed_disks() {
    for (value, expected) in [
        (0, Opened),
        (1, Opened),
        (256 << 10, Opened),
        (
            257 << 10,
            Refused("the fixed disk has 263168 bytes, but the file only 262144 before its footer: 1024 are missing"),
        ),
        (2040 * GIB, Refused("the fixed disk has 2190433320960 bytes")),
        (u64::MAX - 511, Refused("the fixed disk has 18446744073709551104 bytes")),
        (u64::MAX, Refused("the fixed disk has 18446744073709551615 bytes")),
    ] {
        check(&format!("fixed {value}"), &with(made(NewKind::Fixed), &footer(48, 8), value), expected);
    }
}

#[test]
fn headers() {
    let end = dynamic().len() as u64;
    for (name, field, values) in [
        (
            "table offset",
            header(16, 8),
            &[
                // Over another table: read, and never written.
                (0, Opened),
                (512, Opened),
                (1535, Opened),
                (end - 512, Opened),
                (end - 64, Opened),
                (end - 63, Refused("the BAT at offset")),
                (end, Refused("the BAT at offset")),
                (i64::MAX as u64, Refused("the BAT at offset 9223372036854775807 would end")),
                (u64::MAX - 63, Refused("the BAT at offset 18446744073709551552 would end")),
                (u64::MAX, Refused("the BAT at offset 18446744073709551615 would end")),
            ][..],
        ),
        (
            "entries",
            header(28, 4),
            &[
                (0, Refused("the disk has 16 blocks, but the BAT only 0 entries")),
                (15, Refused("the disk has 16 blocks, but the BAT only 15 entries")),
                (17, Opened),
                (1 << 31, Refused("the BAT at offset 1536 would end at 8589936128")),
                (u64::from(u32::MAX), Refused("the BAT at offset 1536 would end at 17179870716")),
            ],
        ),
        (
            "block size",
            header(32, 4),
            &[
                (0, Refused("block size is 0 ")),
                (1, Refused("block size is 1 ")),
                (511, Refused("block size is 511 ")),
                (512, Refused("block size is 512 ")),
                (2048, Refused("block size is 2048 ")),
                (4095, Refused("block size is 4095 ")),
                (4096, Refused("the disk has 64 blocks, but the BAT only 16")),
                (16385, Refused("block size is 16385 ")),
                (24 << 10, Refused("block size is 24576 ")),
                (2 << 20, Opened),
                (256 << 20, Opened),
                (512 << 20, Refused("block size is 536870912 ")),
                (1 << 31, Refused("block size is 2147483648 ")),
                (u64::from(u32::MAX), Refused("block size is 4294967295 ")),
            ],
        ),
        ("data offset", header(8, 8), &[(0, Opened), (512, Opened), (u64::MAX - 1, Opened)]),
        ("version", header(24, 4), &[(0, Refused("header version is 0x00000000")), (u64::MAX, Refused("version"))]),
    ] {
        for &(value, expected) in values {
            check(&format!("{name} {value}"), &with(dynamic(), &field, value), expected);
        }
    }
}

#[test]
fn locators() {
    let end = differencing().len() as u64;
    for slot in [0, 2, 7] {
        let start = 576 + slot * 24;
        for (at, width) in [(start, 4), (start + 4, 4), (start + 8, 4), (start + 16, 8)] {
            for value in [0, 1, 511, 512, end - 1, end, 1 << 31, u64::from(u32::MAX), i64::MAX as u64, u64::MAX] {
                let bytes = with(differencing(), &header(at, width), value);
                check(&format!("locator {slot}, byte {at}: {value}"), &bytes, Opened);
            }
        }
    }
}

/// Blocks at impossible places, over tables, over each other, over the footer: their sectors cannot be read, or are what
/// the tables say, and all others can.
#[test]
fn blocks() {
    let end = dynamic().len() as u64 / 512;
    let mine = u64::from(u32::from_be_bytes(dynamic()[1536..1540].try_into().unwrap()));
    for number in [0, 1, 15] {
        for value in [0, 1, 2, 3, 4, 5, mine, mine + 1, mine - 1, end - 2, end - 1, end, 1 << 31, 0xffff_fffe] {
            check(&format!("entry {number}: {value}"), &with(dynamic(), &entry(number), value), Opened);
        }
    }
}

#[test]
fn disks_of_extreme_sizes_can_be_made_or_not() {
    let make = |size: u64, block_size: u32| {
        let memory = Arc::new(SparseStorage::default());
        let kind = match BlockSize::new(block_size) {
            Some(block_size) => NewKind::Dynamic { block_size },
            None => NewKind::Fixed,
        };
        create(&container(&memory), &NewImage::new(ByteCount(size), kind)).map(|()| memory)
    };
    for block_size in [0, 2 << 20, 256 << 20] {
        for size in [0, 1, 511, 513, 2040 * GIB + 512, 2041 * GIB, 1 << 63, u64::MAX - 511, u64::MAX] {
            let error = make(size, block_size).unwrap_err().to_string();
            assert!(error.contains(&format!("cannot have {size} bytes")), "{error}");
        }
        for size in [512, 4096, 2040 * GIB - 512, 2040 * GIB] {
            let memory = make(size, block_size).unwrap();
            let mut image = Image::writable_from_container(container(&memory)).unwrap();
            let last = SectorRange::new(Sector(size / 512 - 1), SectorCount(1));
            image.write(last, &[7; 512]).unwrap();
            image.write(SectorRange::new(Sector(size / 512), SectorCount(1)), &[7; 512]).unwrap_err();
            for other in [u64::MAX, 2040 * GIB + 512, 1] {
                let error = image.set_size(ByteCount(other), ByteCount(0)).unwrap_err().to_string();
                assert!(error.contains(&format!("cannot have {other} bytes")), "{error}");
            }
            image.close().unwrap();
            let image = Image::<ReadOnly>::from_container(container(&memory)).unwrap();
            let chain = vhd_core::Chain::from_layers(vec![vhd_core::Layer::Vhd(Box::new(image))]);
            let mut found = [0; 512];
            chain.read(last, &mut found).unwrap();
            assert_eq!(found, [7; 512], "{size} in {block_size}");
        }
    }
    assert!(memory_in_use() < MOST_MEMORY, "{} bytes", memory_in_use());
}
