//! The cylinder, head and sector numbers that old guests boot by.

use crate::units::ByteCount;

/// A disk's shape as a BIOS would see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads per cylinder.
    pub heads: u8,
    /// Sectors per track.
    pub sectors_per_track: u8,
}

impl Geometry {
    /// Chooses the geometry of a disk of `size` bytes; it covers at most the disk and at most 65535·16·255 sectors.
    ///
    /// Source: Microsoft VHD specification, appendix "CHS Calculation".
    pub fn of(size: ByteCount) -> Self {
        const MOST: u64 = 65535 * 16 * 255;
        let total = size.whole_sectors().0.min(MOST);
        let (cylinder_times_heads, heads, sectors_per_track);
        if total > 65535 * 16 * 63 {
            (sectors_per_track, heads) = (255, 16);
            cylinder_times_heads = total / sectors_per_track;
        } else {
            let tracks = total / 17;
            let fitting = tracks.div_ceil(1024).max(4);
            if tracks < fitting * 1024 && fitting <= 16 {
                (sectors_per_track, heads, cylinder_times_heads) = (17, fitting, tracks);
            } else if total / 31 < 16 * 1024 {
                (sectors_per_track, heads, cylinder_times_heads) = (31, 16, total / 31);
            } else {
                (sectors_per_track, heads, cylinder_times_heads) = (63, 16, total / 63);
            }
        }
        Self {
            cylinders: (cylinder_times_heads / heads) as u16,
            heads: heads as u8,
            sectors_per_track: sectors_per_track as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes and shapes from images that blktap's vhd-util made.
    #[test]
    fn agrees_with_vhd_util() {
        for (size, cylinders, heads, sectors_per_track) in [
            (4194304, 120, 4, 17),
            (10485760, 301, 4, 17),
            (5000192, 143, 4, 17),
            (67108864, 963, 8, 17),
            (104857600, 1003, 12, 17),
            (8592031744, 16648, 16, 63),
            (2190433320960, 65535, 16, 255),
        ] {
            let expected = Geometry { cylinders, heads, sectors_per_track };
            assert_eq!(Geometry::of(ByteCount(size)), expected, "{size} bytes");
        }
    }
}
