//! Writing into one image: what the file then shows, and when.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use testkit::crash::PowerStorage;
use testkit::fault::FaultStorage;
use testkit::pattern;
use vhd_core::check::{self, Severity};
use vhd_core::{
    BlockIndex, BlockSize, ByteCount, Chain, ChainOptions, Container, Existing, Extents, Image, Layer,
    MAX_VIRTUAL_SIZE, MemoryStorage, NewImage, NewKind, ReadWrite, SectorCount, Volume, WriteError, create_file,
};

use super::{container, new_image, open, open_writable, sectors};

fn dynamic(block_size: u32) -> NewKind {
    NewKind::Dynamic { block_size: BlockSize::new(block_size).unwrap() }
}

fn read(memory: &Arc<MemoryStorage>, start: u64, count: u64) -> Vec<u8> {
    let chain = Chain::from_layers(vec![Layer::Vhd(Box::new(open(memory)))]);
    let mut bytes = vec![0; count as usize * 512];
    chain.read(sectors(start, count), &mut bytes).unwrap();
    bytes
}

#[test]
fn nothing_shows_before_the_flush_and_everything_after() {
    let memory = new_image(1 << 20, dynamic(16 << 10));
    let image = open_writable(&memory);
    let data = pattern::fill(sectors(30, 10), 1);
    image.write(sectors(30, 10), &data).unwrap();
    assert_eq!(read(&memory, 30, 10), vec![0; 5120], "another reader sees the last flush");
    image.flush().unwrap();
    assert_eq!(read(&memory, 30, 10), data);
    assert_eq!(read(&memory, 0, 30), vec![0; 30 * 512]);
}

#[test]
fn nothing_lies_beyond_the_disk() {
    for kind in [dynamic(16 << 10), NewKind::Fixed] {
        let image = open_writable(&new_image(100 * 512, kind));
        for range in [sectors(100, 1), sectors(98, 3)] {
            image.resolve(range, &mut Extents::default()).unwrap_err();
            image.write(range, &vec![1; range.count().bytes().0 as usize]).unwrap_err();
            image.write_zeroes(range).unwrap_err();
        }
        image.resolve(sectors(98, 2), &mut Extents::default()).unwrap();
    }
}

/// What is written over something else needs no table: but for the data, nothing is written.
#[test]
fn sectors_that_are_there_are_written_without_tables() {
    let storage = Arc::new(PowerStorage::new(new_image(1 << 20, dynamic(16 << 10)).to_vec()));
    let image = Image::writable_from_container(Container::new("image.vhd", storage.clone())).unwrap();
    image.write(sectors(0, 40), &pattern::fill(sectors(0, 40), 1)).unwrap();
    // The second flush is the one that brings full blocks into the batmap.
    image.flush().unwrap();
    image.flush().unwrap();
    let before = storage.operations();
    image.write(sectors(3, 5), &pattern::fill(sectors(3, 5), 2)).unwrap();
    image.write(sectors(34, 2), &pattern::fill(sectors(34, 2), 2)).unwrap();
    image.flush().unwrap();
    assert_eq!(storage.operations() - before, 3, "two writes and a sync");
}

#[test]
fn an_image_that_is_dropped_shows_its_last_flush() {
    let memory = new_image(1 << 20, dynamic(16 << 10));
    let image = open_writable(&memory);
    image.write(sectors(0, 8), &pattern::fill(sectors(0, 8), 1)).unwrap();
    image.flush().unwrap();
    image.write(sectors(64, 8), &pattern::fill(sectors(64, 8), 2)).unwrap();
    drop(image);
    assert_eq!(read(&memory, 0, 8), pattern::fill(sectors(0, 8), 1));
    assert_eq!(read(&memory, 64, 8), vec![0; 4096]);
}

#[test]
fn full_blocks_enter_the_batmap_and_others_do_not() {
    let memory = new_image(1 << 20, dynamic(16 << 10));
    let image = open_writable(&memory);
    image.write(sectors(0, 32), &pattern::fill(sectors(0, 32), 1)).unwrap();
    image.write(sectors(32, 31), &pattern::fill(sectors(32, 31), 1)).unwrap();
    image.write(sectors(64, 31), &pattern::fill(sectors(64, 31), 1)).unwrap();
    image.flush().unwrap();
    image.write(sectors(95, 1), &pattern::fill(sectors(95, 1), 1)).unwrap();
    image.close().unwrap();
    let report = check::container(container(&memory)).unwrap();
    let codes: Vec<_> = report.findings().iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["block-size"], "a batmap that is wrong or behind would be reported");
    let image = open(&memory);
    let map = image.batmap().unwrap().map_offset().0 as usize;
    assert_eq!(memory.to_vec()[map], 0b1010_0000);
}

