//! Collecting a repository: what nobody needs is deleted, and whatever can be merged is merged, trees side by side.

use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use vhd_core::{ByteCount, FileError, FileStorage};

use crate::abort::Abort;
use crate::budget::Budget;
use crate::coalesce::{Coalesce, Outcome};
use crate::error::CoalesceError;
use crate::finish::remove_obsolete;
use crate::in_use::lock_source;
use crate::journal::Journal;
use crate::merge::{MergeError, MergeOptions};
use crate::record::{FileId, Record};
use crate::repository::Repository;
use crate::status::{Entry, Isolated, Phase, RunTotals, Waiting};
use crate::survey::{PlannedRun, Survey, SurveyError, with_causes};
use crate::transfer::CopyMethod;

/// Passes over a repository at most: what one has done may make more possible, but not for ever.
const PASSES: u32 = 16;
/// Files that are deleted under one lock: each is held open meanwhile, and whoever changes the structure waits.
const GARBAGE_AT_ONCE: usize = 128;

/// How to collect.
pub struct CollectOptions<'a> {
    /// Threads that move data; `None` stands for as many as there are cores.
    pub threads: Option<NonZeroUsize>,
    /// What all merges together may take.
    pub budget: &'a Budget,
    /// Ends the collection; what was being merged goes on from there next time.
    pub abort: &'a Abort,
    /// How data moves.
    pub method: CopyMethod,
    /// Turns blocks of 4 KiB that hold but zeros into holes.
    pub detect_zeroes: bool,
    /// Where to tell what is done.
    pub board: Option<&'a Entry>,
}

/// What a collection did.
#[derive(Debug, Default)]
pub struct Collected {
    /// Images that were there at the last look.
    pub images: u64,
    /// Hidden images that nobody needed, and are gone.
    pub deleted: Vec<PathBuf>,
    /// Runs that were merged.
    pub merged: Vec<Merged>,
    /// What could not be done because of something that passes.
    pub waiting: Vec<Waiting>,
    /// What was left alone because something is wrong with it.
    pub isolated: Vec<Isolated>,
    /// What was tried in vain.
    pub failed: Vec<Failed>,
}

/// A run that was merged.
#[derive(Debug)]
pub struct Merged {
    /// As it was planned.
    pub run: PlannedRun,
    /// What was done.
    pub outcome: Outcome,
}

/// A run that could not be merged. Everything reads as before.
#[derive(Debug)]
pub struct Failed {
    /// Its newest image.
    pub node: PathBuf,
    /// Why.
    pub error: CoalesceError,
}

