//! The BAT: where each block of the disk lies in the file.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use byteorder::{BigEndian, ByteOrder};

use crate::format::UNALLOCATED;
use crate::storage::{Container, StorageError};
use crate::units::{BlockIndex, ByteCount, FileOffset};

/// Entries in memory are loaded this many at a time: 64 KiB of table, 32 GiB of disk with 2 MiB blocks.
const PAGE_ENTRIES: u32 = 16 * 1024;
/// The largest table that is kept whole: that of a 2040 GiB disk in blocks of 2 MiB, 4 MiB.
const KEPT_ENTRIES: u32 = 1 << 20;
/// Entries in a 512-byte sector of the table, the unit in which it is rewritten.
pub(crate) const ENTRIES_PER_SECTOR: u32 = 128;

/// A block allocation table, loaded page by page as it is asked for.
///
/// What it holds in memory is what is on disk, or on its way there; blocks whose data is not yet durable are not in it.
///
/// Source: Microsoft VHD specification, "Block Allocation Table and Data Blocks".
#[derive(Debug)]
pub(crate) struct Bat {
    table: FileOffset,
    entries: u32,
    pages: Box<[OnceLock<Box<[AtomicU32]>>]>,
}

/// The bytes that a table of `entries` takes: whole sectors.
pub(crate) fn table_size(entries: u32) -> ByteCount {
    ByteCount((u64::from(entries) * 4).next_multiple_of(512))
}

/// Encodes entries, padded to whole sectors with zeros as blktap does.
pub(crate) fn encode(entries: &[u32]) -> Vec<u8> {
    let mut bytes = vec![0; (entries.len() * 4).next_multiple_of(512)];
    BigEndian::write_u32_into(entries, &mut bytes[..entries.len() * 4]);
    bytes
}

impl Bat {
    /// Describes the table of `entries` at `table`, all of which lies within the file.
    pub(crate) fn new(table: FileOffset, entries: u32) -> Self {
        let pages = entries.div_ceil(PAGE_ENTRIES) as usize;
        Self { table, entries, pages: (0..pages).map(|_| OnceLock::new()).collect() }
    }

    pub(crate) fn entries(&self) -> u32 {
        self.entries
    }

    fn page(&self, container: &Container, index: u32) -> Result<&[AtomicU32], StorageError> {
        let cell = &self.pages[index as usize];
        if let Some(page) = cell.get() {
            return Ok(page);
        }
        let page = self.page_entries(container, index)?.into_iter().map(AtomicU32::new).collect();
        Ok(cell.get_or_init(|| page))
    }

    /// Looks up an entry; `None` for a block that is not allocated or not in the table.
    pub(crate) fn entry(&self, container: &Container, block: BlockIndex) -> Result<Option<u32>, StorageError> {
        if block.0 >= self.entries {
            return Ok(None);
        }
        let page = self.page(container, block.0 / PAGE_ENTRIES)?;
        let entry = page[(block.0 % PAGE_ENTRIES) as usize].load(Ordering::Acquire);
        Ok((entry != UNALLOCATED).then_some(entry))
    }

    /// Lists the allocated ones of the first `blocks` blocks, in order, with their entries.
    ///
    /// A table of a size that a real disk has is kept in memory, so that it is read once however often it is walked; of
    /// a larger one each page is read and let go, and holes are passed over (their entries, zeros, place no block).
    pub(crate) fn allocated<'a>(
        &'a self,
        container: &'a Container,
        blocks: u32,
    ) -> impl Iterator<Item = Result<(BlockIndex, u32), StorageError>> + 'a {
        self.allocated_in(container, 0..blocks)
    }

    /// As [`allocated`](Self::allocated), for any range of blocks.
    pub(crate) fn allocated_in<'a>(
        &'a self,
        container: &'a Container,
        blocks: Range<u32>,
    ) -> impl Iterator<Item = Result<(BlockIndex, u32), StorageError>> + 'a {
        let blocks = blocks.start..blocks.end.min(self.entries);
        let pages =
            if blocks.is_empty() { 0..0 } else { blocks.start / PAGE_ENTRIES..blocks.end.div_ceil(PAGE_ENTRIES) };
        pages.flat_map(move |index| {
            let first = index * PAGE_ENTRIES;
            let keep = self.entries <= KEPT_ENTRIES;
            let loaded = if keep { self.page(container, index).map(|_| false) } else { self.is_hole(container, index) };
            let entries =
                loaded.and_then(|hole| if hole { Ok(Vec::new()) } else { self.page_entries(container, index) });
            let (entries, failed) = match entries {
                Ok(entries) => (entries, None),
                Err(error) => (Vec::new(), Some(Err(error))),
            };
            let blocks = blocks.clone();
            let in_use = entries.into_iter().enumerate().filter_map(move |(i, entry)| {
                let block = first + i as u32;
                (blocks.contains(&block) && entry != UNALLOCATED).then_some(Ok((BlockIndex(block), entry)))
            });
            in_use.chain(failed)
        })
    }

    /// Tells whether a page of a table that is too large to keep is a hole: in a sparse file, most of it can be.
    fn is_hole(&self, container: &Container, index: u32) -> Result<bool, StorageError> {
        let page = self.table + ByteCount(u64::from(index) * u64::from(PAGE_ENTRIES) * 4);
        let end = page + ByteCount(u64::from(PAGE_ENTRIES) * 4);
        Ok(container.next_data(page)?.is_none_or(|data| data.start >= end))
    }

    fn page_entries(&self, container: &Container, index: u32) -> Result<Vec<u32>, StorageError> {
        if let Some(page) = self.pages[index as usize].get() {
            return Ok(page.iter().map(|entry| entry.load(Ordering::Acquire)).collect());
        }
        let first = index * PAGE_ENTRIES;
        let count = (self.entries - first).min(PAGE_ENTRIES) as usize;
        let mut bytes = vec![0; count * 4];
        container.read_at(&mut bytes, self.table + ByteCount(u64::from(first) * 4))?;
        let mut entries = vec![0; count];
        BigEndian::read_u32_into(&bytes, &mut entries);
        Ok(entries)
    }

    /// Enters blocks, on disk too: each table sector that changes is written once. Not synced.
    ///
    /// `places` is sorted by block, and its blocks are within the table.
    pub(crate) fn publish(&self, container: &Container, places: &[(BlockIndex, u32)]) -> Result<(), StorageError> {
        for group in places.chunk_by(|(a, _), (b, _)| a.0 / ENTRIES_PER_SECTOR == b.0 / ENTRIES_PER_SECTOR) {
            let first = group[0].0.0 / ENTRIES_PER_SECTOR * ENTRIES_PER_SECTOR;
            let page = self.page(container, first / PAGE_ENTRIES)?;
            for &(block, entry) in group {
                page[(block.0 % PAGE_ENTRIES) as usize].store(entry, Ordering::Release);
            }
            let at = (first % PAGE_ENTRIES) as usize;
            let sector = &page[at..page.len().min(at + ENTRIES_PER_SECTOR as usize)];
            let sector: Vec<u32> = sector.iter().map(|entry| entry.load(Ordering::Acquire)).collect();
            let bytes = &encode(&sector)[..sector.len() * 4];
            container.write_at(bytes, self.table + ByteCount(u64::from(first) * 4))?;
        }
        Ok(())
    }
}