#[test]
fn a_block_that_one_flush_fills_enters_the_batmap_with_the_next() {
    let memory = new_image(1 << 20, dynamic(16 << 10));
    let image = open_writable(&memory);
    let map = open(&memory).batmap().unwrap().map_offset().0 as usize;
    for (start, bits) in [(0, 0), (32, 0b1000_0000), (64, 0b1100_0000)] {
        image.write(sectors(start, 32), &pattern::fill(sectors(start, 32), 1)).unwrap();
        image.flush().unwrap();
        assert_eq!(memory.to_vec()[map], bits, "sectors {start} on");
    }
}

#[test]
fn zeroing_needs_no_room_where_nothing_was_written() {
    let memory = new_image(1 << 20, dynamic(16 << 10));
    let before = memory.to_vec();
    let image = open_writable(&memory);
    image.write_zeroes(sectors(0, 2048)).unwrap();
    image.close().unwrap();
    assert!(memory.to_vec() == before);
}

/// Counts the operations that change the storage of an image.
fn operations(memory: &Arc<MemoryStorage>, work: impl FnOnce(&mut Image<ReadWrite>)) -> u64 {
    let storage = Arc::new(FaultStorage::new(memory.clone(), u64::MAX, 0, std::io::ErrorKind::Other));
    let mut image = Image::writable_from_container(Container::new("counted.vhd", storage.clone())).unwrap();
    work(&mut image);
    storage.operations()
}

#[test]
fn no_step_is_taken_twice() {
    let memory = new_image(1 << 20, dynamic(16 << 10));
    let image = open_writable(&memory);
    for block in 0..8 {
        image.write(sectors(block * 32, 3), &[1; 1536]).unwrap();
    }
    image.close().unwrap();
    let zeroing = operations(&memory, |image| image.write_zeroes(sectors(0, 8 * 32)).unwrap());
    assert_eq!(zeroing, 8, "of each block what it has is zeroed once");
    let writing = operations(&memory, |image| {
        image.write(sectors(5, 1), &[1; 512]).unwrap();
        image.flush().unwrap();
    });
    assert_eq!(writing, 4, "data, sync, bitmap, sync: the batmap has nothing to say of a block that is not full");
    assert_eq!(operations(&memory, |image| image.trim_tail().unwrap()), 0, "nothing lies behind the last block");
}

#[test]
fn opening_and_closing_changes_nothing() {
    for kind in [NewKind::Fixed, dynamic(2 << 20)] {
        let memory = new_image(4 << 20, kind);
        let before = memory.to_vec();
        open_writable(&memory).close().unwrap();
        assert!(memory.to_vec() == before);
    }
}

#[test]
fn blocks_of_every_size() {
    for shift in 12..=28 {
        let block = 1_u64 << shift;
        let memory = new_image(2 * block, dynamic(block as u32));
        let last = block / 512 - 1;
        let image = open_writable(&memory);
        let data = pattern::fill(sectors(last, 2), 3);
        image.write(sectors(last, 2), &data).unwrap();
        image.close().unwrap();
        assert_eq!(read(&memory, last, 2), data, "blocks of {block}");
        assert_eq!(read(&memory, last + 2, 1), vec![0; 512]);
        let worst = check::container(container(&memory)).unwrap().worst();
        assert!(worst < Some(Severity::Warning), "blocks of {block}");
    }
}

#[test]
fn new_data_is_aligned_and_reserved_blocks_are_side_by_side() {
    let memory = new_image(64 << 20, dynamic(2 << 20));
    let image = open_writable(&memory);
    image.reserve(&[BlockIndex(7), BlockIndex(3)]).unwrap();
    let seven = image.place_for(sectors(7 * 4096, 1)).unwrap();
    let three = image.place_for(sectors(3 * 4096 + 5, 1)).unwrap();
    assert_eq!(seven.0, 4096, "where blktap puts the first block");
    assert_eq!(three.0 - 5 * 512, 4096 + 4104 * 512, "blktap's stride");
}

#[test]
fn a_range_past_the_end_is_refused_and_does_no_harm() {
    let memory = new_image(1 << 20, dynamic(2 << 20));
    let image = open_writable(&memory);
    let refused = image.write(sectors(2047, 2), &[1; 1024]).unwrap_err();
    assert!(matches!(refused, WriteError::Read(_)), "{refused}");
    image.write(sectors(2047, 1), &[1; 512]).unwrap();
    image.close().unwrap();
}

