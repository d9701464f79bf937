//! Answers as blktap's `vhd-util`, which xapi's storage manager runs for whatever it does with images.
//!
//! Options, what is printed, its order and the exit codes are that program's; what is done is the engine's. Programs read
//! standard output, so all else goes to standard error. The exit code is the error number of the system that says best what
//! was wrong, 22 (EINVAL) where none does.
//!
//! An image that a crash has left with footers that differ, or a batmap whose checksum is wrong, passes a check, for it
//! reads right; whichever command writes to it next mends that.

mod check;
mod coalesce;
mod copy;
mod create;
mod failure;
mod fill;
mod key;
mod modify;
mod new_image;
mod query;
mod read;
mod repair;
mod resize;
mod revert;
mod scan;
mod set;
mod snapshot;

use std::ffi::OsString;
use std::path::Path;

use clap::error::ErrorKind;
use clap::{Arg, CommandFactory, FromArgMatches, Parser, Subcommand};
use rustix::io::Errno;
use vhd_core::{ChainError, ChainOptions, Image, Lock, ParentPlaces, ReadOnly, ReadWrite, folder_of, real_path};

use crate::output;
pub(crate) use failure::{Failure, Refused};

/// The name that the program answers to.
pub(crate) const NAME: &str = "vhd-util";

/// Does one thing to one image, as blktap's program of this name does it
#[derive(Debug, Parser)]
#[command(name = NAME, disable_help_subcommand = true, args_override_self = true, after_help = "\
Parents are opened only in the folder of the image and, on LVM, among the volumes beside it. VHD_UTIL_PARENT_ROOTS=DIR:DIR
in the environment allows them in other folders, too.")]
pub struct VhdUtil {
    /// Log more: has no effect, and may stand anywhere
    #[arg(long, global = true)]
    debug: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(args_override_self = true)]
    Check(check::Args),
    #[command(args_override_self = true)]
    Coalesce(coalesce::Args),
    #[command(args_override_self = true)]
    Copy(copy::Args),
    #[command(args_override_self = true)]
    Create(create::Args),
    #[command(args_override_self = true)]
    Fill(fill::Args),
    #[command(args_override_self = true)]
    Key(key::Args),
    #[command(args_override_self = true)]
    Modify(modify::Args),
    #[command(args_override_self = true)]
    Query(query::Args),
    #[command(args_override_self = true)]
    Read(read::Args),
    #[command(args_override_self = true)]
    Repair(repair::Args),
    #[command(args_override_self = true)]
    Resize(resize::Args),
    #[command(args_override_self = true)]
    Revert(revert::Args),
    #[command(args_override_self = true)]
    Scan(scan::Args),
    #[command(args_override_self = true)]
    Set(set::Args),
    #[command(args_override_self = true)]
    Snapshot(snapshot::Args),
}

/// Runs a command; the name of the program comes first. Gives the exit code.
pub(crate) fn run(args: &[OsString]) -> u8 {
    if args.len() < 2 {
        // Where nobody listens any more, there is nobody to tell.
        let _ = VhdUtil::command().print_help();
        return 0;
    }
    let command = match parse(args) {
        Ok(parsed) => parsed.command,
        Err(error) => return refused(args, &error),
    };
    match dispatch(&command) {
        Ok(()) => 0,
        Err(failure) => {
            output::to_stderr(&format!("{NAME}: {}", printable_lines(&failure.to_string())));
            failure.exit_code()
        }
    }
}

fn parse(args: &[OsString]) -> Result<VhdUtil, clap::Error> {
    let takes_value = |arg: &Arg| {
        let may_have_none = arg.get_num_args().is_some_and(|count| count.min_values() == 0);
        !arg.is_positional() && arg.get_action().takes_values() && !may_have_none
    };
    // What follows such an option is its value, whatever it begins with.
    let command = VhdUtil::command().mut_subcommands(|command| {
        command.mut_args(|arg| if takes_value(&arg) { arg.allow_hyphen_values(true) } else { arg })
    });
    // Even between an option and its value.
    let args = args.iter().filter(|&arg| arg != "--debug");
    VhdUtil::from_arg_matches(&command.try_get_matches_from(args)?)
}

