//! Opening: from bytes to an [`Image`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Image, ReadError, ReadOnly, Region, Tables};
use crate::batmap::BatmapState;
use crate::footer::{DiskType, FOOTER_SIZE, Footer, FooterError};
use crate::header::{HEADER_SIZE, Header, HeaderError};
use crate::overlap::{Overlap, find_overlaps};
use crate::storage::{Container, FileStorage, Lock, StorageError};
use crate::units::{ByteCount, FileOffset};
use crate::write::CutBlock;
use crate::write::ReadWrite;

/// Where the footer that was read stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FooterOrigin {
    /// In the last 512 bytes.
    End,
    /// In the last 511 bytes, as Virtual PC wrote it before 2004.
    End511,
    /// At the start: the one at the end is lost, or not yet written.
    Start,
}

impl FooterOrigin {
    /// Where the footer at the end of a file of `len` bytes begins; without one, where the file ends.
    pub(crate) fn room(self, len: ByteCount) -> FileOffset {
        FileOffset(len.0.saturating_sub(match self {
            Self::End => FOOTER_SIZE.0,
            Self::End511 => FOOTER_SIZE.0 - 1,
            Self::Start => 0,
        }))
    }
}

/// Why a file cannot be opened as a VHD.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Neither its end nor its start is a footer.
    #[error("{}: not a VHD, or its footer is lost (looked at offset {offset} and at 0)", path.display())]
    Footer {
        /// The file.
        path: PathBuf,
        /// Where the footer should be.
        offset: FileOffset,
        /// What is wrong with what is there.
        #[source]
        source: FooterError,
    },
    /// The header is lost.
    #[error("{}: bad header at offset {offset}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// Where the footer says it is.
        offset: FileOffset,
        /// What is wrong with it.
        #[source]
        source: HeaderError,
    },
    /// A part of the image lies, wholly or in part, outside the file.
    #[error("{}: the {part} at offset {offset} would end at {end}, but the file ends at {len}", path.display())]
    Outside {
        /// The file.
        path: PathBuf,
        /// What.
        part: &'static str,
        /// Where it starts.
        offset: FileOffset,
        /// Where it would end.
        end: u128,
        /// The file's length.
        len: ByteCount,
    },
    /// A fixed disk has lost bytes: its footer stands where they were, or the file ends there.
    #[error(
        "{}: the fixed disk has {size} bytes, but the file only {room} before its footer: {} are missing",
        path.display(), size.0 - room.0
    )]
    FixedShort {
        /// The file.
        path: PathBuf,
        /// The size that the footer says.
        size: ByteCount,
        /// Where the footer begins.
        room: FileOffset,
    },
    /// The disk has more blocks than the BAT has entries.
    #[error("{}: the disk has {blocks} blocks, but the BAT only {entries} entries", path.display())]
    ShortBat {
        /// The file.
        path: PathBuf,
        /// Blocks of the disk.
        blocks: u64,
        /// Entries of the table.
        entries: u32,
    },
    /// Blocks lie over each other or over something else: what one writes, the other would read.
    #[error("{}: {overlap}; the image is damaged", path.display())]
    Overlap {
        /// The file.
        path: PathBuf,
        /// Which blocks.
        overlap: Overlap,
    },
    /// Tables lie over each other: a change to one would destroy the other.
    #[error("{}: the {first} and the {second} overlap; the image is damaged", path.display())]
    Tables {
        /// The file.
        path: PathBuf,
        /// One of them.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// The BAT cannot be read, or puts a block where none can be.
    #[error(transparent)]
    Block(#[from] ReadError),
    /// A resize was interrupted; writing, or trusting what is read, needs its journal.
    #[error("{}: a resize was interrupted (footer says \"v_poison\"): revert it with its journal first", path.display())]
    UnfinishedResize {
        /// The file.
        path: PathBuf,
    },
}

/// Everything that is read at opening.
struct Opened {
    container: Container,
    footer: Footer,
    origin: FooterOrigin,
    tables: Option<Tables>,
}

impl Image<ReadOnly> {
    /// Opens a file or block device for reading.
    ///
    /// # Errors
    /// What [`OpenError`] lists; a file that somebody has locked against `lock` gives a storage error.
    pub fn open(path: &Path, lock: Lock) -> Result<Self, OpenError> {
        let file = FileStorage::open(path, lock).map_err(|source| StorageError::from_open(path, source))?;
        Self::from_container(Container::new(path, Arc::new(file)))
    }

    /// Reads the image that a store holds.
    ///
    /// # Errors
    /// What [`OpenError`] lists.
    pub fn from_container(container: Container) -> Result<Self, OpenError> {
        let Opened { container, footer, origin, tables } = Opened::read(container)?;
        Ok(Self { container, footer, origin, tables, mode: ReadOnly(()) })
    }
}

impl<Mode> Image<Mode> {
    /// Checks that the tables and every block of the disk have places of their own, in time and reading linear in the size of the BAT.
    ///
    /// # Errors
    /// [`OpenError::Block`] or [`OpenError::Overlap`] for the first that has not.
    pub fn check_blocks(&self) -> Result<(), OpenError> {
        let Some(tables) = &self.tables else { return Ok(()) };
        let regions: Vec<_> = tables.regions().collect();
        for (i, a) in regions.iter().enumerate() {
            let over = |b: &&Region| a.range.start < b.range.end && b.range.start < a.range.end;
            if let Some(b) = regions[i + 1..].iter().find(over) {
                return Err(OpenError::Tables { path: self.path().into(), first: a.name, second: b.name });
            }
        }
        let mut first = None;
        find_overlaps(
            tables.header.block_size(),
            tables.file_len(),
            || self.allocated_blocks(),
            |overlap| {
                first.get_or_insert(overlap);
            },
        )?;
        match first {
            Some(overlap) => Err(OpenError::Overlap { path: self.path().into(), overlap }),
            None => Ok(()),
        }
    }
}

impl Image<ReadWrite> {
    /// Opens a file or block device for writing, locks it, and makes sure that no other program has it open. Nothing in it
    /// changes by that.
    ///
    /// # Errors
    /// What [`OpenError`] lists; a file that another process has locked, or open, gives a storage error of kind
    /// [`ResourceBusy`](std::io::ErrorKind::ResourceBusy).
    pub fn open_writable(path: &Path) -> Result<Self, OpenError> {
        let file = FileStorage::open_writable(path).map_err(|source| StorageError::from_open(path, source))?;
        Self::writable_from_container(Container::new(path, Arc::new(file)))
    }

    /// As [`open_writable`](Self::open_writable), but programs that take no locks may have it open. Where
    /// [`Container::is_open_elsewhere`] says so, nothing may be done to the image but what they do not rely on.
    ///
    /// # Errors
    /// As [`open_writable`](Self::open_writable).
    pub fn open_writable_beside(path: &Path) -> Result<Self, OpenError> {
        let file = FileStorage::open_writable_beside(path).map_err(|source| StorageError::from_open(path, source))?;
        Self::writable_from_container(Container::new(path, Arc::new(file)))
    }

    /// Makes the image that a store holds writable. The caller sees to it that nobody else writes.
    ///
    /// # Errors
    /// What [`OpenError`] lists.
    pub fn writable_from_container(container: Container) -> Result<Self, OpenError> {
        let Opened { container, footer, origin, tables } = Opened::read(container)?;
        if footer.poisoned() {
            return Err(OpenError::UnfinishedResize { path: container.path().into() });
        }
        let checked = Image { container, footer, origin, tables, mode: ReadOnly(()) };
        checked.check_blocks()?;
        let cut = match checked.check_not_cut() {
            Ok(()) => None,
            Err(ReadError::Block { block, place, fault, .. }) => Some(CutBlock { block, place, fault }),
            Err(error) => return Err(error.into()),
        };
        let Image { container, footer, origin, tables, .. } = checked;
        let mode = ReadWrite::new(&container, &footer, origin, tables.as_ref(), cut)?;
        Ok(Self { container, footer, origin, tables, mode })
    }
}

impl Opened {
    fn read(container: Container) -> Result<Self, OpenError> {
        let len = container.len()?;
        let (footer, origin) = read_footer(&container, len)?;
        let tables = match footer.header_offset() {
            None => {
                check_fixed(&container, &footer, origin.room(len))?;
                None
            }
            Some(at) => Some(read_tables(&container, &footer, at, len)?),
        };
        Ok(Self { container, footer, origin, tables })
    }
}

fn read_footer(container: &Container, len: ByteCount) -> Result<(Footer, FooterOrigin), OpenError> {
    let at = FooterOrigin::End.room(len);
    let source = match end_footer(container, len)? {
        Ok(found) => return Ok(found),
        Err(error) => error,
    };
    match footer_at(container, len, FileOffset(0), 512)? {
        // At the start of a fixed image is the guest's first sector, so no fixed footer is believed there.
        Ok(footer) if footer.disk_type() != DiskType::Fixed => Ok((footer, FooterOrigin::Start)),
        _ => Err(OpenError::Footer { path: container.path().into(), offset: at, source }),
    }
}

/// Reads the footer at the end of a file; where there is none, tells what is wrong with the last 512 bytes.
fn end_footer(
    container: &Container,
    len: ByteCount,
) -> Result<Result<(Footer, FooterOrigin), FooterError>, StorageError> {
    let source = match footer_at(container, len, FooterOrigin::End.room(len), 512)? {
        Ok(footer) => return Ok(Ok((footer, FooterOrigin::End))),
        Err(error) => error,
    };
    let old = footer_at(container, len, FooterOrigin::End511.room(len), 511)?;
    Ok(old.map(|footer| (footer, FooterOrigin::End511)).map_err(|_| source))
}

fn footer_at(
    container: &Container,
    len: ByteCount,
    at: FileOffset,
    length: usize,
) -> Result<Result<Footer, FooterError>, StorageError> {
    let mut bytes = [0; FOOTER_SIZE.0 as usize];
    if at.0 + length as u64 <= len.0 {
        container.read_at(&mut bytes[..length], at)?;
    }
    Ok(Footer::try_from(&bytes))
}

/// Finds where the room for blocks ends in a file as it is now: at its footer, or where it ends without one.
pub(super) fn room_in(container: &Container) -> Result<FileOffset, StorageError> {
    let len = container.len()?;
    Ok(end_footer(container, len)?.map_or(FooterOrigin::Start, |(_, origin)| origin).room(len))
}

fn check_fits(
    container: &Container,
    part: &'static str,
    offset: FileOffset,
    length: ByteCount,
    len: ByteCount,
) -> Result<(), OpenError> {
    let end = u128::from(offset.0) + u128::from(length.0);
    if end > u128::from(len.0) {
        return Err(OpenError::Outside { path: container.path().into(), part, offset, end, len });
    }
    Ok(())
}

/// Checks that all of a fixed disk lies before its footer: a guest would read that as its own bytes, and write over it.
fn check_fixed(container: &Container, footer: &Footer, room: FileOffset) -> Result<(), OpenError> {
    let size = footer.current_size();
    if size.0 > room.0 {
        return Err(OpenError::FixedShort { path: container.path().into(), size, room });
    }
    Ok(())
}

fn read_tables(container: &Container, footer: &Footer, at: FileOffset, len: ByteCount) -> Result<Tables, OpenError> {
    check_fits(container, "header", at, HEADER_SIZE, len)?;
    let mut bytes = [0; HEADER_SIZE.0 as usize];
    container.read_at(&mut bytes, at)?;
    let header = Header::try_from(&bytes).map_err(|source| OpenError::Header {
        path: container.path().into(),
        offset: at,
        source,
    })?;
    let entries = header.max_table_entries();
    // The padding of the last sector may be missing.
    check_fits(container, "BAT", header.table_offset(), ByteCount(u64::from(entries) * 4), len)?;
    let blocks = header.block_size().blocks_for(footer.current_size());
    if blocks > u64::from(entries) {
        return Err(OpenError::ShortBat { path: container.path().into(), blocks, entries });
    }
    let batmap =
        if footer.promises_batmap() { BatmapState::read(container, &header, len)? } else { BatmapState::Absent };
    Ok(Tables::new(at, header, batmap, len))
}
