//! One repository of a daemon.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant};

use vhd_core::FileError;

use super::Merging;
use super::fingerprint::Fingerprint;
use super::schedule::{Ended, Next, Schedule};
use crate::abort::{Abort, Aborted};
use crate::budget::Budget;
use crate::collect::{CollectError, CollectOptions, Collected};
use crate::mounts::{Gone, HeldFolder, holds_images, mount_of};
use crate::repository::Repository;
use crate::status::Entry;
use crate::survey::with_causes;
use crate::watch::Watch;

/// How often whoever stops a collection looks whether it has stopped.
const LOOK: Duration = Duration::from_millis(2);

/// A repository, and what is needed to collect it.
#[derive(Debug)]
pub(super) struct Worker {
    folder: PathBuf,
    entry: Entry,
    merging: Merging,
    budget: Arc<Budget>,
    /// Ends the process.
    abort: Abort,
    /// Ends the collections that are under way.
    stop: Mutex<Abort>,
    /// Kept open, so that what has not changed is not read again; `None` while it cannot be opened.
    repository: Mutex<Option<Arc<Repository>>>,
    /// The mount that its folder was on when images were seen there last: an empty folder on another is none of theirs.
    mount: Mutex<Option<PathBuf>>,
    last_error: Mutex<String>,
    asked: AtomicBool,
    collections: AtomicU32,
    waker: Waker,
}

