//! Giving blocks back: what they held is the parent's affair again.

use std::sync::atomic::Ordering;

use super::{WriteError, locked};
use crate::batmap::BatmapState;
use crate::block_size::BlockPlace;
use crate::format::UNALLOCATED;
use crate::image::{Image, Tables};
use crate::units::{BlockIndex, FileOffset};
use crate::write::ReadWrite;

impl Image<ReadWrite> {
    /// Takes blocks out of the BAT and gives their space back to the file system: a differencing image then reads them
    /// from its parent, which must hold the same, durably.
    ///
    /// The file does not become shorter. Nobody else may have the image open: who has read its tables would go on reading
    /// from where the blocks were.
    ///
    /// # Errors
    /// A BAT entry that cannot be; a failed write or sync.
    ///
    /// # Crash safety
    /// The blocks are durably out of the BAT before their space is given back. Of the batmap, see [`mend_batmap`](Self::mend_batmap).
    pub fn release(&mut self, blocks: &[BlockIndex]) -> Result<(), WriteError> {
        self.flush()?;
        let Some(tables) = &self.tables else { return Ok(()) };
        let mut places = Vec::new();
        for &block in blocks {
            places.extend(self.published_place(tables, block)?.map(|place| (block, place)));
        }
        places.sort_unstable_by_key(|(block, _)| *block);
        if places.is_empty() {
            return Ok(());
        }
        self.release_places(tables, &places).inspect_err(|_| self.fail())
    }

    fn release_places(&self, tables: &Tables, places: &[(BlockIndex, BlockPlace)]) -> Result<(), WriteError> {
        let blocks: Vec<BlockIndex> = places.iter().map(|(block, _)| *block).collect();
        self.unpublish(tables, &blocks)?;
        self.give_back(tables, places)
    }

    /// Takes blocks, sorted, out of the batmap and then out of the BAT, durably.
    pub(crate) fn unpublish(&self, tables: &Tables, blocks: &[BlockIndex]) -> Result<(), WriteError> {
        let mut durable = locked(&self.mode.flushing);
        if let BatmapState::Present(batmap) = durable.batmap.get_or_insert_with(|| tables.batmap.clone()) {
            let is_full = |block| {
                Ok::<_, WriteError>(blocks.binary_search(&block).is_err() && self.is_full_on_disk(tables, block)?)
            };
            batmap.clear(&self.container, blocks, tables.bat.entries(), is_full)?;
            // A bit that outlives its block would speak for whatever comes there next.
            self.container.sync()?;
        }
        let entries: Vec<_> = blocks.iter().map(|&block| (block, UNALLOCATED)).collect();
        tables.bat.publish(&self.container, &entries)?;
        if self.lacks_end_footer() {
            // One may stand where a block is cut short, and would go with that.
            self.write_end_footer()?;
        }
        self.container.sync()?;
        for block in blocks {
            self.forget(*block);
        }
        Ok(())
    }

    /// Forgets what is known of a block in memory.
    pub(crate) fn forget(&self, block: BlockIndex) {
        if self.mode.shard(block).remove(&block).is_some() {
            self.mode.states.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Gives the space of blocks that the BAT no longer has back to the file system.
    pub(crate) fn give_back(&self, tables: &Tables, places: &[(BlockIndex, BlockPlace)]) -> Result<(), WriteError> {
        let footer = self.end_footer().unwrap_or(FileOffset(tables.file_len().0));
        for (_, place) in places {
            let size = tables.header.block_size();
            // The last block may be cut short by the footer.
            let end = (place.data + size.bytes()).min(footer);
            if end > place.bitmap {
                self.container.zero_range(place.bitmap, end - place.bitmap)?;
            }
        }
        Ok(())
    }
}
