//! `contents`: what lies where in the file of an image.

use std::io::Write;
use std::path::PathBuf;

use vhd_core::{BlockIndex, BlockPlace, Extents, Image, Lock, ReadOnly, Sector, SectorCount, SectorRange, Source};

use crate::cli::{Context, Status};
use crate::error::CommandError;
use crate::output;

/// List what lies in the file of an image, in the order of the file: footer, header, BAT, data, footer
///
/// A line `Block S (len N)` stands for N bytes of data for the disk from sector S on, without a gap.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vhd-tool contents disk.vhd")]
pub(crate) struct Args {
    /// The image
    file: PathBuf,
}

pub(crate) fn run(args: &Args, _context: &Context) -> Result<Status, CommandError> {
    let image = Image::<ReadOnly>::open(&args.file, Lock::None)?;
    let mut out = output::stdout();
    let mut line = |text: &str| writeln!(out, "{text}").map_err(CommandError::stdout);
    match image.header() {
        None => line(&format!("Block 0 (len {})", image.footer().current_size()))?,
        Some(header) => {
            ["Footer", "Header", "BAT"].into_iter().try_for_each(&mut line)?;
            let mut blocks = image.allocated_blocks().collect::<Result<Vec<(BlockIndex, BlockPlace)>, _>>()?;
            blocks.sort_unstable_by_key(|(_, place)| place.bitmap);
            let sectors = u64::from(header.block_size().get()) / vhd_core::SECTOR_SIZE;
            let mut extents = Extents::default();
            for (block, _) in blocks {
                let start = Sector(u64::from(block.0) * sectors);
                let all = SectorRange::new(start, SectorCount(sectors));
                let within = SectorRange::between(start, all.end.min(Sector(image.sectors().0)).max(start));
                extents.clear();
                image.resolve(within, &mut extents)?;
                for extent in extents.as_slice().iter().filter(|extent| matches!(extent.source, Source::Data(_))) {
                    let (start, length) = (extent.sectors.start.0, extent.sectors.count().bytes());
                    line(&format!("Block {start} (len {length})"))?;
                }
            }
        }
    }
    line("Footer")?;
    out.flush().map_err(CommandError::stdout)?;
    Ok(Status::Done)
}
