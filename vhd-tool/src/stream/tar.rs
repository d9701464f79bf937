//! A disk as members of an archive: blocks of 1 MiB, each followed by its checksum.
//!
//! ```text
//!   PREFIX00000000   PREFIX00000000.checksum   PREFIX00000007   PREFIX00000007.checksum   …
//! ```
//!
//! The name is the number of the block. Blocks of zeros are left out, but for the first and the last, which tells the
//! receiver that the disk has ended: the archive itself goes on, as other disks follow, or ends otherwise.

mod header;
mod read;

pub(crate) use read::TarReader;

use std::io::Write;

use sha1::{Digest, Sha1};
use vhd_core::ByteCount;

use self::header::{RECORD, padding};
use super::failure::StreamFailure;
use super::plain::PlainWriter;
use super::pump::Destination;
use crate::error::CommandError;

/// The bytes of a block.
const BLOCK: u64 = 1 << 20;
/// The longest prefix, so that every name fits into a header.
const MOST_PREFIX: usize = 60;
const CHECKSUM: &str = ".checksum";

fn checksum(bytes: &[u8]) -> String {
    Sha1::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether bytes start with the header of an archive's member.
pub(crate) fn starts(head: &[u8]) -> bool {
    let header = head.first_chunk().and_then(header::decode);
    header.is_some_and(|header| !header.name.is_empty())
}

/// The name of a block.
fn name(prefix: &str, number: u64) -> String {
    format!("{prefix}{number:08}")
}

/// Sends members. It takes all of a disk, in order.
pub(crate) struct TarWriter<W> {
    out: PlainWriter<W>,
    prefix: String,
    size: ByteCount,
    /// The block in the making, and whether it holds anything but zeros.
    block: Vec<u8>,
    has_data: bool,
    number: u64,
}

impl<W: Write> TarWriter<W> {
    /// Sends a disk of `size` bytes.
    ///
    /// # Errors
    /// A prefix that is too long.
    pub(crate) fn new(out: W, prefix: &str, size: ByteCount) -> Result<Self, CommandError> {
        if prefix.len() > MOST_PREFIX {
            return Err(CommandError::usage(StreamFailure::Prefix { limit: MOST_PREFIX }));
        }
        let (out, prefix) = (PlainWriter::new(out), prefix.into());
        Ok(Self { out, prefix, size, block: Vec::new(), has_data: false, number: 0 })
    }

    fn at(&self) -> u64 {
        self.number * BLOCK + self.block.len() as u64
    }

    fn member(&mut self, name: &str, bytes: &[u8]) -> Result<(), CommandError> {
        self.out.write(&header::encode(name, bytes.len() as u64))?;
        self.out.write(bytes)?;
        self.out.write_zeros(ByteCount(padding(bytes.len() as u64)))
    }

    fn is_edge(&self) -> bool {
        self.number == 0 || (self.number + 1) * BLOCK >= self.size.0
    }

    fn end_block(&mut self) -> Result<(), CommandError> {
        if self.has_data || self.is_edge() {
            let block = std::mem::take(&mut self.block);
            let name = name(&self.prefix, self.number);
            self.member(&name, &block)?;
            self.member(&format!("{name}{CHECKSUM}"), checksum(&block).as_bytes())?;
            self.block = block;
        }
        self.block.clear();
        self.has_data = false;
        self.number += 1;
        Ok(())
    }

    /// The bytes that the block in the making still takes.
    fn room(&self) -> u64 {
        let end = ((self.number + 1) * BLOCK).min(self.size.0);
        end - self.at()
    }
}

impl<W: Write> Destination for TarWriter<W> {
    fn data(&mut self, at: ByteCount, bytes: &[u8]) -> Result<(), CommandError> {
        assert_eq!(at.0, self.at(), "only what covers a disk in order is sent as tar");
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at((self.room() as usize).min(rest.len()));
            self.block.extend_from_slice(now);
            self.has_data = true;
            rest = later;
            if self.room() == 0 {
                self.end_block()?;
            }
        }
        Ok(())
    }

    fn zeros(&mut self, at: ByteCount, length: ByteCount) -> Result<(), CommandError> {
        assert_eq!(at.0, self.at(), "only what covers a disk in order is sent as tar");
        let mut left = length.0;
        while left > 0 {
            if self.block.is_empty() && left >= BLOCK && !self.is_edge() {
                self.number += 1;
                left -= BLOCK;
                continue;
            }
            let step = self.room().min(left);
            self.block.resize(self.block.len() + step as usize, 0);
            left -= step;
            if self.room() == 0 {
                self.end_block()?;
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), CommandError> {
        self.out.flush()
    }
}

// Records and blocks are multiples of each other, so a whole block needs no padding.
const _: () = assert!(BLOCK.is_multiple_of(RECORD as u64));
