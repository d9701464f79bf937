//! Records as they are laid out on disk: no logic, sizes asserted, all integers big-endian.
//!
//! Source: Microsoft, *Virtual Hard Disk Image Format Specification* (2006); the batmap from blktap.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Begins a footer.
pub(crate) const FOOTER_COOKIE: [u8; 8] = *b"conectix";
/// Begins the footer of an image whose journaled resize has not ended (blktap).
pub(crate) const POISON_COOKIE: [u8; 8] = *b"v_poison";
/// Begins a dynamic header.
pub(crate) const HEADER_COOKIE: [u8; 8] = *b"cxsparse";
/// Begins a batmap header (blktap).
pub(crate) const BATMAP_COOKIE: [u8; 8] = *b"tdbatmap";

/// The one version of footer and header that exists; only its upper half promises compatibility.
pub(crate) const FORMAT_VERSION: u32 = 0x0001_0000;
/// The batmap version with an unsigned checksum.
pub(crate) const BATMAP_VERSION: u32 = 0x0001_0002;
/// A feature bit that is always set.
pub(crate) const FEATURE_RESERVED: u32 = 2;
/// The data offset of an image without a header, and of a header without a successor.
pub(crate) const NO_OFFSET: u64 = u64::MAX;
/// A BAT entry without a block.
pub(crate) const UNALLOCATED: u32 = u32::MAX;
/// The creator application that blktap writes, and we do: its images carry a batmap and mean `current_size` exactly.
pub(crate) const CREATOR_TAP: [u8; 4] = *b"tap\0";
/// The creator version from which `tap` images have a batmap.
pub(crate) const CREATOR_BATMAP: u32 = 0x0001_0002;
/// The last creator version without a batmap, for images that get none.
pub(crate) const CREATOR_WITHOUT_BATMAP: u32 = 0x0001_0001;
/// The creator version that blktap writes today.
pub(crate) const CREATOR_CURRENT: u32 = 0x0001_0003;

macro_rules! record {
    ($(#[$doc:meta])* $name:ident, $size:literal, { $($field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub(crate) struct $name {
            $(pub(crate) $field: $kind,)*
        }
        const _: () = assert!(size_of::<$name>() == $size);
    };
}

record!(
    /// The footer, at the end of every image and again at the start of dynamic and differencing ones.
    RawFooter, 512, {
        cookie: [u8; 8],
        features: U32,
        version: U32,
        data_offset: U64,
        timestamp: U32,
        creator_application: [u8; 4],
        creator_version: U32,
        creator_host_os: [u8; 4],
        original_size: U64,
        current_size: U64,
        cylinders: U16,
        heads: u8,
        sectors_per_track: u8,
        disk_type: U32,
        checksum: U32,
        unique_id: [u8; 16],
        saved_state: u8,
        hidden: u8,
        reserved: [u8; 426],
    }
);

record!(
    /// The header of dynamic and differencing images.
    RawHeader, 1024, {
        cookie: [u8; 8],
        data_offset: U64,
        table_offset: U64,
        version: U32,
        max_table_entries: U32,
        block_size: U32,
        checksum: U32,
        parent_unique_id: [u8; 16],
        parent_timestamp: U32,
        reserved: U32,
        parent_name: [U16; 256],
        locators: [RawLocator; 8],
        reserved_end: [u8; 256],
    }
);

record!(
    /// A header's entry for one name of the parent.
    RawLocator, 24, {
        platform_code: [u8; 4],
        data_space: U32,
        data_length: U32,
        reserved: U32,
        data_offset: U64,
    }
);

impl RawLocator {
    /// An entry that is not used.
    pub(crate) const NONE: Self = Self {
        platform_code: [0; 4],
        data_space: U32::ZERO,
        data_length: U32::ZERO,
        reserved: U32::ZERO,
        data_offset: U64::ZERO,
    };
}

record!(
    /// The header of blktap's batmap, which follows the BAT.
    RawBatmapHeader, 512, {
        cookie: [u8; 8],
        map_offset: U64,
        map_sectors: U32,
        version: U32,
        checksum: U32,
        marker: u8,
        key_hash_cookie: u8,
        key_nonce: [u8; 32],
        key_hash: [u8; 32],
        reserved: [u8; 418],
    }
);

/// Computes a record's checksum: the ones' complement of the sum of its bytes, its own field counted as zero.
pub(crate) fn checksum(record: &[u8], stored: U32) -> u32 {
    !byte_sum(record).wrapping_sub(byte_sum(stored.as_bytes()))
}

/// Sums bytes.
pub(crate) fn byte_sum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |sum: u32, &byte| sum.wrapping_add(u32::from(byte)))
}
