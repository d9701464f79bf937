//! The command line as a whole: global options, the list of commands, and exit codes.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use coalesce_worker::{Recovered, Repository};
use vhd_core::{ByteCount, ChainOptions, FileError, ParentIdentity, ParentPlaces, folder_of};

use crate::commands::read_headers::Listing;
use crate::commands::{
    check, clone, coalesce, compact, compare, contents, convert, create, delete, gc, get, info, map, read,
    read_headers, repair, resize, serve, snapshot, stream, tree, write,
};
use crate::error::{CommandError, with_causes};
use crate::output::{self, Output};
use crate::progress::Progress;
use crate::vhd_util;

const AFTER_HELP: &str = "\
Sizes are bytes, or have a suffix K, M, G or T (powers of 1024): 512K, 64M, 2T.

Exit codes:
  0  done; compare: equal; check: nothing worse than information
  1  compare found a difference
  2  wrong usage
  3  check found warnings; gc: something waits or is isolated
  4  check found errors
  5  anything else failed
  124  `get`: no such key";

/// Creates, reads, checks, snapshots and merges VHD images and chains of them
#[derive(Debug, Parser)]
#[command(name = "vhd-tool", version, after_help = AFTER_HELP, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    global: GlobalOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct GlobalOptions {
    /// Print neither progress nor what was done, only errors and the data that was asked for
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Allow parents beneath this folder too, not only in the folder of the image; may be given several times
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "any_parent", help_heading = "Parents")]
    parent_root: Vec<PathBuf>,
    /// Allow parents anywhere: only for images from a source that you trust
    #[arg(long, global = true, help_heading = "Parents")]
    any_parent: bool,
    /// Take the parent that is found even if its unique id is not the one that the child recorded
    #[arg(long, global = true, help_heading = "Parents")]
    ignore_parent_uuid: bool,
    #[command(flatten)]
    foreign: ForeignOptions,
}

/// What xapi gives to its own program of this name, with every command.
#[derive(Debug, clap::Args)]
struct ForeignOptions {
    /// Look for parents in these folders too, separated by colons, and allow them beneath; `/`, which would be anywhere,
    /// is passed over
    #[arg(
        long,
        global = true,
        value_name = "DIRS",
        default_value = "",
        hide_default_value = true,
        help_heading = "Parents"
    )]
    path: String,
    /// Accepted: the page cache is used nevertheless
    #[arg(long, alias = "unbuffered", global = true, hide = true)]
    direct: bool,
    /// Accepted: errors say all that there is
    #[arg(long, global = true, hide = true)]
    debug: bool,
    /// Accepted: errors say all that there is
    #[arg(long, short, global = true, hide = true)]
    verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Create(create::Args),
    Info(info::Args),
    Map(map::Args),
    Tree(tree::Args),
    Check(check::Args),
    Repair(repair::Args),
    Read(read::Args),
    Write(write::Args),
    Resize(resize::Args),
    Compact(compact::Args),
    Convert(convert::Args),
    Compare(compare::Args),
    Snapshot(snapshot::Args),
    Clone(clone::Args),
    Delete(delete::Args),
    Coalesce(coalesce::Args),
    Gc(gc::Args),
    Get(get::Args),
    Contents(contents::Args),
    #[command(name = "read_headers")]
    ReadHeaders(read_headers::Args),
    #[command(name = "read_headers_interval")]
    ReadHeadersInterval(read_headers::Args),
    Stream(Box<stream::Args>),
    Serve(Box<serve::Args>),
    /// Answer as blktap's program of that name, as this one also does when it is called by it
    #[command(disable_help_flag = true)]
    VhdUtil {
        /// A command of it, and its options
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
}

/// How a command ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Done,
    Different,
    Warnings,
    Errors,
    /// Something waits or is isolated.
    Left,
    /// Errors have been printed.
    Failed,
    /// As blktap's program would have ended.
    VhdUtil(u8),
}

impl Status {
    fn exit_code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Different => 1,
            Self::Warnings | Self::Left => 3,
            Self::Errors => 4,
            Self::Failed => 5,
            Self::VhdUtil(code) => code,
        }
    }
}

/// What the global options mean to a command.
#[derive(Debug)]
pub(crate) struct Context {
    global: GlobalOptions,
}

