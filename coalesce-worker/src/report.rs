//! What a collection did, or would do, for people and for programs.

use std::fmt::{self, Display, Formatter};
use std::path::Path;

use serde::Serialize;
use vhd_core::ByteCount;

use crate::collect::Collected;
use crate::record::Direction;
use crate::size::Human;
use crate::status::{Isolated, Plain, Waiting};
use crate::survey::{PlannedRun, Survey, with_causes};

/// What a collection did.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// The repository.
    pub folder: String,
    /// Images that were there at the last look.
    pub images: u64,
    /// Images that nobody needed.
    pub deleted: Vec<String>,
    /// Runs that were merged.
    pub merged: Vec<MergedRun>,
    /// What could not be done because of something that passes.
    pub waiting: Vec<Waiting>,
    /// What was left alone because something is wrong with it.
    pub isolated: Vec<Isolated>,
    /// What was tried in vain.
    pub failed: Vec<FailedRun>,
    /// Why it came to an end before it was through.
    pub error: Option<String>,
}

/// A run that was merged.
#[derive(Debug, Serialize)]
pub struct MergedRun {
    /// Its newest image.
    pub node: String,
    /// Its lowest.
    pub into: String,
    /// Where its data went.
    pub direction: Direction,
    /// How many images it had.
    pub nodes: u32,
    /// The image that all was merged into, by the name it has now.
    pub target: String,
    /// Bytes that were moved.
    pub bytes: u64,
    /// Bytes that an interrupted merge had moved before.
    pub bytes_resumed: u64,
    /// Images that have another parent now.
    pub relinked: Vec<String>,
    /// Files that are gone.
    pub deleted: Vec<String>,
}

/// A run that could not be merged.
#[derive(Debug, Serialize)]
pub struct FailedRun {
    /// Its newest image.
    pub node: String,
    /// Why.
    pub error: String,
}

/// What a collection would do.
#[derive(Debug, Serialize)]
pub struct Forecast {
    /// The repository.
    pub folder: String,
    /// Images in it.
    pub images: u64,
    /// Images in the deepest chain.
    pub deepest_chain: u32,
    /// Bytes that the images take.
    pub physical_bytes: u64,
    /// Bytes that are free.
    pub free_bytes: u64,
    /// Images that nobody needs.
    pub delete: Vec<String>,
    /// Runs that can be merged.
    pub merge: Vec<ForecastRun>,
    /// What could be done but for something that passes.
    pub waiting: Vec<Waiting>,
    /// What is left alone because something is wrong with it.
    pub isolated: Vec<Isolated>,
}

/// A run that would be merged.
#[derive(Debug, Serialize)]
pub struct ForecastRun {
    /// Its newest image.
    pub node: String,
    /// Its lowest.
    pub into: String,
    /// Where its data would go.
    pub direction: Direction,
    /// How many images it has.
    pub nodes: u32,
    /// Bytes that would move.
    pub bytes: u64,
    /// Bytes that would be written, tables included.
    pub bytes_written: u64,
    /// Space that this takes at least.
    pub space_needed: u64,
}

impl Report {
    /// Makes the report of a collection.
    pub fn new(folder: &Path, collected: Collected) -> Self {
        let merged = collected.merged.into_iter().map(|merged| MergedRun {
            node: text(&merged.run.node),
            into: text(&merged.run.into),
            direction: merged.run.direction,
            nodes: merged.run.nodes,
            target: text(&merged.outcome.target),
            bytes: merged.outcome.moved.data.0,
            bytes_resumed: merged.outcome.resumed.0,
            relinked: texts(&merged.outcome.relinked),
            deleted: texts(&merged.outcome.deleted),
        });
        let failed = collected.failed.iter();
        Self {
            folder: text(folder),
            images: collected.images,
            deleted: texts(&collected.deleted),
            merged: merged.collect(),
            waiting: collected.waiting,
            isolated: collected.isolated,
            failed: failed.map(|it| FailedRun { node: text(&it.node), error: with_causes(&it.error) }).collect(),
            error: None,
        }
    }

    /// Makes the report of a collection that came to an end before it was through.
    pub fn of_error(folder: &Path, error: impl Into<String>) -> Self {
        Self { folder: text(folder), error: Some(error.into()), ..Self::default() }
    }

    /// Tells whether something waits or is isolated.
    pub fn leaves_something(&self) -> bool {
        !(self.waiting.is_empty() && self.isolated.is_empty())
    }

