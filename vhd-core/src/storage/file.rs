//! Regular files and block devices.

use std::fs::{File, TryLockError};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, RwLockReadGuard, Weak};
use std::time::{Duration, Instant};

use reflink_copy::ReflinkBlockBuilder;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom};
use rustix::io::Errno;

use super::lease::{self, Lease, Opening};
use super::lock::{explain_lock, needs_writing};
use super::{FileIdentity, Lock, Storage};
use crate::units::{ByteCount, FileOffset};

/// How long to wait for a lock: some are held for a moment only, by who looks whether anybody uses the file, or by a
/// process that starts another.
const LOCK_PATIENCE: Duration = Duration::from_millis(30);
const LOCK_STEP: Duration = Duration::from_millis(2);

/// How long whoever is to write waits for programs that only look at the file, and for processes that have just been started
/// and still hold what their parent had open.
const LOOKERS_PATIENCE: Duration = Duration::from_millis(300);

/// How long to wait for a process that holds a lease on a file to let go of it.
const LEASE_PATIENCE: Duration = Duration::from_secs(10);

/// An open regular file or block device.
#[derive(Debug)]
pub struct FileStorage {
    lease: Leased,
    file: Arc<File>,
    identity: FileIdentity,
    is_device: bool,
}

/// By what a file is held against other programs.
#[derive(Debug)]
enum Leased {
    /// Nothing.
    No,
    /// A lease of its own.
    Own(Arc<Lease>),
    /// That of whoever opened the file for writing in this process.
    Shared(Weak<Lease>),
}

impl Leased {
    fn is_wanted(&self) -> bool {
        match self {
            Self::No => false,
            Self::Own(lease) => lease.is_wanted(),
            Self::Shared(lease) => lease.upgrade().is_some_and(|lease| lease.is_wanted()),
        }
    }
}

const LOCKED: &str = "in use by another process (locked)";

/// Waits until nobody holds a lock that forbids `lock`, for as long as locks are waited for. The file is not opened.
fn wait_for_lock(path: &Path, lock: Lock) -> io::Result<()> {
    let start = Instant::now();
    while lease::is_locked(FileIdentity::at(path)?, lock == Lock::Exclusive) {
        if start.elapsed() > LOCK_PATIENCE {
            return Err(busy(LOCKED));
        }
        std::thread::sleep(LOCK_STEP);
    }
    Ok(())
}

