//! Which blocks move where: pure, from places to moves.

use crate::block_size::{BlockPlace, BlockSize};
use crate::layout::Spacing;
use crate::moves::Move;
use crate::units::{BlockIndex, FileOffset};

/// A block and its BAT entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) entry: u32,
    pub(super) block: BlockIndex,
}

/// Blocks on their way, and where the file ends after that, without its footer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Packing {
    /// The last block first. No place is both left and taken.
    pub(super) moves: Vec<Move>,
    pub(super) end: FileOffset,
}

impl Packing {
    /// Moves the last blocks of a file into the first gaps that are large enough, each to a place that the layout allows.
    /// All blocks lie behind the tables, which end at `tables_end`.
    pub(super) fn plan(size: BlockSize, spacing: Spacing, mut blocks: Vec<Placed>, tables_end: FileOffset) -> Self {
        blocks.sort_unstable_by_key(|placed| placed.entry);
        let place_of = |placed: &Placed| BlockPlace::from_entry(placed.entry, size);
        let mut packing = Self { moves: Vec::new(), end: tables_end };
        // The end of the last block before the gap that is looked at.
        let mut block_before = None;
        // Blocks from `next` on lie past that gap; those from `left` on have moved.
        let (mut next, mut left) = (0, blocks.len());
        while next < left {
            let (block, from) = (place_of(&blocks[next]), place_of(&blocks[left - 1]));
            let to = spacing.place_for(from, block_before.unwrap_or(tables_end), block_before, size);
            let end = to.data + size.bytes();
            if spacing.is_apart(end, block) {
                packing.moves.push(Move { block: blocks[left - 1].block, from, to });
                left -= 1;
                block_before = Some(end);
            } else {
                next += 1;
                block_before = Some(block.data + size.bytes());
            }
            packing.end = packing.end.max(block_before.unwrap_or_default());
        }
        packing
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Blocks of 4 KiB, whose stride is 9 sectors.
    fn size() -> BlockSize {
        BlockSize::new(4096).unwrap()
    }

    fn placed(entries: &[u32]) -> Vec<Placed> {
        entries.iter().enumerate().map(|(i, &entry)| Placed { entry, block: BlockIndex(i as u32) }).collect()
    }

    fn sector(sector: u64) -> FileOffset {
        FileOffset(sector * 512)
    }

    #[test]
    fn the_last_block_goes_into_the_first_gap_that_is_large_enough() {
        // Data at sectors 8, 40, 56 and 80; only between the first two there is room for a block, its bitmap and what
        // is to be free before both.
        let packing = Packing::plan(size(), Spacing::OF_TAPDISK, placed(&[79, 7, 39, 55]), sector(7));
        let entry = |place: BlockPlace| place.to_entry().unwrap();
        let moves: Vec<_> = packing.moves.iter().map(|it| (it.block.0, entry(it.from), entry(it.to))).collect();
        assert_eq!(moves, [(0, 79, 23)]);
        assert_eq!(packing.end, sector(64));
    }

    #[test]
    fn a_gap_behind_the_tables_is_filled_right_behind_them() {
        let packing = Packing::plan(size(), Spacing::OF_TAPDISK, placed(&[47, 63]), sector(9));
        let moved: Vec<_> = packing.moves.iter().map(|it| (it.block.0, it.to.bitmap)).collect();
        assert_eq!((moved, packing.end), (vec![(1, sector(15)), (0, sector(31))], sector(40)));
    }

    proptest! {
        /// In an image with a batmap places spare the tables and each other, only the end of the file moves, and no gap is left that the last
        /// block would fit into.
        #[test]
        fn what_is_left_is_tight(slots in prop::collection::btree_set(0_u64..40, 0..24), unaligned in 0_u64..8, tables in 1_u64..16) {
            let entries: Vec<u32> = slots.iter().map(|slot| (16 + slot * 16 + 7 + unaligned) as u32).collect();
            let packing = Packing::plan(size(), Spacing::OF_TAPDISK, placed(&entries), sector(tables));
            let moved: std::collections::BTreeMap<u32, Move> = packing.moves.iter().map(|it| (it.block.0, *it)).collect();
            let now = entries.iter().enumerate().map(|(i, &entry)| match moved.get(&(i as u32)) {
                Some(it) => { assert_eq!(it.from.to_entry(), Some(entry)); it.to }
                None => BlockPlace::from_entry(entry, size()),
            });
            let mut all: Vec<BlockPlace> = now.collect();
            all.sort_unstable();
            let end_of = |place: &BlockPlace| place.data + size().bytes();
            prop_assert!(all.iter().all(|place| Spacing::OF_TAPDISK.allows(*place, sector(tables))));
            prop_assert!(all.windows(2).all(|pair| end_of(&pair[0]) + vhd_margin() <= pair[1].bitmap));
            prop_assert_eq!(all.last().map_or(sector(tables), end_of), packing.end);
            prop_assert!(packing.moves.iter().all(|it| end_of(&it.to) <= it.from.bitmap && it.from.bitmap >= packing.end));
            // A block takes 9 sectors, seven before it, at most seven for its alignment, and seven before the next.
            let ends = std::iter::once(sector(tables)).chain(all.iter().map(end_of));
            prop_assert!(ends.zip(&all).all(|(end, next)| (next.bitmap - end).0 < (9 + 3 * 7) * 512));
        }
    }

    fn vhd_margin() -> crate::units::ByteCount {
        crate::units::ByteCount(7 * 512)
    }
}
