//! One coalesce, from the request to the deleted files.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;
use vhd_core::{ByteCount, FileError, FileStorage, Layer, Sector, real_path};

use crate::abort::Abort;
use crate::error::CoalesceError;
use crate::finish::{Finish, Finished};
use crate::journal::Journal;
use crate::marks::{Left, Marks};
use crate::merge::{Merge, MergeError, MergeOptions, Moved};
use crate::plan::{Plan, Unit};
use crate::record::{Direction, MergeIntent, Record};
use crate::repository::{Repository, StructureLock};
use crate::run::{LockedRun, Neighbours, Run, open_child};
use crate::sources::Sources;
use crate::steps::{self, Steps};
use crate::target::Target;
use crate::yielding;

/// What is to be merged.
#[derive(Clone, Debug)]
pub struct Request {
    /// The newest image of the run.
    pub node: PathBuf,
    /// The lowest image of the run; the node's parent where it is not given.
    pub into: Option<PathBuf>,
    /// Which of the two all is merged into.
    pub direction: Direction,
    /// Merge only: relink, rename and delete nothing.
    pub keep: bool,
}

/// What becomes of the files once all is merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing.
    Keep,
    /// These children of the node become children of the target.
    Relink(Vec<PathBuf>),
    /// The node has no children: the target takes its place.
    TakeName,
    /// The node, which is the target, becomes a child of what lies beneath the run, or needs nobody any more.
    Stand,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The image that all was merged into, by the name it has now.
    pub target: PathBuf,
    /// What was moved.
    pub moved: Moved,
    /// Data that a merge of the same run had moved before it was interrupted.
    pub resumed: ByteCount,
    /// Images that have another parent now.
    pub relinked: Vec<PathBuf>,
    /// Files that are gone.
    pub deleted: Vec<PathBuf>,
    /// An image that somebody uses: the rest is done when he has let go, by whoever opens the repository then.
    pub waits_for: Option<PathBuf>,
}

/// A run that is open, locked, checked and planned.
#[derive(Debug)]
pub struct Coalesce<'a> {
    repository: &'a Repository,
    run: Run,
    /// Nobody writes to the images, or makes children of them, as long as these are held.
    locked: LockedRun,
    plan: Plan,
    ending: Ending,
    intent: MergeIntent,
    /// The journal of the same merge by a process that died.
    journal: Option<Journal>,
    /// Everything before this sector has been merged already.
    from: Sector,
    /// Interrupted merges of other runs that have images in common with this one: what they did is not to be relied on.
    superseded: Vec<Journal>,
}

/// The same merge, by a process that died.
struct Interrupted {
    journal: Journal,
    left: Left,
}

impl<'a> Coalesce<'a> {
    /// Opens and locks the run, checks that it can be merged, and plans the merge. Changes nothing.
    ///
    /// # Errors
    /// What [`CoalesceError`] lists.
    pub fn prepare(repository: &'a Repository, request: &Request) -> Result<Self, CoalesceError> {
        Self::prepare_until(repository, request, &Abort::new())
    }

    /// As [`prepare`](Self::prepare), but no longer than until the abort.
    ///
    /// # Errors
    /// As [`prepare`](Self::prepare), and the abort.
    pub fn prepare_until(repository: &'a Repository, request: &Request, abort: &Abort) -> Result<Self, CoalesceError> {
        let node = real_path(&request.node).map_err(FileError::when(&request.node, "open it"))?;
        let structure = repository.lock_structure_until(abort)?;
        let found = Run::open(repository.options(), &node, request)?.names();
        let locked = found.lock()?;
        // What was found before the locks may have been replaced since.
        let run = Run::open(repository.options(), &node, request)?;
        if run.names() != found {
            return Err(CoalesceError::Changed { node });
        }
        let neighbours = Neighbours::of(repository, run.layers().iter().map(Layer::path), abort)?;
        neighbours.check_only_children(&identities(&run), &BTreeSet::new())?;
        let ending = choose_ending(&run, &neighbours, request)?;
        let relinked: &[PathBuf] = if let Ending::Relink(children) = &ending { children } else { &[] };
        for path in run.layers().iter().map(Layer::path).chain(relinked.iter().map(PathBuf::as_path)) {
            check_has_one_name(path)?;
        }
        let intent = run.intent(repository, request.keep, ending == Ending::TakeName)?;
        let (interrupted, superseded) = find_interrupted(repository, &intent, run.target(), &structure)?;
        drop(structure);

        run.check_blocks(abort)?;
        let plan = run.plan(abort)?;
        let (from, journal) = match interrupted {
            Some(Interrupted { journal, left }) => (left.merged_before(&run, &plan, abort)?, Some(journal)),
            None => (Sector(0), None),
        };
        Ok(Self { repository, run, locked, plan, ending, intent, journal, from, superseded })
    }

