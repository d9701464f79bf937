//! What an image says of itself, read byte by byte where libvhd reads it. Nothing of this goes through the code under test.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

/// Bytes of a sector, which is also the length of a footer.
pub(crate) const SECTOR: u64 = 512;
/// libvhd counts blocks of 2 MiB, whatever the header says.
pub(crate) const BLOCK: u64 = 2 << 20;
/// Sectors of a page: data starts at a multiple, and the bitmap of a full block is written together with the rest of one.
pub(crate) const PAGE: u64 = 8;
/// A BAT entry of a block that is not there.
pub(crate) const UNUSED: u32 = u32::MAX;

pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(std::array::from_fn(|i| bytes[at + i]))
}

pub(crate) fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|i| bytes[at + i]))
}

/// The ones' complement of the sum of all bytes but those of the checksum itself, at `field`.
fn checksum(record: &[u8], field: usize) -> u32 {
    let rest = record.iter().enumerate().filter(|(at, _)| !(field..field + 4).contains(at));
    !rest.map(|(_, &byte)| u32::from(byte)).sum::<u32>()
}

pub(crate) fn refuse<T>(why: impl Into<String>) -> io::Result<T> {
    Err(io::Error::new(ErrorKind::InvalidData, why.into()))
}

pub(crate) fn read(file: &File, at: u64, bytes: u64) -> io::Result<Vec<u8>> {
    let mut read = vec![0; bytes as usize];
    file.read_exact_at(&mut read, at)?;
    Ok(read)
}

/// A footer: what the image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Footer(pub(crate) Vec<u8>);

impl Footer {
    /// Reads a footer at a place; `None` where there is none.
    pub(crate) fn read_at(file: &File, at: u64) -> io::Result<Option<Self>> {
        let bytes = read(file, at, SECTOR)?;
        let is_footer =
            [&b"conectix"[..], b"v_poison"].contains(&&bytes[..8]) && be32(&bytes, 64) == checksum(&bytes, 64);
        Ok(is_footer.then_some(Self(bytes)))
    }

    /// Reads the footer at the end of the file, or else its copy at the start.
    pub(crate) fn read(file: &File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let end = length.checked_sub(SECTOR).map(|at| Self::read_at(file, at)).transpose()?.flatten();
        match end {
            Some(footer) => Ok(footer),
            None => Self::read_at(file, 0)?.map_or_else(|| refuse("no footer at the end and none at the start"), Ok),
        }
    }

    pub(crate) fn is_poisoned(&self) -> bool {
        self.0.starts_with(b"v_poison")
    }

    pub(crate) fn is_fixed(&self) -> bool {
        be32(&self.0, 60) == 2
    }

    pub(crate) fn is_differencing(&self) -> bool {
        be32(&self.0, 60) == 4
    }

    pub(crate) fn disk_bytes(&self) -> u64 {
        be64(&self.0, 48)
    }

    pub(crate) fn unique_id(&self) -> &[u8] {
        &self.0[68..84]
    }

    /// The version of the tapdisk that made the image, or 0 where another program did.
    fn tap_version(&self) -> u32 {
        if self.0[28..31] == *b"tap" { be32(&self.0, 32) } else { 0 }
    }
}

/// One of the eight places of a header that can name the parent.
#[derive(Clone, Debug)]
pub(crate) struct Locator {
    pub(crate) code: [u8; 4],
    /// Bytes of text.
    pub(crate) length: u64,
    /// Bytes that it takes in the file; 0 where that makes no sense.
    pub(crate) space: u64,
    pub(crate) offset: u64,
}

/// Header and batmap header of a dynamic or differencing image.
#[derive(Clone, Debug)]
pub(crate) struct Headers {
    pub(crate) header_at: u64,
    pub(crate) header: Vec<u8>,
    /// The sector of the batmap's header, of images that have a batmap.
    pub(crate) batmap: Option<Vec<u8>>,
}

impl Headers {
    pub(crate) fn read(file: &File, footer: &Footer) -> io::Result<Self> {
        let header_at = be64(&footer.0, 16);
        let header = read(file, header_at, 1024)?;
        if header[..8] != *b"cxsparse" || be32(&header, 36) != checksum(&header, 36) {
            return refuse("no header where the footer says");
        }
        let mut headers = Self { header_at, header, batmap: None };
        // Images of version 1.1 may have lost their batmap to an update from 0.1.
        if footer.tap_version() > 0x0001_0000 {
            let found = read(file, headers.batmap_header_at(), SECTOR)?;
            let is_batmap = found[..8] == *b"tdbatmap" && be32(&found, 20) <= 0x0001_0002;
            if !is_batmap && footer.tap_version() >= 0x0001_0002 {
                return refuse("no batmap after the BAT");
            }
            headers.batmap = is_batmap.then_some(found);
        }
        Ok(headers)
    }

