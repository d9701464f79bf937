//! Changes of more than one file: each is written down before it begins, and finished by the next call if it was killed.
//!
//! What a call has in mind is in `.sr.intent`, which only whoever holds the lock touches. The image is what decides: once
//! it is there, or gone, the rest follows from it ([`Locked::settle`]); as long as it is not, nothing has happened.

use std::fs::File;
use std::path::PathBuf;

use coalesce_worker::{Recovered, Unfinished, WaitReason};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::failure::{Failure, Number};
use crate::log::{self, Severity};
use crate::metadata::{Metadata, is_key};
use crate::sr::Sr;
use crate::store;

/// Bytes kept back for what is written when something is destroyed in a file system that is full.
const RESERVE: usize = 64 << 10;

/// A repository that only this call changes.
#[derive(Debug)]
pub struct Locked<'a> {
    sr: &'a Sr,
    #[expect(dead_code, reason = "held, not used")]
    lock: File,
    /// What calls that were killed have left, and cannot be finished now.
    unfinished: Vec<Intent>,
}

/// What a call is about to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "kebab-case")]
pub enum Intent {
    /// A new volume.
    Create {
        /// Its key.
        key: String,
    },
    /// A snapshot or clone.
    Snapshot {
        /// The volume.
        key: String,
        /// The key of what is made of it.
        twin: String,
        /// Who the volume's image was.
        image: Uuid,
    },
    /// A volume goes.
    Destroy {
        /// The volume.
        key: String,
    },
    /// A volume becomes larger: all of it is the image's affair.
    Resize {
        /// The volume.
        key: String,
    },
    /// A volume's data goes, and what has changed stays known: its metadata says so already.
    DestroyData {
        /// The volume.
        key: String,
    },
    /// A volume gets the content of a snapshot.
    Revert {
        /// The volume.
        key: String,
        /// The snapshot.
        snapshot: String,
        /// Who the volume's image was.
        image: Uuid,
        /// Who it is going to be.
        new_image: Uuid,
    },
    /// A volume becomes the child of another, which is no volume any more.
    Compose {
        /// The volume.
        child: String,
        /// The other.
        parent: String,
    },
}

impl Intent {
    /// The volumes that it is about.
    fn keys(&self) -> Vec<&String> {
        match self {
            Self::Create { key } | Self::Resize { key } | Self::Destroy { key } | Self::DestroyData { key } => {
                vec![key]
            }
            Self::Snapshot { key, twin, .. } => vec![key, twin],
            Self::Revert { key, snapshot, .. } => vec![key, snapshot],
            Self::Compose { child, parent } => vec![child, parent],
        }
    }
}

fn no_keys() -> Failure {
    Failure::numbered(Number::General, "it names what can be no volume; remove it from .sr.intent")
}

impl<'a> Locked<'a> {
    /// Takes over from calls that were killed. What cannot be finished now hinders nobody but those who want the same volumes.
    ///
    /// # Errors
    /// What the system answers.
    pub fn new(sr: &'a Sr, lock: File) -> Result<Self, Failure> {
        let mut locked = Self { sr, lock, unfinished: Vec::new() };
        if !locked.reserve_path().exists() {
            // Where there is no room for it now, a later call makes it.
            let _ = store::write_bytes(&locked.reserve_path(), &[b'-'; RESERVE]);
        }
        let left: Vec<Intent> = store::read(&locked.intent_path())?.unwrap_or_default();
        // Also what calls have left that failed, and could not take it back then.
        let recovered = sr.recover()?;
        for intent in &left {
            // Keys become names of files; whoever else wrote this must not choose any.
            let all_keys = intent.keys().into_iter().all(|key| is_key(key));
            let done = if all_keys { locked.finish(intent, &recovered) } else { Err(no_keys()) };
            if let Err(failure) = done {
                log::line(Severity::Error, &format!("{intent:?}: cannot be finished yet: {failure}"));
                locked.unfinished.push(intent.clone());
            }
        }
        if locked.unfinished.len() < left.len() {
            locked.end()?;
        }
        Ok(locked)
    }

    /// Tells whether nothing is left that calls which were killed had in mind.
    pub(crate) fn is_settled(&self) -> bool {
        self.unfinished.is_empty()
    }

