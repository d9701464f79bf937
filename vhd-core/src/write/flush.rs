//! Making what was written durable, and showing it, in the order that survives a crash.

use std::sync::atomic::Ordering;

use super::{WriteError, locked};
use crate::batmap::BatmapState;
use crate::block_size::BlockPlace;
use crate::footer::FOOTER_SIZE;
use crate::image::{Image, ReadError, Tables};
use crate::units::{BlockIndex, FileOffset};
use crate::write::ReadWrite;

/// What is known to be on disk, beyond what the tables in memory say.
#[derive(Debug, Default)]
pub(super) struct Durable {
    /// Blocks, sorted, whose bitmap on disk the last flush has made full, and whose batmap bit has not been set.
    full: Vec<BlockIndex>,
    /// The batmap once it has been changed by us; until then it is as read at opening.
    pub(super) batmap: Option<BatmapState>,
    /// How far the flush came that failed.
    failure: Option<FlushFailure>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FlushFailure {
    /// What the file shows is what the last flush left.
    NothingShown,
    /// It shows that and some of what followed.
    PartlyShown,
}

/// A dirty block as it was when the flush began.
struct DirtyBlock {
    block: BlockIndex,
    place: BlockPlace,
    bitmap: Vec<u8>,
    unpublished: bool,
    full: bool,
}

impl Image<ReadWrite> {
    /// Makes every write that has returned durable.
    ///
    /// # Errors
    /// A failed write or sync; the image then accepts no more writes, and what was not flushed before may be lost.
    ///
    /// # Crash safety
    /// Two syncs at most. Before the first, new data and the bitmaps of new blocks, to which nothing points; between
    /// them the end footer, bitmaps, BAT entries and batmap bits, each of which shows only what is already durable.
    pub fn flush(&self) -> Result<(), WriteError> {
        let mut durable = locked(&self.mode.flushing);
        self.check_not_failed()?;
        self.flush_locked(&mut durable)
    }

    /// Flushes, and forgets what memory need not hold.
    pub(super) fn flush_and_forget(&self) -> Result<(), WriteError> {
        let mut durable = locked(&self.mode.flushing);
        self.check_not_failed()?;
        self.flush_locked(&mut durable)?;
        self.forget_clean_states();
        Ok(())
    }

    /// Flushes, and brings the batmap up to date with the last bitmaps: then the file says all there is to say.
    ///
    /// # Errors
    /// As [`flush`](Self::flush).
    ///
    /// # Crash safety
    /// As [`flush`](Self::flush), with one sync more where blocks have become full.
    pub fn settle(&self) -> Result<(), WriteError> {
        let mut durable = locked(&self.mode.flushing);
        self.check_not_failed()?;
        self.flush_locked(&mut durable)?;
        self.finish_batmap(&mut durable)
    }

    /// Settles, and lets the image go.
    ///
    /// # Errors
    /// As [`flush`](Self::flush). After a write that failed, for want of space for instance, the writes that did not
    /// fail are made durable all the same, and the file ends with its footer again; only after a failed flush nothing can
    /// be promised.
    ///
    /// # Crash safety
    /// As [`flush`](Self::flush). Dropping an image without closing it is as a crash: what was not flushed may be lost.
    pub fn close(self) -> Result<(), WriteError> {
        let mut durable = locked(&self.mode.flushing);
        let result = match durable.failure {
            None => self.flush_locked(&mut durable).and_then(|()| self.finish_batmap(&mut durable)),
            Some(_) => Err(WriteError::Failed { path: self.path().into() }),
        };
        if durable.failure != Some(FlushFailure::PartlyShown) {
            self.cut_back();
        }
        result
    }

    fn finish_batmap(&self, durable: &mut Durable) -> Result<(), WriteError> {
        if let Some(tables) = &self.tables
            && !durable.full.is_empty()
        {
            self.mark_batmap(tables, durable)?;
            self.container.sync()?;
        }
        Ok(())
    }

    fn flush_locked(&self, durable: &mut Durable) -> Result<(), WriteError> {
        let failed = |durable: &mut Durable, failure| {
            self.fail();
            durable.failure = Some(failure);
        };
        let unsynced = self.mode.unsynced.swap(false, Ordering::AcqRel);
        let dirty = self.tables.as_ref().map(|tables| self.take_dirty(tables)).unwrap_or_default();
        if !unsynced && dirty.is_empty() {
            return Ok(());
        }
        let old_footer = self.make_durable(&dirty).inspect_err(|_| failed(durable, FlushFailure::NothingShown))?;
        match &self.tables {
            Some(tables) if !dirty.is_empty() => self
                .show(tables, &dirty, old_footer, durable)
                .inspect_err(|_| failed(durable, FlushFailure::PartlyShown)),
            _ => Ok(()),
        }
    }

