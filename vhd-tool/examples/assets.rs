//! Writes shell completions and man pages, all generated from the command line's definition, into a folder:
//! `cargo run -p vhd-tool --example assets -- target/assets`.

use std::path::PathBuf;
use std::{env, fs, io};

use clap::CommandFactory;
use clap_complete::Shell;
use vhd_tool::{Cli, VhdUtil};

fn main() -> io::Result<()> {
    let Some(folder) = env::args_os().nth(1).map(PathBuf::from) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "usage: assets DIR"));
    };
    let (completions, man) = (folder.join("completions"), folder.join("man"));
    fs::create_dir_all(&completions)?;
    fs::create_dir_all(&man)?;
    for mut program in [Cli::command(), VhdUtil::command(), coalesce_worker::program::Cli::command()] {
        let name = program.get_name().to_owned();
        // Before completions add the `help` command.
        clap_mangen::generate_to(program.clone().disable_help_subcommand(true), &man)?;
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut program, &name, &completions)?;
        }
    }
    Ok(())
}
