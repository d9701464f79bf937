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
mod nbd;
mod output;
mod progress;
mod stream;
mod transport;

pub use cli::{Cli, run};
