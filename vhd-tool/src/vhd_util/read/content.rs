//! What an image, or the disk that it is the top of, holds.

use std::io::Write;

use vhd_core::{Chain, Extents, Header, Image, ReadOnly, SECTOR_SIZE, Sector, SectorCount, SectorRange, Source};

use super::{Failure, Numbers, beyond, refused};
use crate::disk::CHUNK;

/// The sectors asked for, all of which are on the disk.
pub(super) fn range(image: &Image<ReadOnly>, first: Sector, count: SectorCount) -> Result<SectorRange, Failure> {
    let end = first.0.checked_add(count.0).filter(|&end| end <= image.sectors().0);
    let end = end.ok_or_else(|| beyond(image.path(), &format!("the disk has only {} sectors", image.sectors())))?;
    Ok(SectorRange::between(first, Sector(end)))
}

pub(super) fn test_bits(
    image: &Image<ReadOnly>,
    sectors: SectorRange,
    numbers: Numbers,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let header = image.header().ok_or_else(|| refused(image.path(), "a fixed image, which has no bitmaps"))?;
    let per_block = header.block_size().sectors();
    let mut extents = Extents::default();
    for piece in sectors.split_at_multiples(per_block) {
        extents.clear();
        image.resolve(piece, &mut extents)?;
        for extent in extents.as_slice() {
            let bit = u8::from(matches!(extent.source, Source::Data(_)));
            for sector in extent.sectors.start.0..extent.sectors.end.0 {
                let [block, within] = [sector / per_block.0, sector % per_block.0].map(|number| numbers.show(number));
                writeln!(out, "block {block}: sec: {within}: {bit}")?;
            }
        }
    }
    Ok(())
}

pub(super) fn extents(
    image: &Image<ReadOnly>,
    sectors: SectorRange,
    numbers: Numbers,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let step =
        image.header().map_or(SectorCount(image.sectors().0.max(1)), |header: &Header| header.block_size().sectors());
    let mut print =
        |extent: SectorRange| writeln!(out, "{} {}", numbers.show(extent.start.0), numbers.show(extent.count().0));
    let (mut found, mut last) = (Extents::default(), None::<SectorRange>);
    for piece in sectors.split_at_multiples(step) {
        found.clear();
        image.resolve(piece, &mut found)?;
        for extent in found.as_slice().iter().filter(|extent| matches!(extent.source, Source::Data(_))) {
            match &mut last {
                Some(last) if last.end == extent.sectors.start => last.end = extent.sectors.end,
                _ => {
                    let done = last.replace(extent.sectors);
                    done.map_or(Ok(()), &mut print)?;
                }
            }
        }
    }
    Ok(last.map_or(Ok(()), print)?)
}

/// Prints bytes of the disk.
pub(super) fn bytes(chain: &Chain, first: u64, count: u64, out: &mut dyn Write) -> Result<(), Failure> {
    let size = chain.sectors().bytes().0;
    let end = first.checked_add(count).filter(|&end| end <= size);
    let end = end.ok_or_else(|| beyond(chain.top().path(), &format!("the disk has only {size} bytes")))?;
    let sectors = SectorRange::between(Sector(first / SECTOR_SIZE), Sector(end.div_ceil(SECTOR_SIZE)));
    for piece in sectors.split_at_multiples(CHUNK) {
        let mut bytes = vec![0; piece.count().bytes().0 as usize];
        chain.read(piece, &mut bytes)?;
        let start = piece.start.byte_offset();
        let wanted = first.saturating_sub(start) as usize..bytes.len().min((end - start) as usize);
        out.write_all(&bytes[wanted])?;
    }
    Ok(())
}
