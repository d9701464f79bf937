//! Getting a parent, another one, and losing it. Whoever does that records the change of the header first, and finishes it.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use testkit::pattern;
use vhd_core::{HeaderChange, Image, MemoryStorage, MetadataError, ReadWrite};

use super::{DISK, Trial, child, container, content, dynamic, link_to, open, parent, sectors, written};

/// The changes of the header that were recorded, each with the count of operations done before.
#[derive(Default)]
struct Records(RefCell<Vec<(usize, HeaderChange)>>);

impl Records {
    fn add(&self, trial: &Trial, change: &HeaderChange) -> Result<(), MetadataError> {
        self.0.borrow_mut().push((trial.storage.operations(), change.clone()));
        Ok(())
    }

    /// Finishes the last change that had been recorded when power failed; tells whether there is one.
    fn finish(&self, done: usize, memory: &Arc<MemoryStorage>) -> bool {
        let records = self.0.borrow();
        let last = records.iter().rev().find(|(before, _)| *before <= done);
        last.is_some_and(|(_, change)| change.finish(&container(memory)).unwrap())
    }

    fn check_made(&self, count: usize) {
        assert_eq!(self.0.borrow().len(), count);
    }
}

fn is_named(image: &Image<vhd_core::ReadOnly>, name: &str) -> bool {
    image.parent_paths().unwrap().iter().all(|path| path.ends_with(Path::new(name)))
}

/// Two links in turn, the second text longer than the first.
#[test]
fn an_image_is_linked_to_the_old_parent_or_to_the_new() {
    let (first, second) = (parent(), parent());
    let id = |image: &Arc<MemoryStorage>| open(image).footer().unique_id();
    let long = format!("{}.vhd", "n".repeat(200));
    for block_size in [4096, 16 << 10] {
        let mut trial = Trial::new(&child(&first, block_size), Some(&first));
        let records = Records::default();
        let mut image = trial.image();
        // Written before, and made durable by the way.
        trial.write(&image, sectors(70, 5), 3);
        for (parent, name) in [(&second, "second.vhd"), (&first, long.as_str())] {
            let record = |change: &HeaderChange| records.add(&trial, change);
            image.relink_recorded(&link_to(parent, name), record).unwrap();
            trial.promise();
        }
        trial.write(&image, sectors(80, 5), 4);
        image.close().unwrap();
        trial.promise();
        records.check_made(2);
        trial.check_with(
            |state, memory| _ = records.finish(state.operations_done(), memory),
            |state, image, _| {
                let header = image.header().unwrap();
                let names: [(_, &str); 3] = [(&first, "parent.vhd"), (&second, "second.vhd"), (&first, &long)];
                let from = state.promises_made().min(2);
                let is_one =
                    names[from..].iter().any(|(it, name)| id(it) == header.parent_unique_id() && is_named(image, name));
                assert!(is_one, "{:?}: {}", image.parent_paths(), state.describe());
            },
        );
    }
}

/// Without the record the old header or the new one is there, or none; never one that is believed and wrong.
#[test]
fn a_torn_header_is_refused_until_its_record_mends_it() {
    let (first, second) = (parent(), parent());
    let trial = Trial::new(&child(&first, 4096), Some(&first));
    let records = Records::default();
    let record = |change: &HeaderChange| records.add(&trial, change);
    // A longer name, whose length is in the second sector.
    trial.image().relink_recorded(&link_to(&second, "another.vhd"), record).unwrap();
    let mut torn = 0;
    trial.check_with(
        |state, memory| {
            if Image::from_container(container(memory)).is_err() {
                assert!(records.finish(state.operations_done(), memory), "{}", state.describe());
            }
        },
        |state, image, _| {
            let is_first = image.header().unwrap().parent_unique_id() == open(&first).footer().unique_id();
            let name = if is_first { "parent.vhd" } else { "another.vhd" };
            let paths = image.parent_paths().unwrap();
            assert!(paths.iter().any(|path| path.ends_with(name)), "{paths:?}: {}", state.describe());
        },
    );
    for state in trial.storage.states(testkit::crash::Options::default()) {
        let bytes = state.read(testkit::crash::PowerStorage::NAME).unwrap();
        torn += usize::from(Image::from_container(container(&Arc::new(MemoryStorage::new(bytes)))).is_err());
    }
    assert!(torn > 0, "the header is two sectors, and was written in one piece");
}

