//! A store that ends within a sector, read as whole sectors.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::Storage;
use crate::units::{ByteCount, FileOffset, SECTOR_SIZE};

/// A store for reading that seems to be filled up with zeros to a whole sector.
#[derive(Debug)]
pub(crate) struct Padded(pub(crate) Arc<dyn Storage>);

impl Storage for Padded {
    fn len(&self) -> io::Result<ByteCount> {
        Ok(ByteCount(self.0.len()?.0.next_multiple_of(SECTOR_SIZE)))
    }

    fn read_at(&self, buf: &mut [u8], at: FileOffset) -> io::Result<()> {
        let (end, padded) = (self.0.len()?.0, self.len()?.0);
        let wanted = at.0 + buf.len() as u64;
        if wanted <= end || wanted > padded {
            return self.0.read_at(buf, at);
        }
        let (inside, padding) = buf.split_at_mut(end.saturating_sub(at.0) as usize);
        padding.fill(0);
        self.0.read_at(inside, at)
    }

    fn write_at(&self, _: &[u8], _: FileOffset) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn set_len(&self, _: ByteCount) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&self, from: FileOffset) -> io::Result<Option<Range<FileOffset>>> {
        self.0.next_data(from)
    }
}
