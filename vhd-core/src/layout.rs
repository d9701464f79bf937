//! Where tables, locators and blocks lie in the file of a dynamic or differencing image.
//!
//! ```text
//!   0      512    1536                                          first block            next block
//!   | copy | header | BAT | batmap header | batmap | locators | (gap) | bitmap | data … | gap | bitmap | data … | footer |
//!   └───────────────── the tables ────────────────────────────┘       └ data on a 4 KiB boundary
//! ```
//!
//! Three rules hold for every image that this library lays out:
//! 1. The BAT, the batmap and the locators lie before the first block, in this order. To make room for larger ones blocks
//!    move, never the tables.
//! 2. No table, locator, footer or other block lies in the seven sectors before the bitmap of a block.
//! 3. The next block goes after the last one.
//!
//! Other programs take them for granted. blktap's tapdisk appends after the last block or table, whichever is further on. While
//! a guest writes, tapdisk overwrites the seven sectors before the bitmap of a full block with zeros, unless the block
//! is the first that can lie behind the tables; it knows full blocks by the batmap, and so spares images without one.
//! blktap's check refuses an image whose blocks lie before the end of its tables.
//!
//! Source: blktap, by what tapdisk does to an image that it has open.

use crate::bat;
use crate::batmap::{self, BATMAP_HEADER_SIZE};
use crate::block_size::{BlockPlace, BlockSize};
use crate::footer::FOOTER_SIZE;
use crate::header::HEADER_SIZE;
use crate::image::Tables;
use crate::units::{ByteCount, FileOffset, SECTOR_SIZE};

/// Data of blocks starts on a multiple of this.
///
/// Source: blktap, whose stride for 2 MiB blocks is thereby 4104 sectors.
pub(crate) const DATA_ALIGNMENT: u64 = 4096;

/// What tapdisk may overwrite with zeros before the bitmap of a block.
///
/// Source: blktap; its writes of data begin with a page, whose last sector is the bitmap.
const ZEROED_BEFORE_BITMAP: ByteCount = ByteCount(DATA_ALIGNMENT - SECTOR_SIZE);

/// Where a header lies right behind the copy of the footer.
pub(crate) const HEADER_AT: FileOffset = FileOffset(FOOTER_SIZE.0);

/// The places of a header and all that follows it, one right after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TablePlaces {
    pub(crate) header: FileOffset,
    pub(crate) bat: FileOffset,
    /// Where the batmap's header is, or would be.
    pub(crate) batmap: FileOffset,
    pub(crate) locators: FileOffset,
    pub(crate) end: FileOffset,
}

impl TablePlaces {
    /// Places tables behind each other, from `header` on.
    pub(crate) fn from(header: FileOffset, entries: u32, with_batmap: bool, locator_room: ByteCount) -> Self {
        let bat = header + HEADER_SIZE;
        let batmap = bat + bat::table_size(entries);
        let batmap_room = if with_batmap { BATMAP_HEADER_SIZE + batmap::map_size(entries) } else { ByteCount(0) };
        let locators = batmap + batmap_room;
        Self { header, bat, batmap, locators, end: locators + locator_room }
    }

    /// The room that they take.
    pub(crate) fn length(&self) -> ByteCount {
        self.end - self.header
    }
}

/// Where the last table or locator ends.
pub(crate) fn end_of_tables(tables: &Tables) -> FileOffset {
    tables.taken().map(|range| range.end).fold(FileOffset(0), FileOffset::max)
}

/// How far blocks must lie from what is before them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spacing {
    /// What may be overwritten before a bitmap.
    spared: ByteCount,
    /// Whether the data of a block that moves must be aligned where it was not.
    aligns: bool,
}

impl Spacing {
    /// In an image with a batmap, by which tapdisk knows full blocks.
    pub(crate) const OF_TAPDISK: Self = Self { spared: ZEROED_BEFORE_BITMAP, aligns: true };
    /// In an image that another program has made.
    pub(crate) const NONE: Self = Self { spared: ByteCount(0), aligns: false };