/// Places past 1 TiB are sector addresses past 2^31, which some readers take for negative.
#[test]
fn files_larger_than_a_tebibyte() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.vhd");
    create_file(&path, &NewImage::new(MAX_VIRTUAL_SIZE, dynamic(2 << 20)), Existing::Keep).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut footer = [0; 512];
    file.read_exact_at(&mut footer, 0).unwrap();
    file.write_all_at(&footer, 3 << 39).unwrap();

    let far = sectors(MAX_VIRTUAL_SIZE.0 / 512 - 9, 9);
    let volume = Volume::open(&path, &ChainOptions::default()).unwrap();
    volume.write(far, &pattern::fill(far, 4)).unwrap();
    assert!(volume.leaf().place_for(far).unwrap().0 / 512 > 1 << 31);
    volume.close().unwrap();
    let chain = Chain::open(&path, &ChainOptions::default()).unwrap();
    let mut bytes = vec![0; 9 * 512];
    chain.read(far, &mut bytes).unwrap();
    assert_eq!(bytes, pattern::fill(far, 4));
    assert!(check::file(&path).unwrap().worst() < Some(Severity::Warning));

    file.write_all_at(&footer, (2 << 40) - 512).unwrap();
    let volume = Volume::open(&path, &ChainOptions::default()).unwrap();
    let full = volume.write(sectors(0, 1), &[1; 512]).unwrap_err();
    assert!(matches!(full, WriteError::FileFull { .. }), "{full}");
}

#[test]
fn many_threads_write_and_read_one_image() {
    const THREADS: u64 = 4;
    let memory = new_image(8 << 20, dynamic(64 << 10));
    let image = open_writable(&memory);
    let (image, disk) = (&image, sectors(0, (8 << 20) / 512));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                // Every block is shared by all threads.
                for piece in
                    disk.split_at_multiples(SectorCount(7)).filter(|piece| piece.start.0 / 7 % THREADS == thread)
                {
                    image.write(piece, &pattern::fill(piece, 9)).unwrap();
                    if piece.start.0 % 1001 == 0 {
                        image.flush().unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(image.resolve(disk, &mut vhd_core::Extents::default()).ok(), Some(()));
    image.flush().unwrap();
    let found = read(&memory, 0, disk.count().0);
    assert!(found == pattern::fill(disk, 9));
}

#[test]
fn growing_moves_the_bat_and_keeps_everything() {
    for kind in [NewKind::Fixed, dynamic(4096), dynamic(2 << 20)] {
        let memory = new_image(1 << 20, kind);
        let mut image = open_writable(&memory);
        let old = sectors(0, 2048);
        image.write(old, &pattern::fill(old, 5)).unwrap();
        image.set_size(ByteCount(5 << 20), ByteCount(0)).unwrap();
        let new = sectors(9000, 8);
        image.write(new, &pattern::fill(new, 6)).unwrap();
        image.close().unwrap();
        assert!(read(&memory, 0, 2048) == pattern::fill(old, 5));
        assert!(read(&memory, 2048, 9000 - 2048).iter().all(|&byte| byte == 0));
        assert_eq!(read(&memory, 9000, 8), pattern::fill(new, 6));
        let report = check::container(container(&memory)).unwrap();
        assert!(report.worst() < Some(Severity::Warning), "{:?}", report.findings());
    }
}

#[test]
fn hidden_is_written_to_both_footers() {
    let memory = new_image(1 << 20, dynamic(2 << 20));
    let mut image = open_writable(&memory);
    image.set_hidden(true).unwrap();
    image.close().unwrap();
    assert!(open(&memory).footer().hidden());
    assert_eq!(check::container(container(&memory)).unwrap().findings(), []);
}

#[test]
fn a_511_byte_footer_becomes_a_whole_one_when_the_file_grows() {
    let memory = new_image(1 << 20, dynamic(2 << 20));
    let bytes = memory.to_vec();
    let memory = Arc::new(MemoryStorage::new(bytes[..bytes.len() - 1].to_vec()));
    let image = open_writable(&memory);
    image.write(sectors(0, 2048), &pattern::fill(sectors(0, 2048), 1)).unwrap();
    image.close().unwrap();
    assert_eq!(check::container(container(&memory)).unwrap().findings(), []);
    assert_eq!(read(&memory, 0, 2048), pattern::fill(sectors(0, 2048), 1));
}

/// States of blocks are forgotten to save memory; one that a flush is still writing out must not be.
#[test]
fn nothing_is_forgotten_that_is_on_its_way_to_disk() {
    const BLOCKS: u64 = 700;
    const ROUNDS: u64 = 24;
    let folder = testkit::scratch::folder();
    let path = folder.path().join("large-blocks.vhd");
    let block = 256 << 20;
    create_file(&path, &NewImage::new(ByteCount(BLOCKS * block), dynamic(block as u32)), Existing::Keep).unwrap();
    let volume = Volume::open(&path, &ChainOptions::default()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let volume = &volume;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    for at in (thread * BLOCKS / 8)..((thread + 1) * BLOCKS / 8) {
                        volume.write(sectors(at * (block / 512) + round * 2, 1), &[1; 512]).unwrap();
                    }
                }
            });
        }
    });
    volume.close().unwrap();
    let image = vhd_core::Image::open(&path, vhd_core::Lock::None).unwrap();
    for at in 0..BLOCKS {
        assert_eq!(image.present_sectors(BlockIndex(at as u32)).unwrap(), SectorCount(ROUNDS), "block {at}");
    }
}

