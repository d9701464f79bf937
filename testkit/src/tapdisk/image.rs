//! One image that tapdisk has open: what it has read of it once, and what it writes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::headers::{BLOCK, Footer, Headers, PAGE, SECTOR, UNUSED, aligned, batmap_checksum, be32, read, refuse};

/// As many bitmaps are kept in memory, the latest used.
const BITMAPS: usize = 32;
/// Sectors of a block.
const SECTORS: u64 = BLOCK / SECTOR;
/// What tapdisk puts over the end footer when it opens an image again after a pause.
const KILLED: [u8; SECTOR as usize] = [0xc7; SECTOR as usize];

/// A dynamic or differencing image. All but the blocks is as it was when it was opened.
#[derive(Debug)]
pub(super) struct Image {
    file: File,
    footer: Footer,
    headers: Headers,
    /// Whole sectors of the BAT, as far as the disk goes.
    bat: Vec<u32>,
    batmap: Option<Vec<u8>>,
    /// Blocks and their bitmaps, the latest used last.
    bitmaps: Vec<(u32, Vec<u8>)>,
    /// Where the first block may be, in sectors. 0 in a parent, which is not written.
    first: u64,
    /// Where the last block ends, in sectors.
    next: u64,
    /// Its footer must be written when it is closed.
    is_changed: bool,
}

impl Image {
    /// Reads the tables of an image. `is_leaf` is for the one that will be written.
    pub(super) fn open(file: File, footer: Footer, is_leaf: bool) -> io::Result<Self> {
        let headers = Headers::read(&file, &footer)?;
        if headers.block_bytes() != BLOCK {
            return refuse("blocks of another size than 2 MiB");
        }
        let entries = footer.disk_bytes().div_ceil(BLOCK);
        if entries > headers.max_entries().into() {
            return refuse("a disk that is larger than its BAT");
        }
        let table = read(&file, headers.table_at(), (entries * 4).next_multiple_of(SECTOR))?;
        let bat: Vec<u32> = (0..table.len() / 4).map(|i| be32(&table, i * 4)).collect();
        let batmap = match headers.read_batmap(&file, footer.disk_bytes()) {
            // A parent is read by its bitmaps then.
            Err(_) if !is_leaf => None,
            batmap => batmap?,
        };
        let mut image =
            Self { file, footer, headers, bat, batmap, bitmaps: Vec::new(), first: 0, next: 0, is_changed: false };
        if is_leaf {
            image.next = image.end_of_data();
            image.first = image.headers.first_block();
        }
        Ok(image)
    }

    fn end_of_data(&self) -> u64 {
        let entries = self.footer.disk_bytes().div_ceil(BLOCK) as usize;
        let blocks = self.bat[..entries].iter().filter(|&&entry| entry != UNUSED);
        let ends = blocks.map(|&entry| u64::from(entry) + self.headers.block_sectors());
        ends.chain([self.headers.end().div_ceil(SECTOR)]).max().unwrap_or(0)
    }

    pub(super) fn footer(&self) -> &Footer {
        &self.footer
    }

    /// Finds the parent's file; `None` of a dynamic image.
    pub(super) fn parent(&self, own: &Path) -> io::Result<Option<Parent>> {
        if !self.footer.is_differencing() {
            return Ok(None);
        }
        let path = super::parent::find(own, &self.file, &self.headers)?;
        Ok(Some(Parent { path, unique_id: self.headers.parent_id().to_vec() }))
    }

    /// Destroys the end footer.
    pub(super) fn kill_footer(&mut self) -> io::Result<()> {
        self.is_changed = true;
        let length = self.file.metadata()?.len();
        self.file.write_all_at(&KILLED, length - SECTOR)
    }

    fn is_full(&self, block: u32) -> bool {
        let byte = |map: &Vec<u8>| map.get(block as usize / 8).is_some_and(|byte| byte << (block % 8) & 0x80 != 0);
        self.batmap.as_ref().is_some_and(byte)
    }

    /// The bitmap of an allocated block, read where it is not in memory.
    fn bitmap(&mut self, block: u32) -> io::Result<&mut Vec<u8>> {
        let bitmap = match self.bitmaps.iter().position(|(cached, _)| *cached == block) {
            Some(at) => self.bitmaps.remove(at).1,
            None => read(&self.file, u64::from(self.bat[block as usize]) * SECTOR, SECTOR)?,
        };
        self.keep_bitmap(block, bitmap);
        Ok(&mut self.bitmaps.last_mut().expect("one has been added").1)
    }

    fn keep_bitmap(&mut self, block: u32, bitmap: Vec<u8>) {
        if self.bitmaps.len() == BITMAPS {
            self.bitmaps.remove(0);
        }
        self.bitmaps.push((block, bitmap));
    }

    /// Cuts off as many sectors from the start of a range as are all here, or all not; tells which.
    pub(super) fn span(&mut self, range: &Range<u64>) -> io::Result<(u64, bool)> {
        let (block, within) = ((range.start / SECTORS) as u32, range.start % SECTORS);
        let in_block = (range.end - range.start).min(SECTORS - within);
        if self.bat[block as usize] == UNUSED {
            return Ok((in_block, false));
        }
        if self.is_full(block) {
            return Ok((in_block, true));
        }
        let bitmap = self.bitmap(block)?;
        let is_set = |sector: u64| bitmap[sector as usize / 8] << (sector % 8) & 0x80 != 0;
        let first = is_set(within);
        let same = (within..within + in_block).take_while(|&sector| is_set(sector) == first).count();
        Ok((same as u64, first))
    }

