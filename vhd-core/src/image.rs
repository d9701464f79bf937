//! One image: its tables, and where its sectors are.

mod open;
mod tables;

pub use open::{FooterOrigin, OpenError};
pub use tables::{BlockFault, Region};

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use crate::batmap::{Batmap, BatmapState};
use crate::block_size::BlockPlace;
use crate::footer::{DiskType, FOOTER_SIZE, Footer};
use crate::gate;
use crate::header::Header;
use crate::locator::{LocatorEntry, MAX_LOCATOR_LENGTH};
use crate::new_file::folder_of;
use crate::resolve::{BlockBits, Extents, Source, resolve_block};
use crate::storage::{Container, StorageError};
use crate::units::{BlockIndex, ByteCount, FileOffset, SECTOR_SIZE, Sector, SectorCount, SectorRange};
use crate::write::last_used;

pub(crate) use tables::Tables;

/// The mode of an image that is only read.
#[derive(Debug)]
pub struct ReadOnly(());

/// An open image: [`ReadOnly`], which never changes the file, or [`ReadWrite`](crate::ReadWrite).
#[derive(Debug)]
pub struct Image<Mode> {
    pub(crate) container: Container,
    pub(crate) footer: Footer,
    pub(crate) origin: FooterOrigin,
    /// What a fixed image does not have.
    pub(crate) tables: Option<Tables>,
    pub(crate) mode: Mode,
}

/// Why content cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A BAT entry cannot be true.
    #[error("{}: the BAT puts block {block} at offset {place}, but {fault}", path.display())]
    Block {
        /// The image.
        path: PathBuf,
        /// The block.
        block: BlockIndex,
        /// Where the BAT says it is.
        place: FileOffset,
        /// Why that cannot be.
        fault: BlockFault,
    },
    /// The range is not on the disk.
    #[error("{}: sectors {range} end after the disk's last, {size}", path.display())]
    Range {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        range: SectorRange,
        /// The disk's sectors.
        size: SectorCount,
    },
}

