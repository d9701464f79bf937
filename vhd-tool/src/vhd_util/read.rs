//! `read`: what an image says, and what it holds.

mod blocks;
mod content;
mod headers;
mod summary;

use std::io::Write;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use vhd_core::{BlockIndex, Chain, Image, Lock, ReadOnly, Sector, SectorCount, SectorRange};

use super::{Failure, Refused, chain_options};
use crate::output;
use blocks::Part;
pub(super) use headers::print as print_headers;

/// Print the structure of an image, or what it holds
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The image
    #[arg(short)]
    name: PathBuf,
    /// Print footer, header, locators and batmap, as far as they can be read
    #[arg(short = 'p')]
    headers: bool,
    /// Print where sectors are in this layer, a line each
    #[arg(short = 't', value_name = "SECTOR")]
    translate: Option<u64>,
    /// Print the BAT's entry for a block
    #[arg(short = 'b', value_name = "BLOCK")]
    bat: Option<u32>,
    /// Print a bit for each block, set where the BAT has an entry, most significant first, in binary
    #[arg(short = 'B')]
    allocated: bool,
    /// Print a block's bitmap, in binary
    #[arg(short = 'm', value_name = "BLOCK")]
    bitmap: Option<u32>,
    /// Print whether sectors are in this layer
    #[arg(short = 'i', value_name = "SECTOR")]
    test_bits: Option<u64>,
    /// Print the extents of this layer, first sector and sectors, a line each: of all of the disk, or of sectors
    #[arg(short = 'e', value_name = "SECTOR", num_args = 0..=1)]
    extents: Option<Option<u64>>,
    /// Print the batmap, in binary
    #[arg(short = 'a')]
    batmap: bool,
    /// Print whether the batmap shows a block as full
    #[arg(short = 'j', value_name = "BLOCK")]
    test_batmap: Option<u32>,
    /// Print a block's data in this layer, in binary
    #[arg(short = 'd', value_name = "BLOCK")]
    data: Option<u32>,
    /// How many
    #[arg(short, default_value_t = 1)]
    count: u64,
    /// Print sectors of the disk, parents included, in binary
    #[arg(short = 'r', value_name = "SECTOR")]
    sectors: Option<u64>,
    /// Print bytes of the disk, parents included, in binary
    #[arg(short = 'R', value_name = "BYTE")]
    bytes: Option<u64>,
    /// Print numbers in hexadecimal
    #[arg(short = 'x')]
    hex: bool,
    /// Accepted: has no effect
    #[arg(short = 'C', hide = true)]
    cached: bool,
}

/// How numbers are printed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Numbers {
    hex: bool,
}

impl Numbers {
    fn show(self, number: u64) -> String {
        // As C prints a zero.
        if self.hex && number != 0 { format!("{number:#x}") } else { number.to_string() }
    }
}

impl Args {
    /// Tells whether more is asked for than what works without a sound image.
    fn asks_for_content(&self) -> bool {
        let blocks = [self.bat, self.bitmap, self.test_batmap, self.data];
        let sectors = [self.translate, self.test_bits, self.sectors, self.bytes];
        self.allocated
            || self.extents.is_some()
            || self.batmap
            || blocks.iter().any(Option::is_some)
            || sectors.iter().any(Option::is_some)
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut out = output::stdout();
    match print(args, &mut out).and_then(|()| Ok(out.flush()?)) {
        // Whoever reads it has seen enough.
        Err(failure) if failure.errno() == Errno::PIPE => Ok(()),
        result => result,
    }
}

fn print(args: &Args, out: &mut dyn Write) -> Result<(), Failure> {
    let numbers = Numbers { hex: args.hex };
    if args.headers {
        print_headers(&args.name, numbers, out)?;
    }
    if !args.asks_for_content() {
        let asked = args.headers.then_some(());
        return asked.ok_or_else(|| refused(&args.name, "nothing of it is asked for").into());
    }
    let image = Image::<ReadOnly>::open(&args.name, Lock::None)?;
    let count = args.count;
    if let Some(first) = args.translate {
        let sectors = content::range(&image, Sector(first), SectorCount(count))?;
        blocks::translate(&image, sectors, numbers, out)?;
    }
    if let Some(first) = args.bat {
        blocks::bat_entries(&image, BlockIndex(first), count, numbers, out)?;
    }
    if args.allocated {
        blocks::allocated(&image, out)?;
    }
    if let Some(first) = args.bitmap {
        blocks::contents(&image, Part::Bitmap, BlockIndex(first), count, numbers, out)?;
    }
    if let Some(first) = args.test_bits {
        let sectors = content::range(&image, Sector(first), SectorCount(count))?;
        content::test_bits(&image, sectors, numbers, out)?;
    }
    if let Some(first) = args.extents {
        let all = SectorRange::new(Sector(0), image.sectors());
        let some = first.map(|first| content::range(&image, Sector(first), SectorCount(count)));
        content::extents(&image, some.transpose()?.unwrap_or(all), numbers, out)?;
    }
    if args.batmap {
        blocks::batmap(&image, out)?;
    }
    if let Some(first) = args.test_batmap {
        blocks::test_batmap(&image, BlockIndex(first), count, numbers, out)?;
    }
    if let Some(first) = args.data {
        blocks::contents(&image, Part::Data, BlockIndex(first), count, numbers, out)?;
    }
    if args.sectors.is_none() && args.bytes.is_none() {
        return Ok(());
    }
    let chain = Chain::open(&args.name, &chain_options())?;
    if let Some(first) = args.sectors {
        let bytes = first.checked_mul(512).zip(count.checked_mul(512));
        let (first, count) = bytes.ok_or_else(|| beyond(&args.name, "no disk has such sectors"))?;
        content::bytes(&chain, first, count, out)?;
    }
    if let Some(first) = args.bytes {
        content::bytes(&chain, first, count, out)?;
    }
    Ok(())
}

fn refused(name: &Path, what: &str) -> Refused {
    Refused::image(name, Errno::INVAL, what)
}

/// Refuses what lies beyond the end of something.
fn beyond(name: &Path, what: &str) -> Refused {
    Refused::image(name, Errno::RANGE, what)
}
