//! Power fails at every point of a repair, and of taking one back: what is done next starts from what was there before.

use std::fs;
use std::io::ErrorKind;
use std::sync::Arc;

use proptest::prelude::*;
use testkit::fault::FaultStorage;
use vhd_core::Container;
use vhd_core::repair::{self, Options, RepairError, TakenBack};

use super::{Patient, entry, put, set_entry, small};

/// Each with changes of another kind: more or fewer bytes, in one place or many.
fn damages() -> Vec<Vec<u8>> {
    let sound = small();
    let mut footers = sound.clone();
    footers[..512].fill(7);
    let mut torn = sound.clone();
    torn.truncate(sound.len() - 512 - 3000);
    let mut entries = sound.clone();
    set_entry(&mut entries, 2, 512);
    set_entry(&mut entries, 200, 1 << 30);
    put(&mut entries, 512, b"garbage!");
    entries.truncate(sound.len() - 512);
    let mut batmap = sound.clone();
    let place = super::table(&sound) + 1024;
    batmap[place..place + 1024].fill(3);
    batmap[entry(&sound, 0)] = 0xff;
    vec![footers, torn, entries, batmap]
}

/// What a repair makes of an image when nothing fails.
fn mended(damaged: &[u8]) -> Vec<u8> {
    let patient = Patient::new(damaged.to_vec());
    patient.repaired();
    patient.memory.to_vec()
}

/// Whatever operation on the image is the last, the next repair gives what an undisturbed one would have given, and
/// taking back gives what was there before.
#[test]
fn a_repair_that_is_interrupted_is_done_anew_or_taken_back() {
    for damaged in damages() {
        let expected = mended(&damaged);
        for first in 0.. {
            let patient = Patient::new(damaged.clone());
            let storage = FaultStorage::new(patient.memory.clone(), first, u64::MAX, ErrorKind::Other);
            let image = Container::new(patient.container().path(), Arc::new(storage));
            let result = repair::container(&image, &patient.undo(), &Options::default());
            let Err(error) = result else {
                assert!(first > 1, "there was something to interrupt");
                assert!(patient.memory.to_vec() == expected);
                break;
            };
            assert!(matches!(error, RepairError::Interrupted { .. }), "{error}");
            let (after, undo) = (patient.memory.to_vec(), fs::read(patient.undo()).unwrap());
            let repaired = patient.repair().unwrap();
            assert!(repaired.resumed, "operation {first}");
            assert!(patient.memory.to_vec() == expected, "operation {first}");

            let other = Patient::new(after);
            fs::write(other.undo(), undo).unwrap();
            let was = repair::container_taken_back(&other.container(), &other.undo()).unwrap();
            assert_eq!(was, TakenBack::Interrupted, "operation {first}");
            assert!(other.memory.to_vec() == damaged && !other.undo().exists(), "operation {first}");
        }
    }
}

#[test]
fn taking_back_that_is_interrupted_is_done_again() {
    for damaged in damages() {
        for first in 0.. {
            let patient = Patient::new(damaged.clone());
            patient.repair().unwrap();
            let storage = FaultStorage::new(patient.memory.clone(), first, u64::MAX, ErrorKind::Other);
            let image = Container::new(patient.container().path(), Arc::new(storage));
            if repair::container_taken_back(&image, &patient.undo()).is_ok() {
                assert!(patient.memory.to_vec() == damaged);
                break;
            }
            let was = repair::container_taken_back(&patient.container(), &patient.undo()).unwrap();
            assert_eq!(was, TakenBack::Interrupted, "operation {first}");
            assert!(patient.memory.to_vec() == damaged && !patient.undo().exists(), "operation {first}");
        }
    }
}

/// A repair of what an interrupted repair has left, which fails in its turn.
#[test]
fn interruptions_may_follow_each_other() {
    let damaged = damages().remove(2);
    let expected = mended(&damaged);
    for first in 0..12 {
        let patient = Patient::new(damaged.clone());
        for operations in [first, 1, 3, 0, 5] {
            let storage = FaultStorage::new(patient.memory.clone(), operations, u64::MAX, ErrorKind::Other);
            let image = Container::new(patient.container().path(), Arc::new(storage));
            drop(repair::container(&image, &patient.undo(), &Options::default()));
        }
        patient.repair().unwrap();
        assert!(patient.memory.to_vec() == expected, "operation {first}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Of what was not synced any sector may be old or new, and the length either.
    #[test]
    fn any_mixture_of_old_and_new_is_done_anew_or_taken_back(
        which in 0_usize..4, seed in any::<u64>(), longer in any::<bool>(), back in any::<bool>(),
    ) {
        let damaged = damages().remove(which);
        let expected = mended(&damaged);
        // The undo file as it is before the first byte changes.
        let patient = Patient::new(damaged.clone());
        let storage = FaultStorage::new(patient.memory.clone(), 0, u64::MAX, ErrorKind::Other);
        let image = Container::new(patient.container().path(), Arc::new(storage));
        repair::container(&image, &patient.undo(), &Options::default()).unwrap_err();

        let len = if longer { damaged.len().max(expected.len()) } else { damaged.len().min(expected.len()) };
        let mut mixed = vec![0; len];
        for (i, sector) in mixed.chunks_mut(512).enumerate() {
            let source = if (seed.rotate_left(i as u32 % 64) ^ i as u64) & 1 == 0 { &damaged } else { &expected };
            let from = (i * 512).min(source.len());
            let known = &source[from..(from + sector.len()).min(source.len())];
            sector[..known.len()].copy_from_slice(known);
        }
        let other = Patient::new(mixed);
        fs::copy(patient.undo(), other.undo()).unwrap();
        if back {
            repair::container_taken_back(&other.container(), &other.undo()).unwrap();
            prop_assert!(other.memory.to_vec() == damaged);
        } else {
            prop_assert!(other.repair().unwrap().resumed);
            prop_assert!(other.memory.to_vec() == expected);
        }
    }
}

/// Before the undo file is durable nothing is written; where it cannot be, nothing is.
#[test]
fn an_undo_file_that_cannot_be_written_leaves_the_image_alone() {
    let damaged = damages().remove(0);
    let patient = Patient::new(damaged.clone());
    let nowhere = patient.folder.path().join("missing/patient.vhd.undo");
    repair::container(&patient.container(), &nowhere, &Options::default()).unwrap_err();
    assert!(patient.memory.to_vec() == damaged);
}
