//! `set-rate`: other limits, with effect at once.

use std::num::{NonZeroU32, NonZeroU64};

use super::client::Socket;
use super::error::ProgramError;
use super::limits::{Limit, rate_limit};
use crate::socket::Command;

/// Change what all merges together may take, also while they run
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  coalesce-worker set-rate 100M
  coalesce-worker set-rate none --in-flight 4")]
pub(super) struct Args {
    /// Bytes per second, or `none` for no limit
    #[arg(value_name = "BYTES", value_parser = rate_limit, required_unless_present = "in_flight")]
    rate: Option<Limit<NonZeroU64>>,
    /// Operations under way at once, or `none` for no limit
    #[arg(long, value_name = "N")]
    in_flight: Option<Limit<NonZeroU32>>,
    #[command(flatten)]
    socket: Socket,
}

pub(super) fn run(args: &Args) -> Result<(), ProgramError> {
    let (bytes_per_second, in_flight) = (args.rate.map(|limit| limit.0), args.in_flight.map(|limit| limit.0));
    args.socket.ask(&Command::SetRate { bytes_per_second, in_flight }).map(drop)
}
