//! `status`: how everything stands.

use super::client::{Socket, print};
use super::error::ProgramError;
use crate::socket::{AskError, Command};
use crate::status::Status;

/// Show what the worker is doing: progress, rate and time left, what waits and why, what is isolated and why
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  coalesce-worker status
  coalesce-worker status --json --socket /run/other.socket")]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

pub(super) fn run(args: &Args) -> Result<(), ProgramError> {
    let answer = args.socket.ask(&Command::Status)?;
    if args.json {
        return print(&format!("{answer:#}\n"));
    }
    let wrong = |source| AskError::Reply { path: args.socket.socket.clone(), source };
    let status: Status = serde_json::from_value(answer).map_err(wrong)?;
    print(&status.to_string())
}
