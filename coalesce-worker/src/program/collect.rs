//! `collect`: a look at once.

use super::client::{Repository, Socket};
use super::error::ProgramError;
use crate::socket::Command;

/// Have the worker look for work now, and do it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  coalesce-worker collect
  coalesce-worker collect /srv/vhd")]
pub(super) struct Args {
    #[command(flatten)]
    repository: Repository,
    #[command(flatten)]
    socket: Socket,
}

pub(super) fn run(args: &Args) -> Result<(), ProgramError> {
    args.socket.ask(&Command::Collect { path: args.repository.path()? }).map(drop)
}