    /// Before the first sync: what nothing points to yet. Then the end footer, the last thing that needs new space; where
    /// nothing else is to follow, it may become durable whenever it does.
    fn make_durable(&self, dirty: &[DirtyBlock]) -> Result<Option<FileOffset>, WriteError> {
        let mut footer_is_due = self.lacks_end_footer();
        for block in dirty.iter().filter(|block| block.unpublished) {
            self.container.write_at(&block.bitmap, block.place.bitmap)?;
            footer_is_due = true;
        }
        self.container.sync()?;
        Ok(if footer_is_due && self.tables.is_some() { self.write_end_footer()? } else { None })
    }

    /// Before the second sync: everything that makes the first part visible.
    fn show(
        &self,
        tables: &Tables,
        dirty: &[DirtyBlock],
        old_footer: Option<FileOffset>,
        durable: &mut Durable,
    ) -> Result<(), WriteError> {
        for block in dirty.iter().filter(|block| !block.unpublished) {
            self.container.write_at(&block.bitmap, block.place.bitmap)?;
        }
        let unpublished = || dirty.iter().filter(|block| block.unpublished);
        let entries: Vec<_> = unpublished()
            .map(|block| (block.block, block.place.to_entry().expect("checked when it was allocated")))
            .collect();
        tables.bat.publish(&self.container, &entries)?;
        if let Some(at) = old_footer {
            self.container.write_at(&[0; FOOTER_SIZE.0 as usize], at)?;
        }
        // Blocks that an earlier flush has made full; those of this one have no durable BAT entry or bitmap yet.
        self.mark_batmap(tables, durable)?;
        self.container.sync()?;

        durable.full = dirty.iter().filter(|block| block.full).map(|block| block.block).collect();
        for block in unpublished() {
            if let Some(state) = self.mode.shard(block.block).get_mut(&block.block) {
                state.unpublished = false;
            }
        }
        Ok(())
    }

    /// Copies out the blocks that changed, sorted, and counts them as clean.
    fn take_dirty(&self, tables: &Tables) -> Vec<DirtyBlock> {
        let block_size = tables.header.block_size();
        let length = block_size.bitmap_size().0 as usize;
        let mut dirty = Vec::new();
        for shard in &self.mode.shards {
            for (&block, state) in locked(shard).iter_mut().filter(|(_, state)| state.dirty) {
                state.dirty = false;
                dirty.push(DirtyBlock {
                    block,
                    place: state.place,
                    bitmap: state.bitmap.to_bytes(length),
                    unpublished: state.unpublished,
                    full: u64::from(state.present) == block_size.sectors().0,
                });
            }
        }
        dirty.sort_unstable_by_key(|block| block.block);
        dirty
    }

    fn mark_batmap(&self, tables: &Tables, durable: &mut Durable) -> Result<(), WriteError> {
        let full = std::mem::take(&mut durable.full);
        let state = durable.batmap.get_or_insert_with(|| tables.batmap.clone());
        if let BatmapState::Present(batmap) = state
            && !full.is_empty()
        {
            batmap
                .mark_full(&self.container, &full, tables.bat.entries(), |block| self.is_full_on_disk(tables, block))?;
        }
        Ok(())
    }

    /// Makes a batmap anew that a crash has left with the checksum of another.
    ///
    /// # Errors
    /// A failed read, write or sync.
    ///
    /// # Crash safety
    /// Can be repeated.
    pub fn mend_batmap(&self) -> Result<(), WriteError> {
        let Some(tables) = &self.tables else { return Ok(()) };
        let mut durable = locked(&self.mode.flushing);
        let state = durable.batmap.get_or_insert_with(|| tables.batmap.clone());
        if let BatmapState::Present(batmap) = state
            && !batmap.is_intact(&self.container)?
        {
            let is_full = |block| self.is_full_on_disk(tables, block);
            batmap.mark_full(&self.container, &[], tables.bat.entries(), is_full)?;
            self.container.sync()?;
        }
        Ok(())
    }

    /// Forgets the batmap as changed by us, because the tables hold a newer one.
    pub(crate) fn forget_batmap(&self) {
        locked(&self.mode.flushing).batmap = None;
    }

    pub(super) fn is_full_on_disk(&self, tables: &Tables, block: BlockIndex) -> Result<bool, WriteError> {
        let place = match self.published_place(tables, block) {
            Ok(Some(place)) => place,
            Ok(None) | Err(ReadError::Block { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let sectors = tables.header.block_size().sectors().0 as u32;
        let bitmap = tables.read_bitmap(&self.container, place).map_err(ReadError::from)?;
        Ok(bitmap.count(0..sectors) == sectors)
    }
}
