//! Compacting: the content stays, the file is as short as it can be, and what can be a hole is one.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use testkit::fault::FaultStorage;
use testkit::loop_device::LoopDevice;
use testkit::model::read_all;
use testkit::peers::{qemu_img, qemu_io, qemu_sha256};
use testkit::{pattern, scratch, sha256};
use vhd_core::check::{self, Severity};
use vhd_core::{
    BlockSize, ByteCount, Chain, ChainOptions, Compaction, Container, Existing, Extents, FileStorage, Image, Layer,
    MemoryStorage, NewImage, NewKind, ParentLink, ReadOnly, Volume, create, create_file,
};

use super::{container, new_image, open, open_writable, sectors};

fn dynamic(block_size: u32) -> NewKind {
    NewKind::Dynamic { block_size: BlockSize::new(block_size).unwrap() }
}

fn content(path: &Path) -> Vec<u8> {
    read_all(&Chain::open(path, &ChainOptions::default()).unwrap())
}

fn content_of(memory: &Arc<MemoryStorage>) -> Vec<u8> {
    read_all(&Chain::from_layers(vec![Layer::Vhd(Box::new(open(memory)))]))
}

fn volume(path: &Path) -> Volume {
    Volume::open(path, &ChainOptions::default()).unwrap()
}

fn compact(path: &Path) -> Compaction {
    let mut image = Image::open_writable(path).unwrap();
    let parents = ChainOptions::default().open_parents(&image, path).unwrap();
    let compaction = image.compact(parents.as_ref(), |_| ()).unwrap();
    image.close().unwrap();
    compaction
}

fn space(path: &Path) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(&fs::metadata(path).unwrap()) * 512
}

fn assert_sound(path: &Path) {
    let report = check::file(path).unwrap();
    assert!(report.worst() < Some(Severity::Warning), "{:?}", report.findings());
}

/// Checks that a file holds its tables, the blocks that are needed, and less than another block would take.
fn assert_tight(image: &Image<ReadOnly>, parents: Option<&Chain>) {
    let header = image.header().unwrap();
    let size = header.block_size();
    let mut blocks = 0;
    for found in image.allocated_blocks() {
        let (block, place) = found.unwrap();
        blocks += 1;
        let range = size.sectors_of(block);
        let range = vhd_core::SectorRange::between(range.start, range.end.min(sectors(image.sectors().0, 0).start));
        let mut extents = Extents::default();
        image.resolve(range, &mut extents).unwrap();
        let is_needed = extents.as_slice().iter().any(|extent| {
            let vhd_core::Source::Data(at) = extent.source else { return false };
            let mut bytes = vec![0; extent.sectors.count().bytes().0 as usize];
            image.container().read_at(&mut bytes, at).unwrap();
            let mut beneath = vec![0; bytes.len()];
            parents.iter().for_each(|parents| parents.read(extent.sectors, &mut beneath).unwrap());
            bytes.iter().chain(&beneath).any(|&byte| byte != 0)
        });
        assert!(is_needed, "block {block} at {place:?} holds nothing");
    }
    let tables = image.regions().map(|region| region.range.end.0);
    let locators = header.locators().map(|(_, entry)| entry.offset.0 + entry.space.0);
    let tables = tables.chain(locators).max().unwrap();
    let stride = size.bytes().0 + size.bitmap_size().0.next_multiple_of(4096);
    let rest = image.container().len().unwrap().0 - 512 - tables;
    assert!(rest < (blocks + 1) * stride, "{rest} bytes for {blocks} blocks of {stride}");
}