impl<Mode> Image<Mode> {
    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        self.container.path()
    }

    /// Its storage.
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// Its footer.
    pub fn footer(&self) -> &Footer {
        &self.footer
    }

    /// Which of the copies of the footer was read.
    pub fn footer_origin(&self) -> FooterOrigin {
        self.origin
    }

    /// Its header; a fixed image has none.
    pub fn header(&self) -> Option<&Header> {
        self.tables.as_ref().map(|tables| &tables.header)
    }

    /// Its batmap, where its creator writes one.
    pub fn batmap(&self) -> Option<&Batmap> {
        match &self.tables.as_ref()?.batmap {
            BatmapState::Present(batmap) => Some(batmap),
            BatmapState::Absent | BatmapState::Overwritten => None,
        }
    }

    /// Tells whether its creator promises a batmap and none is there.
    pub fn batmap_overwritten(&self) -> bool {
        self.tables.as_ref().is_some_and(|tables| tables.batmap == BatmapState::Overwritten)
    }

    /// The sectors of the virtual disk.
    pub fn sectors(&self) -> SectorCount {
        self.footer.current_size().whole_sectors()
    }

    /// Tells whether it reads what it does not hold from a parent.
    pub fn is_differencing(&self) -> bool {
        self.footer.disk_type() == DiskType::Differencing
    }

    /// Lists the paths under which it looks for its parent, in order; none where it has no parent.
    ///
    /// # Errors
    /// A locator that cannot be read.
    pub fn parent_paths(&self) -> Result<Vec<PathBuf>, StorageError> {
        match self.header().filter(|_| self.is_differencing()) {
            Some(header) => gate::candidates(&self.container, header, folder_of(self.path())),
            None => Ok(Vec::new()),
        }
    }

    /// Reads the text of a locator as it is stored; `None` for one that lies outside the file, or is longer than
    /// [`MAX_LOCATOR_LENGTH`].
    ///
    /// # Errors
    /// A failed read.
    pub fn locator_text(&self, entry: &LocatorEntry) -> Result<Option<Vec<u8>>, StorageError> {
        let end = entry.offset.0.checked_add(entry.length.0);
        let len = self.container.len()?;
        if entry.length > MAX_LOCATOR_LENGTH || end.is_none_or(|end| end > len.0) {
            return Ok(None);
        }
        let mut text = vec![0; entry.length.0 as usize];
        self.container.read_at(&mut text, entry.offset)?;
        Ok(Some(text))
    }

    /// Lists the paths by which it calls its parent, as they are written in it: most are relative to its own folder.
    ///
    /// # Errors
    /// A locator that cannot be read.
    pub fn parent_names(&self) -> Result<Vec<PathBuf>, StorageError> {
        match self.header().filter(|_| self.is_differencing()) {
            Some(header) => gate::candidates(&self.container, header, Path::new("")),
            None => Ok(Vec::new()),
        }
    }

    /// Where the last table, locator or block ends; of a fixed image, whatever lies before the footer.
    ///
    /// # Errors
    /// A BAT that cannot be read.
    pub fn used_end(&self) -> Result<FileOffset, StorageError> {
        match &self.tables {
            Some(tables) => last_used(&self.container, tables),
            None => Ok(FileOffset(self.container.len()?.0.saturating_sub(FOOTER_SIZE.0))),
        }
    }

    /// The parts of the file that hold no blocks.
    pub fn regions(&self) -> impl Iterator<Item = Region> + '_ {
        self.tables.iter().flat_map(Tables::regions)
    }

    /// What a sector without data means in this image.
    pub(crate) fn absent(&self) -> Source {
        if self.is_differencing() { Source::Parent } else { Source::Zero }
    }

    pub(crate) fn check_range(&self, range: SectorRange) -> Result<(), ReadError> {
        if range.end.0 > self.sectors().0 {
            return Err(ReadError::Range { path: self.path().into(), range, size: self.sectors() });
        }
        Ok(())
    }

    /// Looks a block up in the BAT and checks that it can be there.
    pub(crate) fn published_place(&self, tables: &Tables, block: BlockIndex) -> Result<Option<BlockPlace>, ReadError> {
        let Some(entry) = tables.bat.entry(&self.container, block)? else { return Ok(None) };
        self.checked_place(tables, block, entry).map(Some)
    }

    pub(crate) fn checked_place(
        &self,
        tables: &Tables,
        block: BlockIndex,
        entry: u32,
    ) -> Result<BlockPlace, ReadError> {
        let place = BlockPlace::from_entry(entry, tables.header.block_size());
        let mut fault = tables.fault_of(place);
        if let Some(BlockFault::BeyondEnd { .. }) = fault {
            // A merge adds blocks to an image that others have open, and its file grows by that.
            tables.set_file_len(self.container.len()?);
            fault = tables.fault_of(place);
        }
        if fault.is_none() && self.may_be_cut(tables, place) {
            let room = open::room_in(&self.container)?;
            // Its bitmap is not whole, and the footer's bits would tell what it holds.
            fault = (place.data > room).then_some(BlockFault::BeyondEnd { len: ByteCount(room.0) });
        }
        match fault {
            None => Ok(place),
            Some(fault) => Err(ReadError::Block { path: self.path().into(), block, place: place.bitmap, fault }),
        }
    }

    /// Tells whether a block may reach over the footer or the end of the file.
    fn may_be_cut(&self, tables: &Tables, place: BlockPlace) -> bool {
        let end = place.data + tables.header.block_size().bytes() + FOOTER_SIZE;
        end.0 > tables.file_len().0
    }

    /// As [`resolve_block`], for a block that the footer or the end of the file may cut short: sectors that it holds there
    /// are lost, and what is there instead is none of the guest's.
    pub(crate) fn resolve_in_block(
        &self,
        tables: &Tables,
        piece: SectorRange,
        (block, place): (BlockIndex, BlockPlace),
        bits: &BlockBits<'_>,
        extents: &mut Extents,
    ) -> Result<(), ReadError> {
        let start = tables.header.block_size().sectors_of(block).start;
        if self.may_be_cut(tables, place)
            && let Some(last) = bits.last_set(piece, start)
        {
            let end = place.data + SectorCount(last.0 + 1 - start.0).bytes();
            let room = open::room_in(&self.container)?;
            if end > room {
                let fault = BlockFault::CutShort { end, room };
                return Err(ReadError::Block { path: self.path().into(), block, place: place.bitmap, fault });
            }
        }
        resolve_block(piece, start, place.data, bits, self.absent(), extents);
        Ok(())
    }

    /// Checks that no block of the disk has lost sectors that it holds: the file was cut. What is written behind such a block
    /// would make them zeros, and nobody could tell any more. That blocks can be where they are is taken for granted.
    ///
    /// # Errors
    /// [`ReadError::Block`] for the first that has, a failed read.
    pub fn check_not_cut(&self) -> Result<(), ReadError> {
        let Some(tables) = &self.tables else { return Ok(()) };
        let size = tables.header.block_size();
        let mut room = None;
        for found in tables.bat.allocated(&self.container, self.blocks()) {
            let (block, entry) = found?;
            let place = BlockPlace::from_entry(entry, size);
            if !self.may_be_cut(tables, place) {
                continue;
            }
            let room = match room {
                Some(room) => room,
                None => *room.insert(open::room_in(&self.container)?),
            };
            let start = size.sectors_of(block).start;
            let end = (start + size.sectors()).min(Sector(self.sectors().0));
            let piece = SectorRange::between(start, end);
            let bits = BlockBits { bits: Cow::Owned(tables.read_bitmap(&self.container, place)?), first_bit: 0 };
            let held = bits.last_set(piece, start).map_or(SectorCount(0), |last| SectorCount(last.0 + 1 - start.0));
            let end = place.data + held.bytes();
            if end > room {
                let fault = BlockFault::CutShort { end, room };
                return Err(ReadError::Block { path: self.path().into(), block, place: place.bitmap, fault });
            }
        }
        Ok(())
    }

    /// Lists the blocks of the disk that the BAT on disk allocates, in order; blocks that cannot be are errors.
    pub fn allocated_blocks(&self) -> impl Iterator<Item = Result<(BlockIndex, BlockPlace), ReadError>> + '_ {
        self.tables.iter().flat_map(move |tables| {
            tables.bat.allocated(&self.container, self.blocks()).map(move |found| {
                let (block, entry) = found?;
                Ok((block, self.checked_place(tables, block, entry)?))
            })
        })
    }

    /// Counts the blocks of the disk; a fixed image has none.
    pub fn blocks(&self) -> u32 {
        let blocks = self.header().map_or(0, |header| header.block_size().blocks_for(self.footer.current_size()));
        u32::try_from(blocks).expect("checked at opening: the BAT has an entry for each")
    }
}

