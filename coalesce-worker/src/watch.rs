//! Noticing that something in a folder has changed.

use std::collections::BTreeSet;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;

use crate::abort::{Abort, Aborted};

/// From the first change to the answer: what follows at once is told together with it.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// How often a folder that cannot be watched is tried again.
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// Folders cannot be watched at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch folders")]
pub struct WatchError(#[from] io::Error);

/// Folders that are watched: for files that come, go, or are closed after they were open for writing.
///
/// Names that start with a dot are passed over. A change by this process counts like any other, and so does a file that was
/// opened for writing and not written to. What happens on another host of a shared file system is not seen: that is what
/// the poll is for.
#[derive(Debug)]
pub struct Watch {
    inotify: OwnedFd,
    bell: Arc<Bell>,
    waker: Waker,
    folders: Vec<Watched>,
    poll: Duration,
    /// When all folders were told last.
    told_all: Instant,
    /// Whether a file that was only read counts too, once it is closed.
    closing: bool,
}

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    /// The kernel's number for it; `None` while it cannot be watched, most likely as it is not there.
    number: Option<i32>,
}

impl Watch {
    /// Watches from now on: a scan that starts after this misses nothing. All folders count as changed whenever `poll` has
    /// passed.
    ///
    /// # Errors
    /// The system has no more of what it takes. A folder that is not there is no error.
    pub fn new(folders: impl IntoIterator<Item = PathBuf>, poll: Duration) -> Result<Self, WatchError> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(io::Error::from)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?;
        let bell = Arc::new(Bell(bell));
        let folders = folders.into_iter().map(|path| Watched { path, number: None }).collect();
        let waker = Waker::from(Arc::clone(&bell));
        let mut watch = Self { inotify, bell, waker, folders, poll, told_all: Instant::now(), closing: false };
        watch.find_new();
        Ok(watch)
    }

    /// What wakes [`Watch::wait`], from any thread.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Waits until something has changed, and tells in which folders. Whoever was woken by the waker is told what has
    /// changed so far, which may be nothing.
    ///
    /// # Errors
    /// [`Aborted`] as soon as `abort` is raised.
    pub fn wait(&mut self, abort: &Abort) -> Result<Vec<PathBuf>, Aborted> {
        self.wait_until(abort, None)
    }

    /// As [`Watch::wait`], until some moment at most.
    ///
    /// # Errors
    /// [`Aborted`] as soon as `abort` is raised.
    pub fn wait_until(&mut self, abort: &Abort, deadline: Option<Instant>) -> Result<Vec<PathBuf>, Aborted> {
        let waker = self.waker();
        let _woken = abort.wakes(&waker);
        let mut changed = BTreeSet::new();
        let mut first_change = None;
        loop {
            let rung = self.bell.silence();
            abort.check()?;
            self.read_events(&mut changed);
            changed.extend(self.find_new());
            let poll_left = self.poll.saturating_sub(self.told_all.elapsed());
            if poll_left.is_zero() {
                self.told_all = Instant::now();
                self.watch_again();
                return Ok(self.folders.iter().map(|folder| folder.path.clone()).collect());
            }
            let mut sleep = poll_left.min(LONGEST_SLEEP);
            if !changed.is_empty() {
                let first_change = *first_change.get_or_insert_with(Instant::now);
                sleep = sleep.min(DEBOUNCE.saturating_sub(first_change.elapsed()));
            }
            if let Some(deadline) = deadline {
                sleep = sleep.min(deadline.saturating_duration_since(Instant::now()));
            }
            if rung || sleep.is_zero() {
                return Ok(changed.into_iter().map(|index: usize| self.folders[index].path.clone()).collect());
            }
            if self.folders.iter().any(|folder| folder.number.is_none()) {
                sleep = sleep.min(RETRY);
            }
            self.sleep(sleep, abort)?;
        }
    }

    /// From now on tells also, or no longer, when a file is closed that was open for nothing but reading: whoever waits for
    /// it can try again. A scan by this process closes files too.
    pub fn tell_closing(&mut self, closing: bool) {
        if std::mem::replace(&mut self.closing, closing) != closing {
            self.watch_again();
        }
    }

    /// Passes over what has happened so far.
    pub fn forget(&mut self) {
        self.read_events(&mut BTreeSet::new());
    }

    /// Sleeps until there are events, the bell rings, or the time is over.
    fn sleep(&self, duration: Duration, abort: &Abort) -> Result<(), Aborted> {
        let mut descriptors = [PollFd::new(&self.inotify, PollFlags::IN), PollFd::new(&self.bell.0, PollFlags::IN)];
        let duration = Timespec::try_from(duration).expect("an hour at most, which fits");
        match poll(&mut descriptors, Some(&duration)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            // Short of memory; there is nothing to do but to try again.
            Err(_) => abort.sleep(RETRY),
        }
    }

    fn read_events(&mut self, changed: &mut BTreeSet<usize>) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    tracing::warn!(%error, "changes in folders cannot be read");
                    return;
                }
            };
            let flags = event.events();
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                changed.extend(0..self.folders.len());
            }
            // Somebody has listed the folder.
            if flags.contains(ReadFlags::CLOSE_NOWRITE | ReadFlags::ISDIR) {
                continue;
            }
            if event.file_name().is_some_and(|name| name.to_bytes().starts_with(b".")) {
                continue;
            }
            for (index, folder) in self.folders.iter_mut().enumerate() {
                if folder.number != Some(event.wd()) {
                    continue;
                }
                changed.insert(index);
                if flags.contains(ReadFlags::MOVE_SELF) {
                    // It would be watched under its new name. Where it has gone altogether, so has the watch.
                    let _ = inotify::remove_watch(&self.inotify, event.wd());
                }
                if flags.intersects(ReadFlags::MOVE_SELF | ReadFlags::IGNORED) {
                    folder.number = None;
                }
            }
        }
    }

    /// Watches the folders that are not watched yet; tells which of them are from now on.
    fn find_new(&mut self) -> Vec<usize> {
        let mut new = Vec::new();
        for (index, folder) in self.folders.iter_mut().enumerate() {
            if folder.number.is_none() {
                folder.number = add(&self.inotify, folder, self.closing);
                new.extend(folder.number.map(|_| index));
            }
        }
        new
    }

    /// Makes sure that it is still the folder of that name which is watched, and not one that it hides: another file
    /// system may have been mounted there.
    pub(crate) fn watch_again(&mut self) {
        for index in 0..self.folders.len() {
            let number = add(&self.inotify, &self.folders[index], self.closing);
            let before = std::mem::replace(&mut self.folders[index].number, number);
            if let Some(before) = before.filter(|_| before != number)
                && self.folders.iter().all(|folder| folder.number != Some(before))
            {
                // It may have gone by itself.
                let _ = inotify::remove_watch(&self.inotify, before);
            }
        }
    }
}

fn add(inotify: &OwnedFd, folder: &Watched, closing: bool) -> Option<i32> {
    let mut files = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVE | WatchFlags::CLOSE_WRITE;
    files.set(WatchFlags::CLOSE_NOWRITE, closing);
    let itself = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF | WatchFlags::ONLYDIR;
    match inotify::add_watch(inotify, &folder.path, files | itself) {
        Ok(number) => Some(number),
        Err(error) => {
            tracing::debug!(folder = %folder.path.display(), %error, "cannot watch a folder");
            None
        }
    }
}

/// A descriptor that can be read once somebody has rung.
#[derive(Debug)]
struct Bell(OwnedFd);

impl Bell {
    /// Tells whether it has rung since.
    fn silence(&self) -> bool {
        rustix::io::read(&self.0, &mut [0; 8]).is_ok()
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // It can only fail when it has been rung 2⁶⁴ times.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests;
