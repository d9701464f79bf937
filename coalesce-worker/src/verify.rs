//! Telling by its content whether a target holds what a merge would put there.

use vhd_core::{ChainSource, Extents, Layer, ReadError, SectorCount, SectorRange, Source};

use crate::plan::Plan;

/// What is compared at once.
const STEP: SectorCount = SectorCount(1024);

/// Tells whether `target` holds by itself, bit for bit, everything that the plan moves from `sources`.
///
/// # Errors
/// A failed read.
pub(crate) fn holds_everything(plan: &Plan, sources: &[Layer], target: &Layer) -> Result<bool, ReadError> {
    for unit in plan.units() {
        for extent in plan.extents_of(unit, sources, target)?.iter() {
            for piece in extent.sectors.split_at_multiples(STEP) {
                let mut expected = vec![0; piece.count().bytes().0 as usize];
                if let ChainSource::Data { layer, at } = extent.source {
                    let at = at + (piece.start - extent.sectors.start).bytes();
                    sources[layer].container().read_at(&mut expected, at)?;
                }
                if read_own(target, piece)? != Some(expected) {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}

/// Reads what a layer holds by itself; `None` where it would ask its parent.
fn read_own(layer: &Layer, sectors: SectorRange) -> Result<Option<Vec<u8>>, ReadError> {
    let mut extents = Extents::default();
    layer.resolve(sectors, &mut extents)?;
    let mut bytes = vec![0; sectors.count().bytes().0 as usize];
    for extent in extents.as_slice() {
        let from = (extent.sectors.start - sectors.start).bytes().0 as usize;
        let part = &mut bytes[from..from + extent.sectors.count().bytes().0 as usize];
        match extent.source {
            Source::Data(at) => layer.container().read_at(part, at)?,
            Source::Zero => {}
            Source::Parent => return Ok(None),
        }
    }
    Ok(Some(bytes))
}
