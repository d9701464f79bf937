//! Bytes that come one after the other, counted.

use std::io::{self, Read};

use crate::stream::{StreamError, StreamFault};
use crate::units::{ByteCount, FileOffset};

/// What an error of a stream holds where nothing has come for a while, and it may be read on.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("nothing has come for a while")]
pub struct Silence;

/// The most that is read at once of what nobody wants.
const SKIP: u64 = 64 << 10;

/// A stream and how far it was read. Never is more read than was asked for: what follows the image is another's.
#[derive(Debug)]
pub(super) struct Input<R> {
    input: R,
    at: FileOffset,
    ended_in_silence: bool,
}

impl<R: Read> Input<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, at: FileOffset(0), ended_in_silence: false }
    }

    /// Whether it was taken for ended because nothing came any more.
    pub(super) fn ended_in_silence(&self) -> bool {
        self.ended_in_silence
    }

    /// How far it was read.
    pub(super) fn at(&self) -> FileOffset {
        self.at
    }

    /// Reads until the buffer is full or the stream ends; gives the number of bytes.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        self.fill_or_end(buffer, 0, |_| false)
    }

    /// Reads on after the first bytes of a buffer until it is full, the stream ends, or is silent where it may end after
    /// what the buffer holds; gives the number of all bytes in it.
    pub(super) fn fill_or_end(
        &mut self,
        buffer: &mut [u8],
        mut filled: usize,
        may_end: impl Fn(&[u8]) -> bool,
    ) -> Result<usize, StreamError> {
        while filled < buffer.len() {
            match self.input.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => {
                    filled += read;
                    self.at = self.at + ByteCount(read as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if matches!(error.get_ref(), Some(inner) if inner.is::<Silence>()) => {
                    if may_end(&buffer[..filled]) {
                        self.ended_in_silence = true;
                        break;
                    }
                }
                Err(source) => return Err(StreamError::Read { at: self.at, source }),
            }
        }
        Ok(filled)
    }

    /// Reads a part of the image, all of it.
    pub(super) fn take(&mut self, buffer: &mut [u8], part: &'static str) -> Result<(), StreamError> {
        if self.fill(buffer)? < buffer.len() {
            return Err(StreamError::Short { at: self.at, part });
        }
        Ok(())
    }

    /// Reads on to where a part starts.
    pub(super) fn skip_to(&mut self, offset: FileOffset, part: &'static str) -> Result<(), StreamError> {
        if offset < self.at {
            return Err(StreamFault::Behind { part, offset, at: self.at }.into());
        }
        let mut buffer = vec![0; SKIP.min((offset - self.at).0) as usize];
        while self.at < offset {
            let step = SKIP.min((offset - self.at).0) as usize;
            self.take(&mut buffer[..step], part)?;
        }
        Ok(())
    }
}
