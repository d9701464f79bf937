//! The tables of a dynamic or differencing image, and what can lie where in its file.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::bat::{self, Bat};
use crate::batmap::BatmapState;
use crate::bitmap::{Bitmap, WORD_BITS};
use crate::block_size::BlockPlace;
use crate::footer::FOOTER_SIZE;
use crate::header::{HEADER_SIZE, Header};
use crate::layout::Spacing;
use crate::resolve::BlockBits;
use crate::storage::{Container, StorageError};
use crate::units::{ByteCount, FileOffset, SectorRange};

/// A part of the file that holds no blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// What it is.
    pub name: &'static str,
    /// Where.
    pub range: Range<FileOffset>,
}

/// Why a block cannot be where the BAT puts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockFault {
    /// Its data would start at or past the end of the file.
    BeyondEnd {
        /// The file's length.
        len: ByteCount,
    },
    /// Sectors that it holds would lie where the file's footer is, or past the end of the file.
    CutShort {
        /// Where the last of them would end.
        end: FileOffset,
        /// Where the footer or, without one, the end of the file is.
        room: FileOffset,
    },
    /// It would lie over something else.
    Over {
        /// What.
        region: &'static str,
    },
}

impl fmt::Display for BlockFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BeyondEnd { len } => write!(f, "the file ends at {len}"),
            Self::CutShort { end, room } => {
                write!(f, "what it holds would end at {end}, and the file has room for blocks up to {room} only")
            }
            Self::Over { region } => write!(f, "the {region} is there"),
        }
    }
}

/// Header, BAT and batmap.
#[derive(Debug)]
pub(crate) struct Tables {
    pub(crate) header_at: FileOffset,
    pub(crate) header: Header,
    pub(crate) bat: Bat,
    pub(crate) batmap: BatmapState,
    /// The file's length as far as blocks may lie: as opened, and then as grown by us.
    file_len: AtomicU64,
}

impl Tables {
    pub(crate) fn new(header_at: FileOffset, header: Header, batmap: BatmapState, file_len: ByteCount) -> Self {
        let bat = Bat::new(header.table_offset(), header.max_table_entries());
        Self { header_at, header, bat, batmap, file_len: AtomicU64::new(file_len.0) }
    }

    /// The file's length as far as blocks may lie.
    pub(crate) fn file_len(&self) -> ByteCount {
        ByteCount(self.file_len.load(Ordering::Acquire))
    }

    /// Notes that the file has grown.
    pub(crate) fn set_file_len(&self, len: ByteCount) {
        self.file_len.store(len.0, Ordering::Release);
    }

    /// Lists the parts of the file that no block may lie over.
    pub(crate) fn regions(&self) -> impl Iterator<Item = Region> + '_ {
        let region = |name, start: FileOffset, length: ByteCount| Region { name, range: start..start + length };
        let table = self.header.table_offset();
        let fixed = [
            region("copy of the footer", FileOffset(0), FOOTER_SIZE),
            region("header", self.header_at, HEADER_SIZE),
            region("BAT", table, bat::table_size(self.bat.entries())),
        ];
        let batmap = match &self.batmap {
            BatmapState::Present(batmap) => Some(Region { name: "batmap", range: batmap.region() }),
            BatmapState::Absent | BatmapState::Overwritten => None,
        };
        fixed.into_iter().chain(batmap)
    }

    /// Lists all that no new block may lie over: the tables, and the texts of locators.
    pub(crate) fn taken(&self) -> impl Iterator<Item = Range<FileOffset>> + '_ {
        let locators = self.header.locators();
        let texts = locators.filter_map(|(_, entry)| Some(entry.offset..entry.end_within(self.file_len())?));
        self.regions().map(|region| region.range).chain(texts)
    }

    /// How far blocks must lie from what is before them.
    pub(crate) fn spacing(&self) -> Spacing {
        if self.batmap == BatmapState::Absent { Spacing::NONE } else { Spacing::OF_TAPDISK }
    }

    /// Tells why a block cannot be at `place`.
    pub(crate) fn fault_of(&self, place: BlockPlace) -> Option<BlockFault> {
        let len = self.file_len();
        if place.data.0 >= len.0 {
            return Some(BlockFault::BeyondEnd { len });
        }
        let end = place.data + self.header.block_size().bytes();
        self.regions()
            .find(|region| place.bitmap < region.range.end && region.range.start < end)
            .map(|region| BlockFault::Over { region: region.name })
    }

    /// Reads a block's whole bitmap.
    pub(crate) fn read_bitmap(&self, container: &Container, place: BlockPlace) -> Result<Bitmap, StorageError> {
        let mut bytes = vec![0; self.header.block_size().bitmap_size().0 as usize];
        container.read_at(&mut bytes, place.bitmap)?;
        Ok(Bitmap::from_bytes(&bytes))
    }

    /// Reads the bits of `sectors`, which lie in the one block at `place`.
    pub(crate) fn read_bits(
        &self,
        container: &Container,
        sectors: SectorRange,
        place: BlockPlace,
    ) -> Result<BlockBits<'static>, StorageError> {
        let word = u64::from(WORD_BITS);
        let first_in_block = sectors.start.0 % self.header.block_size().sectors().0;
        let first_bit = first_in_block / word * word;
        let end_bit = (first_in_block + sectors.count().0).next_multiple_of(word);
        let mut bytes = vec![0; ((end_bit - first_bit) / 8) as usize];
        container.read_at(&mut bytes, place.bitmap + ByteCount(first_bit / 8))?;
        Ok(BlockBits { bits: Cow::Owned(Bitmap::from_bytes(&bytes)), first_bit: first_bit as u32 })
    }
}
