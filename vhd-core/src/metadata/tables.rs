//! Giving the tables of an image more room, or the place that they should have: before the first block.
//!
//! ```text
//!   before     copy | header | BAT | batmap | locators | A | B | C | footer
//!   blocks     copy | header | BAT | batmap | locators | . | B | C | A'                             the BAT names A'
//!   detour     copy | header | BAT | batmap | locators | . | B | C | A' | header' BAT' …' | footer  which names header'
//!   front      copy | header″ BAT″ batmap″ locators″     . | B | C | A' | header' BAT' …' | footer
//!   after      copy | header″ BAT″ batmap″ locators″     . | B | C | A' | footer                    which names header″
//! ```
//!
//! The footer says where the header is, and it is one sector: so one write decides which set of tables counts, and the
//! other set is written while nothing points to it.

use super::{MetadataError, ParentLink};
use crate::bat;
use crate::batmap::{Batmap, BatmapState};
use crate::block_size::BlockPlace;
use crate::footer::DiskType;
use crate::header::{Header, LOCATOR_ENTRIES};
use crate::image::{Image, Tables};
use crate::layout::{self, HEADER_AT, TablePlaces};
use crate::locator::{LocatorEntry, MAX_LOCATOR_LENGTH, PlatformCode};
use crate::moves::Move;
use crate::storage::StorageError;
use crate::units::{BlockIndex, ByteCount, FileOffset, SECTOR_SIZE};
use crate::write::{ReadWrite, WriteError};

/// A locator with its text, wherever that goes.
struct NewLocator {
    entry: LocatorEntry,
    /// Whole sectors.
    text: Vec<u8>,
}

/// What becomes of the tables.
struct Arrangement<'a> {
    /// Entries of the BAT, no fewer than there are.
    entries: u32,
    /// Another parent, or the first one.
    parent: Option<&'a ParentLink>,
    /// By their slot in the header. An entry whose text cannot be read stays as it is.
    locators: [Option<NewLocator>; LOCATOR_ENTRIES],
}

impl Arrangement<'_> {
    fn locator_room(&self) -> ByteCount {
        ByteCount(self.locators.iter().flatten().map(|locator| locator.text.len() as u64).sum())
    }

    fn places(&self, header: FileOffset, with_batmap: bool) -> TablePlaces {
        TablePlaces::from(header, self.entries, with_batmap, self.locator_room())
    }
}

fn padded(text: &[u8], room: ByteCount) -> Vec<u8> {
    let mut padded = text.to_vec();
    padded.resize(room.0 as usize, 0);
    padded
}

/// The room that a locator gets when the tables are laid out anew; none where its text does not lie within the file.
fn room_of(tables: &Tables, entry: LocatorEntry) -> ByteCount {
    if entry.length > MAX_LOCATOR_LENGTH || entry.end_within(tables.file_len()).is_none() {
        return ByteCount(0);
    }
    // Some claim more room than anybody needs, or less than their text.
    let is_sound = entry.space >= entry.length && entry.space <= MAX_LOCATOR_LENGTH;
    let room = if is_sound { entry.space } else { entry.length };
    ByteCount(room.0.next_multiple_of(SECTOR_SIZE))
}

impl<Mode> Image<Mode> {
    /// Tells whether all tables and locators lie before the first block, as other programs take for granted: see
    /// [`Kind`](crate::check::Kind) `tables-behind-blocks`. A fixed image has none.
    ///
    /// # Errors
    /// A BAT that cannot be read.
    pub fn is_laid_out(&self) -> Result<bool, StorageError> {
        let Some(tables) = &self.tables else { return Ok(true) };
        let mut misplaced = self.misplaced(tables, layout::end_of_tables(tables));
        Ok(tables.header_at == HEADER_AT && misplaced.next().transpose()?.is_none())
    }

    /// Where the tables will end once they lie before the first block.
    pub(crate) fn tables_end_once_laid_out(&self, tables: &Tables) -> FileOffset {
        self.tables_end_for(tables, tables.bat.entries())
    }

    /// Where the tables end if they are laid out for a BAT of `entries`.
    pub(crate) fn tables_end_for(&self, tables: &Tables, entries: u32) -> FileOffset {
        let room = tables.header.locators().map(|(_, entry)| room_of(tables, entry).0).sum();
        TablePlaces::from(HEADER_AT, entries, tables.batmap != BatmapState::Absent, ByteCount(room)).end
    }

    /// Lists the blocks, beyond the end of the disk too, that lie where none may if the tables end at `end`. Entries that
    /// place no block are left out.
    pub(crate) fn misplaced<'a>(
        &'a self,
        tables: &'a Tables,
        end: FileOffset,
    ) -> impl Iterator<Item = Result<(BlockIndex, BlockPlace), StorageError>> + 'a {
        let size = tables.header.block_size();
        tables.bat.allocated(&self.container, tables.bat.entries()).filter_map(move |found| match found {
            Ok((block, entry)) => {
                let place = BlockPlace::from_entry(entry, size);
                let is_block = tables.fault_of(place).is_none();
                (is_block && !tables.spacing().allows(place, end)).then_some(Ok((block, place)))
            }
            Err(error) => Some(Err(error)),
        })
    }
}