impl Context {
    /// Opens the repository that an image lies in, and tells what was found there.
    pub(crate) fn repository_of(&self, image: &Path) -> Result<Repository, CommandError> {
        let real = image.canonicalize().map_err(FileError::when(image, "open it"))?;
        let (repository, recovered) = Repository::open(folder_of(&real), self.chain_options())?;
        self.tell_recovered(&recovered);
        Ok(repository)
    }

    /// Tells what processes that died have left, as far as it could not be finished.
    pub(crate) fn tell_recovered(&self, recovered: &Recovered) {
        for waiting in &recovered.waiting {
            let (path, why) = (waiting.path.display(), with_causes(&waiting.reason));
            self.note(&format!("{path}: something was interrupted and cannot be finished now: {why}"));
        }
    }

    /// Which parents may be opened.
    pub(crate) fn chain_options(&self) -> ChainOptions {
        let searched = self.global.foreign.path.split(':').map(PathBuf::from).filter(|path| {
            // A program that was started in `/` means its own place by `.`.
            path.canonicalize().is_ok_and(|real| real.is_dir() && real != Path::new("/"))
        });
        let search: Vec<PathBuf> = searched.collect();
        let places = ParentPlaces::Within(self.global.parent_root.iter().chain(&search).cloned().collect());
        ChainOptions {
            parents: if self.global.any_parent { ParentPlaces::Anywhere } else { places },
            search,
            parent_identity: if self.global.ignore_parent_uuid {
                ParentIdentity::Ignore
            } else {
                ParentIdentity::Match
            },
            ..ChainOptions::default()
        }
    }

    /// Where a command prints what it found or did.
    pub(crate) fn output(&self, json: bool) -> Output {
        Output::new(json, self.global.quiet)
    }

    /// Starts to show how far the work is; `total` is not known where it ends with the input.
    pub(crate) fn progress(&self, action: &'static str, total: Option<ByteCount>) -> Progress {
        if self.global.quiet { Progress::none() } else { Progress::start(action, total) }
    }

    /// Whether only errors and data that was asked for are to be printed.
    pub(crate) fn is_quiet(&self) -> bool {
        self.global.quiet
    }

    /// Tells something worth knowing that hinders nothing.
    pub(crate) fn note(&self, text: &str) {
        if !self.global.quiet {
            output::to_stderr(&format!("note: {text}"));
        }
    }
}

/// Runs a command, prints its error if it fails, and gives the exit code.
pub(crate) fn run(cli: Cli) -> ExitCode {
    let context = Context { global: cli.global };
    match dispatch(&cli.command, &context) {
        Ok(status) => status.exit_code().into(),
        Err(error) => {
            error.print();
            error.exit_code().into()
        }
    }
}

fn dispatch(command: &Command, context: &Context) -> Result<Status, CommandError> {
    match command {
        Command::Create(args) => create::run(args, context),
        Command::Info(args) => info::run(args, context),
        Command::Map(args) => map::run(args, context),
        Command::Tree(args) => tree::run(args, context),
        Command::Check(args) => check::run(args, context),
        Command::Repair(args) => repair::run(args, context),
        Command::Read(args) => read::run(args, context),
        Command::Write(args) => write::run(args, context),
        Command::Resize(args) => resize::run(args, context),
        Command::Compact(args) => compact::run(args, context),
        Command::Convert(args) => convert::run(args, context),
        Command::Compare(args) => compare::run(args, context),
        Command::Snapshot(args) => snapshot::run(args, context),
        Command::Clone(args) => clone::run(args, context),
        Command::Delete(args) => delete::run(args, context),
        Command::Coalesce(args) => coalesce::run(args, context),
        Command::Gc(args) => gc::run(args, context),
        Command::Get(args) => get::run(args, context),
        Command::Contents(args) => contents::run(args, context),
        Command::ReadHeaders(args) => read_headers::run(args, Listing::Each, context),
        Command::ReadHeadersInterval(args) => read_headers::run(args, Listing::Intervals, context),
        Command::Stream(args) => stream::run(args, context),
        Command::Serve(args) => serve::run(args, context),
        Command::VhdUtil { args } => {
            Ok(Status::VhdUtil(vhd_util::run(&[&[OsString::from(vhd_util::NAME)], &args[..]].concat())))
        }
    }
}
