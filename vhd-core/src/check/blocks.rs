//! The BAT, the blocks it places, their bitmaps, and the batmap.

use super::{Report, kind};
use crate::batmap::BatmapState;
use crate::block_size::BlockPlace;
use crate::image::{Image, ReadError, ReadOnly, Tables};
use crate::layout;
use crate::overlap::find_overlaps;
use crate::storage::StorageError;
use crate::units::{BlockIndex, ByteCount, FileOffset};

pub(super) fn check(image: &Image<ReadOnly>, report: &mut Report) -> Result<(), StorageError> {
    let Some(tables) = &image.tables else { return Ok(()) };
    let end_of_blocks = check_places(image, tables, report)?;
    check_overlaps(image, tables, report)?;
    check_layout(image, tables, report)?;
    check_batmap(image, tables, report)?;
    check_tail(image, end_of_blocks, report)
}

/// Checks each entry by itself; gives the end of the last block.
fn check_places(image: &Image<ReadOnly>, tables: &Tables, report: &mut Report) -> Result<FileOffset, StorageError> {
    let size = tables.header.block_size();
    let room = image.footer_origin().room(tables.file_len());
    let locators: Vec<_> = image.header().filter(|_| image.is_differencing()).map_or(Vec::new(), |header| {
        header
            .locators()
            .map(|(slot, entry)| (slot, entry.offset.0..entry.offset.0.saturating_add(entry.length.0)))
            .collect()
    });
    let mut aligned = Alignment::default();
    let mut end = FileOffset(0);
    for found in tables.bat.allocated(image.container(), tables.bat.entries()) {
        let (block, entry) = found?;
        let place = BlockPlace::from_entry(entry, size);
        let entry_at = Some(tables.header.table_offset() + ByteCount(u64::from(block.0) * 4));
        if block.0 >= image.blocks() {
            let text = format!("BAT entry {block} is in use, beyond the {} blocks of the disk", image.blocks());
            report.add(&kind::BAT_BEYOND_DISK, entry_at, text);
        }
        if let Some(fault) = tables.fault_of(place) {
            let text = format!("the BAT puts block {block} at offset {}, but {fault}", place.bitmap);
            report.add(&kind::BAT_ENTRY, entry_at, text);
            continue;
        }
        let block_end = place.data + size.bytes();
        if block_end > room {
            let text = format!("block {block} is cut short: it would end at {block_end}, its room ends at {room}");
            report.add(&kind::BLOCK_TRUNCATED, Some(place.bitmap), text);
        }
        if let Some((slot, _)) = locators.iter().find(|(_, text)| text.start < block_end.0 && place.bitmap.0 < text.end)
        {
            let text = format!("block {block} lies over parent locator {slot}");
            report.add(&kind::BLOCK_OVER_LOCATOR, entry_at, text);
        }
        aligned.see(block, place);
        end = end.max(block_end);
    }
    if let Some((block, place)) = aligned.only_one() {
        let text = format!(
            "BAT entry {block} is odd: alone of all blocks, its data at {} is not on a 4 KiB boundary",
            place.data
        );
        report.add(&kind::BLOCK_PLACE, Some(place.bitmap), text);
    }
    Ok(end)
}

/// Checks that tables and blocks lie where other programs take them to lie. Only who keeps a batmap overwrites what does not.
fn check_layout(image: &Image<ReadOnly>, tables: &Tables, report: &mut Report) -> Result<(), StorageError> {
    // Where the batmap is lost, blocks may lie in its place; a repair makes room for it.
    if tables.batmap == BatmapState::Overwritten || image.is_laid_out()? {
        return Ok(());
    }
    let end = layout::end_of_tables(tables);
    let first = image.misplaced(tables, end).next().transpose()?;
    let place = first.map_or(FileOffset(0), |(_, place)| place.bitmap);
    let why = match first {
        Some((block, _)) => {
            format!("block {block} at offset {place} lies before the end of the tables, {end}, or too close behind")
        }
        None => format!("the header lies at offset {}", tables.header_at),
    };
    let kind = if image.footer().promises_batmap() { &kind::TABLES_BEHIND } else { &kind::TABLES_ELSEWHERE };
    report.add(kind, Some(place), why);
    Ok(())
}

/// How many blocks lie on a 4 KiB boundary.
#[derive(Default)]
struct Alignment {
    aligned: u64,
    others: u64,
    last_other: Option<(BlockIndex, BlockPlace)>,
}

impl Alignment {
    fn see(&mut self, block: BlockIndex, place: BlockPlace) {
        if place.data.0.is_multiple_of(4096) {
            self.aligned += 1;
        } else {
            self.others += 1;
            self.last_other = Some((block, place));
        }
    }

