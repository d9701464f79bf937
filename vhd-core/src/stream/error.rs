//! Why an image cannot be streamed, or a stream is no image.

use std::io;

use crate::block_size::BlockSize;
use crate::footer::{FooterError, MAX_VIRTUAL_SIZE};
use crate::header::HeaderError;
use crate::units::{BlockIndex, ByteCount, FileOffset, Sector};

/// Why an image cannot be laid out.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// A disk of this size cannot be.
    #[error("a disk cannot have {size} bytes: at least 512 and at most {MAX_VIRTUAL_SIZE}, in whole sectors")]
    Size {
        /// What was asked for.
        size: ByteCount,
    },
    /// A fixed image is its disk and a footer: there is nothing to lay out.
    #[error("a fixed image has no blocks")]
    Fixed,
    /// A block beyond the disk, or one that does not come after the one before.
    #[error("block {block} is not on the disk, or not in order")]
    Order {
        /// The block.
        block: BlockIndex,
    },
    /// The file would be longer than BAT entries reach.
    #[error("{blocks} blocks of {block_size} bytes reach past the 2 TiB of a BAT entry")]
    Reach {
        /// How many blocks there are.
        blocks: usize,
        /// The size of a block.
        block_size: BlockSize,
    },
}

/// Why a stream cannot be read as an image.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The stream cannot be read.
    #[error("cannot read the stream at offset {at}")]
    Read {
        /// How far it was read.
        at: FileOffset,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The stream ends too soon.
    #[error("the stream ends at offset {at}, within the {part}")]
    Short {
        /// Where it ends.
        at: FileOffset,
        /// What it should have held there.
        part: &'static str,
    },
    /// It starts with neither a footer nor, 512 bytes on, a header.
    #[error("the stream is no VHD: it starts with no footer")]
    Start(#[source] FooterError),
    /// The header is damaged.
    #[error("bad header at offset {at} of the stream")]
    Header {
        /// Where it is.
        at: FileOffset,
        /// What is wrong with it.
        #[source]
        source: HeaderError,
    },
    /// There is no footer where the stream ends.
    #[error("no footer at the end of the stream, at offset {at}")]
    End {
        /// Where it should be.
        at: FileOffset,
        /// What is wrong with what is there.
        #[source]
        source: FooterError,
    },
    /// The parts of the image contradict each other.
    #[error("the stream is damaged, or cannot be read front to back")]
    Damaged(#[from] StreamFault),
}

/// What the parts of a streamed image contradict each other in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamFault {
    /// What has gone by cannot be read again.
    #[error("the {part} is at offset {offset}, before what was read already, up to {at}")]
    Behind {
        /// What.
        part: &'static str,
        /// Where it is said to be.
        offset: FileOffset,
        /// How far the stream was read.
        at: FileOffset,
    },
    /// The BAT puts a block over something else.
    #[error("the BAT puts block {block} at offset {place}, over what ends at {end}")]
    Overlap {
        /// The block.
        block: BlockIndex,
        /// Where it is said to be.
        place: FileOffset,
        /// Where that ends which comes before it.
        end: FileOffset,
    },
    /// A block ends behind the stream's end.
    #[error("the {part} ends at offset {end}, but the stream has {length} bytes")]
    Beyond {
        /// What.
        part: &'static str,
        /// Where it ends.
        end: FileOffset,
        /// The length of the stream.
        length: ByteCount,
    },
    /// The disk has more blocks than the BAT has entries.
    #[error("the disk has {blocks} blocks, but the BAT only {entries} entries")]
    ShortBat {
        /// Blocks of the disk.
        blocks: u64,
        /// Entries of the table.
        entries: u32,
    },
    /// More blocks than are kept in memory.
    #[error("more than {limit} blocks are allocated")]
    TooManyBlocks {
        /// How many are kept.
        limit: usize,
    },
    /// The footers at the start and at the end are those of two disks.
    #[error("the footer at the end is that of another disk than the one at the start")]
    Footers,
    /// A sector that lies beyond the end of the disk.
    #[error("sector {sector} holds data, but lies beyond the end of the disk")]
    PastEnd {
        /// The sector.
        sector: Sector,
    },
    /// A fixed image and the length that its footer gives.
    #[error("the footer gives the fixed disk {size} bytes, but {found} came before it")]
    FixedSize {
        /// What the footer says.
        size: ByteCount,
        /// What there was.
        found: ByteCount,
    },
    /// A journaled resize of blktap's has not ended.
    #[error("a resize of the image was interrupted (footer says \"v_poison\")")]
    UnfinishedResize,
}
