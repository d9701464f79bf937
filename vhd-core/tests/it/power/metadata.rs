//! What an image says of itself: hidden, id, size.

use std::sync::Arc;

use testkit::crash::State;
use testkit::pattern;
use vhd_core::{
    ByteCount, FileOffset, Image, MemoryStorage, MergeMark, NewKind, ReadWrite, Sector, SectorCount, Storage, Uuid,
};

use super::{DISK, Trial, child, dynamic, parent, sectors, written};

fn size(sectors: u64) -> ByteCount {
    SectorCount(sectors).bytes()
}

#[test]
fn hidden_and_id_are_old_or_new() {
    let parent = parent();
    let id = Uuid::from_u128(7);
    for (image, parent) in [
        (written(NewKind::Fixed, DISK, 2, &[sectors(0, 50)]), None),
        (written(dynamic(4096), DISK, 2, &[sectors(0, 50)]), None),
        (child(&parent, 4096), Some(&parent)),
    ] {
        let mut trial = Trial::new(&image, parent);
        let old = super::open(&image).footer().unique_id();
        let mut image = trial.image();
        // What was written before is not lost by it.
        trial.write(&image, sectors(70, 5), 3);
        image.set_hidden(true).unwrap();
        trial.promise();
        image.set_unique_id(id).unwrap();
        trial.promise();
        drop(image);
        trial.check_with(
            |_, _| (),
            |state, image, _| {
                let footer = image.footer();
                let expected = match state.promises_made() {
                    0 => footer.unique_id() == old,
                    1 => footer.hidden() && [old, id].contains(&footer.unique_id()),
                    _ => footer.hidden() && footer.unique_id() == id,
                };
                assert!(expected, "{}", state.describe());
            },
        );
    }
}

/// The mark of a merge is never there before what it speaks of.
#[test]
fn what_a_mark_speaks_of_is_there() {
    let merge = Uuid::from_u128(9);
    let mark = |sector| MergeMark { merge, merged_before: Sector(sector) };
    let parent = parent();
    for (image, parent) in [
        (written(NewKind::Fixed, DISK, 2, &[sectors(0, 50)]), None),
        (written(dynamic(4096), DISK, 2, &[sectors(0, 50)]), None),
        (child(&parent, 4096), Some(&parent)),
    ] {
        let mut trial = Trial::new(&image, parent);
        let image = trial.image();
        for start in [0, 45] {
            trial.write(&image, sectors(start, 45), 3);
            image.set_merge_mark(Some(mark(start + 45))).unwrap();
            trial.promise();
        }
        image.set_merge_mark(None).unwrap();
        drop(image);
        trial.check_with(
            |_, _| (),
            |state, image, found| {
                let Some(found_mark) = image.footer().merge_mark() else {
                    assert!(matches!(state.promises_made(), 0 | 2), "{}", state.describe());
                    return;
                };
                let merged = found_mark.merged_before.0;
                assert!([mark(45), mark(90)].contains(&found_mark), "{found_mark:?}: {}", state.describe());
                let expected = [pattern::fill(sectors(0, 45), 3), pattern::fill(sectors(45, 45), 3)].concat();
                let length = merged as usize * 512;
                assert!(found[..length] == expected[..length], "{merged}: {}", state.describe());
            },
        );
    }
}

#[test]
fn the_marker_is_old_or_new() {
    let parent = parent();
    let mut trial = Trial::new(&child(&parent, 4096), Some(&parent));
    let mut image = trial.image();
    trial.write(&image, sectors(48, 8), 3);
    image.set_marker(5).unwrap();
    trial.promise();
    drop(image);
    trial.check_with(
        |_, _| (),
        |state, image, _| {
            let marker = image.marker().unwrap();
            assert!(marker == 5 || marker == 0 && state.promises_made() == 0, "{}", state.describe());
        },
    );
}

/// The footers are written anew from one that is whole, the other being lost.
#[test]
fn one_footer_is_always_whole_while_they_are_renewed() {
    let parent = parent();
    for at_end in [false, true] {
        let image = child(&parent, 4096);
        let at = if at_end { image.len().unwrap().0 - 512 } else { 0 };
        image.write_at(&[7; 512], FileOffset(at)).unwrap();
        let mut trial = Trial::new(&image, Some(&parent));
        let mut image = trial.image();
        image.renew_footers().unwrap();
        drop(image);
        trial.promise();
        trial.check_with(
            |_, _| (),
            |state, image, _| {
                let is_whole = image.footer_copy().is_ok() && image.footer_origin() == vhd_core::FooterOrigin::End;
                assert!(is_whole || state.promises_made() == 0, "{}", state.describe());
            },
        );
    }
}

