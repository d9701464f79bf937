//! Sets of blocks that have changed, in memory and as they stand in files.

use std::io;
use std::path::Path;

use crc::{CRC_32_ISO_HDLC, Crc};
use vhd_core::{Extents, Image, Layer, ReadOnly, SECTOR_SIZE, Sector, SectorRange, Source};

use crate::failure::Failure;
use crate::store;

/// Bytes that a bit stands for. Source: XenAPI's documentation of changed blocks.
pub(crate) const GRANULARITY: u64 = 64 << 10;
const SECTORS: u64 = GRANULARITY / SECTOR_SIZE;

/// Blocks that have changed: the first is the highest bit of the first byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocks(Vec<u8>);

impl Blocks {
    /// Adds all blocks that a range touches.
    pub fn add(&mut self, range: SectorRange) {
        if range.is_empty() {
            return;
        }
        let (first, end) = (range.start.0 / SECTORS, range.end.0.div_ceil(SECTORS));
        let length = end.div_ceil(8) as usize;
        if self.0.len() < length {
            self.0.resize(length, 0);
        }
        for block in first..end {
            self.0[(block / 8) as usize] |= 0x80 >> (block % 8);
        }
    }

    /// Adds all blocks of another set.
    pub fn add_all(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (ours, theirs) in self.0.iter_mut().zip(&other.0) {
            *ours |= theirs;
        }
    }

    /// All blocks of a disk of so many sectors.
    pub(crate) fn all(sectors: u64) -> Self {
        let mut all = Self::default();
        all.add(SectorRange::between(Sector(0), Sector(sectors)));
        all
    }

    /// The blocks as they stand in a file.
    fn to_bytes(&self) -> Vec<u8> {
        [&self.0[..], &checksum(&self.0).to_be_bytes()].concat()
    }

    /// What stands in a file, if that is whole.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (bits, sum) = bytes.split_last_chunk()?;
        (checksum(bits) == u32::from_be_bytes(*sum)).then(|| Self(bits.to_vec()))
    }

    /// Takes out all blocks of another set.
    pub fn remove_all(&mut self, other: &Self) {
        for (ours, theirs) in self.0.iter_mut().zip(&other.0) {
            *ours &= !theirs;
        }
    }

    /// Tells whether no block is among them.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|&byte| byte == 0)
    }

    /// Tells whether a block is among them.
    pub fn has(&self, block: u64) -> bool {
        self.0.get((block / 8) as usize).is_some_and(|byte| byte & (0x80 >> (block % 8)) != 0)
    }

    /// The bits of the blocks from `first` to before `end`, in whole bytes.
    pub fn bits(&self, first: u64, end: u64) -> Vec<u8> {
        let mut part = Self(vec![0; (end.saturating_sub(first)).div_ceil(8) as usize]);
        for block in (first..end).filter(|block| self.has(*block)) {
            let at = block - first;
            part.0[(at / 8) as usize] |= 0x80 >> (at % 8);
        }
        part.0
    }

    /// Finds the blocks of which one of these layers holds something, the topmost first: what a merge moves meanwhile is
    /// found where it was, or where it goes.
    pub(crate) fn held_by_layers<'l>(layers: impl IntoIterator<Item = &'l Layer>) -> Result<Self, Failure> {
        let mut held = Self::default();
        for layer in layers {
            match layer.as_vhd() {
                Some(image) => held.add_all(&Self::held_by(image)?),
                None => held.add(SectorRange::new(Sector(0), layer.sectors())),
            }
        }
        Ok(held)
    }

    /// Finds the blocks of which an image itself holds something.
    fn held_by(image: &Image<ReadOnly>) -> Result<Self, Failure> {
        let mut held = Self::default();
        let mut extents = Extents::default();
        let disk = SectorRange::new(Sector(0), image.sectors());
        let Some(header) = image.header() else {
            held.add(disk);
            return Ok(held);
        };
        let block_sectors = header.block_size().sectors().0;
        for found in image.allocated_blocks() {
            let start = u64::from(found?.0.0) * block_sectors;
            let range = SectorRange::between(Sector(start), Sector((start + block_sectors).min(disk.end.0)));
            extents.clear();
            image.resolve(range, &mut extents)?;
            let data = extents.as_slice().iter().filter(|extent| matches!(extent.source, Source::Data(_)));
            data.for_each(|extent| held.add(extent.sectors));
        }
        Ok(held)
    }
}

