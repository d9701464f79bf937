//! Reading an image that comes front to back, and stopping at its end even where more could come.

use std::io::Read;

use crate::bitmap::Bitmap;
use crate::block_size::{BlockPlace, BlockSize};
use crate::chain::is_zeros;
use crate::footer::{DiskType, FOOTER_SIZE, Footer};
use crate::header::{HEADER_SIZE, Header};
use crate::stream::fixed::{self, Fixed};
use crate::stream::input::Input;
use crate::stream::table::Table;
use crate::stream::{StreamError, StreamFault};
use crate::units::{BlockIndex, ByteCount, FileOffset, SECTOR_SIZE, Sector, SectorCount, SectorRange};

/// The most of a block's data that is read at once: 1 MiB.
pub(super) const CHUNK: ByteCount = ByteCount(1 << 20);
/// The part of the BAT that is read at once.
const BAT_STEP: u64 = 64 << 10;

/// A part of the disk as it lay in the stream.
#[derive(Debug, Default)]
pub struct StreamedBlock {
    /// Its first sector.
    pub start: Sector,
    /// Its content; what of it is not in the image is whatever lay there.
    pub bytes: Vec<u8>,
    /// All its sectors on the disk, in order, and whether the image holds them.
    pub runs: Vec<(SectorRange, bool)>,
}

impl StreamedBlock {
    /// The content of a range of its sectors.
    ///
    /// # Panics
    /// If it does not hold them.
    pub fn content(&self, range: SectorRange) -> &[u8] {
        let from = (range.start - self.start).bytes().0 as usize;
        &self.bytes[from..from + range.count().bytes().0 as usize]
    }
}

/// What an image turned out to be.
#[derive(Debug)]
pub struct StreamEnd {
    /// The footer at its end.
    pub footer: Footer,
    /// The blocks that it had, in the order of the disk, and their size; a fixed image has none.
    pub blocks: Option<(BlockSize, Vec<BlockIndex>)>,
    /// The stream is still open: that nothing came after what can be the footer was taken for the end.
    pub in_silence: bool,
}

/// An image of any kind that is read front to back.
#[derive(Debug)]
pub struct StreamReader<R> {
    input: Input<R>,
    body: Body,
    length: Option<ByteCount>,
}

#[derive(Debug)]
enum Body {
    Fixed(Fixed),
    Blocks(Box<Blocks>),
}

/// What is known of a dynamic or differencing image, and how far it was read.
#[derive(Debug)]
struct Blocks {
    /// That at the start, if it could be read.
    footer: Option<Footer>,
    block_size: BlockSize,
    differencing: bool,
    /// The room of a parent locator is not counted in sectors.
    locators_in_bytes: bool,
    sectors: SectorCount,
    table: Table,
    end: FileOffset,
    number: usize,
    current: Option<Current>,
    /// Where the disk must end at the least, where nothing at the start said so.
    least: Sector,
}

/// The block whose data comes next.
#[derive(Debug)]
struct Current {
    bitmap: Bitmap,
    sectors: SectorRange,
    next: Sector,
}

impl<R: Read> StreamReader<R> {
    /// Reads all that comes before the first block. Where the stream's `length` is known, the image ends there.
    ///
    /// An image whose first footer is damaged is read if it has a header after it; what has neither is taken for a
    /// fixed image until its end shows that it is none.
    ///
    /// Only its end tells where a fixed image ends, too: where its length is not known it ends with the stream, or where
    /// that is silent after what can be its footer. A stream tells that by an error that holds
    /// [`Silence`](super::Silence); anywhere else it is read on.
    ///
    /// # Errors
    /// A stream that ends too soon, damaged tables, blocks that overlap or do not come after the tables.
    pub fn open(input: R, length: Option<ByteCount>) -> Result<Self, StreamError> {
        let mut input = Input::new(input);
        let mut start = vec![0; (FOOTER_SIZE + HEADER_SIZE).0 as usize];
        let room = length.map_or(start.len(), |length| length.0.min(start.len() as u64) as usize);
        let mut got = input.fill(&mut start[..room.min(512)])?;
        let first = start.first_chunk().map(Footer::try_from).expect("it is longer than a footer");
        let footer = match first {
            Ok(footer) if got == 512 && footer.disk_type() != DiskType::Fixed => Some(footer),
            _ => None,
        };
        let header = match &footer {
            Some(footer) => {
                let at = footer.header_offset().expect("only a fixed image has none");
                input.skip_to(at, "header")?;
                input.take(&mut start[512..], "header")?;
                Some(header_of(&start[512..]).map_err(|source| StreamError::Header { at, source })?)
            }
            None => {
                let may_end = |bytes: &[u8]| length.is_none() && fixed::ends(ByteCount(0), bytes);
                got = input.fill_or_end(&mut start[..room], got, may_end)?;
                header_of(&start[512..]).ok()
            }
        };
        let body = match header {
            Some(header) => Body::Blocks(Box::new(Blocks::read(&mut input, footer, &header, length)?)),
            None => Body::Fixed(Fixed::new(&start[..got], got < start.len(), length)),
        };
        Ok(Self { input, body, length })
    }