impl Image<ReadWrite> {
    /// Brings all tables and locators before the first block, where they are not: blocks that are in the way move to the end
    /// of the file. Nobody else may have the image open. Tells whether something was to be done.
    ///
    /// # Errors
    /// No space for the blocks and a second set of tables; a failed read, write or sync.
    ///
    /// # Crash safety
    /// The disk reads the same at every moment. A copy of a block is durable before the BAT names it, and a whole set of
    /// tables before the footer, one sector, names that. What is left to do is done by calling this again.
    pub fn lay_out(&mut self) -> Result<bool, MetadataError> {
        self.flush()?;
        if self.is_laid_out()? {
            return Ok(false);
        }
        self.check_can_grow()?;
        let entries = self.tables.as_ref().map_or(0, |tables| tables.bat.entries());
        self.commit(|image| image.arrange_entries(entries))?;
        Ok(true)
    }

    /// Makes room for a BAT of `entries`, no fewer than it has.
    pub(crate) fn arrange_entries(&mut self, entries: u32) -> Result<(), MetadataError> {
        let tables = self.tables.as_ref().expect("only called with tables");
        let mut locators = [const { None }; LOCATOR_ENTRIES];
        for (slot, entry) in tables.header.locators() {
            locators[slot] = self.read_locator(tables, entry)?;
        }
        self.arrange(&Arrangement { entries, parent: None, locators })
    }

    /// Makes room for the locators of a parent and names it, as [`lay_out`](Self::lay_out) does. `record` is told the
    /// header that the image gets.
    pub(crate) fn arrange_for_parent<E: From<MetadataError>>(
        &mut self,
        parent: &ParentLink,
        record: impl FnOnce(&super::HeaderChange) -> Result<(), E>,
    ) -> Result<(), E> {
        self.check_can_grow().map_err(MetadataError::from)?;
        let arrangement = self.arrangement_for_parent(parent).map_err(MetadataError::from)?;
        let tables = self.tables.as_ref().expect("only called with tables");
        let places = arrangement.places(HEADER_AT, tables.batmap != BatmapState::Absent);
        let mut old = [0; crate::header::HEADER_SIZE.0 as usize];
        self.container.read_at(&mut old, HEADER_AT).map_err(MetadataError::from)?;
        let new = self.header_for(&tables.header, &places, &arrangement).to_bytes();
        record(&super::HeaderChange { at: HEADER_AT, old, new, texts: Vec::new() })?;
        Ok(self.commit(|image| image.arrange(&arrangement))?)
    }

