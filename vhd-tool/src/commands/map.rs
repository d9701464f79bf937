//! `map`: where each part of a disk is.

use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;
use vhd_core::{Chain, ChainExtent, ChainSource, Sector, SectorRange};

use super::Format;
use crate::cli::{Context, Status};
use crate::error::CommandError;
use crate::output;

/// List the extents of a disk: data and zeros, and the file of the chain that holds the data
///
/// Layers are counted from the top: FILE is 0, its parent 1.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vhd-tool map disk.vhd")]
pub(crate) struct Args {
    /// The image
    file: PathBuf,
    #[command(flatten)]
    format: Format,
}

#[derive(Serialize)]
struct Extent<'a> {
    start: u64,
    length: u64,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    let chain = Chain::open(&args.file, &context.chain_options())?;
    let files: Vec<String> = chain.layers().iter().map(|layer| layer.path().display().to_string()).collect();
    let disk = SectorRange::new(Sector(0), chain.sectors());
    let mut out = output::stdout();
    let json = context.output(args.format.json).json();
    // There may be millions of extents: each is printed when it is found.
    if json {
        write!(out, "[")
    } else {
        writeln!(out, "{:>16} {:>16}  {:<4}  {:>16}  file", "start", "length", "kind", "offset")
    }
    .map_err(CommandError::stdout)?;
    let mut separator = "\n";
    for found in chain.extents(disk) {
        let extent = describe(found?, &files);
        if json {
            print_json(&mut out, &extent, std::mem::replace(&mut separator, ",\n"))
        } else {
            print_text(&mut out, &extent)
        }
        .map_err(CommandError::stdout)?;
    }
    if json { writeln!(out, "\n]") } else { Ok(()) }.and_then(|()| out.flush()).map_err(CommandError::stdout)?;
    Ok(Status::Done)
}

fn describe(extent: ChainExtent, files: &[String]) -> Extent<'_> {
    let (start, length) = (extent.sectors.start.byte_offset(), extent.sectors.count().bytes().0);
    match extent.source {
        ChainSource::Zero => Extent { start, length, kind: "zero", layer: None, file: None, offset: None },
        ChainSource::Data { layer, at } => {
            let (layer, file, offset) = (Some(layer), Some(&*files[layer]), Some(at.0));
            Extent { start, length, kind: "data", layer, file, offset }
        }
    }
}

fn print_json(out: &mut impl Write, extent: &Extent<'_>, separator: &str) -> io::Result<()> {
    write!(out, "{separator}  ")?;
    Ok(serde_json::to_writer(out, extent)?)
}

fn print_text(out: &mut impl Write, extent: &Extent<'_>) -> io::Result<()> {
    let Extent { start, length, kind, file, offset, .. } = extent;
    match file.zip(*offset) {
        Some((file, offset)) => writeln!(out, "{start:>16} {length:>16}  {kind:<4}  {offset:>16}  {file}"),
        None => writeln!(out, "{start:>16} {length:>16}  {kind}"),
    }
}
