//! The BAT of an image that comes as a stream: which blocks there are, in the order of the file.

use byteorder::{BigEndian, ByteOrder};

use crate::block_size::{BlockPlace, BlockSize};
use crate::format::UNALLOCATED;
use crate::stream::StreamFault;
use crate::units::{BlockIndex, FileOffset};

/// The most blocks that are kept: those of the largest disk in blocks of 512 KiB, 32 MiB of memory.
pub(super) const MOST_BLOCKS: usize = 1 << 22;

/// The allocated blocks of the disk.
#[derive(Debug)]
pub(super) struct Table {
    /// BAT entry and block.
    allocated: Vec<(u32, BlockIndex)>,
    /// The blocks of the disk.
    blocks: u32,
    /// Entries that have been seen.
    seen: u32,
}

impl Table {
    /// Starts an empty one, for a disk of `blocks` blocks.
    pub(super) fn new(blocks: u32) -> Self {
        Self { allocated: Vec::new(), blocks, seen: 0 }
    }

    /// Takes the next entries as stored. Those beyond the end of the disk mean nothing.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<(), StreamFault> {
        for entry in bytes.chunks_exact(4).map(BigEndian::read_u32) {
            if entry != UNALLOCATED && self.seen < self.blocks {
                if self.allocated.len() == MOST_BLOCKS {
                    return Err(StreamFault::TooManyBlocks { limit: MOST_BLOCKS });
                }
                self.allocated.push((entry, BlockIndex(self.seen)));
            }
            self.seen = self.seen.saturating_add(1);
        }
        Ok(())
    }

    /// Sorts the blocks by their place, and checks that each has one of its own, from `at` on. Gives the end of the last.
    pub(super) fn place(&mut self, at: FileOffset, block_size: BlockSize) -> Result<FileOffset, StreamFault> {
        self.allocated.sort_unstable();
        let mut end = at;
        for &(entry, block) in &self.allocated {
            let place = BlockPlace::from_entry(entry, block_size);
            if place.bitmap < at {
                return Err(StreamFault::Behind { part: "first block", offset: place.bitmap, at });
            }
            if place.bitmap < end {
                return Err(StreamFault::Overlap { block, place: place.bitmap, end });
            }
            end = place.data + block_size.bytes();
        }
        Ok(end)
    }

    /// The number of allocated blocks.
    pub(super) fn len(&self) -> usize {
        self.allocated.len()
    }

    /// The block that is the `number`th in the file, and its place.
    pub(super) fn block(&self, number: usize, block_size: BlockSize) -> Option<(BlockIndex, BlockPlace)> {
        let &(entry, block) = self.allocated.get(number)?;
        Some((block, BlockPlace::from_entry(entry, block_size)))
    }

    /// The blocks alone, in the order of the disk.
    pub(super) fn into_blocks(mut self) -> Vec<BlockIndex> {
        self.allocated.sort_unstable_by_key(|&(_, block)| block);
        self.allocated.into_iter().map(|(_, block)| block).collect()
    }
}
