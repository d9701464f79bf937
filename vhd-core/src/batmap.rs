//! blktap's batmap: one bit per block, set when every sector of the block is in this layer.
//!
//! It repeats what the bitmaps say, so we never believe it when reading: a wrong bit would make garbage visible.
//! We keep it right for readers that do.

use zerocopy::FromBytes;

use crate::bat;
use crate::format::{self, RawBatmapHeader};
use crate::header::Header;
use crate::storage::{Container, StorageError};
use crate::units::{BlockIndex, ByteCount, FileOffset};

/// Bytes of a batmap header.
pub(crate) const BATMAP_HEADER_SIZE: ByteCount = ByteCount(512);
/// Blocks that one 512-byte sector of the map speaks for.
const BLOCKS_PER_SECTOR: u32 = 4096;

/// Key material that blktap keeps for encrypted images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHash {
    /// The nonce.
    pub nonce: [u8; 32],
    /// SHA-256 of nonce and key.
    pub hash: [u8; 32],
}

/// A batmap whose header makes sense.
///
/// Source: blktap; there is no specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batmap {
    header_at: FileOffset,
    raw: RawBatmapHeader,
    /// Whether the map's checksum has been found right, in this process.
    trusted: bool,
}

/// The batmap of an image as its header shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum BatmapState {
    /// The creator writes none.
    Absent,
    /// It is there.
    Present(Box<Batmap>),
    /// The creator promises one, and something else is in its place; qemu overwrites it with the first block it allocates.
    Overwritten,
}

/// Where a batmap's header is.
pub(crate) fn header_offset(header: &Header) -> FileOffset {
    header.table_offset() + bat::table_size(header.max_table_entries())
}

/// The bytes that the map of `entries` blocks takes: whole sectors.
pub(crate) fn map_size(entries: u32) -> ByteCount {
    ByteCount(u64::from(entries).div_ceil(8).next_multiple_of(512))
}

impl BatmapState {
    /// Reads the header of the batmap of an image whose BAT has `header`.
    pub(crate) fn read(container: &Container, header: &Header, file_len: ByteCount) -> Result<Self, StorageError> {
        let header_at = header_offset(header);
        if header_at.0 + BATMAP_HEADER_SIZE.0 > file_len.0 {
            return Ok(Self::Overwritten);
        }
        let mut bytes = [0; BATMAP_HEADER_SIZE.0 as usize];
        container.read_at(&mut bytes, header_at)?;
        let raw = RawBatmapHeader::read_from_bytes(&bytes).expect("the sizes are equal");
        let batmap = Batmap { header_at, raw, trusted: false };
        let map = batmap.map_offset().0.checked_add(batmap.map_size().0);
        let fits = map.is_some_and(|end| end <= file_len.0)
            && batmap.map_offset() >= header_at + BATMAP_HEADER_SIZE
            && batmap.map_size() <= map_size(header.max_table_entries());
        let known = raw.cookie == format::BATMAP_COOKIE && raw.version.get() >> 16 == format::BATMAP_VERSION >> 16;
        Ok(if known && fits { Self::Present(Box::new(batmap)) } else { Self::Overwritten })
    }
}

impl Batmap {
    /// Makes the batmap of `entries` blocks, none of them full, whose header goes to `header_at` and its map right after.
    pub(crate) fn new(header_at: FileOffset, entries: u32) -> Self {
        let size = map_size(entries);
        let raw = RawBatmapHeader {
            cookie: format::BATMAP_COOKIE,
            map_offset: (header_at + BATMAP_HEADER_SIZE).0.into(),
            map_sectors: (size.whole_sectors().0 as u32).into(),
            version: format::BATMAP_VERSION.into(),
            checksum: (!0).into(),
            marker: 0,
            key_hash_cookie: 0,
            key_nonce: [0; 32],
            key_hash: [0; 32],
            reserved: [0; 418],
        };
        Self { header_at, raw, trusted: true }
    }

