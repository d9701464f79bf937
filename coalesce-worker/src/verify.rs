//! Telling by its content whether a target holds what a merge would put there.

use vhd_core::{ChainSource, Extents, Layer, ReadError, Sector, SectorCount, SectorRange, Source};

use crate::abort::Abort;
use crate::error::CoalesceError;
use crate::merge::MergeError;
use crate::plan::{Plan, Unit};

/// What is compared at once.
const STEP: SectorCount = SectorCount(1024);

/// Finds the first sector from which on the target may lack something that the plan moves from the sources. Of everything
/// before it holds, by itself, the same bits. It is `end` where the target lacks nothing before that.
///
/// # Errors
/// A failed read; the abort.
pub(crate) fn held_before(
    plan: &Plan,
    sources: &[Layer],
    target: &Layer,
    end: Sector,
    abort: &Abort,
) -> Result<Sector, CoalesceError> {
    for unit in plan.units() {
        if unit.sectors.end > end || !holds(plan, unit, sources, target, abort)? {
            return Ok(unit.sectors.start.min(end));
        }
    }
    Ok(end)
}

fn holds(plan: &Plan, unit: &Unit, sources: &[Layer], target: &Layer, abort: &Abort) -> Result<bool, CoalesceError> {
    for extent in plan.extents_of(unit, sources, target)?.iter() {
        for piece in extent.sectors.split_at_multiples(STEP) {
            abort.check().map_err(MergeError::Aborted)?;
            if piece.end.0 > target.sectors().0 {
                return Ok(false);
            }
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