/// The checksum at the end of a file. That of nothing is not zero: an empty file is no set without blocks.
fn checksum(bits: &[u8]) -> u32 {
    !Crc::<u32>::new(&CRC_32_ISO_HDLC).checksum(bits)
}

/// Reads which blocks are stored in a file; `None` where there is none, or it is not whole.
pub(crate) fn read_blocks(path: &Path) -> Result<Option<Blocks>, Failure> {
    match store::read_bytes(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        bytes => Ok(Blocks::from_bytes(&bytes.map_err(Failure::io(path, "read it"))?)),
    }
}

pub(crate) fn write_blocks(path: &Path, blocks: &Blocks) -> Result<(), Failure> {
    store::write_bytes(path, &blocks.to_bytes())
}

#[cfg(test)]
mod tests {
    use vhd_core::{ByteCount, Chain, ChainOptions, Existing, NewImage, NewKind, create_file};

    use super::*;

    fn range(start: u64, end: u64) -> SectorRange {
        SectorRange::between(Sector(start), Sector(end))
    }

    #[test]
    fn a_bit_stands_for_64_kib_and_the_first_is_the_highest() {
        let mut blocks = Blocks::default();
        blocks.add(range(0, 0));
        assert_eq!(blocks, Blocks::default());
        blocks.add(range(0, 1));
        blocks.add(range(127, 129));
        blocks.add(range(9 * 128, 10 * 128));
        assert_eq!(blocks.0, [0b1100_0000, 0b0100_0000]);
        assert_eq!(blocks.bits(0, 10), [0b1100_0000, 0b0100_0000]);
        assert_eq!(blocks.bits(1, 10), [0b1000_0000, 0b1000_0000]);
        assert_eq!(blocks.bits(8, 32), [0b0100_0000, 0, 0]);
        assert!(blocks.bits(20, 20).is_empty());
    }

    #[test]
    fn a_fixed_image_holds_all_of_its_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fixed.vhd");
        let new = NewImage::new(ByteCount(3 * GRANULARITY + SECTOR_SIZE), NewKind::Fixed);
        create_file(&path, &new, Existing::Keep).unwrap();
        let chain = Chain::open(&path, &ChainOptions::default()).unwrap();
        assert_eq!(Blocks::held_by_layers(chain.layers()).unwrap().0, [0b1111_0000]);
    }

    #[test]
    fn a_file_that_is_not_whole_is_none() {
        let mut blocks = Blocks::default();
        blocks.add(range(0, 3 * 128));
        blocks.add(range(40 * 128, 50 * 128));
        for blocks in [blocks, Blocks::default()] {
            let bytes = blocks.to_bytes();
            assert_eq!(Blocks::from_bytes(&bytes), Some(blocks));
            for length in 0..bytes.len() {
                assert_eq!(Blocks::from_bytes(&bytes[..length]), None, "{length} of {bytes:?}");
            }
            for bit in 0..bytes.len() * 8 {
                let mut bytes = bytes.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Blocks::from_bytes(&bytes), None, "bit {bit}");
            }
            assert_eq!(Blocks::from_bytes(&vec![0; bytes.len()]), None);
        }
    }

    #[test]
    fn unions_grow_to_the_longer() {
        let (mut one, mut two) = (Blocks::default(), Blocks::default());
        one.add(range(0, 1));
        two.add(range(20 * 128, 20 * 128 + 1));
        one.add_all(&two);
        two.add_all(&one);
        assert_eq!(one, two);
        assert!(one.has(0) && one.has(20) && !one.has(1) && !one.has(1000));
    }
}
