//! A chain of images read as one disk.

mod cache;
mod data;
mod open;
mod volume;

pub use data::is_zeros;
pub use open::{ChainError, ChainOptions, MAX_CHAIN_DEPTH, ParentIdentity, ParentRefusal, UnfinishedResize};
pub use volume::Volume;

use crate::image::{Image, Layer, ReadError};
use crate::resolve::{Extents, Source};
use crate::units::{ByteCount, FileOffset, Sector, SectorCount, SectorRange};

use cache::Cache;

/// A read-only stack of layers: the first is the one that is read, each next one is the parent of the one before.
///
/// Where content was found is remembered, so that reading it again costs the same whatever the depth.
#[derive(Debug)]
pub struct Chain {
    layers: Vec<Layer>,
    cache: Cache,
}

/// Where the content of some sectors is found in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainSource {
    /// In the file of a layer, counted from the top, from this offset on.
    Data {
        /// The layer.
        layer: usize,
        /// Where in its file.
        at: FileOffset,
    },
    /// Nowhere: it reads as zeros.
    Zero,
}

/// A range of sectors whose content a chain finds in one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainExtent {
    /// Which sectors.
    pub sectors: SectorRange,
    /// Where their content is.
    pub source: ChainSource,
}

impl ChainExtent {
    /// The part of it that lies in `range`.
    fn within(self, range: SectorRange) -> Self {
        let start = self.sectors.start.max(range.start);
        let sectors = SectorRange::between(start, self.sectors.end.min(range.end));
        let source = match self.source {
            ChainSource::Data { layer, at } => {
                ChainSource::Data { layer, at: at + (start - self.sectors.start).bytes() }
            }
            ChainSource::Zero => ChainSource::Zero,
        };
        Self { sectors, source }
    }

    fn continues(self, last: Self) -> bool {
        let expected = match last.source {
            ChainSource::Data { layer, at } => ChainSource::Data { layer, at: at + last.sectors.count().bytes() },
            ChainSource::Zero => ChainSource::Zero,
        };
        self.sectors.start == last.sectors.end && self.source == expected
    }
}

impl Chain {
    /// Stacks layers that have been opened by other means.
    ///
    /// # Panics
    /// If there is no layer, or more than 65535, or if the last one needs a parent.
    pub fn from_layers(layers: Vec<Layer>) -> Self {
        assert!((1..=cache::MOST_LAYERS).contains(&layers.len()), "a chain has a layer, and not too many");
        let needs_parent = layers.last().and_then(Layer::as_vhd).is_some_and(Image::is_differencing);
        assert!(!needs_parent, "a chain ends in an image without a parent");
        let cache = Cache::new(&layers);
        Self { layers, cache }
    }

    /// The layers, top first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Takes the layers out, top first.
    pub fn into_layers(self) -> Vec<Layer> {
        self.layers
    }

    /// The layer at the top, whose content this is.
    pub fn top(&self) -> &Layer {
        &self.layers[0]
    }

    /// The size of the disk.
    pub fn size(&self) -> ByteCount {
        self.top().size()
    }

    /// The sectors of the disk.
    pub fn sectors(&self) -> SectorCount {
        self.top().sectors()
    }

    /// Reads whole sectors. Beyond the end of the disk they are zeros.
    ///
    /// # Errors
    /// A BAT entry that cannot be, a failed read.
    ///
    /// # Panics
    /// If `buf` is not the length of `range`.
    pub fn read(&self, range: SectorRange, buf: &mut [u8]) -> Result<(), ReadError> {
        assert_eq!(buf.len() as u64, range.count().bytes().0, "the buffer is as long as the range");
        for region in range.split_at_multiples(self.cache.region()) {
            self.cache.for_each(&self.layers, region, |extent| {
                let from = (extent.sectors.start - range.start).bytes().0 as usize;
                let part = &mut buf[from..from + extent.sectors.count().bytes().0 as usize];
                match extent.source {
                    ChainSource::Zero => part.fill(0),
                    ChainSource::Data { layer, at } => self.layers[layer].container().read_at(part, at)?,
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Lists where the content of `range` is, in the order of the disk.
    pub fn extents(&self, range: SectorRange) -> impl Iterator<Item = Result<ChainExtent, ReadError>> + '_ {
        let mut regions = range.split_at_multiples(self.cache.region());
        let mut ready = Vec::new().into_iter();
        let mut pending: Option<ChainExtent> = None;
        std::iter::from_fn(move || {
            loop {
                let Some(next) = ready.next() else {
                    let Some(region) = regions.next() else { return pending.take().map(Ok) };
                    match resolve_layers(&self.layers, region) {
                        Ok(extents) => ready = extents.into_iter(),
                        Err(error) => return Some(Err(error)),
                    }
                    continue;
                };
                match &mut pending {
                    Some(last) if next.continues(*last) => last.sectors.end = next.sectors.end,
                    _ => {
                        if let Some(done) = pending.replace(next) {
                            return Some(Ok(done));
                        }
                    }
                }
            }
        })
    }
}

/// Finds where the content of `range` is, in the order of the disk, asking each layer, top first, only for what those
/// above it do not hold. What none of them holds is left out: that is how a stack without its base is read.
///
/// # Errors
/// A BAT entry that cannot be, a failed read.
pub fn resolve_layers(layers: &[Layer], range: SectorRange) -> Result<Vec<ChainExtent>, ReadError> {
    let mut found = Vec::new();
    let mut open = vec![range];
    let mut extents = Extents::default();
    for (index, layer) in layers.iter().enumerate() {
        let mut missing = Vec::new();
        extents.clear();
        layer.resolve_all(&open, &mut extents)?;
        for extent in extents.as_slice() {
            let source = match extent.source {
                Source::Data(at) => ChainSource::Data { layer: index, at },
                Source::Zero => ChainSource::Zero,
                Source::Parent => {
                    missing.push(extent.sectors);
                    continue;
                }
            };
            found.push(ChainExtent { sectors: extent.sectors, source });
        }
        open = missing;
        if open.is_empty() {
            break;
        }
    }
    found.sort_unstable_by_key(|extent: &ChainExtent| extent.sectors.start);
    Ok(found)
}

/// The sectors of `range` that lie before the end of a disk.
pub(crate) fn clamp(range: SectorRange, sectors: SectorCount) -> SectorRange {
    let end = Sector(sectors.0);
    SectorRange::between(range.start.min(end), range.end.min(end))
}
