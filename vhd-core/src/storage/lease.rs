//! Who has a file open: the kernel's word, and its announcement when somebody comes.
//!
//! The programs that serve disks take no `flock`. A *lease* tells of them all the same: the kernel grants one for writing
//! only while no other descriptor of the file is open on this host. From then on whoever opens the file is held up, for
//! [`patience`](PATIENCE) at most, until the lease is given back.
//!
//! ```text
//!   we:    open ── lease ── write … write ── (wanted) ── close what is open ── give the lease back
//!   they:                            open ─ ─ ─ ─ held up ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─▶ opened
//! ```
//!
//! The kernel counts descriptors and not processes. So a process that holds a lease opens the file no second time: who
//! asks for it gets the descriptor that is there. That is why there is one list of leases for the process.
//!
//! Where there are no leases (block devices, some file systems), and where a second descriptor belongs to this process,
//! the descriptors of all processes are looked through in `/proc`.
//!
//! Source: fcntl(2), "Leases"; proc(5).

#![expect(unsafe_code, reason = "no safe call takes a lease")]

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::FileIdentity;

/// What a break of the lease is announced by. Its default is to be ignored.
const SIGNAL: libc::c_int = libc::SIGURG;
/// Sets that signal. Source: Linux, include/uapi/asm-generic/fcntl.h.
const F_SETSIG: libc::c_int = 10;
/// How long after a lease is wanted back writes still pass, which bring what is open to an end. The kernel takes the lease
/// away after `/proc/sys/fs/lease-break-time`, 45 seconds if nobody has changed that.
const GRACE: Duration = Duration::from_secs(15);
/// How often the kernel is asked whether a lease is wanted back, and how often `/proc` is looked through without one.
const LOOK_AT_LEASE: Duration = Duration::from_millis(10);
const LOOK_THROUGH_PROCESSES: Duration = Duration::from_secs(1);

/// The leases of this process.
static LEASED: LazyLock<Mutex<HashMap<FileIdentity, Weak<Lease>>>> = LazyLock::new(Mutex::default);

fn leased() -> MutexGuard<'static, HashMap<FileIdentity, Weak<Lease>>> {
    LEASED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives the lease that this process has of a file.
pub(super) fn of(identity: FileIdentity) -> Option<Arc<Lease>> {
    leased().get(&identity)?.upgrade()
}

/// Tells whether this process has any lease.
pub(super) fn are_there_any() -> bool {
    !leased().is_empty()
}

/// What a file is held by against other programs.
#[derive(Debug)]
pub(super) struct Lease {
    file: Arc<File>,
    identity: FileIdentity,
    /// Whether the kernel has granted one; else other processes are looked for.
    granted: bool,
    taken: Instant,
    /// The last look that found nobody else, in milliseconds after that.
    alone: AtomicU64,
    wanted: AtomicBool,
}

