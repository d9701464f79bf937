//! Every kind of finding, and a damage that gives it.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use testkit::old_layout::tables_behind_blocks;
use testkit::scene::Scene;
use testkit::seal;
use vhd_core::check::{self, Depth, Finding, KINDS};
use vhd_core::{
    BlockSize, ByteCount, ChainOptions, Image, MemoryStorage, NewKind, ParentLink, ReadOnly, Timestamp, Uuid,
};

use super::{container, new_image, sectors};

/// Where things are in an image.
struct Layout {
    header: usize,
    bat: usize,
    batmap: usize,
    map: usize,
    end: usize,
}

const SIZE: Range<usize> = 48..56;

fn number(bytes: &[u8], at: usize) -> usize {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

impl Layout {
    fn of(bytes: &[u8]) -> Self {
        let header = 512;
        let bat = number(bytes, header + 20);
        let batmap = (bat + number(bytes, header + 28) * 4).next_multiple_of(512);
        Self { header, bat, batmap, map: number(bytes, batmap + 12), end: bytes.len() - 512 }
    }
}

/// An image with blocks of 16 KiB: the first holds all its sectors, three others some, and the other twelve are not there.
fn dynamic() -> Vec<u8> {
    let memory = new_image(256 << 10, NewKind::Dynamic { block_size: BlockSize::new(16 << 10).unwrap() });
    filled(&memory)
}

fn differencing() -> Vec<u8> {
    let parent = ParentLink::to_named(Path::new("parent.vhd"), Uuid::from_u128(7), Timestamp(1)).unwrap();
    filled(&new_image(256 << 10, NewKind::Differencing { block_size: BlockSize::new(16 << 10).unwrap(), parent }))
}

fn filled(memory: &Arc<MemoryStorage>) -> Vec<u8> {
    let image = super::open_writable(memory);
    for range in [sectors(0, 32), sectors(40, 9), sectors(100, 9), sectors(501, 9)] {
        image.write(range, &testkit::pattern::fill(range, 1)).unwrap();
    }
    image.close().unwrap();
    memory.to_vec()
}

/// Changes both footers.
fn footers(bytes: &mut [u8], field: Range<usize>, new: &[u8]) {
    for start in [0, bytes.len() - 512] {
        let footer = &mut bytes[start..start + 512];
        footer[field.clone()].copy_from_slice(new);
        seal(footer, 64);
    }
}

fn header(bytes: &mut [u8], at: usize, new: &[u8]) {
    let start = Layout::of(bytes).header;
    bytes[start + at..start + at + new.len()].copy_from_slice(new);
    seal(&mut bytes[start..start + 1024], 36);
}

fn entry(bytes: &mut [u8], block: usize, change: impl Fn(usize) -> usize) {
    let at = Layout::of(bytes).bat + block * 4;
    let new = change(number(bytes, at)) as u32;
    bytes[at..at + 4].copy_from_slice(&new.to_be_bytes());
}

/// Changes the first byte of the batmap, that of the first eight blocks.
fn batmap(bytes: &mut [u8], change: impl Fn(u8) -> u8) {
    let Layout { batmap, map, .. } = Layout::of(bytes);
    bytes[map] = change(bytes[map]);
    let sum: u32 = bytes[map..map + 512].iter().map(|&byte| u32::from(byte)).sum();
    bytes[batmap + 24..batmap + 28].copy_from_slice(&(!sum).to_be_bytes());
}

fn insert(bytes: &mut Vec<u8>, count: usize) {
    let at = Layout::of(bytes).end;
    bytes.splice(at..at, vec![7; count]);
}

type Damage = fn(&mut Vec<u8>);

/// The first locator entry in the header: code, room, length, reserved, offset.
const LOCATOR: usize = 576;

const DYNAMIC: &[(&str, Damage)] = &[
    ("footer-lost", |b| {
        let end = Layout::of(b).end;
        b[..512].fill(0);
        b[end..].fill(0);
    }),
    ("tables-behind-blocks", tables_behind_blocks),
    ("tables-elsewhere", |b| {
        tables_behind_blocks(b);
        footers(b, 28..32, b"win ");
    }),
    ("footer-end-lost", |b| {
        let end = Layout::of(b).end;
        b[end + 50] ^= 1;
    }),
    ("footer-511", |b| {
        b.pop();
    }),
    ("footer-copy-lost", |b| b[24] ^= 1),
    ("footer-copy-differs", |b| {
        b[24] ^= 1;
        seal(&mut b[..512], 64);
    }),
    ("resize-unfinished", |b| footers(b, 0..8, b"v_poison")),
    ("size-odd", |b| footers(b, SIZE, &(262_144_u64 - 1).to_be_bytes())),
    ("geometry-differs", |b| {
        footers(b, 28..32, b"qemu");
        footers(b, 56..58, &7_u16.to_be_bytes());
    }),
    ("saved-state", |b| footers(b, 84..85, &[1])),
    ("header-damaged", |b| b[512 + 33] ^= 4),
    ("header-field", |b| header(b, 1000, &[1])),
    ("table-outside", |b| header(b, 16, &(1_u64 << 40).to_be_bytes())),
    ("table-overlap", |b| header(b, 16, &512_u64.to_be_bytes())),
    ("bat-short", |b| header(b, 28, &15_u32.to_be_bytes())),
    ("bat-entry", |b| entry(b, 0, |_| 1 << 30)),
    ("bat-beyond-disk", |b| footers(b, SIZE, &131_072_u64.to_be_bytes())),
    ("block-truncated", |b| {
        let end = Layout::of(b).end;
        b.drain(end - 2048..end);
    }),
    ("block-overlap", |b| {
        let other = number(b, Layout::of(b).bat);
        entry(b, 1, |_| other + 1);
    }),
    ("block-place", |b| entry(b, 15, |at| at - 1)),
    ("block-size", |_| {}),
    ("batmap-lost", |b| {
        let at = Layout::of(b).batmap;
        b[at..at + 512].fill(0);
    }),
    ("batmap-checksum", |b| {
        let at = Layout::of(b).map;
        b[at] ^= 1;
    }),
    ("batmap-wrong", |b| batmap(b, |bits| bits | 0x40)),
    ("batmap-stale", |b| batmap(b, |bits| bits | 0x20)),
    ("batmap-behind", |b| batmap(b, |_| 0)),
    ("data-unmarked", |b| {
        let at = number(b, Layout::of(b).bat + 4) * 512;
        b[at..at + 512].fill(0);
    }),
    ("stray-bytes", |b| insert(b, 8192)),
];

const DIFFERENCING: &[(&str, Damage)] = &[
    ("block-over-locator", |b| {
        let at = number(b, Layout::of(b).bat) as u64 * 512 + 512;
        header(b, LOCATOR + 16, &at.to_be_bytes());
    }),
    ("locator-place", |b| header(b, LOCATOR + 16, &(1_u64 << 40).to_be_bytes())),
    ("locator-room", |b| header(b, LOCATOR + 8, &600_u32.to_be_bytes())),
    ("locator-text", |b| {
        let at = number(b, 512 + LOCATOR + 20);
        b[at..at + 8].fill(0xff);
    }),
    ("locator-differs", |b| header(b, 64, b"\0q")),
    ("locator-bytes", |b| footers(b, 32..36, &0x0001_0001_u32.to_be_bytes())),
    ("locator-none", |b| {
        header(b, 64, &[0; 512]);
        header(b, LOCATOR, &[0; 192]);
    }),
];

fn findings(bytes: Vec<u8>) -> Vec<Finding> {
    let container = container(&Arc::new(MemoryStorage::new(bytes)));
    check::container_to(&container, Depth::Data).unwrap().findings().to_vec()
}

fn codes(findings: &[Finding]) -> Vec<&'static str> {
    findings.iter().map(|finding| finding.code).collect()
}

