//! What is known of a volume besides its image: a file beside it, `KEY.vhd.json`, which shares its fate.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::failure::Failure;
use crate::sr::Sr;
use crate::store;

const SUFFIX: &str = ".vhd.json";
/// Bytes in a file's name at most. Source: Linux's `NAME_MAX`.
const LONGEST_NAME: usize = 255;

/// What is known of a volume besides its image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metadata {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// A snapshot: nobody writes to it.
    pub read_only: bool,
    /// The volume that it is a snapshot of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_of: Option<String>,
    /// Several may use it at once.
    pub sharable: bool,
    /// What the toolstack has put there, unchanged.
    pub keys: BTreeMap<String, String>,
    /// Changes are tracked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracking: Option<Tracking>,
    /// Its data has been destroyed, and only what has changed is still known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_destroyed: Option<DataDestroyed>,
    /// It has been destroyed, and only what it had changed is still needed, by whatever comes next.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub gone: bool,
    /// What later versions have put there.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

/// The tracking of a volume's changes, or of what a snapshot of one has frozen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracking {
    /// The snapshot since which changes are known; `None` where there is none yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// The image that holds what a volume has changed since. Another one tells that somebody else has taken a snapshot of
    /// it, or merged it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Uuid>,
}

/// What the image would tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataDestroyed {
    /// The size of the disk.
    pub virtual_size: u64,
}

impl Metadata {
    /// What a volume that another tool has made is taken for.
    pub fn of_foreign(key: &str) -> Self {
        Self { name: key.into(), ..Self::default() }
    }

    /// What a snapshot or clone takes over: all that describes the volume, but not what the toolstack has put there.
    pub fn for_twin(&self) -> Self {
        Self { name: self.name.clone(), description: self.description.clone(), ..Self::default() }
    }
}

impl Sr {
    fn metadata_path(&self, key: &str) -> PathBuf {
        self.folder().join(format!("{key}{SUFFIX}"))
    }

    /// Reads what is known of a volume; `None` where nothing is.
    ///
    /// # Errors
    /// A file that cannot be read or understood.
    pub fn metadata(&self, key: &str) -> Result<Option<Metadata>, Failure> {
        store::read(&self.metadata_path(key))
    }

    /// Replaces it.
    ///
    /// # Errors
    /// What the system answers.
    ///
    /// # Crash safety
    /// As [`store::write`].
    pub fn set_metadata(&self, key: &str, metadata: &Metadata) -> Result<(), Failure> {
        store::write(&self.metadata_path(key), metadata)
    }

    /// Removes it.
    ///
    /// # Errors
    /// What the system answers.
    pub fn remove_metadata(&self, key: &str) -> Result<(), Failure> {
        store::remove(&self.metadata_path(key))
    }

    /// The keys of all volumes of which something is known besides their images.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub fn keys_with_metadata(&self) -> Result<Vec<String>, Failure> {
        let failed = |error| Failure::io(self.folder(), "list it")(error);
        let mut keys = Vec::new();
        for entry in fs::read_dir(self.folder()).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let key = Path::new(&name).to_str().and_then(|name| name.strip_suffix(SUFFIX));
            keys.extend(key.filter(|key| is_key(key)).map(str::to_owned));
        }
        keys.sort_unstable();
        Ok(keys)
    }
}

/// Tells whether this can be a volume's key: a file's name without its ending.
pub(crate) fn is_key(key: &str) -> bool {
    key.len() + SUFFIX.len() <= LONGEST_NAME && !key.is_empty() && !key.starts_with('.') && !key.contains(['/', '\0'])
}
