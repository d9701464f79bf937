//! Making a journal before a resize, and doing away with it afterwards.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use crc::{CRC_32_ISO_HDLC, Crc};
use uuid::Uuid;

use super::{
    BAT, BATMAP, BATMAP_HEADER, COOKIE, DATA, END_FOOTER, ENDED, ENDED_AT, ENTRY, ENTRY_COOKIE, FIRST_FOOTER, HEAD,
    HEADER, Journal, LOCATOR, STEP,
};
use crate::bat;
use crate::batmap::BATMAP_HEADER_SIZE;
use crate::block_size::BlockPlace;
use crate::create::CreateError;
use crate::footer::FOOTER_SIZE;
use crate::format;
use crate::header::HEADER_SIZE;
use crate::image::{Image, OpenError, ReadOnly, Tables};
use crate::locator::MAX_LOCATOR_LENGTH;
use crate::new_file::{Existing, FileError, folder_of, sync_folder, write_new_file};
use crate::repair::{JournalError, RepairError};
use crate::storage::{Container, FileStorage, StorageError};
use crate::units::{BlockIndex, ByteCount, FileOffset, SECTOR_SIZE};
use crate::write::ReadWrite;

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// Bytes of the image that are kept.
#[derive(Clone, Copy, Debug)]
struct Piece {
    kind: u32,
    at: FileOffset,
    length: ByteCount,
}

impl Journal {
    /// Makes the journal for giving `image`, all of which is on disk, the size `size`.
    ///
    /// # Crash safety
    /// It has its name, or on a device its head, once all of it is durable; this returns when that is, too.
    pub(crate) fn record(path: &Path, image: &Image<ReadWrite>, size: ByteCount) -> Result<Self, RepairError> {
        let (footer, pieces) = pieces(image, size)?;
        let fill = |journal: &Container| write(journal, image, footer, &pieces);
        if fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_block_device()) {
            let file = FileStorage::open_writable(path).map_err(|source| StorageError::from_open(path, source))?;
            let device = Container::new(path, Arc::new(file));
            let mut cookie = [0; COOKIE.len()];
            device.read_at(&mut cookie, FileOffset(0))?;
            if cookie == *COOKIE {
                return Err(CreateError::Exists { path: path.into() }.into());
            }
            fill(&device)?;
        } else {
            write_new_file::<RepairError>(path, Existing::Keep, |new| {
                if let Some(file) = new.storage().as_file() {
                    // It holds what the disk holds.
                    let private = file.file().set_permissions(fs::Permissions::from_mode(0o600));
                    private.map_err(FileError::when(path, "make the journal"))?;
                }
                fill(new)
            })?;
        }
        Self::read(path)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.container.path()
    }

    /// Notes what the image is now that the resize has ended, but for its footers.
    ///
    /// # Crash safety
    /// One sector.
    pub(crate) fn mark_ended(&self, image: &Container) -> Result<(), RepairError> {
        let digest = self.digest(image)?;
        let mut mark = ENDED.to_vec();
        mark.extend_from_slice(&digest.to_be_bytes());
        mark.extend_from_slice(&(!digest).to_be_bytes());
        Ok(self.write_head(&mark, ENDED_AT)?)
    }

    /// Removes it.
    ///
    /// # Crash safety
    /// Durable once this has returned.
    pub(crate) fn remove(self) -> Result<(), RepairError> {
        if self.container.has_fixed_size() {
            return Ok(self.write_head(&[0; HEAD as usize], 0)?);
        }
        fs::remove_file(self.path()).map_err(FileError::when(self.path(), "remove the journal"))?;
        Ok(sync_folder(folder_of(self.path()))?)
    }

    fn write_head(&self, bytes: &[u8], at: u64) -> Result<(), FileError> {
        let file = File::options().write(true).open(self.path());
        let written = file.and_then(|file| file.write_all_at(bytes, at).and_then(|()| file.sync_data()));
        written.map_err(FileError::when(self.path(), "mark the journal"))
    }

    /// Computes what tells whether an image has been changed: its length, footer, header and tables, and what it holds
    /// where the journal keeps pieces of blocks.
    pub(super) fn digest(&self, container: &Container) -> Result<u32, OpenError> {
        let image = Image::<ReadOnly>::from_container(container.clone())?;
        let mut digest = CRC.digest();
        if !container.has_fixed_size() {
            digest.update(&container.len()?.0.to_be_bytes());
        }
        let footer = image.footer().to_bytes();
        // Cookie and checksum change when the resize has ended.
        digest.update(&footer[8..64]);
        digest.update(&footer[68..]);
        let tables = image.regions().map(|region| region.range).filter(|range| range.start.0 > 0);
        let tables = tables.map(|range| (range.start, range.end - range.start));
        let blocks = self.entries.iter().filter(|entry| entry.kind == DATA);
        let end = container.len()?.0.saturating_sub(FOOTER_SIZE.0);
        for (at, length) in tables.chain(blocks.map(|entry| (entry.at, ByteCount(entry.length)))) {
            // The footers have been looked at.
            let length = length.0.min(end.saturating_sub(at.0));
            for step in (0..length).step_by(STEP as usize) {
                let mut bytes = vec![0; (length - step).min(STEP) as usize];
                container.read_at(&mut bytes, at + ByteCount(step))?;
                digest.update(&bytes);
            }
        }
        Ok(digest.finalize())
    }
}

