//! Making an image's file as small as its content allows, in place.
//!
//! In this order: tables that do not lie before the first block get there; blocks that hold nothing, or only zeros that would show without them, leave the BAT; pages of the other
//! blocks that hold nothing but zeros become holes of the file; blocks move from the end of the file into the room that is
//! free further in front; the file ends after the last one. The content of the disk is the same at every moment.

mod plan;
mod survey;

use crate::block_size::{BlockPlace, BlockSize};
use crate::chain::Chain;
use crate::footer::FOOTER_SIZE;
use crate::image::{Image, OpenError, ReadError, Tables};
use crate::layout;
use crate::metadata::MetadataError;
use crate::storage::StorageError;
use crate::units::{BlockIndex, ByteCount, FileOffset};
use crate::write::{ReadWrite, WriteError};

use plan::{Packing, Placed};
use survey::{Content, Surveyor};

/// Blocks that are looked at, and taken out of the BAT, together.
const BATCH: u32 = 4096;
/// The most blocks whose places are remembered, in 32 MiB of memory; blocks of a file that has more are not moved.
const MOST_PLACES: usize = 4 << 20;

/// Why an image was not compacted, or not to the end.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// Its tables or blocks are damaged.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It, or what it is read through, cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It cannot be written.
    #[error(transparent)]
    Metadata(#[from] MetadataError),
    /// Content of a block would lie past the end of the file.
    #[error("{}: block {block} at offset {place} is cut short: there is room for blocks up to {room} only", path.display())]
    CutShort {
        /// The image.
        path: std::path::PathBuf,
        /// The block.
        block: BlockIndex,
        /// Where it is.
        place: FileOffset,
        /// Where the room ends.
        room: FileOffset,
    },
}

impl From<StorageError> for CompactError {
    fn from(error: StorageError) -> Self {
        Self::Read(error.into())
    }
}

impl From<WriteError> for CompactError {
    fn from(error: WriteError) -> Self {
        Self::Metadata(error.into())
    }
}

/// What compacting an image gives back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compaction {
    /// Blocks without any sector of the disk.
    pub empty_blocks: u32,
    /// Blocks that hold only zeros, and without which the disk reads zeros as well.
    pub zero_blocks: u32,
    /// Blocks beyond the end of the disk.
    pub blocks_beyond_end: u32,
    /// What the file system held of the blocks of these three kinds.
    pub released: ByteCount,
    /// What it held of pages that become holes, in blocks that stay.
    pub holes: ByteCount,
    /// Blocks that move.
    pub moved_blocks: u32,
    /// The length of the file afterwards.
    pub length: ByteCount,
}

impl Compaction {
    fn count(&mut self, content: &Content, space: ByteCount) {
        match content {
            Content::Nothing => self.empty_blocks += 1,
            Content::Zeros => self.zero_blocks += 1,
            Content::Data { .. } => return,
        }
        self.released += space;
    }
}

/// What is known of the blocks that stay.
struct Staying {
    /// `None` once there are too many.
    places: Option<Vec<Placed>>,
}

impl Staying {
    fn add(&mut self, block: BlockIndex, place: BlockPlace) {
        if self.places.as_ref().is_some_and(|places| places.len() == MOST_PLACES) {
            self.places = None;
        }
        let entry = place.to_entry().expect("it was an entry");
        self.places.iter_mut().for_each(|places| places.push(Placed { entry, block }));
    }
}

/// What is to be done about some blocks.
#[derive(Default)]
struct Batch {
    release: Vec<BlockIndex>,
    holes: Vec<std::ops::Range<FileOffset>>,
}

impl<Mode> Image<Mode> {
    /// Finds out what [`compact`](Image::compact) would do, and changes nothing. All data is read.
    ///
    /// `parents` is what the image is read through; `progress` is told as by that.
    ///
    /// # Errors
    /// Damaged tables or blocks; a failed read.
    pub fn compaction(
        &self,
        parents: Option<&Chain>,
        mut progress: impl FnMut(ByteCount),
    ) -> Result<Compaction, CompactError> {
        let length = self.container.len()?;
        let mut compaction = Compaction { length, ..Compaction::default() };
        let Some(tables) = &self.tables else { return Ok(compaction) };
        self.check_blocks()?;
        compaction.blocks_beyond_end = self.blocks_beyond_end(tables)?;
        let mut staying = Staying { places: Some(Vec::new()) };
        let mut surveyor = Surveyor::new(self, tables, parents, self.room_of(length));
        for first in (0..self.blocks()).step_by(BATCH as usize) {
            surveyor.batch(first, &mut compaction, &mut staying, &mut progress)?;
        }
        if self.container.has_fixed_size() {
            compaction.holes = ByteCount(0);
            return Ok(compaction);
        }
        let size = tables.header.block_size();
        let (places, tables_end) = self.places_once_laid_out(tables, staying.places.unwrap_or_default())?;
        let packing = Packing::plan(size, tables.spacing(), places, tables_end);
        compaction.moved_blocks = packing.moves.len() as u32;
        compaction.length = length.min(ByteCount(packing.end.0 + FOOTER_SIZE.0));
        Ok(compaction)
    }

