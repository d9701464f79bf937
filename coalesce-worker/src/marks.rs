//! How far a merge has come, kept where whoever goes on with it can rely on it.
//!
//! A journal lies beside the images and cannot know whether they have been restored, replaced or written to since. So what
//! is relied on is in the images themselves:
//!
//! ```text
//!   merged into    before the death   afterwards, it is relied on
//!   a VHD          a mark in it       if the mark is of this merge, and the sources have the stamps that the journal holds
//!   a raw disk     a checkpoint       as far as disk and sources have the same content
//!   the newest     its own tables     always: they tell what it holds
//! ```
//!
//! Where a mark is there and the stamps are not to be relied on, content is compared, too.

use vhd_core::{FileError, Layer, MergeMark, Sector};

use crate::abort::Abort;
use crate::error::CoalesceError;
use crate::journal::Journal;
use crate::merge::MergeError;
use crate::plan::Plan;
use crate::record::{Direction, MergeIntent, Record};
use crate::repository::Repository;
use crate::run::Run;
use crate::sources::Sources;
use crate::target::Target;
use crate::verify::held_before;

/// What a merge has left that was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Everything before this sector has been merged.
    Merged(Sector),
    /// It may have been.
    MaybeMerged(Sector),
}

impl Left {
    /// Finds out what the merge of this journal has left in the images of the run.
    pub(crate) fn of(
        repository: &Repository,
        intent: &MergeIntent,
        journal: &Journal,
        records: &[Record],
        target: &Layer,
    ) -> Result<Self, FileError> {
        if intent.direction == Direction::Up {
            return Ok(Self::Merged(Sector(0)));
        }
        let Layer::Vhd(image) = target else {
            let checkpoint = records.iter().rev().find_map(|record| match record {
                Record::Checkpoint { sector } => Some(Sector(*sector)),
                Record::Merged => Some(MergeMark::ALL),
                _ => None,
            });
            return Ok(Self::MaybeMerged(checkpoint.unwrap_or_default()));
        };
        let mark = image.footer().merge_mark().filter(|mark| Some(mark.merge) == journal.id());
        let Some(MergeMark { merged_before, .. }) = mark else { return Ok(Self::Merged(Sector(0))) };
        let stamps = records.iter().rev().find_map(|record| match record {
            Record::Sources { stamps } => Some(stamps),
            _ => None,
        });
        let same = match stamps {
            Some(stamps) => Sources::of(repository, intent)?.is_some_and(|now| now.are(stamps)),
            None => false,
        };
        Ok(if same { Self::Merged(merged_before) } else { Self::MaybeMerged(merged_before) })
    }

    /// Tells before which sector everything has been merged; reads and compares where nothing else tells.
    pub(crate) fn merged_before(self, run: &Run, plan: &Plan, abort: &Abort) -> Result<Sector, CoalesceError> {
        match self {
            Self::Merged(sector) => Ok(sector),
            Self::MaybeMerged(sector) => held_before(plan, run.sources(), run.target(), sector, abort),
        }
    }
}

/// Keeps how far a merge has come.
pub(crate) struct Marks<'a> {
    pub(crate) repository: &'a Repository,
    intent: &'a MergeIntent,
    /// The sources as they were when they were locked, until the journal holds their stamps.
    sources: Option<Sources>,
    marked: bool,
}

impl<'a> Marks<'a> {
    pub(crate) fn new(repository: &'a Repository, intent: &'a MergeIntent, sources: Option<Sources>) -> Self {
        Self { repository, intent, sources, marked: false }
    }

    /// Makes durable what has been merged, and keeps that everything before `sector` has.
    ///
    /// # Crash safety
    /// The mark follows what it speaks of, durably. The stamps of the sources follow the first mark: those of a merge before
    /// this one never stand beside a mark of this one that they do not belong to.
    pub(crate) fn checkpoint(
        &mut self,
        target: &Target,
        journal: &mut Journal,
        sector: Sector,
    ) -> Result<(), MergeError> {
        match target {
            _ if self.intent.direction == Direction::Up => return Ok(target.flush()?),
            Target::Vhd(image) => {
                let Some(merge) = journal.id() else { return Ok(target.flush()?) };
                image.set_merge_mark(Some(MergeMark { merge, merged_before: sector }))?;
            }
            Target::Raw(_) => {
                target.flush()?;
                return Ok(journal.append(&Record::Checkpoint { sector: sector.0 })?);
            }
        }
        self.marked = true;
        self.keep_sources(journal)
    }

    /// Keeps that everything has been merged. Of a merge without checkpoints nothing is kept: it is quickly compared.
    pub(crate) fn finish(&mut self, target: &Target, journal: &mut Journal) -> Result<(), MergeError> {
        if self.marked { self.checkpoint(target, journal, MergeMark::ALL) } else { Ok(()) }
    }

    fn keep_sources(&mut self, journal: &mut Journal) -> Result<(), MergeError> {
        let Some(before) = &self.sources else { return Ok(()) };
        let Ok(time) = journal.touch() else { return Ok(()) };
        let now = Sources::of(self.repository, self.intent)?.filter(|now| now.are(before.stamps()));
        match now {
            // Somebody has written to one that we hold, and takes no locks.
            None => self.sources = None,
            Some(now) if now.are_settled(&time) => {
                journal.append(&Record::Sources { stamps: now.stamps().to_vec() })?;
                self.sources = None;
            }
            Some(_) => {}
        }
        Ok(())
    }
}

/// Tells by its content whether the target of a run holds everything that is to be merged into it.
pub(crate) fn holds_everything(run: &Run, plan: &Plan, abort: &Abort) -> Result<bool, CoalesceError> {
    Ok(held_before(plan, run.sources(), run.target(), MergeMark::ALL, abort)? == MergeMark::ALL)
}
