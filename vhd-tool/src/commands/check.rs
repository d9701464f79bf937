//! `check`: what is wrong with an image.

use std::path::{Path, PathBuf};

use serde::Serialize;
use vhd_core::check::{self, Depth, Report, Severity};

use super::Format;
use crate::cli::{Context, Status};
use crate::error::CommandError;

/// Check the structure of an image: footers, header, BAT, bitmaps, batmap, locators, parents
///
/// Nothing is changed. Parents are opened, to see that they are there and are who FILE says; with --chain each of them
/// is checked like FILE.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vhd-tool check disk.vhd --chain

Exit codes: 0 nothing worse than information, 3 warnings, 4 errors, 5 not checked.")]
pub(crate) struct Args {
    /// The image
    file: PathBuf,
    /// Check all its parents too
    #[arg(long)]
    chain: bool,
    /// Read all data, too: find what no bitmap shows, and parents that have changed since
    #[arg(long)]
    deep: bool,
    #[command(flatten)]
    format: Format,
}

#[derive(Serialize)]
struct Checked {
    worst: Option<String>,
    files: Vec<CheckedFile>,
}

#[derive(Serialize)]
struct CheckedFile {
    file: String,
    findings: Vec<Finding>,
}

#[derive(Serialize)]
struct Finding {
    severity: String,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    meaning: String,
    remedy: &'static str,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    let depth = if args.deep { Depth::Data } else { Depth::Structure };
    let own = check::file_to(&args.file, depth)?;
    let (of_parents, parents) = check::chain(&args.file, &context.chain_options(), depth)?;
    let mut worst = own.worst().max(of_parents.worst());
    let mut files = vec![describe(&args.file, &[own, of_parents])];
    for parent in parents.iter().filter(|_| args.chain) {
        let report = check::file_to(parent, depth)?;
        worst = worst.max(report.worst());
        files.push(describe(parent, &[report]));
    }

    let checked = Checked { worst: worst.map(|severity| severity.to_string()), files };
    context.output(args.format.json).data(&checked, |out| {
        for CheckedFile { file, findings } in &checked.files {
            if findings.is_empty() {
                writeln!(out, "{file}: nothing found")?;
            }
            for Finding { severity, code, offset, meaning, remedy } in findings {
                let at = offset.map_or(String::new(), |offset| format!(" at offset {offset}"));
                writeln!(out, "{file}: {severity}{at}: {meaning} [{code}]")?;
                if !remedy.starts_with("None needed") {
                    writeln!(out, "  {remedy}")?;
                }
            }
        }
        Ok(())
    })?;
    Ok(match worst {
        None | Some(Severity::Info) => Status::Done,
        Some(Severity::Warning) => Status::Warnings,
        Some(Severity::Error) => Status::Errors,
    })
}

fn describe(path: &Path, reports: &[Report]) -> CheckedFile {
    let findings = reports.iter().flat_map(Report::findings).map(|finding| Finding {
        severity: finding.severity.to_string(),
        code: finding.code,
        offset: finding.offset.map(|offset| offset.0),
        meaning: finding.text.clone(),
        remedy: finding.remedy,
    });
    CheckedFile { file: path.display().to_string(), findings: findings.collect() }
}
