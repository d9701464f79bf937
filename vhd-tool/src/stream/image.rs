//! A local disk as the bytes of a VHD, front to back.

use vhd_core::stream::StreamLayout;
use vhd_core::{BlockSize, ByteCount, Sector, SectorRange};

use super::local::LocalDisk;
use super::pump::{Outlet, Source};
use crate::error::CommandError;

/// An image whose every byte has its place before the first is sent.
pub(crate) struct StreamedImage {
    disk: LocalDisk,
    layout: StreamLayout,
    bits: Bits,
}

/// Which sectors the bitmap of a block shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bits {
    /// All: the block is sent whole, as its disk reads. Xen Orchestra looks at no bitmap, and takes what a block does not
    /// hold for zeros.
    All,
    /// Those that differ, where only what differs from another disk is sent.
    OfSectors,
}

impl StreamedImage {
    /// Lays the image of a disk out.
    ///
    /// # Errors
    /// A disk that no VHD can hold; a failed read of the tables.
    pub(crate) fn new(disk: LocalDisk, bits: Bits) -> Result<Self, CommandError> {
        let layout = StreamLayout::new(&disk.image()?, disk.blocks(BlockSize::DEFAULT)?)?;
        Ok(Self { disk, layout, bits })
    }

    /// Fills a batch with a block: what comes before its data, and the data, with zeros where `present` names none.
    fn block(&self, number: usize, present: &[SectorRange], bytes: &mut Vec<u8>) -> Result<(), CommandError> {
        let block_size = self.layout.block_size();
        let whole = block_size.sectors_of(self.layout.blocks()[number]);
        let start = whole.start;
        let lead =
            self.layout.lead(number, if self.bits == Bits::All { std::slice::from_ref(&whole) } else { present });
        bytes.resize(lead.len() + block_size.bytes().0 as usize, 0);
        let (before, data) = bytes.split_at_mut(lead.len());
        before.copy_from_slice(&lead);
        let offset = |sector: Sector| (sector - start).bytes().0 as usize;
        let mut at = 0;
        for range in present {
            let (start, end) = (offset(range.start), offset(range.end));
            data[at..start].fill(0);
            self.disk.read(*range, &mut data[start..end])?;
            at = end;
        }
        data[at..].fill(0);
        Ok(())
    }
}

/// Ranges in order, taken block by block.
struct Cut<'a> {
    ranges: Box<dyn Iterator<Item = Result<SectorRange, CommandError>> + 'a>,
    /// What of the last range lies beyond the last block.
    rest: Option<SectorRange>,
}

impl<'a> Cut<'a> {
    fn of(ranges: impl Iterator<Item = Result<SectorRange, CommandError>> + 'a) -> Self {
        Self { ranges: Box::new(ranges), rest: None }
    }

    /// Takes what lies in `block`, which comes after all that were taken before.
    fn take(&mut self, block: SectorRange) -> Result<Vec<SectorRange>, CommandError> {
        let mut found = Vec::new();
        while let Some(range) = self.rest.take().map(Ok).or_else(|| self.ranges.next()).transpose()? {
            let part = SectorRange::between(range.start.max(block.start), range.end.min(block.end));
            if !part.is_empty() {
                found.push(part);
            }
            if range.end > block.end {
                self.rest = Some(range);
                break;
            }
        }
        Ok(found)
    }
}

impl Source for StreamedImage {
    fn total(&self) -> Option<ByteCount> {
        Some(self.layout.length())
    }

    fn run(self: Box<Self>, outlet: &Outlet) -> Result<(), CommandError> {
        let mut at = ByteCount(0);
        let mut send = |fill: &mut dyn FnMut(&mut Vec<u8>) -> Result<(), CommandError>| {
            let mut batch = outlet.batch(at);
            fill(&mut batch.bytes)?;
            let end = ByteCount(at.0 + batch.bytes.len() as u64);
            batch.add_data(at.0..end.0);
            batch.done = end;
            at = end;
            outlet.send(batch)
        };
        send(&mut |bytes| {
            // The first batch is as new.
            self.layout.write_head(bytes).expect("memory can be written to");
            Ok(())
        })?;
        let end = Sector(self.disk.sectors().0);
        // A difference in whole blocks is read through the chain, wherever its sectors are from.
        let mut ranges = match self.bits {
            Bits::All if self.disk.is_delta() => Cut::of(std::iter::once(Ok(SectorRange::between(Sector(0), end)))),
            Bits::All | Bits::OfSectors => Cut::of(self.disk.ranges()),
        };
        for (number, &block) in self.layout.blocks().iter().enumerate() {
            let present = ranges.take(self.layout.block_size().sectors_of(block))?;
            send(&mut |bytes| self.block(number, &present, bytes))?;
        }
        send(&mut |bytes| {
            bytes.clear();
            bytes.extend(self.layout.end());
            Ok(())
        })
    }
}