    pub(crate) fn table_at(&self) -> u64 {
        be64(&self.header, 16)
    }

    pub(crate) fn max_entries(&self) -> u32 {
        be32(&self.header, 28)
    }

    pub(crate) fn block_bytes(&self) -> u64 {
        be32(&self.header, 32).into()
    }

    pub(crate) fn parent_id(&self) -> &[u8] {
        &self.header[40..56]
    }

    /// The end of the BAT, padded to whole sectors, where the batmap's header is.
    pub(crate) fn batmap_header_at(&self) -> u64 {
        self.table_at() + (u64::from(self.max_entries()) * 4).next_multiple_of(SECTOR)
    }

    /// Where the batmap itself is, and how many bytes have been set aside for it.
    pub(crate) fn batmap_place(&self) -> Option<(u64, u64)> {
        self.batmap.as_ref().map(|batmap| (be64(batmap, 8), u64::from(be32(batmap, 16)) * SECTOR))
    }

    /// Sectors of the bitmap before each block.
    pub(crate) fn bitmap_sectors(&self) -> u64 {
        (self.block_bytes() / SECTOR).div_ceil(8).div_ceil(SECTOR)
    }

    /// Bitmap and data of a block, in sectors.
    pub(crate) fn block_sectors(&self) -> u64 {
        self.bitmap_sectors() + self.block_bytes() / SECTOR
    }

    /// The bytes of a locator that are used, in the order of the header.
    pub(crate) fn locators(&self) -> impl Iterator<Item = Locator> {
        self.header[576..768].chunks(24).filter(|entry| be32(entry, 0) != 0).map(|entry| {
            let space = match u64::from(be32(entry, 4)) {
                // The specification has sectors here, and bytes elsewhere.
                sectors @ 0..SECTOR => sectors * SECTOR,
                bytes if bytes % SECTOR == 0 => bytes,
                _ => 0,
            };
            let code = std::array::from_fn(|i| entry[i]);
            Locator { code, length: be32(entry, 8).into(), space, offset: be64(entry, 16) }
        })
    }

    /// Where all of this ends, BAT, batmap and locators included: a block may come after it.
    pub(crate) fn end(&self) -> u64 {
        let batmap = self.batmap_place().map_or(0, |(at, bytes)| at + bytes);
        let batmap_header = self.batmap.as_ref().map_or(0, |_| SECTOR);
        let tables = [self.header_at + 1024, self.batmap_header_at() + batmap_header, batmap];
        let locators = self.locators().map(|locator| locator.offset + locator.space);
        tables.into_iter().chain(locators).max().unwrap_or(0)
    }

    /// Where the first block may be, in sectors.
    pub(crate) fn first_block(&self) -> u64 {
        aligned(self.end().div_ceil(SECTOR), self.bitmap_sectors())
    }

    /// Reads the batmap, which begins with as much as disks of this size need.
    pub(crate) fn read_batmap(&self, file: &File, disk_bytes: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(((at, space), header)) = self.batmap_place().zip(self.batmap.as_ref()) else { return Ok(None) };
        let bytes = batmap_bytes(disk_bytes);
        if space < bytes {
            return refuse("a batmap that is too short: here tapdisk aborts");
        }
        let map = read(file, at, bytes)?;
        if batmap_checksum(&map, be32(header, 20)) != be32(header, 24) {
            return refuse("a batmap with a wrong checksum");
        }
        Ok(Some(map))
    }
}

/// The next place, in sectors, for a bitmap whose block is to start with a page.
pub(crate) fn aligned(sector: u64, bitmap: u64) -> u64 {
    (sector + bitmap).next_multiple_of(PAGE) - bitmap
}

/// The bytes of the batmap that libvhd reads, sums and writes.
fn batmap_bytes(disk_bytes: u64) -> u64 {
    (disk_bytes / BLOCK / 8).div_ceil(SECTOR).max(1) * SECTOR
}

/// The checksum of a batmap; version 1.1 takes its bytes for signed ones.
pub(crate) fn batmap_checksum(map: &[u8], version: u32) -> u32 {
    let signed =
        |byte: u8| if version == 0x0001_0001 { i32::from(byte.cast_signed()).cast_unsigned() } else { byte.into() };
    !map.iter().fold(0_u32, |sum, &byte| sum.wrapping_add(signed(byte)))
}
