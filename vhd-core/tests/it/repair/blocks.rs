//! Entries that cannot be, blocks cut short, blocks over each other.

use testkit::{golden, pattern};
use vhd_core::repair::RepairError;
use vhd_core::{Image, SectorRange};

use super::{Patient, codes, entry, set_entry, small};
use crate::{container, sectors};

/// What a block of [`small`] takes: a bitmap of one sector and eight sectors.
const STRIDE: usize = 512 + 4096;

#[test]
fn an_entry_beyond_the_end_is_cleared_and_its_block_is_lost() {
    let patient = Patient::new(golden::bytes("bat-beyond-eof.vhd"));
    let sound = Patient::new(golden::bytes("base.vhd"));
    let bad = (0..32).find(|&block| entry(&patient.memory.to_vec(), block) != entry(&sound.memory.to_vec(), block));
    let lost = sectors(bad.unwrap() as u64 * 4096, 4096);
    let repaired = patient.repaired();
    assert_eq!(repaired.mended[0].code, "bat-entry");
    assert_eq!(repaired.lost, [lost]);
    for block in 0..32_u64 {
        let range = sectors(block * 4096, 4096);
        let expected = if range == lost { vec![0; 4096 * 512] } else { sound.read(range) };
        assert!(patient.read(range) == expected, "block {block}");
    }
}

#[test]
fn entries_over_tables_are_cleared() {
    // The copy of the footer, the header, the BAT, the batmap's header and its map.
    for place in [0, 512, 1536, 2560, 3072] {
        let mut bytes = small();
        set_entry(&mut bytes, 2, place);
        let patient = Patient::new(bytes);
        let repaired = patient.repaired();
        assert_eq!(codes(&repaired), ["bat-entry"], "{place}");
        assert_eq!(repaired.lost, [sectors(16, 8)]);
        assert_eq!(patient.read(sectors(0, 8)), pattern::fill(sectors(0, 8), 1));
    }
}

/// Block 5 is the last of the file, and holds its first five sectors.
#[test]
fn a_last_block_that_is_cut_short_keeps_what_is_there() {
    let sound = small();
    let data = entry(&sound, 5) + 512;
    for with_footer in [false, true] {
        for there in [0, 1, 511, 512, 1024, 1500, 5 * 512, 7 * 512 + 3, 4095, 4096] {
            let mut bytes = sound[..data + there].to_vec();
            if with_footer {
                bytes.extend_from_slice(&sound[sound.len() - 512..]);
            }
            let (whole, what) = ((there / 512) as u64, format!("{there} bytes, {with_footer}"));
            if whole == 8 && with_footer {
                assert!(Patient::new(bytes).repair().unwrap().mended.is_empty(), "{what}");
                continue;
            }
            let patient = Patient::new(bytes);
            let repaired = patient.repaired();
            let is_lost: &[SectorRange] = if whole < 5 { &[sectors(40 + whole, 5 - whole)] } else { &[] };
            assert_eq!(repaired.lost, is_lost, "{what}");
            let kept = sectors(40, whole.min(5));
            assert!(patient.read(kept) == pattern::fill(kept, 1), "{what}");
            let rest = sectors(40 + whole.min(5), 8 - whole.min(5));
            assert!(patient.read(rest).iter().all(|&byte| byte == 0), "{what}");
            for other in [sectors(0, 8), sectors(17, 3)] {
                assert!(patient.read(other) == pattern::fill(other, 1), "{what}");
            }
        }
    }
}

/// A batmap that is not right, and a block over it: nothing tells which of them was there first.
#[test]
fn a_block_over_a_doubtful_batmap_is_refused() {
    let mut bytes = small();
    set_entry(&mut bytes, 2, 2560);
    bytes[3072] ^= 8;
    let error = Patient::new(bytes).refused();
    assert!(matches!(error, RepairError::OverBatmap { block: vhd_core::BlockIndex(2), .. }), "{error}");
}

#[test]
fn of_a_block_without_its_bitmap_nothing_is_known() {
    let mut bytes = small();
    bytes.truncate(entry(&bytes, 5) + 100);
    let patient = Patient::new(bytes);
    assert_eq!(patient.repaired().lost, [sectors(40, 8)]);
    assert_eq!(patient.read(sectors(17, 3)), pattern::fill(sectors(17, 3), 1));
}

