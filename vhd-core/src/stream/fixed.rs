//! A fixed image that comes front to back: the disk, and only its last 512 bytes tell what it was.

use std::io::Read;

use super::read::CHUNK;
use super::{StreamError, StreamFault, StreamedBlock};
use crate::footer::{DiskType, FOOTER_SIZE, Footer, FooterError};
use crate::stream::input::Input;
use crate::units::{ByteCount, FileOffset, SECTOR_SIZE, Sector, SectorRange};

/// Tells whether bytes that come after `before` others end with the footer of a fixed image that ends there.
///
/// A guest may have written such a footer at any place: more that comes shows that it was data.
pub(super) fn ends(before: ByteCount, bytes: &[u8]) -> bool {
    let footer = bytes.last_chunk().and_then(|footer| Footer::try_from(footer).ok());
    let data = ByteCount(before.0 + (bytes.len() as u64).saturating_sub(FOOTER_SIZE.0));
    footer.is_some_and(|footer| footer.disk_type() == DiskType::Fixed && footer.current_size() == data)
}

/// What was read and not given out yet: the last of it may be the footer.
#[derive(Debug)]
pub(super) struct Fixed {
    held: Vec<u8>,
    given: ByteCount,
    /// Nothing more comes than what is held.
    exhausted: bool,
    ended: bool,
}

impl Fixed {
    /// Goes on after the first bytes, which are all where the stream is `exhausted`. Where the length is known, what lies
    /// beyond it is not read.
    pub(super) fn new(start: &[u8], exhausted: bool, length: Option<ByteCount>) -> Self {
        let most = length.map_or(start.len(), |length| length.0.min(start.len() as u64) as usize);
        Self { held: start[..most].to_vec(), given: ByteCount(0), exhausted, ended: false }
    }

    pub(super) fn next<R: Read>(
        &mut self,
        input: &mut Input<R>,
        length: Option<ByteCount>,
        out: &mut StreamedBlock,
    ) -> Result<bool, StreamError> {
        if self.ended {
            return Ok(false);
        }
        let room = (CHUNK + FOOTER_SIZE).0;
        let room = length.map_or(room, |length| room.min(length.0 - self.given.0)) as usize;
        let held = self.held.len();
        self.held.resize(room.max(held), 0);
        let may_end = |bytes: &[u8]| length.is_none() && ends(self.given, bytes);
        let got = if self.exhausted { held } else { input.fill_or_end(&mut self.held, held, may_end)? };
        if length.is_some() && got < room {
            return Err(StreamError::Short { at: input.at(), part: "data of a fixed disk" });
        }
        self.held.truncate(got);
        self.ended = got < (CHUNK + FOOTER_SIZE).0 as usize || length == Some(ByteCount(self.given.0 + got as u64));
        // Up to where the footer may start.
        let data = got.saturating_sub(FOOTER_SIZE.0 as usize) / SECTOR_SIZE as usize * SECTOR_SIZE as usize;
        out.start = Sector(self.given.0 / SECTOR_SIZE);
        out.bytes.clear();
        out.bytes.extend(self.held.drain(..data));
        self.given += ByteCount(data as u64);
        let end = Sector(self.given.0 / SECTOR_SIZE);
        out.runs.clear();
        if data > 0 {
            out.runs.push((SectorRange::between(out.start, end), true));
        }
        Ok(true)
    }

    /// The footer, once all was read.
    pub(super) fn footer<R: Read>(&self, input: &Input<R>) -> Result<Footer, StreamError> {
        let at = FileOffset(self.given.0);
        let Some(bytes) = self.held.first_chunk().filter(|_| self.held.len() as u64 == FOOTER_SIZE.0) else {
            return Err(StreamError::Short { at: input.at(), part: "footer" });
        };
        let footer = Footer::try_from(bytes);
        let footer = footer.map_err(|source| match source {
            FooterError::Cookie { .. } if self.given.0 == 0 => StreamError::Start(source),
            source => StreamError::End { at, source },
        })?;
        if footer.disk_type() != DiskType::Fixed || footer.current_size() != self.given {
            return Err(StreamFault::FixedSize { size: footer.current_size(), found: self.given }.into());
        }
        Ok(footer)
    }
}
