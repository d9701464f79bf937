//! Mending a damaged image: only what can be proved, only as a whole, and so that it can be taken back.
//!
//! Everything is tried on a copy-on-write overlay first. Where a check of that finds nothing wrong any more,
//! an undo file with all that will be replaced is made durable, and then the image is changed in place. Where something
//! cannot be mended without a guess, the image is left as it is, and the error says what is undecided.
//!
//! ```text
//!   image ──▶ overlay ──mend──▶ check ──▶ undo file, durable ──▶ image changed in place, durable ──▶ undo file complete
//!                                  └── anything wrong: refused, nothing written
//! ```

mod batmap;
mod blocks;
mod error;
mod footers;
mod header;
pub(crate) mod journal;
mod overlay;
mod parent;
mod undo;

pub use error::{HeaderDoubt, JournalError, RepairError};
pub use journal::{revert_container, revert_resize};
pub use undo::UndoError;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::batmap::Batmap;
use crate::check::{self, Finding, Severity};
use crate::gate::ParentPlaces;
use crate::image::{Image, ReadOnly};
use crate::new_file::{FileError, folder_of};
use crate::storage::{Container, FileStorage, Lock, StorageError};
use crate::units::{ByteCount, SectorRange};

use footers::Footers;
use overlay::Overlay;
use undo::UndoFile;

/// Where a repair finds what it needs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The journal of an interrupted resize of blktap's; without it, the one beside the image that was made for it.
    pub journal: Option<PathBuf>,
    /// The folder for the undo file; without it, that of the image.
    pub backup: Option<PathBuf>,
    /// Where parents may lie.
    pub parents: ParentPlaces,
}

impl Default for Options {
    fn default() -> Self {
        Self { journal: None, backup: None, parents: ParentPlaces::Within(Vec::new()) }
    }
}

/// One thing that is put right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mended {
    /// The [code](Finding::code) of the finding that is gone by it.
    pub code: &'static str,
    /// What is done about it.
    pub text: String,
}

/// What a repair has done, or would do.
#[derive(Debug)]
pub struct Repaired {
    /// An earlier repair was interrupted, and is taken back first.
    pub resumed: bool,
    /// What is put right, in the order it is done; empty where nothing had to be.
    pub mended: Vec<Mended>,
    /// Sectors of the disk whose content is lost, in order. They were lost before; now it shows: each reads as zeros, or
    /// what the parent holds there.
    pub lost: Vec<SectorRange>,
    /// Findings that remain, none of them an error.
    pub left: Vec<Finding>,
    /// Bytes of the image that are replaced, cut off or added.
    pub changed: ByteCount,
    /// The undo file, where something was changed.
    pub undo: Option<PathBuf>,
    /// The journal of an interrupted resize that was reverted; nobody needs it any more.
    pub journal: Option<PathBuf>,
}

/// What [`take_back`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakenBack {
    /// A repair that had been completed.
    Completed,
    /// One that had been interrupted.
    Interrupted,
}

/// What is no error, and no image keeps that has been repaired.
const MENDED: [&str; 8] = [
    "footer-511",
    "footer-copy-lost",
    "footer-copy-differs",
    "batmap-lost",
    "batmap-checksum",
    "batmap-stale",
    "locator-differs",
    "tables-behind-blocks",
];

/// Findings without which there may be others.
const HIDING: [&str; 3] = ["header-damaged", "table-outside", "bat-short"];

/// Repairs the image at `path`, which is locked meanwhile.
///
/// # Errors
/// What [`RepairError`] lists; unless it is a failed write, the file is then as it was.
///
/// # Crash safety
/// Before the first byte changes the undo file is durable, so at every moment the next call, or [`take_back`], finds all
/// that was there before. It first takes back what an interrupted repair has done, and then starts anew.
pub fn file(path: &Path, options: &Options) -> Result<Repaired, RepairError> {
    let (image, undo) = (open_writable(path)?, undo_path(path, options)?);
    container(&image, &undo, options)
}

/// Tells what [`file()`] would do, and changes nothing.
///
/// # Errors
/// As [`file()`].
pub fn preview(path: &Path, options: &Options) -> Result<Repaired, RepairError> {
    let undo = undo_path(path, options)?;
    let file = FileStorage::open(path, Lock::Shared).map_err(|source| StorageError::from_open(path, source))?;
    let image = Container::new(path, Arc::new(file));
    let resumed = unfinished(&undo)?;
    let mut plan = Plan::begin(&image, options)?;
    if let Some(unfinished) = &resumed {
        unfinished.check_image(&image)?;
        unfinished.restore(&plan.container)?;
    }
    plan.mend()?;
    let changed = plan.changed()?;
    Ok(plan.into_repaired(resumed.is_some(), changed, None))
}

