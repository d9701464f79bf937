//! A VHD that comes front to back, as the disk that it holds.

use std::io::Read;

use vhd_core::stream::{StreamEnd, StreamReader, StreamedBlock};
use vhd_core::{BlockIndex, BlockSize, ByteCount};

use super::pump::{Outlet, Source};
use crate::error::CommandError;
use crate::output;

/// The parts of the disk that are named together where they have no bytes.
const PARTS: usize = 1024;

/// An image whose head was read.
pub(crate) struct ReceivedImage<R> {
    reader: StreamReader<R>,
}

impl<R: Read> ReceivedImage<R> {
    /// Reads the head. Where the `length` of the stream is known, the image ends there.
    ///
    /// # Errors
    /// What is no VHD.
    pub(crate) fn open(input: R, length: Option<ByteCount>) -> Result<Self, CommandError> {
        let reader = StreamReader::open(input, length)?;
        if reader.counts_locators_in_bytes() {
            output::to_stderr(
                "note: the image counts the room of its parent locators in bytes; Xen Orchestra reads sectors",
            );
        }
        Ok(Self { reader })
    }

    /// The size of the disk, where the head tells it.
    pub(crate) fn disk_size(&self) -> Option<ByteCount> {
        self.reader.disk_size()
    }

    /// Whether it holds only what differs from its parent.
    pub(crate) fn is_delta(&self) -> bool {
        self.reader.is_differencing()
    }
}

impl<R: Read + Send> Source for ReceivedImage<R> {
    fn total(&self) -> Option<ByteCount> {
        self.reader.expected_length()
    }

    fn run(mut self: Box<Self>, outlet: &Outlet) -> Result<(), CommandError> {
        let delta = self.is_delta();
        let mut block = StreamedBlock::default();
        loop {
            let mut batch = outlet.batch(ByteCount(0));
            block.bytes = std::mem::take(&mut batch.bytes);
            if !self.reader.next_block(&mut block)? {
                break;
            }
            batch.at = ByteCount(block.start.byte_offset());
            batch.bytes = std::mem::take(&mut block.bytes);
            for &(run, present) in &block.runs {
                let range = run.start.byte_offset()..run.end.byte_offset();
                match (present, delta) {
                    (true, true) => batch.add_data(range),
                    (true, false) => batch.add_content(range),
                    (false, true) => {}
                    (false, false) => batch.add_zeros(range),
                }
            }
            batch.done = ByteCount(self.reader.position().0);
            outlet.send(batch)?;
        }
        let done = self.reader.expected_length().unwrap_or_default();
        let StreamEnd { footer, blocks, in_silence } = self.reader.finish()?;
        if in_silence {
            let size = footer.current_size();
            output::to_stderr(&format!(
                "note: the stream is still open; its fixed disk of {size} bytes was taken for complete"
            ));
        }
        match blocks {
            Some((block_size, blocks)) if !delta => send_gaps(outlet, &blocks, block_size, footer.current_size(), done),
            _ => Ok(()),
        }
    }
}

/// Names everything between the blocks as zero.
fn send_gaps(
    outlet: &Outlet,
    blocks: &[BlockIndex],
    block_size: BlockSize,
    size: ByteCount,
    done: ByteCount,
) -> Result<(), CommandError> {
    let empty = || {
        let mut batch = outlet.batch(ByteCount(0));
        batch.done = done;
        batch
    };
    let mut batch = empty();
    let mut at = 0;
    let ends = blocks.iter().map(|&block| {
        let sectors = block_size.sectors_of(block);
        (sectors.start.byte_offset(), sectors.end.byte_offset())
    });
    for (start, end) in ends.chain([(size.0, size.0)]) {
        batch.add_zeros(at..start.min(size.0).max(at));
        at = end;
        if batch.parts.len() == PARTS {
            outlet.send(std::mem::replace(&mut batch, empty()))?;
        }
    }
    outlet.send(batch)
}