    /// The size of the disk, where the start of the stream says it.
    pub fn disk_size(&self) -> Option<ByteCount> {
        match &self.body {
            Body::Blocks(blocks) => blocks.footer.as_ref().map(Footer::current_size),
            Body::Fixed(_) => self.length.map(|length| ByteCount(length.0.saturating_sub(FOOTER_SIZE.0))),
        }
    }

    /// Whether what the image does not hold is its parent's.
    pub fn is_differencing(&self) -> bool {
        matches!(&self.body, Body::Blocks(blocks) if blocks.differencing)
    }

    /// Whether the room of its parent locators is counted in bytes. Xen Orchestra counts sectors there.
    pub fn counts_locators_in_bytes(&self) -> bool {
        matches!(&self.body, Body::Blocks(blocks) if blocks.locators_in_bytes)
    }

    /// How far it was read.
    pub fn position(&self) -> FileOffset {
        self.input.at()
    }

    /// Where it will probably end.
    pub fn expected_length(&self) -> Option<ByteCount> {
        let blocks_end = match &self.body {
            Body::Blocks(blocks) => Some(ByteCount(blocks.end.0) + FOOTER_SIZE),
            Body::Fixed(_) => None,
        };
        self.length.or(blocks_end)
    }

    /// Reads the next part of the disk, in the order of the stream; `false` where there is none.
    ///
    /// # Errors
    /// A stream that ends too soon.
    pub fn next_block(&mut self, block: &mut StreamedBlock) -> Result<bool, StreamError> {
        match &mut self.body {
            Body::Fixed(fixed) => fixed.next(&mut self.input, self.length, block),
            Body::Blocks(blocks) => blocks.next(&mut self.input, block),
        }
    }

    /// Reads up to the end, which must be the footer.
    ///
    /// # Errors
    /// A stream that ends too soon, no footer or another one than at the start.
    pub fn finish(mut self) -> Result<StreamEnd, StreamError> {
        match self.body {
            Body::Fixed(fixed) => {
                let (footer, in_silence) = (fixed.footer(&self.input)?, self.input.ended_in_silence());
                Ok(StreamEnd { footer, blocks: None, in_silence })
            }
            Body::Blocks(blocks) => {
                let footer = blocks.read_end(&mut self.input, self.length)?;
                Ok(StreamEnd {
                    footer,
                    blocks: Some((blocks.block_size, blocks.table.into_blocks())),
                    in_silence: false,
                })
            }
        }
    }
}

fn header_of(bytes: &[u8]) -> Result<Header, crate::header::HeaderError> {
    bytes.first_chunk().map(Header::try_from).expect("room for a header was made")
}

impl Blocks {
    fn read<R: Read>(
        input: &mut Input<R>,
        footer: Option<Footer>,
        header: &Header,
        length: Option<ByteCount>,
    ) -> Result<Self, StreamError> {
        let (entries, block_size) = (header.max_table_entries(), header.block_size());
        if footer.as_ref().is_some_and(Footer::poisoned) {
            return Err(StreamFault::UnfinishedResize.into());
        }
        let blocks = footer.as_ref().map_or(u64::from(entries), |footer| block_size.blocks_for(footer.current_size()));
        let blocks = u32::try_from(blocks).ok().filter(|&blocks| blocks <= entries);
        let blocks = blocks.ok_or_else(|| {
            let blocks = footer.as_ref().map_or(0, |footer| block_size.blocks_for(footer.current_size()));
            StreamFault::ShortBat { blocks, entries }
        })?;
        input.skip_to(header.table_offset(), "BAT")?;
        let mut table = Table::new(blocks);
        let mut left = u64::from(entries) * 4;
        let mut buffer = vec![0; left.min(BAT_STEP) as usize];
        while left > 0 {
            let step = left.min(BAT_STEP);
            input.take(&mut buffer[..step as usize], "BAT")?;
            table.take(&buffer[..step as usize])?;
            left -= step;
        }
        let end = table.place(input.at(), block_size)?;
        if let Some(length) = length.filter(|length| end.0.saturating_add(FOOTER_SIZE.0) > length.0) {
            let part = if table.len() > 0 { "last block" } else { "BAT" };
            return Err(StreamFault::Beyond { part, end, length }.into());
        }
        let sectors = match &footer {
            Some(footer) => footer.current_size().whole_sectors(),
            None => SectorCount(u64::from(blocks) * block_size.sectors().0),
        };
        let differencing = match &footer {
            Some(footer) => footer.disk_type() == DiskType::Differencing,
            None => !header.parent_unique_id().is_nil() || header.locators().next().is_some(),
        };
        let locators_in_bytes = differencing && header.locators().any(|(_, entry)| entry.counts_bytes());
        let (number, current, least) = (0, None, Sector(0));
        Ok(Self { footer, block_size, differencing, locators_in_bytes, sectors, table, end, number, current, least })
    }

