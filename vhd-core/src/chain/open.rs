//! Opening a chain: from one image to its base.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::Chain;
use super::cache::MOST_LAYERS;
use crate::gate::{self, Admitted, FileIdentity, Gate, GateError, ParentPlaces};
use crate::image::{Image, Layer, OpenError, RawDisk, ReadOnly};
use crate::metadata::MetadataError;
use crate::new_file::folder_of;
use crate::storage::{Lock, StorageError};

/// The longest chain that is opened unless asked otherwise.
pub const MAX_CHAIN_DEPTH: usize = 256;

/// Whether a parent must be who the child says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentIdentity {
    /// Its unique id is the one that the child recorded; for a raw parent, it is none that is named as a VHD and is one.
    Match,
    /// Anyone found under the recorded name will do.
    Ignore,
}

/// What to do about an image whose resize was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnfinishedResize {
    /// Refuse it: its tables may not match its data.
    Refuse,
    /// Read it as it is.
    Accept,
}

/// What is allowed when a chain is opened; the default is the safe one.
#[derive(Clone, Debug)]
pub struct ChainOptions {
    /// Where parents may lie.
    pub parents: ParentPlaces,
    /// Folders in which the names that an image has for its parent are looked up after its own folder, in this order. A
    /// raw parent, which nobody could tell from another file of its name, is not. What is found must lie where parents may.
    pub search: Vec<PathBuf>,
    /// Whether a parent must be who the child says.
    pub parent_identity: ParentIdentity,
    /// The most layers, the top one counted.
    pub max_depth: usize,
    /// What to do about an image whose resize was interrupted.
    pub unfinished_resize: UnfinishedResize,
}

impl Default for ChainOptions {
    fn default() -> Self {
        Self {
            parents: ParentPlaces::Within(Vec::new()),
            search: Vec::new(),
            parent_identity: ParentIdentity::Match,
            max_depth: MAX_CHAIN_DEPTH,
            unfinished_resize: UnfinishedResize::Refuse,
        }
    }
}

/// Why a chain cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// An image of it cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// None of the paths that the child records leads to a parent that may be used.
    #[error("{}: its parent cannot be used{}", child.display(), list(tried))]
    Parent {
        /// The child.
        child: PathBuf,
        /// What was tried, and what came of it.
        tried: Vec<ParentRefusal>,
    },
    /// The chain comes back to where it was.
    #[error("{}: its parent {} is one of its own descendants", child.display(), parent.display())]
    Cycle {
        /// The child.
        child: PathBuf,
        /// The image met again.
        parent: PathBuf,
    },
    /// What a crash has left in the image cannot be mended.
    #[error(transparent)]
    Mend(#[from] Box<MetadataError>),
    /// The chain is longer than allowed.
    #[error("{}: the chain below it is deeper than the limit of {limit} images", top.display())]
    TooDeep {
        /// The image at the top.
        top: PathBuf,
        /// The limit.
        limit: usize,
    },
}

fn list(tried: &[ParentRefusal]) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for refusal in tried {
        let mut cause: Option<&dyn std::error::Error> = Some(refusal);
        let mut separator = "\n  ";
        while let Some(error) = cause {
            // Writing into a String cannot fail.
            let _ = write!(text, "{separator}{error}");
            (cause, separator) = (error.source(), ": ");
        }
    }
    if text.is_empty() { ": it records no path to it".into() } else { text }
}

/// Why one candidate for a parent was not used.
#[derive(Debug, thiserror::Error)]
pub enum ParentRefusal {
    /// It may not, or cannot, be opened.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// It is no VHD.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It is a VHD, by its name and content, and the child says that its parent is a raw disk.
    #[error("{}: is a VHD, but the child says that its parent is raw", path.display())]
    NotRaw {
        /// The candidate.
        path: PathBuf,
    },
    /// It is somebody else.
    #[error("{}: its unique id is {found}, but the child's parent is {expected}", path.display())]
    Identity {
        /// The candidate.
        path: PathBuf,
        /// Who it is.
        found: Uuid,
        /// Who the parent is.
        expected: Uuid,
    },
}

impl From<StorageError> for ChainError {
    fn from(error: StorageError) -> Self {
        Self::Open(error.into())
    }
}

impl Chain {
    /// Opens the image at `path` and all its parents, for reading.
    ///
    /// # Errors
    /// What [`ChainError`] lists.
    pub fn open(path: &Path, options: &ChainOptions) -> Result<Self, ChainError> {
        Self::open_locked(path, options, Lock::None)
    }

    /// As [`open`](Self::open), and holds a lock on the image at the top: as long as it is held, what that reads stays
    /// where it is.
    ///
    /// # Errors
    /// As [`open`](Self::open); a storage error of kind [`ResourceBusy`](std::io::ErrorKind::ResourceBusy) where somebody
    /// has locked the image against that.
    pub fn open_locked(path: &Path, options: &ChainOptions, lock: Lock) -> Result<Self, ChainError> {
        let top = Image::open(path, lock)?;
        let parents = options.open_parents(&top, path)?;
        let mut layers = vec![Layer::Vhd(Box::new(top))];
        layers.extend(parents.into_iter().flat_map(Self::into_layers));
        Ok(Self::from_layers(layers))
    }
}

