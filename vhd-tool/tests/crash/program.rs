//! The programs under test: `vhd-tool`, and this very test binary for what has no command of its own.

use std::env;
use std::num::NonZeroU64;
use std::path::Path;
use std::process::Command;

use coalesce_worker::{Abort, Budget, CollectOptions, Collected, CopyMethod, Limits, Repository};
use vhd_core::ChainOptions;

/// What tells this binary to be another program.
const VARIABLE: &str = "VHD_CRASH_PROGRAM";

/// A program and what it is asked for; file names are those in the folder that it runs in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Program {
    /// `vhd-tool` with these arguments.
    Tool(&'static [&'static str]),
    /// The same, with a file for its standard input.
    ToolWith(&'static [&'static str], &'static Path),
    /// Opens the repository.
    Recover,
    /// Collects the repository.
    Collect,
    /// The same, at a rate that leaves time to be killed.
    CollectSlowly,
    /// Makes the first volume a clone of the second.
    Revert(&'static str, &'static str),
    /// Makes the first volume a child of the second.
    Compose(&'static str, &'static str),
}

impl Program {
    /// The command that runs it in a folder.
    pub(crate) fn command(self, folder: &Path) -> Command {
        let mut command = match self {
            Self::Tool(arguments) => vhd_tool(arguments),
            Self::ToolWith(arguments, input) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", "exec \"$@\" < \"$0\""]).arg(input).arg(env!("CARGO_BIN_EXE_vhd-tool"));
                shell.arg("--quiet").args(arguments);
                shell
            }
            Self::Recover => this_binary("recover"),
            Self::Collect => this_binary("collect"),
            Self::CollectSlowly => this_binary("collect-slowly"),
            Self::Revert(volume, snapshot) => this_binary(&format!("revert {volume} {snapshot}")),
            Self::Compose(child, parent) => this_binary(&format!("compose {child} {parent}")),
        };
        // The folders that cargo has the loader search are many, and each library is looked for in all: calls that are not ours.
        command.current_dir(folder).env_remove("LD_LIBRARY_PATH");
        command
    }

    /// Tells whether it is this binary, which prints by itself when it is another program.
    pub(crate) fn is_this_binary(self) -> bool {
        !matches!(self, Self::Tool(_) | Self::ToolWith(..))
    }
}

/// `vhd-tool` with these arguments, quiet.
pub(crate) fn vhd_tool(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhd-tool"));
    command.arg("--quiet").args(arguments);
    command
}

fn this_binary(what: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--exact", "program::runs_as_another_program", "--nocapture"]).env(VARIABLE, what);
    command
}

/// Not a test: what this binary does as another program.
#[test]
fn runs_as_another_program() {
    let Ok(what) = env::var(VARIABLE) else { return };
    let words: Vec<&str> = what.split(' ').collect();
    let result = match words[..] {
        ["recover"] => open().map(drop),
        ["revert", volume, snapshot] => open().and_then(|repository| {
            let reverted = repository.revert(Path::new(volume), Path::new(snapshot));
            reverted.map(drop).map_err(|error| vec![error.to_string()])
        }),
        ["compose", child, parent] => open().and_then(|repository| {
            repository.compose(Path::new(child), Path::new(parent)).map_err(|error| vec![error.to_string()])
        }),
        ["collect"] => collect(Path::new(".")).and_then(|collected| all_done(&collected)),
        ["collect-slowly"] => collect_within(Path::new("."), SLOW).and_then(|collected| all_done(&collected)),
        _ => panic!("{what} is no program"),
    };
    if let Err(errors) = result {
        eprintln!("error: {}", errors.join("; "));
        std::process::exit(5);
    }
}

fn open() -> Result<Repository, Vec<String>> {
    let opened = Repository::open(Path::new("."), ChainOptions::default());
    opened.map(|(repository, _)| repository).map_err(|error| vec![error.to_string()])
}

/// Some megabytes take a tenth of a second.
const SLOW: Limits = Limits { bytes_per_second: NonZeroU64::new(64 << 20), in_flight: None };

fn all_done(collected: &Collected) -> Result<(), Vec<String>> {
    let failed = collected.failed.iter().map(|failed| failed.error.to_string());
    let left = collected.waiting.iter().map(|waiting| waiting.reason.clone());
    let isolated = collected.isolated.iter().map(|isolated| isolated.reason.clone());
    let errors: Vec<_> = failed.chain(left).chain(isolated).collect();
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// Collects a repository with the default options on one thread.
pub(crate) fn collect(folder: &Path) -> Result<Collected, Vec<String>> {
    collect_within(folder, Limits::default())
}

fn collect_within(folder: &Path, limits: Limits) -> Result<Collected, Vec<String>> {
    let (repository, _) = Repository::open(folder, ChainOptions::default()).map_err(|error| vec![error.to_string()])?;
    let (budget, abort) = (Budget::new(limits), Abort::new());
    let options = CollectOptions {
        threads: std::num::NonZeroUsize::new(1),
        budget: &budget,
        abort: &abort,
        method: CopyMethod::Auto,
        detect_zeroes: false,
        board: None,
    };
    repository.collect(&options).map_err(|error| vec![error.to_string()])
}