/// Lists what a resize may replace, in the order of a journal, and where the footer at the end is.
fn pieces(image: &Image<ReadWrite>, size: ByteCount) -> Result<(FileOffset, Vec<Piece>), RepairError> {
    let unfit = |why| JournalError::Unfit { image: image.path().into(), why };
    let tables = image.tables.as_ref().ok_or_else(|| unfit("a fixed image"))?;
    let footer = image.end_footer().filter(|at| at.0.is_multiple_of(SECTOR_SIZE));
    let footer = footer.filter(|at| image.container().len().is_ok_and(|len| len == ByteCount(at.0 + FOOTER_SIZE.0)));
    let footer = footer.ok_or_else(|| unfit("its end is not a footer, which a repair gives it"))?;
    let mut pieces = vec![
        Piece { kind: END_FOOTER, at: footer, length: FOOTER_SIZE },
        Piece { kind: FIRST_FOOTER, at: FileOffset(0), length: FOOTER_SIZE },
        Piece { kind: HEADER, at: tables.header_at, length: HEADER_SIZE },
    ];
    let len = image.container().len()?;
    let locators = tables.header.locators().filter(|(_, entry)| entry.end_within(len).is_some());
    pieces.extend(locators.filter(|(_, entry)| entry.length <= MAX_LOCATOR_LENGTH).map(|(_, entry)| {
        let room = entry.space.0.clamp(entry.length.0, MAX_LOCATOR_LENGTH.0);
        Piece { kind: LOCATOR, at: entry.offset, length: ByteCount(room.next_multiple_of(SECTOR_SIZE)) }
    }));
    let entries = tables.bat.entries();
    pieces.push(Piece { kind: BAT, at: tables.header.table_offset(), length: bat::table_size(entries) });
    if let Some(batmap) = image.batmap() {
        let header_at = batmap.region().start;
        pieces.push(Piece { kind: BATMAP_HEADER, at: header_at, length: BATMAP_HEADER_SIZE });
        pieces.push(Piece { kind: BATMAP, at: batmap.map_offset(), length: batmap.map_size() });
    }
    let mut blocks = leftover_blocks(image, tables, size)?;
    let gaps = displaced(image, tables, size, &mut blocks)?;
    let block_size = tables.header.block_size();
    pieces.extend(blocks.values().flat_map(|place| {
        let bitmap = Piece { kind: DATA, at: place.bitmap, length: block_size.bitmap_size() };
        [bitmap, Piece { kind: DATA, at: place.data, length: block_size.bytes() }]
    }));
    pieces.extend(gaps);
    // What lies under the footer is kept with it, and what lies under its copy with that.
    for piece in pieces.iter_mut().filter(|piece| piece.kind > FIRST_FOOTER) {
        let start = piece.at.max(FileOffset(FOOTER_SIZE.0));
        let end = (piece.at + piece.length).min(footer);
        (piece.at, piece.length) = (start, ByteCount(end.0.saturating_sub(start.0)));
    }
    pieces.retain(|piece| piece.length.0 > 0);
    Ok((footer, pieces))
}

/// Lists the blocks that the disk, when it grows, finds beyond its end, the last one that it has among them: it zeroes there.
fn leftover_blocks(
    image: &Image<ReadWrite>,
    tables: &Tables,
    size: ByteCount,
) -> Result<BTreeMap<BlockIndex, BlockPlace>, RepairError> {
    let block_size = tables.header.block_size();
    let first = image.sectors().0 / block_size.sectors().0;
    let [first, end] = [first, block_size.blocks_for(size)].map(|block| block.min(u64::from(tables.bat.entries())));
    let mut blocks = BTreeMap::new();
    for found in tables.bat.allocated_in(image.container(), first as u32..end as u32) {
        let (block, entry) = found?;
        blocks.insert(block, image.checked_place(tables, block, entry)?);
    }
    Ok(blocks)
}

