//! The undo file: what a repair has replaced.
//!
//! ```text
//!   0      8       16     32      40      48        56    60
//!   | magic | state | id   | old   | new   | records | CRC | zeros |     64 bytes, all numbers big-endian
//!                            length  length              of all but the state
//!
//!   0        8     12    16        20        24
//!   | offset  | old | new | old CRC | new CRC | the old bytes |          a record for each range that changes
//!             bytes  bytes  of record
//!                           and bytes
//! ```
//!
//! A last sector that is no footer ends it. It gets its name when all of it is durable, before the first byte of the
//! image changes; its state, eight bytes of one sector, says whether all have.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crc::{CRC_32_ISO_HDLC, Crc};
use uuid::Uuid;

use super::overlay::{MAX_CHANGED, MAX_PIECE, Overlay};
use super::{RepairError, footers};
use crate::create::CreateError;
use crate::new_file::{Existing, FileError, folder_of, sync_folder, write_new_file};
use crate::storage::{Container, Storage, StorageError};
use crate::units::{ByteCount, FileOffset};

const MAGIC: &[u8; 8] = b"vhdundo1";
/// The state while the image may hold old and new bytes.
const UNDER_WAY: &[u8; 8] = b"underway";
/// The state once all that changes is durable.
const COMPLETE: &[u8; 8] = b"complete";
const STATE_AT: u64 = 8;
const HEAD: usize = 64;
const RECORD: usize = 24;
/// The last sector. Whoever looks for a footer of 512 or 511 bytes finds none.
const TRAILER: [u8; 512] = {
    let mut trailer = [0; 512];
    trailer[0] = b'u';
    trailer[1] = b'n';
    trailer[2] = b'd';
    trailer[3] = b'o';
    trailer
};
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// Why an undo file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// There is none.
    #[error("{}: there is no undo file, so there is nothing to take back", path.display())]
    Missing {
        /// Where it would be.
        path: PathBuf,
    },
    /// The file there is none, or its checksums are wrong.
    #[error("{}: not an undo file, or damaged (at offset {offset}); nothing was changed", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it stops making sense.
        offset: FileOffset,
    },
    /// It was made for another image.
    #[error("{}: belongs to the image {expected}, but {} is {found}", path.display(), image.display())]
    OtherImage {
        /// The undo file.
        path: PathBuf,
        /// The image.
        image: PathBuf,
        /// Whom it was made for.
        expected: Uuid,
        /// Who the image is.
        found: Uuid,
    },
    /// The image is no longer what the repair has made of it.
    #[error("{}: changed since it was repaired (at offset {offset}), so the repair is not taken back", path.display())]
    Changed {
        /// The image.
        path: PathBuf,
        /// The first range that differs.
        offset: FileOffset,
    },
    /// A folder for it must be given.
    #[error("{}: a device; name a folder for the undo file", path.display())]
    Device {
        /// The device.
        path: PathBuf,
    },
}

/// A range that a repair changes.
#[derive(Clone, Copy, Debug)]
struct Record {
    at: FileOffset,
    /// How many bytes were there; fewer than are there now where the image has become longer.
    old: usize,
    /// How many are there now; fewer than were there where it has become shorter.
    new: usize,
    new_crc: u32,
    /// Where the old bytes are in the undo file.
    bytes_at: u64,
}

/// An undo file that has been found whole.
#[derive(Debug)]
pub(super) struct UndoFile {
    path: PathBuf,
    file: File,
    complete: bool,
    unique_id: Uuid,
    old_len: ByteCount,
    new_len: ByteCount,
    records: Vec<Record>,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut number = [0; N];
    number.copy_from_slice(&bytes[at..at + N]);
    number
}

