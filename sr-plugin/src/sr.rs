//! An attached repository: its folder, what describes it there, and the lock that changes are made under.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Display;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coalesce_worker::{Gone, HeldFolder, Recovered, Repository, mount_of};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;
use vhd_core::{ChainOptions, Files, Folder, Image, Lock, OpenError, ReadOnly, explain_lock};

use crate::change::Locked;
use crate::failure::{Failure, Number};
use crate::host::Attached;
use crate::metadata::{Metadata, is_key};
use crate::store;
use crate::wire::{Volume, VolumeType};

/// What is not escaped in the path of a URI.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// Levels that a chain may have, where the configuration does not say otherwise.
const DEPTH_LIMIT: u32 = 30;

/// An attached repository.
#[derive(Clone, Debug)]
pub struct Sr {
    uuid: Uuid,
    attached: Attached,
    /// Its folder, held open.
    held: Option<Arc<HeldFolder>>,
}

/// What describes a repository, in its folder: `sr.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct SrRecord {
    /// Who it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// What later versions have put there.
    #[serde(flatten)]
    pub others: Map<String, Value>,
}

impl SrRecord {
    fn path(folder: &Path) -> PathBuf {
        folder.join("sr.json")
    }

    /// Reads it; `None` in a folder that another tool has made.
    ///
    /// # Errors
    /// One that cannot be read or understood.
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>, Failure> {
        store::read(&Self::path(folder))
    }

    /// Replaces it.
    ///
    /// # Errors
    /// What the system answers.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Failure> {
        store::write_beside_others(&Self::path(folder), self)
    }

    /// Removes it.
    ///
    /// # Errors
    /// What the system answers.
    pub(crate) fn remove(folder: &Path) -> Result<(), Failure> {
        store::remove(&Self::path(folder))
    }
}

/// What there is in a repository.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its volumes.
    pub volumes: Vec<Volume>,
    /// Snapshots that have been destroyed, of which what they had changed is still kept apart.
    pub gone: Vec<String>,
}

/// What a volume's image tells.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    disk: u64,
    file: u64,
}

impl Sr {
    /// A repository as it was attached.
    pub fn new(uuid: Uuid, attached: Attached) -> Self {
        Self { uuid, attached, held: None }
    }

    /// Keeps its file system where it is as long as the answer lives.
    ///
    /// # Errors
    /// As [`check_present`](Self::check_present).
    pub fn hold(self) -> Result<Self, Failure> {
        let held = HeldFolder::open(self.folder()).map_err(|error| self.unreachable(&error))?;
        let sr = Self { held: Some(Arc::new(held)), ..self };
        sr.check_present()?;
        Ok(sr)
    }

    /// Lets its file system go.
    pub fn release(self) -> Self {
        Self { held: None, ..self }
    }

    /// Checks that the folder is the repository's: on the mount that it was on when it was attached, and with the record of
    /// who it is. Where its file system has gone, another folder of that name may be there.
    ///
    /// # Errors
    /// A folder that is not there or another; one that says to be somebody else, or nothing.
    pub fn check_present(&self) -> Result<(), Failure> {
        if let Some(mount) = &self.attached.mount {
            let now = mount_of(self.folder()).map_err(|error| self.unreachable(&error))?;
            if now != *mount {
                let gone = Gone { folder: self.folder().into(), mount: mount.clone() };
                return Err(self.unreachable(&gone));
            }
            let recorded = SrRecord::read(self.folder()).map_err(|failure| self.unreachable(&failure))?;
            match recorded.and_then(|record| record.uuid) {
                Some(uuid) if uuid == self.uuid => {}
                Some(other) => return Err(self.unreachable(&format!("{}: holds {other}", self.folder().display()))),
                None => return Err(self.unreachable(&format!("{}: sr.json is missing", self.folder().display()))),
            }
        }
        self.held.iter().try_for_each(|held| held.check().map_err(|error| self.unreachable(&error)))
    }

    /// What is wrong with the folder, and what to do.
    fn unreachable(&self, what: &dyn Display) -> Failure {
        let advice = match self.mounted() {
            Some(_) => "SR.attach mounts its device again",
            None => "mount its file system again; if it is to be elsewhere from now on, detach and attach it",
        };
        Failure::numbered(Number::SrUnavailable, format!("{} is unreachable: {what}; {advice}", self.uuid))
    }

