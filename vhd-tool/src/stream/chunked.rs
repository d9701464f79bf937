//! The chunked protocol: frames of a place, a length and as many bytes.
//!
//! ```text
//!   ┌ u64 ──┬ u32 ───┬───────┐      ┌ u64 ┬ u32 ┐
//!   │ offset│ length │ bytes │  …   │  0  │  0  │   little-endian
//!   └───────┴────────┴───────┘      └─────┴─────┘
//! ```
//!
//! What no frame names stays as it is at the receiver's.

use std::io::{Read, Write};

use vhd_core::{ByteCount, SECTOR_SIZE};

use super::failure::StreamFailure;
use super::plain::{PlainReader, PlainWriter};
use super::pump::{BATCH, Destination, Outlet, Source};
use crate::error::CommandError;

/// Bytes before those of a frame.
const HEADER: usize = 12;
/// The most bytes in a frame that is sent.
const MOST: u64 = 2 << 20;

/// Sends frames.
pub(crate) struct ChunkedWriter<W> {
    out: PlainWriter<W>,
    /// The receiver has nothing but zeros already.
    prezeroed: bool,
    /// The end of the last frame, and of the last zeros that were left out.
    sent: ByteCount,
    left_out: ByteCount,
}

impl<W: Write> ChunkedWriter<W> {
    /// Sends to `out`; to a receiver that is not `prezeroed` zeros are sent like any other bytes.
    pub(crate) fn new(out: W, prezeroed: bool) -> Self {
        Self { out: PlainWriter::new(out), prezeroed, sent: ByteCount(0), left_out: ByteCount(0) }
    }

    fn header(&mut self, at: ByteCount, length: u64) -> Result<(), CommandError> {
        self.sent = ByteCount(at.0 + length);
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&at.0.to_le_bytes());
        header[8..].copy_from_slice(&u32::try_from(length).expect("a frame has at most 2 MiB").to_le_bytes());
        self.out.write(&header)
    }
}

impl<W: Write> Destination for ChunkedWriter<W> {
    fn data(&mut self, at: ByteCount, bytes: &[u8]) -> Result<(), CommandError> {
        let mut at = at;
        for piece in bytes.chunks(MOST as usize) {
            self.header(at, piece.len() as u64)?;
            self.out.write(piece)?;
            at += ByteCount(piece.len() as u64);
        }
        Ok(())
    }

    fn zeros(&mut self, at: ByteCount, length: ByteCount) -> Result<(), CommandError> {
        if self.prezeroed {
            self.left_out = ByteCount(at.0 + length.0);
            return Ok(());
        }
        self.send_zeros(at, length)
    }

    fn finish(&mut self) -> Result<(), CommandError> {
        if self.left_out > self.sent {
            // Nothing else tells the receiver where the disk ends.
            let last = SECTOR_SIZE.min(self.left_out.0 - self.sent.0);
            self.send_zeros(ByteCount(self.left_out.0 - last), ByteCount(last))?;
        }
        self.out.write(&[0; HEADER])?;
        self.out.flush()
    }
}

impl<W: Write> ChunkedWriter<W> {
    fn send_zeros(&mut self, at: ByteCount, length: ByteCount) -> Result<(), CommandError> {
        let mut done = 0;
        while done < length.0 {
            let step = MOST.min(length.0 - done);
            self.header(ByteCount(at.0 + done), step)?;
            self.out.write_zeros(ByteCount(step))?;
            done += step;
        }
        Ok(())
    }
}

/// Takes frames, of any length and in any order, up to the empty one at the start of the disk.
pub(crate) struct ChunkedReader<R> {
    input: PlainReader<R>,
    size: Option<ByteCount>,
}

impl<R: Read> ChunkedReader<R> {
    /// Takes frames from `input`; where the `size` of the disk is known, none may lie beyond it.
    pub(crate) fn new(input: R, size: Option<ByteCount>) -> Self {
        Self { input: PlainReader::new(input, None), size }
    }

    /// Reads the place and length of the next frame; `None` at the end.
    fn header(&mut self) -> Result<Option<(u64, u64)>, StreamFailure> {
        let mut header = [0; HEADER];
        self.input.take(&mut header, "the header of a frame")?;
        let (offset, length) = header.split_at(8);
        let offset = u64::from_le_bytes(offset.try_into().expect("it has 8 bytes"));
        let length = u64::from(u32::from_le_bytes(length.try_into().expect("it has 4 bytes")));
        let end = u128::from(offset) + u128::from(length);
        let most = self.size.unwrap_or(ByteCount(i64::MAX as u64));
        if end > u128::from(most.0) {
            return Err(StreamFailure::PastEnd { end, size: most });
        }
        Ok((offset > 0 || length > 0).then_some((offset, length)))
    }
}

impl<R: Read + Send> Source for ChunkedReader<R> {
    fn total(&self) -> Option<ByteCount> {
        self.size
    }

    fn run(mut self: Box<Self>, outlet: &Outlet) -> Result<(), CommandError> {
        let mut done = 0;
        while let Some((offset, length)) = self.header()? {
            let (mut at, end) = (offset, offset + length);
            while at < end {
                let step = BATCH.0.min(end - at);
                let mut batch = outlet.batch(ByteCount(at));
                batch.bytes.resize(step as usize, 0);
                self.input.take(&mut batch.bytes, "the bytes of a frame")?;
                batch.add_data(at..at + step);
                at += step;
                done = done.max(at);
                batch.done = ByteCount(done);
                outlet.send(batch)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was sent, frame by frame: where it belongs, and its bytes.
    fn frames(mut sent: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut frames = Vec::new();
        while let Some((header, rest)) = sent.split_at_checked(HEADER) {
            let offset = u64::from_le_bytes(header[..8].try_into().expect("it has 8 bytes"));
            let length = u32::from_le_bytes(header[8..].try_into().expect("it has 4 bytes")) as usize;
            frames.push((offset, rest[..length].to_vec()));
            sent = &rest[length..];
        }
        frames
    }

    #[test]
    fn what_is_longer_than_a_frame_goes_in_several() {
        let mut out = Vec::new();
        let mut writer = ChunkedWriter::new(&mut out, false);
        let bytes: Vec<u8> = (0..5 << 20).map(|i: u32| (i % 251) as u8).collect();
        writer.data(ByteCount(4096), &bytes).unwrap();
        writer.zeros(ByteCount(4096 + (5 << 20)), ByteCount(3 << 20)).unwrap();
        writer.finish().unwrap();
        let frames = frames(&out);
        let places: Vec<(u64, usize)> = frames.iter().map(|(at, bytes)| (at - at.min(&4096), bytes.len())).collect();
        let (most, mib) = (MOST, 1 << 20);
        assert_eq!(
            places,
            [(0, 2 * mib), (most, 2 * mib), (2 * most, mib), (5 << 20, 2 * mib), (7 << 20, mib), (0, 0)]
        );
        assert!(frames[..3].iter().flat_map(|(_, bytes)| bytes).eq(&bytes));
        assert!(frames[3..].iter().flat_map(|(_, bytes)| bytes).all(|&byte| byte == 0));
    }
}