#[test]
fn a_file_cut_in_half_keeps_the_other_half() {
    let mut bytes = golden::bytes("base.vhd");
    bytes.truncate(bytes.len() / 2);
    let patient = Patient::new(bytes);
    let repaired = patient.repaired();
    assert!(!repaired.lost.is_empty());
    let sound = Patient::new(golden::bytes("base.vhd"));
    for sector in (0..131_072).step_by(97) {
        let range = sectors(sector, 1);
        let lost = repaired.lost.iter().any(|lost| lost.start <= range.start && range.end <= lost.end);
        let found = patient.read(range);
        assert!(if lost { found == [0; 512] } else { found == sound.read(range) }, "sector {sector}");
    }
}

#[test]
fn the_same_place_twice_is_refused_and_both_choices_are_told() {
    let patient = Patient::new(golden::bytes("overlapping-blocks.vhd"));
    let error = patient.refused();
    let RepairError::Overlap { overlap, first, second, .. } = &error else { panic!("{error}") };
    assert_eq!((overlap.first.0, overlap.second.0), (1, 3));
    assert!(!first.is_empty() && first.iter().all(|range| (4096..8192).contains(&range.start.0)), "{first:?}");
    assert!(!second.is_empty() && second.iter().all(|range| (12_288..16_384).contains(&range.start.0)), "{second:?}");
    let text = error.to_string();
    assert!(text.contains("without block 1 its sectors ") && text.contains("without block 3 its sectors "), "{text}");
}

#[test]
fn of_two_blocks_one_that_holds_nothing_gives_way() {
    // Block 7 is there, and nothing has been written to it.
    let memory = Patient::new(small()).memory;
    let image = crate::open_writable(&memory);
    image.reserve(&[vhd_core::BlockIndex(7)]).unwrap();
    image.close().unwrap();
    let bytes = memory.to_vec();
    // Its bitmap lies free, and what follows that is over block 5.
    let mut before = bytes.clone();
    let place = entry(&before, 5) - 1024;
    before[place..place + 512].fill(0);
    set_entry(&mut before, 7, place);
    let patient = Patient::new(before);
    let repaired = patient.repaired();
    assert_eq!(codes(&repaired), ["block-overlap"]);
    assert_eq!(repaired.lost, []);
    assert_eq!(patient.read(sectors(40, 5)), pattern::fill(sectors(40, 5), 1));
    assert_eq!(patient.read(sectors(56, 8)), [0; 4096]);

    // Its bitmap is block 5's data, and seems empty only because that is: nothing is proved.
    let mut within = bytes;
    let place = entry(&within, 5) + STRIDE - 512;
    set_entry(&mut within, 7, place);
    assert!(matches!(Patient::new(within).refused(), RepairError::Overlap { .. }));
}

#[test]
fn an_entry_beyond_the_disk_gives_way() {
    let memory = Patient::new(small()).memory;
    let mut image = crate::open_writable(&memory);
    image.set_size(vhd_core::ByteCount(256 << 10), vhd_core::ByteCount(0)).unwrap();
    drop(image);
    let mut bytes = memory.to_vec();
    let place = entry(&bytes, 5) + 512;
    set_entry(&mut bytes, 100, place);
    let patient = Patient::new(bytes);
    let repaired = patient.repaired();
    assert_eq!(codes(&repaired), ["block-overlap"]);
    assert_eq!(repaired.lost, []);
    assert_eq!(patient.read(sectors(40, 5)), pattern::fill(sectors(40, 5), 1));
    Image::writable_from_container(container(&patient.memory)).unwrap();
}

/// A sector of the BAT is garbage: what can be is kept, what cannot is listed.
#[test]
fn a_torn_sector_of_the_bat_costs_no_other_block() {
    let mut bytes = small();
    let at = super::table(&bytes) + 512;
    bytes[at..at + 512].fill(0x5a);
    let patient = Patient::new(bytes);
    let repaired = patient.repaired();
    assert_eq!(repaired.mended.len(), 65, "64, and the number of the rest");
    assert!(repaired.mended[64].text.starts_with("64 more"), "{:?}", repaired.mended[64]);
    assert_eq!(repaired.lost, [sectors(128 * 8, 128 * 8)]);
    for range in [sectors(0, 8), sectors(17, 3), sectors(40, 5)] {
        assert_eq!(patient.read(range), pattern::fill(range, 1));
    }
}