    /// Who it is to the toolstack.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.attached.folder
    }

    /// The folder that its device is mounted at.
    pub fn mounted(&self) -> Option<&Path> {
        self.attached.mounted.as_deref()
    }

    /// What it was attached with.
    pub fn configuration(&self) -> &BTreeMap<String, String> {
        &self.attached.configuration
    }

    /// Levels that its chains may have.
    pub fn depth_limit(&self) -> u32 {
        self.configuration().get("depth_limit").and_then(|limit| limit.parse().ok()).unwrap_or(DEPTH_LIMIT)
    }

    /// Opens it, and finishes what calls that were killed have left.
    ///
    /// # Errors
    /// A folder that cannot be opened.
    pub fn repository(&self) -> Result<Repository, Failure> {
        Ok(Repository::open(self.folder(), ChainOptions::default())?.0)
    }

    /// As [`repository`](Self::repository); tells what could not be finished.
    ///
    /// # Errors
    /// A folder that cannot be opened.
    pub fn recover(&self) -> Result<Recovered, Failure> {
        Ok(Repository::open(self.folder(), ChainOptions::default())?.1)
    }

    /// Waits for other calls that change something here, keeps them away, and finishes what one that was killed has left.
    ///
    /// # Errors
    /// What the system answers.
    pub fn lock(&self) -> Result<Locked<'_>, Failure> {
        let (path, file) = self.open_lock()?;
        file.lock().map_err(|error| Failure::io(&path, "lock the repository")(explain_lock(error)))?;
        // It may have gone while others were waited for.
        self.check_present()?;
        Locked::new(self, file)
    }

    /// As [`lock`](Self::lock), without waiting; `None` where another call holds it.
    ///
    /// # Errors
    /// As there.
    pub fn try_lock(&self) -> Result<Option<Locked<'_>>, Failure> {
        let (path, file) = self.open_lock()?;
        match file.try_lock() {
            Ok(()) => {
                self.check_present()?;
                Locked::new(self, file).map(Some)
            }
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(Failure::io(&path, "lock the repository")(explain_lock(error))),
        }
    }

    fn open_lock(&self) -> Result<(PathBuf, File), Failure> {
        let path = self.folder().join(".sr.lock");
        let file = store::open_writable(&path).map_err(Failure::io(&path, "open the lock"))?;
        Ok((path, file))
    }

    /// Removes everything that makes the folder a repository: images that are no volumes, and our own files. What is not
    /// known stays.
    ///
    /// # Errors
    /// A repository that still has volumes, or damaged images; what the system answers.
    ///
    /// # Crash safety
    /// The record goes last; until then it can be done again.
    pub fn remove_all(&self) -> Result<(), Failure> {
        let locked = self.lock()?;
        let folder = Folder::scan(self.folder(), Files::Images)?;
        // Also one that nothing is known of may be somebody's, or be mended.
        let volumes = folder.nodes().filter(|(_, node)| !node.hidden).count() + folder.damaged().len();
        let volumes = volumes.max(self.volumes()?.len());
        if volumes > 0 {
            let detail = format!("{volumes} volumes are left in {}; destroy them first", self.folder().display());
            return Err(Failure::numbered(Number::SrNotEmpty, detail));
        }
        for (_, node) in folder.nodes().filter(|(_, node)| node.hidden) {
            store::remove(&node.path)?;
        }
        for key in self.keys_with_metadata()? {
            self.remove_changes(&key)?;
            self.remove_metadata(&key)?;
        }
        drop(locked);
        let state = self.folder().join(".vhd");
        match fs::remove_dir_all(&state) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed.map_err(Failure::io(&state, "remove it"))?,
        }
        for name in [".sr.trees", ".sr.reserve", ".sr.new", ".sr.lock"] {
            store::remove(&self.folder().join(name))?;
        }
        SrRecord::remove(self.folder())
    }

    /// Where a volume's image is.
    ///
    /// # Errors
    /// A key that no volume can have.
    pub fn image_path(&self, key: &str) -> Result<PathBuf, Failure> {
        if !is_key(key) {
            return Err(Failure::volume_does_not_exist(key));
        }
        Ok(self.folder().join(format!("{key}.vhd")))
    }

    /// Opens a volume's image to look at it; `None` where there is none, or one that is no volume: what is a link is none, for
    /// it would be an image of another place, or a second key of one volume.
    ///
    /// # Errors
    /// A damaged image.
    pub fn image(&self, key: &str) -> Result<Option<Image<ReadOnly>>, Failure> {
        let path = self.image_path(key)?;
        if !is_file(&path)? {
            return Ok(None);
        }
        match Image::open(&path, Lock::None) {
            Err(OpenError::Storage(error)) if error.source.kind() == io::ErrorKind::NotFound => Ok(None),
            image => Ok(Some(image?).filter(|image| !image.footer().hidden())),
        }
    }

    /// Tells whether a volume has an image, however damaged.
    ///
    /// # Errors
    /// A key that no volume can have.
    pub fn has_image(&self, key: &str) -> Result<bool, Failure> {
        let path = self.image_path(key)?;
        Ok(self.image(key).map_or_else(|_| is_file(&path).unwrap_or(true), |image| image.is_some()))
    }

    /// What is known of a volume that there is.
    ///
    /// # Errors
    /// One that there is not.
    pub fn existing(&self, key: &str) -> Result<Metadata, Failure> {
        if !is_key(key) {
            return Err(Failure::volume_does_not_exist(key));
        }
        let metadata = self.metadata(key)?.filter(|metadata| !metadata.gone);
        let is_there = metadata.as_ref().is_some_and(|metadata| metadata.data_destroyed.is_some());
        if !is_there && self.image(key)?.is_none() {
            self.check_present()?;
            return Err(Failure::volume_does_not_exist(key));
        }
        Ok(metadata.unwrap_or_else(|| Metadata::of_foreign(key)))
    }

    /// Describes a volume.
    ///
    /// # Errors
    /// One that there is not.
    pub fn volume(&self, key: &str) -> Result<Volume, Failure> {
        let metadata = self.existing(key)?;
        let sizes = match metadata.data_destroyed {
            Some(destroyed) => Sizes { disk: destroyed.virtual_size, file: 0 },
            None => {
                let image = self.image(key)?.ok_or_else(|| Failure::volume_does_not_exist(key))?;
                let path = image.path();
                let file = fs::metadata(path).map_err(Failure::io(path, "tell its size"))?.blocks() * 512;
                Sizes { disk: image.footer().current_size().0, file }
            }
        };
        Ok(self.described(key, metadata, sizes))
    }

    /// Describes all volumes.
    ///
    /// # Errors
    /// As [`list`](Self::list).
    pub fn volumes(&self) -> Result<Vec<Volume>, Failure> {
        Ok(self.list()?.volumes)
    }

    /// Finds all volumes. One that is damaged is among them where anything is known of it, so that nobody takes it for
    /// gone; with no size, and the damage among its keys.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub fn list(&self) -> Result<Listed, Failure> {
        // What takes its time is read while others go on. Then a volume that is about to get another file is not to be seen
        // twice, or not at all.
        let first = Folder::scan(self.folder(), Files::Images)?;
        let folder = self.look_again(&first)?;
        self.correct_trees(&folder);
        let (mut volumes, mut gone) = (Vec::new(), Vec::new());
        let mut with_image = HashSet::new();
        for (_, node) in folder.nodes().filter(|(_, node)| !node.hidden && node.disk_type.is_some()) {
            let Some(key) = key_of(&node.path).filter(|_| is_file(&node.path).unwrap_or(true)) else { continue };
            let known = self.metadata(&key).ok().flatten().filter(|metadata| !metadata.gone);
            // Of one that has been destroyed since the look nothing is known any more.
            if known.is_none() && matches!(self.image(&key), Ok(None)) {
                continue;
            }
            let metadata = known.unwrap_or_else(|| Metadata::of_foreign(&key));
            volumes.push(self.described(&key, metadata, Sizes { disk: node.size.0, file: node.own_size.0 }));
            with_image.insert(key);
        }
        let damaged = |key: &str| {
            let path = self.image_path(key).ok()?;
            folder.damaged().iter().find(|file| file.path == path).map(|file| file.error.to_string())
        };
        for key in self.keys_with_metadata()?.into_iter().filter(|key| !with_image.contains(key)) {
            let Ok(Some(mut metadata)) = self.metadata(&key) else { continue };
            if metadata.gone {
                gone.push(key);
                continue;
            }
            let size = match (metadata.data_destroyed, damaged(&key)) {
                (Some(destroyed), _) => destroyed.virtual_size,
                (None, Some(damage)) => {
                    metadata.keys.insert("damaged".into(), damage);
                    0
                }
                // It is about to appear, or to go.
                (None, None) => continue,
            };
            volumes.push(self.described(&key, metadata, Sizes { disk: size, file: 0 }));
        }
        self.check_present()?;
        Ok(Listed { volumes, gone })
    }

    /// Looks once more at what has changed since an earlier look, while nobody changes names, parents or hidden states.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub(crate) fn look_again(&self, folder: &Folder) -> Result<Folder, Failure> {
        Ok(self.repository()?.look(|| folder.rescan(self.folder()))??)
    }

    fn described(&self, key: &str, metadata: Metadata, sizes: Sizes) -> Volume {
        let path = self.folder().join(format!("{key}.vhd"));
        let escaped = percent_encode(path.as_os_str().as_bytes(), PATH);
        Volume {
            key: key.into(),
            uuid: key.parse::<Uuid>().ok().map(|uuid| uuid.to_string()),
            name: metadata.name,
            description: metadata.description,
            read_write: !metadata.read_only,
            sharable: metadata.sharable,
            virtual_size: sizes.disk as i64,
            physical_utilisation: sizes.file as i64,
            uri: vec![format!("vhd+file://{escaped}")],
            keys: metadata.keys,
            volume_type: metadata.data_destroyed.map(|_| VolumeType::ChangedBlocks),
            cbt_enabled: metadata.tracking.is_some(),
        }
    }
}

/// Tells whether a path names a file, and no link to one.
pub(crate) fn is_file(path: &Path) -> Result<bool, Failure> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        found => Ok(found.map_err(Failure::io(path, "look at it"))?.is_file()),
    }
}

/// The key of the volume that an image would be.
pub(crate) fn key_of(path: &Path) -> Option<String> {
    path.file_name()?.to_str()?.strip_suffix(".vhd").filter(|key| is_key(key)).map(str::to_owned)
}
