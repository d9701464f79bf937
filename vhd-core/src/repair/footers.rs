//! The footers: each is made anew from the other.

use uuid::Uuid;

use super::{Plan, RepairError};
use crate::block_size::BlockPlace;
use crate::footer::{DiskType, FOOTER_SIZE, Footer};
use crate::image::{FooterOrigin, Image, ReadOnly};
use crate::storage::{Container, StorageError};
use crate::units::{ByteCount, FileOffset, SECTOR_SIZE};
use crate::write::last_used;

/// The footers that can be read.
#[derive(Debug)]
pub(super) struct Footers {
    /// The one at the end, and where it starts.
    end: Option<(Footer, FileOffset)>,
    /// The copy at the start.
    start: Option<Footer>,
}

impl Footers {
    /// Looks for them where readers do.
    pub(super) fn read(container: &Container) -> Result<Self, StorageError> {
        let len = container.len()?;
        let read = |at: Option<u64>, length: usize| {
            let mut bytes = [0; FOOTER_SIZE.0 as usize];
            let at = at.filter(|at| at + length as u64 <= len.0);
            at.map(|at| container.read_at(&mut bytes[..length], FileOffset(at))).transpose()?;
            Ok::<_, StorageError>(Footer::try_from(&bytes).ok().zip(at.map(FileOffset)))
        };
        let mut end = read(len.0.checked_sub(512), 512)?;
        if end.is_none() {
            end = read(len.0.checked_sub(511), 511)?;
        }
        // At the start of a fixed image is the guest's first sector.
        let start = read(Some(0), 512)?.map(|(footer, _)| footer);
        Ok(Self { end, start: start.filter(|footer| footer.disk_type() != DiskType::Fixed) })
    }

    /// The one that counts.
    pub(super) fn best(&self) -> Option<&Footer> {
        self.end.as_ref().map(|(footer, _)| footer).or(self.start.as_ref())
    }

    /// Where the one at the end is.
    pub(super) fn end_place(&self) -> Option<FileOffset> {
        self.end.as_ref().map(|(_, at)| *at)
    }

    /// Who the image is, as far as either tells.
    pub(super) fn unique_id(&self) -> Option<Uuid> {
        self.best().map(Footer::unique_id)
    }

    /// Tells whether either says that a resize has not ended.
    pub(super) fn poisoned(&self) -> bool {
        self.end.iter().map(|(footer, _)| footer).chain(&self.start).any(Footer::poisoned)
    }
}

impl Plan<'_> {
    /// Writes the footer that counts to both places, the one at the end behind the last block or table.
    ///
    /// Bytes that belong to nothing stay where they are, but for those that the footer takes the place of.
    pub(super) fn mend_footers(&mut self) -> Result<(), RepairError> {
        let image = self.open()?;
        let (container, footer) = (&self.container, image.footer().to_bytes());
        let mut notes: Vec<(&'static str, String)> = Vec::new();
        let len = container.len()?;
        let used = image.tables.as_ref().map(|tables| last_used(container, tables)).transpose()?;
        let stands = match image.footer_origin() {
            FooterOrigin::End => Some((FileOffset(len.0 - 512), 512)),
            FooterOrigin::End511 => Some((FileOffset(len.0 - 511), 511)),
            FooterOrigin::Start => None,
        };
        let at = match (stands, used) {
            (Some((at, _)), Some(used)) if self.is_over_block(&image, at)? => self.footer_place(used, len)?,
            (Some((at, _)), _) => at,
            (None, used) => self.footer_place(used.unwrap_or(FileOffset(len.0)), len)?,
        };
        if stands.is_none() {
            notes
                .push(("footer-end-lost", format!("the footer is written at offset {at}, from its copy at the start")));
        }
        if let Some((old, length)) = stands {
            if old != at {
                container.write_at(&[0; 512][..length], old)?;
                let text = format!("the footer at offset {old} lies over a block, and moves to {at}");
                notes.push(("block-truncated", text));
            } else if length == 511 {
                notes.push(("footer-511", format!("the footer at offset {at} gets its last byte")));
            }
        }
        if stands != Some((at, 512)) {
            container.write_at(&footer, at)?;
            if !container.has_fixed_size() {
                container.set_len(ByteCount(at.0 + FOOTER_SIZE.0))?;
            }
        }
        if image.header().is_some() {
            let mut copy = [0; FOOTER_SIZE.0 as usize];
            container.read_at(&mut copy, FileOffset(0))?;
            if copy != footer {
                container.write_at(&footer, FileOffset(0))?;
                let lost = Footer::try_from(&copy).is_err();
                let code = if lost { "footer-copy-lost" } else { "footer-copy-differs" };
                notes.push((code, "the copy of the footer at the start is made anew from the one at the end".into()));
            }
        }
        notes.into_iter().for_each(|(code, text)| self.note(code, text));
        Ok(())
    }

    /// Tells whether a footer at `at` lies over a block, or before one. Batmaps of some sizes reach under it, as blktap
    /// makes them.
    fn is_over_block(&self, image: &Image<ReadOnly>, at: FileOffset) -> Result<bool, StorageError> {
        let Some(tables) = &image.tables else { return Ok(false) };
        let size = tables.header.block_size();
        for found in tables.bat.allocated(&self.container, tables.bat.entries()) {
            let place = BlockPlace::from_entry(found?.1, size);
            if tables.fault_of(place).is_none() && place.data + size.bytes() > at {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Where a footer goes that has no place at the end, or the wrong one: into the last 512 bytes where they belong to
    /// nothing, else behind `used`.
    fn footer_place(&self, used: FileOffset, len: ByteCount) -> Result<FileOffset, RepairError> {
        let last = len.0.saturating_sub(FOOTER_SIZE.0);
        if !self.container.has_fixed_size() {
            return Ok(used.max(FileOffset(last)).next_sector());
        }
        if used.0 > last {
            return Err(RepairError::NoRoom { path: self.container.path().into(), end: used });
        }
        Ok(FileOffset(last))
    }
}

impl FileOffset {
    /// It, or the next multiple of 512.
    fn next_sector(self) -> Self {
        Self(self.0.next_multiple_of(SECTOR_SIZE))
    }
}