    /// Tells where blocks and the end of the tables will be once the tables lie before all blocks.
    fn places_once_laid_out(
        &self,
        tables: &Tables,
        mut places: Vec<Placed>,
    ) -> Result<(Vec<Placed>, FileOffset), CompactError> {
        if self.is_laid_out()? {
            return Ok((places, layout::end_of_tables(tables)));
        }
        let (size, tables_end) = (tables.header.block_size(), self.tables_end_once_laid_out(tables));
        let mut end = places.iter().map(|placed| BlockPlace::from_entry(placed.entry, size).data + size.bytes()).max();
        for placed in &mut places {
            if !tables.spacing().allows(BlockPlace::from_entry(placed.entry, size), tables_end) {
                let to = layout::place_from(end.unwrap_or_default(), end, size);
                placed.entry = to.to_entry().unwrap_or(placed.entry);
                end = Some(to.data + size.bytes());
            }
        }
        Ok((places, tables_end))
    }

    /// Where the part of a file of this length ends that may hold blocks.
    fn room_of(&self, length: ByteCount) -> FileOffset {
        use crate::image::FooterOrigin::{End, End511, Start};
        match self.origin {
            End => FileOffset(length.0 - FOOTER_SIZE.0),
            End511 => FileOffset(length.0 - (FOOTER_SIZE.0 - 1)),
            Start => FileOffset(length.0),
        }
    }
}

impl Image<ReadWrite> {
    /// Gives back all space of the file that the content of the disk does not need, and tells what that was. After each
    /// portion `progress` is told how far into the disk it was.
    ///
    /// `parents` is what the image is read through. Blocks of a differencing image that hold only zeros stay if it is not
    /// given, or shows something else there. Fixed images stay as they are; on a device, which does not become shorter,
    /// only blocks leave the BAT. Nobody else may have the image, or one that is read through it, open.
    ///
    /// # Errors
    /// Damaged tables or blocks; a failed read, write, change of length or sync.
    ///
    /// # Crash safety
    /// The disk reads the same at every moment. A block is durably out of the BAT before its space is given back, and a copy
    /// of one that moves is durable before the BAT names it, and the BAT before the old place counts as free; many moves
    /// share these two syncs. The copy of the footer at the start speaks for the image while the file has none at its
    /// end. What is not done is done by calling this again; of the batmap, see [`mend_batmap`](Self::mend_batmap).
    pub fn compact(
        &mut self,
        parents: Option<&Chain>,
        mut progress: impl FnMut(ByteCount),
    ) -> Result<Compaction, CompactError> {
        self.check_can_grow()?;
        self.flush()?;
        let mut compaction = Compaction { length: self.container.len()?, ..Compaction::default() };
        if self.tables.is_none() {
            return Ok(compaction);
        }
        // What others have written may not be durable yet, and all that follows rests on it.
        self.commit(|image| {
            image.container.sync()?;
            image.mend_copy()
        })?;
        self.mend_batmap()?;
        compaction.blocks_beyond_end = self.drop_leftovers()?;
        self.lay_out()?;
        let on_device = self.container.has_fixed_size();
        let mut staying = Staying { places: (!on_device).then(Vec::new) };
        let mut can_punch = !on_device;
        for first in (0..self.blocks()).step_by(BATCH as usize) {
            let tables = self.tables.as_ref().expect("only called with tables");
            let before = compaction.holes;
            let mut surveyor = Surveyor::new(self, tables, parents, self.room());
            let batch = surveyor.batch(first, &mut compaction, &mut staying, &mut progress)?;
            can_punch = can_punch && self.punch(&batch.holes).inspect_err(|_| self.fail())?;
            if !can_punch {
                compaction.holes = before;
            }
            self.release(&batch.release)?;
        }
        if let Some(places) = staying.places {
            compaction.moved_blocks = self.move_blocks(places)?;
        }
        self.trim_tail()?;
        compaction.length = self.container.len()?;
        Ok(compaction)
    }

    /// Makes holes; tells whether the file system can.
    fn punch(&self, holes: &[std::ops::Range<FileOffset>]) -> Result<bool, StorageError> {
        for hole in holes {
            if !self.container.punch_hole(hole.start, hole.end - hole.start)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn move_blocks(&self, places: Vec<Placed>) -> Result<u32, WriteError> {
        let tables = self.tables.as_ref().expect("only called with tables");
        let size: BlockSize = tables.header.block_size();
        let packing = Packing::plan(size, tables.spacing(), places, layout::end_of_tables(tables));
        self.carry_out(tables, &packing.moves).inspect_err(|_| self.fail())?;
        Ok(packing.moves.len() as u32)
    }
}
