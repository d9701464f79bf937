//! Moving the newest version of each sector into the target.
//!
//! Threads take the units of a plan in the order of the disk; beside them one thread makes durable what they have done
//! and records how far that is, so that a merge that is interrupted goes on from there.

mod units;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ScopedJoinHandle;

use vhd_core::{
    BlockIndex, Buffer, ByteCount, ChainExtent, ChainSource, FileError, FileStorage, Layer, ReadError, SECTOR_SIZE,
    Sector, SectorCount, SectorRange, Storage, StorageError, WriteError,
};

use crate::abort::{Abort, Aborted};
use crate::budget::Budget;
use crate::plan::{Plan, Unit};
use crate::target::Target;
use crate::transfer::{CopyMethod, Move, Transfer, Transferred};
use units::Units;

/// The most that is moved between two looks at the budget and the abort, and the least that is planned as one.
const LARGEST_PIECE: SectorCount = SectorCount(4096);
/// Smaller neighbours from several files are gathered and written together, as many as the buffer holds.
const SMALLEST_ALONE: SectorCount = SectorCount(128);

/// Why a merge stopped. What it wrote is in the target and does no harm; nothing else was changed.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A source cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The target cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// How far it has come cannot be recorded.
    #[error(transparent)]
    Journal(#[from] FileError),
    /// It was told to stop; what has been moved need not be moved again.
    #[error(transparent)]
    Aborted(#[from] Aborted),
    /// Somebody wants to use an image of the run; what has been moved need not be moved again.
    #[error("stopped, because somebody wants to use the volume")]
    Yielded,
}

impl From<StorageError> for MergeError {
    fn from(error: StorageError) -> Self {
        Self::Write(error.into())
    }
}

/// How to merge.
pub struct MergeOptions<'a> {
    /// Threads that move data; `None` stands for as many as there are cores.
    pub threads: Option<NonZeroUsize>,
    /// Told after each piece how many bytes of data have moved so far.
    pub progress: &'a (dyn Fn(ByteCount) + Sync),
    /// Told when all data has moved.
    pub merged: &'a (dyn Fn() + Sync),
    /// What this merge and others together may take.
    pub budget: &'a Budget,
    /// Stops the merge.
    pub abort: &'a Abort,
    /// How data moves.
    pub method: CopyMethod,
    /// Turns blocks of 4 KiB that hold but zeros into holes.
    pub detect_zeroes: bool,
    /// The least that is moved between two checkpoints; `None` stands for a part of what there is to move, as large as the
    /// disk is fast.
    pub checkpoint_every: Option<ByteCount>,
}

/// What a merge did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Data of the sources that is in the target now.
    pub data: ByteCount,
    /// By which means.
    pub by: Transferred,
}

/// One merge: from where to where.
pub(crate) struct Merge<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) sources: &'a [Layer],
    pub(crate) target: &'a Target,
    /// The target as it was when the merge was planned.
    pub(crate) before: &'a Layer,
    pub(crate) options: &'a MergeOptions<'a>,
    /// The units of the plan that are to be merged now.
    pub(crate) units: &'a [Unit],
    /// Data that has been moved before these.
    pub(crate) moved_before: ByteCount,
    /// While this file exists, somebody waits for the merge to stop.
    pub(crate) yield_note: Option<&'a Path>,
    /// The sources, held against other programs.
    pub(crate) held: &'a [Arc<FileStorage>],
}

impl Merge<'_> {
    /// Tells whether a process or another program waits for an image of the run.
    fn is_wanted(&self) -> bool {
        self.yield_note.is_some_and(Path::exists)
            || self.target.container().is_wanted()
            || self.held.iter().any(|source| source.is_wanted())
    }

    /// Moves everything and makes it durable. `checkpoint` is told now and then before which sector everything has been moved; it
    /// makes that durable, too.
    ///
    /// # Errors
    /// A failed read or write, a checkpoint that cannot be recorded, an abort. The sources are as they were, and every
    /// chain through them reads as before.
    ///
    /// # Crash safety
    /// Sectors are written that no chain reads from the target, since a source above it holds each, or that read the
    /// same there; once this has returned, all of them are durable.
    pub(crate) fn run(
        &self,
        checkpoint: &mut (dyn FnMut(Sector) -> Result<(), MergeError> + Send),
    ) -> Result<Moved, MergeError> {
        let work = Work {
            merge: self,
            units: Units::new(self.units, self.options),
            transfer: Transfer::new(self.options.method, self.options.detect_zeroes),
            moved: AtomicU64::new(self.moved_before.0),
            by: Mutex::default(),
        };
        std::thread::scope(|scope| {
            let start = |worker| {
                let work = &work;
                scope.spawn(move || work.run(worker))
            };
            let moving: Vec<_> = (0..work.units.workers()).map(start).collect();
            let recorded = work.units.watch(self, &work.moved, checkpoint);
            let ended = |thread: ScopedJoinHandle<'_, Result<(), MergeError>>| {
                // Whoever is told of the progress may panic.
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            let moved = moving.into_iter().map(ended);
            // That the others were stopped is the consequence of what stopped the first.
            let failed = moved.filter_map(Result::err).chain(recorded.err());
            let cause = failed.reduce(|first, next| if matches!(first, MergeError::Aborted(_)) { next } else { first });
            cause.map_or(Ok(()), Err)
        })?;
        self.target.settle()?;
        let Work { moved, by, .. } = work;
        let by = by.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(Moved { data: ByteCount(moved.into_inner()), by })
    }
}

