//! The command line of the worker; `once` is also that of `vhd-tool gc`.

mod abort;
mod client;
mod collect;
mod error;
mod limits;
mod log;
mod moving;
pub mod once;
mod pause;
mod progress;
mod resume;
mod run;
mod set_rate;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use vhd_core::{ChainOptions, ParentPlaces};

use error::ProgramError;
pub use moving::Moving;

const AFTER_HELP: &str = "\
Examples:
  coalesce-worker run /srv/vhd                     keep a repository collected
  coalesce-worker once /srv/vhd --dry-run          what there is to do
  coalesce-worker status
  coalesce-worker set-rate 100M

Rates are bytes per second, or have a suffix K, M, G or T (powers of 1024): 512K, 100M.

Exit codes:
  0  done, or nothing to do
  2  wrong usage
  3  once: something is left, as it waits or is isolated
  5  failed";

/// Merges away what deleted snapshots leave behind: chains of VHD images, in whole repositories
#[derive(Debug, Parser)]
#[command(name = "coalesce-worker", version, after_help = AFTER_HELP, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::Args>),
    Once(OnceArgs),
    Status(status::Args),
    Pause(pause::Args),
    Resume(resume::Args),
    Abort(abort::Args),
    Collect(collect::Args),
    SetRate(set_rate::Args),
}

/// Collect repositories once: delete what nobody needs, merge what can be merged
///
/// Trees are merged side by side, and one that cannot be merged hinders no other. Volumes in use are not touched. Whatever
/// happens, every volume reads as before, and the next collection goes on where this one stopped.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  coalesce-worker once /srv/vhd --dry-run
  coalesce-worker once /srv/vhd /mnt/other --rate 100M

Exit codes: 0 done or nothing to do, 3 something is left (it waits or is isolated), 5 failed")]
struct OnceArgs {
    #[command(flatten)]
    once: once::Args,
    /// Print neither progress nor what was done, only errors and the data that was asked for
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    parents: Parents,
}

/// Which parents may be opened.
#[derive(Debug, clap::Args)]
struct Parents {
    /// Allow parents beneath this folder too, not only in the folder of the image; may be given several times
    #[arg(long, value_name = "DIR")]
    parent_root: Vec<PathBuf>,
}

impl Parents {
    fn chain_options(&self) -> ChainOptions {
        ChainOptions { parents: ParentPlaces::Within(self.parent_root.clone()), ..ChainOptions::default() }
    }
}

/// Runs a command, prints its error if it fails, and gives the exit code.
pub fn run(cli: &Cli) -> ExitCode {
    let done = |result: Result<(), ProgramError>| result.map(|()| once::Ending::Done);
    let result = match &cli.command {
        Command::Run(args) => done(run::run(args)),
        Command::Once(args) => once::run(&args.once, &args.parents.chain_options(), args.quiet)
            .map_err(|error| ProgramError::stdout(&error)),
        Command::Status(args) => done(status::run(args)),
        Command::Pause(args) => done(pause::run(args)),
        Command::Resume(args) => done(resume::run(args)),
        Command::Abort(args) => done(abort::run(args)),
        Command::Collect(args) => done(collect::run(args)),
        Command::SetRate(args) => done(set_rate::run(args)),
    };
    match result {
        Ok(once::Ending::Done) => ExitCode::SUCCESS,
        Ok(once::Ending::Left) => 3.into(),
        Ok(once::Ending::Failed) => 5.into(),
        Err(error) => {
            error.print();
            error.exit_code().into()
        }
    }
}