    /// Takes what looks like the header of a batmap where one of an image with `header` should be, whatever its fields
    /// say, for the marker and the key's hash in it.
    pub(crate) fn salvage(container: &Container, header: &Header) -> Result<Option<Self>, StorageError> {
        let header_at = header_offset(header);
        let mut bytes = [0; BATMAP_HEADER_SIZE.0 as usize];
        if header_at.0 + BATMAP_HEADER_SIZE.0 > container.len()?.0 {
            return Ok(None);
        }
        container.read_at(&mut bytes, header_at)?;
        let raw = RawBatmapHeader::read_from_bytes(&bytes).expect("the sizes are equal");
        Ok((raw.cookie == format::BATMAP_COOKIE).then_some(Self { header_at, raw, trusted: false }))
    }

    /// Makes one for another place and size that keeps all but the map.
    pub(crate) fn moved(&self, header_at: FileOffset, entries: u32) -> Self {
        let new = Self::new(header_at, entries).raw;
        let RawBatmapHeader { map_offset, map_sectors, version, checksum, .. } = new;
        let raw = RawBatmapHeader { map_offset, map_sectors, version, checksum, ..self.raw };
        Self { header_at, raw, trusted: false }
    }

    /// Encodes the header.
    pub(crate) fn to_bytes(&self) -> [u8; BATMAP_HEADER_SIZE.0 as usize] {
        zerocopy::transmute!(self.raw)
    }

    /// Where the map is.
    pub fn map_offset(&self) -> FileOffset {
        FileOffset(self.raw.map_offset.get())
    }

    /// The map's length.
    pub fn map_size(&self) -> ByteCount {
        ByteCount(u64::from(self.raw.map_sectors.get()) * 512)
    }

    /// The version: 0x00010002, or 0x00010001 with a checksum of signed bytes.
    pub fn version(&self) -> u32 {
        self.raw.version.get()
    }

    /// The checksum of the map as stored.
    pub fn checksum(&self) -> u32 {
        self.raw.checksum.get()
    }

    /// A byte that blktap's users mark an image with.
    pub fn marker(&self) -> u8 {
        self.raw.marker
    }

    /// The hash of the key that the image is encrypted with.
    pub fn key_hash(&self) -> Option<KeyHash> {
        let RawBatmapHeader { key_nonce: nonce, key_hash: hash, .. } = self.raw;
        (self.raw.key_hash_cookie == 1).then_some(KeyHash { nonce, hash })
    }

    pub(crate) fn set_key_hash(&mut self, key: Option<KeyHash>) {
        self.raw.key_hash_cookie = u8::from(key.is_some());
        self.raw.key_nonce = key.map_or([0; 32], |key| key.nonce);
        self.raw.key_hash = key.map_or([0; 32], |key| key.hash);
    }

    pub(crate) fn set_marker(&mut self, marker: u8) {
        self.raw.marker = marker;
    }

    /// Writes the header: all but the map. Not synced.
    pub(crate) fn write_header(&self, container: &Container) -> Result<(), StorageError> {
        container.write_at(&self.to_bytes(), self.header_at)
    }

    /// The file range of header and map.
    pub(crate) fn region(&self) -> std::ops::Range<FileOffset> {
        self.header_at..self.map_offset() + self.map_size()
    }

    fn sum(&self, bytes: &[u8]) -> u32 {
        if self.version() == format::BATMAP_VERSION {
            return format::byte_sum(bytes);
        }
        bytes.iter().fold(0, |sum: u32, &byte| sum.wrapping_add_signed(i32::from(byte.cast_signed())))
    }

    /// Tells whether the checksum is that of the map, whole or (as blktap sizes some maps) without its last sector.
    pub(crate) fn is_intact(&self, container: &Container) -> Result<bool, StorageError> {
        Ok(self.expected_checksums(container)?.contains(&self.checksum()))
    }

