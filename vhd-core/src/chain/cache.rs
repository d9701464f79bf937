//! Remembers where the content of each region of the disk was found.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache as Lru;

use super::{ChainExtent, ChainSource, resolve_layers};
use crate::image::{Layer, ReadError};
use crate::units::{FileOffset, Sector, SectorCount, SectorRange};

/// Memory for remembered extents.
const MEMORY: u64 = 32 << 20;
/// The largest region that is resolved at once, in sectors: 2 MiB.
const LARGEST_REGION: u64 = 4096;

/// An extent as it is remembered; it ends where the next one starts, the last one with its region.
#[derive(Clone, Copy, Debug)]
struct Packed {
    at: FileOffset,
    start: u16,
    layer: u16,
}

/// The layer of an extent that reads as zeros.
const ZERO: u16 = u16::MAX;
/// The most layers that a chain can have.
pub(super) const MOST_LAYERS: usize = ZERO as usize;

#[derive(Clone, Debug)]
struct ByMemory;

impl Weighter<u64, Arc<[Packed]>> for ByMemory {
    fn weight(&self, _: &u64, extents: &Arc<[Packed]>) -> u64 {
        (size_of_val(&**extents) + 64) as u64
    }
}

/// The layers never change, so what is remembered stays true.
#[derive(Debug)]
pub(super) struct Cache {
    regions: Lru<u64, Arc<[Packed]>, ByMemory>,
    region: SectorCount,
}

impl Cache {
    pub(super) fn new(layers: &[Layer]) -> Self {
        let smallest = layers.iter().filter_map(|layer| Some(layer.as_vhd()?.header()?.block_size().sectors().0));
        let region = SectorCount(smallest.min().unwrap_or(LARGEST_REGION).min(LARGEST_REGION));
        Self { regions: Lru::with_weighter(8192, MEMORY, ByMemory), region }
    }

    /// The sectors of a region.
    pub(super) fn region(&self) -> SectorCount {
        self.region
    }

    /// Visits where the content of `range`, which lies in one region, is.
    pub(super) fn for_each(
        &self,
        layers: &[Layer],
        range: SectorRange,
        mut visit: impl FnMut(ChainExtent) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let region = range.start.0 / self.region.0;
        let origin = Sector(region * self.region.0);
        let extents = self.regions.get_or_insert_with(&region, || {
            let extents = resolve_layers(layers, SectorRange::new(origin, self.region))?;
            Ok::<_, ReadError>(extents.iter().map(|extent| Packed::new(extent, origin)).collect())
        })?;
        let wanted = (range.start - origin).0 as u16;
        let first = extents.partition_point(|extent| extent.start <= wanted).saturating_sub(1);
        for (i, packed) in extents.iter().enumerate().skip(first) {
            let start = origin + SectorCount(u64::from(packed.start));
            if start >= range.end {
                break;
            }
            let length = extents.get(i + 1).map_or(self.region.0, |next| u64::from(next.start));
            let end = origin + SectorCount(length);
            visit(packed.unpack(SectorRange::between(start, end)).within(range))?;
        }
        Ok(())
    }
}

impl Packed {
    fn new(extent: &ChainExtent, origin: Sector) -> Self {
        let start = (extent.sectors.start - origin).0 as u16;
        match extent.source {
            ChainSource::Zero => Self { at: FileOffset(0), start, layer: ZERO },
            ChainSource::Data { layer, at } => Self { at, start, layer: layer as u16 },
        }
    }

    fn unpack(self, sectors: SectorRange) -> ChainExtent {
        let source = match self.layer {
            ZERO => ChainSource::Zero,
            layer => ChainSource::Data { layer: usize::from(layer), at: self.at },
        };
        ChainExtent { sectors, source }
    }
}
