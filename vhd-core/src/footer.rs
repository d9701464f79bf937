//! The footer: what a disk is, how large, and who it is.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use uuid::Uuid;
use zerocopy::{FromBytes, IntoBytes};

use crate::format::{self, RawFooter};
use crate::geometry::Geometry;
use crate::merge_mark::{MERGE_MARK_SIZE, MergeMark};
use crate::units::{ByteCount, FileOffset};

/// Bytes of a footer.
pub const FOOTER_SIZE: ByteCount = ByteCount(512);
/// The largest virtual disk that can be made: 2040 GiB.
///
/// Source: reference of blktap; BAT entries are 32-bit sector addresses, so a file ends before 2 TiB.
pub const MAX_VIRTUAL_SIZE: ByteCount = ByteCount(2040 << 30);

/// Seconds from the Unix epoch to that of VHD, 2000-01-01 00:00 UTC.
const VHD_EPOCH: Duration = Duration::from_secs(946_684_800);

/// The three kinds of image that exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskType {
    /// The disk's bytes, then a footer.
    Fixed,
    /// Blocks allocated when first written.
    Dynamic,
    /// As dynamic; what it does not hold is read from a parent.
    Differencing,
}

impl DiskType {
    fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            2 => Some(Self::Fixed),
            3 => Some(Self::Dynamic),
            4 => Some(Self::Differencing),
            _ => None,
        }
    }

    fn to_raw(self) -> u32 {
        match self {
            Self::Fixed => 2,
            Self::Dynamic => 3,
            Self::Differencing => 4,
        }
    }
}

/// A time as VHD stores it: seconds since 2000-01-01 00:00 UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub u32);

impl Timestamp {
    /// Takes the present time.
    pub fn now() -> Self {
        SystemTime::now().into()
    }
}

impl From<SystemTime> for Timestamp {
    /// Times outside the 136 years that fit become the nearest that does.
    fn from(time: SystemTime) -> Self {
        let since_unix = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(since_unix.saturating_sub(VHD_EPOCH).as_secs().try_into().unwrap_or(u32::MAX))
    }
}

impl From<Timestamp> for SystemTime {
    fn from(timestamp: Timestamp) -> Self {
        UNIX_EPOCH + VHD_EPOCH + Duration::from_secs(u64::from(timestamp.0))
    }
}

/// Why bytes are not a footer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FooterError {
    /// The first eight bytes are something else.
    #[error("no footer here: found cookie {found:02x?}, expected \"conectix\"")]
    Cookie {
        /// What is there.
        found: [u8; 8],
    },
    /// The bytes have changed since the checksum was made.
    #[error("footer checksum is {found:#010x}, expected {expected:#010x}")]
    Checksum {
        /// What is stored.
        found: u32,
        /// What the bytes add up to.
        expected: u32,
    },
    /// A format from the future.
    #[error("footer version is {found:#010x}, expected 0x0001xxxx")]
    Version {
        /// What is stored.
        found: u32,
    },
    /// A kind of disk that was never specified.
    #[error("disk type is {found}, expected 2 (fixed), 3 (dynamic) or 4 (differencing)")]
    DiskType {
        /// What is stored.
        found: u32,
    },
}

/// A footer whose checksum and type have been verified; bytes that we give no meaning to are kept.
///
/// Source: Microsoft VHD specification, "Hard Disk Footer Format"; `hidden` and the poisoned state from blktap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footer {
    raw: RawFooter,
    disk_type: DiskType,
}

impl TryFrom<&[u8; FOOTER_SIZE.0 as usize]> for Footer {
    type Error = FooterError;

    fn try_from(bytes: &[u8; FOOTER_SIZE.0 as usize]) -> Result<Self, FooterError> {
        let raw = RawFooter::read_from_bytes(bytes).expect("the sizes are equal");
        if raw.cookie != format::FOOTER_COOKIE && raw.cookie != format::POISON_COOKIE {
            return Err(FooterError::Cookie { found: raw.cookie });
        }
        let expected = format::checksum(bytes, raw.checksum);
        if raw.checksum != expected && !hidden_without_checksum(&raw) {
            return Err(FooterError::Checksum { found: raw.checksum.get(), expected });
        }
        if raw.version.get() >> 16 != format::FORMAT_VERSION >> 16 {
            return Err(FooterError::Version { found: raw.version.get() });
        }
        let disk_type = DiskType::from_raw(raw.disk_type.get());
        let disk_type = disk_type.ok_or(FooterError::DiskType { found: raw.disk_type.get() })?;
        Ok(Self { raw, disk_type })
    }
}

/// Early versions of blktap changed `hidden` and left the checksum as it was.
fn hidden_without_checksum(raw: &RawFooter) -> bool {
    let early = matches!(raw.creator_version.get(), 0x0000_0001 | 0x0001_0001);
    let shown = RawFooter { hidden: 0, ..*raw };
    raw.creator_application == format::CREATOR_TAP
        && early
        && raw.hidden == 1
        && raw.checksum == format::checksum(shown.as_bytes(), raw.checksum)
}