/// Gives what is found in an image with a parent that is found, missing or wrong in this way.
fn of_chain(code: &str) -> Vec<&'static str> {
    let scene = Scene::default();
    scene.dynamic("parent.vhd", 200);
    scene.child("child.vhd", "parent.vhd");
    scene.child("grandchild.vhd", "child.vhd");
    let (parent, child) = (scene.file("parent.vhd"), scene.file("child.vhd"));
    let mut options = ChainOptions::default();
    match code {
        "parent-missing" => fs::remove_file(&parent).unwrap(),
        "parent-identity" => {
            fs::remove_file(&parent).unwrap();
            scene.dynamic("parent.vhd", 200);
        }
        "parent-unreadable" => fs::write(&parent, b"conectix").unwrap(),
        "parent-larger" => {
            Image::open_writable(&parent).unwrap().set_size(ByteCount(204_800), ByteCount(0)).unwrap();
        }
        "parent-modified" => {
            let file = fs::File::options().write(true).open(&parent).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }
        "chain-cycle" => {
            let id = |path: &Path| Image::<ReadOnly>::open(path, vhd_core::Lock::None).unwrap().footer().unique_id();
            let link = ParentLink::new(scene.path(), &scene.file("grandchild.vhd"), id(&scene.file("grandchild.vhd")));
            Image::open_writable(&child).unwrap().relink(&link.unwrap()).unwrap();
        }
        "chain-depth" => options.max_depth = 2,
        _ => panic!("{code}: nothing gives it"),
    }
    let top = scene.file("grandchild.vhd");
    codes(check::chain(&top, &options, Depth::Data).unwrap().0.findings())
}

