//! Where tables, locators and blocks lie: as other programs take for granted, whatever is done to an image.

use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use testkit::fault::FaultStorage;
use testkit::model::read_all;
use testkit::old_layout::tables_behind_blocks;
use testkit::pattern;
use vhd_core::check::{self, Severity};
use vhd_core::{
    BlockSize, ByteCount, Chain, Container, Image, Layer, MemoryStorage, MetadataError, NewKind, ParentLink, Storage,
    Timestamp, Uuid, repair,
};

use super::{container, new_image, open, open_writable, sectors};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn dynamic() -> NewKind {
    NewKind::Dynamic { block_size: BlockSize::DEFAULT }
}

fn link(name: &str) -> ParentLink {
    ParentLink::to_named(Path::new(name), Uuid::from_u128(7), Timestamp::now()).unwrap()
}

fn child_of(name: &str) -> NewKind {
    NewKind::Differencing { block_size: BlockSize::DEFAULT, parent: link(name) }
}

/// An image with the pattern at the start of some blocks, and all of the first.
fn written(size: u64, kind: NewKind) -> Arc<MemoryStorage> {
    let memory = new_image(size, kind);
    let image = open_writable(&memory);
    for block in [0, 3, 1] {
        let range = sectors(block * 4096 + 8, 16);
        image.write(range, &pattern::fill(range, 1)).unwrap();
    }
    let first = sectors(0, 4096);
    image.write(first, &pattern::fill(first, 2)).unwrap();
    image.close().unwrap();
    memory
}

/// What the first blocks hold.
fn head(memory: &Arc<MemoryStorage>) -> Vec<u8> {
    let parents = MemoryStorage::default();
    parents.set_len(ByteCount(MIB)).unwrap();
    let raw = vhd_core::RawDisk::open(Container::new("parent", Arc::new(parents))).unwrap();
    let chain = Chain::from_layers(vec![Layer::Vhd(Box::new(open(memory))), Layer::Raw(raw)]);
    let mut bytes = vec![0; 5 * (2 << 20)];
    chain.read(sectors(0, 5 * 4096), &mut bytes).unwrap();
    bytes
}

fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes[at..at + length].iter().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// Holds an image to the layout by its bytes alone: the order of the tables, what lies before each bitmap, and the end.
fn assert_laid_out(bytes: &[u8]) {
    assert_eq!(number(bytes, 16, 8), 512, "the header lies behind the copy of the footer");
    let (table, entries) = (number(bytes, 512 + 16, 8), number(bytes, 512 + 28, 4));
    assert_eq!(table, 1536, "the BAT lies behind the header");
    let batmap = table + (entries * 4).next_multiple_of(512);
    assert_eq!(&bytes[batmap as usize..][..8], b"tdbatmap");
    let map = number(bytes, batmap as usize + 8, 8);
    assert_eq!(map, batmap + 512);
    let mut end = map + number(bytes, batmap as usize + 16, 4) * 512;
    for slot in 0..8 {
        let at = 512 + 576 + slot * 24;
        if number(bytes, at, 4) != 0 {
            let (space, offset) = (number(bytes, at + 4, 4), number(bytes, at + 16, 8));
            assert!(offset >= end, "locator {slot} lies at {offset}, the tables before it end at {end}");
            end = offset + space;
        }
    }
    let mut blocks: Vec<u64> = (0..entries).map(|block| number(bytes, (table + block * 4) as usize, 4)).collect();
    blocks.retain(|&entry| entry != u64::from(u32::MAX));
    blocks.sort_unstable();
    let mut before: Range<u64> = 0..end;
    for bitmap in blocks.into_iter().map(|entry| entry * 512) {
        let is_first_place = bitmap < end + 4096 && (bitmap + 512).is_multiple_of(4096);
        let zeroed = if is_first_place { bitmap } else { bitmap - 7 * 512 };
        assert!(zeroed >= before.end, "what lies in {before:?} is overwritten before the block at {bitmap}");
        before = bitmap..bitmap + 512 + (2 << 20);
    }
    assert_eq!(bytes.len() as u64, before.end + 512, "the footer ends the file");
}

fn assert_sound(memory: &Arc<MemoryStorage>) {
    let report = check::container(container(memory)).unwrap();
    assert!(report.worst() < Some(Severity::Warning), "{:?}", report.findings());
}

const GROWTHS: [(u64, u64); 7] = [
    (256 * MIB, 512 * MIB),
    (30 * GIB, 40 * GIB),
    (40 * GIB, 80 * GIB),
    (2 * GIB, 2040 * GIB),
    (50 * GIB, 51 * GIB),
    (10 * MIB, 8 * GIB + 2 * MIB),
    (254 * MIB, 256 * MIB),
];