impl Footer {
    /// Makes the footer of a new image.
    pub(crate) fn new(disk_type: DiskType, size: ByteCount, unique_id: Uuid, timestamp: Timestamp) -> Self {
        let geometry = Geometry::of(size);
        let raw = RawFooter {
            cookie: format::FOOTER_COOKIE,
            features: format::FEATURE_RESERVED.into(),
            version: format::FORMAT_VERSION.into(),
            data_offset: match disk_type {
                DiskType::Fixed => format::NO_OFFSET,
                DiskType::Dynamic | DiskType::Differencing => FOOTER_SIZE.0,
            }
            .into(),
            timestamp: timestamp.0.into(),
            creator_application: format::CREATOR_TAP,
            creator_version: format::CREATOR_CURRENT.into(),
            creator_host_os: [0; 4],
            original_size: size.0.into(),
            current_size: size.0.into(),
            cylinders: geometry.cylinders.into(),
            heads: geometry.heads,
            sectors_per_track: geometry.sectors_per_track,
            disk_type: disk_type.to_raw().into(),
            checksum: 0.into(),
            unique_id: unique_id.into_bytes(),
            saved_state: 0,
            hidden: 0,
            reserved: [0; 426],
        };
        let mut footer = Self { raw, disk_type };
        footer.seal();
        footer
    }

    /// Says that no batmap follows the BAT.
    pub(crate) fn without_batmap(mut self) -> Self {
        self.raw.creator_version = format::CREATOR_WITHOUT_BATMAP.into();
        self.seal();
        self
    }

    fn seal(&mut self) {
        self.raw.checksum = format::checksum(self.raw.as_bytes(), self.raw.checksum).into();
    }

    /// Encodes it; a footer that was read and not changed gives the bytes that were read.
    pub fn to_bytes(&self) -> [u8; FOOTER_SIZE.0 as usize] {
        zerocopy::transmute!(self.raw)
    }

    /// The kind of image.
    pub fn disk_type(&self) -> DiskType {
        self.disk_type
    }

    /// The size of the virtual disk. The guest sees its whole sectors.
    pub fn current_size(&self) -> ByteCount {
        ByteCount(self.raw.current_size.get())
    }

    /// The size that the disk was made with.
    pub fn original_size(&self) -> ByteCount {
        ByteCount(self.raw.original_size.get())
    }

    /// Changes the size of the virtual disk, and its geometry with it.
    pub(crate) fn set_current_size(&mut self, size: ByteCount) {
        let geometry = Geometry::of(size);
        self.raw.current_size = size.0.into();
        self.raw.cylinders = geometry.cylinders.into();
        self.raw.heads = geometry.heads;
        self.raw.sectors_per_track = geometry.sectors_per_track;
        self.seal();
    }

    /// Where the header is; `None` for a fixed disk.
    pub fn header_offset(&self) -> Option<FileOffset> {
        (self.disk_type != DiskType::Fixed).then(|| FileOffset(self.raw.data_offset.get()))
    }

    /// Who the image is; children name their parent by it.
    pub fn unique_id(&self) -> Uuid {
        Uuid::from_bytes(self.raw.unique_id)
    }

    /// When it was made.
    pub fn timestamp(&self) -> Timestamp {
        Timestamp(self.raw.timestamp.get())
    }

    /// The program that made it, four characters.
    pub fn creator_application(&self) -> [u8; 4] {
        self.raw.creator_application
    }

    /// The version of that program.
    pub fn creator_version(&self) -> u32 {
        self.raw.creator_version.get()
    }

    /// The system that program ran on, four characters.
    pub fn creator_host_os(&self) -> [u8; 4] {
        self.raw.creator_host_os
    }

    /// The bits of what is special about it: 1, temporary; 2 is always set.
    pub fn features(&self) -> u32 {
        self.raw.features.get()
    }

    /// The checksum as stored.
    pub fn checksum(&self) -> u32 {
        self.raw.checksum.get()
    }

    /// The shape that the footer states.
    pub fn geometry(&self) -> Geometry {
        Geometry {
            cylinders: self.raw.cylinders.get(),
            heads: self.raw.heads,
            sectors_per_track: self.raw.sectors_per_track,
        }
    }

    /// Tells whether a virtual machine was suspended when it was last closed.
    pub fn saved_state(&self) -> bool {
        self.raw.saved_state != 0
    }

    /// Tells whether the node is an inner one of a chain, no user's volume (blktap).
    pub fn hidden(&self) -> bool {
        self.hidden_value() != 0
    }

    /// The byte that says whether it is [`hidden`](Self::hidden): 0 or 1 unless somebody has set another (blktap).
    pub fn hidden_value(&self) -> u8 {
        self.raw.hidden
    }

