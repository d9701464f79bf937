//! What is done when a repository is opened: every journal without a living process is finished or taken back.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vhd_core::{
    ByteCount, Container, FileError, HEADER_SIZE, Image, Lock, MergeMark, OpenError, ReadOnly, StorageError,
    sync_folder,
};

use super::{Repository, StructureLock};
use crate::abort::Abort;
use crate::coalesce::{Request, reopen_target};
use crate::compose::ComposeError;
use crate::delete::DeleteError;
use crate::error::CoalesceError;
use crate::finish::{Finish, remove_obsolete};
use crate::in_use::{lock_source, open_unused};
use crate::journal::Journal;
use crate::known_parents::PARENTS;
use crate::marks::{Left, holds_everything};
use crate::record::{Direction, FileId, HeaderRecord, MergeIntent, Record};
use crate::revert::RevertError;
use crate::run::{Run, is_child_of};
use crate::snapshot::SnapshotError;
use crate::target::Target;

/// What opening a repository found to be done.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Operations that were finished or taken back.
    pub finished: u64,
    /// Merges that were interrupted while data moved; a merge of the same run goes on where they stopped.
    pub interrupted: Vec<PathBuf>,
    /// What could not be finished now.
    pub waiting: Vec<Unfinished>,
}

/// An operation that could not be finished. It hinders nobody but the images it is about.
#[derive(Debug)]
pub struct Unfinished {
    /// The image.
    pub path: PathBuf,
    /// Why.
    pub reason: WaitReason,
}

