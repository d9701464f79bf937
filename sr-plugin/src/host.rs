//! What a call finds on this host: the plugin's settings, and the repositories that are attached.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::failure::Failure;
use crate::sr::Sr;
use crate::store;

/// The file beside the executable that holds its settings.
pub const SETTINGS: &str = "settings.json";

/// How the plugin was installed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Where attached repositories are recorded and mounted: a folder that is empty after the host has started.
    pub state: PathBuf,
    /// Where the worker of the host listens.
    pub worker_socket: PathBuf,
    /// The program that is started for a repository that no worker looks after.
    pub worker: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { state: "/run/sr-plugin".into(), worker_socket: "/run/coalesce-worker/socket".into(), worker: None }
    }
}

/// A repository that is attached.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attached {
    /// Its folder.
    pub folder: PathBuf,
    /// The folder that its device is mounted at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mounted: Option<PathBuf>,
    /// The mount that the folder is on: on another, it is not the repository's. Unknown where an earlier version has attached it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mount: Option<PathBuf>,
    /// The configuration that it was attached with.
    pub configuration: BTreeMap<String, String>,
}

/// This host.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// How the plugin was installed.
    pub settings: Settings,
}

impl Host {
    /// Reads the settings from the executable's folder: from what has taken its place, if it was replaced meanwhile.
    ///
    /// # Errors
    /// Settings that cannot be read.
    pub fn of_executable() -> Result<Self, Failure> {
        let executable = match called() {
            Some(path) => path,
            None => std::env::current_exe().map_err(Failure::io(Path::new("/proc/self/exe"), "find it"))?,
        };
        let settings = store::read(&executable.with_file_name(SETTINGS))?;
        Ok(Self { settings: settings.unwrap_or_default() })
    }

    fn records(&self) -> PathBuf {
        self.settings.state.join("attached")
    }

    fn record(&self, sr: Uuid) -> PathBuf {
        self.records().join(format!("{sr}.json"))
    }

    /// Where a repository's device is mounted.
    pub fn mount_point(&self, sr: Uuid) -> PathBuf {
        self.settings.state.join("mnt").join(sr.to_string())
    }

    /// Where the worker that was started for a repository listens.
    pub fn worker_socket_of(&self, sr: Uuid) -> PathBuf {
        self.settings.state.join(format!("{sr}.sock"))
    }

    /// Where is recorded which worker was started for a repository.
    pub(crate) fn worker_record_of(&self, sr: Uuid) -> PathBuf {
        self.settings.state.join(format!("{sr}.worker"))
    }

    /// Finds an attached repository, and keeps its file system where it is.
    ///
    /// # Errors
    /// One that is not attached, or that is not there; a record that cannot be read.
    pub fn sr(&self, sr: &str) -> Result<Sr, Failure> {
        self.attached_as(sr)?.hold()
    }

    /// As [`sr`](Self::sr), whether its folder is there or not.
    ///
    /// # Errors
    /// One that is not attached; a record that cannot be read.
    pub fn attached_as(&self, sr: &str) -> Result<Sr, Failure> {
        self.find(sr)?.ok_or_else(|| Failure::sr_not_attached(sr))
    }

    /// As [`attached_as`](Self::attached_as); `None` where it is not attached.
    ///
    /// # Errors
    /// A record that cannot be read.
    pub fn find(&self, sr: &str) -> Result<Option<Sr>, Failure> {
        let Ok(uuid) = sr.parse::<Uuid>() else { return Ok(None) };
        Ok(store::read(&self.record(uuid))?.map(|attached| Sr::new(uuid, attached)))
    }

    /// Records that a repository is attached.
    ///
    /// # Errors
    /// What the system answers.
    pub fn attach(&self, sr: Uuid, attached: &Attached) -> Result<(), Failure> {
        let records = self.records();
        fs::create_dir_all(&records).map_err(Failure::io(&records, "make the folder"))?;
        store::write_beside_others(&self.record(sr), attached)
    }

    /// Forgets a repository.
    ///
    /// # Errors
    /// What the system answers.
    pub fn forget(&self, sr: Uuid) -> Result<(), Failure> {
        store::remove(&self.record(sr))
    }

    /// The repositories that are attached.
    ///
    /// # Errors
    /// What the system answers.
    pub fn attached(&self) -> Result<Vec<Sr>, Failure> {
        let records = self.records();
        let entries = match fs::read_dir(&records) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Failure::io(&records, "list it"))?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(Failure::io(&records, "list it"))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let uuid = name.strip_suffix(".json").and_then(|uuid| uuid.parse::<Uuid>().ok());
            // It may have been detached meanwhile.
            if let Some((uuid, attached)) = uuid.zip(store::read(&path)?) {
                found.push(Sr::new(uuid, attached));
            }
        }
        found.sort_by_key(Sr::uuid);
        Ok(found)
    }
}

/// The executable by the path that it was called by; `None` where that leads nowhere.
fn called() -> Option<PathBuf> {
    let called = PathBuf::from(std::env::args_os().next()?);
    let is_path = called.parent().is_some_and(|folder| !folder.as_os_str().is_empty());
    if is_path { called.canonicalize().ok() } else { None }
}
