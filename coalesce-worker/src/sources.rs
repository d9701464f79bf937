//! Whether the sources of a merge are still what they were when it read them.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};
use vhd_core::{FileError, FileStamp};

use crate::record::MergeIntent;
use crate::repository::Repository;

/// What changes when a source is written to, restored or replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// Of a volume, which may be written to: when the machine was started. A synced write may keep its data and lose its time
    /// when power fails.
    boot: Option<String>,
}

/// The sources as they are now.
#[derive(Debug)]
pub(crate) struct Sources {
    stamps: Vec<Stamp>,
    /// Of each the device that it is on, and its times.
    files: Vec<(u64, FileStamp)>,
}

impl Sources {
    /// Looks at the sources of a merge, newest first; `None` where nothing would tell of a change: of devices.
    pub(crate) fn of(repository: &Repository, intent: &MergeIntent) -> Result<Option<Self>, FileError> {
        let mut sources = Self { stamps: Vec::new(), files: Vec::new() };
        for (i, source) in intent.sources.iter().enumerate() {
            let path = repository.absolute(&source.path);
            let found = fs::metadata(&path).map_err(FileError::when(&path, "tell when it was changed"))?;
            let is_volume = i == 0 && intent.node_is_volume;
            let boot = if is_volume { boot() } else { None };
            if !found.is_file() || is_volume && boot.is_none() {
                return Ok(None);
            }
            let file = FileStamp::of(&found);
            let FileStamp { inode, length, modified, changed } = file;
            sources.stamps.push(Stamp { inode, length, modified, changed, boot });
            sources.files.push((found.dev(), file));
        }
        Ok(Some(sources))
    }

    /// Tells whether these are the sources that stamps are of.
    pub(crate) fn are(&self, stamps: &[Stamp]) -> bool {
        self.stamps == stamps
    }

    pub(crate) fn stamps(&self) -> &[Stamp] {
        &self.stamps
    }

    /// Tells whether every later change must show. `time` is that of a file that was touched just before they were looked at.
    pub(crate) fn are_settled(&self, time: &Metadata) -> bool {
        // Another file system has a clock of its own.
        let is_settled =
            |(device, file): &(u64, FileStamp)| *device == time.dev() && file.is_settled(&FileStamp::of(time));
        self.files.iter().all(is_settled)
    }
}

fn boot() -> Option<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().filter(|id| !id.is_empty())
}
