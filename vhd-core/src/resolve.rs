//! Where the content of a range of sectors is found: pure, from tables to extents.

use std::borrow::Cow;

use crate::bitmap::Bitmap;
use crate::units::{ByteCount, FileOffset, SECTOR_SIZE, Sector, SectorRange};

/// Where one layer says a sector's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// In this layer's file, from here on.
    Data(FileOffset),
    /// Nowhere: it reads as zeros, whatever lies below.
    Zero,
    /// Not in this layer: ask the parent.
    Parent,
}

impl Source {
    /// The source of what lies `sectors` further on.
    fn advanced(self, sectors: u64) -> Self {
        match self {
            Self::Data(at) => Self::Data(at + ByteCount(sectors * SECTOR_SIZE)),
            other => other,
        }
    }
}

/// A range of sectors that one layer finds in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Which sectors.
    pub sectors: SectorRange,
    /// Where their content is.
    pub source: Source,
}

/// Extents in the order of the disk, neighbours joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extents(Vec<Extent>);

impl Extents {
    /// Appends an extent that starts where the last one ends, and joins the two where they are one.
    pub fn push(&mut self, sectors: SectorRange, source: Source) {
        if sectors.is_empty() {
            return;
        }
        if let Some(last) = self.0.last_mut()
            && last.source.advanced(last.sectors.count().0) == source
            && last.sectors.end == sectors.start
        {
            last.sectors.end = sectors.end;
            return;
        }
        self.0.push(Extent { sectors, source });
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// The extents.
    pub fn as_slice(&self) -> &[Extent] {
        &self.0
    }
}

/// The bits of a block's bitmap from `first_bit` on.
pub(crate) struct BlockBits<'a> {
    pub(crate) bits: Cow<'a, Bitmap>,
    pub(crate) first_bit: u32,
}

impl BlockBits<'_> {
    /// The last sector of `piece` whose bit is set, in the block whose first sector is `block_start`.
    pub(crate) fn last_set(&self, piece: SectorRange, block_start: Sector) -> Option<Sector> {
        let bit_of = |sector: Sector| (sector - block_start).0 as u32 - self.first_bit;
        let (start, end) = (bit_of(piece.start), bit_of(piece.end));
        let last = self.bits.runs(start..end).filter(|(_, set)| *set).last()?.0.end;
        Some(Sector(piece.start.0 + u64::from(last - 1 - start)))
    }
}

/// Resolves `piece`, all of it in the block whose first sector is `block_start` and whose data is at `data`.
pub(crate) fn resolve_block(
    piece: SectorRange,
    block_start: Sector,
    data: FileOffset,
    present: &BlockBits<'_>,
    absent: Source,
    extents: &mut Extents,
) {
    let bit_of = |sector: Sector| (sector - block_start).0 as u32 - present.first_bit;
    let start = bit_of(piece.start);
    for (run, set) in present.bits.runs(start..bit_of(piece.end)) {
        let at = Sector(piece.start.0 + u64::from(run.start - start));
        let sectors = SectorRange::between(at, Sector(at.0 + u64::from(run.end - run.start)));
        let source = if set { Source::Data(data + (at - block_start).bytes()) } else { absent };
        extents.push(sectors, source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_become_extents() {
        let mut bits = Bitmap::clear(64);
        bits.set(3..5);
        bits.set(8..9);
        let mut extents = Extents::default();
        let piece = SectorRange::between(Sector(4096 + 4), Sector(4096 + 12));
        let present = BlockBits { bits: Cow::Borrowed(&bits), first_bit: 0 };
        resolve_block(piece, Sector(4096), FileOffset(8192), &present, Source::Parent, &mut extents);
        let found: Vec<_> =
            extents.as_slice().iter().map(|e| (e.sectors.start.0 - 4096, e.sectors.end.0 - 4096, e.source)).collect();
        assert_eq!(
            found,
            [
                (4, 5, Source::Data(FileOffset(8192 + 4 * 512))),
                (5, 8, Source::Parent),
                (8, 9, Source::Data(FileOffset(8192 + 8 * 512))),
                (9, 12, Source::Parent),
            ]
        );
    }

    #[test]
    fn neighbours_join_only_where_the_file_goes_on() {
        let mut extents = Extents::default();
        extents.push(SectorRange::between(Sector(0), Sector(2)), Source::Data(FileOffset(0)));
        extents.push(SectorRange::between(Sector(2), Sector(4)), Source::Data(FileOffset(1024)));
        extents.push(SectorRange::between(Sector(4), Sector(6)), Source::Data(FileOffset(4096)));
        extents.push(SectorRange::between(Sector(6), Sector(7)), Source::Zero);
        extents.push(SectorRange::between(Sector(7), Sector(9)), Source::Zero);
        let ends: Vec<_> = extents.as_slice().iter().map(|extent| extent.sectors.end.0).collect();
        assert_eq!(ends, [4, 6, 9]);
    }
}
