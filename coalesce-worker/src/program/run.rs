//! `run`: the daemon.

use std::ffi::OsStr;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use uuid::Uuid;

use super::client::Socket;
use super::error::ProgramError;
use super::limits::rate;
use super::log::Log;
use super::{Moving, Parents};
use crate::budget::Limits;
use crate::daemon::{DaemonOptions, Merging, run_daemon};

/// Keep repositories collected until the process is told to end
///
/// Work starts within a second of a snapshot being deleted. What waits, as a volume in use does, is tried again when it is
/// released and with every poll; so is a folder that is not there. SIGTERM and SIGINT stop merges at once, and the next
/// start goes on from there; SIGHUP does nothing. Systemd is told when the worker is ready (Type=notify).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  coalesce-worker run /srv/vhd
  coalesce-worker run /srv/vhd /mnt/other --rate 100M --idle --log-format json
  coalesce-worker run /srv/vhd --prometheus /var/lib/node_exporter/coalesce.prom --rrd /dev/shm/metrics/coalesce-worker")]
pub(super) struct Args {
    /// The repositories: folders of images
    #[arg(value_name = "DIR", required = true)]
    dirs: Vec<PathBuf>,
    #[command(flatten)]
    socket: Socket,
    /// Threads that move data, in each repository [default: as many as there are cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
    /// Move at most so many bytes per second, in all repositories together
    #[arg(long, value_name = "BYTES", value_parser = rate)]
    rate: Option<NonZeroU64>,
    /// Have at most so many operations under way at once
    #[arg(long, value_name = "N")]
    in_flight: Option<NonZeroU32>,
    /// Stand back behind all other processes, for processor and disk
    #[arg(long)]
    idle: bool,
    /// Look at every repository so often, although nothing is known to have changed
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    poll: u32,
    #[command(flatten)]
    moving: Moving,
    #[command(flatten)]
    parents: Parents,
    /// What a repository is to the toolstack, for the metrics; may be given several times
    #[arg(long, value_name = "DIR=UUID", value_parser = named)]
    uuid: Vec<(PathBuf, Uuid)>,
    /// Keep metrics for Prometheus in this file (node_exporter's textfile collector)
    #[arg(long, value_name = "FILE")]
    prometheus: Option<PathBuf>,
    /// Keep metrics for xcp-rrdd in this file
    #[arg(long, value_name = "FILE")]
    rrd: Option<PathBuf>,
    #[command(flatten)]
    log: Log,
}

/// Reads `/srv/vhd=0b7c…`.
fn named(text: &str) -> Result<(PathBuf, Uuid), String> {
    let (dir, uuid) = text.rsplit_once('=').ok_or("give a folder, `=` and a UUID")?;
    Ok((dir.into(), uuid.parse().map_err(|error: uuid::Error| error.to_string())?))
}

pub(super) fn run(args: &Args) -> Result<(), ProgramError> {
    let mut repositories: Vec<(PathBuf, Option<Uuid>)> = Vec::new();
    for dir in &args.dirs {
        let dir = absolute(dir)?;
        if !repositories.iter().any(|(known, _)| same(known, &dir)) {
            repositories.push((dir, None));
        }
    }
    for (dir, uuid) in &args.uuid {
        let absolute = absolute(dir)?;
        let of = repositories.iter_mut().find(|(known, _)| same(known, &absolute));
        let unknown = || ProgramError::usage(format!("--uuid {}: is none of the repositories", dir.display()));
        of.ok_or_else(unknown)?.1 = Some(*uuid);
    }
    args.log.start();
    run_daemon(&DaemonOptions {
        repositories,
        socket: args.socket.socket.clone(),
        limits: Limits { bytes_per_second: args.rate, in_flight: args.in_flight },
        idle: args.idle,
        poll: Duration::from_secs(args.poll.into()),
        prometheus: args.prometheus.clone(),
        rrd: args.rrd.clone(),
        merging: Merging {
            threads: args.threads,
            method: args.moving.copy_method,
            detect_zeroes: args.moving.detect_zeroes,
            parents: args.parents.chain_options(),
        },
    })?;
    Ok(())
}

/// The path as it stays right; the folder need not be there.
fn absolute(dir: &Path) -> Result<PathBuf, ProgramError> {
    let dir = if dir.as_os_str() == OsStr::new("") { Path::new(".") } else { dir };
    std::path::absolute(dir).map_err(|error| ProgramError::usage(format!("{}: {error}", dir.display())))
}

fn same(one: &Path, two: &Path) -> bool {
    one == two || one.canonicalize().is_ok_and(|one| two.canonicalize().is_ok_and(|two| one == two))
}
