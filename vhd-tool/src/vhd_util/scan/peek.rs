//! A file of which a little is read, ahead of what is asked for.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::OFlags;
use vhd_core::{ByteCount, FileOffset, Storage};

/// What is read at once: the header with the tables of a small disk; or the batmap of a large one with the locators after it.
const AHEAD: u64 = 8 * 1024;

/// A file that is open for reading a few places in it.
#[derive(Debug)]
pub(super) struct Peek {
    file: File,
    len: u64,
    read: Mutex<Vec<Piece>>,
}

#[derive(Debug)]
struct Piece {
    start: u64,
    bytes: Vec<u8>,
}

impl Peek {
    /// Opens a regular file or block device. Anything else is refused, and not waited for.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        let kind = metadata.file_type();
        let len = if kind.is_file() {
            metadata.len()
        } else if kind.is_block_device() {
            io::Seek::seek(&mut &file, io::SeekFrom::End(0))?
        } else if kind.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        } else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a regular file nor a block device"));
        };
        Ok(Self { file, len, read: Mutex::default() })
    }

    fn read_ahead(&self, start: u64, length: u64) -> io::Result<Piece> {
        let length = length.max(AHEAD).min(self.len.saturating_sub(start));
        let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(Piece { start, bytes })
    }
}

impl Piece {
    fn part(&self, wanted: &Range<u64>) -> Option<&[u8]> {
        let from = usize::try_from(wanted.start.checked_sub(self.start)?).ok()?;
        let length = usize::try_from(wanted.end - wanted.start).ok()?;
        self.bytes.get(from..from.checked_add(length)?)
    }
}

impl Storage for Peek {
    fn len(&self) -> io::Result<ByteCount> {
        Ok(ByteCount(self.len))
    }

    fn read_at(&self, buf: &mut [u8], at: FileOffset) -> io::Result<()> {
        let length = buf.len() as u64;
        let end = at.0.checked_add(length).filter(|&end| end <= self.len).ok_or(io::ErrorKind::UnexpectedEof)?;
        let wanted = at.0..end;
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = read.iter().find_map(|piece| piece.part(&wanted)) {
            buf.copy_from_slice(part);
            return Ok(());
        }
        let piece = self.read_ahead(at.0, length)?;
        buf.copy_from_slice(piece.part(&wanted).ok_or(io::ErrorKind::UnexpectedEof)?);
        read.push(piece);
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: FileOffset) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn set_len(&self, _: ByteCount) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
