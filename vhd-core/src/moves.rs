//! Moving blocks within a file, many between two syncs.

use std::io;
use std::ops::Range;

use crate::block_size::BlockPlace;
use crate::image::{Image, Tables};
use crate::storage::StorageError;
use crate::units::{BlockIndex, ByteCount, FileOffset};
use crate::write::{ReadWrite, WriteError};

/// The most data that moves between two syncs, and the most blocks.
const BATCH: ByteCount = ByteCount(256 << 20);
const MOST_BLOCKS: u64 = 4096;
/// The most that is read at once where the kernel does not copy.
const CHUNK: u64 = 1 << 20;

/// A block that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    pub(crate) block: BlockIndex,
    pub(crate) from: BlockPlace,
    pub(crate) to: BlockPlace,
}

impl Image<ReadWrite> {
    /// Moves blocks to places that nothing uses.
    ///
    /// # Crash safety
    /// A copy is durable before the BAT names it, and the BAT when this returns.
    pub(crate) fn carry_out(&self, tables: &Tables, moves: &[Move]) -> Result<(), WriteError> {
        let count = (BATCH.0 / tables.header.block_size().stride().0).clamp(1, MOST_BLOCKS) as usize;
        for batch in moves.chunks(count) {
            for one in batch {
                self.copy_block(tables, one)?;
            }
            self.container.sync()?;
            let entry = |one: &Move| (one.block, one.to.to_entry().expect("a place that was found for a block"));
            let mut entries: Vec<_> = batch.iter().map(entry).collect();
            entries.sort_unstable_by_key(|(block, _)| *block);
            tables.bat.publish(&self.container, &entries)?;
            self.container.sync()?;
            for one in batch {
                self.forget(one.block);
            }
        }
        Ok(())
    }

    fn copy_block(&self, tables: &Tables, one: &Move) -> Result<(), StorageError> {
        let length = tables.header.block_size().stride().0;
        let target = one.to.bitmap..one.to.bitmap + ByteCount(length);
        // What holes are not copied onto must be zero.
        for stale in self.data_in(target)? {
            self.container.zero_range(stale.start, stale.end - stale.start)?;
        }
        // A block may be cut short by the footer.
        let end = (one.from.bitmap + ByteCount(length)).min(self.room());
        for data in self.data_in(one.from.bitmap..end)? {
            let to = one.to.bitmap + (data.start - one.from.bitmap);
            self.copy_in_file(data.start, to, data.end - data.start)?;
        }
        Ok(())
    }

    fn data_in(&self, range: Range<FileOffset>) -> Result<Vec<Range<FileOffset>>, StorageError> {
        let mut found = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let Some(data) = self.container.next_data(at)?.filter(|data| data.start < range.end) else { break };
            found.push(data.start.max(at)..data.end.min(range.end));
            at = data.end;
        }
        Ok(found)
    }

    fn copy_in_file(&self, from: FileOffset, to: FileOffset, length: ByteCount) -> Result<(), StorageError> {
        match self.container.copy_range(&self.container, from, to, length) {
            Err(error) if matches!(error.source.kind(), io::ErrorKind::Unsupported | io::ErrorKind::InvalidInput) => {}
            copied => return copied,
        }
        let mut buffer = Vec::new();
        for done in (0..length.0).step_by(CHUNK as usize) {
            buffer.resize((length.0 - done).min(CHUNK) as usize, 0);
            self.container.read_at(&mut buffer, from + ByteCount(done))?;
            self.container.write_at(&buffer, to + ByteCount(done))?;
        }
        Ok(())
    }
}