/// Resizes an image, in several steps, and gives the trial.
fn resized(
    image: &Arc<MemoryStorage>,
    parent: Option<&Arc<MemoryStorage>>,
    sizes: &[u64],
    end: impl Fn(&mut Image<ReadWrite>),
) -> Trial {
    let parent_size = parent.map_or(ByteCount(0), |_| size(DISK));
    let mut trial = Trial::new(image, parent);
    let mut disk = trial.image();
    for &sectors in sizes {
        trial.step(|disk| disk.resize(sectors as usize * 512, 0));
        disk.set_size(size(sectors), parent_size).unwrap();
        trial.promise();
        end(&mut disk);
        trial.promise();
    }
    disk.close().unwrap();
    trial
}

fn is_whole_size(sizes: &[u64]) -> impl Fn(&State, &Image<vhd_core::ReadOnly>, &[u8]) {
    move |state, image, _| {
        assert!(sizes.contains(&image.sectors().0), "{} sectors: {}", image.sectors(), state.describe());
    }
}

#[test]
fn a_disk_that_grows_is_old_or_new_and_new_sectors_are_zero() {
    let parent = parent();
    for (image, parent) in [
        (written(dynamic(4096), DISK, 2, &[sectors(0, 50), sectors(DISK - 3, 3)]), None),
        (child(&parent, 4096), Some(&parent)),
        (child(&parent, 16 << 10), Some(&parent)),
    ] {
        // Within the tables that are there, a little more, and much more.
        let sizes = [DISK + 7, 400, 3000];
        let trial = resized(&image, parent, &sizes, |_| ());
        trial.check_with(|_, _| (), is_whole_size(&[DISK, DISK + 7, 400, 3000]));
    }
}

/// A fixed disk may have lost its footer while it grew; whoever recorded its length finds the old one.
#[test]
fn a_fixed_disk_that_grows_is_old_or_new() {
    let image = written(NewKind::Fixed, DISK, 2, &[sectors(0, DISK)]);
    let (id, length) = (super::open(&image).footer().unique_id(), image.len().unwrap());
    let trial = resized(&image, None, &[DISK + 1, 300], |_| ());
    let lengths = [length, size(DISK + 1) + ByteCount(512)];
    trial.check_with(
        |_, memory| {
            let has_none = Image::from_container(super::container(memory)).is_err();
            let cut = |length: &ByteCount| vhd_core::cut_to_footer(&super::container(memory), *length, id).unwrap();
            assert!(!has_none || lengths.iter().any(cut), "no footer at all");
        },
        is_whole_size(&[DISK, DISK + 1, 300]),
    );
}

#[test]
fn a_disk_that_shrinks_keeps_the_rest_and_forgets_what_is_cut_off() {
    let parent = parent();
    for (image, parent) in [
        (written(NewKind::Fixed, DISK, 2, &[sectors(0, DISK)]), None),
        (written(dynamic(4096), DISK, 2, &[sectors(0, DISK)]), None),
        (child(&parent, 4096), Some(&parent)),
    ] {
        let sizes = [45, 16];
        let trial = resized(&image, parent, &sizes, |image| _ = image.drop_leftovers().unwrap());
        let (is_fixed, is_whole) = (super::open(&image).header().is_none(), is_whole_size(&[DISK, 45, 16]));
        trial.check_with(
            |_, _| (),
            |state, image, found| {
                is_whole(state, image, found);
                let length = image.container().len().unwrap();
                let is_cut = length == size(16) + ByteCount(512);
                assert!(!is_fixed || state.promises_made() < 4 || is_cut, "{length}: {}", state.describe());
            },
        );
    }
}

/// A disk that has shrunk grows again at once: what lay beyond its end never comes back.
#[test]
fn what_was_cut_off_never_comes_back() {
    let parent = parent();
    for (image, parent) in
        [(written(dynamic(4096), DISK, 2, &[sectors(0, DISK)]), None), (child(&parent, 4096), Some(&parent))]
    {
        let trial = resized(&image, parent, &[20, DISK + 30], |_| ());
        trial.check_with(|_, _| (), is_whole_size(&[DISK, 20, DISK + 30]));
    }
}

#[test]
fn the_end_of_the_file_moves_with_its_footer() {
    let parent = parent();
    for more in [0, 512, 8192] {
        let image = child(&parent, 4096);
        let length = ByteCount(image.len().unwrap().0 + more);
        let mut trial = Trial::new(&image, Some(&parent));
        trial.image().set_physical_size(length).unwrap();
        trial.promise();
        let image = trial.image();
        trial.write(&image, sectors(60, 8), 3);
        image.close().unwrap();
        trial.promise();
        trial.check();
    }
}