fn dispatch(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Check(args) => check::run(args),
        Command::Coalesce(args) => coalesce::run(args),
        Command::Copy(args) => copy::run(args),
        Command::Create(args) => create::run(args),
        Command::Fill(args) => fill::run(args),
        Command::Key(args) => key::run(args),
        Command::Modify(args) => modify::run(args),
        Command::Query(args) => query::run(args),
        Command::Read(args) => read::run(args),
        Command::Repair(args) => repair::run(args),
        Command::Resize(args) => resize::run(args),
        Command::Revert(args) => revert::run(args),
        Command::Scan(args) => scan::run(args),
        Command::Set(args) => set::run(args),
        Command::Snapshot(args) => snapshot::run(args),
    }
}

/// Opens an image for writing. Whoever calls this program knows who has it open.
fn open_writable(path: &Path) -> Result<Image<ReadWrite>, Failure> {
    made_ready(Image::open_writable_beside(path)?)
}

/// Mends what a writer that was interrupted has left in an image, where no other program has it open.
fn made_ready(mut image: Image<ReadWrite>) -> Result<Image<ReadWrite>, Failure> {
    if !image.container().is_open_elsewhere()? {
        image.trim_tail()?;
    }
    note_layout(&image)?;
    Ok(image)
}

/// As [`open_writable`], for a change of where the image ends or where its blocks lie: a program that has it open would go
/// on reading, and writing, where they were.
fn open_alone(path: &Path) -> Result<Image<ReadWrite>, Failure> {
    let mut image = Image::open_writable(path)?;
    image.trim_tail()?;
    note_layout(&image)?;
    Ok(image)
}

/// Tells of an image that other programs would destroy.
fn note_layout(image: &Image<ReadWrite>) -> Result<(), Failure> {
    if image.footer().promises_batmap() && !image.is_laid_out()? {
        let name = image.path().display();
        output::to_stderr(&format!(
            "{NAME}: {name}: its tables lie behind its blocks, where tapdisk destroys them: repair it with `vhd-tool repair` before a guest uses it"
        ));
    }
    Ok(())
}

/// Where parents may lie besides the folder of the image: folders with colons between, `/` for anywhere.
const PARENT_ROOTS: &str = "VHD_UTIL_PARENT_ROOTS";

/// Which parents an image may have.
fn chain_options() -> ChainOptions {
    let roots = std::env::var_os(PARENT_ROOTS).unwrap_or_default();
    let roots = std::env::split_paths(&roots).filter(|root| root.is_dir()).collect();
    ChainOptions { parents: ParentPlaces::Within(roots), ..ChainOptions::default() }
}

/// Tells what opens an image again that has become the child of one in another folder.
fn note_parent_outside(name: &Path, parent: &Path) {
    let own = folder_of(name).canonicalize().ok();
    if real_path(parent).ok().zip(own).is_some_and(|(parent, own)| parent.starts_with(own)) {
        return;
    }
    let opened = Image::<ReadOnly>::open(name, Lock::None).ok().map(|image| chain_options().open_parents(&image, name));
    if let Some(Err(error @ ChainError::Parent { .. })) = opened {
        output::to_stderr(&format!("{NAME}: {error}\n{NAME}: {PARENT_ROOTS}=DIR in the environment allows its folder"));
    }
}

/// A name that an image or a folder tells, on one line: what a terminal would take for a command, and a program for another
/// line, is left out.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// What may have lines of its own, without what a terminal would take for a command.
fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// Prints help, or what is wrong with the command line; only some commands take a wish for help for no error.
fn refused(args: &[OsString], error: &clap::Error) -> u8 {
    // Where nobody listens any more, there is nobody to tell.
    let _ = error.print();
    let answers_help = ["snapshot", "query", "scan", "check", "key"];
    let is_help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let command = args.iter().skip(1).find(|&arg| arg != "--debug");
    if is_help && command.is_some_and(|command| answers_help.iter().any(|answering| command == answering)) {
        0
    } else {
        failure::exit_code(Errno::INVAL)
    }
}
