//! `repair`: mends a damaged image, or takes that back.

use std::path::{Path, PathBuf};

use coalesce_worker::check_not_served;
use serde::Serialize;
use vhd_core::check::Finding;
use vhd_core::repair::{self, Mended, Options, Repaired, TakenBack};
use vhd_core::{SectorRange, folder_of};

use super::Format;
use crate::cli::{Context, Status};
use crate::error::CommandError;

/// Mend a damaged image: footers, header, batmap, BAT entries, parent locators, an interrupted resize
///
/// Only what can be proved is mended, and only if nothing is wrong afterwards; otherwise FILE is left as it is. What was
/// there before is kept in FILE.undo, so that --undo can take the repair back. A repair that was interrupted is taken back
/// and done anew by the next one. What is listed as lost was lost before: it could not be read, or was not there.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vhd-tool repair disk.vhd --dry-run
  vhd-tool repair disk.vhd
  vhd-tool repair disk.vhd --undo
  vhd-tool repair disk.vhd --journal resize.journal

Exit codes: 0 repaired, or nothing had to be; 5 not repaired, and as long as no write has failed, not changed.")]
pub(crate) struct Args {
    /// The image, which nobody else has open
    file: PathBuf,
    /// Tell what would be done and what is lost, and change nothing
    #[arg(long, conflicts_with = "undo")]
    dry_run: bool,
    /// Take the last repair back: FILE is again, byte for byte, what it was
    #[arg(long)]
    undo: bool,
    /// Keep the undo file in this folder, instead of beside FILE; to be given again with --undo and after a crash
    #[arg(long, value_name = "DIR")]
    backup: Option<PathBuf>,
    /// The journal of an interrupted resize; by default the one in the folder of FILE that was made for it
    #[arg(long, value_name = "JOURNAL", conflicts_with = "undo")]
    journal: Option<PathBuf>,
    #[command(flatten)]
    format: Format,
}

#[derive(Serialize)]
struct Outcome<'a> {
    file: String,
    dry_run: bool,
    /// An earlier repair was interrupted, and was taken back first.
    resumed: bool,
    repaired: Vec<Step<'a>>,
    lost: Vec<Lost>,
    left: Vec<Left<'a>>,
    bytes_replaced: u64,
    undo: Option<String>,
    journal: Option<String>,
}

#[derive(Serialize)]
struct Step<'a> {
    code: &'static str,
    done: &'a str,
}

/// Sectors of the disk whose content is lost.
#[derive(Serialize)]
struct Lost {
    sector: u64,
    count: u64,
}

#[derive(Serialize)]
struct Left<'a> {
    severity: String,
    code: &'static str,
    meaning: &'a str,
}

#[derive(Serialize)]
struct Undone {
    file: String,
    /// The repair that was taken back had not been completed.
    interrupted: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    let options = Options {
        journal: args.journal.clone(),
        backup: args.backup.clone(),
        parents: context.chain_options().parents,
    };
    if !args.dry_run {
        check_not_served(&args.file)?;
    }
    if args.undo {
        return take_back(args, &options, context);
    }
    finish_operations(args, context)?;
    let repaired = match args.dry_run {
        true => repair::preview(&args.file, &options)?,
        false => repair::file(&args.file, &options)?,
    };
    let outcome = describe(args, &repaired);
    let output = context.output(args.format.json);
    let text = |out: &mut dyn std::io::Write| tell(out, &outcome);
    match args.dry_run {
        // What would be done was asked for.
        true => output.data(&outcome, text)?,
        false => output.outcome(&outcome, text)?,
    }
    Ok(Status::Done)
}

fn take_back(args: &Args, options: &Options, context: &Context) -> Result<Status, CommandError> {
    let was = repair::take_back(&args.file, options)?;
    let undone = Undone { file: args.file.display().to_string(), interrupted: was == TakenBack::Interrupted };
    context.output(args.format.json).outcome(&undone, |out| match was {
        TakenBack::Completed => writeln!(out, "{}: the repair is taken back", undone.file),
        TakenBack::Interrupted => writeln!(out, "{}: the interrupted repair is taken back", undone.file),
    })?;
    Ok(Status::Done)
}

/// What an operation has recorded that was interrupted, as a change of the parent, is finished by that record: it knows
/// what a repair would have to find out.
fn finish_operations(args: &Args, context: &Context) -> Result<(), CommandError> {
    let state = args.file.canonicalize().map(|real| folder_of(&real).join(".vhd"));
    if !args.dry_run && state.is_ok_and(|state| state.is_dir()) {
        context.repository_of(&args.file)?;
    }
    Ok(())
}

fn describe<'a>(args: &Args, repaired: &'a Repaired) -> Outcome<'a> {
    let Repaired { resumed, mended, lost, left, changed, undo, journal } = repaired;
    let name = |path: &PathBuf| Path::display(path).to_string();
    Outcome {
        file: args.file.display().to_string(),
        dry_run: args.dry_run,
        resumed: *resumed,
        repaired: mended.iter().map(|Mended { code, text }| Step { code, done: text }).collect(),
        lost: lost.iter().map(|range: &SectorRange| Lost { sector: range.start.0, count: range.count().0 }).collect(),
        left: left
            .iter()
            .map(|Finding { severity, code, text, .. }| Left { severity: severity.to_string(), code, meaning: text })
            .collect(),
        bytes_replaced: changed.0,
        undo: undo.as_ref().map(name),
        journal: journal.as_ref().map(name),
    }
}

fn tell(out: &mut dyn std::io::Write, outcome: &Outcome<'_>) -> std::io::Result<()> {
    let Outcome { file, dry_run, resumed, repaired, lost, left, bytes_replaced, undo, journal } = outcome;
    if *resumed {
        writeln!(out, "{file}: an interrupted repair is taken back first")?;
    }
    for Step { code, done } in repaired {
        writeln!(out, "{file}: {done} [{code}]")?;
    }
    for Lost { sector, count } in lost {
        writeln!(out, "{file}: lost: sectors {sector}..{}", sector + count)?;
    }
    for Left { severity, code, meaning } in left {
        writeln!(out, "{file}: left: {severity}: {meaning} [{code}]")?;
    }
    if repaired.is_empty() {
        return writeln!(out, "{file}: nothing to repair");
    }
    let tense = if *dry_run { "would be replaced" } else { "replaced" };
    writeln!(out, "{file}: {bytes_replaced} bytes {tense}")?;
    if let Some(undo) = undo {
        writeln!(out, "{file}: what was there before is in {undo}; --undo takes the repair back")?;
    }
    if let Some(journal) = journal {
        writeln!(out, "{file}: nobody needs {journal} any more, unless the repair is taken back")?;
    }
    Ok(())
}
