//! The dynamic header: where the BAT is, how large blocks are, and who the parent is.

use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use crate::block_size::BlockSize;
use crate::footer::Timestamp;
use crate::format::{self, RawHeader, RawLocator};
use crate::locator::LocatorEntry;
use crate::units::{ByteCount, FileOffset};

/// Bytes of a header.
pub const HEADER_SIZE: ByteCount = ByteCount(1024);
/// Locator entries in a header.
pub(crate) const LOCATOR_ENTRIES: usize = 8;

/// Why bytes are not a header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The first eight bytes are something else.
    #[error("no header here: found cookie {found:02x?}, expected \"cxsparse\"")]
    Cookie {
        /// What is there.
        found: [u8; 8],
    },
    /// The bytes have changed since the checksum was made.
    #[error("header checksum is {found:#010x}, expected {expected:#010x}")]
    Checksum {
        /// What is stored.
        found: u32,
        /// What the bytes add up to.
        expected: u32,
    },
    /// A format from the future.
    #[error("header version is {found:#010x}, expected 0x0001xxxx")]
    Version {
        /// What is stored.
        found: u32,
    },
    /// A block size that cannot be.
    #[error("block size is {found} bytes, expected a power of two from 4 KiB to 256 MiB")]
    BlockSize {
        /// What is stored.
        found: u32,
    },
}

/// A header whose checksum and block size have been verified; bytes that we give no meaning to are kept.
///
/// Source: Microsoft VHD specification, "Dynamic Disk Header Format".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    raw: RawHeader,
    block_size: BlockSize,
}

impl TryFrom<&[u8; HEADER_SIZE.0 as usize]> for Header {
    type Error = HeaderError;

    fn try_from(bytes: &[u8; HEADER_SIZE.0 as usize]) -> Result<Self, HeaderError> {
        let raw = RawHeader::read_from_bytes(bytes).expect("the sizes are equal");
        if raw.cookie != format::HEADER_COOKIE {
            return Err(HeaderError::Cookie { found: raw.cookie });
        }
        let expected = format::checksum(bytes, raw.checksum);
        if raw.checksum != expected {
            return Err(HeaderError::Checksum { found: raw.checksum.get(), expected });
        }
        if raw.version.get() >> 16 != format::FORMAT_VERSION >> 16 {
            return Err(HeaderError::Version { found: raw.version.get() });
        }
        let block_size = BlockSize::new(raw.block_size.get());
        let block_size = block_size.ok_or(HeaderError::BlockSize { found: raw.block_size.get() })?;
        Ok(Self { raw, block_size })
    }
}

/// What a differencing image records of its parent.
#[derive(Default, Clone, Debug, PartialEq, Eq)]
pub(crate) struct ParentRecord {
    /// The parent's unique id; nil for a raw parent.
    pub(crate) unique_id: Uuid,
    /// The time of the parent's last change.
    pub(crate) timestamp: Timestamp,
    /// The parent's file name, without folders.
    pub(crate) name: String,
}

impl Header {
    /// Makes the header of a new image.
    pub(crate) fn new(table_offset: FileOffset, max_table_entries: u32, block_size: BlockSize) -> Self {
        let raw = RawHeader {
            cookie: format::HEADER_COOKIE,
            data_offset: format::NO_OFFSET.into(),
            table_offset: table_offset.0.into(),
            version: format::FORMAT_VERSION.into(),
            max_table_entries: max_table_entries.into(),
            block_size: block_size.get().into(),
            checksum: 0.into(),
            parent_unique_id: [0; 16],
            parent_timestamp: 0.into(),
            reserved: 0.into(),
            parent_name: [0.into(); 256],
            locators: [RawLocator::NONE; LOCATOR_ENTRIES],
            reserved_end: [0; 256],
        };
        let mut header = Self { raw, block_size };
        header.seal();
        header
    }

    /// Takes bytes that begin like a header, whatever else is wrong with them, for what they still say of the parent.
    pub(crate) fn salvage(bytes: &[u8; HEADER_SIZE.0 as usize]) -> Option<Self> {
        let raw = RawHeader::read_from_bytes(bytes).expect("the sizes are equal");
        let block_size = BlockSize::new(raw.block_size.get()).unwrap_or(BlockSize::DEFAULT);
        (raw.cookie == format::HEADER_COOKIE).then_some(Self { raw, block_size })
    }

    fn seal(&mut self) {
        self.raw.checksum = format::checksum(self.raw.as_bytes(), self.raw.checksum).into();
    }

    /// Encodes it; a header that was read and not changed gives the bytes that were read.
    pub fn to_bytes(&self) -> [u8; HEADER_SIZE.0 as usize] {
        zerocopy::transmute!(self.raw)
    }

    /// Where the BAT is.
    pub fn table_offset(&self) -> FileOffset {
        FileOffset(self.raw.table_offset.get())
    }

    /// Entries in the BAT: at least one for each block of the disk, often more.
    pub fn max_table_entries(&self) -> u32 {
        self.raw.max_table_entries.get()
    }

    /// Moves the BAT; all that changes lies in the header's first sector.
    pub(crate) fn set_table(&mut self, offset: FileOffset, max_table_entries: u32) {
        self.raw.table_offset = offset.0.into();
        self.raw.max_table_entries = max_table_entries.into();
        self.seal();
    }

    /// The size of a block's data.
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// The checksum as stored.
    pub fn checksum(&self) -> u32 {
        self.raw.checksum.get()
    }

    /// The parent's unique id; nil for an image without a parent or on a raw one.
    pub fn parent_unique_id(&self) -> Uuid {
        Uuid::from_bytes(self.raw.parent_unique_id)
    }

    /// The time of the parent's last change when this image was linked to it.
    pub fn parent_timestamp(&self) -> Timestamp {
        Timestamp(self.raw.parent_timestamp.get())
    }

    /// The parent's file name as stored beside the locators; what is not UTF-16 is replaced.
    pub fn parent_name(&self) -> String {
        let units = self.raw.parent_name.iter().map(|unit| unit.get()).take_while(|&unit| unit != 0);
        char::decode_utf16(units).map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
    }

    /// The locator entries in use, with their place in the header.
    pub fn locators(&self) -> impl Iterator<Item = (usize, LocatorEntry)> + '_ {
        self.raw.locators.iter().enumerate().filter_map(|(i, raw)| Some((i, LocatorEntry::from_raw(raw)?)))
    }

    /// Replaces the whole record of the parent; the name is cut to the 255 UTF-16 units that fit.
    pub(crate) fn set_parent(&mut self, parent: &ParentRecord, locators: &[Option<LocatorEntry>; LOCATOR_ENTRIES]) {
        self.raw.parent_unique_id = parent.unique_id.into_bytes();
        self.raw.parent_timestamp = parent.timestamp.0.into();
        self.raw.parent_name = [0.into(); 256];
        for (slot, unit) in self.raw.parent_name[..255].iter_mut().zip(parent.name.encode_utf16()) {
            *slot = unit.into();
        }
        self.set_locators(locators);
    }

    /// Replaces the locators.
    pub(crate) fn set_locators(&mut self, locators: &[Option<LocatorEntry>; LOCATOR_ENTRIES]) {
        for (slot, entry) in self.raw.locators.iter_mut().zip(locators) {
            *slot = entry.map_or(RawLocator::NONE, LocatorEntry::to_raw);
        }
        self.seal();
    }
}
