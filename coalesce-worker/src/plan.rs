//! What a merge will move: computed from the tables, before anything is changed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;
use vhd_core::{
    BlockIndex, BlockSize, ByteCount, ChainExtent, ChainSource, FOOTER_SIZE, Image, Layer, ReadError, ReadWrite,
    Sector, SectorCount, SectorRange, resolve_layers,
};

/// Extents that a plan keeps; those of further units are found again when their turn comes.
const KEPT_EXTENTS: usize = 1 << 20;
/// The smallest piece of a file that takes space of its own.
const PAGE: u64 = 4096;

/// A block of the target, or a stretch as long of a target without blocks, into which something moves.
#[derive(Clone, Debug)]
pub struct Unit {
    /// Its sectors, up to the end of the disk.
    pub sectors: SectorRange,
    /// Whether the target has no block there yet.
    pub is_new: bool,
    /// What moves, in the order of the disk; `None` where the plan grew too large to keep it.
    pub(crate) extents: Option<Box<[ChainExtent]>>,
}

/// What a merge will move.
#[derive(Clone, Debug)]
pub struct Plan {
    units: Vec<Unit>,
    /// Sectors of data that move.
    pub data: ByteCount,
    /// Sectors that become zeros in the target, because a node above it ends before them.
    pub zeros: ByteCount,
    /// Separate pieces that are read.
    pub extents: u64,
    /// Blocks that the target gains.
    pub new_blocks: u64,
    /// Space that these take at least, in whole pages. What is written into blocks that are there may take more.
    pub space_needed: ByteCount,
    /// Bytes of tables that are read: BATs, and bitmaps of sources and target.
    pub tables_read: ByteCount,
    /// Bytes of tables that are written: bitmaps, BAT and batmap sectors, footers.
    pub tables_written: ByteCount,
}

impl Plan {
    /// Plans the merge of `sources`, newest first, into `target`; the disk then has `size` bytes.
    ///
    /// # Errors
    /// A source whose tables cannot be read or cannot be true.
    pub fn new(sources: &[Layer], target: &TargetTables, size: ByteCount) -> Result<Self, ReadError> {
        let disk_end = Sector(size.whole_sectors().0);
        let touched = touched_units(sources, target.unit, disk_end)?;
        let kept = AtomicUsize::new(0);
        let resolved: Vec<(Unit, Share)> = touched
            .into_par_iter()
            .map(|index| {
                let start = Sector(index * target.unit.0);
                let sectors = SectorRange::between(start, Sector(start.0 + target.unit.0).min(disk_end));
                let extents = resolve_layers(sources, sectors)?;
                let is_new = target.lacks(index);
                let share = Share::of(&extents);
                let room = kept.fetch_add(extents.len(), Ordering::Relaxed) < KEPT_EXTENTS;
                Ok((Unit { sectors, is_new, extents: room.then(|| extents.into()) }, share))
            })
            .collect::<Result<_, ReadError>>()?;

        let mut plan = Self {
            units: Vec::with_capacity(resolved.len()),
            data: ByteCount(0),
            zeros: ByteCount(0),
            extents: 0,
            new_blocks: 0,
            space_needed: ByteCount(0),
            tables_read: tables_read(sources, target, &resolved),
            tables_written: ByteCount(0),
        };
        for (unit, share) in resolved {
            if share.is_empty() {
                continue;
            }
            plan.data += share.data;
            plan.zeros += share.zeros;
            plan.extents += share.extents;
            if unit.is_new {
                plan.new_blocks += 1;
                plan.space_needed += share.pages;
            }
            plan.units.push(unit);
        }
        plan.tables_written = tables_written(target, &plan.units);
        plan.space_needed += if plan.new_blocks > 0 { plan.tables_written } else { ByteCount(0) };
        Ok(plan)
    }

    /// What moves, block by block, in the order of the disk.
    pub fn units(&self) -> &[Unit] {
        &self.units
    }

