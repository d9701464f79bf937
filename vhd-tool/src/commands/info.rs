//! `info`: all that an image says of itself.

mod describe;

use std::io::{self, Write};
use std::path::PathBuf;

use vhd_core::{ByteCount, Chain, ChainOptions, Image, Lock, ReadOnly, UnfinishedResize};

use super::Format;
use crate::cli::{Context, Status};
use crate::error::CommandError;
use coalesce_worker::size;
use describe::{Batmap, Description, Parent, Vhd};

/// Show what an image says of itself
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vhd-tool info disk.vhd
  vhd-tool info disk.vhd --chain --json")]
pub(crate) struct Args {
    /// The image
    file: PathBuf,
    /// Show its parents too, FILE first
    #[arg(long)]
    chain: bool,
    #[command(flatten)]
    format: Format,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    let output = context.output(args.format.json);
    if !args.chain {
        let image = Image::<ReadOnly>::open(&args.file, Lock::None)?;
        let description = Description::of_vhd(&image)?;
        output.data(&description, |out| print(&description, out))?;
        return Ok(Status::Done);
    }
    // Only described, not trusted.
    let options = ChainOptions { unfinished_resize: UnfinishedResize::Accept, ..context.chain_options() };
    let chain = Chain::open(&args.file, &options)?;
    let layers = chain.layers().iter().map(Description::of_layer).collect::<Result<Vec<_>, _>>()?;
    output.data(&layers, |out| {
        for (i, layer) in layers.iter().enumerate() {
            if i > 0 {
                writeln!(out)?;
            }
            print(layer, out)?;
        }
        Ok(())
    })?;
    Ok(Status::Done)
}

fn line(out: &mut dyn Write, name: &str, value: impl std::fmt::Display) -> io::Result<()> {
    writeln!(out, "  {name:<17} {value}")
}

fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

fn print(description: &Description, out: &mut dyn Write) -> io::Result<()> {
    let Description { file, kind, size, file_length, own_size, vhd } = description;
    writeln!(out, "{file}")?;
    line(out, "type", kind)?;
    line(out, "virtual size", size::both(ByteCount(*size)))?;
    line(out, "file length", size::both(ByteCount(*file_length)))?;
    line(out, "space on disk", size::both(ByteCount(*own_size)))?;
    vhd.as_ref().map_or(Ok(()), |vhd| print_vhd(vhd, out))
}

fn print_vhd(vhd: &Vhd, out: &mut dyn Write) -> io::Result<()> {
    line(out, "uuid", vhd.uuid)?;
    let describe::Creator { application, version, host_os } = &vhd.creator;
    line(out, "creator", format_args!("{application:?}, version {version}, on {host_os:?}"))?;
    line(out, "made", &vhd.timestamp)?;
    let describe::Shape { cylinders, heads, sectors_per_track } = vhd.geometry;
    line(out, "geometry", format_args!("{cylinders} cylinders, {heads} heads, {sectors_per_track} sectors a track"))?;
    if vhd.original_size != vhd.current_size {
        line(out, "made with", size::both(ByteCount(vhd.original_size)))?;
    }
    line(out, "hidden", yes_no(vhd.hidden))?;
    line(out, "saved state", yes_no(vhd.saved_state))?;
    if vhd.resize_unfinished {
        line(out, "resize", "interrupted: the tables may not match the data")?;
    }
    line(out, "footer", vhd.footer)?;
    if let Some(tables) = &vhd.tables {
        line(out, "block size", size::both(ByteCount(u64::from(tables.block_size))))?;
        line(out, "BAT entries", format_args!("{} at offset {}", tables.bat_entries, tables.bat_offset))?;
        line(out, "allocated blocks", format_args!("{} of {}", tables.allocated_blocks, tables.blocks))?;
        if tables.bad_blocks > 0 {
            line(out, "bad BAT entries", format_args!("{}: `check` lists them", tables.bad_blocks))?;
        }
        print_batmap(&tables.batmap, out)?;
    }
    vhd.parent.as_ref().map_or(Ok(()), |parent| print_parent(parent, out))
}

fn print_batmap(batmap: &Batmap, out: &mut dyn Write) -> io::Result<()> {
    match batmap {
        Batmap::Absent => line(out, "batmap", "none"),
        Batmap::Lost => line(out, "batmap", "overwritten"),
        Batmap::Present { offset, version, marker, key_hash } => {
            line(out, "batmap", format_args!("at offset {offset}, version {version}"))?;
            line(out, "marker", marker)?;
            line(out, "key hash", if *key_hash { "present" } else { "none" })
        }
    }
}

fn print_parent(parent: &Parent, out: &mut dyn Write) -> io::Result<()> {
    line(out, "parent", &parent.name)?;
    let raw = if parent.uuid.is_nil() { " (a raw disk)" } else { "" };
    line(out, "parent uuid", format_args!("{}{raw}", parent.uuid))?;
    line(out, "parent changed", &parent.timestamp)?;
    for locator in &parent.locators {
        let describe::Locator { slot, code, offset, length, text } = locator;
        let text = text.as_ref().map_or(String::new(), |text| format!(" {text:?}"));
        line(out, &format!("locator {slot}"), format_args!("{code}{text}, {length} bytes at offset {offset}"))?;
    }
    Ok(())
}