    /// Tells whether something failed.
    pub fn has_failed(&self) -> bool {
        !self.failed.is_empty() || self.error.is_some()
    }
}

impl Forecast {
    /// Makes the forecast of what has been found.
    pub fn new(folder: &Path, survey: &Survey) -> Self {
        let run = |run: &PlannedRun| ForecastRun {
            node: text(&run.node),
            into: text(&run.into),
            direction: run.direction,
            nodes: run.nodes,
            bytes: run.data.0,
            bytes_written: run.bytes_written.0,
            space_needed: run.space_needed.0,
        };
        Self {
            folder: text(folder),
            images: survey.images,
            deepest_chain: survey.deepest_chain,
            physical_bytes: survey.physical.0,
            free_bytes: survey.free.0,
            delete: texts(&survey.garbage),
            merge: survey.runs().map(run).collect(),
            waiting: survey.waiting.clone(),
            isolated: survey.isolated.clone(),
        }
    }

    /// Tells whether something waits or is isolated.
    pub fn leaves_something(&self) -> bool {
        !(self.waiting.is_empty() && self.isolated.is_empty())
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", Plain(&self.folder))?;
        for path in &self.deleted {
            writeln!(f, "  deleted   {}", Plain(path))?;
        }
        for run in &self.merged {
            write!(
                f,
                "  merged    {}: {} moved",
                Run(run.direction, run.nodes, &run.node, &run.into),
                human(run.bytes)
            )?;
            if run.bytes_resumed > 0 {
                write!(f, ", {} had been before", human(run.bytes_resumed))?;
            }
            writeln!(f)?;
        }
        rest(f, &self.waiting, &self.isolated)?;
        for run in &self.failed {
            writeln!(f, "  failed    {}: {}", Plain(&run.node), Plain(&run.error))?;
        }
        let idle = self.deleted.is_empty() && self.merged.is_empty();
        let is_nothing = idle && !self.leaves_something() && !self.has_failed();
        if is_nothing { writeln!(f, "  {}", nothing(self.images)) } else { Ok(()) }
    }
}

impl Display for Forecast {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (used, free) = (human(self.physical_bytes), human(self.free_bytes));
        writeln!(f, "{}", Plain(&self.folder))?;
        writeln!(
            f,
            "  {} images, the deepest chain has {}; {used} used, {free} free",
            self.images, self.deepest_chain
        )?;
        for path in &self.delete {
            writeln!(f, "  delete    {}", Plain(path))?;
        }
        for run in &self.merge {
            let (bytes, needed) = (human(run.bytes), human(run.space_needed));
            let run = Run(run.direction, run.nodes, &run.node, &run.into);
            writeln!(f, "  merge     {run}: {bytes} to move, {needed} of space needed")?;
        }
        rest(f, &self.waiting, &self.isolated)?;
        let idle = self.delete.is_empty() && self.merge.is_empty();
        if idle && !self.leaves_something() { writeln!(f, "  {}", nothing(self.images)) } else { Ok(()) }
    }
}

/// What is told where there is nothing to do. A folder without images may be the mount point of where they are.
fn nothing(images: u64) -> &'static str {
    match images {
        0 => "no images; if they are on a file system of their own, mount it",
        _ => "nothing to do",
    }
}

fn rest(f: &mut Formatter<'_>, waiting: &[Waiting], isolated: &[Isolated]) -> fmt::Result {
    for Waiting { path, reason } in waiting {
        writeln!(f, "  waiting   {}: {}", Plain(path.display()), Plain(reason))?;
    }
    for Isolated { path, reason } in isolated {
        writeln!(f, "  isolated  {}: {}", Plain(path.display()), Plain(reason))?;
    }
    Ok(())
}

/// A run: where to, how many images, its newest and its lowest.
struct Run<'a>(Direction, u32, &'a str, &'a str);

impl Display for Run<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(direction, nodes, node, into) = self;
        match direction {
            Direction::Down => write!(f, "{} down into {} ({nodes} images)", Plain(node), Plain(into)),
            Direction::Up => write!(f, "{} up into {} ({nodes} images)", Plain(into), Plain(node)),
        }
    }
}

fn human(bytes: u64) -> Human {
    Human(ByteCount(bytes))
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn texts(paths: &[std::path::PathBuf]) -> Vec<String> {
    paths.iter().map(|path| text(path)).collect()
}
