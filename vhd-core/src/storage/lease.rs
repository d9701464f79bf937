//! Who has a file open: the kernel's word, and its announcement when a program comes.
//!
//! The programs that serve disks take no `flock`. A *lease* tells of them all the same: the kernel grants one for writing
//! only while no other descriptor of the file is open on this host. From then on a program that opens the file is held up,
//! for 45 seconds at most, until the lease is given back.
//!
//! ```text
//!   we:    open ── lease ── write … write ── (wanted) ── close what is open ── give the lease back
//!   they:                            open ─ ─ ─ ─ held up ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─ ─▶ opened
//! ```
//!
//! The kernel counts descriptors and not processes. So a process that holds a lease opens the file no second time: who
//! asks for it gets the descriptor that is there. That is why there is one list of leases for the process.
//!
//! Other processes of this library open files without waiting (`O_NONBLOCK`), which breaks a lease, too. They only look, and
//! try again. So where nothing waits for the file, writes pause, the lease is given back for a moment, and taken anew. A thread
//! sees to that while the process holds leases.
//!
//! Where there are no leases (block devices, some file systems), and where a second descriptor belongs to this process,
//! the descriptors of all processes are looked through in `/proc`.
//!
//! Source: fcntl(2), "Leases"; proc(5); Linux, fs/locks.c, for what `/proc/locks` says of leases.

#![expect(unsafe_code, reason = "no safe call takes a lease")]

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, PoisonError, RwLock, RwLockReadGuard, Weak};
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
/// What the kernel tells of locks and leases.
const LOCKS: &str = "/proc/locks";
/// How long those are let in who only look, and how long one of them may take.
const LOOK: Duration = Duration::from_millis(5);
const LOOKERS: Duration = Duration::from_millis(500);
/// How often the kernel is asked whether a lease is wanted back, and how often `/proc` is looked through without one.
const LOOK_AT_LEASE: Duration = Duration::from_millis(10);
const LOOK_THROUGH_PROCESSES: Duration = Duration::from_secs(1);

/// The leases of this process. Held for reading while a file is opened: so it is either seen to be leased, or opened before
/// a lease of it is asked for.
static LEASED: LazyLock<RwLock<HashMap<FileIdentity, Weak<Lease>>>> = LazyLock::new(RwLock::default);

/// Whether a thread looks after them.
static WATCHED: AtomicBool = AtomicBool::new(false);