#[test]
fn a_block_that_reaches_over_the_end_is_not_written_over() {
    let memory = new_image(8 << 20, dynamic(2 << 20));
    let image = open_writable(&memory);
    // What lies past the end is no part of the disk yet.
    image.write(sectors(0, 1000), &vec![1; 1000 * 512]).unwrap();
    image.close().unwrap();
    vhd_core::Storage::set_len(&*memory, ByteCount(1 << 20)).unwrap();
    let image = open_writable(&memory);
    image.write(sectors(4096, 4096), &vec![2; 2 << 20]).unwrap();
    image.flush().unwrap();
    image.write(sectors(4000, 96), &[3; 96 * 512]).unwrap();
    image.close().unwrap();
    open(&memory).check_blocks().unwrap();
    assert!(read(&memory, 4096, 4096).iter().all(|&byte| byte == 2));
}

/// Power fails between the two syncs of a flush: all that was written is on disk but for the BAT.
#[test]
fn the_batmap_never_speaks_of_a_block_before_the_bat_does() {
    let memory = new_image(8 << 20, dynamic(2 << 20));
    let bat = memory.to_vec()[1536..2048].to_vec();
    let image = open_writable(&memory);
    image.write(sectors(0, 4096), &vec![1; 2 << 20]).unwrap();
    image.flush().unwrap();
    drop(image);
    vhd_core::Storage::write_at(&*memory, &bat, vhd_core::FileOffset(1536)).unwrap();
    let image = open_writable(&memory);
    image.write(sectors(5, 1), &[9; 512]).unwrap();
    image.close().unwrap();
    let report = check::container(container(&memory)).unwrap();
    assert!(report.findings().iter().all(|finding| !finding.code.starts_with("batmap")), "{:?}", report.findings());
}

/// Some writers end the file within the last block. What the guest then writes there stands where the footer is.
#[test]
fn a_block_that_is_cut_short_by_the_footer_loses_nothing() {
    for new_block in [false, true] {
        let memory = new_image(1 << 20, dynamic(16 << 10));
        let image = open_writable(&memory);
        image.write(sectors(0, 4), &pattern::fill(sectors(0, 4), 1)).unwrap();
        image.close().unwrap();
        let mut bytes = memory.to_vec();
        let footer = bytes.split_off(bytes.len() - 512);
        let place = open(&memory).allocated_blocks().next().unwrap().unwrap().1;
        bytes.truncate(place.data.0 as usize + 4 * 512);
        let cut = Arc::new(MemoryStorage::new([bytes, footer].concat()));

        let image = open_writable(&cut);
        image.write(sectors(3, 9), &pattern::fill(sectors(3, 9), 2)).unwrap();
        if new_block {
            image.write(sectors(40, 9), &pattern::fill(sectors(40, 9), 2)).unwrap();
        }
        image.close().unwrap();
        assert_eq!(read(&cut, 0, 3), pattern::fill(sectors(0, 3), 1));
        assert_eq!(read(&cut, 3, 9), pattern::fill(sectors(3, 9), 2));
        assert!(check::container(container(&cut)).unwrap().worst() < Some(Severity::Warning));

        let mut image = open_writable(&cut);
        image.release(&[BlockIndex(0)]).unwrap();
        image.close().unwrap();
        assert!(check::container(container(&cut)).unwrap().worst() < Some(Severity::Warning));
    }
}

#[test]
fn a_block_under_the_footer_is_released_without_it() {
    let memory = new_image(1 << 20, dynamic(16 << 10));
    let image = open_writable(&memory);
    image.write(sectors(0, 4), &pattern::fill(sectors(0, 4), 1)).unwrap();
    image.close().unwrap();
    let mut bytes = memory.to_vec();
    let footer = bytes.split_off(bytes.len() - 512);
    bytes.truncate(bytes.len() - 20 * 512);
    let cut = Arc::new(MemoryStorage::new([bytes, footer].concat()));
    let mut image = open_writable(&cut);
    image.release(&[BlockIndex(0)]).unwrap();
    image.close().unwrap();
    assert!(check::container(container(&cut)).unwrap().worst() < Some(Severity::Warning));
}
