//! `coalesce`: an image merged into its parent, in place.

use std::io::{self, Write};
use std::path::PathBuf;

use coalesce_worker::{Abort, Budget, CoalesceError, CopyMethod, InPlace, Limits, MergeOptions};
use rustix::io::Errno;
use vhd_core::{ByteCount, SECTOR_SIZE};

use super::{Failure, chain_options};

/// Merge an image into its parent
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image
    #[arg(short)]
    name: PathBuf,
    /// Write no sectors but those that the image holds: always so
    #[arg(short = 's')]
    sparse: bool,
    /// Print how much has been done
    #[arg(short)]
    progress: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let abort = Abort::new();
    let merge = InPlace::prepare(&args.name, &chain_options(), &abort).map_err(failure)?;
    let total = merge.plan().data;
    let show = |done: ByteCount| {
        // Who does not read it does not want to know.
        let _ = write!(io::stdout(), "\r{:6.2}%", done.0 as f64 * 100.0 / total.0.max(1) as f64);
    };
    let options = MergeOptions {
        threads: None,
        progress: if args.progress { &show } else { &|_| () },
        merged: &|| (),
        budget: &Budget::new(Limits::default()),
        abort: &abort,
        method: CopyMethod::default(),
        detect_zeroes: false,
        // Nothing is recorded, and to sync once is enough.
        checkpoint_every: Some(ByteCount(u64::MAX)),
    };
    let moved = merge.execute(&options).map_err(failure)?;
    let mut out = io::stdout().lock();
    if args.progress {
        writeln!(out, "\r{:6.2}%", 100.0)?;
    }
    write!(out, "Coalesced {} sectors", moved.data.0 / SECTOR_SIZE)?;
    Ok(out.flush()?)
}

fn failure(error: CoalesceError) -> Failure {
    match error {
        CoalesceError::Chain(error) => error.into(),
        error @ CoalesceError::NoSpace { .. } => Failure::with(Errno::NOSPC, error),
        other => other.into(),
    }
}