/// Why an operation waits.
#[derive(Debug, thiserror::Error)]
pub enum WaitReason {
    /// Somebody uses the image.
    #[error("it is in use")]
    InUse,
    /// Whoever wrote the journal did not do that here. Nothing that it says is done.
    #[error("not in the repository, nor where parents may be, but {} names it; remove that if nobody needs it", journal.display())]
    Outside {
        /// The journal.
        journal: PathBuf,
    },
    /// A snapshot that was interrupted cannot be finished.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// Nor a deletion.
    #[error(transparent)]
    Delete(#[from] DeleteError),
    /// Nor a volume that was to get the content of another.
    #[error(transparent)]
    Revert(#[from] RevertError),
    /// Nor the linking of an image to a parent.
    #[error(transparent)]
    Compose(#[from] ComposeError),
    /// Nor a merge.
    #[error(transparent)]
    Merge(#[from] CoalesceError),
}

/// What came of one journal.
enum Outcome {
    Finished,
    Interrupted(PathBuf),
    Waits(Unfinished),
}

impl Outcome {
    fn in_use(path: PathBuf) -> Self {
        Self::Waits(Unfinished { path, reason: WaitReason::InUse })
    }
}

impl Repository {
    /// Finishes or takes back what processes that died have left half done.
    ///
    /// # Errors
    /// A state folder or a journal that cannot be read or written.
    ///
    /// # Crash safety
    /// Can be interrupted and done again; a second time it changes nothing.
    pub fn recover(&self) -> Result<Recovered, FileError> {
        self.recover_until(&Abort::new())
    }

    /// As [`recover`](Self::recover), but waits for others no longer than until the abort.
    pub(crate) fn recover_until(&self, abort: &Abort) -> Result<Recovered, FileError> {
        let mut recovered = Recovered::default();
        let state = self.state();
        if !holds_more_than_the_lock(&state)? {
            return Ok(recovered);
        }
        let structure = self.lock_structure_until(abort)?;
        let mut open = Vec::new();
        for path in Journal::list(&state)? {
            let Some((journal, records)) = Journal::take_over(&path)? else { continue };
            match records.iter().flat_map(Record::paths).find(|path| !self.is_ours(path)) {
                None => open.push((journal, records)),
                Some(outside) => {
                    let reason = WaitReason::Outside { journal: path.clone() };
                    recovered.waiting.push(Unfinished { path: self.absolute(outside), reason });
                }
            }
        }
        // Merges look at the tree, and so come last.
        open.sort_by_key(|(_, records)| matches!(records.first(), Some(Record::Merge(_))));
        for (journal, records) in open {
            abort
                .check()
                .map_err(|aborted| FileError::when(&state, "recover the repository")(io::Error::other(aborted)))?;
            match self.recover_one(journal, &records, &structure)? {
                Outcome::Finished => recovered.finished += 1,
                Outcome::Interrupted(path) => recovered.interrupted.push(path),
                Outcome::Waits(waiting) => recovered.waiting.push(waiting),
            }
        }
        self.sweep(&structure)?;
        Ok(recovered)
    }

    fn recover_one(
        &self,
        journal: Journal,
        records: &[Record],
        structure: &StructureLock,
    ) -> Result<Outcome, FileError> {
        let (path, done): (&Path, Result<(), WaitReason>) = match records.first() {
            Some(Record::Linked { obsolete, .. }) => {
                let (path, readers) = (obsolete.first().map_or(Path::new(""), |file| &file.path), BTreeSet::new());
                // One that has been brought back since is somebody's volume.
                let hidden: Vec<FileId> =
                    obsolete.iter().filter(|file| is_hidden(&self.absolute(&file.path))).cloned().collect();
                let removed = remove_obsolete(self, journal, &hidden, readers, structure);
                return Ok(match removed {
                    Ok(_) => Outcome::Finished,
                    Err(error) => Outcome::Waits(Unfinished { path: self.absolute(path), reason: error.into() }),
                });
            }
            Some(Record::Snapshot(intent)) => {
                (&intent.volume, self.finish_snapshot(intent, structure).map_err(Into::into))
            }
            Some(Record::Resize { file, length, shrinks }) => {
                let mended = mend(&self.absolute(&file.path), file, Some(ByteCount(*length)), *shrinks);
                (&file.path, mended.map_err(Into::into))
            }
            Some(Record::Compact(file)) => {
                (&file.path, mend(&self.absolute(&file.path), file, Some(ByteCount(0)), false).map_err(Into::into))
            }
            Some(Record::Delete(id)) => (&id.path, self.finish_delete(id, structure).map_err(Into::into)),
            Some(Record::Revert { volume, displaced, prepared }) => {
                (volume, self.finish_revert(volume, displaced, prepared, structure).map_err(Into::into))
            }
            Some(Record::Compose { child, becomes, parent }) => {
                match self.finish_compose(child, *becomes, parent, headers(records).last(), structure) {
                    Ok(Some(image)) => return Ok(Outcome::in_use(image)),
                    done => (&child.path, done.map(drop).map_err(Into::into)),
                }
            }
            Some(Record::Merge(intent)) => {
                let node = self.absolute(&intent.node().path);
                let recovered = self.recover_merge(journal, intent, records, structure);
                return Ok(
                    recovered.unwrap_or_else(|error| Outcome::Waits(Unfinished { path: node, reason: error.into() }))
                );
            }
            _ => (Path::new(""), Ok(())),
        };
        match done {
            Ok(()) => journal.remove().map(|()| Outcome::Finished),
            Err(reason) => Ok(Outcome::Waits(Unfinished { path: self.absolute(path), reason })),
        }
    }

    fn recover_merge(
        &self,
        journal: Journal,
        intent: &MergeIntent,
        records: &[Record],
        structure: &StructureLock,
    ) -> Result<Outcome, CoalesceError> {
        if let Some((obsolete, readers)) = linked(records) {
            let readers = readers.iter().map(|reader| self.absolute(reader)).collect();
            let (_, waits_for) = remove_obsolete(self, journal, obsolete, readers, structure)?;
            return Ok(waits_for.map_or(Outcome::Finished, Outcome::in_use));
        }
        let target_path = self.absolute(&intent.target.path);
        if !records.contains(&Record::Merged) {
            for source in &intent.sources {
                mend(&self.absolute(&source.path), source, None, false)?;
            }
            mend(&target_path, &intent.target, Some(ByteCount(intent.target_length)), false)?;
            if self.has_all(intent)? {
                return Ok(Outcome::Interrupted(self.absolute(&intent.node().path)));
            }
            // The run is no longer there.
            journal.remove()?;
            return Ok(Outcome::Finished);
        }
        if let Some(header) = headers(records).last()
            && let Some(image) = self.mend_header::<CoalesceError>(header)?
        {
            return Ok(Outcome::in_use(image));
        }
        let node = self.absolute(&intent.node().path);
        if intent.direction == Direction::Down && !target_path.exists() && intent.target.is_at(&node)? {
            // The target has taken the node's name.
            self.keep_parents_of([&*node]);
            remove_obsolete(self, journal, &intent.sources[1..], BTreeSet::new(), structure)?;
            return Ok(Outcome::Finished);
        }
        if !self.has_all(intent)? {
            journal.remove()?;
            return Ok(Outcome::Finished);
        }
        let relinked = headers(records).map(|header| self.absolute(&header.image)).collect();
        self.finish_merge(journal, intent, records, relinked, structure)
    }

    /// Tells whether the images of a run are all where they were.
    fn has_all(&self, intent: &MergeIntent) -> Result<bool, OpenError> {
        for file in intent.files() {
            if !file.is_at(&self.absolute(&file.path))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Does what follows a merge, with all images of the run locked.
    fn finish_merge(
        &self,
        journal: Journal,
        intent: &MergeIntent,
        records: &[Record],
        relinked: BTreeSet<PathBuf>,
        structure: &StructureLock,
    ) -> Result<Outcome, CoalesceError> {
        let target_path = self.absolute(&intent.target.path);
        let mut target = match reopen_target(&target_path, intent.target.unique_id) {
            Err(error) if error.is_busy() => return Ok(Outcome::in_use(target_path)),
            target => target?,
        };
        if let Target::Vhd(image) = &mut target {
            // The footers may be from before and after a step.
            image.trim_tail()?;
        }
        let mut locks = Vec::new();
        for source in &intent.sources {
            match lock_source(&self.absolute(&source.path)) {
                Err(error) if error.source.kind() == io::ErrorKind::ResourceBusy => {
                    return Ok(Outcome::in_use(error.path));
                }
                lock => locks.push(Arc::new(lock?)),
            }
        }
        let holds_all = match intent.direction {
            Direction::Up => self.is_all_merged(intent, &target)?,
            Direction::Down => self.target_holds_all(intent, &journal, records)?,
        };
        if !holds_all {
            // The target was restored or replaced since, or what was merged of a source is not what that holds now.
            if let Some(child) = self.first_child_of_target(intent, &relinked)? {
                return Err(CoalesceError::NotMerged { target: target_path, child });
            }
            target.forget_merge()?;
            if intent.direction == Direction::Down
                && let Target::Vhd(image) = &mut target
            {
                image.set_hidden(intent.target_hidden)?;
            }
            target.close()?;
            journal.remove()?;
            return Ok(Outcome::Finished);
        }
        let finish = Finish { repository: self, intent, relinked, target, locks };
        let waits_for = finish.run(journal, structure)?.waits_for;
        Ok(waits_for.map_or(Outcome::Finished, Outcome::in_use))
    }

    /// Tells whether a target that was merged into still holds what the sources hold now.
    fn target_holds_all(
        &self,
        intent: &MergeIntent,
        journal: &Journal,
        records: &[Record],
    ) -> Result<bool, CoalesceError> {
        let (node, into) = (self.absolute(&intent.node().path), self.absolute(&intent.target.path));
        let request = Request { node: node.clone(), into: Some(into), direction: intent.direction, keep: intent.keep };
        let run = match Run::open(self.options(), &node, &request) {
            Err(CoalesceError::NotAnAncestor { .. }) => return Ok(false),
            run => run?,
        };
        let left = Left::of(self, intent, journal, records, run.target())?;
        if left == Left::Merged(MergeMark::ALL) {
            return Ok(true);
        }
        // A merge that was quickly done has left no mark.
        let abort = Abort::new();
        holds_everything(&run, &run.plan(&abort)?, &abort)
    }

    /// Finds an image that has been linked to the target already, and still is: it was not restored.
    fn first_child_of_target(
        &self,
        intent: &MergeIntent,
        relinked: &BTreeSet<PathBuf>,
    ) -> Result<Option<PathBuf>, CoalesceError> {
        let target = self.absolute(&intent.target.path);
        for path in relinked.iter().filter(|path| intent.direction == Direction::Down && path.exists()) {
            let child: Image<ReadOnly> = Image::open(path, Lock::None)?;
            if is_child_of(&child, &target, intent.target.unique_id)? {
                return Ok(Some(path.clone()));
            }
        }
        Ok(None)
    }

    /// Tells whether a node that was merged into can do without the sources, as its journal says: it may have grown, or
    /// been restored, and what lies beneath may be another since.
    fn is_all_merged(&self, intent: &MergeIntent, target: &Target) -> Result<bool, CoalesceError> {
        let node = self.absolute(&intent.node().path);
        let Target::Vhd(image) = target else { return Err(CoalesceError::FlatSource { path: node }) };
        let (newest, oldest) = (&intent.sources[0], &intent.sources[intent.sources.len() - 1]);
        let parent = image.header().filter(|_| image.is_differencing()).map(vhd_core::Header::parent_unique_id);
        if parent != Some(newest.unique_id) {
            // It stands already.
            return Ok(true);
        }
        let into = Some(self.absolute(&oldest.path));
        let request = Request { node: node.clone(), into, direction: Direction::Up, keep: intent.keep };
        let run = match Run::open(self.options(), &node, &request) {
            Err(CoalesceError::NotAnAncestor { .. }) => return Ok(false),
            run => run?,
        };
        let now = run.intent(self, intent.keep, intent.takes_name)?;
        Ok(intent.is_resumed_by(&now) && run.plan(&Abort::new())?.is_empty())
    }

    /// Finishes the change of a header; gives the image where somebody uses it.
    pub(crate) fn mend_header<E>(&self, header: &HeaderRecord) -> Result<Option<PathBuf>, E>
    where
        E: From<FileError> + From<StorageError>,
    {
        let path = self.absolute(&header.image);
        let storage = match open_unused(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => return Ok(Some(path)),
            storage => storage.map_err(FileError::when(&path, "open it"))?,
        };
        if let Some(change) = header.change() {
            let container = Container::new(path, Arc::new(storage));
            let mut found = [0; HEADER_SIZE.0 as usize];
            container.read_at(&mut found, change.at)?;
            // One that was not begun is left to whoever looks whether it is still right.
            if found != change.old {
                change.finish(&container)?;
            }
        }
        Ok(None)
    }

    /// Removes what no journal speaks of: notes to merges that have ended, and images that never got their name.
    fn sweep(&self, _: &StructureLock) -> Result<(), FileError> {
        let state = self.state();
        let mut prepared = BTreeSet::new();
        for path in Journal::list(&state)? {
            for record in Journal::peek(&path)? {
                if let Record::Snapshot(intent) = record {
                    prepared
                        .extend([intent.prepared_volume, intent.prepared_snapshot].map(|path| self.absolute(&path)));
                }
            }
        }
        let entries = fs::read_dir(&state).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut removed = false;
        for entry in entries.map_err(FileError::when(&state, "list the folder"))? {
            let path = entry.path();
            let is_left_over = match path.extension().and_then(OsStr::to_str) {
                Some("vhd" | "new") => !prepared.contains(&path),
                Some("yield") => !path.with_extension("journal").exists(),
                _ => false,
            };
            if is_left_over {
                fs::remove_file(&path).map_err(FileError::when(&path, "remove it"))?;
                removed = true;
            }
        }
        if removed { sync_folder(&state) } else { Ok(()) }
    }
}

fn holds_more_than_the_lock(state: &Path) -> Result<bool, FileError> {
    match fs::read_dir(state) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FileError::when(state, "list the folder")(error)),
        Ok(entries) => Ok(entries.flatten().any(|entry| entry.file_name() != "lock" && entry.file_name() != PARENTS)),
    }
}

fn is_hidden(path: &Path) -> bool {
    Image::<ReadOnly>::open(path, Lock::None).is_ok_and(|image| image.footer().hidden())
}

/// The files to be deleted and the readers still to be waited for, once all images have been relinked.
fn linked(records: &[Record]) -> Option<(&[FileId], Vec<&PathBuf>)> {
    let (obsolete, readers) = records.iter().find_map(|record| match record {
        Record::Linked { obsolete, readers } => Some((obsolete, readers)),
        _ => None,
    })?;
    let released = |path: &PathBuf| records.iter().any(|r| matches!(r, Record::Released { reader } if reader == path));
    Some((obsolete, readers.iter().filter(|reader| !released(reader)).collect()))
}

fn headers(records: &[Record]) -> impl DoubleEndedIterator<Item = &HeaderRecord> {
    records.iter().filter_map(|record| match record {
        Record::Header(header) => Some(header),
        _ => None,
    })
}

/// Mends what an interrupted merge, resize or compaction may leave unsightly in an image that nobody uses: a batmap whose two
/// parts do not go together; in one whose file was this long before it changed, also space that nothing refers to, and no
/// footer at the end; in one that shrinks, also what lies beyond the end of its disk.
fn mend(path: &Path, file: &FileId, changed_from: Option<ByteCount>, shrinks: bool) -> Result<(), CoalesceError> {
    if file.unique_id.is_nil() {
        return Ok(());
    }
    let storage = match open_unused(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ResourceBusy) => return Ok(()),
        storage => storage.map_err(FileError::when(path, "open it"))?,
    };
    let container = Container::new(path, Arc::new(storage));
    let image = match (Image::writable_from_container(container.clone()), changed_from) {
        // A fixed disk that was to grow, and has no footer where its file now ends.
        (Err(OpenError::Footer { .. }), Some(length)) => {
            vhd_core::cut_to_footer(&container, length, file.unique_id)?;
            Image::writable_from_container(container)
        }
        (image, _) => image,
    };
    let mut image = image?;
    if image.footer().unique_id() != file.unique_id {
        return Ok(());
    }
    image.mend_batmap()?;
    if shrinks {
        image.drop_leftovers()?;
    }
    if changed_from.is_some() {
        image.trim_tail()?;
        image.lay_out()?;
    }
    Ok(())
}