/// Attaches an image to a parent, or detaches it; the record is taken back where the footer has not decided yet.
fn changes_hands(
    image: &Arc<MemoryStorage>,
    parent: &Arc<MemoryStorage>,
    change: impl Fn(&mut Image<ReadWrite>, &mut dyn FnMut(&HeaderChange) -> Result<(), MetadataError>),
) {
    let mut trial = Trial::new(image, Some(parent));
    let records = Records::default();
    let alone = !open(image).is_differencing();
    let mut disk = trial.image();
    trial.write(&disk, sectors(70, 5), 3);
    disk.flush().unwrap();
    trial.promise();
    let before = trial.contents.last().unwrap().1.clone();
    let beneath = content(parent, None);
    let after: Vec<u8> = (0..DISK)
        .flat_map(|sector| {
            let at = sector as usize * 512..(sector as usize + 1) * 512;
            let is_own = before[at.clone()] != if alone { [0; 512] } else { beneath[at.clone()].try_into().unwrap() };
            match (is_own, alone) {
                (true, _) => before[at].to_vec(),
                (false, true) => beneath[at].to_vec(),
                (false, false) => vec![0; 512],
            }
        })
        .collect();
    trial.step(|disk| disk.clone_from(&after));
    change(&mut disk, &mut |change| records.add(&trial, change));
    drop(disk);
    trial.promise();
    records.check_made(1);
    trial.check_with(
        |state, memory| _ = records.finish(state.operations_done(), memory),
        |state, image, found| {
            let has_changed = image.is_differencing() == alone;
            let is_whole = found == if has_changed { &after } else { &before };
            // Before the flush, what was written then may be there or not.
            assert!(is_whole || state.promises_made() == 0 && !has_changed, "{}", state.describe());
            assert!(has_changed || state.promises_made() < 2, "{}", state.describe());
        },
    );
}

#[test]
fn an_image_gets_a_parent_whole_or_not_at_all() {
    let parent = parent();
    let image = written(dynamic(4096), DISK, 2, &[sectors(0, 34), sectors(41, 3)]);
    changes_hands(&image, &parent, |image, record| {
        image.attach::<MetadataError>(&link_to(&parent, "parent.vhd"), record).unwrap();
    });
}

#[test]
fn an_image_loses_its_parent_whole_or_not_at_all() {
    let parent = parent();
    changes_hands(&child(&parent, 4096), &parent, |image, record| {
        image.detach::<MetadataError>(record).unwrap();
    });
}

/// The second set of texts goes where the first has been: between the links the image grew by blocks.
#[test]
fn texts_and_blocks_do_not_meet() {
    let (first, second) = (parent(), parent());
    let mut trial = Trial::new(&child(&first, 4096), Some(&first));
    let records = Records::default();
    let mut image = trial.image();
    for round in 0..4 {
        trial.write(&image, sectors(48 + 8 * round, 8), 4 + round as u16);
        let parent = if round % 2 == 0 { &second } else { &first };
        let record = |change: &HeaderChange| records.add(&trial, change);
        image.relink_recorded(&link_to(parent, &format!("{}.vhd", "r".repeat(1 + round as usize))), record).unwrap();
        trial.promise();
    }
    image.close().unwrap();
    trial.promise();
    let expected = pattern::fill(sectors(72, 8), 7);
    assert!(trial.contents.last().unwrap().1[72 * 512..80 * 512] == expected);
    trial.check_with(
        |state, memory| _ = records.finish(state.operations_done(), memory),
        |_, image, _| assert!(image.parent_paths().is_ok()),
    );
}
