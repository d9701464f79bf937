//! Units of address and length, so that a place on the virtual disk and a place in a file cannot be mixed up.

use std::fmt;
use std::ops::{Add, AddAssign, Sub};

/// Bytes in a sector: the unit in which a VHD counts everything.
pub const SECTOR_SIZE: u64 = 512;

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident, $repr:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $repr);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

unit!(
    /// A sector of the virtual disk, counted from its start.
    Sector,
    u64
);
unit!(
    /// A number of sectors of the virtual disk.
    SectorCount,
    u64
);
unit!(
    /// A block of one image: its place in that image's BAT.
    BlockIndex,
    u32
);
unit!(
    /// A place in a file, in bytes from its start.
    FileOffset,
    u64
);
unit!(
    /// A length in bytes.
    ByteCount,
    u64
);

impl Sector {
    /// Counts the bytes of the virtual disk that lie before this sector.
    pub const fn byte_offset(self) -> u64 {
        self.0 * SECTOR_SIZE
    }
}

impl SectorCount {
    /// Converts to bytes.
    pub const fn bytes(self) -> ByteCount {
        ByteCount(self.0 * SECTOR_SIZE)
    }
}

impl ByteCount {
    /// Counts the whole sectors in this length.
    pub const fn whole_sectors(self) -> SectorCount {
        SectorCount(self.0 / SECTOR_SIZE)
    }
}

impl Add<SectorCount> for Sector {
    type Output = Self;
    fn add(self, count: SectorCount) -> Self {
        Self(self.0 + count.0)
    }
}

impl Sub for Sector {
    type Output = SectorCount;
    fn sub(self, start: Self) -> SectorCount {
        SectorCount(self.0 - start.0)
    }
}

impl Add<ByteCount> for FileOffset {
    type Output = Self;
    fn add(self, length: ByteCount) -> Self {
        Self(self.0 + length.0)
    }
}

impl Sub for FileOffset {
    type Output = ByteCount;
    fn sub(self, start: Self) -> ByteCount {
        ByteCount(self.0 - start.0)
    }
}

impl Add for ByteCount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }
}

impl AddAssign for ByteCount {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

/// A half-open range of sectors of the virtual disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SectorRange {
    /// The first sector.
    pub start: Sector,
    /// The sector after the last.
    pub end: Sector,
}

impl SectorRange {
    /// Makes the range of `count` sectors from `start`.
    pub const fn new(start: Sector, count: SectorCount) -> Self {
        Self { start, end: Sector(start.0 + count.0) }
    }

    /// Makes the range from `start` up to, not including, `end`.
    pub const fn between(start: Sector, end: Sector) -> Self {
        Self { start, end }
    }

    /// Counts its sectors.
    pub const fn count(self) -> SectorCount {
        SectorCount(self.end.0.saturating_sub(self.start.0))
    }

    /// Tells whether it holds no sector.
    pub const fn is_empty(self) -> bool {
        self.start.0 >= self.end.0
    }

    /// Cuts it into pieces that end on multiples of `step` sectors; `step` is not zero.
    pub fn split_at_multiples(self, step: SectorCount) -> impl Iterator<Item = Self> {
        let mut at = self.start;
        std::iter::from_fn(move || {
            (at < self.end).then(|| {
                let end = Sector(((at.0 / step.0 + 1) * step.0).min(self.end.0));
                let piece = Self::between(at, end);
                at = end;
                piece
            })
        })
    }
}

impl fmt::Display for SectorRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}
