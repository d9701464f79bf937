//! What would be sent, in lines for people.

use std::io::Write;

use vhd_core::ByteCount;

use super::plain::PlainWriter;
use super::pump::Destination;
use crate::error::CommandError;

/// Prints a line for each run of bytes and of zeros.
pub(crate) struct HumanWriter<W> {
    out: PlainWriter<W>,
    run: Option<Run>,
}

struct Run {
    start: u64,
    end: u64,
    what: &'static str,
}

impl<W: Write> HumanWriter<W> {
    /// Prints to `out`.
    pub(crate) fn new(out: W) -> Self {
        Self { out: PlainWriter::new(out), run: None }
    }

    fn add(&mut self, start: u64, length: u64, what: &'static str) -> Result<(), CommandError> {
        match &mut self.run {
            Some(run) if run.end == start && run.what == what => run.end += length,
            _ => {
                self.print()?;
                self.run = Some(Run { start, end: start + length, what });
            }
        }
        Ok(())
    }

    fn print(&mut self) -> Result<(), CommandError> {
        let Some(Run { start, end, what }) = self.run.take() else { return Ok(()) };
        self.out.write(format!("{start:>16} {:>16} {what}\n", end - start).as_bytes())
    }
}

impl<W: Write> Destination for HumanWriter<W> {
    fn data(&mut self, at: ByteCount, bytes: &[u8]) -> Result<(), CommandError> {
        self.add(at.0, bytes.len() as u64, "data")
    }

    fn zeros(&mut self, at: ByteCount, length: ByteCount) -> Result<(), CommandError> {
        self.add(at.0, length.0, "zeros")
    }

    fn finish(&mut self) -> Result<(), CommandError> {
        self.print()?;
        self.out.flush()
    }
}