#[test]
fn empty_and_zero_blocks_go_and_the_file_becomes_shorter() {
    let folder = scratch::folder();
    let path = folder.path().join("a.vhd");
    create_file(&path, &NewImage::new(ByteCount(64 << 20), dynamic(2 << 20)), Existing::Keep).unwrap();
    let image = volume(&path);
    for block in 0..10 {
        let range = sectors(block * 4096, 4096);
        image.write(range, &pattern::fill(range, 1)).unwrap();
    }
    // Of ten blocks two stay whole, and one in part; one is empty.
    image.write(sectors(0, 5 * 4096), &vec![0; 10 << 20]).unwrap();
    image.write_zeroes(sectors(5 * 4096, 2 * 4096)).unwrap();
    image.write(sectors(7 * 4096 + 64, 4000), &vec![0; 4000 * 512]).unwrap();
    image.leaf().reserve(&[vhd_core::BlockIndex(20)]).unwrap();
    image.close().unwrap();
    let (before, length, space_before) = (content(&path), fs::metadata(&path).unwrap().len(), space(&path));
    let foreseen = Image::open(&path, vhd_core::Lock::None).unwrap().compaction(None, |_| ()).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), length);

    let done = compact(&path);
    assert_eq!(done, foreseen, "a dry run tells what happens");
    assert_eq!((done.empty_blocks, done.zero_blocks, done.moved_blocks), (1, 7, 3));
    assert_eq!(done.holes.0, 4000 / 8 * 4096);
    assert_eq!(fs::metadata(&path).unwrap().len(), done.length.0);
    assert_eq!(done.length.0, 4096 + 3 * (2 << 20) + 2 * 4096 + 512);
    assert!(content(&path) == before);
    // The page that a bitmap shares with what lies before it goes as well.
    let freed = space_before - space(&path);
    assert!(freed.abs_diff((done.released + done.holes).0) <= 8 * 4096, "{freed} bytes, not {done:?}");
    assert_sound(&path);
    assert_eq!(check::file(&path).unwrap().findings(), []);
    assert_tight(&Image::open(&path, vhd_core::Lock::None).unwrap(), None);
    let again = compact(&path);
    assert_eq!(again, Compaction { length: done.length, ..Compaction::default() });
}

#[test]
fn zeros_stay_where_a_parent_would_show_something_else_or_is_not_known() {
    let folder = scratch::folder();
    let (base, child) = (folder.path().join("base.vhd"), folder.path().join("child.vhd"));
    let new = NewImage::new(ByteCount(4 << 20), dynamic(64 << 10));
    create_file(&base, &new, Existing::Keep).unwrap();
    let image = volume(&base);
    image.write(sectors(0, 256), &pattern::fill(sectors(0, 256), 1)).unwrap();
    image.close().unwrap();
    let parent = ParentLink::new(folder.path(), &base, new.unique_id).unwrap();
    let kind = NewKind::Differencing { block_size: BlockSize::new(64 << 10).unwrap(), parent };
    create_file(&child, &NewImage::new(ByteCount(8 << 20), kind), Existing::Keep).unwrap();
    let image = volume(&child);
    // Over data, over nothing, and beyond the end of the parent.
    for start in [10, 520, 9000] {
        image.write(sectors(start, 50), &[0; 50 * 512]).unwrap();
    }
    image.close().unwrap();
    let before = content(&child);
    let mut image = Image::open_writable(&child).unwrap();
    let done = image.compact(None, |_| ()).unwrap();
    image.close().unwrap();
    assert_eq!((done.zero_blocks, done.empty_blocks), (0, 0));
    let done = compact(&child);
    assert_eq!(done.zero_blocks, 2);
    assert!(content(&child) == before);
    assert_sound(&child);
}

#[test]
fn the_disk_is_zero_where_a_block_was_released() {
    let memory = new_image(1 << 20, dynamic(64 << 10));
    let image = open_writable(&memory);
    image.write(sectors(0, 300), &vec![0; 300 * 512]).unwrap();
    image.write(sectors(400, 4), &[7; 2048]).unwrap();
    image.close().unwrap();
    let before = content_of(&memory);
    let mut image = open_writable(&memory);
    // Memory has no holes.
    let done = image.compact(None, |_| ()).unwrap();
    assert_eq!((done.zero_blocks, done.moved_blocks, done.holes), (3, 1, ByteCount(0)));
    // And goes on to be written.
    image.write(sectors(0, 9), &pattern::fill(sectors(0, 9), 3)).unwrap();
    image.close().unwrap();
    let after = content_of(&memory);
    assert_eq!(after[..9 * 512], pattern::fill(sectors(0, 9), 3));
    assert!(after[9 * 512..] == before[9 * 512..]);
    let report = check::container(container(&memory)).unwrap();
    assert!(report.worst() < Some(Severity::Warning), "{:?}", report.findings());
}