    /// Points to another header.
    pub(crate) fn set_header_offset(&mut self, at: FileOffset) {
        debug_assert!(self.disk_type != DiskType::Fixed);
        self.raw.data_offset = at.0.into();
        self.seal();
    }

    /// Makes a differencing image a dynamic one, or the other way round: both have a header at the same place.
    pub(crate) fn set_disk_type(&mut self, disk_type: DiskType) {
        debug_assert!(disk_type != DiskType::Fixed && self.disk_type != DiskType::Fixed);
        self.disk_type = disk_type;
        self.raw.disk_type = disk_type.to_raw().into();
        self.seal();
    }

    /// Changes who it is.
    pub(crate) fn set_unique_id(&mut self, unique_id: Uuid) {
        self.raw.unique_id = unique_id.into_bytes();
        self.seal();
    }

    /// Marks the node as hidden or as a volume.
    pub(crate) fn set_hidden(&mut self, hidden: bool) {
        self.set_hidden_value(hidden.into());
    }

    /// Marks the node as a volume, 0, or as hidden, any other value.
    pub(crate) fn set_hidden_value(&mut self, hidden: u8) {
        self.raw.hidden = hidden;
        self.seal();
    }

    /// How far a merge that has not ended has come.
    pub fn merge_mark(&self) -> Option<MergeMark> {
        MergeMark::from_bytes(self.raw.reserved.last_chunk()?)
    }

    /// Says how far a merge has come; whatever else may stand in that place is kept where there is none to be forgotten.
    pub(crate) fn set_merge_mark(&mut self, mark: Option<MergeMark>) {
        if mark != self.merge_mark()
            && let Some(place) = self.raw.reserved.last_chunk_mut()
        {
            *place = mark.map_or([0; MERGE_MARK_SIZE], MergeMark::to_bytes);
            self.seal();
        }
    }

    /// Marks the image as one whose resize has not ended, or as whole.
    pub(crate) fn set_poisoned(&mut self, poisoned: bool) {
        self.raw.cookie = if poisoned { format::POISON_COOKIE } else { format::FOOTER_COOKIE };
        self.seal();
    }

    /// Tells whether a journaled resize has not ended: its tables may not match its data.
    pub fn poisoned(&self) -> bool {
        self.raw.cookie == format::POISON_COOKIE
    }

    /// Tells whether the image was written front to back by us: nothing else of today calls itself so.
    pub(crate) fn is_of_stream(&self) -> bool {
        self.raw.creator_application == format::CREATOR_TAP && self.creator_version() == format::CREATOR_WITHOUT_BATMAP
    }

    /// Tells whether a batmap should follow the BAT.
    pub fn promises_batmap(&self) -> bool {
        self.raw.creator_application == format::CREATOR_TAP && self.creator_version() >= format::CREATOR_BATMAP
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Footer {
        Footer::new(DiskType::Dynamic, ByteCount(10 << 20), Uuid::from_u128(7), Timestamp(848_625_659))
    }

    fn parse(bytes: &[u8; 512]) -> Result<Footer, FooterError> {
        Footer::try_from(bytes)
    }

    #[test]
    fn unknown_bytes_survive() {
        let mut footer = sample();
        footer.raw.reserved[400] = 0xa5;
        footer.raw.features = 0x8000_0003.into();
        footer.seal();
        let mut read = parse(&footer.to_bytes()).unwrap();
        assert_eq!(read.to_bytes(), footer.to_bytes());
        read.set_hidden(true);
        assert_eq!(read.raw.reserved[400], 0xa5);
        assert!(parse(&read.to_bytes()).unwrap().hidden());
    }

    #[test]
    fn every_flipped_byte_is_noticed() {
        let good = sample().to_bytes();
        for at in 0..512 {
            let mut bad = good;
            bad[at] ^= 0x10;
            assert!(parse(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn early_tap_may_hide_without_a_checksum() {
        let mut footer = sample();
        footer.raw.creator_version = 0x0001_0001.into();
        footer.seal();
        footer.raw.hidden = 1;
        let read = parse(&footer.to_bytes()).unwrap();
        assert!(read.hidden());
        assert_eq!(read.to_bytes(), footer.to_bytes());

        footer.raw.creator_version = 0x0001_0003.into();
        assert!(matches!(parse(&footer.to_bytes()), Err(FooterError::Checksum { .. })));
    }

    #[test]
    fn other_versions_and_types_are_refused() {
        let mut footer = sample();
        footer.raw.version = 0x0002_0000.into();
        footer.seal();
        assert_eq!(parse(&footer.to_bytes()), Err(FooterError::Version { found: 0x0002_0000 }));
        let mut footer = sample();
        footer.raw.disk_type = 5.into();
        footer.seal();
        assert_eq!(parse(&footer.to_bytes()), Err(FooterError::DiskType { found: 5 }));
    }
}