const CHAIN: &[&str] = &[
    "parent-missing",
    "parent-identity",
    "parent-unreadable",
    "parent-larger",
    "parent-modified",
    "chain-cycle",
    "chain-depth",
];

#[test]
fn each_kind_is_found_where_it_is() {
    assert_eq!(codes(&findings(dynamic())), ["block-size"], "nothing else is wrong before");
    assert_eq!(codes(&findings(differencing())), ["block-size"]);
    let mut tried = BTreeSet::new();
    for (cases, whole) in [(DYNAMIC, dynamic()), (DIFFERENCING, differencing())] {
        for (code, damage) in cases {
            let mut bytes = whole.clone();
            damage(&mut bytes);
            let found = findings(bytes);
            assert!(found.iter().any(|finding| finding.code == *code), "{code}: {found:?}");
            tried.insert(*code);
        }
    }
    let fixed = new_image(64 << 10, NewKind::Fixed).to_vec();
    assert_eq!(codes(&findings(fixed[512..].to_vec())), ["fixed-short"]);
    tried.insert("fixed-short");
    for code in CHAIN {
        let found = of_chain(code);
        assert!(found.contains(code), "{code}: {found:?}");
        tried.insert(code);
    }
    let all: BTreeSet<_> = KINDS.iter().map(|kind| kind.code).collect();
    assert_eq!(tried, all, "every kind has a damage that gives it");
}

/// Windows writes the whole path of the parent into the header, and names in the locators.
#[test]
fn a_path_in_the_header_is_no_other_name() {
    let mut bytes = differencing();
    let path: Vec<u8> = r"C:\disks\parent.vhd".encode_utf16().flat_map(u16::to_be_bytes).collect();
    header(&mut bytes, 64, &path);
    assert_eq!(codes(&findings(bytes)), ["block-size"]);
}

#[test]
fn the_table_of_kinds_is_in_the_documents() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/findings.md");
    let rows = KINDS
        .iter()
        .map(|kind| format!("| `{}` | {} | {} | {} |\n", kind.code, kind.severity, kind.meaning, kind.remedy));
    let table: String = rows.collect();
    assert!(fs::read_to_string(path).unwrap().contains(&table), "docs/findings.md should say:\n{table}");
}