/// Makes the image at `path`, byte for byte, what it was before the last repair, and removes the undo file.
///
/// # Errors
/// No undo file, or one that is damaged or belongs to another image; an image that has changed since, unless the repair
/// was interrupted; a failed read or write.
///
/// # Crash safety
/// Can be repeated: the undo file goes when everything is durable.
pub fn take_back(path: &Path, options: &Options) -> Result<TakenBack, RepairError> {
    let (image, undo) = (open_writable(path)?, undo_path(path, options)?);
    container_taken_back(&image, &undo)
}

/// As [`file()`], for any store that nobody else uses; the undo file goes to the path `undo`.
///
/// # Errors
/// As [`file()`].
///
/// # Crash safety
/// As [`file()`].
pub fn container(image: &Container, undo: &Path, options: &Options) -> Result<Repaired, RepairError> {
    let resumed = unfinished(undo)?;
    let is_resumed = resumed.is_some();
    if let Some(unfinished) = resumed {
        unfinished.check_image(image)?;
        unfinished.restore(image)?;
        unfinished.remove()?;
    }
    let mut plan = Plan::begin(image, options)?;
    plan.mend()?;
    let changed = plan.changed()?;
    let changes = changed.0 > 0 || plan.container.len()? != image.len()?;
    if changes {
        let mut made = UndoFile::write(undo, image, &plan.overlay, plan.unique_id()?)?;
        let applied = made.apply(image, &plan.overlay).and_then(|()| made.complete());
        applied.map_err(|source| RepairError::Interrupted { undo: undo.into(), source: Box::new(source) })?;
    }
    Ok(plan.into_repaired(is_resumed, changed, changes.then(|| undo.to_path_buf())))
}

/// As [`take_back`], for any store that nobody else uses; the undo file is at the path `undo`.
///
/// # Errors
/// As [`take_back`].
///
/// # Crash safety
/// As [`take_back`].
pub fn container_taken_back(image: &Container, undo: &Path) -> Result<TakenBack, RepairError> {
    let Some(mut found) = UndoFile::read(undo)? else { return Err(UndoError::Missing { path: undo.into() }.into()) };
    found.check_image(image)?;
    let was = if found.is_complete() { TakenBack::Completed } else { TakenBack::Interrupted };
    if found.is_complete() {
        found.check_unchanged(image)?;
        // From here on the image holds both old and new bytes.
        found.begin_anew()?;
    }
    found.restore(image)?;
    found.remove()?;
    Ok(was)
}

fn open_writable(path: &Path) -> Result<Container, RepairError> {
    let file = FileStorage::open_writable(path).map_err(|source| StorageError::from_open(path, source))?;
    Ok(Container::new(path, Arc::new(file)))
}

/// The undo file of a repair that was interrupted. One that is complete is no concern of the next repair.
fn unfinished(undo: &Path) -> Result<Option<UndoFile>, RepairError> {
    Ok(UndoFile::read(undo)?.filter(|undo| !undo.is_complete()))
}

/// Where the undo file of the image at `path` is: beside the file itself, whatever links lead there.
///
/// # Errors
/// A file that is not there; a device, unless a folder is given.
pub fn undo_path(path: &Path, options: &Options) -> Result<PathBuf, RepairError> {
    let opened = |source| StorageError::from_open(path, source);
    let real = path.canonicalize().map_err(opened)?;
    let is_device = fs::metadata(&real).map_err(opened)?.file_type().is_block_device();
    let folder = match &options.backup {
        Some(folder) => folder.canonicalize().map_err(FileError::when(folder, "open the folder"))?,
        None if is_device => return Err(UndoError::Device { path: path.into() }.into()),
        None => folder_of(&real).into(),
    };
    // A device is known by the name that was given, not by the number it has until the next start.
    let named = if is_device { path } else { &real };
    let mut name = named.file_name().unwrap_or_default().to_owned();
    name.push(".undo");
    Ok(folder.join(name))
}

/// A repair as it is worked out on an overlay.
struct Plan<'a> {
    options: &'a Options,
    overlay: Arc<Overlay>,
    /// The overlay under the name of the image.
    container: Container,
    mended: Vec<Mended>,
    lost: Vec<SectorRange>,
    left: Vec<Finding>,
    journal: Option<PathBuf>,
    /// What was put right beyond what is listed.
    unlisted: BTreeMap<&'static str, u64>,
    /// A batmap that was given up, for what else it holds.
    salvaged: Option<Box<Batmap>>,
}