    /// The block that does not, where all others, and several, do.
    fn only_one(&self) -> Option<(BlockIndex, BlockPlace)> {
        self.last_other.filter(|_| self.others == 1 && self.aligned >= 3)
    }
}

fn check_overlaps(image: &Image<ReadOnly>, tables: &Tables, report: &mut Report) -> Result<(), StorageError> {
    let size = tables.header.block_size();
    let sound = || {
        tables.bat.allocated(image.container(), tables.bat.entries()).filter_map(|found| match found {
            Ok((block, entry)) => {
                let place = BlockPlace::from_entry(entry, size);
                tables.fault_of(place).is_none().then_some(Ok((block, place)))
            }
            Err(error) => Some(Err(error)),
        })
    };
    find_overlaps(size, tables.file_len(), sound, |overlap| {
        let text = format!("{overlap}: what one of them writes, the other reads");
        report.add(&kind::BLOCK_OVERLAP, Some(overlap.at), text);
    })
}

fn check_batmap(image: &Image<ReadOnly>, tables: &Tables, report: &mut Report) -> Result<(), StorageError> {
    let batmap = match &tables.batmap {
        BatmapState::Absent => return Ok(()),
        BatmapState::Overwritten => {
            let at = crate::batmap::header_offset(&tables.header);
            let text =
                "the creator promises a batmap and there is none (qemu overwrites it); blktap will not open this image";
            report.add(&kind::BATMAP_LOST, Some(at), text);
            return Ok(());
        }
        BatmapState::Present(batmap) => batmap,
    };
    if !batmap.is_intact(image.container())? {
        let text = "the batmap's checksum is wrong; the bitmaps say the same and are used";
        report.add(&kind::BATMAP_CHECKSUM, Some(batmap.region().start), text);
        return Ok(());
    }
    let sectors = tables.header.block_size().sectors();
    let mut unknown_full = 0_u64;
    let mut failed = None;
    batmap.for_each(image.container(), image.blocks(), |block, bit| {
        if failed.is_some() {
            return;
        }
        match is_full(image, block, sectors) {
            Ok(Some(full)) if bit && !full => {
                let text = format!(
                    "the batmap says that block {block} is full, its bitmap that it is not: blktap reads garbage"
                );
                report.add(&kind::BATMAP_WRONG,
                    Some(batmap.map_offset() + ByteCount(u64::from(block.0) / 8)),
                    text,
                );
            }
            Ok(None) if bit => {
                let text = format!("the batmap says that block {block} is full, but it is not allocated: once it is, blktap reads garbage");
                let at = batmap.map_offset() + ByteCount(u64::from(block.0) / 8);
                report.add(&kind::BATMAP_STALE, Some(at), text);
            }
            Ok(Some(true)) if !bit => unknown_full += 1,
            Ok(_) => {}
            Err(error) => failed = Some(error),
        }
    })?;
    if unknown_full > 0 {
        let text = format!("{unknown_full} full blocks are not in the batmap; blktap reads their bitmaps instead");
        report.add(&kind::BATMAP_BEHIND, Some(batmap.map_offset()), text);
    }
    failed.map_or(Ok(()), Err)
}

/// Tells whether all of a block is there; `None` where it is not allocated, or not where it could be.
fn is_full(
    image: &Image<ReadOnly>,
    block: BlockIndex,
    sectors: crate::units::SectorCount,
) -> Result<Option<bool>, StorageError> {
    let tables = image.tables.as_ref().expect("the caller has them");
    if tables.bat.entry(image.container(), block)?.is_none() {
        return Ok(None);
    }
    match image.present_sectors(block) {
        Ok(present) => Ok(Some(present == sectors)),
        Err(ReadError::Storage(error)) => Err(error),
        Err(_) => Ok(None),
    }
}

fn check_tail(image: &Image<ReadOnly>, end_of_blocks: FileOffset, report: &mut Report) -> Result<(), StorageError> {
    if image.container().has_fixed_size() {
        return Ok(());
    }
    let tables = image.tables.as_ref().expect("the caller has them");
    let locators = tables.header.locators().map(|(_, entry)| FileOffset(entry.offset.0.saturating_add(entry.space.0)));
    let used = tables.regions().map(|region| region.range.end).chain(locators).fold(end_of_blocks, FileOffset::max);
    let room = image.footer_origin().room(tables.file_len());
    // Alignment leaves up to 4 KiB between the last block and the footer.
    if used.0.saturating_add(4096) < room.0 {
        let text = format!("{} bytes between the last block and the footer belong to nothing", room.0 - used.0);
        report.add(&kind::STRAY_BYTES, Some(used), text);
    }
    Ok(())
}
