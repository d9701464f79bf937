//! `once`, and `vhd-tool gc`: one collection.

use std::io::{self, Write};
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, mpsc};
use std::thread;

use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vhd_core::ChainOptions;

use super::limits::rate;
use super::{Moving, progress};
use crate::abort::{self, Abort};
use crate::budget::{Budget, Limits};
use crate::collect::{CollectError, CollectOptions};
use crate::report::{Forecast, Report};
use crate::repository::Repository;
use crate::status::Board;
use crate::survey::{Survey, with_causes};

/// What is to be collected, and how.
#[derive(Debug, clap::Args)]
// Its name is that of the command it is part of.
#[group(skip)]
pub struct Args {
    /// The repositories: folders of images
    #[arg(value_name = "DIR", required = true)]
    dirs: Vec<PathBuf>,
    /// Print what would be done, and do nothing: no file is changed
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Threads that move data [default: as many as there are cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Move at most so many bytes per second
    #[arg(long, value_name = "BYTES", value_parser = rate)]
    rate: Option<NonZeroU64>,
    /// Have at most so many operations under way at once
    #[arg(long, value_name = "N")]
    in_flight: Option<NonZeroU32>,
    #[command(flatten)]
    moving: Moving,
}

/// How a collection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// All that there was to do is done.
    Done,
    /// Something waits or is isolated.
    Left,
    /// Something failed.
    Failed,
}

#[derive(Serialize)]
struct Answer<T> {
    repositories: Vec<T>,
}

/// Collects the repositories one after the other, or only looks at them, and prints what there is to tell. What was done is
/// left out when `quiet`, unless as JSON; errors go to standard error.
///
/// # Errors
/// Those of standard output. Others are printed.
pub fn run(args: &Args, parents: &ChainOptions, quiet: bool) -> io::Result<Ending> {
    if args.dry_run { foresee(args, parents) } else { collect(args, parents, quiet) }
}

fn foresee(args: &Args, parents: &ChainOptions) -> io::Result<Ending> {
    let mut ending = Ending::Done;
    let mut repositories = Vec::new();
    for dir in &args.dirs {
        match look_at(dir, parents) {
            Ok(forecast) => {
                ending = ending.max(if forecast.leaves_something() { Ending::Left } else { Ending::Done });
                repositories.push(forecast);
            }
            Err(error) => {
                complain(&error);
                ending = Ending::Failed;
            }
        }
    }
    print(args.json, repositories)?;
    Ok(ending)
}

fn look_at(dir: &Path, parents: &ChainOptions) -> Result<Forecast, String> {
    let repository = Repository::look_at(dir, parents.clone()).map_err(|error| with_causes(&error))?;
    let survey = Survey::of(&repository).map_err(|error| with_causes(&error))?;
    Ok(Forecast::new(repository.folder(), &survey))
}

fn collect(args: &Args, parents: &ChainOptions, quiet: bool) -> io::Result<Ending> {
    let abort = Abort::new();
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let handle = signals.handle();
    let (running, ended) = mpsc::channel::<()>();
    let told = abort.clone();
    let reports: Vec<Report> = thread::scope(|scope| {
        scope.spawn(move || {
            if signals.forever().next().is_some() {
                // An abort leaves less to be done again than a process that just ends.
                told.abort();
                if ended.recv_timeout(abort::PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                    complain("stopped; the next collection goes on from there");
                    process::exit(5);
                }
            }
        });
        let reports = args.dirs.iter().map(|dir| collect_one(args, dir, parents, quiet, &abort)).collect();
        drop(running);
        handle.close();
        reports
    });
    reports.iter().filter_map(|report| report.error.as_deref()).for_each(complain);
    let ending = reports.iter().map(|report| match report {
        report if report.has_failed() => Ending::Failed,
        report if report.leaves_something() => Ending::Left,
        _ => Ending::Done,
    });
    let ending = ending.max().unwrap_or(Ending::Done);
    if args.json || !quiet {
        print(args.json, reports)?;
    } else {
        let failed = reports.iter().flat_map(|report| &report.failed);
        failed.for_each(|run| complain(format!("{}: {}", run.node, run.error)));
    }
    Ok(ending)
}

fn collect_one(args: &Args, dir: &Path, parents: &ChainOptions, quiet: bool, abort: &Abort) -> Report {
    let repository = match Repository::open(dir, parents.clone()) {
        Ok((repository, _)) => repository,
        Err(error) => return Report::of_error(dir, with_causes(&error)),
    };
    let budget = Arc::new(Budget::new(Limits { bytes_per_second: args.rate, in_flight: args.in_flight }));
    let board = Board::new(Arc::clone(&budget));
    let entry = board.repository(repository.folder(), None);
    let options = CollectOptions {
        threads: args.threads,
        budget: &budget,
        abort,
        method: args.moving.copy_method,
        detect_zeroes: args.moving.detect_zeroes,
        board: Some(&entry),
    };
    match progress::shown(&board, quiet, || repository.collect(&options)) {
        Ok(collected) => Report::new(repository.folder(), collected),
        Err(CollectError::Aborted(_)) => {
            let text = format!("{}: stopped; the next collection goes on from there", dir.display());
            Report::of_error(repository.folder(), text)
        }
        Err(error) => Report::of_error(repository.folder(), with_causes(&error)),
    }
}

fn print<T: Serialize + std::fmt::Display>(json: bool, repositories: Vec<T>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, &Answer { repositories })?;
        writeln!(out)?;
    } else {
        repositories.iter().try_for_each(|report| write!(out, "{report}"))?;
    }
    out.flush()
}

fn complain(error: impl AsRef<str>) {
    // Where nobody listens any more, there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "error: {}", error.as_ref());
}