    /// What will move, if nothing has been moved before.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Everything before this sector was moved by a merge that was interrupted.
    pub fn resumes_at(&self) -> Option<Sector> {
        self.journal.as_ref().map(|_| self.from)
    }

    /// The data that such a merge has moved.
    pub fn resumed_data(&self) -> ByteCount {
        let units = self.plan.units().iter();
        let moved = units.take_while(|unit| self.resumes_at().is_some_and(|sector| unit.sectors.end <= sector));
        moved.map(|unit| unit.data).fold(ByteCount(0), |sum, data| sum + data)
    }

    /// The images that are merged, newest first.
    pub fn sources(&self) -> &[Layer] {
        self.run.sources()
    }

    /// The image that they are merged into.
    pub fn target(&self) -> &Path {
        self.locked.target.container().path()
    }

    /// What becomes of the files afterwards.
    pub fn ending(&self) -> &Ending {
        &self.ending
    }

    /// Space that is free where the target lies; `None` for a target that cannot grow (a device).
    ///
    /// # Errors
    /// What the system answers.
    pub fn free_space(&self) -> Result<Option<ByteCount>, CoalesceError> {
        if self.locked.target.container().has_fixed_size() {
            return Ok(None);
        }
        Ok(Some(free_space(self.target())?))
    }

    /// Merges, relinks or renames, and deletes.
    ///
    /// # Errors
    /// What [`CoalesceError`] lists. Every leaf then reads as before, and the same request goes on from there.
    ///
    /// # Crash safety
    /// Every step is journaled before it is taken, and each is durable before the next: the target grows; the merge, with
    /// checkpoints; then what [`Ending`] says; then the merged files are deleted, newest first, once nobody can have them
    /// open. Whoever opens the repository after a crash does what is left to do after the merge, and a merge of the same
    /// run goes on at the last checkpoint.
    pub fn execute(self, options: &MergeOptions<'_>) -> Result<Outcome, CoalesceError> {
        let resumed = self.resumed_data();
        let Self { repository, run, locked, plan, intent, journal, from, superseded, .. } = self;
        let sources = Sources::of(repository, &intent)?;
        let LockedRun { mut target, sources: locks } = locked;
        let units = &plan.units()[plan.units().partition_point(|unit| unit.sectors.end <= from)..];
        let steps = if target.container().has_fixed_size() {
            None
        } else {
            choose_steps(repository, &run, units, &locks, intent.keep, options.abort)?
        };
        let structure = repository.lock_structure_until(options.abort)?;
        for journal in superseded {
            journal.remove()?;
        }
        let mut journal = match journal {
            Some(journal) => journal,
            None => Journal::begin(&repository.state(), &Record::Merge(intent.clone()))?,
        };
        drop(structure);
        let mut work = Moving { run: &run, plan: &plan, units, from, steps, options, held: &locks };
        let marks = Marks::new(repository, &intent, sources);
        let moved = match work.run(&mut target, &mut journal, marks) {
            Ok(moved) => moved,
            Err(error) => {
                // What has been written does no harm, and the target gets its footer back. The first error is the one to tell.
                match error {
                    CoalesceError::Merge(MergeError::Aborted(_) | MergeError::Yielded) => drop(target.abandon()),
                    _ => drop(target.close()),
                }
                return Err(error);
            }
        };
        journal.append(&Record::Merged)?;
        (options.merged)();
        let structure = repository.lock_structure_until(options.abort)?;
        let finish = Finish { repository, intent: &intent, relinked: BTreeSet::new(), target, locks };
        let Finished { target, relinked, deleted, waits_for } = finish.run(journal, &structure)?;
        Ok(Outcome { target, moved, resumed, relinked, deleted, waits_for })
    }
}

