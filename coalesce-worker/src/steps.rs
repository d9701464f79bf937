//! Merging in steps, where the whole does not fit into the free space: what has been merged is taken out of the sources,
//! which gives its space back, before more is merged.
//!
//! A block is taken out of the sources only once the target holds, durably, what they hold of it. It goes out of the oldest
//! first, each durably before the next: so whatever the moment of a crash, what is still there is newer than what is not,
//! and reads the same. Whoever had a chain through the sources open would go on reading from where the block was; so all
//! images above the run are locked meanwhile.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vhd_core::{BlockIndex, ByteCount, Container, FileStorage, Image, Layer, ReadError, ReadWrite, Sector};

use crate::abort::Abort;
use crate::coalesce::free_space;
use crate::error::CoalesceError;
use crate::in_use::{is_free, lock_source};
use crate::plan::Unit;
use crate::record::Direction;
use crate::repository::Repository;
use crate::run::{Neighbours, Run};

/// Space that is left for journals and whatever else needs some.
const RESERVE: ByteCount = ByteCount(1 << 20);

/// The sources of a run, ready to give blocks back.
pub(crate) struct Steps {
    /// Oldest first.
    sources: Vec<Image<ReadWrite>>,
    _readers: Vec<FileStorage>,
    paths: Vec<PathBuf>,
}

/// The space that units need at least.
pub(crate) fn space_needed(units: &[Unit]) -> ByteCount {
    units.iter().map(|unit| unit.space_needed).fold(ByteCount(0), |sum, space| sum + space)
}

/// Counts the units that fit into the free space of `target` together.
///
/// # Errors
/// Not even one does.
pub(crate) fn fitting(units: &[Unit], target: &Path) -> Result<usize, CoalesceError> {
    let free = free_space(target)?;
    let mut taken = RESERVE;
    let fits = |unit: &&Unit| {
        taken += unit.space_needed;
        taken <= free
    };
    match units.iter().take_while(fits).count() {
        0 if !units.is_empty() => Err(CoalesceError::NoSpace { path: target.into(), needed: taken, free }),
        count => Ok(count),
    }
}

/// Tells whether blocks may be taken out of the sources: what they then read from the images below must be the same.
pub(crate) fn can_release(run: &Run, direction: Direction) -> bool {
    let layers = run.layers();
    match direction {
        // An image in between that ends earlier hides what lies below it.
        Direction::Down => layers[..layers.len() - 1].iter().all(|layer| layer.size() >= run.node().size()),
        Direction::Up => true,
    }
}

impl Steps {
    /// Locks everything that reads through the run; `None` where somebody does, or blocks cannot be taken out.
    pub(crate) fn begin(
        repository: &Repository,
        run: &Run,
        direction: Direction,
        locks: &[Arc<FileStorage>],
        abort: &Abort,
    ) -> Result<Option<Self>, CoalesceError> {
        if !can_release(run, direction) {
            return Ok(None);
        }
        let neighbours = Neighbours::of(repository, run.layers().iter().map(Layer::path), abort)?;
        let node = run.node().path().to_path_buf();
        let paths: Vec<PathBuf> = neighbours.descendants_of(&BTreeSet::from([node]))?.into_iter().collect();
        let mut readers = Vec::new();
        for path in &paths {
            if !is_free(path)? {
                return Ok(None);
            }
            readers.push(lock_source(path)?);
        }
        // One that came while the others were being locked is not, and from now on none can come.
        let now = Neighbours::of(repository, run.layers().iter().map(Layer::path), abort)?;
        if now.descendants_of(&BTreeSet::from([run.node().path().to_path_buf()]))?.into_iter().ne(paths.iter().cloned())
        {
            return Ok(None);
        }
        let open = |(layer, lock): (&Layer, &Arc<FileStorage>)| {
            Image::writable_from_container(Container::new(layer.path(), lock.clone()))
        };
        let sources: Result<Vec<_>, _> = run.sources().iter().zip(locks).rev().map(open).collect();
        Ok(Some(Self { sources: sources?, _readers: readers, paths }))
    }

    /// The images above the run, which are locked.
    pub(crate) fn held(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Gives back all blocks of the sources that lie before `merged`, where the target holds everything durably.
    pub(crate) fn release(&mut self, merged: Sector) -> Result<(), CoalesceError> {
        for image in &mut self.sources {
            let Some(block_size) = image.header().map(vhd_core::Header::block_size) else { continue };
            let is_merged = |block: &BlockIndex| block_size.sectors_of(*block).end <= merged;
            let blocks = image.allocated_blocks().map(|found| Ok(found?.0));
            let blocks: Vec<BlockIndex> = blocks.collect::<Result<_, ReadError>>()?;
            let blocks: Vec<BlockIndex> = blocks.into_iter().filter(is_merged).collect();
            image.release(&blocks)?;
        }
        Ok(())
    }
}
