//! Blocks that lie over each other, found in linear time and bounded memory.

use std::fmt;

use crate::block_size::{BlockPlace, BlockSize};
use crate::units::{BlockIndex, ByteCount, FileOffset, SECTOR_SIZE};

/// Buckets looked at in one pass over the BAT: 48 MiB of memory, more than any file with 2 MiB blocks.
const WINDOW: usize = 4 << 20;

/// Two blocks, parts of which are the same bytes of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The one that lies first, or was met first.
    pub first: BlockIndex,
    /// The other.
    pub second: BlockIndex,
    /// Where the other starts.
    pub at: FileOffset,
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks {} and {} overlap at offset {}", self.first, self.second, self.at)
    }
}

/// Reports every block that overlaps another.
///
/// The file is divided into buckets as long as a block with its bitmap. Two blocks that start in one bucket overlap;
/// otherwise a block can only overlap those that start in the buckets beside its own. `blocks` gives all blocks, each
/// time it is called; it is called once for every 4 Mi buckets, those passed over in which no block is.
pub(crate) fn find_overlaps<E, I: Iterator<Item = Result<(BlockIndex, BlockPlace), E>>>(
    size: BlockSize,
    len: ByteCount,
    blocks: impl Fn() -> I,
    report: impl FnMut(Overlap),
) -> Result<(), E> {
    find_in_windows(WINDOW, size, len, blocks, report)
}

fn find_in_windows<E, I: Iterator<Item = Result<(BlockIndex, BlockPlace), E>>>(
    most: usize,
    size: BlockSize,
    len: ByteCount,
    blocks: impl Fn() -> I,
    mut report: impl FnMut(Overlap),
) -> Result<(), E> {
    let stride = size.stride().0;
    // However long a sparse file is, a 32-bit sector address reaches no further.
    let reach = (u64::from(u32::MAX) + 1) * SECTOR_SIZE;
    let buckets = len.0.min(reach).div_ceil(stride);
    // The last block of a window meets the first of the next.
    let mut last_of_window: Option<(BlockIndex, FileOffset)> = None;
    let mut window = 0;
    while window < buckets {
        let width = (buckets - window).min(most as u64) as usize;
        let end = window + width as u64;
        let mut occupants: Vec<Option<(BlockIndex, u32)>> = vec![None; width];
        let mut next = buckets;
        for found in blocks() {
            let (block, place) = found?;
            let bucket = place.bitmap.0 / stride;
            if bucket >= end {
                next = next.min(bucket);
            }
            let Some(slot) = bucket.checked_sub(window).and_then(|i| occupants.get_mut(i as usize)) else { continue };
            let within = (place.bitmap.0 % stride) as u32;
            match slot {
                Some((first, _)) => report(Overlap { first: *first, second: block, at: place.bitmap }),
                None => *slot = Some((block, within)),
            }
        }
        let mut previous = last_of_window.take();
        for (i, slot) in occupants.into_iter().enumerate() {
            let here =
                slot.map(|(block, within)| (block, FileOffset((window + i as u64) * stride + u64::from(within))));
            if let (Some((first, start)), Some((second, at))) = (previous, here)
                && at.0 < start.0 + stride
            {
                report(Overlap { first, second, at });
            }
            previous = here;
        }
        last_of_window = previous.filter(|_| next == end);
        window = next;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every block that overlaps another is in some report, and no report is wrong.
        #[test]
        fn agrees_with_comparing_all_pairs(sectors in prop::collection::vec(0_u32..200, 0..12), window in 1_usize..30) {
            let size = BlockSize::new(4096).unwrap();
            let places: Vec<_> = sectors.iter().map(|&entry| BlockPlace::from_entry(entry, size)).collect();
            let blocks = || places.iter().enumerate().map(|(i, &place)| Ok::<_, Infallible>((BlockIndex(i as u32), place)));
            let overlap = |a: usize, b: usize| places[a].bitmap.0.abs_diff(places[b].bitmap.0) < size.stride().0;
            let mut reported = BTreeSet::new();
            find_in_windows(window, size, ByteCount(400 * 512), blocks, |found| {
                let (first, second) = (found.first.0 as usize, found.second.0 as usize);
                assert!(overlap(first, second), "{found}");
                reported.extend([first, second]);
            }).unwrap();
            let any = (0..places.len()).any(|a| (0..a).any(|b| overlap(a, b)));
            prop_assert_eq!(any, !reported.is_empty());
        }
    }
}
