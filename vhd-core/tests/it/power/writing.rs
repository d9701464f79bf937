//! Writes, zeros and flushes.

use super::{DISK, Trial, child, dynamic, parent, sectors, written};

/// Rounds of writes and zeros, to new blocks and old, each round ended by a flush: blocks become full, and then change.
fn work(trial: &mut Trial) {
    let image = trial.image();
    for round in 0..4 {
        let tag = 3 + round as u16;
        trial.write(&image, sectors(round * 9, 12), tag);
        trial.write(&image, sectors(60 + round, 5), tag);
        trial.zero(&image, sectors(30 - 7 * round, 6));
        trial.write(&image, sectors(DISK - 8, 2 + 2 * round), tag);
        trial.flush(&image);
    }
    image.close().unwrap();
    trial.promise();
}

#[test]
fn what_was_flushed_is_there_and_the_rest_is_old_or_new() {
    for block_size in [4096, 16 << 10] {
        for mut trial in Trial::both(&written(dynamic(block_size), DISK, 2, &[sectors(4, 9)]), None) {
            work(&mut trial);
            trial.check();
        }
    }
}

#[test]
fn a_child_shows_its_parent_or_what_was_written() {
    let parent = parent();
    for block_size in [4096, 16 << 10] {
        for mut trial in Trial::both(&child(&parent, block_size), Some(&parent)) {
            work(&mut trial);
            trial.check();
        }
    }
}

/// No bit changes where data replaces data: the flush must sync all the same.
#[test]
fn what_is_written_over_is_durable_after_a_flush_too() {
    let parent = parent();
    let image = child(&parent, 4096);
    let mut trial = Trial::new(&image, Some(&parent));
    let image = trial.image();
    trial.write(&image, sectors(0, 8), 3);
    trial.flush(&image);
    trial.zero(&image, sectors(8, 8));
    trial.flush(&image);
    trial.write(&image, sectors(41, 3), 4);
    image.close().unwrap();
    trial.promise();
    trial.check();
}

/// A fixed disk has no tables; a flush is one sync.
#[test]
fn a_fixed_disk_is_old_or_new() {
    for mut trial in Trial::both(&written(vhd_core::NewKind::Fixed, DISK, 2, &[sectors(0, 50)]), None) {
        work(&mut trial);
        trial.check();
    }
}

/// Blocks that were reserved and never written to show nothing.
#[test]
fn reserved_blocks_show_the_parent() {
    let parent = parent();
    let mut trial = Trial::new(&child(&parent, 4096), Some(&parent));
    let image = trial.image();
    image.reserve(&[vhd_core::BlockIndex(8), vhd_core::BlockIndex(7), vhd_core::BlockIndex(9)]).unwrap();
    trial.write(&image, sectors(60, 2), 3);
    trial.flush(&image);
    image.settle().unwrap();
    trial.promise();
    trial.check();
}

/// The image was left without a footer at its end and with a batmap that is torn: mending is interrupted, too.
#[test]
fn mending_is_interrupted() {
    let parent = parent();
    let memory = child(&parent, 4096);
    let map = super::open(&memory).batmap().unwrap().map_offset().0 as usize;
    let mut bytes = memory.to_vec();
    bytes[map + 400] ^= 1;
    let torn = std::sync::Arc::new(vhd_core::MemoryStorage::new(bytes.clone()));
    let longer = std::sync::Arc::new(vhd_core::MemoryStorage::new([bytes, vec![0; 8192]].concat()));
    for memory in [torn, longer] {
        let mut trial = Trial::new(&memory, Some(&parent));
        let mut image = trial.image();
        image.trim_tail().unwrap();
        image.mend_batmap().unwrap();
        drop(image);
        trial.promise();
        trial.check_with(
            |_, _| (),
            |state, image, _| {
                if state.promises_made() > 0 {
                    let codes = vhd_core::check::container(image.container().clone()).unwrap();
                    let left =
                        |it: &&vhd_core::check::Finding| it.code.starts_with("batmap") || it.code.starts_with("footer");
                    assert_eq!(codes.findings().iter().find(left), None, "{}", state.describe());
                }
            },
        );
    }
}

/// Once an image is settled its batmap tells the blocks that are full, and those alone.
#[test]
fn a_settled_image_has_its_batmap() {
    let parent = parent();
    for close in [false, true] {
        let mut trial = Trial::new(&child(&parent, 4096), Some(&parent));
        let image = trial.image();
        trial.write(&image, sectors(32, 6), 3);
        trial.write(&image, sectors(56, 8), 3);
        if close { image.close() } else { image.settle() }.unwrap();
        trial.promise();
        trial.check_with(
            |_, _| (),
            |state, image, _| {
                let mut map = [0; 2];
                let at = image.batmap().unwrap().map_offset();
                image.container().read_at(&mut map, at).unwrap();
                let settled = [0b1111_0001, 0];
                assert!(
                    map == settled || map == [0b1111_0000, 0] && state.promises_made() == 0,
                    "{}",
                    state.describe()
                );
            },
        );
    }
}
