//! Footers, header and batmap: what is there twice, or can be made from the rest.

use testkit::golden;
use testkit::peers::{qemu_io, qemu_sha256};
use vhd_core::repair::{self, HeaderDoubt, Options, RepairError};
use vhd_core::{Image, Lock};

use super::{Patient, codes, entry, put, small, table};

type Damage = (&'static str, fn(&mut Vec<u8>), &'static str);

fn cut(bytes: &mut Vec<u8>, length: usize) {
    bytes.truncate(bytes.len() - length);
}

/// Where the batmap's header is in [`small`] and `base.vhd`: the BAT fits into whole sectors of its own.
fn batmap(bytes: &[u8]) -> usize {
    let entries = u32::from_be_bytes(bytes[512 + 28..512 + 32].try_into().unwrap()) as usize;
    table(bytes) + (entries * 4).next_multiple_of(512)
}

/// A byte of the batmap's header, or of the map after it.
fn in_batmap(bytes: &mut [u8], offset: usize) -> &mut u8 {
    let at = batmap(bytes) + offset;
    &mut bytes[at]
}

#[test]
fn what_is_there_twice_comes_back_byte_for_byte() {
    let damages: [Damage; 16] = [
        ("the end footer cut off", |bytes| cut(bytes, 512), "footer-end-lost"),
        ("part of it cut off", |bytes| cut(bytes, 100), "footer-end-lost"),
        ("all but a byte of it cut off", |bytes| cut(bytes, 510), "footer-end-lost"),
        ("its last byte cut off", |bytes| cut(bytes, 1), "footer-511"),
        ("it zeroed", |bytes| bytes.iter_mut().rev().take(512).for_each(|byte| *byte = 0), "footer-end-lost"),
        ("a byte of it changed", |bytes| *bytes.iter_mut().rev().nth(400).unwrap() ^= 1, "footer-end-lost"),
        ("the copy zeroed", |bytes| bytes[..512].fill(0), "footer-copy-lost"),
        ("a byte of the copy changed", |bytes| bytes[300] ^= 0x40, "footer-copy-lost"),
        ("the header's cookie lost", |bytes| bytes[512..520].fill(0), "header-damaged"),
        ("the header's version lost", |bytes| bytes[512 + 24] = 9, "header-damaged"),
        ("the header's checksum lost", |bytes| put(bytes, 512 + 36, &[0; 4]), "header-damaged"),
        ("a batmap bit too many", |bytes| *in_batmap(bytes, 512) |= 0x20, "batmap-checksum"),
        ("a batmap bit too few", |bytes| *in_batmap(bytes, 512) = 0, "batmap-checksum"),
        ("the batmap's checksum lost", |bytes| *in_batmap(bytes, 25) ^= 3, "batmap-checksum"),
        ("the batmap's cookie lost", |bytes| *in_batmap(bytes, 0) = 0, "batmap-lost"),
        ("the batmap's place lost", |bytes| *in_batmap(bytes, 8) = 0xff, "batmap-lost"),
    ];
    let real =
        ["the end footer cut off", "it zeroed", "the copy zeroed", "a batmap bit too many", "the batmap's place lost"];
    for (sound, only) in [(small(), None), (golden::bytes("base.vhd"), Some(real))] {
        for (what, damage, code) in damages {
            if only.is_some_and(|only| !only.contains(&what)) {
                continue;
            }
            let mut bytes = sound.clone();
            damage(&mut bytes);
            assert!(bytes != sound, "{what}");
            let patient = Patient::new(bytes);
            let repaired = patient.repaired();
            assert_eq!(codes(&repaired), [code], "{what}");
            assert_eq!(repaired.lost, [], "{what}");
            assert!(patient.memory.to_vec() == sound, "{what}");
        }
    }
}

#[test]
fn marker_and_key_hash_survive_a_torn_batmap() {
    let sound = golden::bytes("meta.vhd");
    let mut bytes = sound.clone();
    let at = batmap(&bytes);
    bytes[at + 8] = 0xff;
    let patient = Patient::new(bytes);
    assert_eq!(codes(&patient.repaired()), ["batmap-lost"]);
    assert!(patient.memory.to_vec() == sound);
}