/// Where the tables are laid out anew: adds the blocks that make room for them, and gives the pieces between tables and
/// blocks that they then take, too.
fn displaced(
    image: &Image<ReadWrite>,
    tables: &Tables,
    size: ByteCount,
    blocks: &mut BTreeMap<BlockIndex, BlockPlace>,
) -> Result<Vec<Piece>, RepairError> {
    let present = tables.bat.entries();
    let entries = u32::try_from(tables.header.block_size().blocks_for(size)).unwrap_or(present).max(present);
    if entries == present && image.is_laid_out()? {
        return Ok(Vec::new());
    }
    let end = image.tables_end_for(tables, entries);
    let mut used: Vec<_> = tables.taken().collect();
    for found in image.misplaced(tables, end) {
        let (block, place) = found?;
        used.push(place.bitmap..place.data + tables.header.block_size().bytes());
        blocks.insert(block, place);
    }
    used.sort_unstable_by_key(|range| range.start);
    let mut gaps = Vec::new();
    let mut at = FileOffset(0);
    for range in used.into_iter().chain([end..end]) {
        let gap_end = range.start.min(end);
        if at < gap_end {
            gaps.push(Piece { kind: DATA, at, length: gap_end - at });
        }
        at = at.max(FileOffset(range.end.0.next_multiple_of(SECTOR_SIZE)));
    }
    Ok(gaps)
}

fn write(
    journal: &Container,
    image: &Image<ReadWrite>,
    footer: FileOffset,
    pieces: &[Piece],
) -> Result<(), RepairError> {
    let (mut at, mut first_data) = (FileOffset(HEAD), None);
    for piece in pieces {
        if piece.kind == DATA {
            first_data.get_or_insert(at);
        }
        write_entry(journal, at, image.container(), *piece)?;
        at = at + ByteCount(ENTRY) + piece.length;
    }
    journal.sync()?;
    let data = pieces.iter().filter(|piece| piece.kind == DATA).count();
    let counts = [data, pieces.len() - data].map(|count| count as u32);
    journal.write_at(&head(image.footer().unique_id(), footer, counts, first_data.unwrap_or(at), at), FileOffset(0))?;
    Ok(journal.sync()?)
}

fn write_entry(journal: &Container, at: FileOffset, image: &Container, piece: Piece) -> Result<(), StorageError> {
    let mut head = [0; ENTRY as usize];
    head[..8].copy_from_slice(&ENTRY_COOKIE.to_be_bytes());
    head[8..12].copy_from_slice(&piece.kind.to_be_bytes());
    head[12..16].copy_from_slice(&(piece.length.0 as u32).to_be_bytes());
    head[16..24].copy_from_slice(&piece.at.0.to_be_bytes());
    let mut sum = format::byte_sum(&head);
    for step in (0..piece.length.0).step_by(STEP as usize) {
        let mut bytes = vec![0; (piece.length.0 - step).min(STEP) as usize];
        image.read_at(&mut bytes, piece.at + ByteCount(step))?;
        sum = sum.wrapping_add(format::byte_sum(&bytes));
        journal.write_at(&bytes, at + ByteCount(ENTRY + step))?;
    }
    head[24..28].copy_from_slice(&(!sum).to_be_bytes());
    journal.write_at(&head, at)
}

fn head(
    unique_id: Uuid,
    footer: FileOffset,
    counts: [u32; 2],
    first_data: FileOffset,
    end: FileOffset,
) -> [u8; HEAD as usize] {
    let mut head = [0; HEAD as usize];
    head[..8].copy_from_slice(COOKIE);
    head[8..24].copy_from_slice(unique_id.as_bytes());
    head[24..32].copy_from_slice(&footer.0.to_be_bytes());
    head[32..36].copy_from_slice(&counts[0].to_be_bytes());
    head[36..40].copy_from_slice(&counts[1].to_be_bytes());
    head[40..48].copy_from_slice(&first_data.0.to_be_bytes());
    head[48..56].copy_from_slice(&HEAD.to_be_bytes());
    head[56..64].copy_from_slice(&end.0.to_ne_bytes());
    head
}