/// Tells whether a file or volume is named as those that hold images are: `*.vhd`, and `VHD-*` on LVM.
fn is_named_as_image(path: &Path) -> bool {
    let by_extension = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("vhd"));
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    by_extension || name.starts_with("VHD-") || name.contains("-VHD--")
}

impl ChainOptions {
    fn check_finished<Mode>(&self, image: &Image<Mode>) -> Result<(), OpenError> {
        if image.footer().poisoned() && self.unfinished_resize == UnfinishedResize::Refuse {
            return Err(OpenError::UnfinishedResize { path: image.path().into() });
        }
        Ok(())
    }

    /// Opens all that `top`, which was opened by `path`, reads from; `None` where it has no parent.
    ///
    /// # Errors
    /// What [`ChainError`] lists.
    pub fn open_parents<Mode>(&self, top: &Image<Mode>, path: &Path) -> Result<Option<Chain>, ChainError> {
        self.check_finished(top)?;
        if !top.is_differencing() {
            return Ok(None);
        }
        let failed = |source| StorageError::from_open(path, source);
        let real = gate::real_path(path).map_err(failed)?;
        let mut seen = HashSet::from([FileIdentity::at(&real).map_err(failed)?]);
        let gate = Gate::new(&self.parents, path)
            .map_err(|refusal| ChainError::Parent { child: path.into(), tried: vec![refusal.into()] })?;
        let mut layers: Vec<Layer> = Vec::new();
        let mut parent = self.find_parent(top, folder_of(&real), &gate)?;
        while let Some((layer, identity)) = parent {
            let child = || layers.last().map_or(path, Layer::path).to_path_buf();
            if !seen.insert(identity) {
                return Err(ChainError::Cycle { child: child(), parent: layer.path().into() });
            }
            let limit = self.max_depth.min(MOST_LAYERS);
            if seen.len() > limit {
                return Err(ChainError::TooDeep { top: path.into(), limit });
            }
            parent = match &layer {
                Layer::Vhd(image) => self.find_parent(image, folder_of(image.path()), &gate)?,
                Layer::Raw(_) => None,
            };
            layers.push(layer);
        }
        Ok(Some(Chain::from_layers(layers)))
    }

    /// Finds the parent of an image that lies in `folder`.
    fn find_parent<Mode>(
        &self,
        image: &Image<Mode>,
        folder: &Path,
        gate: &Gate,
    ) -> Result<Option<(Layer, FileIdentity)>, ChainError> {
        let Some(header) = image.header().filter(|_| image.is_differencing()) else { return Ok(None) };
        let mut tried = Vec::new();
        let searched = if header.parent_unique_id().is_nil() { &[] } else { &self.search[..] };
        let mut candidates: Vec<PathBuf> = Vec::new();
        for folder in gate.folders(folder).chain(searched.iter().map(PathBuf::as_path)) {
            let named = gate::candidates(image.container(), header, folder)?;
            candidates.extend(named.into_iter().filter(|path| !candidates.contains(path)).collect::<Vec<_>>());
        }
        for candidate in candidates {
            let admitted = match gate.admit(&candidate) {
                Ok(admitted) => admitted,
                Err(refusal) => {
                    tried.push(refusal.into());
                    continue;
                }
            };
            match self.open_parent(admitted, header.parent_unique_id()) {
                Ok(parent) => return Ok(Some(parent)),
                Err(refusal) => tried.push(refusal),
            }
        }
        Err(ChainError::Parent { child: image.path().into(), tried })
    }

    fn open_parent(&self, admitted: Admitted, expected: Uuid) -> Result<(Layer, FileIdentity), ParentRefusal> {
        let Admitted { container, identity } = admitted;
        let strict = self.parent_identity == ParentIdentity::Match;
        // A nil id stands for a raw parent. Without a look at it, it would be a way around the comparison of ids.
        if expected.is_nil() {
            // What the guest has written decides nothing: only what is named as an image is looked at.
            if strict
                && is_named_as_image(container.path())
                && Image::<ReadOnly>::from_container(container.clone()).is_ok()
            {
                return Err(ParentRefusal::NotRaw { path: container.path().into() });
            }
            return Ok((Layer::Raw(RawDisk::open(container).map_err(OpenError::from)?), identity));
        }
        let path = container.path().to_path_buf();
        let image = Image::<ReadOnly>::from_container(container)?;
        let found = image.footer().unique_id();
        if found != expected && strict {
            return Err(ParentRefusal::Identity { path, found, expected });
        }
        self.check_finished(&image)?;
        Ok((Layer::Vhd(Box::new(image)), identity))
    }
}