impl Image<ReadOnly> {
    /// Finds where the content of `range` is, as far as this layer knows.
    ///
    /// # Errors
    /// A range beyond the disk, a BAT entry that cannot be, a failed read.
    pub fn resolve(&self, range: SectorRange, extents: &mut Extents) -> Result<(), ReadError> {
        self.resolve_all(&[range], extents)
    }

    /// As [`resolve`](Self::resolve), for ranges in the order of the disk; each bitmap is read once.
    fn resolve_all(&self, ranges: &[SectorRange], extents: &mut Extents) -> Result<(), ReadError> {
        let Some(last) = ranges.last() else { return Ok(()) };
        self.check_range(*last)?;
        let Some(tables) = &self.tables else {
            ranges.iter().for_each(|&range| extents.push(range, Source::Data(FileOffset(range.start.byte_offset()))));
            return Ok(());
        };
        let block_size = tables.header.block_size();
        let mut read: Option<(BlockIndex, BlockBits<'_>)> = None;
        for piece in ranges.iter().flat_map(|range| range.split_at_multiples(block_size.sectors())) {
            let Some(block) = block_size.block_of(piece.start) else { continue };
            let Some(place) = self.published_place(tables, block)? else {
                extents.push(piece, self.absent());
                continue;
            };
            let bits = match read.take() {
                Some((same, bits)) if same == block => bits,
                _ => {
                    let end = block_size.sectors_of(block).end.min(last.end);
                    tables.read_bits(&self.container, SectorRange::between(piece.start, end), place)?
                }
            };
            self.resolve_in_block(tables, piece, (block, place), &bits, extents)?;
            read = Some((block, bits));
        }
        Ok(())
    }

    /// Counts the sectors of a block that this layer holds.
    pub fn present_sectors(&self, block: BlockIndex) -> Result<SectorCount, ReadError> {
        let Some(tables) = &self.tables else { return Ok(SectorCount(0)) };
        let Some(place) = self.published_place(tables, block)? else { return Ok(SectorCount(0)) };
        let sectors = tables.header.block_size().sectors().0 as u32;
        Ok(SectorCount(u64::from(tables.read_bitmap(&self.container, place)?.count(0..sectors))))
    }
}

/// What is common to all that can be read as a layer of a chain.
#[derive(Debug)]
pub enum Layer {
    /// A VHD.
    Vhd(Box<Image<ReadOnly>>),
    /// A disk's bytes and nothing else.
    Raw(RawDisk),
}

/// A disk's bytes in a file or block device, without any format.
#[derive(Debug)]
pub struct RawDisk {
    container: Container,
    size: ByteCount,
}

impl RawDisk {
    /// Takes a store as a disk, for reading. Where it ends within a sector, that sector is filled up with zeros.
    ///
    /// # Errors
    /// A store whose length cannot be told.
    pub fn open(container: Container) -> Result<Self, StorageError> {
        let size = container.len()?;
        let container = if size.0.is_multiple_of(SECTOR_SIZE) { container } else { container.padded() };
        Ok(Self { size: container.len()?, container })
    }