/// What the threads of a merge share.
struct Work<'a> {
    merge: &'a Merge<'a>,
    units: Units<'a>,
    transfer: Transfer,
    moved: AtomicU64,
    by: Mutex<Transferred>,
}

impl Work<'_> {
    /// Moves units until none is left.
    fn run(&self, worker: usize) -> Result<(), MergeError> {
        let Merge { plan, sources, target, before, .. } = self.merge;
        let mut buffer = Buffer::default();
        let mut by = Transferred::default();
        let mut leaving = self.units.leaving(worker);
        let result = (|| {
            while let Some(unit) = self.units.next(worker, target)? {
                let extents = plan.extents_of(unit, sources, before)?;
                self.move_extents(unit, &extents, &mut buffer, &mut by)?;
            }
            Ok(())
        })();
        leaving.failed = result.is_err();
        drop(leaving);
        *self.by.lock().unwrap_or_else(PoisonError::into_inner) += by;
        result
    }

    fn move_extents(
        &self,
        unit: &Unit,
        extents: &[ChainExtent],
        buffer: &mut [u8],
        by: &mut Transferred,
    ) -> Result<(), MergeError> {
        let Merge { target, sources, options, .. } = self.merge;
        let gathered = SectorCount(buffer.len() as u64 / SECTOR_SIZE);
        let alone = |extent: &ChainExtent| extent.sectors.count() >= SMALLEST_ALONE || options.detect_zeroes;
        for run in extents.chunk_by(|a, b| continues(a, b) && !alone(a) && !alone(b)) {
            let sectors = SectorRange::between(run[0].sectors.start, run[run.len() - 1].sectors.end);
            let ChainSource::Data { layer, at } = run[0].source else {
                self.units.abort().check()?;
                target.write_zeroes(sectors)?;
                continue;
            };
            let most = if run.len() == 1 { LARGEST_PIECE } else { gathered };
            let most = target.block().map_or(most, |block| block.min(most));
            for piece in sectors.split_at_multiples(most) {
                let length = piece.count().bytes();
                let _permit = options.budget.take(length, self.units.abort())?;
                self.units.abort().check()?;
                let to = target.place_for(piece)?;
                if run.len() == 1 {
                    let from = at + (piece.start - sectors.start).bytes();
                    let source = sources[layer].container();
                    let target_is_hole = is_new(target, unit, piece);
                    let range = Move { source, from, target: target.container(), to, length, target_is_hole };
                    *by += self.transfer.move_range(&range, buffer)?;
                } else {
                    let bytes = &mut buffer[..length.0 as usize];
                    by.reads += read_run(run, piece, sources, bytes)?;
                    target.container().write_at(bytes, to)?;
                    by.writes += 1;
                    by.written += length;
                }
                target.mark_present(piece)?;
                let moved = self.moved.fetch_add(length.0, Ordering::Relaxed) + length.0;
                (options.progress)(ByteCount(moved));
            }
        }
        Ok(())
    }
}

/// Tells whether sectors lie in a block that the target gains by this merge: nothing has been written there before.
fn is_new(target: &Target, unit: &Unit, piece: SectorRange) -> bool {
    let block = target.block().and_then(|block| u32::try_from(piece.start.0 / block.0).ok());
    block.is_some_and(|block| unit.new_blocks.binary_search(&BlockIndex(block)).is_ok())
}

/// Tells whether two extents are written as one: side by side, and both data or both zeros.
fn continues(a: &ChainExtent, b: &ChainExtent) -> bool {
    a.sectors.end == b.sectors.start && (a.source == ChainSource::Zero) == (b.source == ChainSource::Zero)
}

/// Reads the part of a run that `piece` covers; tells how many reads that took.
fn read_run(run: &[ChainExtent], piece: SectorRange, sources: &[Layer], bytes: &mut [u8]) -> Result<u64, ReadError> {
    let mut reads = 0;
    let first = run.partition_point(|extent| extent.sectors.end <= piece.start);
    for extent in run[first..].iter().take_while(|extent| extent.sectors.start < piece.end) {
        let ChainSource::Data { layer, at } = extent.source else { continue };
        let start = extent.sectors.start.max(piece.start);
        let end = extent.sectors.end.min(piece.end);
        let from = (start - piece.start).bytes().0 as usize;
        let part = &mut bytes[from..from + (end - start).bytes().0 as usize];
        sources[layer].container().read_at(part, at + (start - extent.sectors.start).bytes())?;
        reads += 1;
    }
    Ok(reads)
}