#[test]
fn qemu_reads_the_same_and_its_images_are_compacted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.vhd");
    let name = path.to_str().unwrap();
    qemu_img(&["create", "-q", "-f", "vpc", "-o", "subformat=dynamic,force_size=on", name, "64M"]);
    for (at, byte) in [("0", 0x11), ("8M", 0), ("16M", 0x12), ("24M", 0), ("32M", 0), ("40M", 0x13), ("48M", 0x14)] {
        qemu_io("vpc", &path, &format!("write -q -P {byte} {at} 2M"));
    }
    let (before, length) = (qemu_sha256(&path), fs::metadata(&path).unwrap().len());
    let done = compact(&path);
    assert_eq!((done.zero_blocks, done.moved_blocks), (3, 2));
    assert_eq!(done.length.0, length - 3 * ((2 << 20) + 512));
    assert_eq!(qemu_sha256(&path), before);
    assert_eq!(sha256(&content(&path)), before);
    assert_sound(&path);
}

#[test]
fn a_table_at_the_end_keeps_its_place() {
    let folder = scratch::folder();
    let path = folder.path().join("a.vhd");
    create_file(&path, &NewImage::new(ByteCount(1 << 20), dynamic(4096)), Existing::Keep).unwrap();
    let mut image = volume(&path);
    image.write(sectors(0, 64), &pattern::fill(sectors(0, 64), 1)).unwrap();
    image.set_size(ByteCount(64 << 20)).unwrap();
    image.write(sectors(100_000, 64), &pattern::fill(sectors(100_000, 64), 2)).unwrap();
    image.write_zeroes(sectors(8, 24)).unwrap();
    image.close().unwrap();
    let before = content(&path);
    let done = compact(&path);
    assert_eq!((done.zero_blocks, done.moved_blocks), (3, 3));
    assert!(content(&path) == before);
    assert_sound(&path);
}

#[test]
fn fixed_images_stay_as_they_are() {
    let memory = new_image(1 << 20, NewKind::Fixed);
    let before = memory.to_vec();
    let mut image = open_writable(&memory);
    let done = image.compact(None, |_| ()).unwrap();
    assert_eq!(done, Compaction { length: ByteCount((1 << 20) + 512), ..Compaction::default() });
    image.close().unwrap();
    assert!(memory.to_vec() == before);
}

#[test]
fn on_a_device_blocks_are_released_and_the_footer_stays() {
    let folder = tempfile::tempdir().unwrap();
    let device = LoopDevice::new(&folder.path().join("disk"), 12 << 20);
    let storage = FileStorage::open_writable(&device.path).unwrap();
    create(&Container::new(&device.path, Arc::new(storage)), &NewImage::new(ByteCount(20 << 20), dynamic(2 << 20)))
        .unwrap();
    let image = volume(&device.path);
    image.write(sectors(0, 4096), &vec![0; 2 << 20]).unwrap();
    image.write(sectors(4096, 4096), &pattern::fill(sectors(4096, 4096), 1)).unwrap();
    image.close().unwrap();
    let before = content(&device.path);
    let foreseen = Image::open(&device.path, vhd_core::Lock::None).unwrap().compaction(None, |_| ()).unwrap();
    let done = compact(&device.path);
    assert_eq!(done, foreseen);
    assert_eq!((done.zero_blocks, done.moved_blocks, done.length.0), (1, 0, 12 << 20));
    assert!(content(&device.path) == before);
    assert_sound(&device.path);
}

/// Every operation fails once, and from then on: the disk reads the same, and the next time all is done.
#[test]
fn whatever_fails_the_disk_reads_the_same() {
    let fresh = new_image(1 << 20, dynamic(4096));
    let image = open_writable(&fresh);
    image.write(sectors(0, 400), &pattern::fill(sectors(0, 400), 1)).unwrap();
    image.write(sectors(8, 80), &vec![0; 80 * 512]).unwrap();
    image.write_zeroes(sectors(200, 64)).unwrap();
    image.close().unwrap();
    let before = content_of(&fresh);
    for faults in [1, u64::MAX] {
        for first in 0.. {
            let memory = Arc::new(MemoryStorage::new(fresh.to_vec()));
            let storage = Arc::new(FaultStorage::new(memory.clone(), first, faults, ErrorKind::StorageFull));
            let mut image = Image::writable_from_container(Container::new("faulty.vhd", storage.clone())).unwrap();
            let result = image.compact(None, |_| ());
            drop(image.close());
            assert!(content_of(&memory) == before, "{faults} faults from operation {first}");
            let mut image = open_writable(&memory);
            image.compact(None, |_| ()).unwrap();
            image.close().unwrap();
            assert!(content_of(&memory) == before, "{faults} faults from operation {first}, again");
            assert_tight(&open(&memory), None);
            assert_eq!(check::container(container(&memory)).unwrap().worst(), Some(Severity::Info));
            if result.is_ok() {
                assert!(storage.operations() <= first, "a fault went unnoticed");
                assert!(first > 20);
                break;
            }
        }
    }
}