    /// Computes the checksum of the whole map, and of the map without its last sector.
    fn expected_checksums(&self, container: &Container) -> Result<[u32; 2], StorageError> {
        let (mut sum, mut short) = (0_u32, 0_u32);
        for at in (0..self.map_size().0).step_by(64 * 1024) {
            for sector in self.read_sectors(container, ByteCount(at), 64 * 1024)?.chunks(512) {
                short = sum;
                sum = sum.wrapping_add(self.sum(sector));
            }
        }
        Ok([!sum, !short])
    }

    fn read_sectors(&self, container: &Container, at: ByteCount, most: u64) -> Result<Vec<u8>, StorageError> {
        let mut bytes = vec![0; (self.map_size().0 - at.0).min(most) as usize];
        container.read_at(&mut bytes, self.map_offset() + at)?;
        Ok(bytes)
    }

    /// Streams the map to `visit` as (block, bit) for the first `entries` blocks.
    pub(crate) fn for_each(
        &self,
        container: &Container,
        entries: u32,
        mut visit: impl FnMut(BlockIndex, bool),
    ) -> Result<(), StorageError> {
        let covered = (self.map_size().0 * 8).min(u64::from(entries));
        let mut block = 0;
        while block < covered {
            let bytes = self.read_sectors(container, ByteCount(block / 8), 64 * 1024)?;
            let end = covered.min(block + bytes.len() as u64 * 8);
            for (bit, block) in (block..end).enumerate() {
                visit(BlockIndex(block as u32), bytes[bit / 8] >> (7 - bit % 8) & 1 == 1);
            }
            block = end;
        }
        Ok(())
    }

    /// Sets the bits of blocks, sorted, that are full on disk, rewriting the map's sectors that change and then the header.
    ///
    /// A map whose checksum is wrong is made anew: `is_full` then answers for every block. Not synced.
    ///
    /// # Crash safety
    /// Map and checksum are two writes. Between them the checksum is wrong and the bits are right; the next call rebuilds.
    pub(crate) fn mark_full<E: From<StorageError>>(
        &mut self,
        container: &Container,
        full: &[BlockIndex],
        entries: u32,
        is_full: impl FnMut(BlockIndex) -> Result<bool, E>,
    ) -> Result<(), E> {
        self.change(container, full, true, entries, is_full)
    }

    /// As [`mark_full`](Self::mark_full), for blocks that no longer are.
    pub(crate) fn clear<E: From<StorageError>>(
        &mut self,
        container: &Container,
        blocks: &[BlockIndex],
        entries: u32,
        is_full: impl FnMut(BlockIndex) -> Result<bool, E>,
    ) -> Result<(), E> {
        self.change(container, blocks, false, entries, is_full)
    }

    fn change<E: From<StorageError>>(
        &mut self,
        container: &Container,
        blocks: &[BlockIndex],
        set: bool,
        entries: u32,
        mut is_full: impl FnMut(BlockIndex) -> Result<bool, E>,
    ) -> Result<(), E> {
        // A checksum of part of the map will not do: what is added to must be all ours.
        if !self.trusted && self.expected_checksums(container)?[0] != self.checksum() {
            self.rebuild(container, entries, &mut is_full)?;
        } else {
            let mut checksum = self.checksum();
            for group in blocks.chunk_by(|a, b| a.0 / BLOCKS_PER_SECTOR == b.0 / BLOCKS_PER_SECTOR) {
                let at = ByteCount(u64::from(group[0].0 / BLOCKS_PER_SECTOR) * 512);
                if at >= self.map_size() {
                    continue;
                }
                let mut sector = self.read_sectors(container, at, 512)?;
                let before = self.sum(&sector);
                for block in group {
                    let bit = block.0 % BLOCKS_PER_SECTOR;
                    let (byte, mask) = (&mut sector[(bit / 8) as usize], 0x80 >> (bit % 8));
                    *byte = if set { *byte | mask } else { *byte & !mask };
                }
                checksum = !(!checksum).wrapping_sub(before).wrapping_add(self.sum(&sector));
                container.write_at(&sector, self.map_offset() + at)?;
            }
            self.raw.checksum = checksum.into();
        }
        self.trusted = true;
        Ok(container.write_at(&self.to_bytes(), self.header_at)?)
    }

