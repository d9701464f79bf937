//! `resume`: the end of a pause.

use super::client::Socket;
use super::error::ProgramError;
use crate::socket::Command;

/// Have the worker go on after `pause`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  coalesce-worker resume")]
pub(super) struct Args {
    #[command(flatten)]
    socket: Socket,
}

pub(super) fn run(args: &Args) -> Result<(), ProgramError> {
    args.socket.ask(&Command::Resume).map(drop)
}