    /// Its size, in whole sectors.
    pub fn size(&self) -> ByteCount {
        self.size
    }

    /// Its storage.
    pub fn container(&self) -> &Container {
        &self.container
    }
}

impl Layer {
    /// Its storage.
    pub fn container(&self) -> &Container {
        match self {
            Self::Vhd(image) => image.container(),
            Self::Raw(disk) => &disk.container,
        }
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        self.container().path()
    }

    /// The size of its disk.
    pub fn size(&self) -> ByteCount {
        match self {
            Self::Vhd(image) => image.footer.current_size(),
            Self::Raw(disk) => disk.size,
        }
    }

    /// The sectors of its disk.
    pub fn sectors(&self) -> SectorCount {
        self.size().whole_sectors()
    }

    /// It as a VHD.
    pub fn as_vhd(&self) -> Option<&Image<ReadOnly>> {
        match self {
            Self::Vhd(image) => Some(image),
            Self::Raw(_) => None,
        }
    }

    /// Finds where the content of `range` is; beyond the end of this layer's disk it is zero.
    pub fn resolve(&self, range: SectorRange, extents: &mut Extents) -> Result<(), ReadError> {
        self.resolve_all(&[range], extents)
    }

    /// As [`resolve`](Self::resolve), for ranges in the order of the disk.
    pub(crate) fn resolve_all(&self, ranges: &[SectorRange], extents: &mut Extents) -> Result<(), ReadError> {
        let end = Sector(self.sectors().0);
        let inside = |range: &SectorRange| SectorRange::between(range.start, range.end.min(end));
        let inside: Vec<_> = ranges.iter().map(inside).filter(|range| !range.is_empty()).collect();
        match self {
            Self::Vhd(image) => image.resolve_all(&inside, extents)?,
            Self::Raw(_) => {
                inside
                    .iter()
                    .for_each(|&range| extents.push(range, Source::Data(FileOffset(range.start.byte_offset()))));
            }
        }
        for range in ranges {
            extents.push(SectorRange::between(range.start.max(end), range.end), Source::Zero);
        }
        Ok(())
    }
}
