//! What a merge will move: computed from the tables, before anything is changed.

use std::borrow::Cow;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use vhd_core::{
    BlockIndex, BlockSize, ByteCount, ChainExtent, ChainSource, Extents, FOOTER_SIZE, Header, Layer, ReadError,
    SECTOR_SIZE, Sector, SectorCount, SectorRange, Source, resolve_layers,
};

use crate::abort::Abort;
use crate::error::CoalesceError;
use crate::merge::MergeError;
use crate::record::Direction;

/// Extents that a plan keeps; those of further units are found again when their turn comes.
const KEPT_EXTENTS: usize = 1 << 20;
/// The least that is planned and moved as one: 2 MiB.
const SMALLEST_UNIT: SectorCount = SectorCount(4096);
/// The smallest piece of a file that takes space of its own.
const PAGE: u64 = 4096;

/// A stretch of the disk into which something moves: a block of the target, several small ones, or as much of a target
/// without blocks.
#[derive(Clone, Debug)]
pub struct Unit {
    /// Its sectors, up to the end of the disk.
    pub sectors: SectorRange,
    /// The blocks that the target gains here, in order.
    pub new_blocks: Vec<BlockIndex>,
    /// The data that moves.
    pub data: ByteCount,
    /// Space that its new blocks take at least, bitmaps included.
    pub space_needed: ByteCount,
    /// What moves, in the order of the disk; `None` where the plan grew too large to keep it.
    pub(crate) extents: Option<Box<[ChainExtent]>>,
}

/// What a merge will move.
#[derive(Clone, Debug)]
pub struct Plan {
    units: Vec<Unit>,
    direction: Direction,
    zeros_end: Sector,
    /// Sectors of data that move.
    pub data: ByteCount,
    /// Sectors that become zeros in the target, because a node above it ends before them.
    pub zeros: ByteCount,
    /// Separate pieces that are read.
    pub extents: u64,
    /// Blocks that the target gains.
    pub new_blocks: u64,
    /// Space that these take at least, bitmaps included, in whole pages. What is written into blocks that are there may take more.
    pub space_needed: ByteCount,
    /// Bytes of tables that are read: BATs, and bitmaps of sources and target.
    pub tables_read: ByteCount,
    /// Bytes of tables that are written: bitmaps, BAT and batmap sectors, footers.
    pub tables_written: ByteCount,
}

impl Plan {
    /// Plans the merge of `sources`, newest first, into `target`; the disk then has `size` bytes.
    ///
    /// `hidden` is how much of the disk something that the sources hide may show through where they end: of the target
    /// itself, or of what lies beneath it when the sources are gone.
    ///
    /// # Errors
    /// An image whose tables cannot be read or cannot be true; the abort.
    pub fn new(
        sources: &[Layer],
        target: &Layer,
        direction: Direction,
        size: ByteCount,
        hidden: ByteCount,
        abort: &Abort,
    ) -> Result<Self, CoalesceError> {
        let disk_end = Sector(size.whole_sectors().0);
        let zeros_end = Sector(hidden.0.div_ceil(SECTOR_SIZE));
        let holder = target;
        let target = &TargetTables::of(target)?;
        let touched = touched_units(sources, target, disk_end, zeros_end)?;
        let kept = AtomicUsize::new(0);
        let resolved: Vec<(Unit, Share)> = touched
            .into_par_iter()
            .map(|index| {
                abort.check().map_err(MergeError::Aborted)?;
                let start = Sector(index * target.unit.0);
                let sectors = SectorRange::between(start, Sector(start.0 + target.unit.0).min(disk_end));
                let extents = moving_extents(sources, holder, direction, sectors, zeros_end)?;
                let (share, new_blocks) = Share::of(&extents, target);
                let room = kept.fetch_add(extents.len(), Ordering::Relaxed) < KEPT_EXTENTS;
                let (data, space_needed) = (share.data, share.pages_of_new_blocks);
                Ok((Unit { sectors, new_blocks, data, space_needed, extents: room.then(|| extents.into()) }, share))
            })
            .collect::<Result<_, CoalesceError>>()?;

        let mut plan = Self {
            units: Vec::with_capacity(resolved.len()),
            direction,
            zeros_end,
            data: ByteCount(0),
            zeros: ByteCount(0),
            extents: 0,
            new_blocks: 0,
            space_needed: ByteCount(0),
            tables_read: ByteCount(0),
            tables_written: ByteCount(0),
        };
        let mut existing = 0;
        for (unit, share) in resolved.into_iter().filter(|(_, share)| !share.is_empty()) {
            plan.data += share.data;
            plan.zeros += share.zeros;
            plan.extents += share.extents;
            plan.new_blocks += unit.new_blocks.len() as u64;
            plan.space_needed += unit.space_needed;
            existing += share.existing_blocks;
            plan.units.push(unit);
        }
        plan.tables_read = tables_read(sources, target, existing);
        plan.tables_written = tables_written(target, &plan.units, existing);
        Ok(plan)
    }

