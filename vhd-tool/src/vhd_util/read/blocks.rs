//! What the tables say of blocks, and blocks as they lie in the file.

use std::io::Write;

use vhd_core::{
    Batmap, BlockIndex, BlockPlace, ByteCount, Container, FileOffset, Header, Image, ReadOnly, SECTOR_SIZE, Sector,
    SectorRange,
};

use super::{Failure, Numbers, beyond, refused};

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

/// The blocks asked for, all of which have an entry in the BAT.
fn range(image: &Image<ReadOnly>, first: BlockIndex, count: u64) -> Result<std::ops::Range<u32>, Failure> {
    let entries = header(image)?.max_table_entries();
    let end = u64::from(first.0).checked_add(count).filter(|&end| end <= u64::from(entries));
    let end = end.ok_or_else(|| beyond(image.path(), &format!("the BAT has only {entries} entries")))?;
    Ok(first.0..end as u32)
}

/// Reads the BAT's entry for a block of the disk.
fn entry(image: &Image<ReadOnly>, block: u32) -> Result<Option<u32>, Failure> {
    let mut bytes = [0; 4];
    let at = header(image)?.table_offset() + ByteCount(u64::from(block) * 4);
    image.container().read_at(&mut bytes, at)?;
    Ok(Some(u32::from_be_bytes(bytes)).filter(|&entry| entry != NONE))
}

/// The place of a block, where it is allocated.
fn place(image: &Image<ReadOnly>, block: u32) -> Result<Option<BlockPlace>, Failure> {
    let size = header(image)?.block_size();
    Ok(entry(image, block)?.map(|entry| BlockPlace::from_entry(entry, size)))
}

const NOT_ALLOCATED: &str = "not allocated";

pub(super) fn translate(
    image: &Image<ReadOnly>,
    sectors: SectorRange,
    numbers: Numbers,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    // All of a fixed image is one block.
    let per_block = image.header().map_or(image.sectors(), |header| header.block_size().sectors()).0;
    for sector in (sectors.start.0..sectors.end.0).map(Sector) {
        let (block, within) = (sector.0 / per_block, sector.0 % per_block);
        let data = match image.header() {
            Some(_) => place(image, block as u32)?.map(|place| place.data + ByteCount(within * SECTOR_SIZE)),
            None => Some(FileOffset(sector.byte_offset())),
        };
        let data = data.map_or_else(|| NOT_ALLOCATED.into(), |data| numbers.show(data.0));
        let [sector, block, within] = [sector.0, block, within].map(|number| numbers.show(number));
        writeln!(out, "logical sector {sector}: block number: {block}, sector offset: {within}, file offset: {data}")?;
    }
    Ok(())
}

pub(super) fn bat_entries(
    image: &Image<ReadOnly>,
    first: BlockIndex,
    count: u64,
    numbers: Numbers,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    for block in range(image, first, count)? {
        let offset = entry(image, block)?.map(|entry| numbers.show(u64::from(entry) * SECTOR_SIZE));
        let offset = offset.unwrap_or_else(|| NOT_ALLOCATED.into());
        writeln!(out, "block: {}: offset: {offset}", numbers.show(block.into()))?;
    }
    Ok(())
}

/// Prints a bit for each block of the disk.
pub(super) fn allocated(image: &Image<ReadOnly>, out: &mut dyn Write) -> Result<(), Failure> {
    let (table, blocks) = (header(image)?.table_offset(), u64::from(image.blocks()));
    for first in (0..blocks).step_by(STEP as usize / 4) {
        let count = (blocks - first).min(STEP / 4);
        let mut entries = vec![0; count as usize * 4];
        image.container().read_at(&mut entries, table + ByteCount(first * 4))?;
        let mut bits = vec![0_u8; count.div_ceil(8) as usize];
        for (i, _) in entries.chunks_exact(4).enumerate().filter(|(_, entry)| *entry != NONE.to_be_bytes()) {
            bits[i / 8] |= 0x80 >> (i % 8);
        }
        out.write_all(&bits)?;
    }
    Ok(())
}

/// What there is of a block in the file.
#[derive(Clone, Copy)]
pub(super) enum Part {
    Bitmap,
    Data,
}

/// Prints a part of each of some blocks as it lies in the file.
pub(super) fn contents(
    image: &Image<ReadOnly>,
    part: Part,
    first: BlockIndex,
    count: u64,
    numbers: Numbers,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let size = header(image)?.block_size();
    for block in range(image, first, count)? {
        match (part, place(image, block)?) {
            (Part::Bitmap, Some(place)) => print_range(image.container(), place.bitmap, size.bitmap_size(), out)?,
            (Part::Data, Some(place)) => print_range(image.container(), place.data, size.bytes(), out)?,
            (_, None) => writeln!(out, "block {} {NOT_ALLOCATED}", numbers.show(block.into()))?,
        }
    }
    Ok(())
}

pub(super) fn batmap(image: &Image<ReadOnly>, out: &mut dyn Write) -> Result<(), Failure> {
    let batmap = map_of(image)?;
    print_range(image.container(), batmap.map_offset(), batmap.map_size(), out)
}

pub(super) fn test_batmap(
    image: &Image<ReadOnly>,
    first: BlockIndex,
    count: u64,
    numbers: Numbers,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let batmap = map_of(image)?;
    for block in range(image, first, count)? {
        let mut byte = [0];
        // A map that is too short says nothing of the rest.
        if u64::from(block / 8) < batmap.map_size().0 {
            image.container().read_at(&mut byte, batmap.map_offset() + ByteCount(u64::from(block / 8)))?;
        }
        let bit = byte[0] >> (7 - block % 8) & 1;
        writeln!(out, "batmap for block {}: {bit}", numbers.show(block.into()))?;
    }
    Ok(())
}

fn print_range(container: &Container, at: FileOffset, length: ByteCount, out: &mut dyn Write) -> Result<(), Failure> {
    for step in (0..length.0).step_by(STEP as usize) {
        let mut bytes = vec![0; (length.0 - step).min(STEP) as usize];
        container.read_at(&mut bytes, at + ByteCount(step))?;
        out.write_all(&bytes)?;
    }
    Ok(())
}