    /// Writes map and header anew, whatever was there; `is_full` answers for every block. Not synced.
    ///
    /// # Crash safety
    /// As [`mark_full`](Self::mark_full).
    pub(crate) fn make_anew<E: From<StorageError>>(
        &mut self,
        container: &Container,
        entries: u32,
        mut is_full: impl FnMut(BlockIndex) -> Result<bool, E>,
    ) -> Result<(), E> {
        self.rebuild(container, entries, &mut is_full)?;
        self.trusted = true;
        Ok(container.write_at(&self.to_bytes(), self.header_at)?)
    }

    fn rebuild<E: From<StorageError>>(
        &mut self,
        container: &Container,
        entries: u32,
        is_full: &mut impl FnMut(BlockIndex) -> Result<bool, E>,
    ) -> Result<(), E> {
        let mut sum = 0_u32;
        for at in (0..self.map_size().0).step_by(512) {
            let mut sector = [0_u8; 512];
            let first = at * 8;
            for block in first..(first + u64::from(BLOCKS_PER_SECTOR)).min(u64::from(entries)) {
                if is_full(BlockIndex(block as u32))? {
                    let bit = (block - first) as usize;
                    sector[bit / 8] |= 0x80 >> (bit % 8);
                }
            }
            sum = sum.wrapping_add(self.sum(&sector));
            container.write_at(&sector, self.map_offset() + ByteCount(at))?;
        }
        self.raw.checksum = (!sum).into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::storage::MemoryStorage;

    fn store() -> Container {
        Container::new("batmap", Arc::new(MemoryStorage::new(vec![0; 4096])))
    }

    fn set_bits(batmap: &Batmap, container: &Container, entries: u32) -> Vec<u32> {
        let mut set = Vec::new();
        batmap.for_each(container, entries, |block, bit| set.extend(bit.then_some(block.0))).unwrap();
        set
    }

    #[test]
    fn marking_keeps_the_checksum() {
        let container = store();
        let mut batmap = Batmap::new(FileOffset(512), 5000);
        let never = |_| -> Result<bool, StorageError> { panic!("a trusted map is not rebuilt") };
        batmap.mark_full(&container, &[BlockIndex(0), BlockIndex(9), BlockIndex(4999)], 5000, never).unwrap();
        batmap.mark_full(&container, &[BlockIndex(9), BlockIndex(10)], 5000, never).unwrap();
        assert!(batmap.is_intact(&container).unwrap());
        assert_eq!(set_bits(&batmap, &container, 5000), [0, 9, 10, 4999]);
        batmap.clear(&container, &[BlockIndex(9), BlockIndex(11)], 5000, never).unwrap();
        assert!(batmap.is_intact(&container).unwrap());
        assert_eq!(set_bits(&batmap, &container, 5000), [0, 10, 4999]);
    }

    #[test]
    fn a_torn_map_is_rebuilt() {
        let container = store();
        let mut batmap = Batmap::new(FileOffset(512), 5000);
        batmap.trusted = false;
        container.write_at(&[0xff; 512], batmap.map_offset()).unwrap();
        assert!(!batmap.is_intact(&container).unwrap());
        let full = |block: BlockIndex| Ok::<_, StorageError>(block.0 == 77);
        batmap.mark_full(&container, &[BlockIndex(77)], 5000, full).unwrap();
        assert!(batmap.is_intact(&container).unwrap());
        assert_eq!(set_bits(&batmap, &container, 5000), [77]);
    }

    #[test]
    fn signed_checksums_of_version_one() {
        let container = store();
        let mut batmap = Batmap::new(FileOffset(512), 64);
        batmap.raw.version = 0x0001_0001.into();
        container.write_at(&[0x80], batmap.map_offset()).unwrap();
        batmap.raw.checksum = (!0x80_u32.wrapping_neg()).into();
        assert!(batmap.is_intact(&container).unwrap());
    }
}
