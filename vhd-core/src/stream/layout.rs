//! Where everything of a streamed image lies, known before the first byte of it is written.

use std::io::{self, Write};

use crate::bat;
use crate::bitmap::Bitmap;
use crate::block_size::{BlockPlace, BlockSize};
use crate::create::{NewImage, NewKind};
use crate::footer::{DiskType, FOOTER_SIZE, Footer, MAX_VIRTUAL_SIZE};
use crate::format::UNALLOCATED;
use crate::header::{HEADER_SIZE, Header, LOCATOR_ENTRIES};
use crate::locator::LocatorEntry;
use crate::metadata::ParentLink;
use crate::stream::LayoutError;
use crate::units::{BlockIndex, ByteCount, FileOffset, SECTOR_SIZE, SectorRange};

/// What data is aligned to.
const ALIGNMENT: u64 = 4096;
/// Entries of the BAT that are written at once: 64 KiB.
const BAT_STEP: u32 = 16 * 1024;

/// A dynamic or differencing image that is written front to back: the head, each block, the end.
///
/// Blocks follow each other in the order of the disk, their data on multiples of 4 KiB. There is no batmap, which would
/// have to say before the first block what all of them hold; the footer names a creator version that has none.
#[derive(Debug)]
pub struct StreamLayout {
    footer: Footer,
    header: Header,
    texts: Vec<u8>,
    blocks: Vec<BlockIndex>,
    first: BlockPlace,
    stride: u64,
    head_end: u64,
}

impl StreamLayout {
    /// Lays an image out that holds `blocks`, which are in the order of the disk.
    ///
    /// # Errors
    /// A fixed image, a disk that cannot be, blocks out of order, more blocks than a BAT can place.
    pub fn new(new: &NewImage, blocks: Vec<BlockIndex>) -> Result<Self, LayoutError> {
        if new.size.0 == 0 || new.size > MAX_VIRTUAL_SIZE || !new.size.0.is_multiple_of(SECTOR_SIZE) {
            return Err(LayoutError::Size { size: new.size });
        }
        let (disk_type, block_size, parent) = match &new.kind {
            NewKind::Fixed => return Err(LayoutError::Fixed),
            NewKind::Dynamic { block_size } => (DiskType::Dynamic, *block_size, None),
            NewKind::Differencing { block_size, parent } => (DiskType::Differencing, *block_size, Some(parent)),
        };
        let entries = u32::try_from(block_size.blocks_for(new.size)).expect("2040 GiB in 4 KiB are fewer than 2^32");
        check_order(&blocks, entries)?;

        let mut footer = Footer::new(disk_type, new.size, new.unique_id, new.timestamp).without_batmap();
        footer.set_hidden(new.hidden);
        let header_at = FileOffset(0) + FOOTER_SIZE;
        let mut header = Header::new(header_at + HEADER_SIZE, entries, block_size);
        let tables_end = header.table_offset() + bat::table_size(entries);
        let texts = parent.map_or(Vec::new(), |parent| place_locators(&mut header, parent, tables_end));

        let head_end = tables_end.0 + texts.len() as u64;
        let data = (head_end + block_size.bitmap_size().0).next_multiple_of(ALIGNMENT);
        let first = BlockPlace { bitmap: FileOffset(data - block_size.bitmap_size().0), data: FileOffset(data) };
        let stride = block_size.stride().0.next_multiple_of(ALIGNMENT);
        let layout = Self { footer, header, texts, blocks, first, stride, head_end };
        if layout.blocks.len().checked_sub(1).is_some_and(|last| layout.place(last).to_entry().is_none()) {
            return Err(LayoutError::Reach { blocks: layout.blocks.len(), block_size });
        }
        Ok(layout)
    }

    /// The blocks that it holds, in order.
    pub fn blocks(&self) -> &[BlockIndex] {
        &self.blocks
    }

    /// The size of a block's data.
    pub fn block_size(&self) -> BlockSize {
        self.header.block_size()
    }

    /// The length of the whole stream.
    pub fn length(&self) -> ByteCount {
        ByteCount(self.blocks_end()) + FOOTER_SIZE
    }

    fn place(&self, number: usize) -> BlockPlace {
        let before = ByteCount(number as u64 * self.stride);
        BlockPlace { bitmap: self.first.bitmap + before, data: self.first.data + before }
    }

    fn blocks_end(&self) -> u64 {
        match self.blocks.len() {
            0 => self.head_end,
            count => self.place(count - 1).data.0 + self.block_size().bytes().0,
        }
    }

    /// Writes what comes before the first block: footer, header, BAT, locator texts.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_head(&self, out: &mut impl Write) -> io::Result<()> {
        out.write_all(&self.footer.to_bytes())?;
        out.write_all(&self.header.to_bytes())?;
        let entries = self.header.max_table_entries();
        let mut next = 0;
        for start in (0..entries).step_by(BAT_STEP as usize) {
            let mut step = vec![UNALLOCATED; (entries - start).min(BAT_STEP) as usize];
            while let Some(block) = self.blocks.get(next).filter(|block| block.0 - start < BAT_STEP) {
                let entry = self.place(next).to_entry().expect("checked when it was laid out");
                step[(block.0 - start) as usize] = entry;
                next += 1;
            }
            out.write_all(&bat::encode(&step))?;
        }
        out.write_all(&self.texts)
    }

    /// Gives what comes before the data of a block, which is the `number`th in the list: the gap that aligns it, and the
    /// bitmap in which `present`, sectors of the disk, are set.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn lead(&self, number: usize, present: &[SectorRange]) -> Vec<u8> {
        let block_size = self.block_size();
        let sectors = block_size.sectors_of(self.blocks[number]);
        let mut bitmap = Bitmap::clear(block_size.sectors().0 as u32);
        for range in present {
            let (start, end) = (range.start.max(sectors.start), range.end.min(sectors.end));
            if start < end {
                bitmap.set((start - sectors.start).0 as u32..(end - sectors.start).0 as u32);
            }
        }
        let before = match number {
            0 => self.head_end,
            _ => self.place(number - 1).data.0 + block_size.bytes().0,
        };
        let mut lead = vec![0; (self.place(number).bitmap.0 - before) as usize];
        lead.extend(bitmap.to_bytes(block_size.bitmap_size().0 as usize));
        lead
    }

    /// The bytes after the last block.
    pub fn end(&self) -> [u8; FOOTER_SIZE.0 as usize] {
        self.footer.to_bytes()
    }
}

fn check_order(blocks: &[BlockIndex], entries: u32) -> Result<(), LayoutError> {
    let unordered = blocks.windows(2).find(|pair| pair[0] >= pair[1]).map(|pair| pair[1]);
    let beyond = blocks.last().copied().filter(|block| block.0 >= entries);
    match unordered.or(beyond) {
        Some(block) => Err(LayoutError::Order { block }),
        None => Ok(()),
    }
}

/// Enters the parent into the header; gives the locators' texts, which lie from `at` on.
fn place_locators(header: &mut Header, parent: &ParentLink, mut at: FileOffset) -> Vec<u8> {
    let mut texts = Vec::new();
    let mut locators = [None; LOCATOR_ENTRIES];
    for (slot, (code, text)) in locators.iter_mut().zip(parent.locators()) {
        let entry = LocatorEntry::new(*code, ByteCount(text.len() as u64), at).in_sectors();
        texts.extend_from_slice(text);
        texts.resize(texts.len() + entry.space.0 as usize - text.len(), 0);
        at = at + entry.space;
        *slot = Some(entry);
    }
    header.set_parent(parent.record(), &locators);
    texts
}
