//! Regular files and block devices.

use std::fs::{File, TryLockError};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use reflink_copy::ReflinkBlockBuilder;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::lock::{explain_lock, needs_writing};
use super::{FileIdentity, Lock, Storage};
use crate::units::{ByteCount, FileOffset};

/// How long to wait for a lock: some are held for a moment only, by who looks whether anybody uses the file, or by a
/// process that starts another.
const LOCK_PATIENCE: Duration = Duration::from_millis(30);
const LOCK_STEP: Duration = Duration::from_millis(2);

/// An open regular file or block device.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
    identity: FileIdentity,
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

    /// Tells whether anybody has locked the file at `path`, in whatever way.
    ///
    /// To find out takes a lock for a moment, which whoever opens the file meanwhile waits for.
    ///
    /// # Errors
    /// What the system answers.
    pub fn is_locked(path: &Path) -> io::Result<bool> {
        let mut locked = Self::open_file(path, false)?.file.try_lock();
        if needs_writing(&locked) {
            locked = Self::open_file(path, true)?.file.try_lock();
        }
        match locked {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(explain_lock(error)),
        }
    }

    fn open_file(path: &Path, write: bool) -> io::Result<Self> {
        // O_NONBLOCK: a FIFO must be refused, not waited for.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        Self::new(File::options().read(true).write(write).custom_flags(flags).open(path)?)
    }

    fn open_locked(path: &Path, write: bool, lock: Lock) -> io::Result<Self> {
        let mut patience = LOCK_PATIENCE;
        loop {
            let storage = Self::open_file(path, write)?;
            let locked = match lock {
                Lock::None => return Ok(storage),
                Lock::Shared => storage.file.try_lock_shared(),
                Lock::Exclusive => storage.file.try_lock(),
            };
            match locked {
                Err(TryLockError::WouldBlock) if !patience.is_zero() => {
                    std::thread::sleep(LOCK_STEP);
                    patience = patience.saturating_sub(LOCK_STEP);
                    continue;
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(io::Error::new(io::ErrorKind::ResourceBusy, "in use by another process (locked)"));
                }
                locked if needs_writing(&locked) && !write => return Self::open_locked(path, true, lock),
                Err(TryLockError::Error(error)) => return Err(explain_lock(error)),
                Ok(()) => {}
            }
            // A snapshot may have put another file at this path before the lock was ours.
            if storage.identity == FileIdentity::at(path)? {
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
        Ok(Self { identity: FileIdentity::of(&file)?, file, is_device: kind.is_block_device() })
    }

    /// The file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Which file it is.
    pub fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// The two files between which the kernel is to do something by itself.
    fn pair<'a>(&'a self, source: &'a dyn Storage) -> io::Result<(&'a File, &'a File)> {
        let (source, target) = (source.as_file(), self.as_file());
        source.zip(target).map(|(a, b)| (&a.file, &b.file)).ok_or_else(|| io::ErrorKind::Unsupported.into())
    }
}

/// Gives one kind to all the answers that mean: not between these two files, whatever the range.
fn unsupported(error: io::Error) -> io::Error {
    match Errno::from_io_error(&error) {
        Some(Errno::XDEV | Errno::NOTTY | Errno::NOSYS | Errno::OPNOTSUPP) => {
            io::Error::new(io::ErrorKind::Unsupported, error)
        }
        _ => error,
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
        if self.punch_hole(at, length)? { Ok(()) } else { super::write_zeros(self, at, length) }
    }

    fn punch_hole(&self, at: FileOffset, length: ByteCount) -> io::Result<bool> {
        if length.0 == 0 {
            return Ok(true);
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, punch, at.0, length.0) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(false),
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
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(from..FileOffset(end))),
            Err(error) => return Err(error.into()),
        };
        let hole = match rustix::fs::seek(&self.file, SeekFrom::Hole(start)) {
            Err(Errno::INVAL | Errno::OPNOTSUPP) => end,
            hole => hole?,
        };
        Ok(Some(FileOffset(start)..FileOffset(hole)))
    }

    fn has_fixed_size(&self) -> bool {
        self.is_device
    }

    fn as_file(&self) -> Option<&FileStorage> {
        (!self.is_device).then_some(self)
    }

    fn clone_range(&self, source: &dyn Storage, from: FileOffset, to: FileOffset, length: ByteCount) -> io::Result<()> {
        let (source, target) = self.pair(source)?;
        let Some(count) = NonZeroU64::new(length.0) else { return Ok(()) };
        let request = || ReflinkBlockBuilder::new(source, target, count).from_offset(from.0).to_offset(to.0);
        rustix::io::retry_on_intr(|| {
            request().reflink_block().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        })
        .map_err(|error| unsupported(error.into()))
    }

    fn copy_range(&self, source: &dyn Storage, from: FileOffset, to: FileOffset, length: ByteCount) -> io::Result<()> {
        let (source, target) = self.pair(source)?;
        let (mut from, mut to, end) = (from.0, to.0, from.0 + length.0);
        while from < end {
            let left = usize::try_from(end - from).unwrap_or(usize::MAX);
            let copy = || rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), left);
            if rustix::io::retry_on_intr(copy).map_err(|error| unsupported(error.into()))? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the source ends before"));
            }
        }
        Ok(())
    }
}
