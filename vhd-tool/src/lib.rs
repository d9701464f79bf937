//! The command line of the VHD engine: a thin translation of commands onto `vhd-core` and `coalesce-worker`.
//!
//! ```text
//!   run ──▶ Cli ──▶ commands::*::run ──▶ Status ─────────┐
//!    │                   │                               ├──▶ exit code
//!    │                   └──▶ CommandError {kind, hints} ┤
//!    └─ called vhd-util ──▶ vhd_util::*::run ──▶ Failure {errno} ┘
//! ```

mod cli;
mod commands;
mod date;
mod disk;
mod error;
mod foreign;
mod nbd;
mod output;
mod progress;
mod stream;
mod transport;
mod vhd_util;

pub use cli::Cli;
pub use vhd_util::VhdUtil;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

/// Runs the program as it was called, by the name that comes first: as itself, or as blktap's `vhd-util`.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let name = args.first().and_then(|name| Path::new(name).file_name());
    if name.is_some_and(|name| name == vhd_util::NAME) {
        vhd_util::run(&args).into()
    } else {
        cli::run(Cli::parse_from(args))
    }
}
