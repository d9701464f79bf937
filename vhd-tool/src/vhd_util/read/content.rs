//! What an image, or the disk that it is the top of, holds.

use std::io::{self, Write};

use vhd_core::{Chain, Extents, Header, Image, ReadOnly, SECTOR_SIZE, Sector, SectorCount, SectorRange, Source};

use super::{Failure, refused};
use crate::disk::CHUNK;

/// Bytes in a line of hexadecimal.
const LINE: usize = 16;

/// Prints bytes as they are, or in hexadecimal.
pub(super) struct Dump<'a> {
    out: &'a mut dyn Write,
    hex: bool,
    /// Bytes before `line`.
    at: u64,
    line: Vec<u8>,
}

impl<'a> Dump<'a> {
    pub(super) fn new(out: &'a mut dyn Write, hex: bool) -> Self {
        Self { out, hex, at: 0, line: Vec::new() }
    }

    /// Counts lines from a place other than 0.
    pub(super) fn start_at(&mut self, at: u64) {
        self.at = at;
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.hex {
            return self.out.write_all(bytes);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(LINE - self.line.len()));
            self.line.extend_from_slice(now);
            rest = later;
            if self.line.len() == LINE {
                self.end()?;
            }
        }
        Ok(())
    }

    /// Prints the last line, where it is not full.
    pub(super) fn end(&mut self) -> io::Result<()> {
        if self.line.is_empty() {
            return Ok(());
        }
        write!(self.out, "{:08x}:", self.at)?;
        self.line.iter().try_for_each(|byte| write!(self.out, " {byte:02x}"))?;
        writeln!(self.out)?;
        self.at += self.line.len() as u64;
        self.line.clear();
        Ok(())
    }
}

pub(super) fn test_bits(
    image: &Image<ReadOnly>,
    first: Sector,
    count: SectorCount,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let header = image.header().ok_or_else(|| refused(image.path(), "a fixed image, which has no bitmaps"))?;
    let end = first.0.checked_add(count.0).filter(|&end| end <= image.sectors().0);
    let end = end.ok_or_else(|| refused(image.path(), &format!("the disk has only {} sectors", image.sectors())))?;
    let per_block = header.block_size().sectors();
    let mut extents = Extents::default();
    for piece in SectorRange::between(first, Sector(end)).split_at_multiples(per_block) {
        extents.clear();
        image.resolve(piece, &mut extents)?;
        for extent in extents.as_slice() {
            let bit = u8::from(matches!(extent.source, Source::Data(_)));
            for sector in extent.sectors.start.0..extent.sectors.end.0 {
                writeln!(out, "block {}: sec: {}: {bit}", sector / per_block.0, sector % per_block.0)?;
            }
        }
    }
    Ok(())
}

pub(super) fn extents(image: &Image<ReadOnly>, out: &mut dyn Write) -> Result<(), Failure> {
    let disk = SectorRange::new(Sector(0), image.sectors());
    let step =
        image.header().map_or(SectorCount(disk.count().0.max(1)), |header: &Header| header.block_size().sectors());
    let (mut found, mut last) = (Extents::default(), None::<SectorRange>);
    for piece in disk.split_at_multiples(step) {
        found.clear();
        image.resolve(piece, &mut found)?;
        for extent in found.as_slice().iter().filter(|extent| matches!(extent.source, Source::Data(_))) {
            match &mut last {
                Some(last) if last.end == extent.sectors.start => last.end = extent.sectors.end,
                _ => {
                    let done = last.replace(extent.sectors);
                    done.map_or(Ok(()), |done| writeln!(out, "{} {}", done.start, done.count()))?;
                }
            }
        }
    }
    Ok(last.map_or(Ok(()), |last| writeln!(out, "{} {}", last.start, last.count()))?)
}

/// Prints bytes of the disk.
pub(super) fn bytes(chain: &Chain, first: u64, count: u64, out: &mut Dump<'_>) -> Result<(), Failure> {
    let size = chain.sectors().bytes().0;
    let end = first.checked_add(count).filter(|&end| end <= size);
    let end = end.ok_or_else(|| refused(chain.top().path(), &format!("the disk has only {size} bytes")))?;
    out.start_at(first);
    let sectors = SectorRange::between(Sector(first / SECTOR_SIZE), Sector(end.div_ceil(SECTOR_SIZE)));
    for piece in sectors.split_at_multiples(CHUNK) {
        let mut bytes = vec![0; piece.count().bytes().0 as usize];
        chain.read(piece, &mut bytes)?;
        let start = piece.start.byte_offset();
        let wanted = first.saturating_sub(start) as usize..bytes.len().min((end - start) as usize);
        out.write(&bytes[wanted])?;
    }
    Ok(out.end()?)
}
