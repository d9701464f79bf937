//! Moving the newest version of each sector into the target.
//!
//! Threads take the units of a plan in the order of the disk; beside them one thread makes durable what they have done
//! and records how far that is, so that a merge that is interrupted goes on from there.

mod units;

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use vhd_core::{ByteCount, ChainExtent, ChainSource, FileError, Layer, ReadError, Sector, SectorCount, SectorRange};
use vhd_core::{StorageError, WriteError};

use crate::abort::{Abort, Aborted};
use crate::budget::Budget;
use crate::plan::Plan;
use crate::target::Target;
use units::Units;

/// The most that is read before it is written: what a core's cache holds.
const CHUNK: SectorCount = SectorCount(1024);

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
    /// What this merge and others together may take.
    pub budget: &'a Budget,
    /// Stops the merge.
    pub abort: &'a Abort,
}

/// What a merge did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Data read from the sources and written to the target.
    pub data: ByteCount,
    /// Separate reads.
    pub reads: u64,
    /// Separate writes.
    pub writes: u64,
    /// Data that an interrupted merge had moved already.
    pub resumed: ByteCount,
}

#[derive(Default)]
struct Counters {
    data: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
}

/// One merge: from where to where.
pub(crate) struct Merge<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) sources: &'a [Layer],
    pub(crate) target: &'a Target,
    /// The target as it was when the merge was planned.
    pub(crate) before: &'a Layer,
    pub(crate) options: &'a MergeOptions<'a>,
    /// What lies before this has been merged already.
    pub(crate) from: Sector,
    /// While this file exists, somebody waits for the merge to stop.
    pub(crate) yield_note: &'a Path,
}

impl Merge<'_> {
    /// Moves everything and makes it durable; `checkpoint` is told before which sector all is.
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
        checkpoint: &mut (dyn FnMut(Sector) -> Result<(), FileError> + Send),
    ) -> Result<Moved, MergeError> {
        let counters = Counters::default();
        let units = Units::new(self.plan.units(), self.from, self.options);
        std::thread::scope(|scope| {
            let workers = units.workers();
            let workers: Vec<_> = (0..workers).map(|worker| (worker, &units, &counters)).collect();
            let moving: Vec<_> = workers
                .into_iter()
                .map(|(worker, units, counters)| scope.spawn(move || self.work(worker, units, counters)))
                .collect();
            let recorded = units.watch(self, &counters, checkpoint);
            let moved = moving.into_iter().map(|thread| thread.join().expect("a worker does not panic"));
            // The first error is the one to tell; that the others were stopped is its consequence.
            let failed = moved.filter_map(Result::err).chain(recorded.err());
            failed
                .reduce(|first, next| if matches!(first, MergeError::Aborted(_)) { next } else { first })
                .map_or(Ok(()), Err)
        })?;
        self.target.settle()?;
        let Counters { data, reads, writes } = counters;
        let resumed = units.resumed();
        Ok(Moved {
            data: ByteCount(data.into_inner()),
            reads: reads.into_inner(),
            writes: writes.into_inner(),
            resumed,
        })
    }

    /// Moves units until none is left.
    fn work(&self, worker: usize, units: &Units<'_>, counters: &Counters) -> Result<(), MergeError> {
        let mut buffer = vec![0; CHUNK.bytes().0 as usize];
        let result = (|| {
            while let Some(unit) = units.next(worker, self.target)? {
                let extents = self.plan.extents_of(unit, self.sources, self.before)?;
                self.move_extents(&extents, units, &mut buffer, counters)?;
            }
            Ok(())
        })();
        units.leave(worker, result.is_err());
        result
    }

    fn move_extents(
        &self,
        extents: &[ChainExtent],
        units: &Units<'_>,
        buffer: &mut [u8],
        counters: &Counters,
    ) -> Result<(), MergeError> {
        for run in extents.chunk_by(continues) {
            let sectors = SectorRange::between(run[0].sectors.start, run[run.len() - 1].sectors.end);
            if run[0].source == ChainSource::Zero {
                units.abort().check()?;
                self.target.write_zeroes(sectors)?;
                continue;
            }
            for piece in sectors.split_at_multiples(CHUNK) {
                let bytes = &mut buffer[..piece.count().bytes().0 as usize];
                let _permit = self.options.budget.take(ByteCount(bytes.len() as u64), units.abort())?;
                units.abort().check()?;
                let reads = read_run(run, piece, self.sources, bytes)?;
                self.target.write(piece, bytes)?;
                counters.reads.fetch_add(reads, Ordering::Relaxed);
                counters.writes.fetch_add(1, Ordering::Relaxed);
                let moved = counters.data.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
                (self.options.progress)(ByteCount(moved));
            }
        }
        Ok(())
    }
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