/// Keeps leases from being taken while this process opens a file.
pub(super) struct Opening(RwLockReadGuard<'static, HashMap<FileIdentity, Weak<Lease>>>);

impl Opening {
    pub(super) fn begin() -> Self {
        Self(LEASED.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Gives the lease that this process has of the file at `path`.
    pub(super) fn lease_of(&self, path: &Path) -> io::Result<Option<Arc<Lease>>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        Ok(self.0.get(&FileIdentity::at(path)?).and_then(Weak::upgrade))
    }
}

/// Nothing tells who has a file open.
#[derive(Debug, thiserror::Error)]
#[error("nothing tells whether another program has it open: its file system has no leases, and there is no /proc")]
struct Untold {
    #[source]
    source: io::Error,
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
    /// Another program has the file open: nothing may be written any more.
    lost: AtomicBool,
    /// Held for reading by each change of the file.
    writes: RwLock<()>,
}

impl Lease {
    /// Makes sure that no other program on this host has the file open; `None` where one has.
    ///
    /// # Errors
    /// Neither leases nor `/proc` can be had, so that nothing tells.
    pub(super) fn take(file: &Arc<File>, identity: FileIdentity) -> io::Result<Option<Arc<Self>>> {
        let mut leased = LEASED.write().unwrap_or_else(PoisonError::into_inner);
        let granted = match set_lease(file, libc::F_WRLCK) {
            Ok(()) => true,
            Err(Errno::AGAIN) if !is_open_twice_here(identity).unwrap_or(false) => return Ok(None),
            // No leases here, or not for us; or the other descriptor is one of our own.
            Err(Errno::AGAIN | Errno::INVAL | Errno::ACCESS | Errno::NOSYS | Errno::OPNOTSUPP | Errno::NOLCK) => {
                let untold = |error| io::Error::new(io::ErrorKind::Unsupported, Untold { source: error });
                if is_open_elsewhere(file).map_err(untold)? {
                    return Ok(None);
                }
                false
            }
            Err(errno) => return Err(errno.into()),
        };
        let lease = Arc::new(Self {
            file: file.clone(),
            identity,
            granted,
            taken: Instant::now(),
            alone: AtomicU64::new(0),
            wanted: AtomicBool::new(false),
            lost: AtomicBool::new(false),
            writes: RwLock::new(()),
        });
        if granted {
            leased.insert(identity, Arc::downgrade(&lease));
            keep_watch();
        }
        Ok(Some(lease))
    }

    /// The descriptor that it belongs to.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The file.
    pub(super) fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// Tells whether another program wants to have the file, or has it.
    pub(super) fn is_wanted(&self) -> bool {
        let pause = if self.granted { LOOK_AT_LEASE } else { LOOK_THROUGH_PROCESSES };
        if self.wanted.load(Ordering::Relaxed) || self.not_looked_for() < pause {
            return self.wanted.load(Ordering::Relaxed);
        }
        let now = self.taken.elapsed();
        let wanted = if self.granted {
            is_broken(&self.file) && (is_waited_for(self.identity) || !self.renew())
        } else {
            // What cannot be told is not relied on.
            is_open_elsewhere(&self.file).unwrap_or(true)
        };
        if wanted {
            self.wanted.store(true, Ordering::Relaxed);
        } else {
            self.alone.fetch_max(u64::try_from(now.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        wanted
    }

    /// Lets those have a look who have not waited, and takes the lease anew; tells whether nobody stays. Nothing is written
    /// meanwhile.
    fn renew(&self) -> bool {
        let _paused = self.writes.write().unwrap_or_else(PoisonError::into_inner);
        if !is_broken(&self.file) {
            // Another thread has taken it anew.
            return true;
        }
        let _ = set_lease(&self.file, libc::F_UNLCK);
        let start = Instant::now();
        while start.elapsed() < LOOKERS {
            std::thread::sleep(LOOK);
            let _opening_waits = LEASED.write().unwrap_or_else(PoisonError::into_inner);
            if set_lease(&self.file, libc::F_WRLCK).is_ok() {
                return true;
            }
        }
        self.lost.store(true, Ordering::Release);
        false
    }

    /// How long ago nobody else had or wanted the file for the last time.
    fn not_looked_for(&self) -> Duration {
        self.taken.elapsed().saturating_sub(Duration::from_millis(self.alone.load(Ordering::Relaxed)))
    }

    /// Begins a change of the file, which ends when the answer is dropped; refuses one of a file that another program has
    /// open, or has been waiting for too long.
    pub(super) fn begin_change(&self) -> io::Result<RwLockReadGuard<'_, ()>> {
        let waited_too_long = self.is_wanted() && self.not_looked_for() > GRACE.min(break_time() / 2);
        let change = self.writes.read().unwrap_or_else(PoisonError::into_inner);
        if waited_too_long || self.lost.load(Ordering::Acquire) {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another program has opened it meanwhile"));
        }
        Ok(change)
    }
}

/// Has a thread look after the leases of this process, for as long as there are any: who only looks at a file is let in also
/// while nothing is written to it. Called while no lease can come or go.
fn keep_watch() {
    if WATCHED.swap(true, Ordering::AcqRel) {
        return;
    }
    let watch = || {
        loop {
            std::thread::sleep(LOOK_AT_LEASE);
            let leases: Vec<Weak<Lease>> = {
                let leased = LEASED.write().unwrap_or_else(PoisonError::into_inner);
                if leased.is_empty() {
                    WATCHED.store(false, Ordering::Release);
                    return;
                }
                leased.values().cloned().collect()
            };
            // Each is held no longer than it is looked at: its owner may let go of it meanwhile.
            leases.iter().filter_map(Weak::upgrade).for_each(|lease| _ = lease.is_wanted());
        }
    };
    if std::thread::Builder::new().name("leases".into()).spawn(watch).is_err() {
        // Each write looks, too; only who waits for a file that nothing is written to waits longer.
        WATCHED.store(false, Ordering::Release);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.granted {
            LEASED.write().unwrap_or_else(PoisonError::into_inner).remove(&self.identity);
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

/// Tells whether a program waits in its call to open a file that is leased. What cannot be told may be so; nobody waits where
/// there is no lease, which another thread may be renewing.
///
/// Who waits for a lease is listed after it, under the same number: `1: LEASE BREAKING READ …`, `1: -> LEASE BREAKER …`.
fn is_waited_for(identity: FileIdentity) -> bool {
    let Ok(locks) = fs::read_to_string(LOCKS) else { return true };
    let name = identity.in_locks();
    let lines: Vec<Vec<&str>> = locks.lines().map(|line| line.split_ascii_whitespace().collect()).collect();
    let lease = lines.iter().find(|line| line.get(1) == Some(&"LEASE") && line.contains(&name.as_str()));
    lease.is_some_and(|lease| lines.iter().any(|line| line.first() == lease.first() && line.get(1) == Some(&"->")))
}

/// Tells whether a process has locked a file (`flock`) against `exclusive` use, or any; what `/proc` does not tell is no.
///
/// Slow: the kernel stops all locking for the list, which takes it some milliseconds. To try the lock is quicker.
pub(super) fn is_locked(identity: FileIdentity, exclusive: bool) -> bool {
    let Ok(locks) = fs::read_to_string(LOCKS) else { return false };
    let name = identity.in_locks();
    locks.lines().any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        fields.get(1) == Some(&"FLOCK") && (exclusive || fields.contains(&"WRITE")) && fields.contains(&name.as_str())
    })
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