fn failed(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> RepairError {
    let error = FileError::when(path, action);
    move |source| error(source).into()
}

impl UndoFile {
    /// Writes the undo file for what `overlay` changes in `image`, in the place of an older one.
    ///
    /// # Crash safety
    /// It has its name once all of it is durable; this returns when the name is, too.
    pub(super) fn write(
        path: &Path,
        image: &Container,
        overlay: &Overlay,
        unique_id: Uuid,
    ) -> Result<Self, RepairError> {
        let (old_len, new_len) = (image.len()?, overlay.len().map_err(read(image))?);
        let ranges = overlay.changed().map_err(read(image))?;
        write_new_file::<RepairError>(path, Existing::Replace, |new| {
            if let Some(file) = new.storage().as_file() {
                // It holds what the disk held.
                let mode = fs::Permissions::from_mode(0o600);
                file.file().set_permissions(mode).map_err(failed(path, "make the undo file"))?;
            }
            let mut at = HEAD as u64;
            for range in &ranges {
                let here = |len: ByteCount| len.0.min(range.end.0).saturating_sub(range.start.0) as usize;
                let (mut old, mut changed) = (vec![0; here(old_len)], vec![0; here(new_len)]);
                if !old.is_empty() {
                    image.read_at(&mut old, range.start)?;
                }
                if !changed.is_empty() {
                    overlay.read_at(&mut changed, range.start).map_err(read(image))?;
                }
                let record = encode(range.start, &old, &changed);
                new.write_at(&record, FileOffset(at))?;
                at += record.len() as u64;
            }
            new.write_at(&TRAILER, FileOffset(at))?;
            new.write_at(&head(unique_id, old_len, new_len, ranges.len() as u64), FileOffset(0))?;
            Ok(new.sync()?)
        })?;
        match Self::read(path)? {
            Some(undo) => Ok(undo),
            None => Err(UndoError::Missing { path: path.into() }.into()),
        }
    }

    /// Reads and checks the undo file at `path`; `None` where there is none.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, RepairError> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed(path, "open the undo file"))?,
        };
        let damaged =
            |offset: u64| RepairError::from(UndoError::Damaged { path: path.into(), offset: FileOffset(offset) });
        let reading = |offset: u64| {
            move |error: io::Error| match error.kind() {
                io::ErrorKind::UnexpectedEof => damaged(offset),
                _ => failed(path, "read the undo file")(error),
            }
        };
        let mut bytes = [0; HEAD];
        file.read_exact_at(&mut bytes, 0).map_err(reading(0))?;
        let complete = match &bytes[8..16] {
            state if state == UNDER_WAY => false,
            state if state == COMPLETE => true,
            _ => return Err(damaged(STATE_AT)),
        };
        let unique_id = Uuid::from_bytes(number(&bytes, 16));
        let lens = [32, 40].map(|at| ByteCount(u64::from_be_bytes(number(&bytes, at))));
        let count = u64::from_be_bytes(number(&bytes, 48));
        if bytes != with_state(head(unique_id, lens[0], lens[1], count), complete) || count > MAX_CHANGED.0 {
            return Err(damaged(0));
        }
        let mut undo = Self {
            path: path.into(),
            file,
            complete,
            unique_id,
            old_len: lens[0],
            new_len: lens[1],
            records: Vec::new(),
        };
        let mut at = HEAD as u64;
        for _ in 0..count {
            let record = undo.read_record(at, || damaged(at), reading(at))?;
            at = record.bytes_at + record.old as u64;
            undo.records.push(record);
        }
        Ok(Some(undo))
    }

    fn read_record(
        &self,
        at: u64,
        damaged: impl Fn() -> RepairError,
        reading: impl FnOnce(io::Error) -> RepairError + Copy,
    ) -> Result<Record, RepairError> {
        let mut bytes = [0; RECORD];
        self.file.read_exact_at(&mut bytes, at).map_err(reading)?;
        let offset = FileOffset(u64::from_be_bytes(number(&bytes, 0)));
        let [old, new, old_crc, new_crc] = [8, 12, 16, 20].map(|at| u32::from_be_bytes(number(&bytes, at)));
        if u64::from(old.max(new)) > MAX_PIECE || offset.0.checked_add(MAX_PIECE).is_none() {
            return Err(damaged());
        }
        let record = Record { at: offset, old: old as usize, new: new as usize, new_crc, bytes_at: at + RECORD as u64 };
        let mut content = vec![0; record.old];
        self.file.read_exact_at(&mut content, record.bytes_at).map_err(reading)?;
        if old_checksum(&bytes, &content) != old_crc {
            return Err(damaged());
        }
        Ok(record)
    }

    /// Tells whether all that the repair changes is durable.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Records that all that the repair changes is durable.
    ///
    /// # Crash safety
    /// One sector.
    pub(super) fn complete(&mut self) -> Result<(), RepairError> {
        self.set_state(true)
    }

    /// Records that the image is about to hold old bytes and new ones again.
    ///
    /// # Crash safety
    /// One sector.
    pub(super) fn begin_anew(&mut self) -> Result<(), RepairError> {
        self.set_state(false)
    }

    fn set_state(&mut self, complete: bool) -> Result<(), RepairError> {
        let state = if complete { COMPLETE } else { UNDER_WAY };
        let file = File::options().write(true).open(&self.path);
        let written = file.and_then(|file| file.write_all_at(state, STATE_AT).and_then(|()| file.sync_data()));
        written.map_err(failed(&self.path, "mark the undo file"))?;
        self.complete = complete;
        Ok(())
    }

    /// Removes the file.
    ///
    /// # Crash safety
    /// Durable once this has returned.
    pub(super) fn remove(self) -> Result<(), RepairError> {
        fs::remove_file(&self.path).map_err(failed(&self.path, "remove the undo file"))?;
        Ok(sync_folder(folder_of(&self.path))?)
    }

    /// Checks that `image` is the one that this was made for, as far as a footer in it tells.
    pub(super) fn check_image(&self, image: &Container) -> Result<(), RepairError> {
        let found = footers::Footers::read(image)?.unique_id();
        match found.filter(|found| *found != self.unique_id && !self.unique_id.is_nil()) {
            Some(found) => {
                let (path, image) = (self.path.clone(), image.path().into());
                Err(UndoError::OtherImage { path, image, expected: self.unique_id, found }.into())
            }
            None => Ok(()),
        }
    }

    /// Checks that `image` is what the repair has made of it, where that has changed it.
    pub(super) fn check_unchanged(&self, image: &Container) -> Result<(), RepairError> {
        let changed = |offset| RepairError::from(UndoError::Changed { path: image.path().into(), offset });
        let len = image.len()?;
        if len != self.new_len {
            return Err(changed(FileOffset(len.0.min(self.new_len.0))));
        }
        for record in &self.records {
            let mut bytes = vec![0; record.new];
            if !bytes.is_empty() {
                image.read_at(&mut bytes, record.at)?;
            }
            if CRC.checksum(&bytes) != record.new_crc {
                return Err(changed(record.at));
            }
        }
        Ok(())
    }

    /// Writes the old bytes back into `image`, in whatever state between old and new it is, durably.
    ///
    /// # Crash safety
    /// Can be repeated.
    pub(super) fn restore(&self, image: &Container) -> Result<(), RepairError> {
        if image.len()? != self.old_len {
            image.set_len(self.old_len)?;
        }
        for record in &self.records {
            let mut bytes = vec![0; record.old];
            let reading = self.file.read_exact_at(&mut bytes, record.bytes_at);
            reading.map_err(failed(&self.path, "read the undo file"))?;
            if !bytes.is_empty() {
                image.write_at(&bytes, record.at)?;
            }
        }
        Ok(image.sync()?)
    }

    /// Writes what `overlay` changes into `image`, durably.
    ///
    /// # Crash safety
    /// Any part of it may be lost; [`restore`](Self::restore) takes back what is not.
    pub(super) fn apply(&self, image: &Container, overlay: &Overlay) -> Result<(), RepairError> {
        if self.new_len > self.old_len {
            image.set_len(self.new_len)?;
        }
        for record in self.records.iter().filter(|record| record.new > 0) {
            let mut bytes = vec![0; record.new];
            overlay.read_at(&mut bytes, record.at).map_err(read(image))?;
            // What is added and zero is a hole.
            if record.old > 0 || bytes.iter().any(|&byte| byte != 0) {
                image.write_at(&bytes, record.at)?;
            }
        }
        if self.new_len < self.old_len {
            image.set_len(self.new_len)?;
        }
        Ok(image.sync()?)
    }
}

