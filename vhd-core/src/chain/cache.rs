//! Remembers where the content of each region of the disk was found.

use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache as Lru;

use super::{ChainExtent, resolve_layers};
use crate::image::{Layer, ReadError};
use crate::units::{Sector, SectorCount, SectorRange};

/// Memory for remembered extents.
const MEMORY: u64 = 32 << 20;
/// The largest region that is resolved at once, in sectors: 2 MiB.
const LARGEST_REGION: u64 = 4096;

#[derive(Clone, Debug)]
struct ByMemory;

impl Weighter<u64, Arc<[ChainExtent]>> for ByMemory {
    fn weight(&self, _: &u64, extents: &Arc<[ChainExtent]>) -> u64 {
        (size_of_val(&**extents) + 64) as u64
    }
}

/// The layers never change, so what is remembered stays true.
#[derive(Debug)]
pub(super) struct Cache {
    regions: Lru<u64, Arc<[ChainExtent]>, ByMemory>,
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

    /// Gives the extents of the whole region that holds `sector`.
    pub(super) fn resolve(&self, layers: &[Layer], sector: Sector) -> Result<Arc<[ChainExtent]>, ReadError> {
        let region = sector.0 / self.region.0;
        self.regions.get_or_insert_with(&region, || {
            let range = SectorRange::new(Sector(region * self.region.0), self.region);
            Ok(resolve_layers(layers, range)?.into())
        })
    }
}
