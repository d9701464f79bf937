//! `compact`: a file without what its disk does not need.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use coalesce_worker::size::Human;
use coalesce_worker::{Compacted, LockedParents, ParentsError, check_not_served, open_locked_parents};
use serde::Serialize;
use vhd_core::{ByteCount, Compaction, FileError, Image, Lock, ReadOnly};

use super::Format;
use crate::cli::{Context, Status};
use crate::error::{CommandError, with_causes};

/// Give back what an image's file holds and its disk does not need, in place
///
/// Blocks that hold nothing, or only zeros that show without them, are released; pages of zeros in other blocks become
/// holes; blocks move from the end of the file into the room that is free; and the file is cut. The disk reads the same at
/// every moment, whatever is interrupted, and the same command can be given again.
/// Fixed images stay as they are. On a block device blocks are released and nothing else.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  vhd-tool compact disk.vhd --dry-run
  vhd-tool compact disk.vhd")]
pub(crate) struct Args {
    /// The image; neither it nor any that is read through it is open elsewhere
    file: PathBuf,
    /// Print what would be given back, and change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    format: Format,
}

#[derive(Serialize)]
struct Report {
    file: String,
    dry_run: bool,
    /// Blocks that are released because no sector of the disk is in them.
    empty_blocks: u32,
    /// Because all of it is zeros.
    zero_blocks: u32,
    /// Because they lie beyond the end of the disk.
    blocks_beyond_end: u32,
    /// What the file system held of those.
    released: u64,
    /// What it held of zeros in other blocks.
    holes: u64,
    moved_blocks: u32,
    length_before: u64,
    length_after: u64,
    space_before: u64,
    /// Not known before it is done.
    space_after: Option<u64>,
    /// Why blocks of zeros were left alone.
    unknown_parents: Option<String>,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<Status, CommandError> {
    let before = metadata(&args.file)?;
    let total = Image::<ReadOnly>::open(&args.file, Lock::None)?.footer().current_size();
    let progress = context.progress("compact", Some(total));
    let look = |at| progress.set(at);
    let Compacted { compaction, unknown_parents } = if args.dry_run {
        estimate(args, context, look)?
    } else if before.file_type().is_block_device() {
        on_device(args, context, look)?
    } else {
        context.repository_of(&args.file)?.compact(&args.file, look)?
    };
    progress.finish();
    let report = Report::new(args, &compaction, unknown_parents.as_ref(), &before)?;
    if let Some(why) = &report.unknown_parents {
        context.note(&format!("{}: blocks that hold only zeros stay: {why}", report.file));
    }
    let output = context.output(args.format.json);
    if args.dry_run {
        output.data(&report, |out| report.print(out))?;
    } else {
        output.outcome(&report, |out| report.print(out))?;
    }
    Ok(Status::Done)
}

fn metadata(file: &Path) -> Result<fs::Metadata, CommandError> {
    Ok(fs::metadata(file).map_err(FileError::when(file, "open it"))?)
}

fn known(parents: Result<Option<LockedParents>, ParentsError>) -> (Option<LockedParents>, Option<ParentsError>) {
    match parents {
        Ok(parents) => (parents, None),
        Err(error) => (None, Some(error)),
    }
}

fn estimate(args: &Args, context: &Context, progress: impl FnMut(ByteCount)) -> Result<Compacted, CommandError> {
    let image = Image::<ReadOnly>::open(&args.file, Lock::Shared)?;
    let (parents, unknown_parents) = known(open_locked_parents(&image, &context.chain_options()));
    let compaction = image.compaction(parents.as_ref().map(LockedParents::chain), progress)?;
    Ok(Compacted { compaction, unknown_parents })
}

/// A device is in no repository.
fn on_device(args: &Args, context: &Context, progress: impl FnMut(ByteCount)) -> Result<Compacted, CommandError> {
    let mut image = Image::open_writable(&args.file)?;
    check_not_served(&args.file)?;
    let (parents, unknown_parents) = known(open_locked_parents(&image, &context.chain_options()));
    let compaction = image.compact(parents.as_ref().map(LockedParents::chain), progress)?;
    image.close()?;
    Ok(Compacted { compaction, unknown_parents })
}

impl Report {
    fn new(
        args: &Args,
        compaction: &Compaction,
        unknown_parents: Option<&ParentsError>,
        before: &fs::Metadata,
    ) -> Result<Self, CommandError> {
        let after = metadata(&args.file)?;
        let length_before = if before.is_file() { before.len() } else { compaction.length.0 };
        Ok(Self {
            file: args.file.display().to_string(),
            dry_run: args.dry_run,
            empty_blocks: compaction.empty_blocks,
            zero_blocks: compaction.zero_blocks,
            blocks_beyond_end: compaction.blocks_beyond_end,
            released: compaction.released.0,
            holes: compaction.holes.0,
            moved_blocks: compaction.moved_blocks,
            length_before,
            length_after: compaction.length.0,
            space_before: before.blocks() * 512,
            space_after: (!args.dry_run).then(|| after.blocks() * 512),
            unknown_parents: unknown_parents.map(|error| with_causes(error)),
        })
    }

    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let human = |bytes| Human(ByteCount(bytes));
        let done = if self.dry_run { "would compact" } else { "compacted" };
        write!(out, "{done} {}: ", self.file)?;
        writeln!(out, "{} long, before {}", human(self.length_after), human(self.length_before))?;
        let Self { empty_blocks, zero_blocks, blocks_beyond_end, moved_blocks, .. } = self;
        writeln!(
            out,
            "  released: {empty_blocks} empty blocks, {zero_blocks} of zeros, {blocks_beyond_end} beyond the end, {} in all",
            human(self.released)
        )?;
        writeln!(out, "  zeros in other blocks: {}", human(self.holes))?;
        writeln!(out, "  moved: {moved_blocks} blocks")?;
        match self.space_after {
            Some(after) => writeln!(out, "  space: {}, before {}", human(after), human(self.space_before)),
            None => writeln!(out, "  space now: {}", human(self.space_before)),
        }
    }
}
