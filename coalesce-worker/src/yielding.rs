//! Merges give way: whoever wants to use a volume that is being merged leaves a note beside the journal of the merge,
//! which then stops, to be resumed later.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;

use crate::journal::Journal;
use crate::record::Record;
use crate::repository::Repository;

/// How often a merge looks for notes.
pub(crate) const INTERVAL: Duration = Duration::from_millis(20);
/// How long to wait for somebody who does not say that he merges: who is about to, or hides, or looks around. On a busy host
/// these take their time.
pub(crate) const MOMENT: Duration = Duration::from_secs(2);
/// How long to wait for a merge to stop.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Where a note to the merge with this journal lies.
pub(crate) fn note_for(journal: &Path) -> PathBuf {
    journal.with_extension("yield")
}

/// Leaves a note: an empty file, and no other one that a link leads to.
fn leave(note: &Path) -> io::Result<()> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    File::options().create(true).append(true).custom_flags(flags.bits().cast_signed()).open(note).map(drop)
}

/// A note that is taken back when it is dropped.
#[derive(Debug)]
pub(crate) struct YieldRequest(PathBuf);

impl YieldRequest {
    /// Leaves a note for the merge that a volume takes part in; `None` where there is no such merge.
    pub(crate) fn to_whoever_merges(repository: &Repository, volume: &Path) -> Option<Self> {
        let merges = |journal: &PathBuf| {
            let records = Journal::peek(journal).unwrap_or_default();
            let is_it = |path: &PathBuf| repository.absolute(path) == volume;
            records.iter().any(|record| match record {
                Record::Merge(intent) => intent.files().any(|file| is_it(&file.path)),
                Record::Holds { images } => images.iter().any(is_it),
                _ => false,
            })
        };
        let journal = Journal::list(&repository.state()).ok()?.into_iter().find(merges)?;
        let note = note_for(&journal);
        leave(&note).ok().map(|()| Self(note))
    }

    /// Leaves the note again where it is gone: a merge that just starts takes what it finds for an old one.
    pub(crate) fn renew(&self) {
        let _ = leave(&self.0);
    }
}

impl Drop for YieldRequest {
    fn drop(&mut self) {
        // The merge may have removed it.
        let _ = fs::remove_file(&self.0);
    }
}
