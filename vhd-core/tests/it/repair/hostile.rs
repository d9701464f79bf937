//! Files made to do harm, or damaged at random: repaired or refused, and never made worse.

use std::sync::Arc;

use proptest::prelude::*;
use vhd_core::check::{self, Severity};
use vhd_core::{Chain, Image, Layer, MemoryStorage, ReadOnly, Sector, repair};

use super::{Patient, small};
use crate::{container, sectors};

/// Every sector of the disk, as far as it can be read; none where the image cannot be opened.
fn contents(memory: &Arc<MemoryStorage>) -> Vec<Option<[u8; 512]>> {
    let Ok(image) = Image::<ReadOnly>::from_container(container(memory)) else { return Vec::new() };
    let chain = Chain::from_layers(vec![Layer::Vhd(Box::new(image))]);
    let read = |sector| {
        let mut bytes = [0; 512];
        chain.read(sectors(sector, 1), &mut bytes).ok().map(|()| bytes)
    };
    (0..chain.sectors().0.min(4096)).map(read).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_damage_it_is_repaired_or_left_alone(
        changes in prop::collection::vec((0_usize..4096, prop_oneof![Just(0_u8), Just(0xff), any::<u8>()]), 0..6),
        words in prop::collection::vec((0_usize..512, prop_oneof![Just(0_u64), Just(u64::MAX), Just(1 << 31), Just(512), any::<u64>()]), 0..3),
        zeroed in prop::option::of((0_usize..40, 1_usize..4)),
        cut in prop::option::of(0_usize..12_000),
    ) {
        let mut bytes = small();
        for (at, word) in words {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&word.to_be_bytes());
        }
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if let Some((first, count)) = zeroed {
            bytes[first * 512..(first + count) * 512].fill(0);
        }
        if let Some(cut) = cut {
            bytes.truncate(bytes.len() - cut);
        }
        let patient = Patient::new(bytes.clone());
        let before = contents(&patient.memory);
        match patient.repair() {
            Err(_) => {
                prop_assert!(patient.memory.to_vec() == bytes && !patient.undo().exists());
            }
            Ok(repaired) => {
                let report = check::container(patient.container()).unwrap();
                prop_assert!(report.worst() < Some(Severity::Warning), "{:?}", report.findings());
                let after = contents(&patient.memory);
                for (sector, (before, after)) in before.iter().zip(&after).enumerate() {
                    let at = Sector(sector as u64);
                    let is_lost = repaired.lost.iter().any(|lost| lost.start <= at && at < lost.end);
                    prop_assert!(after.is_some(), "sector {} cannot be read", sector);
                    prop_assert!(before.is_none() || before == after || is_lost, "sector {} was readable", sector);
                }
                if repaired.undo.is_some() {
                    repair::container_taken_back(&patient.container(), &patient.undo()).unwrap();
                }
                prop_assert!(patient.memory.to_vec() == bytes);
            }
        }
    }
}