impl Lease {
    /// Makes sure that no other program on this host has the file open; `None` where one has.
    ///
    /// # Errors
    /// Neither leases nor `/proc` can be had, so that nothing tells.
    pub(super) fn take(file: &Arc<File>, identity: FileIdentity) -> io::Result<Option<Arc<Self>>> {
        let granted = match set_lease(file, libc::F_WRLCK) {
            Ok(()) => true,
            Err(Errno::AGAIN) if !is_open_twice_here(identity)? => return Ok(None),
            // No leases here, or not for us; or the other descriptor is one of our own.
            Err(Errno::AGAIN | Errno::INVAL | Errno::ACCESS | Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => {
                if is_open_elsewhere(file)? {
                    return Ok(None);
                }
                false
            }
            Err(errno) => return Err(errno.into()),
        };
        let (alone, wanted) = (AtomicU64::new(0), AtomicBool::new(false));
        let lease = Arc::new(Self { file: file.clone(), identity, granted, taken: Instant::now(), alone, wanted });
        if granted {
            leased().insert(identity, Arc::downgrade(&lease));
        }
        Ok(Some(lease))
    }

    /// The descriptor that it belongs to.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Tells whether another program wants to have the file, or has it.
    pub(super) fn is_wanted(&self) -> bool {
        let pause = if self.granted { LOOK_AT_LEASE } else { LOOK_THROUGH_PROCESSES };
        if self.wanted.load(Ordering::Relaxed) || self.not_looked_for() < pause {
            return self.wanted.load(Ordering::Relaxed);
        }
        let now = self.taken.elapsed();
        // What cannot be told is not relied on.
        let wanted = if self.granted { is_broken(&self.file) } else { is_open_elsewhere(&self.file).unwrap_or(true) };
        if wanted {
            self.wanted.store(true, Ordering::Relaxed);
        } else {
            self.alone.fetch_max(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        wanted
    }

    /// How long ago nobody else had or wanted the file for the last time.
    fn not_looked_for(&self) -> Duration {
        self.taken.elapsed().saturating_sub(Duration::from_millis(self.alone.load(Ordering::Relaxed)))
    }

    /// Refuses a change of a file that another program has been waiting for too long.
    pub(super) fn check(&self) -> io::Result<()> {
        if self.is_wanted() && self.not_looked_for() > GRACE.min(break_time() / 2) {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another program has opened it meanwhile"));
        }
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.granted {
            leased().remove(&self.identity);
            // Where the kernel has taken it away already, there is nothing to give back.
            let _ = set_lease(&self.file, libc::F_UNLCK);
        }
    }
}

fn set_lease(file: &File, kind: libc::c_int) -> Result<(), Errno> {
    let fd = file.as_raw_fd();
    // SAFETY: the descriptor is open as long as `file` is borrowed, and both commands take a plain number.
    let done = unsafe { libc::fcntl(fd, F_SETSIG, SIGNAL) == 0 && libc::fcntl(fd, libc::F_SETLEASE, kind) == 0 };
    if done { Ok(()) } else { Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)) }
}

/// Tells whether a lease that was granted is wanted back, or gone.
fn is_broken(file: &File) -> bool {
    // SAFETY: the descriptor is open as long as `file` is borrowed, and the command takes nothing.
    unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLEASE) != libc::F_WRLCK }
}

/// How long the kernel lets who wants a file wait.
fn break_time() -> Duration {
    let told = fs::read_to_string("/proc/sys/fs/lease-break-time").ok();
    Duration::from_secs(told.and_then(|text| text.trim().parse().ok()).unwrap_or(45))
}

/// Tells whether this process has a file open by more than one descriptor.
fn is_open_twice_here(identity: FileIdentity) -> io::Result<bool> {
    let mut count = 0;
    for entry in fs::read_dir("/proc/self/fd")? {
        // A descriptor that is closed meanwhile is none.
        let found = fs::metadata(entry?.path());
        count += usize::from(found.is_ok_and(|found| FileIdentity::new(&found) == identity));
    }
    Ok(count > 1)
}

/// Tells whether another process has the file open.
fn is_open_elsewhere(file: &File) -> io::Result<bool> {
    let own = file.metadata()?;
    let is_it = |found: &fs::Metadata| {
        let same_node = (found.dev(), found.ino()) == (own.dev(), own.ino());
        same_node || own.rdev() != 0 && found.rdev() == own.rdev() && found.mode() == own.mode()
    };
    let process = std::process::id().to_string();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name();
        let is_process = name.as_encoded_bytes().iter().all(u8::is_ascii_digit);
        if !is_process || name.to_str() == Some(&process) {
            continue;
        }
        // A process that ends meanwhile, or is nobody's business, has nothing that could be told.
        let Ok(descriptors) = fs::read_dir(entry.path().join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            if has_descriptor(&descriptor.path(), &is_it) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Follows a descriptor of a process.
fn has_descriptor(descriptor: &Path, is_it: &impl Fn(&fs::Metadata) -> bool) -> bool {
    fs::metadata(descriptor).is_ok_and(|found| is_it(&found))
}