#[test]
fn tables_stay_before_the_blocks_when_a_disk_grows() {
    for kind in [dynamic(), child_of("parent.vhd")] {
        for (from, to) in GROWTHS {
            let memory = written(from, kind.clone());
            assert_laid_out(&memory.to_vec());
            let (before, marker) = (head(&memory), 3);
            let mut image = open_writable(&memory);
            image.set_marker(marker).unwrap();
            image.set_size(ByteCount(to), ByteCount(0)).unwrap();
            let range = sectors(2 * 4096, 7);
            image.write(range, &pattern::fill(range, 9)).unwrap();
            image.close().unwrap();
            assert_laid_out(&memory.to_vec());
            let mut expected = before;
            expected[4 << 20..][..7 * 512].copy_from_slice(&pattern::fill(range, 9));
            assert!(head(&memory) == expected, "{from} to {to}");
            let image = open(&memory);
            assert_eq!(image.footer().current_size(), ByteCount(to));
            assert_eq!(image.batmap().unwrap().marker(), marker);
            assert_eq!(image.parent_names().unwrap(), open(&written(from, kind.clone())).parent_names().unwrap());
            assert_sound(&memory);
        }
    }
}

#[test]
fn tables_behind_the_blocks_are_found_and_mended() {
    type Mend = fn(&Arc<MemoryStorage>);
    let repaired: Mend = |memory| {
        let folder = testkit::scratch::folder();
        let undo = folder.path().join("undo");
        let done = repair::container(&container(memory), &undo, &repair::Options::default()).unwrap();
        assert_eq!(done.mended.iter().map(|it| it.code).collect::<Vec<_>>(), ["tables-behind-blocks"]);
        repair::container_taken_back(&container(memory), &undo).unwrap();
        assert_eq!(codes(memory), ["tables-behind-blocks"], "taken back");
        repair::container(&container(memory), &undo, &repair::Options::default()).unwrap();
    };
    let compacted: Mend = |memory| {
        let foreseen = open(memory).compaction(None, |_| ()).unwrap();
        let mut image = open_writable(memory);
        let done = image.compact(None, |_| ()).unwrap();
        assert_eq!((done.moved_blocks, done.length), (foreseen.moved_blocks, foreseen.length));
        image.close().unwrap();
    };
    let resized: Mend = |memory| {
        let mut image = open_writable(memory);
        image.set_size(ByteCount(60 * MIB), ByteCount(0)).unwrap();
        image.close().unwrap();
    };
    for kind in [dynamic(), child_of("parent.vhd")] {
        for mend in [repaired, compacted, resized] {
            let memory = written(64 * MIB, kind.clone());
            let mut bytes = memory.to_vec();
            let before = head(&memory);
            tables_behind_blocks(&mut bytes);
            let memory = Arc::new(MemoryStorage::new(bytes));
            assert!(head(&memory) == before);
            assert_eq!(codes(&memory), ["tables-behind-blocks"]);
            mend(&memory);
            assert_laid_out(&memory.to_vec());
            assert!(head(&memory) == before);
            assert_sound(&memory);
        }
    }
}

fn codes(memory: &Arc<MemoryStorage>) -> Vec<&'static str> {
    let report = check::container(container(memory)).unwrap();
    report.findings().iter().filter(|it| it.severity > Severity::Info).map(|it| it.code).collect()
}

/// Which bytes differ, in whole sectors.
fn changed_sectors(before: &[u8], after: &[u8]) -> Vec<usize> {
    assert_eq!(before.len(), after.len());
    let pairs = before.chunks(512).zip(after.chunks(512)).enumerate();
    pairs.filter(|(_, (before, after))| before != after).map(|(i, _)| i).collect()
}

#[test]
fn a_relink_in_place_writes_locators_and_header_and_nothing_else() {
    for size in [64 * MIB, 50 * GIB, 60 * GIB, 128 * GIB, 1024 * GIB] {
        for name in ["other.vhd", "a.vhd", "a-rather-longer-name-than-the-first-one-was.vhd", "../elsewhere/parent.vhd"]
        {
            let memory = written(size, child_of("parent.vhd"));
            // As while another program writes to it: what ends the file is no footer.
            memory.write_at(&[0xc7; 512], vhd_core::FileOffset(memory.len().unwrap().0 - 512)).unwrap();
            let (before, content) = (memory.to_vec(), head(&memory));
            let mut image = open_writable(&memory);
            image.relink_in_place(&link(name)).unwrap();
            drop(image);
            let after = memory.to_vec();
            let header = open(&memory).header().unwrap().clone();
            let locators: Vec<usize> = header.locators().map(|(_, entry)| entry.offset.0 as usize / 512).collect();
            let changed = changed_sectors(&before, &after);
            assert!(changed.iter().all(|sector| [1, 2].contains(sector) || locators.contains(sector)), "{changed:?}");
            assert!(changed.len() >= 4, "{changed:?}");
            let names = open(&memory).parent_names().unwrap();
            assert!(names.iter().all(|path| path.file_name() == Path::new(name).file_name()), "{names:?}");
            assert!(head(&memory) == content);
        }
    }
}