/// Why a collection stopped before its end.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// The repository cannot be looked at.
    #[error(transparent)]
    Survey(#[from] SurveyError),
    /// What processes that died have left cannot be looked at.
    #[error(transparent)]
    File(#[from] FileError),
    /// Files cannot be deleted.
    #[error(transparent)]
    Delete(#[from] CoalesceError),
    /// It was told to stop.
    #[error(transparent)]
    Aborted(#[from] crate::abort::Aborted),
}

impl Repository {
    /// Deletes what nobody needs and merges whatever can be merged.
    ///
    /// Trees are merged side by side; one that cannot be merged hinders no other. Volumes in use are not touched.
    ///
    /// # Errors
    /// What [`CollectError`] lists. What could not be done for single trees is in the answer.
    ///
    /// # Crash safety
    /// As [`Coalesce::execute`], for each run.
    pub fn collect(&self, options: &CollectOptions<'_>) -> Result<Collected, CollectError> {
        let collected = self.collect_in_passes(options);
        // Whatever an abort has interrupted, and however that shows.
        options.abort.check()?;
        collected
    }

    fn collect_in_passes(&self, options: &CollectOptions<'_>) -> Result<Collected, CollectError> {
        let mut collected = Collected::default();
        self.check_locks()?;
        for _ in 0..PASSES {
            options.abort.check()?;
            let recovered = self.recover_until(options.abort)?;
            let survey = Survey::until(self, options.abort)?;
            options.abort.check()?;
            let report = |collected: &mut Collected| {
                let unfinished = recovered.waiting.iter();
                collected.waiting =
                    unfinished.map(|it| Waiting { path: it.path.clone(), reason: with_causes(&it.reason) }).collect();
                // What is to be finished first says more than that the image is in use.
                let is_told = |path: &PathBuf| recovered.waiting.iter().any(|unfinished| unfinished.path == *path);
                let others = survey.waiting.iter().filter(|waiting| !is_told(&waiting.path));
                collected.waiting.extend(others.cloned());
                collected.isolated = survey.isolated.clone();
                collected.images = survey.images;
            };
            report(&mut collected);
            if let Some(board) = options.board {
                board.scanned(survey.scan(&collected.waiting));
            }
            self.keep_parents(&self.scan_until(options.abort).map_err(SurveyError::from)?, options.abort);
            let adopted = survey.strays.iter().filter(|(child, parent)| self.find_again(child, parent)).count();
            let deleted = self.delete_garbage(&survey.garbage, options.abort)?;
            let mut progress = !deleted.is_empty() || adopted > 0;
            collected.deleted.extend(deleted);
            let tried_before: Vec<PathBuf> = collected.failed.iter().map(|failed| failed.node.clone()).collect();
            let pass =
                Pass { repository: self, options, done: Mutex::new(Pending::default()), next: AtomicUsize::new(0) };
            let done = pass.run(&survey, &tried_before);
            progress |= done.merged.iter().any(|merged| merged.outcome.waits_for.is_none());
            collected.merged.extend(done.merged);
            collected.waiting.extend(done.waiting);
            collected.failed.extend(done.failed);
            if !progress {
                // What was found out only when it was tried is known now.
                if let Some(board) = options.board {
                    board.scanned(survey.scan(&collected.waiting));
                }
                break;
            }
        }
        Ok(collected)
    }

    /// Refuses a repository on a file system without file locks, where each image would look as if it were in use.
    fn check_locks(&self) -> Result<(), FileError> {
        let entries = fs::read_dir(self.folder()).map_err(FileError::when(self.folder(), "list the folder"))?;
        let is_file = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_file());
        let Some(file) = entries.flatten().find(is_file).map(|entry| entry.path()) else { return Ok(()) };
        match FileStorage::is_in_use(&file) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Err(FileError::when(&file, "lock it")(error)),
            // Whatever else is wrong with it is found where it matters.
            _ => Ok(()),
        }
    }

    /// Has an image find its parent again; tells whether it does.
    fn find_again(&self, child: &Path, parent: &Path) -> bool {
        match self.adopt(child, parent) {
            Ok(()) => {
                tracing::info!(child = %child.display(), parent = %parent.display(), "finds its parent again");
                true
            }
            Err(error) => {
                tracing::info!(child = %child.display(), reason = %with_causes(&error), "does not find its parent yet");
                false
            }
        }
    }

    /// Deletes hidden images that nobody needs, children before their parents.
    fn delete_garbage(&self, garbage: &[PathBuf], abort: &Abort) -> Result<Vec<PathBuf>, CoalesceError> {
        let mut deleted = Vec::new();
        for some in garbage.chunks(GARBAGE_AT_ONCE) {
            abort.check().map_err(MergeError::Aborted)?;
            deleted.extend(self.delete_some(some, abort)?);
        }
        Ok(deleted)
    }

    fn delete_some(&self, garbage: &[PathBuf], abort: &Abort) -> Result<Vec<PathBuf>, CoalesceError> {
        let structure = self.lock_structure_until(abort)?;
        let mut obsolete = Vec::new();
        let mut locks: Vec<FileStorage> = Vec::new();
        for path in garbage {
            // One that somebody has begun to use since is kept, and what it needs with it.
            let Ok(lock) = lock_source(path) else { continue };
            let image = vhd_core::Image::<vhd_core::ReadOnly>::open(path, vhd_core::Lock::None)?;
            if image.footer().hidden() {
                obsolete.push(FileId { path: self.relative(path), unique_id: image.footer().unique_id() });
                locks.push(lock);
            }
        }
        let record = Record::Linked { obsolete: obsolete.clone(), readers: Vec::new() };
        let journal = Journal::begin(&self.state(), &record)?;
        Ok(remove_obsolete(self, journal, &obsolete, Default::default(), &structure)?.0)
    }
}

/// One pass over the trees of a repository.
struct Pass<'a> {
    repository: &'a Repository,
    options: &'a CollectOptions<'a>,
    done: Mutex<Pending>,
    next: AtomicUsize,
}