    /// The repository.
    pub fn sr(&self) -> &'a Sr {
        self.sr
    }

    fn intent_path(&self) -> PathBuf {
        self.sr.folder().join(".sr.intent")
    }

    /// Makes a change: writes it down, has `work` do what it does to the image, and does the rest.
    ///
    /// # Errors
    /// Those of `work`; then everything is as before, or will be once the system answers again.
    ///
    /// # Crash safety
    /// A call that is killed is finished or taken back by the next that takes the lock.
    pub fn change<T>(&self, intent: &Intent, work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        self.begin(intent)?;
        match work() {
            Ok(result) => {
                self.settle(intent)?;
                // What has gone with its file system meanwhile is not done, whatever it looked like.
                self.sr.check_present()?;
                self.end()?;
                Ok(result)
            }
            Err(failure) => {
                // Where that does not help now, the next call does it. The first error is the one to tell.
                let finished = self.sr.recover().and_then(|recovered| self.finish(intent, &recovered));
                let _ = finished.and_then(|()| self.end());
                Err(failure)
            }
        }
    }

    /// Finishes or takes back what a call has left, once the images are what they are going to be.
    fn finish(&self, intent: &Intent, recovered: &Recovered) -> Result<(), Failure> {
        let paths: Vec<PathBuf> = intent.keys().into_iter().flat_map(|key| self.sr.image_path(key)).collect();
        let is_compose = matches!(intent, Intent::Compose { .. });
        // Merges go on by themselves, and change nothing that shows.
        let is_merge = |it: &Unfinished| matches!(it.reason, WaitReason::Merge(_) | WaitReason::InUse) && !is_compose;
        match recovered.waiting.iter().find(|it| paths.contains(&it.path) && !is_merge(it)) {
            Some(unfinished) => Err(Failure::of(&unfinished.reason)),
            None => self.settle(intent),
        }
    }

    /// Writes down what is about to be done.
    ///
    /// # Errors
    /// What the system answers. A volume of which an earlier change cannot be finished yet.
    pub fn begin(&self, intent: &Intent) -> Result<(), Failure> {
        let keys = intent.keys();
        let waits = |earlier: &Intent| earlier.keys().into_iter().find(|key| keys.contains(key)).cloned();
        if let Some(key) = self.unfinished.iter().find_map(waits) {
            let detail =
                format!("{key}: an earlier call that was killed cannot be finished yet; close whatever uses it");
            return Err(Failure::numbered(Number::VolumeInUse, detail));
        }
        if let [one, other] = keys[..] {
            self.relate(one, other)?;
        }
        let all: Vec<&Intent> = self.unfinished.iter().chain([intent]).collect();
        match store::write(&self.intent_path(), &all) {
            // What makes room must not fail for want of it.
            Err(failure) if failure.is_no_space() && matches!(intent, Intent::Destroy { .. }) => {
                store::remove(&self.reserve_path())?;
                store::write(&self.intent_path(), &all)
            }
            written => written,
        }
    }

    fn reserve_path(&self) -> PathBuf {
        self.sr.folder().join(".sr.reserve")
    }

    /// What was written down is done.
    ///
    /// # Errors
    /// What the system answers; the next call then finishes it once more, which changes nothing.
    pub fn end(&self) -> Result<(), Failure> {
        match self.unfinished.as_slice() {
            [] => store::remove(&self.intent_path()),
            unfinished => store::write(&self.intent_path(), &unfinished),
        }
    }

    /// Does what follows from the image as it is. Can be done again.
    fn settle(&self, intent: &Intent) -> Result<(), Failure> {
        let sr = self.sr;
        match intent {
            Intent::Create { key } => {
                if !sr.has_image(key)? {
                    sr.remove_metadata(key)?;
                }
                Ok(())
            }
            Intent::Snapshot { key, twin, image } => {
                if sr.has_image(twin)? {
                    self.freeze_changes(key, twin, *image)
                } else {
                    sr.remove_metadata(twin)
                }
            }
            Intent::Resize { .. } => Ok(()),
            Intent::Destroy { key } => {
                if !sr.has_image(key)? {
                    self.forget(key)?;
                }
                Ok(())
            }
            Intent::DestroyData { key } => match sr.metadata(key)? {
                Some(metadata) if metadata.data_destroyed.is_some() && sr.has_image(key)? => {
                    sr.set_metadata(key, &Metadata { data_destroyed: None, ..metadata })
                }
                _ => Ok(()),
            },
            Intent::Revert { key, snapshot, image, new_image } => match sr.image(key) {
                Ok(Some(now)) if now.footer().unique_id() == *new_image => self.restart_changes(key, Some(snapshot)),
                // It has been merged since, and nobody knows whether before or after it was reverted.
                Ok(Some(now)) if now.footer().unique_id() != *image => self.restart_changes(key, None),
                _ => Ok(()),
            },
            Intent::Compose { parent, .. } => {
                if !sr.has_image(parent)? {
                    self.forget(parent)?;
                }
                Ok(())
            }
        }
    }
}
