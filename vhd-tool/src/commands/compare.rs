//! `compare`: whether two disks read the same.

use std::path::PathBuf;

use serde::Serialize;
use vhd_core::{Buffer, ByteCount, Chain, Sector, SectorRange};

use super::Format;
use crate::cli::{Context, Status};
use crate::disk::{self, CHUNK, Form};
use crate::error::CommandError;
use crate::progress::Progress;

/// Compare the content of two disks, each a VHD or a raw file
///
/// Both are read through their chains; what holds a disk in another format is no raw file unless it is said to be. Where one is longer than the other, what both have is compared first. A raw file
/// that does not end with a whole sector counts as filled up with zeros.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vhd-tool compare disk.vhd disk.img

Exit codes: 0 equal, 1 different, 2 and above: not compared.")]
pub(crate) struct Args {
    /// One disk
    a: PathBuf,
    /// The other
    b: PathBuf,
    /// What A is, whatever it looks like
    #[arg(long, value_name = "FORM")]
    a_format: Option<Form>,
    /// What B is, whatever it looks like
    #[arg(long, value_name = "FORM")]
    b_format: Option<Form>,
    #[command(flatten)]
    format: Format,
}

#[derive(Serialize)]
struct Compared {
    equal: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    difference: Option<Difference>,
    sizes: [u64; 2],
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Difference {
    Content { offset: u64, bytes: [u8; 2] },
    Size,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    let options = context.chain_options();
    let disks = [
        disk::open(&args.a, args.a_format, "--a-format raw takes the file for a raw disk as it is", &options)?,
        disk::open(&args.b, args.b_format, "--b-format raw takes the file for a raw disk as it is", &options)?,
    ];
    let sizes = disks.each_ref().map(|disk| disk.sectors().bytes());
    let progress = context.progress("compare", Some(sizes[0].min(sizes[1])));
    let difference = first_difference(&disks, &progress)?;
    let difference = difference.or_else(|| (sizes[0] != sizes[1]).then_some(Difference::Size));
    progress.finish();

    let compared = Compared { equal: difference.is_none(), difference, sizes: sizes.map(|size| size.0) };
    context.output(args.format.json).outcome(&compared, |out| {
        let (a, b) = (args.a.display(), args.b.display());
        match &compared.difference {
            None => writeln!(out, "{a} and {b} are equal"),
            Some(Difference::Content { offset, bytes: [x, y] }) => {
                writeln!(out, "{a} and {b} differ at byte {offset}: {x:#04x} and {y:#04x}")
            }
            Some(Difference::Size) => {
                writeln!(out, "{a} has {} bytes and {b} {}; what both have is equal", sizes[0], sizes[1])
            }
        }
    })?;
    Ok(if compared.equal { Status::Done } else { Status::Different })
}

/// Compares what both disks have; what is zero in both by their tables is not read.
fn first_difference(disks: &[Chain; 2], progress: &Progress) -> Result<Option<Difference>, CommandError> {
    let end = Sector(disks[0].sectors().0.min(disks[1].sectors().0));
    let mut ranges = disks.each_ref().map(|disk| disk.data_ranges().peekable());
    let mut buffers = [(); 2].map(|()| Buffer::new(CHUNK.bytes()));
    let mut done = Sector(0);
    loop {
        // An error comes first, then the range that starts first.
        let key = |next: Option<&Result<SectorRange, _>>| {
            next.map_or(Sector(u64::MAX), |next| next.as_ref().map_or(Sector(0), |range| range.start))
        };
        let [a, b] = &mut ranges;
        let next = if key(a.peek()) <= key(b.peek()) { a.next() } else { b.next() };
        let Some(range) = next.transpose()? else { break };
        let range = SectorRange::between(range.start.max(done), range.end.min(end));
        for piece in range.split_at_multiples(CHUNK) {
            if let Some(difference) = compare_piece(disks, piece, &mut buffers)? {
                return Ok(Some(difference));
            }
            progress.set(ByteCount(piece.end.byte_offset()));
        }
        done = done.max(range.end);
    }
    progress.set(ByteCount(end.byte_offset()));
    Ok(None)
}

fn compare_piece(
    disks: &[Chain; 2],
    piece: SectorRange,
    buffers: &mut [Buffer; 2],
) -> Result<Option<Difference>, CommandError> {
    let length = piece.count().bytes().0 as usize;
    for (disk, buffer) in disks.iter().zip(&mut *buffers) {
        disk.read(piece, &mut buffer[..length])?;
    }
    let [a, b] = buffers.each_ref().map(|buffer| &buffer[..length]);
    if a == b {
        return Ok(None);
    }
    let at = a.iter().zip(b).position(|(a, b)| a != b);
    Ok(at.map(|at| Difference::Content { offset: piece.start.byte_offset() + at as u64, bytes: [a[at], b[at]] }))
}
