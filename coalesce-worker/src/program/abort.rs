//! `abort`: the end of what is being merged.

use serde_json::Value;

use super::client::{Repository, Socket, print};
use super::error::ProgramError;
use crate::socket::Command;

/// Stop what is being merged; the worker stays
///
/// What has been moved is kept: the merge goes on from there when something in the repository changes, with the next poll,
/// or with `collect`. Use `pause` to keep it from that.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  coalesce-worker abort
  coalesce-worker abort /srv/vhd")]
pub(super) struct Args {
    #[command(flatten)]
    repository: Repository,
    #[command(flatten)]
    socket: Socket,
}

pub(super) fn run(args: &Args) -> Result<(), ProgramError> {
    let stopped = args.socket.ask(&Command::Abort { path: args.repository.path()? })?;
    let folders = stopped.as_array().into_iter().flatten().filter_map(Value::as_str);
    let lines: String = folders.map(|folder| format!("stopped in {folder}\n")).collect();
    print(if lines.is_empty() { "nothing was being merged\n" } else { &lines })
}
