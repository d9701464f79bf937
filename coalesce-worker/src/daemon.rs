//! The process that keeps repositories collected: it waits until something in them changes, and merges what can be merged.
//!
//! ```text
//!   a thread for each repository                     others
//!     Watch ──▶ Schedule ──▶ Repository::collect       signals   SIGTERM, SIGINT: an abort, and the end
//!       ▲          what the folder     │               socket    Commands
//!       └──────── looked like ◀────────┘               metrics   every five seconds, and after each collection
//! ```

mod control;
mod fingerprint;
mod publish;
mod schedule;
mod worker;

use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use uuid::Uuid;
use vhd_core::ChainOptions;

use crate::abort::{self, Abort};
use crate::budget::{Budget, Limits};
use crate::idle::enter_idle;
use crate::notify::{LifeCycle, notify};
use crate::socket::{Server, SocketError};
use crate::status::Board;
use crate::survey::with_causes;
use crate::transfer::CopyMethod;
use crate::watch::{Watch, WatchError};
use control::Control;
use publish::Publisher;
use worker::Worker;

/// What a daemon does.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// The folders, and what each is to the toolstack.
    pub repositories: Vec<(PathBuf, Option<Uuid>)>,
    /// Where to listen for commands.
    pub socket: PathBuf,
    /// What all merges together may take.
    pub limits: Limits,
    /// Stands back behind everybody else on the host.
    pub idle: bool,
    /// How often every repository is collected although nothing is known to have changed.
    pub poll: Duration,
    /// The file for Prometheus.
    pub prometheus: Option<PathBuf>,
    /// The file for xcp-rrdd.
    pub rrd: Option<PathBuf>,
    /// How to collect.
    pub merging: Merging,
}

/// How data is merged.
#[derive(Clone, Debug)]
pub struct Merging {
    /// Threads that move data; `None` stands for as many as there are cores.
    pub threads: Option<NonZeroUsize>,
    /// How data moves.
    pub method: CopyMethod,
    /// Turns blocks of 4 KiB that hold but zeros into holes.
    pub detect_zeroes: bool,
    /// Which parents may be opened.
    pub parents: ChainOptions,
}

/// Why a daemon does not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Nobody could give it commands.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Nothing would be noticed.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// Threads or signals cannot be had.
    #[error("cannot {action}")]
    System {
        /// What was tried.
        action: &'static str,
        /// What the system answers.
        source: io::Error,
    },
}

impl DaemonError {
    fn when(action: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::System { action, source }
    }
}

/// Collects repositories until the process is told to end, by SIGTERM or SIGINT. SIGHUP does nothing.
///
/// The answer comes within 200 ms of the signal, and the caller then ends the process: threads that have not stopped by
/// then, as they wait for a disk, end with it.
///
/// # Errors
/// What [`DaemonError`] lists. A repository that cannot be opened is no error: it is tried again.
///
/// # Crash safety
/// As [`Repository::collect`](crate::Repository::collect).
pub fn run_daemon(options: &DaemonOptions) -> Result<(), DaemonError> {
    // From here on no signal ends the process by itself.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(DaemonError::when("wait for signals"))?;
    if options.idle
        && let Err(error) = enter_idle()
    {
        tracing::warn!(error = %with_causes(&error), "not all of the priority could be lowered");
    }
    let abort = Abort::new();
    let budget = Arc::new(Budget::new(options.limits));
    let board = Board::new(Arc::clone(&budget));
    let publisher = Publisher::new(&board, options);
    let mut workers = Vec::new();
    for (folder, uuid) in &options.repositories {
        // Before the first collection, which then misses nothing.
        let watch = Watch::new([folder.clone()], options.poll)?;
        let entry = board.repository(folder, *uuid);
        let worker = Worker::new(folder, entry, &options.merging, &budget, &abort, &watch);
        workers.push((Arc::new(worker), watch));
    }
    let control = Control::new(&board, &budget, workers.iter().map(|(worker, _)| Arc::clone(worker)).collect());
    let server = Server::start(&options.socket, move |command| control.obey(command))?;

    // Everybody holds a sender, and says nothing but that he has ended.
    let (running, ended) = mpsc::channel::<()>();
    let (collected, publish) = mpsc::channel();
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        let running = running.clone();
        let work = move || {
            let _running = running;
            work();
        };
        thread::Builder::new().name(name.into()).spawn(work).map_err(DaemonError::when("start a thread"))
    };
    for (worker, watch) in workers {
        let (poll, collected) = (options.poll, collected.clone());
        spawn("repository", Box::new(move || worker.work(watch, poll, &collected)))?;
    }
    drop(collected);
    spawn("metrics", Box::new(move || publisher.work(&publish)))?;
    drop(running);
    tracing::info!(socket = %options.socket.display(), repositories = options.repositories.len(), "started");
    tell(LifeCycle::Ready);

    let signal = signals.forever().find(|signal| *signal != SIGHUP);
    let told = Instant::now();
    tracing::info!(signal, "stopping");
    abort.abort();
    tell(LifeCycle::Stopping);
    let late = ended.recv_timeout(abort::PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout);
    drop(server);
    tracing::info!(late, took_ms = told.elapsed().as_millis() as u64, "stopped");
    Ok(())
}

fn tell(life_cycle: LifeCycle) {
    if let Err(error) = notify(life_cycle) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}
