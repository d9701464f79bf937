//! A local disk as the bytes of a VHD, front to back.

use vhd_core::stream::StreamLayout;
use vhd_core::{BlockSize, ByteCount, SectorRange};

use super::local::LocalDisk;
use super::pump::{Outlet, Source};
use crate::error::CommandError;

/// An image whose every byte has its place before the first is sent.
pub(crate) struct StreamedImage {
    disk: LocalDisk,
    layout: StreamLayout,
}

impl StreamedImage {
    /// Lays the image of a disk out.
    ///
    /// # Errors
    /// A disk that no VHD can hold; a failed read of the tables.
    pub(crate) fn new(disk: LocalDisk) -> Result<Self, CommandError> {
        let layout = StreamLayout::new(&disk.image()?, disk.blocks(BlockSize::DEFAULT)?)?;
        Ok(Self { disk, layout })
    }

    /// Fills a batch with a block: what comes before its data, and the data, with zeros where there is none.
    fn block(&self, number: usize, bytes: &mut Vec<u8>) -> Result<(), CommandError> {
        let block_size = self.layout.block_size();
        let sectors = block_size.sectors_of(self.layout.blocks()[number]);
        let disk_end = vhd_core::Sector(self.disk.size().0.div_ceil(vhd_core::SECTOR_SIZE));
        let on_disk = SectorRange::between(sectors.start, sectors.end.min(disk_end));
        let present = self.disk.ranges(on_disk)?;
        let lead = self.layout.lead(number, &present);
        bytes.resize(lead.len() + block_size.bytes().0 as usize, 0);
        bytes[..lead.len()].copy_from_slice(&lead);
        let data = &mut bytes[lead.len()..];
        let offset = |sector: vhd_core::Sector| (sector - sectors.start).bytes().0 as usize;
        let mut at = 0;
        for range in present {
            let (start, end) = (offset(range.start), offset(range.end));
            data[at..start].fill(0);
            self.disk.read(range, &mut data[start..end])?;
            at = end;
        }
        data[at..].fill(0);
        Ok(())
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
            bytes.clear();
            self.layout.write_head(bytes).expect("memory can be written to");
            Ok(())
        })?;
        for number in 0..self.layout.blocks().len() {
            send(&mut |bytes| self.block(number, bytes))?;
        }
        send(&mut |bytes| {
            bytes.clear();
            bytes.extend(self.layout.end());
            Ok(())
        })
    }
}
