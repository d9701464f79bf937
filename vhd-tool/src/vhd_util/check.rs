//! `check`: whether an image is sound.

mod statistics;

use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use vhd_core::check::{self, Depth, Finding, Report, Severity};
use vhd_core::{ChainError, ChainOptions, Image, Lock, ParentIdentity, ReadOnly};

use super::{Failure, NAME, Refused, chain_options, printable, printable_lines, read};
use crate::output;

/// Tell whether an image is valid
///
/// The reasons why it is not are printed before that, and its headers after it. What blktap's program would let pass is
/// told on standard error, and is no reason.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image
    #[arg(short)]
    name: PathBuf,
    /// Let the footer at the end be missing
    #[arg(short = 'i')]
    ignore_footer: bool,
    /// Let the parent be somebody else
    #[arg(short = 'I')]
    ignore_parent: bool,
    /// Say nothing of a parent that has changed since
    #[arg(short = 't')]
    ignore_timestamps: bool,
    /// Check the parents, too
    #[arg(short = 'p')]
    parents: bool,
    /// Look for data that the bitmaps do not show
    #[arg(short = 'b')]
    bitmaps: bool,
    /// Do not look for blocks that lie over each other
    #[arg(short = 'B', conflicts_with_all = ["bitmaps", "statistics"])]
    no_overlaps: bool,
    /// Print how many sectors are in the image, and in its parents where these are checked, too, instead of that it is valid
    #[arg(short = 's')]
    statistics: bool,
}

/// Warnings with which blktap's program does not open an image, or calls it invalid.
const FATAL: [&str; 5] = ["footer-copy-lost", "batmap-lost", "locator-place", "locator-room", "locator-text"];

/// Information that is passed on.
const TOLD: &str = "parent-modified";

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut chain = vec![args.name.clone()];
    let parents = check_one(args, &args.name)?;
    if args.parents {
        chain.extend(parents);
        chain[1..].iter().try_for_each(|parent| check_one(args, parent).map(drop))?;
    }
    if args.statistics {
        let mut out = output::stdout();
        statistics::print(&chain, &mut out)?;
        out.flush()?;
    }
    Ok(())
}

/// Checks a file, prints what comes of it, and gives its parents.
fn check_one(args: &Args, path: &Path) -> Result<Vec<PathBuf>, Failure> {
    let depth = if args.bitmaps { Depth::Data } else { Depth::Structure };
    let own = check::file_to(path, depth)?;
    let mut reasons = sort_out(args, path, &own);
    let mut parents = Vec::new();
    if reasons.is_empty() {
        let (reason, found) = check_parents(args, path)?;
        reasons.extend(reason);
        parents = found;
    }
    let name = printable(&path.to_string_lossy());
    let mut out = output::stdout();
    if reasons.is_empty() {
        if !args.statistics {
            writeln!(out, "{name} is valid")?;
        }
        out.flush()?;
        return Ok(parents);
    }
    for reason in &reasons {
        writeln!(out, "{}", printable_lines(reason))?;
    }
    writeln!(out, "{name} appears invalid; dumping metadata")?;
    // Where there are none, that has been said.
    let _ = read::print_headers(path, read::Numbers::default(), &mut out);
    out.flush()?;
    Err(Refused::image(path, Errno::INVAL, "not valid").into())
}

/// Gives the findings that make the image invalid, and tells the others.
fn sort_out(args: &Args, path: &Path, report: &Report) -> Vec<String> {
    let mut reasons = Vec::new();
    for Finding { code, severity, text, .. } in report.findings() {
        let ignored = match *code {
            "footer-end-lost" => args.ignore_footer,
            "block-overlap" => args.no_overlaps,
            "parent-identity" => args.ignore_parent,
            TOLD => args.ignore_timestamps,
            _ => false,
        };
        if ignored {
            continue;
        }
        let is_stray = args.bitmaps && *code == "data-unmarked";
        if *severity == Severity::Error || FATAL.contains(code) || is_stray {
            reasons.push(text.clone());
        } else if *severity == Severity::Warning || *code == TOLD {
            output::to_stderr(&format!("{NAME}: {}: {text}", path.display()));
        }
    }
    reasons
}

/// Checks what the image says of its parent; what is wrong further down is told, unless the parents are checked, too.
fn check_parents(args: &Args, path: &Path) -> Result<(Vec<String>, Vec<PathBuf>), Failure> {
    let identity = if args.ignore_parent { ParentIdentity::Ignore } else { ParentIdentity::Match };
    let options = ChainOptions { parent_identity: identity, ..chain_options() };
    let image = Image::<ReadOnly>::open(path, Lock::None)?;
    match options.open_parents(&image, path) {
        Err(ChainError::Parent { child, tried }) if child != path && !args.parents => {
            let error = ChainError::Parent { child, tried };
            output::to_stderr(&format!("{NAME}: {}: {error}", path.display()));
            Ok((Vec::new(), Vec::new()))
        }
        // The times of the parents' last changes are looked at only where data is.
        _ => {
            let (report, parents) = check::chain(path, &options, Depth::Data)?;
            Ok((sort_out(args, path, &report), parents))
        }
    }
}
