//! Taking a resize back.

use std::path::Path;

use super::{END_FOOTER, Entry, FIRST_FOOTER, Journal, STEP};
use crate::footer::{FOOTER_SIZE, Footer};
use crate::image::OpenError;
use crate::repair::footers::Footers;
use crate::repair::{JournalError, RepairError, open_writable};
use crate::storage::{Container, StorageError};
use crate::units::{ByteCount, FileOffset};

/// Makes the image at `path` what it was when the journal at `journal` was made for it, and removes the journal.
///
/// # Errors
/// No journal; one that is damaged, was made for another image, or was made before the image was used again: then
/// nothing has changed. A failed read or write.
///
/// # Crash safety
/// Can be repeated: until all old bytes are durable the image says that its resize has not ended, and until the footers
/// are, too, the journal stays.
pub fn revert_resize(path: &Path, journal: &Path) -> Result<(), RepairError> {
    let image = open_writable(path)?;
    revert_container(&image, journal)
}

/// As [`revert_resize`], for any store that nobody else uses.
///
/// # Errors
/// As [`revert_resize`].
///
/// # Crash safety
/// As [`revert_resize`].
pub fn revert_container(image: &Container, journal: &Path) -> Result<(), RepairError> {
    let journal = Journal::read(journal)?;
    let footers = Footers::read(image)?;
    let Some(footer) = footers.best().filter(|footer| footer.unique_id() == journal.unique_id) else {
        let (path, found) = (journal.path().into(), journal.unique_id);
        return Err(JournalError::OtherImage { path, expected: footers.unique_id().unwrap_or_default(), found }.into());
    };
    // Between the end of its last block and its new footer a file may be short of the old footer, which the journal keeps.
    if !journal.restores_footers()? || image.len()? + FOOTER_SIZE < journal.old_len {
        return Err(JournalError::NoImage { path: journal.path().into() }.into());
    }
    if !footer.poisoned() && journal.is_restored(image)? {
        journal.restore_entries(image, FIRST_FOOTER)?;
        image.sync()?;
    } else if footer.poisoned() || journal.is_of_ended(image)? {
        journal.take_back(image)?;
    } else {
        return Err(JournalError::Stale { path: journal.path().into(), image: image.path().into() }.into());
    }
    journal.remove()
}

/// Says that a resize has not ended, the footer that readers go by first.
fn poison(image: &Container, footers: &Footers, footer: &Footer) -> Result<(), StorageError> {
    let mut footer = footer.clone();
    footer.set_poisoned(true);
    for at in footers.end_place().into_iter().chain([FileOffset(0)]) {
        image.write_at(&footer.to_bytes(), at)?;
        image.sync()?;
    }
    Ok(())
}

impl Journal {
    /// Makes the image what it was, whatever a resize has made of it.
    ///
    /// # Crash safety
    /// The image says that its resize has not ended before anything changes. Can be repeated.
    pub(crate) fn take_back(&self, image: &Container) -> Result<(), StorageError> {
        let footers = Footers::read(image)?;
        if let Some(footer) = footers.best().filter(|footer| !footer.poisoned()) {
            poison(image, &footers, footer)?;
        }
        self.restore(image)
    }

    /// Writes all old bytes back and gives the image its old length.
    ///
    /// What was logged first was there first, so it is written last.
    ///
    /// # Crash safety
    /// The footers follow, the one at the end first, once everything else is durable.
    pub(in crate::repair) fn restore(&self, image: &Container) -> Result<(), StorageError> {
        for entry in self.entries.iter().rev().filter(|entry| entry.kind > FIRST_FOOTER) {
            self.restore_entry(image, self.between_footers(*entry))?;
        }
        image.set_len(self.old_len)?;
        image.sync()?;
        for kind in [END_FOOTER, FIRST_FOOTER] {
            self.restore_entries(image, kind)?;
            image.sync()?;
        }
        Ok(())
    }

    fn restore_entries(&self, image: &Container, kind: u32) -> Result<(), StorageError> {
        let mut of_kind = self.entries.iter().rev().filter(|entry| entry.kind == kind);
        of_kind.try_for_each(|entry| self.restore_entry(image, *entry))
    }

    fn restore_entry(&self, image: &Container, entry: Entry) -> Result<(), StorageError> {
        self.pieces(entry, |bytes, at| image.write_at(bytes, at))
    }

    /// The part of an entry that lies under neither footer: those have entries of their own.
    fn between_footers(&self, entry: Entry) -> Entry {
        let end = FileOffset(self.old_len.0 - FOOTER_SIZE.0);
        let start = entry.at.max(FileOffset(FOOTER_SIZE.0));
        let length = (entry.at + ByteCount(entry.length)).min(end).0.saturating_sub(start.0);
        Entry { at: start, length, bytes_at: entry.bytes_at + (start - entry.at), ..entry }
    }

    fn pieces(
        &self,
        entry: Entry,
        mut visit: impl FnMut(&[u8], FileOffset) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        for step in (0..entry.length).step_by(STEP as usize) {
            let mut bytes = vec![0; (entry.length - step).min(STEP) as usize];
            self.container.read_at(&mut bytes, entry.bytes_at + ByteCount(step))?;
            visit(&bytes, entry.at + ByteCount(step))?;
        }
        Ok(())
    }

    /// Tells whether both footers are in it, of the image that it was made for, as it was before the resize.
    fn restores_footers(&self) -> Result<bool, StorageError> {
        let end = FileOffset(self.old_len.0 - FOOTER_SIZE.0);
        for (kind, at) in [(END_FOOTER, end), (FIRST_FOOTER, FileOffset(0))] {
            let of_kind: Vec<_> = self.entries.iter().filter(|entry| entry.kind == kind).collect();
            let &[&Entry { at: found, length, bytes_at, .. }] = &*of_kind else { return Ok(false) };
            let mut bytes = [0; FOOTER_SIZE.0 as usize];
            if (found, length) != (at, FOOTER_SIZE.0) {
                return Ok(false);
            }
            self.container.read_at(&mut bytes, bytes_at)?;
            let is_ours = |footer: Footer| !footer.poisoned() && footer.unique_id() == self.unique_id;
            if !Footer::try_from(&bytes).is_ok_and(is_ours) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Tells whether the image is what it was, but perhaps for the copy of its footer.
    fn is_restored(&self, image: &Container) -> Result<bool, StorageError> {
        let mut same = image.len()? == self.old_len;
        for entry in self.entries.iter().filter(|entry| entry.kind != FIRST_FOOTER) {
            let entry = if entry.kind == END_FOOTER { *entry } else { self.between_footers(*entry) };
            self.pieces(entry, |bytes, at| {
                let mut found = vec![0; bytes.len()];
                image.read_at(&mut found, at)?;
                same &= found == bytes;
                Ok(())
            })?;
        }
        Ok(same)
    }

    /// Tells whether the image is what the resize has made of it.
    fn is_of_ended(&self, image: &Container) -> Result<bool, RepairError> {
        let Some(ended) = self.ended else { return Ok(false) };
        match self.digest(image) {
            Err(OpenError::Storage(error)) => Err(error.into()),
            digest => Ok(digest.is_ok_and(|digest| digest == ended)),
        }
    }
}