fn busy(who: &str) -> io::Error {
    io::Error::new(io::ErrorKind::ResourceBusy, who)
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

    /// Opens `path` for reading and writing, locks it, and makes sure that no other program on this host has it open,
    /// whether it takes locks or not. One that opens it later is held up until this is dropped; see
    /// [`Storage::is_wanted`].
    ///
    /// # Errors
    /// As [`open`](Self::open), also where another program has it open; an error of another kind where nothing tells
    /// whether one has.
    pub fn open_writable(path: &Path) -> io::Result<Self> {
        let mut storage = Self::open_locked(path, true, Lock::Exclusive)?;
        storage.lease = Leased::Own(storage.take_lease(LOOKERS_PATIENCE)?);
        Ok(storage)
    }

    /// As [`open_writable`](Self::open_writable), but other programs that take no locks may have it open: the caller knows
    /// them, and changes nothing that they rely on.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_writable_beside(path: &Path) -> io::Result<Self> {
        Self::open_locked(path, true, Lock::Exclusive)
    }

    /// Tells whether the file at `path` is in use: locked, in whatever way, or open in another program.
    ///
    /// To find out takes a lock for a moment, which whoever opens the file meanwhile waits for.
    ///
    /// # Errors
    /// What the system answers.
    pub fn is_in_use(path: &Path) -> io::Result<bool> {
        let mut file = match Self::open_now(path, false) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(true),
            file => file?,
        };
        if matches!(file.lease, Leased::Shared(_)) {
            return Ok(true);
        }
        let mut locked = file.file.try_lock();
        if needs_writing(&locked) {
            file = Self::open_now(path, true)?;
            locked = file.file.try_lock();
        }
        match locked {
            Ok(()) => file.is_open_elsewhere(),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(explain_lock(error)),
        }
    }

    /// Opens the file at `path` once, or gives the descriptor that this process has a lease of: to open it again would break
    /// that.
    pub(crate) fn open_by(path: &Path, open: impl FnOnce() -> io::Result<File>) -> io::Result<Self> {
        let opening = Opening::begin();
        if let Some(lease) = opening.lease_of(path)? {
            let (file, identity) = (lease.file().clone(), lease.identity());
            return Ok(Self { lease: Leased::Shared(Arc::downgrade(&lease)), file, identity, is_device: false });
        }
        Self::new(open()?)
    }

    fn open_now(path: &Path, write: bool) -> io::Result<Self> {
        // O_NONBLOCK: a FIFO must be refused, not waited for.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        Self::open_by(path, || File::options().read(true).write(write).custom_flags(flags).open(path))
    }

    /// Opens the file at `path` as soon as whoever holds a lease on it lets others look.
    fn open_file(path: &Path, write: bool, lock: Lock) -> io::Result<Self> {
        let start = Instant::now();
        loop {
            match Self::open_now(path, write) {
                // Another process holds a lease, and has been told. Where its lock forbids ours, it is not told again.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if lock != Lock::None {
                        wait_for_lock(path, lock)?;
                    }
                    if start.elapsed() > LEASE_PATIENCE {
                        return Err(busy("in use by another process (leased)"));
                    }
                    std::thread::sleep(LOCK_STEP);
                }
                opened => return opened,
            }
        }
    }

    fn open_locked(path: &Path, write: bool, lock: Lock) -> io::Result<Self> {
        let start = Instant::now();
        loop {
            let storage = Self::open_file(path, write, lock)?;
            let locked = match lock {
                Lock::None => return Ok(storage),
                // The descriptor is that of whoever holds the lease here, and so is its lock.
                _ if matches!(storage.lease, Leased::Shared(_)) => Err(TryLockError::WouldBlock),
                Lock::Shared => storage.file.try_lock_shared(),
                Lock::Exclusive => storage.file.try_lock(),
            };
            match locked {
                Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_PATIENCE => {
                    drop(storage);
                    std::thread::sleep(LOCK_STEP);
                    continue;
                }
                Err(TryLockError::WouldBlock) => return Err(busy(LOCKED)),
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

    fn take_lease(&self, patience: Duration) -> io::Result<Arc<Lease>> {
        let start = Instant::now();
        loop {
            match Lease::take(&self.file, self.identity)? {
                Some(lease) => return Ok(lease),
                None if start.elapsed() > patience => return Err(busy("in use by another program, which has it open")),
                None => std::thread::sleep(LOCK_STEP),
            }
        }
    }

    /// Begins a change; it is refused where another program has opened the file.
    fn begin_change(&self) -> io::Result<Option<RwLockReadGuard<'_, ()>>> {
        match &self.lease {
            Leased::Own(lease) => lease.begin_change().map(Some),
            Leased::No | Leased::Shared(_) => Ok(None),
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
        Ok(Self {
            lease: Leased::No,
            identity: FileIdentity::of(&file)?,
            file: Arc::new(file),
            is_device: kind.is_block_device(),
        })
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
        source.zip(target).map(|(a, b)| (&*a.file, &*b.file)).ok_or_else(|| io::ErrorKind::Unsupported.into())
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
        let _change = self.begin_change()?;
        self.file.write_all_at(buf, at.0)
    }

    fn set_len(&self, len: ByteCount) -> io::Result<()> {
        let _change = self.begin_change()?;
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
        let _change = self.begin_change()?;
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

    fn is_open_elsewhere(&self) -> io::Result<bool> {
        if !matches!(self.lease, Leased::No) {
            return Ok(false);
        }
        match self.take_lease(LOCK_PATIENCE) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(true),
            taken => taken.map(|_| false),
        }
    }

    fn is_wanted(&self) -> bool {
        self.lease.is_wanted()
    }

    fn as_file(&self) -> Option<&FileStorage> {
        (!self.is_device).then_some(self)
    }

    fn clone_range(&self, source: &dyn Storage, from: FileOffset, to: FileOffset, length: ByteCount) -> io::Result<()> {
        let _change = self.begin_change()?;
        let (source, target) = self.pair(source)?;
        let Some(count) = NonZeroU64::new(length.0) else { return Ok(()) };
        let request = || ReflinkBlockBuilder::new(source, target, count).from_offset(from.0).to_offset(to.0);
        rustix::io::retry_on_intr(|| {
            request().reflink_block().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        })
        .map_err(|error| unsupported(error.into()))
    }

    fn copy_range(&self, source: &dyn Storage, from: FileOffset, to: FileOffset, length: ByteCount) -> io::Result<()> {
        let _change = self.begin_change()?;
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