#[test]
fn a_batmap_with_wrong_bits_and_the_right_checksum_is_made_anew() {
    let sound = small();
    for (bit, code) in [(0x20, "batmap-wrong"), (0x40, "batmap-stale")] {
        let mut bytes = sound.clone();
        let at = batmap(&bytes);
        bytes[at + 512] |= bit;
        let sum: u32 = bytes[at + 512..at + 1024].iter().map(|&byte| u32::from(byte)).sum();
        put(&mut bytes, at + 24, &(!sum).to_be_bytes());
        let patient = Patient::new(bytes);
        assert_eq!(codes(&patient.repaired()), [code]);
        assert!(patient.memory.to_vec() == sound);
    }
}

/// Who fills up a batmap's place with a block leaves it no room.
#[test]
fn a_batmap_that_qemu_has_overwritten_finds_another_place() {
    let folder = golden::unpack(&["empty-10m.vhd"]);
    let path = folder.path().join("empty-10m.vhd");
    qemu_io("vpc", &path, "write -q -P 0x11 0 3M");
    let content = qemu_sha256(&path);
    let before = std::fs::read(&path).unwrap();
    let repaired = repair::file(&path, &Options::default()).unwrap();
    assert_eq!(codes(&repaired), ["batmap-lost"]);
    assert_eq!(qemu_sha256(&path), content);
    let image = Image::open(&path, Lock::None).unwrap();
    assert!(image.batmap().is_some());
    assert_eq!(vhd_core::check::file(&path).unwrap().findings(), []);
    repair::take_back(&path, &Options::default()).unwrap();
    assert!(std::fs::read(&path).unwrap() == before);
}

/// A batmap whose header is torn may seem to lie over a block: the block is kept.
#[test]
fn a_block_is_not_given_up_for_a_batmap_that_nothing_proves() {
    let sound = small();
    let mut bytes = sound.clone();
    let (at, block) = (batmap(&bytes), entry(&bytes, 2));
    put(&mut bytes, at + 8, &(block as u64).to_be_bytes());
    let patient = Patient::new(bytes);
    let repaired = patient.repaired();
    assert_eq!(codes(&repaired), ["batmap-lost"]);
    assert_eq!(repaired.lost, []);
    assert!(patient.memory.to_vec() == sound);
}

#[test]
fn without_any_footer_nothing_is_done() {
    let mut bytes = golden::bytes("base.vhd");
    bytes[..512].fill(0);
    cut(&mut bytes, 512);
    assert!(matches!(Patient::new(bytes).refused(), RepairError::Open(_)));
    let mut bytes = golden::bytes("fixed-4m.vhd");
    cut(&mut bytes, 512);
    assert!(matches!(Patient::new(bytes).refused(), RepairError::Open(_)));
}

#[test]
fn a_fixed_image_gets_its_last_byte() {
    let sound = golden::bytes("fixed-4m.vhd");
    let patient = Patient::new(sound[..sound.len() - 1].to_vec());
    assert_eq!(codes(&patient.repaired()), ["footer-511"]);
    assert!(patient.memory.to_vec() == sound);
}

#[test]
fn a_header_that_nothing_proves_is_not_guessed() {
    let doubts: [(usize, &[u8], HeaderDoubt); 6] = [
        (16, &2048_u64.to_be_bytes(), HeaderDoubt::Table),
        (16, &1024_u64.to_be_bytes(), HeaderDoubt::Table),
        (28, &3_u32.to_be_bytes(), HeaderDoubt::Fields),
        (28, &4096_u32.to_be_bytes(), HeaderDoubt::Table),
        (32, &3000_u32.to_be_bytes(), HeaderDoubt::Fields),
        (32, &(4_u32 << 20).to_be_bytes(), HeaderDoubt::Table),
    ];
    for (field, value, expected) in doubts {
        let mut bytes = golden::bytes("base.vhd");
        put(&mut bytes, 512 + field, value);
        match Patient::new(bytes).refused() {
            RepairError::Header { doubt, .. } => assert_eq!(doubt, expected, "{field}"),
            other => panic!("{field}: {other}"),
        }
    }
}
