//! What a collection finds to do: computed from one look at the folder, before anything is changed.

mod forest;
mod tree;

use std::collections::HashSet;
use std::path::PathBuf;

use rayon::prelude::*;
use vhd_core::{ByteCount, FileError, FolderError};

use crate::abort::{Abort, Aborted};
use crate::coalesce::{Request, free_space};
use crate::error::CoalesceError;
use crate::in_use::is_free;
use crate::merge::MergeError;
use crate::record::{Direction, MergeIntent};
use crate::repository::Repository;
use crate::run::Run;
use crate::status::{Isolated, Scan, Waiting};
use crate::steps::{can_release, fitting};

pub(crate) use forest::Forest;
use tree::{Candidate, Choices};

/// Everything that can be done for a repository, and what cannot.
#[derive(Debug, Default)]
pub struct Survey {
    /// Hidden images that nobody needs, children before their parents.
    pub garbage: Vec<PathBuf>,
    /// Images that no longer find their parent by its path, and where it is.
    pub strays: Vec<(PathBuf, PathBuf)>,
    /// Trees in which something can be merged; they do not depend on each other.
    pub trees: Vec<Vec<PlannedRun>>,
    /// What could be done but for something that passes.
    pub waiting: Vec<Waiting>,
    /// What is damaged, and the images that depend on it or on which it depends.
    pub isolated: Vec<Isolated>,
    /// Images in the deepest chain.
    pub deepest_chain: u32,
    /// Images in the repository.
    pub images: u64,
    /// Bytes that they take.
    pub physical: ByteCount,
    /// Bytes that are free.
    pub free: ByteCount,
}

/// A run that is to be merged.
#[derive(Clone, Debug)]
pub struct PlannedRun {
    /// Its newest image.
    pub node: PathBuf,
    /// Its lowest.
    pub into: PathBuf,
    /// How many images it has.
    pub nodes: u32,
    /// Where its data goes.
    pub direction: Direction,
    /// Data that moves.
    pub data: ByteCount,
    /// All bytes that are written.
    pub bytes_written: ByteCount,
    /// Space that this takes at least.
    pub space_needed: ByteCount,
    /// Where that is not there: whether it can be merged in steps, each of which gives space back.
    pub fits_in_steps: bool,
}

impl PlannedRun {
    /// The request for its merge.
    pub fn request(&self) -> Request {
        Request { node: self.node.clone(), into: Some(self.into.clone()), direction: self.direction, keep: false }
    }
}

impl Survey {
    /// Looks at a repository. Changes nothing.
    ///
    /// # Errors
    /// A folder that cannot be listed. Damaged images are no error: they are isolated.
    pub fn of(repository: &Repository) -> Result<Self, SurveyError> {
        Self::until(repository, &Abort::new())
    }

    /// As [`of`](Self::of), but no longer than until the abort: that is an error, or what has not been planned by then waits.
    pub(crate) fn until(repository: &Repository, abort: &Abort) -> Result<Self, SurveyError> {
        let mut folder = repository.scan_until(abort)?;
        // What was listed is the folder's content only if that was there until the end.
        repository.check_folder()?;
        let obsolete: HashSet<PathBuf> = repository.obsolete()?.into_iter().collect();
        let interrupted = repository.interrupted()?;
        if !Forest::of(&folder, &obsolete).isolated().is_empty()
            && let Some(_structure) = repository.lock_structure_that_is_there(abort)
        {
            // A file that was renamed while the folder was listed may have been missed: a look while nobody does that tells.
            folder = repository.scan_until(abort)?;
        }
        abort.check()?;
        let forest = Forest::of(&folder, &obsolete);
        let mut survey = Self {
            isolated: forest.isolated(),
            strays: forest.strays(),
            deepest_chain: forest.deepest(),
            images: folder.nodes().count() as u64,
            physical: folder.nodes().map(|(_, node)| node.own_size).fold(ByteCount(0), |sum, size| sum + size),
            free: free_space(repository.folder())?,
            ..Self::default()
        };
        let is_busy = |path: &PathBuf| !is_free(path).unwrap_or(false);
        let may_need_any = folder.damaged().iter().find(|file| file.may_need_any());
        let unknown = folder.damaged().iter().find(|file| file.is_unknown());
        let unreadable = folder.damaged().iter().find(|file| file.may_need_any() && file.is_unreadable());
        let known = repository.known_parents();
        let mut kept: HashSet<PathBuf> = HashSet::new();
        for path in forest.garbage() {
            abort.check()?;
            let id = folder.find(&path);
            let children = id.map_or(&[][..], |id| folder.children(id));
            // One whose last child just vanished may be needed by a file of which nobody knows what it was.
            let has_vanished = children.is_empty() && id.is_none_or(|id| !known.is_freed(folder.node(id).unique_id));
            if let Some(file) = may_need_any.or(unknown.filter(|_| has_vanished)) {
                let reason = format!(
                    "deleted, but {} is damaged and may need it: repair that, or move it to another folder",
                    file.path.display()
                );
                kept.insert(path.clone());
                survey.waiting.push(Waiting { path, reason });
            } else if children.iter().any(|child| kept.contains(&folder.node(*child).path)) {
                kept.insert(path.clone());
                survey.waiting.push(Waiting { path, reason: "deleted, but still needed".into() });
            } else if is_busy(&path) {
                kept.insert(path.clone());
                survey.waiting.push(Waiting { path, reason: "deleted, but still in use".into() });
            } else {
                survey.garbage.push(path);
            }
        }
        let trees: Vec<Vec<Candidate>> = forest.candidates();
        let planned: Vec<Vec<Result<PlannedRun, Waiting>>> = trees
            .into_par_iter()
            .map(|tree| {
                let plan = |candidate: Candidate| match unreadable {
                    // It may be a child of any of these, and whole when it is read the next time.
                    Some(file) => Some(Err(Waiting {
                        path: candidate.images[0].clone(),
                        reason: format!("{} cannot be read and may need it", file.path.display()),
                    })),
                    None => plan(repository, candidate, &interrupted, survey.free, abort),
                };
                tree.into_iter().filter_map(plan).collect()
            })
            .collect();
        for tree in planned {
            let mut runs = Vec::new();
            for run in tree {
                match run {
                    Ok(run) => runs.push(run),
                    Err(waiting) => survey.waiting.push(waiting),
                }
            }
            if !runs.is_empty() {
                survey.trees.push(runs);
            }
        }
        // The largest first, so that none is left alone at the end.
        let written = |tree: &Vec<PlannedRun>| tree.iter().map(|run| run.bytes_written.0).sum::<u64>();
        survey.trees.sort_by_key(|tree| std::cmp::Reverse(written(tree)));
        Ok(survey)
    }

