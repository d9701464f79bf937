//! What the tables say of blocks, and blocks as they lie in the file.

use std::io::Write;

use vhd_core::{
    Batmap, BlockIndex, BlockPlace, ByteCount, Container, FileOffset, Header, Image, ReadOnly, SECTOR_SIZE, Sector,
    SectorCount,
};

use super::content::Dump;
use super::{Failure, refused};

/// Bytes that are read at a time.
const STEP: u64 = 256 * 1024;
/// The BAT's entry of a block that is not allocated.
const NONE: u32 = u32::MAX;

fn header(image: &Image<ReadOnly>) -> Result<&Header, Failure> {
    Ok(image.header().ok_or_else(|| refused(image.path(), "a fixed image, which has no blocks"))?)
}

fn map_of(image: &Image<ReadOnly>) -> Result<&Batmap, Failure> {
    Ok(image.batmap().ok_or_else(|| refused(image.path(), "there is no batmap"))?)
}

/// The blocks asked for, all of which are on the disk.
fn range(image: &Image<ReadOnly>, first: BlockIndex, count: u64) -> Result<std::ops::Range<u32>, Failure> {
    header(image)?;
    let end = u64::from(first.0).checked_add(count).filter(|&end| end <= u64::from(image.blocks()));
    let end = end.ok_or_else(|| refused(image.path(), &format!("the disk has only {} blocks", image.blocks())))?;
    Ok(first.0..end as u32)
}

/// Reads the BAT's entry for a block of the disk.
fn entry(image: &Image<ReadOnly>, block: u32) -> Result<Option<u32>, Failure> {
    let mut bytes = [0; 4];
    let at = header(image)?.table_offset() + ByteCount(u64::from(block) * 4);
    image.container().read_at(&mut bytes, at)?;
    Ok(Some(u32::from_be_bytes(bytes)).filter(|&entry| entry != NONE))
}

/// The place of a block, which is allocated.
fn place(image: &Image<ReadOnly>, block: u32) -> Result<BlockPlace, Failure> {
    let entry = entry(image, block)?;
    let entry = entry.ok_or_else(|| refused(image.path(), &format!("block {block} is not allocated")))?;
    Ok(BlockPlace::from_entry(entry, header(image)?.block_size()))
}

pub(super) fn translate(
    image: &Image<ReadOnly>,
    first: Sector,
    count: SectorCount,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let end = first.0.checked_add(count.0).filter(|&end| end <= image.sectors().0);
    let end = end.ok_or_else(|| refused(image.path(), &format!("the disk has only {} sectors", image.sectors())))?;
    (first.0..end).try_for_each(|sector| translate_one(image, Sector(sector), out))
}

fn translate_one(image: &Image<ReadOnly>, sector: Sector, out: &mut dyn Write) -> Result<(), Failure> {
    let Some(size) = image.header().map(Header::block_size) else {
        return Ok(writeln!(out, "sector {sector}: data offset: {}", sector.byte_offset())?);
    };
    let (block, within) = (sector.0 / size.sectors().0, sector.0 % size.sectors().0);
    write!(out, "sector {sector}: block: {block} sec: {within} ")?;
    match entry(image, block as u32)?.map(|entry| BlockPlace::from_entry(entry, size)) {
        None => writeln!(out, "not allocated")?,
        Some(place) => {
            let data = place.data + ByteCount(within * SECTOR_SIZE);
            writeln!(out, "bitmap offset: {} data offset: {data}", place.bitmap)?;
        }
    }
    Ok(())
}

pub(super) fn bat_entries(
    image: &Image<ReadOnly>,
    first: BlockIndex,
    count: u64,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    for block in range(image, first, count)? {
        match entry(image, block)? {
            None => writeln!(out, "block: {block}: not allocated")?,
            Some(entry) => writeln!(out, "block: {block}: offset: {entry}")?,
        }
    }
    Ok(())
}

/// Prints a bit for each entry of the BAT; those beyond the end of the disk are clear.
pub(super) fn allocated(image: &Image<ReadOnly>, out: &mut Dump<'_>) -> Result<(), Failure> {
    let header = header(image)?;
    let (entries, blocks) = (u64::from(header.max_table_entries()), u64::from(image.blocks()));
    for first in (0..entries).step_by(STEP as usize / 4) {
        let count = (entries - first).min(STEP / 4);
        let mut table = vec![0; count as usize * 4];
        image.container().read_at(&mut table, header.table_offset() + ByteCount(first * 4))?;
        let mut bits = vec![0_u8; count.div_ceil(8) as usize];
        for (i, entry) in table.chunks_exact(4).enumerate() {
            if entry != NONE.to_be_bytes() && first + (i as u64) < blocks {
                bits[i / 8] |= 0x80 >> (i % 8);
            }
        }
        out.write(&bits)?;
    }
    Ok(out.end()?)
}

pub(super) fn bitmaps(
    image: &Image<ReadOnly>,
    first: BlockIndex,
    count: u64,
    out: &mut Dump<'_>,
) -> Result<(), Failure> {
    for block in range(image, first, count)? {
        let place = place(image, block)?;
        print_range(image.container(), place.bitmap, header(image)?.block_size().bitmap_size(), out)?;
    }
    Ok(out.end()?)
}

pub(super) fn data(image: &Image<ReadOnly>, first: BlockIndex, count: u64, out: &mut Dump<'_>) -> Result<(), Failure> {
    for block in range(image, first, count)? {
        let place = place(image, block)?;
        print_range(image.container(), place.data, header(image)?.block_size().bytes(), out)?;
    }
    Ok(out.end()?)
}

pub(super) fn batmap(image: &Image<ReadOnly>, out: &mut Dump<'_>) -> Result<(), Failure> {
    let batmap = map_of(image)?;
    print_range(image.container(), batmap.map_offset(), batmap.map_size(), out)?;
    Ok(out.end()?)
}

pub(super) fn test_batmap(
    image: &Image<ReadOnly>,
    first: BlockIndex,
    count: u64,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let batmap = map_of(image)?;
    for block in range(image, first, count)? {
        let mut byte = [0];
        // A map that is too short says nothing of the rest.
        if u64::from(block / 8) < batmap.map_size().0 {
            image.container().read_at(&mut byte, batmap.map_offset() + ByteCount(u64::from(block / 8)))?;
        }
        writeln!(out, "block {block}: {}", byte[0] >> (7 - block % 8) & 1)?;
    }
    Ok(())
}

fn print_range(container: &Container, at: FileOffset, length: ByteCount, out: &mut Dump<'_>) -> Result<(), Failure> {
    for step in (0..length.0).step_by(STEP as usize) {
        let mut bytes = vec![0; (length.0 - step).min(STEP) as usize];
        container.read_at(&mut bytes, at + ByteCount(step))?;
        out.write(&bytes)?;
    }
    Ok(())
}