    fn arrangement_for_parent<'a>(&self, parent: &'a ParentLink) -> Result<Arrangement<'a>, StorageError> {
        let tables = self.tables.as_ref().expect("only called with tables");
        let written = parent.locators().iter().map(|(code, text)| {
            let entry = LocatorEntry::new(*code, ByteCount(text.len() as u64), FileOffset(0));
            Ok(Some(NewLocator { entry, text: padded(text, entry.space) }))
        });
        let kept = tables.header.locators().filter(|(_, entry)| matches!(entry.code, PlatformCode::Other(_)));
        let kept = kept.map(|(_, entry)| self.read_locator(tables, entry));
        let mut locators = [const { None }; LOCATOR_ENTRIES];
        for (slot, locator) in locators.iter_mut().zip(written.chain(kept)) {
            *slot = locator?;
        }
        Ok(Arrangement { entries: tables.bat.entries(), parent: Some(parent), locators })
    }

    /// Reads the text of a locator; `None` for one that gets no room.
    fn read_locator(&self, tables: &Tables, entry: LocatorEntry) -> Result<Option<NewLocator>, StorageError> {
        let room = room_of(tables, entry);
        if room.0 == 0 {
            return Ok(None);
        }
        let mut text = vec![0; entry.length.0 as usize];
        self.container.read_at(&mut text, entry.offset)?;
        let keeps_space = entry.space.0.next_multiple_of(SECTOR_SIZE) == room.0;
        let entry = if keeps_space { entry } else { LocatorEntry::new(entry.code, entry.length, entry.offset) };
        Ok(Some(NewLocator { entry, text: padded(&text, room) }))
    }

    fn arrange(&mut self, wanted: &Arrangement<'_>) -> Result<(), MetadataError> {
        // What others have written may not be durable yet, and the copy speaks for a file without a footer at its end.
        self.container.sync()?;
        self.mend_copy()?;
        let tables = self.tables.as_ref().expect("only called with tables");
        let with_batmap = tables.batmap != BatmapState::Absent;
        let front = wanted.places(HEADER_AT, with_batmap);
        let moved = self.clear_the_way(tables, front.end)?;
        let at = self.allocate_bytes(front.length())?;
        let detour = wanted.places(at, with_batmap);
        let copies = self.write_tables(tables, &detour, wanted)?;
        self.container.sync()?;
        let mut footer = self.footer.clone();
        if wanted.parent.is_some() {
            footer.set_disk_type(DiskType::Differencing);
        }
        footer.set_header_offset(at);
        self.rewrite_footers(footer)?;

        let tables = self.write_tables(&copies, &front, wanted)?;
        self.container.sync()?;
        let mut footer = self.footer.clone();
        footer.set_header_offset(HEADER_AT);
        self.rewrite_footers(footer)?;
        let size = tables.header.block_size();
        self.tables = Some(tables);
        self.forget_batmap();
        for Move { from, .. } in moved {
            let (start, end) = (from.bitmap.max(front.end), from.data + size.bytes());
            if start < end {
                self.container.zero_range(start, end - start)?;
            }
        }
        Ok(self.end_after_blocks()?)
    }

    /// Moves blocks to the end of the file that lie where none may if the tables end at `end`.
    fn clear_the_way(&self, tables: &Tables, end: FileOffset) -> Result<Vec<Move>, WriteError> {
        let misplaced = self.misplaced(tables, end).collect::<Result<Vec<_>, _>>()?;
        let blocks: Vec<BlockIndex> = misplaced.iter().map(|(block, _)| *block).collect();
        let places = self.allocate(tables, &blocks)?;
        let move_to = |((block, from), to): ((BlockIndex, BlockPlace), BlockPlace)| Move { block, from, to };
        let moves: Vec<Move> = misplaced.into_iter().zip(places).map(move_to).collect();
        self.carry_out(tables, &moves)?;
        Ok(moves)
    }

    /// Writes BAT, batmap, locators and header to places that nothing refers to, with what `tables` hold. Not synced.
    fn write_tables(
        &self,
        tables: &Tables,
        places: &TablePlaces,
        wanted: &Arrangement<'_>,
    ) -> Result<Tables, MetadataError> {
        self.copy_bat(tables, places.bat, wanted.entries)?;
        let batmap = self.copy_batmap(tables, places.batmap, wanted.entries)?;
        let header = self.header_for(&tables.header, places, wanted);
        let mut at = places.locators;
        for locator in wanted.locators.iter().flatten() {
            self.container.write_at(&locator.text, at)?;
            at = at + ByteCount(locator.text.len() as u64);
        }
        self.container.write_at(&header.to_bytes(), places.header)?;
        Ok(Tables::new(places.header, header, batmap, self.container.len()?))
    }

    /// Makes the header for tables at `places`.
    fn header_for(&self, present: &Header, places: &TablePlaces, wanted: &Arrangement<'_>) -> Header {
        let mut header = present.clone();
        let mut entries = [None; LOCATOR_ENTRIES];
        if wanted.parent.is_none() {
            header.locators().for_each(|(slot, entry)| entries[slot] = Some(entry));
        }
        let mut at = places.locators;
        for (slot, locator) in entries.iter_mut().zip(&wanted.locators) {
            if let Some(NewLocator { entry, text }) = locator {
                *slot = Some(entry.moved(at));
                at = at + ByteCount(text.len() as u64);
            }
        }
        header.set_table(places.bat, wanted.entries);
        match wanted.parent {
            Some(parent) => header.set_parent(parent.record(), &entries),
            None => header.set_locators(&entries),
        }
        header
    }

    fn copy_bat(&self, tables: &Tables, at: FileOffset, entries: u32) -> Result<(), StorageError> {
        const STEP: u32 = 64 * 1024;
        let mut old = tables.bat.allocated(&self.container, tables.bat.entries()).peekable();
        for first in (0..entries).step_by(STEP as usize) {
            let count = (entries - first).min(STEP);
            let mut step = vec![crate::format::UNALLOCATED; count as usize];
            while let Some(found) =
                old.next_if(|found| found.as_ref().map_or(true, |(block, _)| block.0 < first + count))
            {
                let (block, entry) = found?;
                step[(block.0 - first) as usize] = entry;
            }
            self.container.write_at(&bat::encode(&step), at + ByteCount(u64::from(first) * 4))?;
        }
        Ok(())
    }

    fn copy_batmap(&self, tables: &Tables, at: FileOffset, entries: u32) -> Result<BatmapState, WriteError> {
        if tables.batmap == BatmapState::Absent {
            return Ok(BatmapState::Absent);
        }
        // The one in memory may have the checksum of before the last flush.
        let (mut batmap, full) = match BatmapState::read(&self.container, &tables.header, self.container.len()?)? {
            BatmapState::Absent | BatmapState::Overwritten => (Batmap::new(at, entries), Vec::new()),
            BatmapState::Present(old) => {
                let mut full: Vec<BlockIndex> = Vec::new();
                // Clear bits are always right: readers then look at the bitmaps.
                if old.is_intact(&self.container)? {
                    old.for_each(&self.container, tables.bat.entries(), |block, bit| {
                        full.extend(bit.then_some(block));
                    })?;
                }
                (old.moved(at, entries), full)
            }
        };
        self.container.zero_range(batmap.map_offset(), batmap.map_size())?;
        batmap.mark_full(&self.container, &full, entries, |_| Ok::<_, WriteError>(false))?;
        Ok(BatmapState::Present(Box::new(batmap)))
    }
}