    /// Tells whether a block may lie at `place` in a file whose tables end at `tables_end`.
    ///
    /// A block whose data is aligned lies either at the first place there is, which tapdisk spares, or a page or more
    /// further on.
    pub(crate) fn allows(self, place: BlockPlace, tables_end: FileOffset) -> bool {
        let is_aligned = place.data.0.is_multiple_of(DATA_ALIGNMENT);
        let needed = if is_aligned { tables_end } else { tables_end + self.spared };
        place.bitmap >= needed
    }

    /// Tells whether something that ends at `end` spares the block at `next`, further on, and what may be overwritten
    /// before that.
    pub(crate) fn is_apart(self, end: FileOffset, next: BlockPlace) -> bool {
        end + self.spared <= next.bitmap
    }

    /// The first place at or after `end` for the block that lies at `from` now. `block_before` is where the block before
    /// it ends, if there is one.
    pub(crate) fn place_for(
        self,
        from: BlockPlace,
        end: FileOffset,
        block_before: Option<FileOffset>,
        size: BlockSize,
    ) -> BlockPlace {
        let is_aligned = from.data.0.is_multiple_of(DATA_ALIGNMENT);
        let spared = block_before.map_or(end, |block| end.max(block + self.spared));
        place_at(spared, size, if is_aligned || self.aligns { DATA_ALIGNMENT } else { SECTOR_SIZE })
    }
}

/// The first place for a new block at or after `end`, and at least seven sectors after the end of the block before it, if
/// there is one.
pub(crate) fn place_from(end: FileOffset, block_before: Option<FileOffset>, size: BlockSize) -> BlockPlace {
    place_at(block_before.map_or(end, |block| end.max(block + ZEROED_BEFORE_BITMAP)), size, DATA_ALIGNMENT)
}

fn place_at(bitmap: FileOffset, size: BlockSize, alignment: u64) -> BlockPlace {
    let data = (bitmap + size.bitmap_size()).0.next_multiple_of(alignment);
    BlockPlace { bitmap: FileOffset(data - size.bitmap_size().0), data: FileOffset(data) }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    fn size() -> BlockSize {
        BlockSize::DEFAULT
    }

    /// What tapdisk zeroes before a block, as its source has it: nothing before the first place behind the tables.
    fn zeroed(place: BlockPlace, end: FileOffset) -> Range<FileOffset> {
        let first = place_from(end, None, size());
        let from = if place == first { place.bitmap } else { FileOffset(place.bitmap.0.saturating_sub(7 * 512)) };
        from..place.bitmap
    }

    #[test]
    fn a_block_may_lie_where_tapdisk_zeroes_no_table() {
        for end in (1536..20_000).step_by(512).map(FileOffset) {
            for bitmap in (0..40_000).step_by(512).map(FileOffset) {
                let place = BlockPlace { bitmap, data: bitmap + size().bitmap_size() };
                let is_safe = bitmap >= end && zeroed(place, end).start >= end;
                assert_eq!(Spacing::OF_TAPDISK.allows(place, end), is_safe, "{place:?} behind {end}");
            }
        }
    }

    #[test]
    fn places_spare_tables_and_blocks() {
        for block_size in [4096, 64 << 10, 2 << 20, 256 << 20] {
            let size = BlockSize::new(block_size).unwrap();
            for end in (1536..20_000).step_by(512).map(FileOffset) {
                let first = place_from(end, None, size);
                assert!(Spacing::OF_TAPDISK.allows(first, end) && first.bitmap.0 < end.0 + DATA_ALIGNMENT);
                let block_end = first.data + size.bytes();
                let next = place_from(block_end, Some(block_end), size);
                assert!(next.bitmap.0 - block_end.0 >= 7 * 512 || size.bitmap_size().0 > 512);
                let odd = FileOffset(block_end.0 + 512);
                assert!(place_from(odd, Some(odd), size).bitmap.0 - odd.0 >= 7 * 512);
            }
        }
    }

    #[test]
    fn tables_lie_as_blktap_lays_them() {
        let places = TablePlaces::from(HEADER_AT, 128, true, ByteCount(3 * 512));
        let offsets = [places.header, places.bat, places.batmap, places.locators, places.end].map(|place| place.0);
        assert_eq!(offsets, [512, 1536, 2048, 3072, 4608]);
    }
}