/// Why a repository is not collected.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error(transparent)]
    Gone(#[from] Gone),
    #[error(transparent)]
    Open(#[from] FileError),
    #[error(transparent)]
    Collect(#[from] CollectError),
    #[error("a defect of this program ended the collection; its log tells more")]
    Panicked,
}

/// A collection that is over.
struct Report {
    ended: Ended,
    took: Duration,
    before: Option<Fingerprint>,
}

impl Worker {
    pub(super) fn new(
        folder: &Path,
        entry: Entry,
        merging: &Merging,
        budget: &Arc<Budget>,
        abort: &Abort,
        watch: &Watch,
    ) -> Self {
        Self {
            folder: folder.into(),
            entry,
            merging: merging.clone(),
            budget: Arc::clone(budget),
            abort: abort.clone(),
            stop: Mutex::new(abort.child()),
            repository: Mutex::default(),
            mount: Mutex::default(),
            last_error: Mutex::default(),
            asked: AtomicBool::new(false),
            collections: AtomicU32::new(0),
            waker: watch.waker(),
        }
    }

    /// Its folder, as it was given.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Has it look again at what there is to do.
    pub(super) fn wake(&self) {
        self.waker.wake_by_ref();
    }

    /// Has it collect, whatever the folder looks like.
    pub(super) fn ask(&self) {
        self.asked.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Stops the collections that are under way; tells whether there are any.
    pub(super) fn stop(&self) -> bool {
        self.asked.store(false, Ordering::SeqCst);
        // Looked at before it is told to stop: it may have stopped the moment after.
        let was_collecting = self.collections.load(Ordering::SeqCst) > 0;
        let stopped = std::mem::replace(&mut *locked(&self.stop), self.abort.child());
        stopped.abort();
        was_collecting
    }

    /// Waits until nothing is collected.
    pub(super) fn wait_until_stopped(&self, deadline: Instant) {
        while self.collections.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
            thread::sleep(LOOK);
        }
    }

    /// Collects it whenever there is a reason, until the process ends. `collected` is told after each collection.
    pub(super) fn work(&self, mut watch: Watch, poll: Duration, collected: &Sender<()>) {
        let (tell, reports) = mpsc::channel::<Report>();
        let mut schedule = Schedule::new(poll);
        let (mut changed, mut unreachable) = (false, false);
        thread::scope(|scope| {
            loop {
                for Report { ended, took, before } in reports.try_iter() {
                    // What others have done meanwhile shows in what the folder looks like.
                    watch.forget();
                    if std::mem::replace(&mut unreachable, ended == Ended::Unreachable) {
                        // A mount that has come back has caused no event in the folder that it covers.
                        watch.watch_again();
                    }
                    schedule.ended(Instant::now(), took, ended, before, Fingerprint::of(&self.folder));
                    // Nobody is left who would listen when the process ends.
                    let _ = collected.send(());
                }
                if self.asked.swap(false, Ordering::SeqCst) {
                    schedule.ask();
                }
                let mut deadline = None;
                if !self.budget.is_paused() {
                    let (now, look) = (Instant::now(), || Fingerprint::of(&self.folder));
                    let next = schedule.next(now, std::mem::take(&mut changed), self.has_room(), look);
                    watch.tell_closing(schedule.waits_for_release());
                    if next != Next::Nothing {
                        let (tell, stop) = (tell.clone(), locked(&self.stop).clone());
                        self.collections.fetch_add(1, Ordering::SeqCst);
                        scope.spawn(move || {
                            let report = self.collect(next == Next::CollectBeside, &stop);
                            self.collections.fetch_sub(1, Ordering::SeqCst);
                            // Who is to be told waits for this very thread.
                            let _ = tell.send(report);
                            self.wake();
                        });
                    }
                    deadline = schedule.deadline(now);
                }
                match watch.wait_until(&self.abort, deadline) {
                    Ok(folders) => changed |= !folders.is_empty(),
                    Err(Aborted) => return,
                }
            }
        });
    }

    /// Tells whether merges are under way, but fewer than there are threads.
    fn has_room(&self) -> bool {
        let cores = || thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let threads = self.merging.threads.map_or_else(cores, std::num::NonZeroUsize::get);
        (1..threads.max(2)).contains(&self.entry.runs())
    }

    fn collect(&self, beside: bool, stop: &Abort) -> Report {
        let (start, before) = (Instant::now(), Fingerprint::of(&self.folder));
        let result = catch_unwind(AssertUnwindSafe(|| self.try_to_collect(beside, stop)));
        let ended = match result.unwrap_or(Err(Trouble::Panicked)) {
            Ok(collected) => self.tell(&collected),
            Err(Trouble::Collect(CollectError::Aborted(Aborted))) => {
                tracing::info!(repository = %self.folder.display(), "stopped");
                Ended::Stopped
            }
            Err(trouble) => self.fail(&trouble),
        };
        let took = start.elapsed();
        tracing::debug!(repository = %self.folder.display(), beside, ?ended, ?took, "collected");
        Report { ended, took, before }
    }

    fn try_to_collect(&self, beside: bool, stop: &Abort) -> Result<Collected, Trouble> {
        let _held = self.hold()?;
        let repository = self.repository()?;
        let board = if beside { self.entry.beside() } else { self.entry.clone() };
        let options = CollectOptions {
            threads: self.merging.threads,
            budget: &self.budget,
            abort: stop,
            method: self.merging.method,
            detect_zeroes: self.merging.detect_zeroes,
            board: Some(&board),
        };
        Ok(repository.collect(&options)?)
    }

    /// Keeps the folder's file system where it is, which must be the one on which the images are.
    fn hold(&self) -> Result<HeldFolder, Trouble> {
        let held = HeldFolder::open(&self.folder)?;
        let now = mount_of(&self.folder)?;
        let mut mount = locked(&self.mount);
        match mount.take() {
            // One that has been mounted over the folder since is what it holds now.
            Some(before) if before != now && before.starts_with(&now) => {
                *mount = Some(before.clone());
                Err(Gone { folder: self.folder.clone(), mount: before }.into())
            }
            before => {
                *mount = if holds_images(&self.folder) { Some(now) } else { before.filter(|before| *before == now) };
                Ok(held)
            }
        }
    }

    fn repository(&self) -> Result<Arc<Repository>, FileError> {
        let mut open = locked(&self.repository);
        if let Some(repository) = open.as_ref().filter(|repository| repository.check_folder().is_ok()) {
            return Ok(Arc::clone(repository));
        }
        let (repository, recovered) = Repository::open(&self.folder, self.merging.parents.clone())?;
        let (finished, interrupted) = (recovered.finished, recovered.interrupted.len());
        tracing::info!(repository = %self.folder.display(), finished, interrupted, "opened");
        Ok(Arc::clone(open.insert(Arc::new(repository))))
    }

    fn tell(&self, collected: &Collected) -> Ended {
        for path in &collected.deleted {
            tracing::info!(path = %path.display(), "deleted, as nobody needs it");
        }
        if collected.failed.is_empty() {
            self.entry.succeeded();
            locked(&self.last_error).clear();
        }
        let merged = collected.merged.iter().any(|merged| merged.outcome.waits_for.is_none());
        if merged || !collected.deleted.is_empty() {
            return Ended::Progress;
        }
        Ended::Nothing { waits: !(collected.waiting.is_empty() && collected.failed.is_empty()) }
    }

    /// Reports what hinders all of the repository; where that has not changed, only once.
    fn fail(&self, trouble: &Trouble) -> Ended {
        *locked(&self.repository) = None;
        let is_gone = matches!(trouble, Trouble::Gone(_)) || Fingerprint::of(&self.folder).is_none();
        let text = with_causes(trouble);
        let mut last = locked(&self.last_error);
        if *last != text || !is_gone {
            self.entry.failed(trouble);
        }
        if is_gone {
            self.entry.unreachable(trouble);
        }
        if *last != text {
            tracing::error!(repository = %self.folder.display(), error = text, "cannot be collected; will be tried again");
            *last = text;
        }
        if is_gone { Ended::Unreachable } else { Ended::Failed }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
