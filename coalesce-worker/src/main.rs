//! The program: reads the command line and runs the command.

use std::process::ExitCode;

use clap::Parser;
use coalesce_worker::program::{Cli, run};

fn main() -> ExitCode {
    run(&Cli::parse())
}
