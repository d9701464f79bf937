//! Regular files and block devices.

use std::fs::{File, TryLockError};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};

use super::Storage;
use crate::units::{ByteCount, FileOffset};

/// What an opener asks of others that use the same file (`flock`, advisory, gone with the process).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Nothing: read what is there.
    None,
    /// Nobody may write meanwhile.
    Shared,
    /// Nobody else may write or rely on the content meanwhile.
    Exclusive,
}

/// An open regular file or block device.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    is_device: bool,
}

impl FileStorage {
    /// Opens `path` for reading.
    ///
    /// # Errors
    /// What the system answers; [`io::ErrorKind::InvalidInput`] for anything but a regular file or block device,
    /// and [`io::ErrorKind::ResourceBusy`] where somebody holds a lock that forbids `lock`.
    pub fn open(path: &Path, lock: Lock) -> io::Result<Self> {
        Self::open_locked(path, false, lock)
    }

    /// Opens `path` for reading and writing, and locks it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_writable(path: &Path) -> io::Result<Self> {
        Self::open_locked(path, true, Lock::Exclusive)
    }

    fn open_locked(path: &Path, write: bool, lock: Lock) -> io::Result<Self> {
        loop {
            // O_NONBLOCK: a FIFO must be refused, not waited for.
            let flags = OFlags::NONBLOCK.bits().cast_signed();
            let file = File::options().read(true).write(write).custom_flags(flags).open(path)?;
            let storage = Self::new(file)?;
            match lock {
                Lock::None => return Ok(storage),
                Lock::Shared => storage.file.try_lock_shared(),
                Lock::Exclusive => storage.file.try_lock(),
            }
            .map_err(|error| match error {
                TryLockError::WouldBlock => {
                    io::Error::new(io::ErrorKind::ResourceBusy, "in use by another process (locked)")
                }
                TryLockError::Error(error) => error,
            })?;
            // A snapshot may have put another file at this path before the lock was ours.
            let (ours, there) = (storage.file.metadata()?, std::fs::metadata(path)?);
            if (ours.dev(), ours.ino()) == (there.dev(), there.ino()) {
                return Ok(storage);
            }
        }
    }

    /// Takes an open file.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for anything but a regular file or block device.
    pub fn new(file: File) -> io::Result<Self> {
        let kind = file.metadata()?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a regular file nor a block device"));
        }
        Ok(Self { file, is_device: kind.is_block_device() })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Storage for FileStorage {
    fn len(&self) -> io::Result<ByteCount> {
        if self.is_device {
            return Ok(ByteCount(rustix::fs::seek(&self.file, SeekFrom::End(0))?));
        }
        Ok(ByteCount(self.file.metadata()?.len()))
    }

    fn read_at(&self, buf: &mut [u8], at: FileOffset) -> io::Result<()> {
        self.file.read_exact_at(buf, at.0)
    }

    fn write_at(&self, buf: &[u8], at: FileOffset) -> io::Result<()> {
        self.file.write_all_at(buf, at.0)
    }

    fn set_len(&self, len: ByteCount) -> io::Result<()> {
        if !self.is_device {
            return self.file.set_len(len.0);
        }
        if len > self.len()? {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the device is too small"));
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn zero_range(&self, at: FileOffset, length: ByteCount) -> io::Result<()> {
        if length.0 == 0 {
            return Ok(());
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, punch, at.0, length.0) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => {
                super::write_zeros(self, at, length)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn next_data(&self, from: FileOffset) -> io::Result<Option<Range<FileOffset>>> {
        let end = self.len()?.0;
        if from.0 >= end {
            return Ok(None);
        }
        if self.is_device {
            return Ok(Some(from..FileOffset(end)));
        }
        let start = match rustix::fs::seek(&self.file, SeekFrom::Data(from.0)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => return Ok(Some(from..FileOffset(end))),
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(&self.file, SeekFrom::Hole(start))?;
        Ok(Some(FileOffset(start)..FileOffset(hole)))
    }

    fn has_fixed_size(&self) -> bool {
        self.is_device
    }
}