/// What happens to a disk before it is compacted.
#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u16),
    WriteZeros(u64, u64),
    Trim(u64, u64),
    Compact,
}

fn step() -> impl Strategy<Value = Step> {
    let place = || (0_u64..600, 1_u64..90);
    prop_oneof![
        4 => (place(), 1_u16..9).prop_map(|((at, count), tag)| Step::Write(at, count, tag)),
        2 => place().prop_map(|(at, count)| Step::WriteZeros(at, count)),
        2 => place().prop_map(|(at, count)| Step::Trim(at, count)),
        1 => Just(Step::Compact),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 160, failure_persistence: None, ..ProptestConfig::default() })]

    /// A disk of 643 sectors, whose last block is not whole, on nothing or on a smaller parent.
    #[test]
    fn any_disk_reads_the_same_and_its_file_is_tight(
        shift in 12_u32..17,
        with_parent in any::<bool>(),
        beneath in prop::collection::vec((0_u64..400, 1_u64..60), 0..5),
        steps in prop::collection::vec(step(), 0..24),
    ) {
        let folder = scratch::folder();
        let (base, path) = (folder.path().join("base.vhd"), folder.path().join("a.vhd"));
        let mut model = vec![0; 643 * 512];
        let mut kind = dynamic(1 << shift);
        if with_parent {
            let new = NewImage::new(ByteCount(460 * 512), dynamic(8192));
            create_file(&base, &new, Existing::Keep).unwrap();
            let image = volume(&base);
            for (at, count) in beneath {
                let range = sectors(at, count);
                image.write(range, &pattern::fill(range, 77)).unwrap();
                model[at as usize * 512..(at + count) as usize * 512].copy_from_slice(&pattern::fill(range, 77));
            }
            image.close().unwrap();
            let parent = ParentLink::new(folder.path(), &base, new.unique_id).unwrap();
            kind = NewKind::Differencing { block_size: BlockSize::new(1 << shift).unwrap(), parent };
        }
        create_file(&path, &NewImage::new(ByteCount(643 * 512), kind), Existing::Keep).unwrap();
        for step in steps.into_iter().chain([Step::Compact]) {
            if let Step::Write(at, count, _) | Step::WriteZeros(at, count) | Step::Trim(at, count) = step {
                let range = sectors(at, count.min(643 - at));
                let bytes = match step {
                    Step::Write(_, _, tag) => pattern::fill(range, tag),
                    _ => vec![0; range.count().bytes().0 as usize],
                };
                model[at as usize * 512..][..bytes.len()].copy_from_slice(&bytes);
                let image = volume(&path);
                if let Step::Trim(..) = step { image.trim(range) } else { image.write(range, &bytes) }.unwrap();
                image.close().unwrap();
                continue;
            }
            let foreseen = {
                let image = Image::open(&path, vhd_core::Lock::None).unwrap();
                let parents = ChainOptions::default().open_parents(&image, &path).unwrap();
                image.compaction(parents.as_ref(), |_| ()).unwrap()
            };
            let done = compact(&path);
            prop_assert_eq!(done, foreseen);
            prop_assert!(content(&path) == model);
            let image = Image::open(&path, vhd_core::Lock::None).unwrap();
            let parents = ChainOptions::default().open_parents(&image, &path).unwrap();
            assert_tight(&image, parents.as_ref());
            assert_sound(&path);
            prop_assert_eq!(compact(&path), Compaction { length: done.length, ..Compaction::default() });
        }
    }
}
