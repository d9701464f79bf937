//! How much there is in the images of a chain, and how much of it is in no image beneath.

use std::io::Write;
use std::path::PathBuf;

use vhd_core::{Extents, Header, Image, Lock, ReadOnly, Sector, SectorCount, SectorRange, Source};

use crate::vhd_util::{Failure, printable};

/// Sectors that are looked at side by side.
const STEP: SectorCount = SectorCount(4096);

/// An image and what was found in it.
struct Counted {
    image: Image<ReadOnly>,
    /// Sectors of its blocks.
    allocated: u64,
    /// Sectors that it holds.
    written: u64,
    /// Those that the image beneath does not hold.
    not_in_parent: u64,
    /// Those that no image beneath holds.
    not_in_ancestors: u64,
}

/// Prints a line for each image of a chain, of which the top comes first; fixed images have no blocks, and no line.
pub(super) fn print(chain: &[PathBuf], out: &mut dyn Write) -> Result<(), Failure> {
    let mut counted = Vec::new();
    for path in chain.iter().rev() {
        let image = Image::<ReadOnly>::open(path, Lock::None)?;
        let Some(size) = image.header().map(Header::block_size) else { continue };
        let mut allocated = 0;
        for found in image.allocated_blocks() {
            found?;
            allocated += size.sectors().0;
        }
        counted.push(Counted { image, allocated, written: 0, not_in_parent: 0, not_in_ancestors: 0 });
    }
    let most = counted.iter().map(|it| it.image.sectors().0).max().unwrap_or(0);
    for step in SectorRange::new(Sector(0), SectorCount(most)).split_at_multiples(STEP) {
        count(&mut counted, step)?;
    }
    for (depth, it) in counted.iter().enumerate() {
        let name = it.image.path().file_name().unwrap_or(it.image.path().as_os_str());
        let share = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 };
        let (allocated, written) = (it.allocated, it.written);
        write!(
            out,
            "{}: secs allocated: {allocated:#x} secs written: {written:#x}",
            printable(&name.to_string_lossy())
        )?;
        write!(out, " ({:.2}%)", share(written, allocated))?;
        if depth > 0 {
            let (parent, ancestors) = (it.not_in_parent, it.not_in_ancestors);
            write!(out, " secs not in parent: {parent:#x} ({:.2}%)", share(parent, written))?;
            write!(out, " secs not in ancestors: {ancestors:#x} ({:.2}%)", share(ancestors, written))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Counts what images, the lowest first, hold of a range of sectors.
fn count(images: &mut [Counted], range: SectorRange) -> Result<(), Failure> {
    let none = || vec![false; range.count().0 as usize];
    let (mut parent, mut ancestors) = (none(), none());
    let mut extents = Extents::default();
    for it in images {
        let mut own = none();
        let end = Sector(range.end.0.min(it.image.sectors().0));
        extents.clear();
        if range.start < end {
            it.image.resolve(SectorRange::between(range.start, end), &mut extents)?;
        }
        for extent in extents.as_slice().iter().filter(|extent| matches!(extent.source, Source::Data(_))) {
            for sector in (extent.sectors.start.0 - range.start.0)..(extent.sectors.end.0 - range.start.0) {
                let sector = sector as usize;
                own[sector] = true;
                it.written += 1;
                it.not_in_parent += u64::from(!parent[sector]);
                it.not_in_ancestors += u64::from(!std::mem::replace(&mut ancestors[sector], true));
            }
        }
        parent = own;
    }
    Ok(())
}
