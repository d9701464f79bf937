//! Giving space back: releasing, compacting, dropping everything.

use std::sync::Arc;

use testkit::pattern;
use vhd_core::{BlockIndex, Chain, Extents, Layer, MemoryStorage};

use super::{DISK, Trial, child, content, dynamic, link_to, open, open_writable, parent, sectors, written};

/// A child that holds in whole blocks what its parent holds, too.
fn doubled(parent: &Arc<MemoryStorage>) -> Arc<MemoryStorage> {
    let image = child(parent, 4096);
    let disk = open_writable(&image);
    for range in [sectors(16, 8), sectors(48, 24)] {
        disk.write(range, &pattern::fill(range, 1)).unwrap();
    }
    disk.close().unwrap();
    image
}

#[test]
fn a_released_block_reads_the_same_from_the_parent() {
    let parent = parent();
    for mut trial in Trial::both(&doubled(&parent), Some(&parent)) {
        let mut image = trial.image();
        // What is known of the blocks is to be forgotten with them.
        image.resolve(sectors(0, DISK), &mut Extents::default()).unwrap();
        image.release(&[BlockIndex(2), BlockIndex(7), BlockIndex(6)]).unwrap();
        trial.step(|disk| disk[16 * 512..24 * 512].copy_from_slice(&pattern::fill(sectors(16, 8), 1)));
        trial.promise();
        // What comes into the same block next is new, and the rest of it the parent's.
        trial.write(&image, sectors(57, 3), 5);
        trial.flush(&image);
        trial.write(&image, sectors(62, 1), 6);
        image.close().unwrap();
        trial.promise();
        trial.check();
    }
}

#[test]
fn compacting_changes_nothing_that_is_read() {
    let parent = parent();
    for parent in [None, Some(&parent)] {
        let image = match parent {
            Some(parent) => doubled(parent),
            None => written(dynamic(4096), DISK, 2, &[sectors(0, 60)]),
        };
        let disk = open_writable(&image);
        // Zeros where the parent has none, and none where it has.
        disk.write(sectors(DISK - 8, 8), &[0; 4096]).unwrap();
        disk.write_zeroes(sectors(0, 16)).unwrap();
        disk.reserve(&[BlockIndex(5)]).unwrap();
        disk.close().unwrap();
        for mut trial in Trial::both(&image, parent) {
            let mut disk = trial.image();
            let chain = parent.map(|parent| Chain::from_layers(vec![Layer::Vhd(Box::new(open(parent)))]));
            let done = disk.compact(chain.as_ref(), |_| ()).unwrap();
            assert!(done.zero_blocks + done.empty_blocks > 0 && done.moved_blocks > 0, "{done:?}");
            trial.promise();
            trial.write(&disk, sectors(40, 8), 7);
            disk.close().unwrap();
            trial.promise();
            trial.check();
        }
    }
}

/// All blocks or none, whatever the size of the BAT.
#[test]
fn an_image_is_cleared_whole_or_not_at_all() {
    let parent = parent();
    for parent in [None, Some(&parent)] {
        for sectors_of_disk in [DISK, 2048] {
            let kind = match parent {
                Some(parent) => vhd_core::NewKind::Differencing {
                    block_size: vhd_core::BlockSize::new(4096).unwrap(),
                    parent: link_to(parent, "parent.vhd"),
                },
                None => dynamic(4096),
            };
            let image = written(kind, sectors_of_disk, 2, &[sectors(0, 34), sectors(50, 8), sectors(80, 3)]);
            let mut trial = Trial::new(&image, parent);
            let before = content(&image, parent);
            let mut after = parent.map_or(Vec::new(), |parent| content(parent, None));
            after.resize(before.len(), 0);
            trial.step(|disk| disk.copy_from_slice(&after));
            trial.image().clear().unwrap();
            trial.promise();
            trial.check_with(
                |_, _| (),
                |state, _, found| {
                    let is_whole = found == before && state.promises_made() == 0 || found == after;
                    assert!(is_whole, "{}", state.describe());
                },
            );
        }
    }
}
