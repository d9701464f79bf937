//! Which blocks move where: pure, from places to moves.

use std::ops::Range;

use crate::block_size::{BlockPlace, BlockSize};
use crate::units::{BlockIndex, FileOffset, SECTOR_SIZE};

/// What the data of a block that is aligned stays aligned to.
const ALIGNMENT: u64 = 4096;

/// A block and its BAT entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) entry: u32,
    pub(super) block: BlockIndex,
}

/// A block that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) block: BlockIndex,
    pub(super) from: BlockPlace,
    pub(super) to: BlockPlace,
}

/// Blocks on their way, and where the file ends after that, without its footer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    /// The last block first. No place is both left and taken.
    pub(super) moves: Vec<Move>,
    pub(super) end: FileOffset,
}

impl Layout {
    /// Moves the last blocks of a file into the first gaps that are large enough, as long as the file becomes shorter by it.
    ///
    /// `taken`, sorted, is what does not move. A block whose data starts on a page of 4 KiB goes to such a place again.
    pub(super) fn plan(size: BlockSize, mut blocks: Vec<Placed>, taken: Vec<Range<FileOffset>>) -> Self {
        blocks.sort_unstable_by_key(|placed| placed.entry);
        let fixed_end = taken.iter().map(|range| range.end).max().unwrap_or_default();
        let place_of = |placed: &Placed| BlockPlace::from_entry(placed.entry, size);
        let mut layout = Self { moves: Vec::new(), end: fixed_end };
        let mut taken = taken.into_iter().peekable();
        let mut at = FileOffset(0);
        // Blocks from `next` on lie past `at`; those from `left` on have moved.
        let (mut next, mut left) = (0, blocks.len());
        while next < left {
            let block = place_of(&blocks[next]);
            let first_taken = taken.peek().filter(|range| range.start <= block.bitmap);
            let gap_end = first_taken.map_or(block.bitmap, |range| range.start);
            let last = &blocks[left - 1];
            let from = place_of(last);
            // Before something that stays where it is at the end, a move gains nothing.
            if from.bitmap >= fixed_end
                && let Some(to) = fit(at, gap_end, from, size)
            {
                layout.moves.push(Move { block: last.block, from, to });
                at = to.data + size.bytes();
                left -= 1;
            } else if let Some(range) = first_taken {
                at = at.max(range.end);
                taken.next();
            } else {
                at = at.max(block.data + size.bytes());
                next += 1;
            }
        }
        let stay = blocks[..left].last().map(|last| place_of(last).data + size.bytes());
        let moved = layout.moves.iter().map(|it| it.to.data + size.bytes()).max();
        layout.end = layout.end.max(stay.unwrap_or_default()).max(moved.unwrap_or_default());
        layout
    }
}

/// Finds a place between `at` and `end` for the block that is at `from`.
fn fit(at: FileOffset, end: FileOffset, from: BlockPlace, size: BlockSize) -> Option<BlockPlace> {
    let bitmap = size.bitmap_size().0;
    let is_aligned = from.data.0.is_multiple_of(ALIGNMENT);
    let data = (at.0 + bitmap).next_multiple_of(if is_aligned { ALIGNMENT } else { SECTOR_SIZE });
    let place = BlockPlace { bitmap: FileOffset(data - bitmap), data: FileOffset(data) };
    (place.data + size.bytes() <= end).then_some(place)
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

    fn sectors(range: Range<u64>) -> Range<FileOffset> {
        FileOffset(range.start * 512)..FileOffset(range.end * 512)
    }

    #[test]
    fn the_last_block_goes_into_the_first_gap_that_is_large_enough() {
        // Data at sectors 8, 40, 56 and 80; only between the first two there is room for an aligned block and its bitmap.
        let layout = Layout::plan(size(), placed(&[79, 7, 39, 55]), vec![sectors(0..7)]);
        let entry = |place: BlockPlace| place.to_entry().unwrap();
        let moves: Vec<_> = layout.moves.iter().map(|it| (it.block.0, entry(it.from), entry(it.to))).collect();
        assert_eq!(moves, [(0, 79, 23)]);
        assert_eq!(layout.end, FileOffset(64 * 512));
    }

    #[test]
    fn nothing_moves_that_lies_before_a_table_at_the_end() {
        let layout = Layout::plan(size(), placed(&[47, 7, 79]), vec![sectors(0..7), sectors(60..61)]);
        let moved: Vec<_> = layout.moves.iter().map(|it| it.block.0).collect();
        assert_eq!((moved, layout.end), (vec![2], FileOffset(61 * 512)));
    }

    proptest! {
        /// Places do not overlap, only the end of the file moves, and no gap is left that the last block would fit into.
        #[test]
        fn what_is_left_is_tight(slots in prop::collection::btree_set(0_u64..40, 0..24), unaligned in 0_u64..8, table in 8_u64..500) {
            let table = sectors(table..table + 3);
            let entries = slots.iter().map(|slot| (8 + slot * 16 + 7 + unaligned) as u32);
            let apart = |entry: &u32| {
                let place = BlockPlace::from_entry(*entry, size());
                place.bitmap >= table.end || place.data + size().bytes() <= table.start
            };
            let entries: Vec<u32> = entries.filter(apart).collect();
            let fixed = vec![sectors(0..7), table.clone()];
            let layout = Layout::plan(size(), placed(&entries), fixed.clone());
            let moved: std::collections::BTreeMap<u32, Move> = layout.moves.iter().map(|it| (it.block.0, *it)).collect();
            let now = entries.iter().enumerate().map(|(i, &entry)| match moved.get(&(i as u32)) {
                Some(it) => { assert_eq!(it.from.to_entry(), Some(entry)); it.to }
                None => BlockPlace::from_entry(entry, size()),
            });
            let mut all: Vec<_> = now.map(|place| place.bitmap..place.data + size().bytes()).chain(fixed).collect();
            all.sort_unstable_by_key(|range| range.start);
            prop_assert!(all.windows(2).all(|pair| pair[0].end <= pair[1].start));
            prop_assert_eq!(all.last().unwrap().end, layout.end);
            prop_assert!(layout.moves.iter().all(|it| it.to.data + size().bytes() <= it.from.bitmap && it.from.bitmap >= layout.end));
            // A block of this alignment takes 9 sectors, and at most 7 before it.
            let last_is_block = all.last().unwrap().start != table.start;
            if last_is_block {
                prop_assert!(all.windows(2).all(|pair| (pair[1].start - pair[0].end).0 < (9 + 7) * 512));
            }
        }
    }
}
