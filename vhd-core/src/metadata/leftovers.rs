//! What a disk that becomes smaller leaves beyond its end.

use super::MetadataError;
use crate::block_size::BlockPlace;
use crate::chain::Chain;
use crate::image::{Image, Layer, RawDisk, ReadError, Tables};
use crate::overlap::find_overlaps;
use crate::units::{BlockIndex, ByteCount, FileOffset, Sector, SectorRange};
use crate::write::{ReadWrite, WriteError};

/// Blocks that are looked at, and taken out of the BAT, together.
const BATCH: usize = 64 * 1024;

impl<Mode> Image<Mode> {
    /// Finds the last sector of the disk at or after `from` that this layer holds, whatever is in it; a fixed image, which
    /// has no bitmaps, holds what is not zero.
    ///
    /// # Errors
    /// A BAT entry that cannot be, a failed read.
    pub fn last_present(&self, from: Sector) -> Result<Option<Sector>, ReadError> {
        let range = SectorRange::between(from, Sector(self.sectors().0));
        let Some(tables) = &self.tables else {
            let disk = RawDisk::open(self.container.clone())?;
            return Chain::from_layers(vec![Layer::Raw(disk)]).last_nonzero(range);
        };
        let size = tables.header.block_size();
        let Some(first) = size.block_of(from) else { return Ok(None) };
        for start in (first.0..self.blocks()).step_by(BATCH).rev() {
            let end = self.blocks().min(start.saturating_add(BATCH as u32));
            let found = tables.bat.allocated_in(&self.container, start..end).collect::<Result<Vec<_>, _>>()?;
            for (block, entry) in found.into_iter().rev() {
                let sectors = size.sectors_of(block);
                let bit = |sector: Sector| (sector.max(sectors.start).min(sectors.end) - sectors.start).0 as u32;
                let bitmap = tables.read_bitmap(&self.container, self.checked_place(tables, block, entry)?)?;
                let last = bitmap.runs(bit(range.start)..bit(range.end)).filter(|(_, set)| *set).last();
                if let Some((run, _)) = last {
                    return Ok(Some(Sector(sectors.start.0 + u64::from(run.end) - 1)));
                }
            }
        }
        Ok(None)
    }

    /// Counts the blocks that the BAT places beyond the end of the disk.
    pub(crate) fn blocks_beyond_end(&self, tables: &Tables) -> Result<u32, ReadError> {
        let beyond = tables.bat.allocated_in(&self.container, self.blocks()..tables.bat.entries());
        let count = beyond.map(|found| found.map(drop)).collect::<Result<Vec<()>, _>>()?.len();
        Ok(u32::try_from(count).expect("a BAT has fewer than 2^32 entries"))
    }

    /// Tells whether every block that the BAT places, beyond the end of the disk too, has its place for itself.
    fn all_blocks_are_apart(&self, tables: &Tables) -> Result<bool, ReadError> {
        let size = tables.header.block_size();
        let all = || {
            let entries = tables.bat.allocated(&self.container, tables.bat.entries());
            entries.map(|found| found.map(|(block, entry)| (block, BlockPlace::from_entry(entry, size))))
        };
        let mut apart = true;
        for found in all() {
            apart &= tables.fault_of(found?.1).is_none();
        }
        find_overlaps(size, tables.file_len(), all, |_| apart = false)?;
        Ok(apart)
    }
}

impl Image<ReadWrite> {
    /// Gives back what the file holds of sectors beyond the end of the disk, as one that has become smaller leaves it: whole
    /// blocks leave the BAT, what remains of the last one is zeroed, the file of a fixed disk ends after the disk, and
    /// that of another after its last table or block. Tells how many blocks have gone.
    ///
    /// Nobody else may have the image open. Blocks that lie over something else leave the BAT, and their space is not
    /// touched.
    ///
    /// # Errors
    /// A failed read, write, change of length or sync.
    ///
    /// # Crash safety
    /// The disk reads the same throughout, and what is left to do is done by calling this again. What is not done is
    /// zeroed when the disk grows.
    pub fn drop_leftovers(&mut self) -> Result<u32, MetadataError> {
        self.check_can_grow()?;
        self.flush()?;
        if self.tables.is_none() {
            self.commit(|image| Ok(image.cut_fixed()?))?;
            return Ok(0);
        }
        let dropped = self.commit(|image| {
            let tables = image.tables.as_ref().expect("only called with tables");
            image.zero_rest_of_last_block(tables)?;
            image.drop_blocks_beyond_end(tables)
        })?;
        self.trim_tail()?;
        Ok(dropped)
    }

    fn zero_rest_of_last_block(&self, tables: &Tables) -> Result<(), MetadataError> {
        let (size, end) = (tables.header.block_size(), Sector(self.sectors().0));
        let Some(block) = self.blocks().checked_sub(1).map(BlockIndex) else { return Ok(()) };
        let rest = SectorRange::between(end, size.sectors_of(block).end);
        let Some(place) = self.published_place(tables, block).map_err(WriteError::from)? else { return Ok(()) };
        let at = place.data + (end - size.sectors_of(block).start).bytes();
        // The block may be cut short by the footer.
        let room = self.room().0.saturating_sub(at.0).min(rest.count().bytes().0);
        let is_hole = self.container.next_data(at)?.is_none_or(|data| data.start.0 >= at.0 + room);
        if room > 0 && !is_hole {
            self.container.zero_range(at, ByteCount(room))?;
            self.container.sync()?;
        }
        Ok(())
    }

    fn drop_blocks_beyond_end(&self, tables: &Tables) -> Result<u32, MetadataError> {
        let count = self.blocks_beyond_end(tables).map_err(WriteError::from)?;
        if count == 0 {
            return Ok(0);
        }
        let are_apart = self.all_blocks_are_apart(tables).map_err(WriteError::from)?;
        loop {
            let beyond = tables.bat.allocated_in(&self.container, self.blocks()..tables.bat.entries());
            let places = beyond.take(BATCH).map(|found| {
                let (block, entry) = found?;
                Ok((block, BlockPlace::from_entry(entry, tables.header.block_size())))
            });
            let places: Vec<(BlockIndex, BlockPlace)> = places.collect::<Result<_, MetadataError>>()?;
            if places.is_empty() {
                return Ok(count);
            }
            let blocks: Vec<BlockIndex> = places.iter().map(|(block, _)| *block).collect();
            self.unpublish(tables, &blocks)?;
            if are_apart {
                self.give_back(tables, &places)?;
            }
        }
    }

    /// Where the part of the file ends that may hold blocks: at the footer, or where the file does.
    pub(crate) fn room(&self) -> FileOffset {
        let len = self.tables.as_ref().map_or(ByteCount(0), Tables::file_len);
        self.end_footer().unwrap_or(FileOffset(len.0))
    }
}
