//! Content that tells where it belongs and who wrote it: 64 little-endian words `(tag << 48) | sector` in each sector.

use vhd_core::{Sector, SectorRange};

/// Gives the content of a range of sectors as written with a tag.
pub fn fill(range: SectorRange, tag: u16) -> Vec<u8> {
    (range.start.0..range.end.0).flat_map(|sector| self::sector(Sector(sector), tag)).collect()
}

/// Gives the content of one sector as written with a tag.
pub fn sector(sector: Sector, tag: u16) -> [u8; 512] {
    let word = (u64::from(tag) << 48 | sector.0).to_le_bytes();
    std::array::from_fn(|i| word[i % 8])
}
