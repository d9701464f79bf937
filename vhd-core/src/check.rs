//! Finding what is wrong with an image. Nothing is changed, and nothing stops at the first finding.

mod blocks;
mod deep;
mod footers;
mod header;
mod kind;
mod parents;

pub use kind::{KINDS, Kind};
pub use parents::chain;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::block_size::BlockSize;
use crate::footer::DiskType;
use crate::image::{Image, OpenError, ReadOnly};
use crate::repair::journal;
use crate::storage::{Container, FileStorage, Lock, StorageError};
use crate::units::{ByteCount, FileOffset, SECTOR_SIZE};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Info,
    /// The content is safe, but something that guards or describes it is lost or wrong.
    Warning,
    /// Content is lost, or some reader would read it wrong.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One thing found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// A stable name for this kind of finding.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// Where in the file.
    pub offset: Option<FileOffset>,
    /// What it means.
    pub text: String,
    /// What to do about it.
    pub remedy: &'static str,
}

/// Findings of one kind that are listed one by one; of the rest only the number is.
const LISTED_PER_CODE: usize = 64;

/// What was found in one file.
#[derive(Debug, Default)]
pub struct Report {
    findings: Vec<Finding>,
    unlisted: Vec<(&'static Kind, u64)>,
}

impl Report {
    fn add(&mut self, kind: &'static Kind, offset: Option<FileOffset>, text: impl Into<String>) {
        let Kind { code, severity, remedy, .. } = *kind;
        if self.findings.iter().filter(|finding| finding.code == code).count() < LISTED_PER_CODE {
            self.findings.push(Finding { code, severity, offset, text: text.into(), remedy });
            return;
        }
        match self.unlisted.iter_mut().find(|(other, _)| other.code == code) {
            Some((_, count)) => *count += 1,
            None => self.unlisted.push((kind, 1)),
        }
    }

    fn close(&mut self) {
        for (&Kind { code, severity, remedy, .. }, count) in std::mem::take(&mut self.unlisted) {
            let text = format!("{count} more findings of this kind");
            self.findings.push(Finding { code, severity, offset: None, text, remedy });
        }
    }

    /// The findings, in the order of the checks.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The severity of the worst finding; `None` where there is none.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }
}

/// How far to look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Depth {
    /// At everything that describes data: of each block only the bitmap is read.
    #[default]
    Structure,
    /// At the data, too: whether there is some that its bitmap does not show.
    Data,
}

/// Checks one file: footers, header, BAT, bitmaps, batmap, locators. Its parents are another matter: [`chain`].
///
/// Time and reading are linear in the number of allocated blocks.
///
/// # Errors
/// A file that cannot be opened or read at all.
pub fn file(path: &Path) -> Result<Report, StorageError> {
    file_to(path, Depth::Structure)
}

/// As [`file()`], to a depth; where the data is looked at, time and reading are linear in that.
///
/// # Errors
/// As [`file()`].
pub fn file_to(path: &Path, depth: Depth) -> Result<Report, StorageError> {
    let storage = FileStorage::open(path, Lock::None).map_err(|source| StorageError::from_open(path, source))?;
    container_to(&Container::new(path, Arc::new(storage)), depth)
}

/// As [`file()`], for any store.
///
/// # Errors
/// A store that cannot be read.
#[expect(clippy::needless_pass_by_value, reason = "what is checked is not used any more")]
pub fn container(container: Container) -> Result<Report, StorageError> {
    container_to(&container, Depth::Structure)
}

/// As [`file_to`], for any store.
///
/// # Errors
/// A store that cannot be read.
pub fn container_to(container: &Container, depth: Depth) -> Result<Report, StorageError> {
    let mut report = Report::default();
    if footers::check(container, &mut report)? {
        match Image::<ReadOnly>::from_container(container.clone()) {
            Err(OpenError::Storage(error)) => return Err(error),
            Err(error) => header::explain(container, &error, &mut report)?,
            Ok(image) => {
                check_footer_fields(&image, &mut report)?;
                header::check(&image, &mut report);
                blocks::check(&image, &mut report)?;
                if depth == Depth::Data {
                    deep::check(&image, &mut report)?;
                }
                parents::check_locators(&image, &mut report)?;
            }
        }
    }
    report.close();
    Ok(report)
}

fn chain_of_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn check_footer_fields(image: &Image<ReadOnly>, report: &mut Report) -> Result<(), StorageError> {
    let footer = image.footer();
    let size = footer.current_size();
    if footer.poisoned() {
        let journal = image
            .container()
            .storage()
            .as_file()
            .map_or(String::new(), |_| format!("; {}", journal::describe(image.path(), footer.unique_id())));
        let text = format!("a resize was interrupted: the tables may not match the data{journal}");
        report.add(&kind::RESIZE_UNFINISHED, Some(FileOffset(0)), text);
    }
    let room = image.footer_origin().room(image.container().len()?).0;
    if footer.disk_type() == DiskType::Fixed && size.0 < room && !image.container().has_fixed_size() {
        let text = format!(
            "{} bytes between the end of the disk by current_size and the footer belong to nothing",
            room - size.0
        );
        report.add(&kind::STRAY_BYTES, Some(FileOffset(size.0)), text);
    }
    if !size.0.is_multiple_of(SECTOR_SIZE) {
        let text =
            format!("the disk has {size} bytes, which is not a whole number of sectors; the rest is not readable");
        report.add(&kind::SIZE_ODD, None, text);
    }
    let geometry = footer.geometry();
    let by_geometry = u64::from(geometry.cylinders) * u64::from(geometry.heads) * u64::from(geometry.sectors_per_track);
    let by_geometry = ByteCount(by_geometry * SECTOR_SIZE);
    let old_creator = matches!(&footer.creator_application(), b"vpc " | b"vs  " | b"qemu");
    if old_creator && by_geometry != size {
        let text = format!(
            "some readers go by the geometry for images of this creator and see {by_geometry} bytes; the size says {size}"
        );
        report.add(&kind::GEOMETRY_DIFFERS, None, text);
    }
    if footer.saved_state() {
        let text = "the virtual machine was suspended when it last used this disk";
        report.add(&kind::SAVED_STATE, None, text);
    }
    if let Some(header) = image.header()
        && header.block_size() != BlockSize::DEFAULT
    {
        let text = format!("blocks of {} bytes; blktap reads only 2 MiB", header.block_size());
        report.add(&kind::BLOCK_SIZE, None, text);
    }
    Ok(())
}
