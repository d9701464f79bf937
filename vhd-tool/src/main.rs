//! The program: reads the command line and runs the command.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    vhd_tool::run(vhd_tool::Cli::parse())
}
