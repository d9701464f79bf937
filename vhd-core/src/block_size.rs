//! The size of a block and what follows from it.

use std::fmt;

use crate::units::{BlockIndex, ByteCount, FileOffset, SECTOR_SIZE, Sector, SectorCount, SectorRange};

/// Bytes of data in a block: a power of two from 4 KiB to 256 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockSize {
    shift: u32,
}

impl BlockSize {
    /// 2 MiB, what every writer uses and blktap expects.
    pub const DEFAULT: Self = Self { shift: 21 };

    /// Checks a size in bytes.
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 4 << 10 && bytes <= 256 << 20 {
            Some(Self { shift: bytes.trailing_zeros() })
        } else {
            None
        }
    }

    /// In bytes, as stored in the header.
    pub const fn get(self) -> u32 {
        1 << self.shift
    }

    /// In bytes.
    pub const fn bytes(self) -> ByteCount {
        ByteCount(1 << self.shift)
    }

    /// In sectors.
    pub const fn sectors(self) -> SectorCount {
        SectorCount((1 << self.shift) / SECTOR_SIZE)
    }

    /// The bytes that a block's bitmap takes before its data: a bit a sector, in whole sectors.
    pub const fn bitmap_size(self) -> ByteCount {
        ByteCount((self.sectors().0 / 8).next_multiple_of(SECTOR_SIZE))
    }

    /// The bytes of bitmap and data together.
    pub const fn stride(self) -> ByteCount {
        ByteCount(self.bitmap_size().0 + self.bytes().0)
    }

    /// The block that holds a sector; `None` beyond the 2^32 blocks that a BAT can have.
    pub fn block_of(self, sector: Sector) -> Option<BlockIndex> {
        u32::try_from(sector.0 / self.sectors().0).ok().map(BlockIndex)
    }

    /// The sectors of a block.
    pub const fn sectors_of(self, block: BlockIndex) -> SectorRange {
        SectorRange::new(Sector(block.0 as u64 * self.sectors().0), self.sectors())
    }

    /// The blocks that a disk of `size` bytes needs.
    pub const fn blocks_for(self, size: ByteCount) -> u64 {
        size.0.div_ceil(self.bytes().0)
    }
}

impl fmt::Display for BlockSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// Where a block lies in its file: its bitmap first, then its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockPlace {
    /// Where the bitmap starts; always a multiple of 512.
    pub bitmap: FileOffset,
    /// Where the data starts.
    pub data: FileOffset,
}

impl BlockPlace {
    /// Takes a place from its BAT entry.
    pub const fn from_entry(entry: u32, size: BlockSize) -> Self {
        let bitmap = entry as u64 * SECTOR_SIZE;
        Self { bitmap: FileOffset(bitmap), data: FileOffset(bitmap + size.bitmap_size().0) }
    }

    /// Gives its BAT entry; `None` where a 32-bit sector address does not reach.
    pub fn to_entry(self) -> Option<u32> {
        u32::try_from(self.bitmap.0 / SECTOR_SIZE).ok().filter(|&entry| entry != crate::format::UNALLOCATED)
    }
}
