//! Disks that become smaller, and what a later growth shows.

use std::fs;
use std::sync::Arc;

use testkit::model::read_all;
use testkit::pattern;
use vhd_core::check::{self, Severity};
use vhd_core::{
    BlockSize, ByteCount, Chain, FileOffset, Layer, MemoryStorage, NewKind, RawDisk, Sector, SectorCount, Storage,
};

use super::{container, new_image, open, open_writable, sectors};

fn dynamic(block_size: u32) -> NewKind {
    NewKind::Dynamic { block_size: BlockSize::new(block_size).unwrap() }
}

fn content(memory: &Arc<MemoryStorage>) -> Vec<u8> {
    read_all(&Chain::from_layers(vec![Layer::Vhd(Box::new(open(memory)))]))
}

fn full(kind: NewKind) -> Arc<MemoryStorage> {
    let memory = new_image(1 << 20, kind);
    let image = open_writable(&memory);
    image.write(sectors(0, 2048), &pattern::fill(sectors(0, 2048), 5)).unwrap();
    image.close().unwrap();
    memory
}

#[test]
fn what_lies_beyond_the_end_goes_and_never_comes_back() {
    for kind in [NewKind::Fixed, dynamic(4096), dynamic(64 << 10), dynamic(2 << 20)] {
        for left in [1, 7, 8, 128, 1000, 2040, 2047] {
            let memory = full(kind.clone());
            let mut image = open_writable(&memory);
            image.set_size(SectorCount(left).bytes(), ByteCount(0)).unwrap();
            image.drop_leftovers().unwrap();
            image.close().unwrap();
            assert!(content(&memory) == pattern::fill(sectors(0, left), 5), "{kind:?}, {left}");
            let report = check::container(container(&memory)).unwrap();
            assert!(report.findings().iter().all(|it| it.code != "bat-beyond-disk"), "{:?}", report.findings());
            assert!(report.worst() < Some(Severity::Warning), "{:?}", report.findings());
            if matches!(kind, NewKind::Fixed) {
                assert_eq!(memory.len().unwrap(), ByteCount(left * 512 + 512));
            } else {
                // Nothing of the pattern is left in the file.
                let bytes = memory.to_vec();
                let beyond = pattern::sector(Sector(left), 5);
                assert!(bytes.chunks(512).all(|sector| sector != beyond), "{kind:?}, {left}");
            }

            let mut image = open_writable(&memory);
            image.set_size(ByteCount(2 << 20), ByteCount(0)).unwrap();
            image.close().unwrap();
            let mut grown = pattern::fill(sectors(0, left), 5);
            grown.resize(2 << 20, 0);
            assert!(content(&memory) == grown, "{kind:?}, {left}");
        }
    }
}

#[test]
fn a_size_between_a_sector_and_the_old_footer_leaves_no_second_end() {
    let memory = full(NewKind::Fixed);
    let mut image = open_writable(&memory);
    image.set_size(SectorCount(2047).bytes(), ByteCount(0)).unwrap();
    // Power fails here: the file is longer than it needs to be, and says the new size.
    drop(image);
    assert!(content(&memory) == pattern::fill(sectors(0, 2047), 5));
    let mut image = open_writable(&memory);
    image.drop_leftovers().unwrap();
    image.drop_leftovers().unwrap();
    image.close().unwrap();
    assert_eq!(memory.len().unwrap(), ByteCount(1 << 20));
    assert!(content(&memory) == pattern::fill(sectors(0, 2047), 5));
}

/// A BAT entry beyond the end of the disk is not looked at when the image is opened; it may say anything.
#[test]
fn a_block_beyond_the_end_that_lies_over_another_takes_nothing_with_it() {
    for entry in [None, Some(0_u32), Some(1 << 30)] {
        let memory = full(dynamic(64 << 10));
        let mut image = open_writable(&memory);
        image.set_size(ByteCount(512 << 10), ByteCount(0)).unwrap();
        image.close().unwrap();
        let table = open(&memory).header().unwrap().table_offset();
        let over = entry.unwrap_or_else(|| {
            let (_, place) = open(&memory).allocated_blocks().next().unwrap().unwrap();
            (place.bitmap.0 / 512) as u32 + 3
        });
        memory.write_at(&over.to_be_bytes(), FileOffset(table.0 + 15 * 4)).unwrap();
        let mut image = open_writable(&memory);
        assert_eq!(image.drop_leftovers().unwrap(), 8);
        image.close().unwrap();
        assert!(content(&memory) == pattern::fill(sectors(0, 1024), 5));
        let report = check::container(container(&memory)).unwrap();
        assert!(report.worst() < Some(Severity::Warning), "{:?}", report.findings());
    }
}

#[test]
fn the_last_sector_that_is_held_is_found() {
    for kind in [NewKind::Fixed, dynamic(4096), dynamic(2 << 20)] {
        let memory = new_image(64 << 20, kind);
        let image = open_writable(&memory);
        assert_eq!(image.last_present(Sector(0)).unwrap(), None);
        for (start, count) in [(3, 5), (70_000, 17)] {
            image.write(sectors(start, count), &pattern::fill(sectors(start, count), 1)).unwrap();
        }
        image.flush().unwrap();
        for (from, last) in [(0, Some(70_016)), (70_016, Some(70_016)), (70_017, None), (131_071, None)] {
            assert_eq!(image.last_present(Sector(from)).unwrap(), last.map(Sector), "from {from}");
        }
    }
}

#[test]
fn zeros_of_a_chain_are_told_from_data() {
    let folder = testkit::scratch::folder();
    let path = folder.path().join("disk.img");
    let file = fs::File::create(&path).unwrap();
    file.set_len(3 << 30).unwrap();
    for (at, byte) in [(5000_u64, 1_u8), ((1 << 30) + 511, 0), ((2 << 30) + 7, 3)] {
        std::os::unix::fs::FileExt::write_all_at(&file, &[byte], at).unwrap();
    }
    let storage = vhd_core::FileStorage::open(&path, vhd_core::Lock::None).unwrap();
    let disk = RawDisk::open(vhd_core::Container::new(&path, Arc::new(storage))).unwrap();
    let chain = Chain::from_layers(vec![Layer::Raw(disk)]);
    let all = sectors(0, (3 << 30) / 512);
    assert_eq!(chain.last_nonzero(all).unwrap(), Some(Sector(1 << 22)));
    assert_eq!(chain.last_nonzero(sectors(10, (2 << 21) - 10)).unwrap(), None);
    assert_eq!(chain.last_nonzero(sectors(0, 2 << 21)).unwrap(), Some(Sector(9)));
    assert!(!chain.is_zero(all).unwrap());
    assert!(chain.is_zero(sectors(10, (2 << 21) - 10)).unwrap());
    assert!(!chain.is_zero(sectors(9, 1)).unwrap());
}
