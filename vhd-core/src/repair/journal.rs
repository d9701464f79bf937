//! The journal of a resize, blktap's or ours: what it replaces, so that it can be taken back.
//!
//! ```text
//!   0          8    24        32       36        40      48        56    64
//!   | vjournal | id | footer  | data   | other   | first | first   | end | …512
//!                     at        entries  entries   data    other
//!
//!   0        8      12     16       24         28    32
//!   | cookie | type | size | offset | checksum | 0   | the old bytes |
//! ```
//!
//! All numbers are big-endian, but the end, which is in the order of the host that wrote it. The checksum is the ones'
//! complement of the sum of an entry's bytes and the old bytes, its own field counted as zero. What blktap leaves zero
//! after byte 64 of the head holds, in ours, what the image is once the resize has ended.
//!
//! Source: blktap, by what it writes; there is no specification.

mod record;
mod revert;

pub use revert::{revert_container, revert_resize};

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use super::footers::Footers;
use super::{JournalError, Plan, RepairError};
use crate::footer::FOOTER_SIZE;
use crate::format;
use crate::new_file::{FileError, folder_of};
use crate::storage::{Container, FileStorage, Lock, Storage, StorageError};
use crate::units::{ByteCount, FileOffset, SECTOR_SIZE};

const COOKIE: &[u8; 8] = b"vjournal";
const HEAD: u64 = 512;
const ENTRY_COOKIE: u64 = 0xaaaa_1234_4321_aaaa;
const ENTRY: u64 = 32;
// The kinds of entries, by what they hold.
const END_FOOTER: u32 = 1;
const FIRST_FOOTER: u32 = 2;
const HEADER: u32 = 3;
const LOCATOR: u32 = 4;
const BAT: u32 = 5;
const BATMAP_HEADER: u32 = 6;
const BATMAP: u32 = 7;
/// A piece of a block: its bitmap or its data.
const DATA: u32 = 8;
/// Where the head of a journal of ours says that the resize has ended.
const ENDED_AT: u64 = 64;
const ENDED: &[u8; 8] = b"vhd-done";
/// Old bytes that are read at a time.
const STEP: u64 = 1 << 20;

/// Old bytes, and where they belong.
#[derive(Clone, Copy, Debug)]
struct Entry {
    kind: u32,
    /// Where they belong in the image.
    at: FileOffset,
    length: u64,
    /// Where they are in the journal.
    bytes_at: FileOffset,
}

/// A journal all of whose checksums are right.
#[derive(Debug)]
pub(crate) struct Journal {
    container: Container,
    unique_id: Uuid,
    /// How long the image was.
    old_len: ByteCount,
    entries: Vec<Entry>,
    /// The digest of the image once the resize had ended; until then there is none.
    ended: Option<u32>,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |number, &byte| number << 8 | u32::from(byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) << 32 | u64::from(u32_at(bytes, at + 4))
}

impl Plan<'_> {
    /// Takes an interrupted resize back.
    pub(super) fn revert_resize(&mut self) -> Result<(), RepairError> {
        let footers = Footers::read(&self.container)?;
        let Some(expected) = footers.unique_id().filter(|_| footers.poisoned()) else { return Ok(()) };
        let path = match &self.options.journal {
            Some(path) => path.clone(),
            None => find(self.container.path(), expected)?,
        };
        let journal = Journal::read(&path)?;
        if journal.unique_id != expected {
            return Err(JournalError::OtherImage { path, expected, found: journal.unique_id }.into());
        }
        journal.restore(&self.container)?;
        let footers = Footers::read(&self.container)?;
        if footers.poisoned() || footers.unique_id() != Some(expected) {
            return Err(JournalError::NoImage { path }.into());
        }
        let text = format!("the interrupted resize is taken back with {}", path.display());
        self.note("resize-unfinished", text);
        self.journal = Some(path);
        Ok(())
    }
}

/// Tells of the journal beside an image whose resize was interrupted: where it is, or what is wrong with it.
pub(crate) fn describe(path: &Path, unique_id: Uuid) -> String {
    match find(path, unique_id).and_then(|journal| Journal::read(&journal).map(|_| journal)) {
        Ok(journal) => format!("its journal is {}", journal.display()),
        Err(error) => error.to_string(),
    }
}

