//! Changes of more than one file: each is written down before it begins, and finished by the next call if it was killed.
//!
//! What a call has in mind is in `.sr.intent`, which only whoever holds the lock touches. The image is what decides: once
//! it is there, or gone, the rest follows from it ([`Locked::settle`]); as long as it is not, nothing has happened.

use std::fs::File;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::failure::Failure;
use crate::metadata::DataDestroyed;
use crate::sr::Sr;
use crate::store;

/// A repository that only this call changes.
#[derive(Debug)]
pub struct Locked<'a> {
    sr: &'a Sr,
    #[expect(dead_code, reason = "held, not used")]
    lock: File,
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
        /// Changes of the volume are tracked, and a snapshot is taken.
        tracked: bool,
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
    /// A volume's data goes, and what has changed stays known.
    DestroyData {
        /// The volume.
        key: String,
        /// The size of its disk.
        virtual_size: u64,
    },
    /// A volume gets the content of a snapshot.
    Revert {
        /// The volume.
        key: String,
        /// The snapshot.
        snapshot: String,
        /// Who the volume's image was.
        image: Uuid,
    },
    /// A volume becomes the child of another, which is no volume any more.
    Compose {
        /// The other.
        parent: String,
    },
}

impl<'a> Locked<'a> {
    /// Takes over from a call that was killed.
    ///
    /// # Errors
    /// What the system answers.
    pub fn new(sr: &'a Sr, lock: File) -> Result<Self, Failure> {
        let locked = Self { sr, lock };
        match store::read::<Intent>(&locked.intent_path())? {
            Some(intent) => locked.finish(&intent)?,
            // What a call has left that failed, and could not take it back then.
            None => drop(sr.repository()?),
        }
        Ok(locked)
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
                self.end()?;
                Ok(result)
            }
            Err(failure) => {
                // Where that does not help now, the next call does it. The first error is the one to tell.
                let _ = self.finish(intent);
                Err(failure)
            }
        }
    }

    /// Finishes or takes back what a call has left.
    fn finish(&self, intent: &Intent) -> Result<(), Failure> {
        // The image must be what it is going to be.
        self.sr.recovered()?;
        self.settle(intent)?;
        self.end()
    }

    /// Writes down what is about to be done.
    ///
    /// # Errors
    /// What the system answers.
    pub fn begin(&self, intent: &Intent) -> Result<(), Failure> {
        store::write(&self.intent_path(), intent)
    }

    /// What was written down is done.
    ///
    /// # Errors
    /// What the system answers; the next call then finishes it once more, which changes nothing.
    pub fn end(&self) -> Result<(), Failure> {
        store::remove(&self.intent_path())
    }

    /// Does what follows from the image as it is. Can be done again.
    fn settle(&self, intent: &Intent) -> Result<(), Failure> {
        let sr = self.sr;
        match intent {
            Intent::Create { key } => {
                if sr.image(key)?.is_none() {
                    sr.remove_metadata(key)?;
                }
                Ok(())
            }
            Intent::Snapshot { key, twin, image, tracked } => match sr.image(twin)? {
                None => sr.remove_metadata(twin),
                Some(_) if *tracked => self.freeze_changes(key, twin, *image),
                Some(_) => Ok(()),
            },
            Intent::Resize { .. } => Ok(()),
            Intent::Destroy { key } => {
                if sr.image(key)?.is_none() {
                    self.forget(key)?;
                }
                Ok(())
            }
            Intent::DestroyData { key, virtual_size } => {
                if sr.image(key)?.is_none()
                    && let Some(mut metadata) = sr.metadata(key)?
                {
                    metadata.data_destroyed = Some(DataDestroyed { virtual_size: *virtual_size });
                    sr.set_metadata(key, &metadata)?;
                }
                Ok(())
            }
            Intent::Revert { key, snapshot, image } => {
                if sr.image(key)?.is_some_and(|now| now.footer().unique_id() != *image) {
                    self.restart_changes(key, snapshot)?;
                }
                Ok(())
            }
            Intent::Compose { parent } => {
                if sr.image(parent)?.is_none() {
                    self.forget(parent)?;
                }
                Ok(())
            }
        }
    }
}