    fn next<R: Read>(&mut self, input: &mut Input<R>, out: &mut StreamedBlock) -> Result<bool, StreamError> {
        let current = match &mut self.current {
            Some(current) => current,
            None => {
                let Some((block, place)) = self.table.block(self.number, self.block_size) else { return Ok(false) };
                self.number += 1;
                self.current.insert(self.start_block(input, block, place)?)
            }
        };
        let whole = current.sectors;
        let end = whole.end.min(Sector(current.next.0 + CHUNK.whole_sectors().0));
        let chunk = SectorRange::between(current.next, end);
        out.start = chunk.start;
        out.bytes.resize(chunk.count().bytes().0 as usize, 0);
        input.take(&mut out.bytes, "data of a block")?;
        out.runs.clear();
        let on_disk = chunk.start.0..chunk.end.0.min(self.sectors.0).max(chunk.start.0);
        let bits = (on_disk.start - whole.start.0) as u32..(on_disk.end - whole.start.0) as u32;
        for (run, set) in current.bitmap.runs(bits) {
            let (start, end) = (whole.start.0 + u64::from(run.start), whole.start.0 + u64::from(run.end));
            out.runs.push((SectorRange::between(Sector(start), Sector(end)), set));
        }
        if end == whole.end {
            self.current = None;
        } else {
            current.next = end;
        }
        if self.footer.is_none() {
            self.note_least(out);
        }
        Ok(true)
    }

    fn start_block<R: Read>(
        &self,
        input: &mut Input<R>,
        block: BlockIndex,
        place: BlockPlace,
    ) -> Result<Current, StreamError> {
        input.skip_to(place.bitmap, "bitmap of a block")?;
        let mut bitmap = vec![0; self.block_size.bitmap_size().0 as usize];
        input.take(&mut bitmap, "bitmap of a block")?;
        let sectors = self.block_size.sectors_of(block);
        Ok(Current { bitmap: Bitmap::from_bytes(&bitmap), sectors, next: sectors.start })
    }

    /// Remembers the last sector that is not zero.
    fn note_least(&mut self, block: &StreamedBlock) {
        for &(run, set) in block.runs.iter().rev() {
            let last = block.content(run).chunks(SECTOR_SIZE as usize).rposition(|sector| !is_zeros(sector));
            if let Some(last) = last.filter(|_| set) {
                self.least = self.least.max(run.start + SectorCount(last as u64 + 1));
                return;
            }
        }
    }

    fn read_end<R: Read>(&self, input: &mut Input<R>, length: Option<ByteCount>) -> Result<Footer, StreamError> {
        let mut bytes = [0; FOOTER_SIZE.0 as usize];
        let footer = match length {
            Some(length) => {
                let at = FileOffset(length.0.saturating_sub(FOOTER_SIZE.0));
                input.skip_to(at, "footer")?;
                input.take(&mut bytes, "footer")?;
                Footer::try_from(&bytes).map_err(|source| StreamError::End { at, source })?
            }
            None => self.search_end(input)?,
        };
        if !self.agrees(&footer) {
            return Err(StreamFault::Footers.into());
        }
        if footer.current_size().whole_sectors().0 < self.least.0 {
            return Err(StreamFault::PastEnd { sector: Sector(self.least.0 - 1) }.into());
        }
        Ok(footer)
    }

    /// Passes over what lies between the last block and the footer: nothing, as a rule.
    fn search_end<R: Read>(&self, input: &mut Input<R>) -> Result<Footer, StreamError> {
        let mut bytes = [0; FOOTER_SIZE.0 as usize];
        input.skip_to(FileOffset(input.at().0.next_multiple_of(SECTOR_SIZE)), "footer")?;
        let mut first = None;
        loop {
            let at = input.at();
            if input.fill(&mut bytes)? < bytes.len() {
                return Err(first.unwrap_or(StreamError::Short { at: input.at(), part: "footer" }));
            }
            match Footer::try_from(&bytes) {
                Ok(footer) if self.agrees(&footer) => return Ok(footer),
                Ok(_) => {}
                Err(source) => {
                    first.get_or_insert(StreamError::End { at, source });
                }
            }
        }
    }

    /// Whether a footer at the end belongs to what was read before it.
    fn agrees(&self, end: &Footer) -> bool {
        let kind = if self.differencing { DiskType::Differencing } else { DiskType::Dynamic };
        end.disk_type() == kind
            && match &self.footer {
                Some(start) => start.current_size() == end.current_size() && start.unique_id() == end.unique_id(),
                None => end.current_size().whole_sectors().0 <= self.sectors.0,
            }
    }
}
