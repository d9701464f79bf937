//! No protocol: the bytes of a disk or an image, one after the other.

use std::io::{Read, Write};

use vhd_core::ByteCount;

use super::failure::StreamFailure;
use super::pump::{BATCH, Destination, Outlet, Source};
use crate::error::CommandError;

static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

/// Writes bytes in order.
pub(crate) struct PlainWriter<W> {
    out: W,
    at: ByteCount,
}

impl<W: Write> PlainWriter<W> {
    /// Writes to `out`.
    pub(crate) fn new(out: W) -> Self {
        Self { out, at: ByteCount(0) }
    }

    /// Writes the next bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), CommandError> {
        self.out.write_all(bytes).map_err(|source| StreamFailure::Write { at: self.at, source })?;
        self.at += ByteCount(bytes.len() as u64);
        Ok(())
    }

    /// Writes zeros.
    pub(crate) fn write_zeros(&mut self, length: ByteCount) -> Result<(), CommandError> {
        let mut left = length.0;
        while left > 0 {
            let step = left.min(ZEROS.len() as u64);
            self.write(&ZEROS[..step as usize])?;
            left -= step;
        }
        Ok(())
    }

    /// Sees to it that nothing stays behind.
    pub(crate) fn flush(&mut self) -> Result<(), CommandError> {
        Ok(self.out.flush().map_err(|source| StreamFailure::Write { at: self.at, source })?)
    }
}

impl<W: Write> Destination for PlainWriter<W> {
    fn data(&mut self, at: ByteCount, bytes: &[u8]) -> Result<(), CommandError> {
        assert_eq!(at, self.at, "only what covers a disk in order is sent without a protocol");
        self.write(bytes)
    }

    fn zeros(&mut self, at: ByteCount, length: ByteCount) -> Result<(), CommandError> {
        assert_eq!(at, self.at, "only what covers a disk in order is sent without a protocol");
        self.write_zeros(length)
    }

    fn finish(&mut self) -> Result<(), CommandError> {
        self.flush()
    }
}

/// Reads bytes in order, up to a length or as many as come.
pub(crate) struct PlainReader<R> {
    input: R,
    at: ByteCount,
    length: Option<ByteCount>,
}

impl<R: Read> PlainReader<R> {
    /// Reads from `input`; where `length` is known, exactly that much.
    pub(crate) fn new(input: R, length: Option<ByteCount>) -> Self {
        Self { input, at: ByteCount(0), length }
    }

    /// How far it was read.
    pub(crate) fn at(&self) -> ByteCount {
        self.at
    }

    /// Reads until the buffer is full or the stream ends; gives the number of bytes.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, StreamFailure> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.input.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => {
                    filled += read;
                    self.at += ByteCount(read as u64);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(StreamFailure::Read { at: self.at, source }),
            }
        }
        Ok(filled)
    }

    /// Reads all of `part`.
    pub(crate) fn take(&mut self, buffer: &mut [u8], part: &'static str) -> Result<(), StreamFailure> {
        if self.fill(buffer)? < buffer.len() {
            return Err(StreamFailure::Short { at: self.at, part });
        }
        Ok(())
    }
}

impl<R: Read + Send> Source for PlainReader<R> {
    fn total(&self) -> Option<ByteCount> {
        self.length
    }

    fn run(mut self: Box<Self>, outlet: &Outlet) -> Result<(), CommandError> {
        loop {
            let at = self.at;
            let room = self.length.map_or(BATCH.0, |length| BATCH.0.min(length.0 - at.0));
            let mut batch = outlet.batch(at);
            batch.bytes.resize(room as usize, 0);
            let got = self.fill(&mut batch.bytes)?;
            batch.add_content(at.0..at.0 + got as u64);
            batch.done = self.at;
            outlet.send(batch)?;
            if (got as u64) < room && self.length.is_some() {
                return Err(StreamFailure::Short { at: self.at, part: "the disk" }.into());
            }
            if (got as u64) < BATCH.0 {
                return Ok(());
            }
        }
    }
}