    /// Gives what moves within a unit.
    pub(crate) fn extents_of<'a>(
        &self,
        unit: &'a Unit,
        sources: &[Layer],
        target: &Layer,
    ) -> Result<Cow<'a, [ChainExtent]>, ReadError> {
        match &unit.extents {
            Some(extents) => Ok(Cow::Borrowed(extents)),
            None => Ok(Cow::Owned(moving_extents(sources, target, self.direction, unit.sectors, self.zeros_end)?)),
        }
    }

    /// Tells whether nothing is to be moved.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// What moves, unit by unit, in the order of the disk.
    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    /// All bytes that will be read.
    pub fn bytes_read(&self) -> ByteCount {
        self.data + self.tables_read
    }

    /// All bytes that will be written.
    pub fn bytes_written(&self) -> ByteCount {
        self.data + self.tables_written
    }
}

/// What a plan needs to know of the target, as it is before it grows.
#[derive(Debug)]
struct TargetTables {
    unit: SectorCount,
    block_size: Option<BlockSize>,
    allocated: Vec<BlockIndex>,
    has_batmap: bool,
    table: ByteCount,
}

impl TargetTables {
    fn of(target: &Layer) -> Result<Self, ReadError> {
        let Layer::Vhd(image) = target else {
            let (block_size, table) = (None, ByteCount(0));
            return Ok(Self { unit: SMALLEST_UNIT, block_size, allocated: Vec::new(), has_batmap: false, table });
        };
        let block_size = image.header().map(Header::block_size);
        Ok(Self {
            unit: block_size.map_or(SMALLEST_UNIT, |size| size.sectors().max(SMALLEST_UNIT)),
            block_size,
            allocated: image.allocated_blocks().map(|found| Ok(found?.0)).collect::<Result<_, ReadError>>()?,
            has_batmap: image.batmap().is_some(),
            table: ByteCount(u64::from(image.blocks()) * 4),
        })
    }

    /// Lists the blocks that a range of sectors lies in, and whether each is there already.
    fn blocks_of(&self, sectors: SectorRange) -> impl Iterator<Item = (BlockIndex, bool)> + '_ {
        let blocks = self.block_size.map(|size| {
            let last = Sector(sectors.end.0 - 1);
            size.block_of(sectors.start).zip(size.block_of(last)).map_or(0..0, |(first, last)| first.0..last.0 + 1)
        });
        let blocks = blocks.into_iter().flatten().map(BlockIndex);
        blocks.map(|block| (block, self.allocated.binary_search(&block).is_ok()))
    }
}

/// What one unit adds to the totals.
struct Share {
    data: ByteCount,
    zeros: ByteCount,
    extents: u64,
    existing_blocks: u64,
    /// With those of their bitmaps.
    pages_of_new_blocks: ByteCount,
}

impl Share {
    /// Adds up extents, and lists the blocks that the target gains by them.
    fn of(extents: &[ChainExtent], target: &TargetTables) -> (Self, Vec<BlockIndex>) {
        let (data, zeros, pages) = (ByteCount(0), ByteCount(0), ByteCount(0));
        let mut share = Self { data, zeros, extents: 0, existing_blocks: 0, pages_of_new_blocks: pages };
        let mut new_blocks = Vec::new();
        let (mut last_block, mut last_page) = (None, None);
        for extent in extents {
            let length = extent.sectors.count().bytes();
            let ChainSource::Data { .. } = extent.source else {
                share.zeros += length;
                continue;
            };
            share.data += length;
            share.extents += 1;
            let mut all_new = target.block_size.is_some();
            for (block, exists) in target.blocks_of(extent.sectors) {
                all_new &= !exists;
                let again = last_block.replace(block) == Some(block);
                match (exists, again) {
                    (true, false) => share.existing_blocks += 1,
                    (false, false) => new_blocks.push(block),
                    (_, true) => {}
                }
            }
            if all_new {
                let first = extent.sectors.start.byte_offset() / PAGE;
                let end = extent.sectors.end.byte_offset().div_ceil(PAGE);
                let counted = u64::from(last_page == Some(first));
                share.pages_of_new_blocks += ByteCount((end - first - counted) * PAGE);
                last_page = Some(end - 1);
            }
        }
        // Data begins with a page, and the bitmap lies at the end of those before it.
        let bitmap = target.block_size.map_or(0, |size| size.bitmap_size().0.next_multiple_of(PAGE));
        share.pages_of_new_blocks += ByteCount(new_blocks.len() as u64 * bitmap);
        (share, new_blocks)
    }

