//! `pause`: no more, for now.

use super::client::Socket;
use super::error::ProgramError;
use crate::socket::Command;

/// Have the worker wait: nothing moves until `resume`
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  coalesce-worker pause")]
pub(super) struct Args {
    #[command(flatten)]
    socket: Socket,
}

pub(super) fn run(args: &Args) -> Result<(), ProgramError> {
    args.socket.ask(&Command::Pause).map(drop)
}