/// The part of a merge in which data moves.
struct Moving<'a> {
    run: &'a Run,
    plan: &'a Plan,
    units: &'a [Unit],
    /// Where they begin, and what a merge before has come to.
    from: Sector,
    /// Where not everything fits.
    steps: Option<Steps>,
    options: &'a MergeOptions<'a>,
    /// The sources, locked.
    held: &'a [Arc<FileStorage>],
}

impl Moving<'_> {
    fn run(
        &mut self,
        target: &mut Target,
        journal: &mut Journal,
        mut marks: Marks<'_>,
    ) -> Result<Moved, CoalesceError> {
        let yield_note = yielding::note_for(journal.path());
        let _ = fs::remove_file(&yield_note);
        if self.run.direction() == Direction::Down {
            target.grow(self.run.node().size(), self.run.size_beneath())?;
        }
        if let Some(steps) = &self.steps {
            let images = steps.held().iter().map(|path| marks.repository.relative(path)).collect();
            journal.append(&Record::Holds { images })?;
        }
        if self.from > Sector(0) {
            marks.checkpoint(target, journal, self.from)?;
        }
        let mut moved = Moved::default();
        let mut left = self.units;
        loop {
            let count = match &self.steps {
                Some(_) => steps::fitting(left, target.container().path())?,
                None => left.len(),
            };
            let (now, later) = left.split_at(count);
            let merge = Merge {
                plan: self.plan,
                units: now,
                sources: self.run.sources(),
                target,
                before: self.run.target(),
                options: self.options,
                moved_before: moved.data,
                yield_note: Some(&yield_note),
                held: self.held,
            };
            let step = merge.run(&mut |sector| marks.checkpoint(target, journal, sector))?;
            moved.data = step.data;
            moved.by += step.by;
            left = later;
            let (Some(steps), Some(next)) = (&mut self.steps, later.first()) else { break };
            marks.checkpoint(target, journal, next.sectors.start)?;
            steps.release(next.sectors.start)?;
        }
        marks.finish(target, journal)?;
        Ok(moved)
    }
}

/// The images of a run and who they are, newest first.
fn identities(run: &Run) -> Vec<(PathBuf, Uuid)> {
    let id = |layer: &Layer| layer.as_vhd().map_or(Uuid::nil(), |image| image.footer().unique_id());
    run.layers().iter().map(|layer| (layer.path().to_path_buf(), id(layer))).collect()
}

/// The space that is free in the file system of `path`.
pub(crate) fn free_space(path: &Path) -> Result<ByteCount, FileError> {
    let stat = rustix::fs::statvfs(path);
    let stat = stat.map_err(|errno| FileError::when(path, "tell the free space")(errno.into()))?;
    Ok(ByteCount(stat.f_bavail * stat.f_frsize))
}

/// Finds whether everything fits into the free space of the target's file system; where it does not, makes ready to merge in steps.
fn choose_steps(
    repository: &Repository,
    run: &Run,
    units: &[Unit],
    locks: &[Arc<FileStorage>],
    keep: bool,
    abort: &Abort,
) -> Result<Option<Steps>, CoalesceError> {
    let path = run.target().path();
    let (needed, free) = (steps::space_needed(units), free_space(path)?);
    if needed <= free {
        return Ok(None);
    }
    steps::fitting(units, path)?;
    // What is to be kept is not to lose blocks.
    let steps = if keep { None } else { Steps::begin(repository, run, run.direction(), locks, abort)? };
    steps.map(Some).ok_or_else(|| CoalesceError::NoSpace { path: path.into(), needed, free })
}