#[test]
fn a_path_that_does_not_fit_is_refused_before_anything_changes() {
    let long = format!("{}abc.vhd", "long".repeat(62));
    let memory = written(64 * MIB, child_of("parent.vhd"));
    let (before, content) = (memory.to_vec(), head(&memory));
    let error = open_writable(&memory).relink_in_place(&link(&long)).unwrap_err();
    assert!(matches!(error, MetadataError::LocatorRoom { room: ByteCount(512), .. }), "{error}");
    assert!(memory.to_vec() == before);

    // Where nobody else has the image open, room is made.
    let mut image = open_writable(&memory);
    image.relink(&link(&long)).unwrap();
    image.close().unwrap();
    assert_laid_out(&memory.to_vec());
    assert!(head(&memory) == content);
    assert!(open(&memory).parent_names().unwrap().iter().all(|path| path.ends_with(&long)));
    assert_sound(&memory);
}

#[test]
fn an_image_without_locators_gets_some_only_where_blocks_may_move() {
    let memory = written(64 * MIB, dynamic());
    let mut image = open_writable(&memory);
    image.attach(&link("parent.vhd"), |_| Ok::<_, MetadataError>(())).unwrap();
    image.close().unwrap();
    assert_laid_out(&memory.to_vec());
    assert_sound(&memory);
    assert!(open(&memory).is_differencing());
}

/// Whatever fails, the content is what it was, before and after the image is opened again, and a second try ends well.
#[test]
fn an_image_whose_tables_are_laid_out_reads_the_same_whatever_fails() {
    type Change = fn(&mut Image<vhd_core::ReadWrite>) -> Result<(), MetadataError>;
    let grow: Change = |image| image.set_size(ByteCount(4 * GIB), ByteCount(0));
    let name: Change = |image| image.relink(&link(&format!("{}abc.vhd", "long".repeat(62))));
    for change in [grow, name] {
        let mut failures = 0;
        for fault in 0.. {
            let memory = written(64 * MIB, child_of("parent.vhd"));
            let before = head(&memory);
            let storage = Arc::new(FaultStorage::new(memory.clone(), fault, u64::MAX, ErrorKind::StorageFull));
            let mut image = Image::writable_from_container(Container::new("memory.vhd", storage)).unwrap();
            let changed = change(&mut image);
            drop(image.close());
            assert!(head(&memory) == before, "fault {fault}");
            assert!(!open(&memory).parent_names().unwrap().is_empty());
            let mut image = open_writable(&memory);
            image.trim_tail().unwrap();
            image.lay_out().unwrap();
            change(&mut image).unwrap();
            image.close().unwrap();
            assert!(head(&memory) == before, "fault {fault}, done again");
            assert_laid_out(&memory.to_vec());
            if changed.is_ok() {
                break;
            }
            failures += 1;
        }
        assert!(failures > 20, "{failures}");
    }
}

#[test]
fn blocks_that_are_not_aligned_are_spared_by_those_that_follow() {
    let memory = written(64 * MIB, dynamic());
    // The last block moves on by a sector: the next is appended behind it.
    let mut bytes = memory.to_vec();
    let table = 1536;
    let entries: Vec<u64> = (0..32).map(|block| number(&bytes, table + block * 4, 4)).collect();
    let (block, &last) =
        entries.iter().enumerate().filter(|(_, entry)| **entry < 1 << 31).max_by_key(|it| it.1).unwrap();
    let at = last as usize * 512;
    bytes.insert(at, 0);
    bytes.splice(at..at, [0; 511]);
    bytes[table + block * 4..][..4].copy_from_slice(&(last as u32 + 1).to_be_bytes());
    let memory = Arc::new(MemoryStorage::new(bytes));
    let before = head(&memory);
    let image = open_writable(&memory);
    let range = sectors(20 * 4096, 1);
    image.write(range, &pattern::fill(range, 4)).unwrap();
    image.close().unwrap();
    assert!(head(&memory) == before);
    let new = number(&memory.to_vec(), table + 20 * 4, 4);
    assert!(new - (last + 1 + 4097) >= 7, "seven sectors lie between them: {new}, {last}");
    assert!(read_all(&Chain::from_layers(vec![Layer::Vhd(Box::new(open(&memory)))])).len() == (64 * MIB) as usize);
}