    fn is_empty(&self) -> bool {
        self.data.0 == 0 && self.zeros.0 == 0
    }
}

/// Finds what moves: all that the sources hold and, where that goes up, the target does not; and their zeros as far as
/// these hide anything else.
fn moving_extents(
    sources: &[Layer],
    target: &Layer,
    direction: Direction,
    sectors: SectorRange,
    zeros_end: Sector,
) -> Result<Vec<ChainExtent>, ReadError> {
    let mut extents = match (direction, target) {
        (Direction::Up, Layer::Vhd(image)) => {
            let mut own = Extents::default();
            image.resolve(sectors, &mut own)?;
            let mut found = Vec::new();
            for missing in own.as_slice().iter().filter(|extent| extent.source == Source::Parent) {
                found.extend(resolve_layers(sources, missing.sectors)?);
            }
            found
        }
        (Direction::Down | Direction::Up, _) => resolve_layers(sources, sectors)?,
    };
    extents.retain_mut(|extent| {
        if extent.source == ChainSource::Zero {
            extent.sectors.end = extent.sectors.end.min(zeros_end);
        }
        !extent.sectors.is_empty()
    });
    Ok(extents)
}

/// The units into which any source has a block, in order.
fn touched_units(
    sources: &[Layer],
    target: &TargetTables,
    end: Sector,
    zeros_end: Sector,
) -> Result<Vec<u64>, ReadError> {
    let unit = target.unit.0;
    let mut touched: Vec<u64> = Vec::new();
    for image in sources.iter().filter_map(Layer::as_vhd) {
        let Some(block_size) = image.header().map(Header::block_size) else { continue };
        for found in image.allocated_blocks() {
            let sectors = block_size.sectors_of(found?.0);
            let units = sectors.start.0 / unit..sectors.end.min(end).0.div_ceil(unit);
            // Neighbouring small blocks share a unit.
            touched.extend(units.filter(|unit| touched.last() != Some(unit)).collect::<Vec<_>>());
        }
    }
    // Where a node ends before the disk does, it reads as zeros from there on, over whatever lies beneath.
    let zeros_end = end.min(zeros_end);
    let shortest = sources.iter().map(|layer| layer.sectors().0).min();
    if let Some(shortest) = shortest.filter(|&shortest| shortest < zeros_end.0) {
        touched.extend(shortest / unit..zeros_end.0.div_ceil(unit));
    }
    touched.sort_unstable();
    touched.dedup();
    Ok(touched)
}

fn tables_read(sources: &[Layer], target: &TargetTables, existing_blocks: u64) -> ByteCount {
    let vhds = sources.iter().filter_map(Layer::as_vhd);
    let of_sources: u64 = vhds
        .filter_map(|image| {
            let block_size = image.header()?.block_size();
            let blocks = image.allocated_blocks().filter(Result::is_ok).count() as u64;
            Some(u64::from(image.blocks()) * 4 + blocks * block_size.sectors().0 / 8)
        })
        .sum();
    let bitmap = target.block_size.map_or(0, |size| size.bitmap_size().0);
    ByteCount(of_sources + target.table.0 + existing_blocks * bitmap)
}

fn tables_written(target: &TargetTables, units: &[Unit], existing_blocks: u64) -> ByteCount {
    let Some(block_size) = target.block_size else { return ByteCount(0) };
    let new: Vec<u32> = units.iter().flat_map(|unit| &unit.new_blocks).map(|block| block.0).collect();
    let sectors_of_bat = new.chunk_by(|a, b| a / 128 == b / 128).count() as u64;
    let footers = if new.is_empty() { 0 } else { 2 * FOOTER_SIZE.0 };
    let batmap = if target.has_batmap { 2 * FOOTER_SIZE.0 } else { 0 };
    let bitmaps = (new.len() as u64 + existing_blocks) * block_size.bitmap_size().0;
    ByteCount(bitmaps + sectors_of_bat * 512 + footers + batmap)
}
