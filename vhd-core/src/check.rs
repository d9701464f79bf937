//! Finding what is wrong with an image. Nothing is changed, and nothing stops at the first finding.

mod blocks;
mod parents;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::block_size::BlockSize;
use crate::footer::{DiskType, FOOTER_SIZE, Footer};
use crate::image::{FooterOrigin, Image, OpenError, ReadOnly};
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
}

/// Findings of one kind that are listed one by one; of the rest only the number is.
const LISTED_PER_CODE: usize = 64;

/// What was found in one file.
#[derive(Debug, Default)]
pub struct Report {
    findings: Vec<Finding>,
    unlisted: Vec<(&'static str, Severity, u64)>,
}

impl Report {
    fn add(&mut self, severity: Severity, code: &'static str, offset: Option<FileOffset>, text: impl Into<String>) {
        if self.findings.iter().filter(|finding| finding.code == code).count() < LISTED_PER_CODE {
            self.findings.push(Finding { code, severity, offset, text: text.into() });
            return;
        }
        match self.unlisted.iter_mut().find(|(other, ..)| *other == code) {
            Some((_, _, count)) => *count += 1,
            None => self.unlisted.push((code, severity, 1)),
        }
    }

    fn close(&mut self) {
        for (code, severity, count) in std::mem::take(&mut self.unlisted) {
            let text = format!("{count} more findings of this kind");
            self.findings.push(Finding { code, severity, offset: None, text });
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

/// Checks one file: footers, header, BAT, bitmaps, batmap, locators. Its parents are another matter: [`chain`].
///
/// Time and reading are linear in the number of allocated blocks, and of each block only the bitmap is read.
///
/// # Errors
/// A file that cannot be opened or read at all.
pub fn file(path: &Path) -> Result<Report, StorageError> {
    let storage = FileStorage::open(path, Lock::None).map_err(|source| StorageError::from_open(path, source))?;
    container(Container::new(path, Arc::new(storage)))
}

/// As [`file()`], for any store.
///
/// # Errors
/// A store that cannot be read.
pub fn container(container: Container) -> Result<Report, StorageError> {
    let mut report = Report::default();
    match Image::<ReadOnly>::from_container(container) {
        Err(OpenError::Storage(error)) => return Err(error),
        Err(error) => report.add(Severity::Error, "unreadable", offset_of(&error), chain_of_causes(&error)),
        Ok(image) => {
            check_footers(&image, &mut report)?;
            check_footer_fields(&image, &mut report);
            blocks::check(&image, &mut report)?;
            parents::check_locators(&image, &mut report)?;
        }
    }
    report.close();
    Ok(report)
}

pub use parents::chain;

fn offset_of(error: &OpenError) -> Option<FileOffset> {
    match error {
        OpenError::Footer { offset, .. } | OpenError::Header { offset, .. } | OpenError::Outside { offset, .. } => {
            Some(*offset)
        }
        _ => None,
    }
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

fn check_footers(image: &Image<ReadOnly>, report: &mut Report) -> Result<(), StorageError> {
    let len = image.container().len()?;
    let end = FileOffset(len.0.saturating_sub(FOOTER_SIZE.0));
    match image.footer_origin() {
        FooterOrigin::End => {}
        FooterOrigin::End511 => {
            let text =
                "the footer at the end has 511 bytes, as Virtual PC wrote it before 2004; many readers refuse it";
            report.add(Severity::Warning, "footer-511", Some(end), text);
        }
        FooterOrigin::Start => {
            let text =
                "no footer at the end of the file; the copy at the start is used, and many readers do not look there";
            report.add(Severity::Error, "footer-end-lost", Some(end), text);
        }
    }
    if image.footer().disk_type() == DiskType::Fixed || image.footer_origin() == FooterOrigin::Start {
        return Ok(());
    }
    let mut bytes = [0; FOOTER_SIZE.0 as usize];
    image.container().read_at(&mut bytes, FileOffset(0))?;
    match Footer::try_from(&bytes) {
        Err(error) => {
            let text = format!("the copy of the footer at the start is lost: {error}");
            report.add(Severity::Warning, "footer-copy-lost", Some(FileOffset(0)), text);
        }
        Ok(copy) if copy.to_bytes() != image.footer().to_bytes() => {
            let text = "the footer at the end and its copy at the start differ; the one at the end counts";
            report.add(Severity::Warning, "footer-copy-differs", Some(FileOffset(0)), text);
        }
        Ok(_) => {}
    }
    Ok(())
}

fn check_footer_fields(image: &Image<ReadOnly>, report: &mut Report) {
    let footer = image.footer();
    let size = footer.current_size();
    if footer.poisoned() {
        let text = "a resize was interrupted: the tables may not match the data; revert it with its journal";
        report.add(Severity::Error, "resize-unfinished", Some(FileOffset(0)), text);
    }
    if !size.0.is_multiple_of(SECTOR_SIZE) {
        let text =
            format!("the disk has {size} bytes, which is not a whole number of sectors; the rest is not readable");
        report.add(Severity::Warning, "size-odd", None, text);
    }
    let geometry = footer.geometry();
    let by_geometry = u64::from(geometry.cylinders) * u64::from(geometry.heads) * u64::from(geometry.sectors_per_track);
    let by_geometry = ByteCount(by_geometry * SECTOR_SIZE);
    let old_creator = matches!(&footer.creator_application(), b"vpc " | b"vs  " | b"qemu");
    if old_creator && by_geometry != size {
        let text = format!(
            "some readers go by the geometry for images of this creator and see {by_geometry} bytes; the size says {size}"
        );
        report.add(Severity::Warning, "geometry-differs", None, text);
    }
    if footer.saved_state() {
        let text = "the virtual machine was suspended when it last used this disk";
        report.add(Severity::Info, "saved-state", None, text);
    }
    if let Some(header) = image.header()
        && header.block_size() != BlockSize::DEFAULT
    {
        let text = format!("blocks of {} bytes; blktap reads only 2 MiB", header.block_size());
        report.add(Severity::Info, "block-size", None, text);
    }
}
