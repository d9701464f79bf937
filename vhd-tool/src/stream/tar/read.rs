//! Taking a disk from the members of an archive.

use std::io::Read;

use vhd_core::ByteCount;

use super::header::{self, Header, RECORD, padding};
use super::{BLOCK, CHECKSUM, checksum, name};
use crate::error::CommandError;
use crate::stream::failure::{ArchiveFault, StreamFailure};
use crate::stream::plain::PlainReader;
use crate::stream::pump::{Outlet, Source};

/// The most bytes of members that are not ours, before or between those that are.
const MOST_OTHER: u64 = 64 << 20;
/// The bytes of a checksum: 40 digits, and a newline where there is one.
const MOST_CHECKSUM: u64 = 64;

/// Takes members up to the block that ends the disk, and not a byte more.
pub(crate) struct TarReader<R> {
    input: PlainReader<R>,
    /// The start of the names of our members, once it is known.
    prefix: Option<String>,
    size: ByteCount,
    /// Whether wrong checksums are passed over.
    ignore_checksums: bool,
    /// Bytes of other members that were passed over.
    other: u64,
}

impl<R: Read> TarReader<R> {
    /// Takes a disk of `size` bytes from the members whose names start with `prefix`; where that is empty, from those in the
    /// folder of the first.
    pub(crate) fn new(input: R, prefix: &str, size: ByteCount) -> Self {
        let prefix = Some(prefix.to_owned()).filter(|prefix| !prefix.is_empty());
        Self { input: PlainReader::new(input, None), prefix, size, ignore_checksums: false, other: 0 }
    }

    /// Passes over wrong checksums.
    pub(crate) fn ignoring_checksums(self, ignore_checksums: bool) -> Self {
        Self { ignore_checksums, ..self }
    }

    fn fault(&self, fault: ArchiveFault) -> StreamFailure {
        StreamFailure::Archive { at: self.input.at(), fault }
    }

    fn header(&mut self) -> Result<Header, StreamFailure> {
        let mut record = [0; RECORD];
        self.input.take(&mut record, "the archive, before the last block of the disk")?;
        if record == [0; RECORD] {
            return Err(StreamFailure::Short { at: self.input.at(), part: "the archive, before the last block" });
        }
        header::decode(&record).ok_or_else(|| self.fault(ArchiveFault::Header))
    }

    /// The number of the block that a member holds. Where no prefix was given, the folder of the first block is that of all.
    fn number(&mut self, header: &Header) -> Option<u64> {
        let digits = match &self.prefix {
            Some(prefix) => header.name.strip_prefix(prefix)?,
            None => header.name.rsplit('/').next()?,
        };
        let is_block = header.is_file && digits.len() >= 8 && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.parse().ok().filter(|_| is_block)?;
        let is_on_disk = u64::checked_mul(number, BLOCK).is_some_and(|start| start < self.size.0);
        if self.prefix.is_none() && !is_on_disk {
            return None;
        }
        self.prefix = Some(header.name[..header.name.len() - digits.len()].to_owned());
        Some(number)
    }

    /// Passes over the content of a member that is not ours.
    fn skip(&mut self, header: &Header) -> Result<(), StreamFailure> {
        let length = header
            .size
            .checked_next_multiple_of(RECORD as u64)
            .filter(|&size| size <= MOST_OTHER.saturating_sub(self.other));
        let Some(length) = length else {
            return Err(
                self.fault(ArchiveFault::Size { size: header.size, limit: MOST_OTHER.saturating_sub(self.other) })
            );
        };
        self.other += length + RECORD as u64;
        let mut record = [0; RECORD];
        (0..length / RECORD as u64).try_for_each(|_| self.input.take(&mut record, "a member of the archive"))
    }

    fn content(&mut self, header: &Header, limit: u64, bytes: &mut Vec<u8>) -> Result<(), StreamFailure> {
        if header.size > limit {
            return Err(self.fault(ArchiveFault::Size { size: header.size, limit }));
        }
        bytes.resize((header.size + padding(header.size)) as usize, 0);
        self.input.take(bytes, "a member of the archive")?;
        bytes.truncate(header.size as usize);
        Ok(())
    }

    /// Reads the member after a block and compares.
    fn verify(&mut self, number: u64, block: &[u8]) -> Result<(), StreamFailure> {
        let header = self.header()?;
        if header.name != format!("{}{CHECKSUM}", name(self.prefix.as_deref().unwrap_or_default(), number))
            || header.size > MOST_CHECKSUM
        {
            return Err(self.fault(ArchiveFault::NoChecksum { number }));
        }
        let mut text = Vec::new();
        self.content(&header, MOST_CHECKSUM, &mut text)?;
        let expected = String::from_utf8_lossy(&text).trim().to_ascii_lowercase();
        let found = checksum(block);
        if found != expected && !self.ignore_checksums {
            return Err(self.fault(ArchiveFault::Checksum { number, found, expected }));
        }
        Ok(())
    }
}

impl<R: Read + Send> Source for TarReader<R> {
    fn total(&self) -> Option<ByteCount> {
        Some(self.size)
    }

    fn run(mut self: Box<Self>, outlet: &Outlet) -> Result<(), CommandError> {
        let mut at = 0;
        while at < self.size.0 {
            let header = self.header()?;
            let Some(number) = self.number(&header) else {
                self.skip(&header)?;
                continue;
            };
            let start = number.checked_mul(BLOCK).filter(|&start| start < self.size.0);
            let Some(start) = start else {
                let end = u128::from(number) * u128::from(BLOCK) + u128::from(header.size);
                return Err(StreamFailure::PastEnd { end, size: self.size }.into());
            };
            if start < at {
                let last = (at - 1) / BLOCK;
                return Err(self.fault(ArchiveFault::Order { number, last }).into());
            }
            let mut batch = outlet.batch(ByteCount(start));
            self.content(&header, BLOCK, &mut batch.bytes)?;
            self.verify(number, &batch.bytes)?;
            // A disk that ends within the last block may be sent with zeros after its end; a short block ends in zeros.
            let end = (start + BLOCK).min(self.size.0);
            batch.bytes.resize(BLOCK as usize, 0);
            if batch.bytes[(end - start) as usize..].iter().any(|&byte| byte != 0) {
                return Err(StreamFailure::PastEnd { end: u128::from(start + BLOCK), size: self.size }.into());
            }
            batch.add_zeros(at..start);
            batch.add_content(start..end);
            batch.done = ByteCount(end);
            at = end;
            outlet.send(batch)?;
        }
        Ok(())
    }
}
