//! What journals say. Paths are relative to the repository where they lie in it, so that it can be moved as a whole.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vhd_core::{FileOffset, HEADER_SIZE, HeaderChange, Image, Layer, Lock, OpenError, ReadOnly};

use crate::sources::Stamp;

/// One record. The first of a journal says what is to be done, those that follow how far it has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub(crate) enum Record {
    /// A snapshot or clone is taken.
    Snapshot(SnapshotIntent),
    /// A volume is deleted.
    Delete(FileId),
    /// A volume whose file has this length gets another size.
    Resize {
        file: FileId,
        length: u64,
        /// What it leaves beyond its end is to go.
        #[serde(default)]
        shrinks: bool,
    },
    /// An image is compacted.
    Compact(FileId),
    /// An image gets another id and becomes a child of another image, which becomes hidden.
    Compose { child: FileId, becomes: Uuid, parent: FileId },
    /// A volume's file gets another name, and what waits as `prepared` takes its place.
    Revert { volume: PathBuf, displaced: PathBuf, prepared: PathBuf },
    /// A run is merged.
    Merge(MergeIntent),
    /// Everything before this sector has been merged into a raw disk, durably. A VHD says that itself.
    Checkpoint { sector: u64 },
    /// What the sources of a merge are known by; they have not changed since it began.
    Sources { stamps: Vec<Stamp> },
    /// Images above the run that are locked meanwhile, because blocks are taken out of the sources.
    Holds { images: Vec<PathBuf> },
    /// Everything has been merged, durably.
    Merged,
    /// The header of an image is about to change.
    Header(HeaderRecord),
    /// No image names the merged ones as parents any more. Those who may still have them open are waited for.
    Linked { obsolete: Vec<FileId>, readers: Vec<PathBuf> },
    /// One of these has let go.
    Released { reader: PathBuf },
}

impl Record {
    /// All paths that it holds.
    pub(crate) fn paths(&self) -> Vec<&Path> {
        let paths: Vec<&PathBuf> = match self {
            Self::Snapshot(SnapshotIntent { volume, snapshot, base, prepared_volume, prepared_snapshot, .. }) => {
                vec![volume, snapshot, base, prepared_volume, prepared_snapshot]
            }
            Self::Delete(file) | Self::Compact(file) | Self::Resize { file, .. } => vec![&file.path],
            Self::Compose { child, parent, .. } => vec![&child.path, &parent.path],
            Self::Revert { volume, displaced, prepared } => vec![volume, displaced, prepared],
            Self::Merge(intent) => intent.files().chain(&intent.beneath).map(|file| &file.path).collect(),
            Self::Holds { images } => images.iter().collect(),
            Self::Header(header) => vec![&header.image],
            Self::Linked { obsolete, readers } => obsolete.iter().map(|file| &file.path).chain(readers).collect(),
            Self::Released { reader } => vec![reader],
            Self::Checkpoint { .. } | Self::Sources { .. } | Self::Merged => Vec::new(),
        };
        paths.into_iter().map(PathBuf::as_path).collect()
    }
}

/// A snapshot: `volume`'s file becomes `base`, and `volume` and `snapshot` its children.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SnapshotIntent {
    pub(crate) volume: PathBuf,
    pub(crate) snapshot: PathBuf,
    pub(crate) base: PathBuf,
    /// The unique id of the child that takes the volume's place: it tells whether it has.
    pub(crate) new_volume_id: Uuid,
    /// Where the two children wait for their names.
    pub(crate) prepared_volume: PathBuf,
    pub(crate) prepared_snapshot: PathBuf,
}

/// A file and who it is; nil for a raw disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileId {
    pub(crate) path: PathBuf,
    pub(crate) unique_id: Uuid,
}

/// Which way the data of a run moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// Into the lowest image, which then takes the place of all.
    Down,
    /// Into the newest image, which then no longer needs the others.
    Up,
}

/// A merge.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MergeIntent {
    pub(crate) direction: Direction,
    /// Merge only.
    pub(crate) keep: bool,
    pub(crate) target: FileId,
    /// How long the target's file was.
    pub(crate) target_length: u64,
    /// Whether the target was hidden.
    pub(crate) target_hidden: bool,
    /// Newest first.
    pub(crate) sources: Vec<FileId>,
    /// Whether the newest source is a volume, which may change when nobody merges.
    pub(crate) node_is_volume: bool,
    /// Whether the newest source has no children, so that the target takes its name.
    #[serde(default)]
    pub(crate) takes_name: bool,
    /// What lies beneath the run.
    pub(crate) beneath: Option<FileId>,
}

impl MergeIntent {
    /// All files of the run, the target last.
    pub(crate) fn files(&self) -> impl Iterator<Item = &FileId> {
        self.sources.iter().chain([&self.target])
    }

    /// All files of the run, in its order.
    pub(crate) fn newest_first(&self) -> impl Iterator<Item = &FileId> {
        let (above, below) = match self.direction {
            Direction::Down => (None, Some(&self.target)),
            Direction::Up => (Some(&self.target), None),
        };
        above.into_iter().chain(&self.sources).chain(below)
    }

    /// The newest image.
    pub(crate) fn node(&self) -> &FileId {
        match self.direction {
            Direction::Down => &self.sources[0],
            Direction::Up => &self.target,
        }
    }
}

/// The change of a header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeaderRecord {
    pub(crate) image: PathBuf,
    at: u64,
    old: Vec<u8>,
    new: Vec<u8>,
    /// The texts of locators that change with it, and where they stand.
    #[serde(default)]
    texts: Vec<(u64, Vec<u8>)>,
}

impl HeaderRecord {
    pub(crate) fn new(image: PathBuf, change: &HeaderChange) -> Self {
        let texts = change.texts.iter().map(|(at, text)| (at.0, text.clone())).collect();
        Self { image, at: change.at.0, old: change.old.to_vec(), new: change.new.to_vec(), texts }
    }

    /// The change; `None` where a header's bytes have another number.
    pub(crate) fn change(&self) -> Option<HeaderChange> {
        let bytes = |bytes: &[u8]| <[u8; HEADER_SIZE.0 as usize]>::try_from(bytes).ok();
        let texts = self.texts.iter().map(|(at, text)| (FileOffset(*at), text.clone())).collect();
        Some(HeaderChange { at: FileOffset(self.at), old: bytes(&self.old)?, new: bytes(&self.new)?, texts })
    }
}

impl FileId {
    /// Names a layer as a journal does.
    pub(crate) fn of(layer: &Layer, path: PathBuf) -> Self {
        Self { path, unique_id: layer.as_vhd().map_or(Uuid::nil(), |image| image.footer().unique_id()) }
    }

    /// Tells whether the file at `path` is this one.
    ///
    /// # Errors
    /// A file that is there and cannot be read: it may be.
    pub(crate) fn is_at(&self, path: &Path) -> Result<bool, OpenError> {
        if self.unique_id.is_nil() {
            return Ok(path.exists());
        }
        match Image::<ReadOnly>::open(path, Lock::None) {
            Ok(image) => Ok(image.footer().unique_id() == self.unique_id),
            Err(OpenError::Storage(error)) if error.source.kind() != io::ErrorKind::NotFound => Err(error.into()),
            Err(_) => Ok(false),
        }
    }
}
