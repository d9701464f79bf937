//! Where new blocks go: at the end of the file, data on 4 KiB boundaries.

use super::{WriteError, locked};
use crate::block_size::BlockPlace;
use crate::footer::FOOTER_SIZE;
use crate::image::{FooterOrigin, Image, OpenError, Tables};
use crate::layout;
use crate::storage::{Container, StorageError};
use crate::units::{BlockIndex, ByteCount, FileOffset};
use crate::write::ReadWrite;

/// The end of what the file holds.
#[derive(Debug)]
pub(super) struct Tail {
    /// The end of the last block or table.
    pub(super) end: FileOffset,
    /// The end of the last block, where there is one.
    blocks_end: Option<FileOffset>,
    /// Where a good end footer stands on disk.
    pub(super) footer: Option<FileOffset>,
    /// Whether the end has moved since the footer was written.
    grown: bool,
    /// The length that the file has been given; it is never cut below that while open.
    len: ByteCount,
}

impl Tail {
    pub(super) fn find(
        container: &Container,
        origin: FooterOrigin,
        tables: Option<&Tables>,
        is_cut: bool,
    ) -> Result<Self, OpenError> {
        let len = container.len()?;
        let footer = match origin {
            FooterOrigin::End => Some(FileOffset(len.0 - FOOTER_SIZE.0)),
            FooterOrigin::End511 => Some(FileOffset(len.0 - (FOOTER_SIZE.0 - 1))),
            FooterOrigin::Start => None,
        };
        let end = match tables {
            Some(_) if container.has_fixed_size() => FileOffset(0),
            _ => footer.unwrap_or(FileOffset(len.0)),
        };
        let used = tables.map(|tables| used(container, tables)).transpose()?.unwrap_or_default();
        // A block that reaches over the footer holds nothing there, or the file was cut. Of these two only the first is
        // written to: the next block goes past it, and what the guest writes over this one stays.
        let footer = footer.filter(|&footer| is_cut || used.blocks_end <= footer || container.has_fixed_size());
        Ok(Self { end: end.max(used.by_all), blocks_end: used.by_blocks(), footer, grown: false, len })
    }
}

/// The end of the last table, locator or block.
pub(crate) fn last_used(container: &Container, tables: &Tables) -> Result<FileOffset, StorageError> {
    Ok(used(container, tables)?.by_all)
}

/// How far the file is in use. On a device nothing else tells it; in a file the last block may be cut short by the end, and
/// blktap lets some batmaps reach under the footer.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    /// The end of the last block; 0 where there is none.
    blocks_end: FileOffset,
    /// The end of the last table, locator or block.
    by_all: FileOffset,
}

impl Used {
    fn by_blocks(self) -> Option<FileOffset> {
        (self.blocks_end.0 > 0).then_some(self.blocks_end)
    }
}

fn used(container: &Container, tables: &Tables) -> Result<Used, StorageError> {
    let size = tables.header.block_size();
    let mut blocks_end = FileOffset(0);
    for found in tables.bat.allocated(container, tables.bat.entries()) {
        let place = BlockPlace::from_entry(found?.1, size);
        if tables.fault_of(place).is_none() {
            blocks_end = blocks_end.max(place.data + size.bytes());
        }
    }
    Ok(Used { blocks_end, by_all: blocks_end.max(layout::end_of_tables(tables)) })
}

impl Image<ReadWrite> {
    /// Takes the next places at the end of the file.
    ///
    /// The file grows to the last block's end and 512 bytes more, all of it a hole: the footer that stood at the end is not
    /// touched, so cutting the file brings it back, and the guest never decides what the last 512 bytes of the file are.
    /// Meanwhile the copy of the footer at the start speaks for the image.
    pub(crate) fn allocate(&self, tables: &Tables, blocks: &[BlockIndex]) -> Result<Vec<BlockPlace>, WriteError> {
        self.check_can_grow()?;
        let size = tables.header.block_size();
        let mut tail = locked(&self.mode.tail);
        let (mut end, mut blocks_end) = (tail.end, tail.blocks_end);
        let mut places = Vec::with_capacity(blocks.len());
        for &block in blocks {
            // A footer may stand at the end, and is spared.
            let place = layout::place_from(end + FOOTER_SIZE, blocks_end, size);
            if place.to_entry().is_none() {
                return Err(WriteError::FileFull { path: self.path().into(), block, place: place.bitmap });
            }
            end = place.data + size.bytes();
            blocks_end = Some(end);
            places.push(place);
        }
        if end > tail.end {
            self.extend(&mut tail, end)?;
            tail.blocks_end = blocks_end;
        }
        Ok(places)
    }

    /// Takes `length` bytes at the end of the file, on a 4 KiB boundary, for something other than blocks.
    pub(crate) fn allocate_bytes(&self, length: ByteCount) -> Result<FileOffset, WriteError> {
        let mut tail = locked(&self.mode.tail);
        let at = FileOffset((tail.end.0 + FOOTER_SIZE.0).next_multiple_of(layout::DATA_ALIGNMENT));
        self.extend(&mut tail, at + length)?;
        Ok(at)
    }

    /// Where a good end footer stands.
    pub(crate) fn end_footer(&self) -> Option<FileOffset> {
        locked(&self.mode.tail).footer
    }

