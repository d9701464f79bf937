//! The command line of the VHD engine: a thin translation of commands onto `vhd-core` and `coalesce-worker`.
//!
//! ```text
//!   Cli ──▶ run ──▶ commands::*::run ──▶ Status ─────────┐
//!                        │                               ├──▶ exit code
//!                        └──▶ CommandError {kind, hints} ┘
//! ```

mod cli;
mod commands;
mod date;
mod disk;
mod error;
#[cfg_attr(not(test), expect(dead_code, unused_imports, reason = "the commands that move disks come next"))]
mod nbd;
mod output;
mod progress;
#[cfg_attr(not(test), expect(dead_code, reason = "the commands that move disks come next"))]
mod transport;
mod stream;

pub use cli::{Cli, run};
