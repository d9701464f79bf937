//! Moving the newest version of each sector into the target.

use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use vhd_core::{ByteCount, ChainExtent, ChainSource, Layer, ReadError, SectorCount, SectorRange, WriteError};

use crate::plan::Plan;
use crate::target::Target;

/// The most that is read before it is written: what a core's cache holds.
const CHUNK: SectorCount = SectorCount(1024);
/// Units whose new blocks are reserved together: more would only fill memory with bitmaps.
const WINDOW: usize = 8192;

/// Why a merge stopped. What it wrote is in the target and does no harm; nothing else was changed.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A source cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The target cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The threads cannot be started.
    #[error("cannot start the worker threads")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// How to merge.
pub struct MergeOptions<'a> {
    /// Threads that move data; zero stands for as many as there are cores.
    pub threads: usize,
    /// Told after each piece how many bytes of data have moved so far.
    pub progress: &'a (dyn Fn(ByteCount) + Sync),
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
}

#[derive(Default)]
struct Counters {
    data: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
}

/// Merges `sources`, newest first, into `target`, as planned, and makes it durable.
///
/// # Errors
/// A failed read or write. The sources are as they were, and every chain through them reads as before.
///
/// # Crash safety
/// Sectors are written that no chain reads from the target, since a source above it holds each; once this has returned,
/// all of them are durable, and the sources are no longer needed by what reads through all of them.
pub fn merge(plan: &Plan, sources: &[Layer], target: &Target, options: &MergeOptions<'_>) -> Result<Moved, MergeError> {
    let counters = Counters::default();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build()?;
    for window in plan.units().chunks(WINDOW) {
        let new_blocks: Vec<_> = window.iter().flat_map(|unit| &unit.new_blocks).copied().collect();
        target.reserve(&new_blocks)?;
        pool.install(|| {
            window.par_iter().try_for_each_init(
                || vec![0; CHUNK.bytes().0 as usize],
                |buffer, unit| {
                    let extents = plan.extents_of(unit, sources)?;
                    move_extents(&extents, sources, target, buffer, &counters, options)
                },
            )
        })?;
    }
    target.settle()?;
    let Counters { data, reads, writes } = counters;
    Ok(Moved { data: ByteCount(data.into_inner()), reads: reads.into_inner(), writes: writes.into_inner() })
}

fn move_extents(
    extents: &[ChainExtent],
    sources: &[Layer],
    target: &Target,
    buffer: &mut [u8],
    counters: &Counters,
    options: &MergeOptions<'_>,
) -> Result<(), MergeError> {
    for run in extents.chunk_by(continues) {
        let sectors = SectorRange::between(run[0].sectors.start, run[run.len() - 1].sectors.end);
        if run[0].source == ChainSource::Zero {
            target.write_zeroes(sectors)?;
            continue;
        }
        for piece in sectors.split_at_multiples(CHUNK) {
            let bytes = &mut buffer[..piece.count().bytes().0 as usize];
            let reads = read_run(run, piece, sources, bytes)?;
            target.write(piece, bytes)?;
            counters.reads.fetch_add(reads, Ordering::Relaxed);
            counters.writes.fetch_add(1, Ordering::Relaxed);
            let moved = counters.data.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
            (options.progress)(ByteCount(moved));
        }
    }
    Ok(())
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