/// Things of one kind that are listed one by one; of the rest only the number is.
const LISTED_PER_CODE: usize = 64;

impl<'a> Plan<'a> {
    fn begin(image: &Container, options: &'a Options) -> Result<Self, RepairError> {
        let overlay = Arc::new(Overlay::new(image.clone())?);
        let container = Container::new(image.path(), overlay.clone());
        Ok(Self {
            options,
            overlay,
            container,
            mended: Vec::new(),
            lost: Vec::new(),
            left: Vec::new(),
            journal: None,
            unlisted: BTreeMap::new(),
            salvaged: None,
        })
    }

    /// Mends all that can be, in an order in which each step may rely on those before.
    fn mend(&mut self) -> Result<(), RepairError> {
        let before = check::container(self.container.clone())?;
        self.revert_resize()?;
        let header_doubt = self.mend_header()?;
        self.mend_blocks()?;
        self.mend_footers()?;
        self.mend_batmap()?;
        self.mend_footers()?;
        self.mend_parent(header_doubt)?;
        self.mend_layout()?;
        self.finish(&before)
    }

    /// Brings the tables before the first block, where tapdisk takes them to lie.
    fn mend_layout(&mut self) -> Result<(), RepairError> {
        let image = self.open()?;
        if !image.footer().promises_batmap() || image.is_laid_out()? {
            return Ok(());
        }
        let mut writable = Image::writable_from_container(self.container.clone())?;
        writable.lay_out()?;
        writable.close()?;
        self.note("tables-behind-blocks", "the tables are brought before the first block; blocks make room for them");
        Ok(())
    }

    /// Checks what has become of the image: no error may be left, nothing that a repair mends, and no warning that was
    /// not there before.
    fn finish(&mut self, before: &check::Report) -> Result<(), RepairError> {
        let after = check::container(self.container.clone())?;
        let before: Vec<_> = before.findings().iter().map(|finding| finding.code).collect();
        // What stands in the way of all else may have hidden it.
        let was_hidden = HIDING.iter().any(|code| before.contains(code));
        let is_wrong = |finding: &&Finding| match finding.severity {
            _ if MENDED.contains(&finding.code) => true,
            Severity::Info => false,
            Severity::Error => true,
            Severity::Warning => !was_hidden && !before.contains(&finding.code),
        };
        let wrong: Vec<_> = after.findings().iter().filter(is_wrong).cloned().collect();
        if !wrong.is_empty() {
            return Err(RepairError::Remaining { path: self.container.path().into(), findings: wrong });
        }
        self.left = after.findings().to_vec();
        Ok(())
    }

    fn note(&mut self, code: &'static str, text: impl Into<String>) {
        if self.mended.iter().filter(|mended| mended.code == code).count() < LISTED_PER_CODE {
            self.mended.push(Mended { code, text: text.into() });
        } else {
            *self.unlisted.entry(code).or_default() += 1;
        }
    }

    fn open(&self) -> Result<Image<ReadOnly>, RepairError> {
        Ok(Image::from_container(self.container.clone())?)
    }

    fn unique_id(&self) -> Result<Uuid, RepairError> {
        Ok(Footers::read(&self.container)?.unique_id().unwrap_or_default())
    }

    /// Bytes that are replaced, cut off or added.
    fn changed(&self) -> Result<ByteCount, RepairError> {
        let ranges = self.overlay.changed().map_err(undo::read(&self.container))?;
        Ok(ByteCount(ranges.iter().map(|range| range.end.0 - range.start.0).sum()))
    }

    fn into_repaired(self, resumed: bool, changed: ByteCount, undo: Option<PathBuf>) -> Repaired {
        let Self { mut mended, lost, left, journal, unlisted, .. } = self;
        let more = |(code, count)| Mended { code, text: format!("{count} more of this kind") };
        mended.extend(unlisted.into_iter().map(more));
        Repaired { resumed, mended, lost: joined(lost), left, changed, undo, journal }
    }
}

/// Sorts ranges, and makes one of those that touch.
fn joined(mut ranges: Vec<SectorRange>) -> Vec<SectorRange> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<SectorRange> = Vec::new();
    for range in ranges.into_iter().filter(|range| !range.is_empty()) {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}