    /// The blocks that the target gains, in order.
    pub(crate) fn new_blocks(&self, block_size: BlockSize) -> Vec<BlockIndex> {
        self.units
            .iter()
            .filter(|unit| unit.is_new)
            .filter_map(|unit| block_size.block_of(unit.sectors.start))
            .collect()
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

/// What a plan needs to know of the target.
#[derive(Debug)]
pub struct TargetTables {
    unit: SectorCount,
    block_size: Option<BlockSize>,
    allocated: BTreeSet<u32>,
    has_batmap: bool,
    is_dynamic: bool,
    table: ByteCount,
}

impl TargetTables {
    /// Looks at a VHD.
    ///
    /// # Errors
    /// A BAT that cannot be read or cannot be true.
    pub fn of_vhd(image: &Image<ReadWrite>) -> Result<Self, ReadError> {
        let block_size = image.header().map(vhd_core::Header::block_size);
        let allocated = image.allocated_blocks().map(|found| Ok(found?.0.0)).collect::<Result<_, ReadError>>()?;
        Ok(Self {
            unit: block_size.map_or(super::target::RAW_UNIT, BlockSize::sectors),
            block_size,
            allocated,
            has_batmap: image.batmap().is_some(),
            is_dynamic: block_size.is_some(),
            table: ByteCount(u64::from(image.blocks()) * 4),
        })
    }

    /// Describes a target without tables.
    pub fn of_raw() -> Self {
        Self {
            unit: super::target::RAW_UNIT,
            block_size: None,
            allocated: BTreeSet::new(),
            has_batmap: false,
            is_dynamic: false,
            table: ByteCount(0),
        }
    }

    fn lacks(&self, unit: u64) -> bool {
        self.is_dynamic && u32::try_from(unit).is_ok_and(|block| !self.allocated.contains(&block))
    }
}

/// What one unit adds to the totals.
struct Share {
    data: ByteCount,
    zeros: ByteCount,
    extents: u64,
    pages: ByteCount,
}

impl Share {
    fn of(extents: &[ChainExtent]) -> Self {
        let mut share = Self { data: ByteCount(0), zeros: ByteCount(0), extents: 0, pages: ByteCount(0) };
        let mut last_page = None;
        for extent in extents {
            let length = extent.sectors.count().bytes();
            match extent.source {
                ChainSource::Zero => share.zeros += length,
                ChainSource::Data { .. } => {
                    share.data += length;
                    share.extents += 1;
                    let first = extent.sectors.start.byte_offset() / PAGE;
                    let end = extent.sectors.end.byte_offset().div_ceil(PAGE);
                    let counted = u64::from(last_page == Some(first));
                    share.pages += ByteCount((end - first - counted) * PAGE);
                    last_page = Some(end - 1);
                }
            }
        }
        share
    }

    fn is_empty(&self) -> bool {
        self.data.0 == 0 && self.zeros.0 == 0
    }
}

/// The units of the target into which any source has a block, in order.
fn touched_units(sources: &[Layer], unit: SectorCount, end: Sector) -> Result<Vec<u64>, ReadError> {
    let mut touched = Vec::new();
    for image in sources.iter().filter_map(Layer::as_vhd) {
        let Some(block_size) = image.header().map(vhd_core::Header::block_size) else { continue };
        for found in image.allocated_blocks() {
            let sectors = block_size.sectors_of(found?.0);
            touched.extend(sectors.start.0 / unit.0..sectors.end.min(end).0.div_ceil(unit.0));
        }
    }
    // Where a node ends before the disk does, it reads as zeros from there on, over whatever the target holds.
    if let Some(shortest) = sources.iter().map(|layer| layer.sectors().0).min().filter(|&shortest| shortest < end.0) {
        touched.extend(shortest / unit.0..end.0.div_ceil(unit.0));
    }
    touched.sort_unstable();
    touched.dedup();
    Ok(touched)
}

fn tables_read(sources: &[Layer], target: &TargetTables, units: &[(Unit, Share)]) -> ByteCount {
    let vhds = sources.iter().filter_map(Layer::as_vhd);
    let of_sources: u64 = vhds
        .filter_map(|image| {
            let block_size = image.header()?.block_size();
            let blocks = image.allocated_blocks().filter(Result::is_ok).count() as u64;
            Some(u64::from(image.blocks()) * 4 + blocks * block_size.sectors().0 / 8)
        })
        .sum();
    let existing = units.iter().filter(|(unit, share)| !unit.is_new && !share.is_empty()).count() as u64;
    let bitmap = target.block_size.map_or(0, |size| size.bitmap_size().0);
    ByteCount(of_sources + target.table.0 + existing * bitmap)
}

fn tables_written(target: &TargetTables, units: &[Unit]) -> ByteCount {
    let Some(block_size) = target.block_size else { return ByteCount(0) };
    let new: Vec<u64> =
        units.iter().filter(|unit| unit.is_new).map(|unit| unit.sectors.start.0 / target.unit.0).collect();
    let sectors_of_bat = new.chunk_by(|a, b| a / 128 == b / 128).count() as u64;
    let footers = if new.is_empty() { 0 } else { 2 * FOOTER_SIZE.0 };
    let batmap = if target.has_batmap { 2 * FOOTER_SIZE.0 } else { 0 };
    ByteCount(units.len() as u64 * block_size.bitmap_size().0 + sectors_of_bat * 512 + footers + batmap)
}