/// Names an error of the overlay, which reads from the image.
pub(super) fn read(image: &Container) -> impl Fn(io::Error) -> StorageError {
    let path = image.path().to_path_buf();
    move |source| StorageError { path: path.clone(), action: "read".into(), offset: FileOffset(0), source }
}

fn head(unique_id: Uuid, old_len: ByteCount, new_len: ByteCount, records: u64) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..8].copy_from_slice(MAGIC);
    head[16..32].copy_from_slice(unique_id.as_bytes());
    for (at, value) in [(32, old_len.0), (40, new_len.0), (48, records)] {
        head[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }
    let crc = CRC.checksum(&head[..56]);
    head[56..60].copy_from_slice(&crc.to_be_bytes());
    with_state(head, false)
}

fn with_state(mut head: [u8; HEAD], complete: bool) -> [u8; HEAD] {
    head[8..16].copy_from_slice(if complete { COMPLETE } else { UNDER_WAY });
    head
}

fn encode(at: FileOffset, old: &[u8], new: &[u8]) -> Vec<u8> {
    let mut record = vec![0; RECORD];
    record[..8].copy_from_slice(&at.0.to_be_bytes());
    record[8..12].copy_from_slice(&(old.len() as u32).to_be_bytes());
    record[12..16].copy_from_slice(&(new.len() as u32).to_be_bytes());
    record[20..24].copy_from_slice(&CRC.checksum(new).to_be_bytes());
    let crc = old_checksum(&record, old);
    record[16..20].copy_from_slice(&crc.to_be_bytes());
    record.extend_from_slice(old);
    record
}

/// The checksum of a record and the old bytes, its own field left out.
fn old_checksum(record: &[u8], old: &[u8]) -> u32 {
    let mut digest = CRC.digest();
    digest.update(&record[..16]);
    digest.update(&record[20..RECORD]);
    digest.update(old);
    digest.finalize()
}

impl From<CreateError> for RepairError {
    fn from(error: CreateError) -> Self {
        Self::Create(Box::new(error))
    }
}
