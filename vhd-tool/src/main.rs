//! The program: finds out as which it was called, reads the command line and runs the command.

use std::process::ExitCode;

fn main() -> ExitCode {
    vhd_tool::run(std::env::args_os())
}