/// Looks for a merge of just this run that was interrupted, and for those of other runs with images of it.
fn find_interrupted(
    repository: &Repository,
    intent: &MergeIntent,
    target: &Layer,
    _: &StructureLock,
) -> Result<(Option<Interrupted>, Vec<Journal>), CoalesceError> {
    let (mut same, mut superseded) = (None, Vec::new());
    for path in Journal::list(&repository.state())? {
        let Some((journal, records)) = Journal::take_over(&path)? else { continue };
        let Some(Record::Merge(other)) = records.first() else { continue };
        if records.iter().any(|record| matches!(record, Record::Linked { .. })) {
            // It only waits for readers to let go of what is to be deleted, and is to be remembered until they have.
            continue;
        }
        if other.is_resumed_by(intent) && same.is_none() {
            let left = Left::of(repository, intent, &journal, &records, target)?;
            same = Some(Interrupted { journal, left });
        } else if other.files().any(|file| intent.files().any(|ours| ours.path == file.path)) {
            if records.contains(&Record::Merged) {
                // A header may be torn and the target may be visible: its journal is what puts that right.
                return Err(CoalesceError::Unfinished { node: repository.absolute(&other.node().path) });
            }
            superseded.push(journal);
        }
    }
    Ok((same, superseded))
}

impl MergeIntent {
    /// Tells whether this merge is of the same run as `now`.
    pub(crate) fn is_resumed_by(&self, now: &Self) -> bool {
        (self.direction, self.keep, &self.target, &self.sources, &self.beneath, self.node_is_volume)
            == (now.direction, now.keep, &now.target, &now.sources, &now.beneath, now.node_is_volume)
    }
}

/// Finds what becomes of the files; refuses what cannot be done.
fn choose_ending(run: &Run, neighbours: &Neighbours, request: &Request) -> Result<Ending, CoalesceError> {
    if request.keep && request.direction == Direction::Down {
        return Ok(Ending::Keep);
    }
    if let Some(device) = run.layers().iter().find(|layer| layer.container().has_fixed_size()) {
        return Err(CoalesceError::Device { path: device.path().into() });
    }
    let (node, node_id) = (run.node().path(), identities(run)[0].1);
    if request.direction == Direction::Up {
        let has_blocks = |layer: &Layer| layer.as_vhd().is_some_and(|image| image.header().is_some());
        if let Some(flat) = run.sources().iter().find(|layer| !has_blocks(layer)) {
            return Err(CoalesceError::FlatSource { path: flat.path().into() });
        }
        return if request.keep { Err(CoalesceError::KeepUp) } else { Ok(Ending::Stand) };
    }
    let children: Vec<_> = neighbours.children_of(node, node_id)?.into_iter().collect();
    if children.is_empty() {
        check_can_take_name(run.target(), node)?;
        return Ok(Ending::TakeName);
    }
    for child in &children {
        if open_child(node, node_id, child)?.is_none() {
            return Err(FileError::when(child, "lock it")(io::ErrorKind::ResourceBusy.into()).into());
        }
    }
    Ok(Ending::Relink(children))
}

fn check_has_one_name(path: &Path) -> Result<(), CoalesceError> {
    let metadata = fs::metadata(path).map_err(FileError::when(path, "look at it"))?;
    if metadata.is_file() && metadata.nlink() > 1 {
        return Err(CoalesceError::SecondName { path: path.into() });
    }
    Ok(())
}

fn check_can_take_name(target: &Layer, node: &Path) -> Result<(), CoalesceError> {
    let (target_path, node) = (target.path().to_path_buf(), node.to_path_buf());
    if target.as_vhd().is_none() {
        return Err(CoalesceError::RawTarget { target: target_path, node });
    }
    if target_path.parent() != node.parent() {
        return Err(CoalesceError::OtherFolder { target: target_path, node });
    }
    Ok(())
}

/// Opens an image of a run that has been interrupted, as its target.
pub(crate) fn reopen_target(path: &Path, unique_id: Uuid) -> Result<Target, CoalesceError> {
    if unique_id.is_nil() { Ok(Target::open_raw(path)?) } else { Ok(Target::open_vhd(path)?) }
}