#[derive(Default)]
struct Pending {
    merged: Vec<Merged>,
    waiting: Vec<Waiting>,
    failed: Vec<Failed>,
}

impl Pass<'_> {
    fn run(self, survey: &Survey, tried_before: &[PathBuf]) -> Pending {
        let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = self.options.threads.map_or_else(cores, NonZeroUsize::get);
        let at_once = threads.min(survey.trees.len());
        let each = NonZeroUsize::new(threads.checked_div(at_once).unwrap_or(1));
        std::thread::scope(|scope| {
            for _ in 0..at_once {
                scope.spawn(|| {
                    while let Some(tree) = survey.trees.get(self.next.fetch_add(1, Ordering::Relaxed)) {
                        for run in tree.iter().filter(|run| !tried_before.contains(&run.node)) {
                            if self.options.abort.is_aborted() {
                                return;
                            }
                            self.merge(run, each);
                        }
                    }
                });
            }
        });
        self.done.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn merge(&self, run: &PlannedRun, threads: Option<NonZeroUsize>) {
        let result = self.coalesce(run, threads);
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        let node = run.node.clone();
        match result {
            Ok(outcome) => {
                if let Some(user) = &outcome.waits_for {
                    let reason = format!("merged, but {} is in use", user.display());
                    done.waiting.push(Waiting { path: node, reason });
                }
                done.merged.push(Merged { run: run.clone(), outcome });
            }
            Err(error) if error.passes() || self.options.abort.is_aborted() => {
                tracing::info!(node = %node.display(), reason = %with_causes(&error), "left for later");
                done.waiting.push(Waiting { path: node, reason: with_causes(&error) });
            }
            Err(error) => {
                tracing::error!(node = %node.display(), error = %with_causes(&error), "cannot be merged");
                if let Some(board) = self.options.board {
                    board.failed(&error);
                }
                done.failed.push(Failed { node, error });
            }
        }
    }

    fn coalesce(&self, run: &PlannedRun, threads: Option<NonZeroUsize>) -> Result<Outcome, CoalesceError> {
        let CollectOptions { budget, abort, method, detect_zeroes, board, .. } = self.options;
        let prepared = Coalesce::prepare_until(self.repository, &run.request(), abort)?;
        let handle = board.map(|board| {
            board.begin(RunTotals {
                target: prepared.target().into(),
                node: run.node.clone(),
                nodes: run.nodes,
                direction: run.direction,
                bytes: prepared.plan().data,
                resumed_at: prepared.resumed_data(),
            })
        });
        let told = AtomicU64::new(0);
        let progress = |moved: ByteCount| {
            if let Some(handle) = &handle {
                let before = told.fetch_max(moved.0, Ordering::Relaxed);
                handle.add(ByteCount(moved.0.saturating_sub(before)));
            }
        };
        tracing::info!(node = %run.node.display(), into = %run.into.display(), bytes = prepared.plan().data.0, "merging");
        let outcome = prepared.execute(&MergeOptions {
            threads,
            progress: &progress,
            merged: &|| handle.iter().for_each(|handle| handle.set_phase(Phase::Finishing)),
            budget,
            abort,
            method: *method,
            detect_zeroes: *detect_zeroes,
            checkpoint_every: None,
        })?;
        tracing::info!(target = %outcome.target.display(), bytes = outcome.moved.data.0, deleted = outcome.deleted.len(), "merged");
        if let Some(handle) = handle {
            handle.merged();
        }
        Ok(outcome)
    }
}

impl CoalesceError {
    /// Tells whether trying again later may help without anybody doing anything about it.
    fn passes(&self) -> bool {
        let stopped = matches!(self, Self::Merge(MergeError::Aborted(_) | MergeError::Yielded));
        let no_space = matches!(self, Self::NoSpace { .. }) || self.is_out_of_space();
        stopped
            || no_space
            || self.is_busy()
            || matches!(
                self,
                Self::Changed { .. } | Self::OtherChild { .. } | Self::Unfinished { .. } | Self::SecondName { .. }
            )
    }
}
