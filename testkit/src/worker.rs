//! What tests ask of the worker, without limits and without a word in between.

use std::num::NonZeroUsize;
use std::path::Path;

use coalesce_worker::{
    Abort, Budget, Coalesce, CoalesceError, CollectError, CollectOptions, Collected, CopyMethod, Limits, MergeOptions,
    Outcome, Repository, Request, SnapshotError, Snapshotted,
};
use vhd_core::{ByteCount, ChainOptions, folder_of};

/// Opens the repository that a file really lies in, which recovers it.
///
/// # Panics
/// If it cannot be opened.
pub fn repository_of(file: &Path, options: &ChainOptions) -> Repository {
    let file = file.canonicalize().expect("the file is there");
    Repository::open(folder_of(&file), options.clone()).expect("the repository opens").0
}

/// Runs `work` with options for a merge on two threads.
pub fn with_options<T>(progress: &(dyn Fn(ByteCount) + Sync), work: impl FnOnce(&MergeOptions<'_>) -> T) -> T {
    let (budget, abort) = (Budget::new(Limits::default()), Abort::new());
    work(&MergeOptions {
        threads: NonZeroUsize::new(2),
        progress,
        merged: &|| (),
        budget: &budget,
        abort: &abort,
        method: CopyMethod::Auto,
        detect_zeroes: false,
        checkpoint_every: None,
    })
}

/// Collects a repository on as many threads as there are cores.
///
/// # Panics
/// If it cannot be opened or collected.
pub fn collect(folder: &Path) -> Collected {
    collect_until(folder, &Abort::new()).expect("the repository can be collected")
}

/// As [`collect`], but no longer than until the abort.
///
/// # Errors
/// Those of the collection, the abort among them.
///
/// # Panics
/// If the repository cannot be opened.
pub fn collect_until(folder: &Path, abort: &Abort) -> Result<Collected, CollectError> {
    let (repository, _) = Repository::open(folder, ChainOptions::default()).expect("the repository opens");
    repository.collect(&CollectOptions {
        threads: None,
        budget: &Budget::default(),
        abort,
        method: CopyMethod::Auto,
        detect_zeroes: false,
        board: None,
    })
}

/// Merges on one thread, with checkpoints as often as there can be; stops at the abort, and at the latest once all has moved,
/// before anything is relinked.
///
/// # Errors
/// Those of the merge, the abort among them.
pub fn interrupt(
    prepared: Coalesce<'_>,
    progress: &(dyn Fn(ByteCount) + Sync),
    abort: &Abort,
) -> Result<Outcome, CoalesceError> {
    prepared.execute(&MergeOptions {
        threads: NonZeroUsize::new(1),
        progress,
        merged: &|| abort.abort(),
        budget: &Budget::default(),
        abort,
        method: CopyMethod::ReadWrite,
        detect_zeroes: false,
        checkpoint_every: Some(ByteCount(4096)),
    })
}

/// Merges what has been prepared.
///
/// # Errors
/// Those of the merge.
pub fn execute(prepared: Coalesce<'_>) -> Result<Outcome, CoalesceError> {
    with_options(&|_| {}, |options| prepared.execute(options))
}

/// Opens the repository of the request's node, and merges.
///
/// # Errors
/// Those of the merge.
pub fn coalesce(request: &Request, options: &ChainOptions) -> Result<Outcome, CoalesceError> {
    execute(Coalesce::prepare(&repository_of(&request.node, options), request)?)
}

/// Opens the repository that a volume lies in, and takes a snapshot of it.
///
/// # Errors
/// Those of the snapshot.
pub fn snapshot(volume: &Path, snapshot: &Path) -> Result<Snapshotted, SnapshotError> {
    repository_of(volume, &ChainOptions::default()).snapshot(volume, snapshot)
}