/// Looks through the folder of the image at `path` for the journal that was made for it.
fn find(path: &Path, unique_id: Uuid) -> Result<PathBuf, RepairError> {
    let folder = folder_of(path);
    let listed = || FileError::when(folder, "list the folder");
    let mut found: Option<PathBuf> = None;
    for entry in fs::read_dir(folder).map_err(listed())? {
        let candidate = entry.map_err(listed())?.path();
        let is_file = fs::metadata(&candidate).is_ok_and(|metadata| metadata.is_file());
        let mut head = [0; 24];
        // What cannot be read is not what we look for.
        let read = is_file
            && FileStorage::open(&candidate, Lock::None)
                .is_ok_and(|file| file.read_at(&mut head, FileOffset(0)).is_ok());
        if !read || !head.starts_with(COOKIE) || head[8..] != *unique_id.as_bytes() {
            continue;
        }
        if let Some(first) = found {
            return Err(JournalError::Several { image: path.into(), first, second: candidate }.into());
        }
        found = Some(candidate);
    }
    found.ok_or_else(|| JournalError::Missing { image: path.into() }.into())
}

impl Journal {
    /// Reads a journal and checks all of it.
    fn read(path: &Path) -> Result<Self, RepairError> {
        let file = FileStorage::open(path, Lock::None).map_err(|source| StorageError::from_open(path, source))?;
        let container = Container::new(path, Arc::new(file));
        let damaged = |offset| RepairError::from(JournalError::Damaged { path: path.into(), offset });
        let len = container.len()?;
        let mut head = [0; 80];
        if len.0 < HEAD {
            return Err(damaged(FileOffset(len.0)));
        }
        container.read_at(&mut head, FileOffset(0))?;
        if !head.starts_with(COOKIE) {
            return Err(damaged(FileOffset(0)));
        }
        let mut id = [0; 16];
        id.copy_from_slice(&head[8..24]);
        let old_len = u64_at(&head, 24).checked_add(FOOTER_SIZE.0).ok_or_else(|| damaged(FileOffset(24)))?;
        let counts = [u32_at(&head, 32), u32_at(&head, 36)];
        let mut first_fault = None;
        for end in [u64_at(&head, 56).swap_bytes(), u64_at(&head, 56)] {
            if !(HEAD..=len.0).contains(&end) {
                continue;
            }
            match entries(&container, FileOffset(end), old_len, counts)? {
                Ok(entries) => {
                    let (unique_id, old_len) = (Uuid::from_bytes(id), ByteCount(old_len));
                    let ended = head[64..72] == *ENDED && u32_at(&head, 72) == !u32_at(&head, 76);
                    let ended = ended.then(|| u32_at(&head, 72));
                    return Ok(Self { container, unique_id, old_len, entries, ended });
                }
                Err(at) => _ = first_fault.get_or_insert(at),
            }
        }
        Err(damaged(first_fault.unwrap_or(FileOffset(56))))
    }
}

/// Reads the entries of a journal that ends at `end`; where that is not so, tells the offset of what makes no sense.
fn entries(
    journal: &Container,
    end: FileOffset,
    old_len: u64,
    counts: [u32; 2],
) -> Result<Result<Vec<Entry>, FileOffset>, StorageError> {
    let (mut entries, mut data) = (Vec::new(), 0);
    let mut at = FileOffset(HEAD);
    while at < end {
        let mut head = [0; ENTRY as usize];
        if at.0 + ENTRY > end.0 {
            return Ok(Err(at));
        }
        journal.read_at(&mut head, at)?;
        let (kind, length, place) = (u32_at(&head, 8), u64::from(u32_at(&head, 12)), u64_at(&head, 16));
        let fits = at.0 + ENTRY + length <= end.0 && place.checked_add(length).is_some_and(|end| end <= old_len);
        let sound = u64_at(&head, 0) == ENTRY_COOKIE
            && (1..=DATA).contains(&kind)
            && length > 0
            && length.is_multiple_of(SECTOR_SIZE);
        if !fits || !sound || sum(journal, at, length)? != u32_at(&head, 24) {
            return Ok(Err(at));
        }
        data += u32::from(kind == DATA);
        entries.push(Entry { kind, at: FileOffset(place), length, bytes_at: at + ByteCount(ENTRY) });
        at = at + ByteCount(ENTRY + length);
    }
    let whole = [data, (entries.len() as u32).saturating_sub(data)] == counts && data < entries.len() as u32;
    Ok(if whole { Ok(entries) } else { Err(at) })
}

/// Computes the checksum of an entry with `length` old bytes.
fn sum(journal: &Container, at: FileOffset, length: u64) -> Result<u32, StorageError> {
    let (mut sum, total) = (0_u32, ENTRY + length);
    for step in (0..total).step_by(STEP as usize) {
        let mut bytes = vec![0; (total - step).min(STEP) as usize];
        journal.read_at(&mut bytes, at + ByteCount(step))?;
        if step == 0 {
            bytes[24..28].fill(0);
        }
        sum = sum.wrapping_add(format::byte_sum(&bytes));
    }
    Ok(!sum)
}
