//! The batmap, which the bitmaps can always make anew.

use super::{Plan, RepairError};
use crate::batmap::{self, BATMAP_HEADER_SIZE, Batmap, BatmapState};
use crate::block_size::BlockPlace;
use crate::image::{Image, ReadOnly, Tables};
use crate::units::{ByteCount, FileOffset};

impl Plan<'_> {
    /// Makes a batmap anew that is lost, has a wrong checksum, or bits that the bitmaps do not bear out.
    ///
    /// A lost one goes where it should be, where that is free; else blocks make room for it.
    pub(super) fn mend_batmap(&mut self) -> Result<(), RepairError> {
        let image = self.open()?;
        let Some(tables) = &image.tables else { return Ok(()) };
        match &tables.batmap {
            BatmapState::Absent => Ok(()),
            BatmapState::Present(found) => {
                let code = if !found.is_intact(&self.container)? {
                    "batmap-checksum"
                } else if let Some(code) = self.wrong_bit(&image, found)? {
                    code
                } else {
                    return Ok(());
                };
                self.fill(tables, found.as_ref().clone())?;
                self.note(code, "the batmap is made anew from the bitmaps");
                Ok(())
            }
            BatmapState::Overwritten => self.replace_batmap(tables),
        }
    }

    fn replace_batmap(&mut self, tables: &Tables) -> Result<(), RepairError> {
        let salvaged = match self.salvaged.take() {
            Some(batmap) => Some(*batmap),
            None => Batmap::salvage(&self.container, &tables.header)?,
        };
        let header_at = batmap::header_offset(&tables.header);
        let entries = tables.bat.entries();
        let make = |at| match &salvaged {
            Some(old) => old.moved(at, entries),
            None => Batmap::new(at, entries),
        };
        let length = BATMAP_HEADER_SIZE + batmap::map_size(entries);
        let is_free = self.is_free(tables, header_at, length)?;
        let place = if is_free {
            self.fill(tables, make(header_at))?;
            header_at
        } else {
            let mut writable = Image::writable_from_container(self.container.clone())?;
            writable.arrange_entries(entries)?;
            writable.close()?;
            let moved = self.open()?;
            let Some(tables) = &moved.tables else { return Ok(()) };
            let place = batmap::header_offset(&tables.header);
            self.fill(tables, make(place))?;
            place
        };
        let at = if is_free { "" } else { ", for which blocks have made room" };
        let kept = if salvaged.is_some() { "" } else { "; a marker and a key's hash that were in it are lost" };
        self.note("batmap-lost", format!("a batmap made from the bitmaps is written at offset {place}{at}{kept}"));
        Ok(())
    }

    /// Writes a batmap with the bits that the bitmaps bear out.
    fn fill(&self, tables: &Tables, mut batmap: Batmap) -> Result<(), RepairError> {
        let mut allocated = tables.bat.allocated(&self.container, tables.bat.entries()).peekable();
        batmap.make_anew(&self.container, tables.bat.entries(), |block| {
            // Blocks are asked for in order.
            match allocated.next_if(|found| found.as_ref().map_or(true, |(next, _)| *next == block)) {
                Some(found) => self.is_full(tables, found?.1),
                None => Ok(false),
            }
        })
    }

    fn is_full(&self, tables: &Tables, entry: u32) -> Result<bool, RepairError> {
        let size = tables.header.block_size();
        let place = BlockPlace::from_entry(entry, size);
        if tables.fault_of(place).is_some() {
            return Ok(false);
        }
        let sectors = size.sectors().0 as u32;
        Ok(tables.read_bitmap(&self.container, place)?.count(0..sectors) == sectors)
    }

    /// The code of the first bit that is set and should not be.
    fn wrong_bit(&self, image: &Image<ReadOnly>, batmap: &Batmap) -> Result<Option<&'static str>, RepairError> {
        let Some(tables) = &image.tables else { return Ok(None) };
        let (mut wrong, mut failed) = (None, None);
        batmap.for_each(&self.container, image.blocks(), |block, bit| {
            if !bit || wrong.is_some() || failed.is_some() {
                return;
            }
            match tables.bat.entry(&self.container, block) {
                Ok(None) => wrong = Some("batmap-stale"),
                Ok(Some(entry)) => match self.is_full(tables, entry) {
                    Ok(full) => wrong = (!full).then_some("batmap-wrong"),
                    Err(error) => failed = Some(error),
                },
                Err(error) => failed = Some(error.into()),
            }
        })?;
        failed.map_or(Ok(wrong), Err)
    }

    /// Tells whether `length` bytes at `at` belong to no block, table or locator.
    fn is_free(&self, tables: &Tables, at: FileOffset, length: ByteCount) -> Result<bool, RepairError> {
        let end = at + length;
        let over = |start: FileOffset, length: ByteCount| start < end && at.0 < start.0.saturating_add(length.0);
        let size = tables.header.block_size();
        for found in tables.bat.allocated(&self.container, tables.bat.entries()) {
            let place = BlockPlace::from_entry(found?.1, size);
            if over(place.bitmap, size.stride()) {
                return Ok(false);
            }
        }
        let regions = tables.regions().map(|region| (region.range.start, region.range.end - region.range.start));
        let locators = tables.header.locators().map(|(_, entry)| (entry.offset, entry.space.max(entry.length)));
        Ok(!regions.chain(locators).any(|(start, length)| over(start, length)))
    }
}