    /// All runs.
    pub fn runs(&self) -> impl Iterator<Item = &PlannedRun> {
        self.trees.iter().flatten()
    }

    /// Data that all runs move.
    pub fn data(&self) -> ByteCount {
        self.runs().map(|run| run.data).fold(ByteCount(0), |sum, data| sum + data)
    }

    /// What the board is told of it.
    pub(crate) fn scan(&self, waiting: &[Waiting]) -> Scan {
        Scan {
            waiting: waiting.to_vec(),
            isolated: self.isolated.clone(),
            backlog_nodes: self.garbage.len() as u64 + self.runs().map(|run| u64::from(run.nodes) - 1).sum::<u64>(),
            backlog_bytes: self.data(),
            deepest_chain: self.deepest_chain,
            free_bytes: self.free,
            physical_bytes: self.physical,
        }
    }

    /// Tells whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.garbage.is_empty() && self.strays.is_empty() && self.trees.is_empty()
    }
}

/// Why a repository cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// The folder cannot be listed.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A journal cannot be read, or the file system tells nothing of its space.
    #[error(transparent)]
    File(#[from] FileError),
    /// It was told to stop.
    #[error(transparent)]
    Aborted(#[from] Aborted),
}

/// Plans a run the cheaper way; `None` where nothing of it can be merged as things are.
fn plan(
    repository: &Repository,
    candidate: Candidate,
    interrupted: &[MergeIntent],
    free: ByteCount,
    abort: &Abort,
) -> Option<Result<PlannedRun, Waiting>> {
    let waits = |path: &PathBuf, reason: String| Some(Err(Waiting { path: path.clone(), reason }));
    let node = candidate.images[0].clone();
    let is_busy = |path: &PathBuf| !is_free(path).unwrap_or(false);
    // A program that has a volume open has those beneath it open, too, if it reads through them.
    if let Some(user) = candidate.images[1..].iter().find(|&path| is_busy(path)) {
        return waits(&node, format!("{} is in use", user.display()));
    }
    let choices = match candidate.choices(is_busy) {
        Ok(choices) => choices,
        Err(user) => return waits(&node, format!("{} is in use", user.display())),
    };
    let begun = |run: &Choices, direction| {
        let paths = || run.images.iter().map(|path| repository.relative(path));
        interrupted.iter().any(|intent| {
            intent.direction == direction && intent.newest_first().map(|file| file.path.clone()).eq(paths())
        })
    };
    let mut best: Option<PlannedRun> = None;
    let mut short: Option<Waiting> = None;
    for choice in choices {
        for &direction in &choice.directions {
            // Of two ways that cannot be far apart in cost the second is looked at; of others only the one that is cheaper.
            let run = match plan_one(repository, &choice, direction, abort) {
                Ok(run) => run,
                Err(error) => {
                    short.get_or_insert_with(|| Waiting { path: node.clone(), reason: with_causes(&error) });
                    continue;
                }
            };
            if begun(&choice, direction) {
                return Some(Ok(run));
            }
            if run.space_needed > free && !run.fits_in_steps {
                let missing = run.space_needed.0 - free.0;
                let reason =
                    format!("needs {} bytes of space, {free} are free: {missing} are missing", run.space_needed);
                short.get_or_insert_with(|| Waiting { path: node.clone(), reason });
                continue;
            }
            if best.as_ref().is_none_or(|best| run.bytes_written < best.bytes_written) {
                best = Some(run);
            }
        }
    }
    best.map(Ok).or_else(|| short.map(Err))
}

fn plan_one(
    repository: &Repository,
    choice: &Choices,
    direction: Direction,
    abort: &Abort,
) -> Result<PlannedRun, CoalesceError> {
    abort.check().map_err(MergeError::Aborted)?;
    let (node, into) = (&choice.images[0], &choice.images[choice.images.len() - 1]);
    let request = Request { node: node.clone(), into: Some(into.clone()), direction, keep: false };
    let run = Run::open(repository.options(), node, &request)?;
    let plan = run.plan(abort)?;
    let fits_in_steps = can_release(&run, direction) && fitting(plan.units(), run.target().path()).is_ok();
    Ok(PlannedRun {
        node: node.clone(),
        into: into.clone(),
        nodes: choice.images.len() as u32,
        direction,
        data: plan.data,
        bytes_written: plan.bytes_written(),
        space_needed: plan.space_needed,
        fits_in_steps,
    })
}

/// An error and all its causes, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
