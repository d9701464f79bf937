//! Which parents may be opened.
//!
//! An image names its parent by paths, and whoever made the image chose them: followed blindly, an imported disk could
//! read any file of the host. So a candidate is first opened without access (`O_PATH`), then judged by where that
//! descriptor really is, after all links, and only then opened for reading through the descriptor itself; what was
//! judged and what is read cannot be two files. Without `/proc`, which tells where a descriptor is, the path is resolved
//! first, and opened without following any link.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use crate::header::Header;
use crate::locator::{self, MAX_LOCATOR_LENGTH};
use crate::new_file::folder_of;
pub(crate) use crate::storage::FileIdentity;
use crate::storage::{Container, FileStorage, Lock, StorageError};

/// Where parents may lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParentPlaces {
    /// In the folder of the image at the top of the chain, and beneath these.
    ///
    /// Where that image is a block device, its folder is the one of the name it was opened by (`/dev/VG` of LVM), and
    /// only block devices are looked for there and in `/dev/mapper`, under the names that links have. `/dev` itself is no
    /// folder of images.
    Within(Vec<PathBuf>),
    /// Anywhere that the process can read.
    Anywhere,
}

/// Finds where a path leads, without links; but a device keeps the name that it is called by, in a folder without links.
///
/// A volume of LVM is a link to a node whose name tells nothing and changes: those that belong to it are found beside the link.
///
/// # Errors
/// What the system answers.
pub fn real_path(path: &Path) -> io::Result<PathBuf> {
    let real = path.canonicalize()?;
    match path.file_name() {
        Some(name) if real.metadata()?.file_type().is_block_device() => Ok(folder_of(path).canonicalize()?.join(name)),
        _ => Ok(real),
    }
}

/// A file that the gate has let through.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) container: Container,
    pub(crate) identity: FileIdentity,
}

/// Why a candidate was not opened.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// It cannot be opened.
    #[error("{}: cannot be opened", path.display())]
    Io {
        /// The candidate.
        path: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// It lies outside the places where parents may be.
    #[error("{}: outside the folders that parents are allowed in; allow its folder as a root, or parents anywhere", path.display())]
    Outside {
        /// Where it really is.
        path: PathBuf,
    },
    /// It is a folder, FIFO, socket or character device.
    #[error("{}: neither a regular file nor a block device", path.display())]
    NotAFile {
        /// Where it really is.
        path: PathBuf,
    },
}

/// The rule, with all its paths resolved.
#[derive(Debug)]
pub(crate) struct Gate {
    /// `None`: anywhere.
    roots: Option<Vec<PathBuf>>,
    /// Folders whose links to block devices are parents of such.
    devices: Vec<PathBuf>,
}

/// Where blktap names the volumes of LVM, whatever name they were opened by.
pub(crate) const DEVICE_MAPPER: &str = "/dev/mapper";