    /// Where the data of a sector of an allocated block is in the file.
    fn data_at(&self, sector: u64) -> u64 {
        let entry = self.bat[(sector / SECTORS) as usize];
        (u64::from(entry) + self.headers.bitmap_sectors() + sector % SECTORS) * SECTOR
    }

    /// Reads sectors of one block that are here.
    pub(super) fn read(&self, sector: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(bytes, self.data_at(sector))
    }

    /// Writes sectors of one block, which are all here or all not, as [`span`](Self::span) has told. Between two writes
    /// to the file `between` is called.
    pub(super) fn write(
        &mut self,
        sector: u64,
        bytes: &[u8],
        is_here: bool,
        between: &mut dyn FnMut(),
    ) -> io::Result<()> {
        let block = (sector / SECTORS) as u32;
        self.is_changed = true;
        if is_here {
            let is_start = sector.is_multiple_of(SECTORS);
            if is_start && u64::from(self.bat[block as usize]) != self.first && self.is_full(block) {
                self.write_bitmap_again(block)?;
                between();
            }
            return self.file.write_all_at(bytes, self.data_at(sector));
        }
        if self.bat[block as usize] == UNUSED {
            self.allocate(block, between)?;
            between();
        }
        self.file.write_all_at(bytes, self.data_at(sector))?;
        between();
        self.set_bits(block, sector % SECTORS, bytes.len() as u64 / SECTOR)
    }

    /// Writes the bitmap of a full block together with the rest of the page before it, in zeros: so that a guest's
    /// sequential writes are sequential for the disk.
    fn write_bitmap_again(&self, block: u32) -> io::Result<()> {
        let (page, bitmap) = ((PAGE * SECTOR) as usize, (self.headers.bitmap_sectors() * SECTOR) as usize);
        let mut bytes = vec![0; page];
        bytes[page - bitmap..].fill(0xff);
        self.file.write_all_at(&bytes, u64::from(self.bat[block as usize]) * SECTOR - (page - bitmap) as u64)
    }

    /// Puts a block at the end: zeros from where the last one ends, then the sector of the BAT, from memory.
    fn allocate(&mut self, block: u32, between: &mut dyn FnMut()) -> io::Result<()> {
        let entry = aligned(self.next, self.headers.bitmap_sectors());
        if entry > u32::MAX.into() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let end = entry + self.headers.block_sectors();
        self.file.write_all_at(&vec![0; ((end - self.next) * SECTOR) as usize], self.next * SECTOR)?;
        between();
        self.bat[block as usize] = entry as u32;
        self.next = end;
        self.keep_bitmap(block, vec![0; SECTOR as usize]);
        let start = block as usize / 128 * 128;
        let sector: Vec<u8> = self.bat[start..start + 128].iter().flat_map(|entry| entry.to_be_bytes()).collect();
        self.file.write_all_at(&sector, self.headers.table_at() + start as u64 * 4)
    }

    fn set_bits(&mut self, block: u32, first: u64, count: u64) -> io::Result<()> {
        let at = u64::from(self.bat[block as usize]) * SECTOR;
        let bitmap = self.bitmap(block)?;
        for sector in first..first + count {
            bitmap[sector as usize / 8] |= 0x80 >> (sector % 8);
        }
        let (bitmap, is_full) = (bitmap.clone(), bitmap.iter().all(|&byte| byte == 0xff));
        self.file.write_all_at(&bitmap, at)?;
        if let Some(map) = self.batmap.as_mut().filter(|_| is_full) {
            map[block as usize / 8] |= 0x80 >> (block % 8);
        }
        Ok(())
    }

    /// Ends the image's use: where it was changed, the footer is written behind the last block, the file ends there, and
    /// the copy of the footer and the batmap are written, all from memory.
    pub(super) fn close(self) -> io::Result<()> {
        if !self.is_changed {
            return Ok(());
        }
        let end = self.end_of_data() * SECTOR;
        self.file.write_all_at(&self.footer.0, end)?;
        self.file.set_len(end + SECTOR)?;
        self.file.write_all_at(&self.footer.0, 0)?;
        let Some((map, (at, _))) = self.batmap.zip(self.headers.batmap_place()) else { return Ok(()) };
        let mut header = self.headers.batmap.clone().expect("it says where the batmap is");
        let version = be32(&header, 20);
        header[24..28].copy_from_slice(&batmap_checksum(&map, version).to_be_bytes());
        self.file.write_all_at(&map, at)?;
        self.file.write_all_at(&header, self.headers.batmap_header_at())
    }
}

/// What an image says of its parent.
#[derive(Debug)]
pub(super) struct Parent {
    pub(super) path: std::path::PathBuf,
    unique_id: Vec<u8>,
}

impl Parent {
    pub(super) fn is_raw(&self) -> bool {
        self.unique_id.iter().all(|&byte| byte == 0)
    }

    pub(super) fn is(&self, footer: &Footer) -> bool {
        self.unique_id == footer.unique_id()
    }
}