    /// Tells whether no good footer stands at the end, as after a crash.
    pub(super) fn lacks_end_footer(&self) -> bool {
        locked(&self.mode.tail).footer.is_none()
    }

    /// Ends the file after the last table or block, with a footer.
    pub(crate) fn cut_tail(&self) -> Result<(), StorageError> {
        let Some(tables) = self.tables.as_ref().filter(|_| !self.is_cut()) else { return Ok(()) };
        let mut tail = locked(&self.mode.tail);
        let used = used(&self.container, tables)?;
        let (end, blocks_end) = (used.by_all, used.by_blocks());
        if tail.footer.is_some() && tail.end <= end {
            return Ok(());
        }
        self.container.set_len(ByteCount(end.0))?;
        self.container.write_at(&self.current_footer().to_bytes(), end)?;
        self.container.sync()?;
        *tail = Tail { end, blocks_end, footer: Some(end), grown: false, len: ByteCount(end.0 + FOOTER_SIZE.0) };
        tables.set_file_len(tail.len);
        Ok(())
    }

    /// Ends what the file holds after the last table or block; a device keeps its length.
    pub(crate) fn end_after_blocks(&self) -> Result<(), StorageError> {
        if !self.container.has_fixed_size() {
            return self.cut_tail();
        }
        if let Some(tables) = &self.tables {
            let used = used(&self.container, tables)?;
            let mut tail = locked(&self.mode.tail);
            (tail.end, tail.blocks_end) = (used.by_all, used.by_blocks());
        }
        Ok(())
    }

    /// Ends the file of a fixed disk after the disk, with a footer: one that stands further on goes once that is durable.
    pub(crate) fn cut_fixed(&self) -> Result<(), StorageError> {
        let mut tail = locked(&self.mode.tail);
        let end = FileOffset(self.footer.current_size().0);
        if self.container.has_fixed_size() || tail.footer.is_none_or(|footer| footer < end + FOOTER_SIZE) {
            return Ok(());
        }
        let len = ByteCount(end.0 + FOOTER_SIZE.0);
        self.container.write_at(&self.current_footer().to_bytes(), end)?;
        self.container.sync()?;
        self.container.set_len(len)?;
        self.container.sync()?;
        *tail = Tail { end, blocks_end: None, footer: Some(end), grown: false, len };
        Ok(())
    }

    /// Moves the end of what the file holds to `end`, further on; the file follows when the footer is written there.
    pub(crate) fn move_tail(&self, end: FileOffset) {
        let mut tail = locked(&self.mode.tail);
        tail.end = end;
        tail.grown = true;
        tail.len = tail.len.max(ByteCount(end.0 + FOOTER_SIZE.0));
    }

    /// The end of what the file holds.
    pub(crate) fn tail_end(&self) -> FileOffset {
        locked(&self.mode.tail).end
    }

    fn extend(&self, tail: &mut Tail, end: FileOffset) -> Result<(), StorageError> {
        let len = ByteCount(end.0 + FOOTER_SIZE.0);
        if len > tail.len {
            self.container.set_len(len)?;
            tail.len = len;
            self.tables.iter().for_each(|tables| tables.set_file_len(len));
        }
        tail.end = end;
        tail.grown = true;
        Ok(())
    }

    /// Writes the end footer where the file now ends; returns where an older one stands that no longer is the end.
    pub(crate) fn write_end_footer(&self) -> Result<Option<FileOffset>, StorageError> {
        let mut tail = locked(&self.mode.tail);
        if self.is_cut() && tail.footer.is_none() {
            // The copy at the start speaks for the image, and the file stays as short as it is.
            return Ok(None);
        }
        let at = match tail.footer {
            Some(footer) if !tail.grown || self.container.has_fixed_size() => footer,
            None if self.container.has_fixed_size() => FileOffset(self.container.len()?.0 - FOOTER_SIZE.0),
            _ => tail.end,
        };
        self.container.write_at(&self.current_footer().to_bytes(), at)?;
        tail.grown = false;
        let old = tail.footer.replace(at);
        Ok(old.filter(|old| at.0 >= old.0 + FOOTER_SIZE.0))
    }

    /// Writes the end footer anew where a good one stands.
    pub(crate) fn rewrite_end_footer(&self) -> Result<(), StorageError> {
        let tail = locked(&self.mode.tail);
        tail.footer.map_or(Ok(()), |at| self.container.write_at(&self.current_footer().to_bytes(), at))
    }

    /// Cuts the file back to the end footer that is known to be on disk, where writes that failed have left it longer:
    /// nothing shows what lies beyond. Best effort: without it the copy at the start speaks for the image.
    pub(super) fn cut_back(&self) {
        let tail = locked(&self.mode.tail);
        let (Some(footer), true, false) = (tail.footer, tail.grown, self.container.has_fixed_size()) else { return };
        let ends_there = |tables| used(&self.container, tables).is_ok_and(|used| used.by_all <= footer);
        if self.tables.as_ref().is_none_or(ends_there) {
            // The write that failed is what the caller hears of.
            let _ = self.container.set_len(ByteCount(footer.0 + FOOTER_SIZE.0));
        }
    }
}