impl Gate {
    /// Makes the rule for a chain whose top image was opened by `path`.
    pub(crate) fn new(places: &ParentPlaces, path: &Path) -> Result<Self, GateError> {
        let real = |path: &Path| path.canonicalize().map_err(|source| GateError::Io { path: path.into(), source });
        let top = real(path)?;
        let is_device = top.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device());
        let devices = if is_device { vec![real(folder_of(path))?, DEVICE_MAPPER.into()] } else { Vec::new() };
        let roots = match places {
            ParentPlaces::Anywhere => None,
            ParentPlaces::Within(roots) => {
                let own = (!is_device).then(|| folder_of(&top));
                let all = own.into_iter().chain(roots.iter().map(PathBuf::as_path));
                Some(all.map(real).collect::<Result<_, _>>()?)
            }
        };
        Ok(Self { roots, devices: devices.into_iter().filter(|folder| folder != Path::new("/dev")).collect() })
    }

    /// The folders in which the names that an image records are looked up; `folder` is the image's own.
    pub(crate) fn folders<'a>(&'a self, folder: &'a Path) -> impl Iterator<Item = &'a Path> {
        let others = self.devices.iter().map(PathBuf::as_path).filter(move |&other| other != folder);
        std::iter::once(folder).chain(others)
    }

    /// Opens a candidate for reading, if the rule allows.
    pub(crate) fn admit(&self, candidate: &Path) -> Result<Admitted, GateError> {
        let failed = |source| GateError::Io { path: candidate.into(), source };
        let found = Found::at(candidate).map_err(failed)?;
        let path = found.path.clone();
        let kind = found.file.metadata().map_err(failed)?.file_type();
        let folder = candidate.parent().unwrap_or(Path::new("/"));
        let is_link_to_device = kind.is_block_device() && self.devices.iter().any(|allowed| allowed == folder);
        let is_outside = self.roots.as_ref().is_some_and(|roots| !roots.iter().any(|root| path.starts_with(root)));
        if is_outside && !is_link_to_device {
            return Err(GateError::Outside { path });
        }
        if !kind.is_file() && !kind.is_block_device() {
            return Err(GateError::NotAFile { path });
        }
        let path = if kind.is_block_device() { real_path(candidate).map_err(failed)? } else { path };
        let storage = found.open().map_err(failed)?;
        let identity = storage.identity();
        Ok(Admitted { container: Container::new(path, Arc::new(storage)), identity })
    }
}

/// A file, open without access, and where it really is.
#[derive(Debug)]
struct Found {
    file: File,
    path: PathBuf,
    has_proc: bool,
}

impl Found {
    fn at(candidate: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH.bits().cast_signed();
        let file = File::options().read(true).custom_flags(flags).open(candidate)?;
        if let Ok(path) = std::fs::read_link(descriptor(&file)) {
            return Ok(Self { file, path, has_proc: true });
        }
        let path = candidate.canonicalize()?;
        Ok(Self { file: open_without_links(&path, OFlags::PATH)?, path, has_proc: false })
    }

    /// Opens the very file for reading.
    fn open(&self) -> io::Result<FileStorage> {
        if self.has_proc {
            return FileStorage::open(&descriptor(&self.file), Lock::None);
        }
        let open = || open_without_links(&self.path, OFlags::RDONLY | OFlags::NONBLOCK);
        let storage = FileStorage::open_by(&self.path, open)?;
        if storage.identity() != FileIdentity::of(&self.file)? {
            return Err(io::Error::other("another file has come in its place"));
        }
        Ok(storage)
    }
}

fn descriptor(file: &File) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

/// Opens what is at a path that has no links in it; one that has got some is refused.
fn open_without_links(path: &Path, flags: OFlags) -> io::Result<File> {
    Ok(openat2(CWD, path, flags | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::NO_SYMLINKS)?.into())
}

/// Lists the paths under which an image in `folder` looks for its parent, in the order of its locators; the bare name
/// in the header comes last.
pub(crate) fn candidates(container: &Container, header: &Header, folder: &Path) -> Result<Vec<PathBuf>, StorageError> {
    let mut candidates: Vec<PathBuf> = Vec::new();
    let mut add = |path: PathBuf| {
        let path = folder.join(path);
        if !candidates.contains(&path) {
            candidates.push(path);
        }
    };
    let len = container.len()?;
    for (_, entry) in header.locators() {
        let fits = entry.offset.0.checked_add(entry.length.0).is_some_and(|end| end <= len.0);
        if entry.length > MAX_LOCATOR_LENGTH || !fits {
            continue;
        }
        let mut text = vec![0; entry.length.0 as usize];
        container.read_at(&mut text, entry.offset)?;
        locator::decode_paths(entry.code, &text).into_iter().for_each(&mut add);
    }
    let name = header.parent_name();
    if !name.is_empty() && !name.contains(['/', '\0']) {
        add(PathBuf::from(name));
    }
    Ok(candidates)
}
