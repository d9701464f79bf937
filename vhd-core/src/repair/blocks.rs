//! BAT entries that cannot be, blocks that are cut short, and blocks that lie over each other.

use super::{Plan, RepairError};
use crate::batmap::{BATMAP_HEADER_SIZE, BatmapState};
use crate::block_size::BlockPlace;
use crate::format::UNALLOCATED;
use crate::image::{BlockFault, Image, ReadOnly, Tables};
use crate::overlap::Overlap;
use crate::storage::StorageError;
use crate::units::{BlockIndex, ByteCount, SECTOR_SIZE, Sector, SectorCount, SectorRange};

/// The most blocks among which overlaps are mended: more than a file with 2 MiB blocks can have.
const MOST_BLOCKS: usize = 4 << 20;

/// A BAT entry, and where it puts its block.
type Placed = (BlockIndex, BlockPlace);

impl Plan<'_> {
    /// Makes every BAT entry one that can be, and gives back to each block the length it should have.
    pub(super) fn mend_blocks(&mut self) -> Result<(), RepairError> {
        self.doubt_batmap()?;
        let image = self.open()?;
        let Some(tables) = &image.tables else { return Ok(()) };
        self.clear_impossible(&image, tables)?;
        self.part_overlaps(&image, tables)?;
        self.lose_cut_ends(&image, tables)
    }

    /// A block lies over the batmap: one of the two is not there. Where the batmap cannot be shown to be right it is
    /// given up, and later made anew elsewhere.
    fn doubt_batmap(&mut self) -> Result<(), RepairError> {
        let image = self.open()?;
        let Some(tables) = &image.tables else { return Ok(()) };
        let BatmapState::Present(batmap) = &tables.batmap else { return Ok(()) };
        let head = batmap.region().start;
        let is_over =
            |place: &BlockPlace| matches!(tables.fault_of(*place), Some(BlockFault::Over { region: "batmap" }));
        let over = self.placed(tables).find(|found| found.as_ref().map_or(true, |(_, place)| is_over(place)));
        let Some((block, place)) = over.transpose()? else { return Ok(()) };
        if batmap.map_offset() == head + BATMAP_HEADER_SIZE && batmap.is_intact(&self.container)? {
            return Ok(());
        }
        let size = tables.header.block_size();
        let covers = |place: &BlockPlace| place.bitmap < head + BATMAP_HEADER_SIZE && head < place.data + size.bytes();
        if self.placed(tables).any(|found| found.as_ref().map_or(true, |(_, place)| covers(place))) {
            let path = self.container.path().into();
            return Err(RepairError::OverBatmap { path, block, offset: place.bitmap });
        }
        self.salvaged = Some(batmap.clone());
        self.container.write_at(&[0; 8], head)?;
        Ok(())
    }

    fn placed<'b>(&'b self, tables: &'b Tables) -> impl Iterator<Item = Result<Placed, StorageError>> + 'b {
        let size = tables.header.block_size();
        tables
            .bat
            .allocated(&self.container, tables.bat.entries())
            .map(move |found| found.map(|(block, entry)| (block, BlockPlace::from_entry(entry, size))))
    }

    /// Clears entries beyond the end of the file, or over something that is no block.
    fn clear_impossible(&mut self, image: &Image<ReadOnly>, tables: &Tables) -> Result<(), RepairError> {
        let room = image.footer_origin().room(tables.file_len());
        let fault_of = |place: &BlockPlace| {
            let beyond = BlockFault::BeyondEnd { len: ByteCount(room.0) };
            tables.fault_of(*place).or((place.data >= room).then_some(beyond))
        };
        let is_bad =
            |found: &Result<Placed, StorageError>| found.as_ref().map_or(true, |(_, place)| fault_of(place).is_some());
        let bad: Vec<_> = self.placed(tables).filter(is_bad).take(MOST_BLOCKS).collect::<Result<_, _>>()?;
        for &(block, place) in &bad {
            let Some(fault) = fault_of(&place) else { continue };
            let bitmap_is_there = matches!(fault, BlockFault::BeyondEnd { .. }) && place.data <= room;
            let lost = match bitmap_is_there {
                true => self.held(image, tables, (block, place))?,
                false => vec![on_disk(image, tables, block)],
            };
            self.lost.extend(lost);
            let code = if tables.fault_of(place).is_some() { "bat-entry" } else { "block-truncated" };
            self.note(code, format!("block {block} at offset {}: {fault}; its BAT entry is cleared", place.bitmap));
        }
        let blocks: Vec<_> = bad.into_iter().map(|(block, _)| block).collect();
        Ok(self.clear(tables, &blocks)?)
    }

    fn clear(&self, tables: &Tables, blocks: &[BlockIndex]) -> Result<(), StorageError> {
        let entries: Vec<_> = blocks.iter().map(|&block| (block, UNALLOCATED)).collect();
        tables.bat.publish(&self.container, &entries)
    }

    /// What lies past the end of the room for blocks is lost, as far as the bitmap says that it was there. The space
    /// itself comes back when the footer is written behind it.
    fn lose_cut_ends(&mut self, image: &Image<ReadOnly>, tables: &Tables) -> Result<(), RepairError> {
        let (room, size) = (image.footer_origin().room(tables.file_len()), tables.header.block_size());
        let is_cut = |found: &Result<Placed, StorageError>| {
            found.as_ref().map_or(true, |(_, place)| place.data + size.bytes() > room)
        };
        let cut: Vec<_> = self.placed(tables).filter(is_cut).take(MOST_BLOCKS).collect::<Result<_, _>>()?;
        for (block, place) in cut {
            let start = size.sectors_of(block).start;
            let there = SectorCount(room.0.saturating_sub(place.data.0) / SECTOR_SIZE);
            let held = self.held(image, tables, (block, place))?;
            let lost = held.into_iter().map(|range| SectorRange::between(range.start.max(start + there), range.end));
            self.lost.extend(lost.filter(|range| !range.is_empty()));
            // Half a sector is none.
            let whole = place.data + there.bytes();
            if whole < room {
                self.container.zero_range(whole, room - whole)?;
            }
            let text = format!("block {block} ended at offset {room}; the rest of it reads as zeros");
            self.note("block-truncated", text);
        }
        Ok(())
    }

    /// Clears blocks that lie over others, where it is certain that nothing is lost by it.
    fn part_overlaps(&mut self, image: &Image<ReadOnly>, tables: &Tables) -> Result<(), RepairError> {
        let stride = tables.header.block_size().stride();
        let mut places: Vec<Placed> = Vec::new();
        for placed in self.placed(tables).take(MOST_BLOCKS + 1) {
            places.push(placed?);
        }
        if places.len() > MOST_BLOCKS {
            // The check at the end refuses the image, should there be overlaps.
            return Ok(());
        }
        places.sort_unstable_by_key(|(block, place)| (*place, *block));
        let mut kept: Vec<Placed> = Vec::new();
        let mut cleared = Vec::new();
        for &here in &places {
            let mut clear_here = false;
            while let Some(&last) = kept.last()
                && here.1.bitmap < last.1.bitmap + stride
                && !clear_here
            {
                let (one, other) =
                    (self.empty(image, tables, &places, here)?, self.empty(image, tables, &places, last)?);
                let (gone, why) = match (one, other) {
                    (Some(why), _) => (here.0, why),
                    (None, Some(why)) => (last.0, why),
                    (None, None) => return Err(self.undecided(image, tables, last, here)?),
                };
                clear_here = gone == here.0;
                if !clear_here {
                    kept.pop();
                }
                cleared.push(gone);
                let text = format!(
                    "blocks {} and {} overlap; the BAT entry of block {gone} is cleared: {why}",
                    last.0, here.0
                );
                self.note("block-overlap", text);
            }
            if !clear_here {
                kept.push(here);
            }
        }
        cleared.sort_unstable();
        Ok(self.clear(tables, &cleared)?)
    }

    /// Why it is certain that a block holds nothing of the disk; `None` where it is not.
    fn empty(
        &self,
        image: &Image<ReadOnly>,
        tables: &Tables,
        places: &[Placed],
        (block, place): Placed,
    ) -> Result<Option<&'static str>, RepairError> {
        if block.0 >= image.blocks() {
            return Ok(Some("it lies beyond the end of the disk"));
        }
        // Any other block that starts from here to there has its bytes where this one has its bitmap.
        let stride = tables.header.block_size().stride().0;
        let from = places.partition_point(|(_, other)| other.bitmap.0 + stride <= place.bitmap.0);
        let to = places.partition_point(|(_, other)| other.bitmap < place.data);
        if to - from > 1 {
            return Ok(None);
        }
        let bitmap = tables.read_bitmap(&self.container, place)?;
        let sectors = tables.header.block_size().sectors().0 as u32;
        Ok((bitmap.count(0..sectors) == 0).then_some("its bitmap, which nothing lies over, says that it holds nothing"))
    }

    fn undecided(
        &self,
        image: &Image<ReadOnly>,
        tables: &Tables,
        first: Placed,
        second: Placed,
    ) -> Result<RepairError, RepairError> {
        Ok(RepairError::Overlap {
            path: self.container.path().into(),
            overlap: Overlap { first: first.0, second: second.0, at: second.1.bitmap },
            first: self.held(image, tables, first)?,
            second: self.held(image, tables, second)?,
        })
    }

    /// The sectors that a block holds as its bitmap says.
    fn held(
        &self,
        image: &Image<ReadOnly>,
        tables: &Tables,
        (block, place): Placed,
    ) -> Result<Vec<SectorRange>, RepairError> {
        let disk = on_disk(image, tables, block);
        if disk.is_empty() {
            return Ok(Vec::new());
        }
        let bitmap = tables.read_bitmap(&self.container, place)?;
        let runs = bitmap.runs(0..disk.count().0 as u32).filter(|(_, set)| *set);
        let range = |start: u32, end: u32| SectorRange::between(at(disk, start), at(disk, end));
        Ok(runs.map(|(run, _)| range(run.start, run.end)).collect())
    }
}

fn at(disk: SectorRange, sector: u32) -> Sector {
    disk.start + SectorCount(u64::from(sector))
}

/// The sectors of a block that are on the disk; none of one that lies beyond its end.
fn on_disk(image: &Image<ReadOnly>, tables: &Tables, block: BlockIndex) -> SectorRange {
    let sectors = tables.header.block_size().sectors_of(block);
    SectorRange::between(sectors.start, sectors.end.min(Sector(image.sectors().0)))
}
