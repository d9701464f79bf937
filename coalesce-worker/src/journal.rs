//! The record on disk of one operation: what is to be done, and how far it has come.
//!
//! A file of its own for each operation, in the repository's state folder, locked (`flock`) by the process that works on
//! it: whoever gets the lock knows that the process has died. It starts with eight bytes that name the format; frames
//! follow:
//!
//! ```text
//!   0       4         8
//!   | length | CRC-32  | a record, as JSON |     both numbers big-endian; the CRC is of length and record
//! ```
//!
//! A frame counts once it is whole, and each is durable before the next step is taken; what power failed in is cut off.

use std::fs::{self, File, Metadata, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crc::{CRC_32_ISO_HDLC, Crc};
use rustix::fs::{OFlags, Timespec, Timestamps, UTIME_NOW};
use uuid::Uuid;
use vhd_core::{Existing, FileError, FileIdentity, NewFile, explain_lock, folder_of, sync_folder};

use crate::record::Record;

const MAGIC: &[u8; 8] = b"vhdjrnl1";
const FRAME_HEADER: usize = 8;
/// What a record may take: it holds two headers, or the names of a chain.
const MAX_RECORD: u32 = 16 << 20;
/// What a journal may take: a merge adds some hundred bytes at each checkpoint. A longer one is left alone.
const MAX_JOURNAL: u64 = 64 << 20;
const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
const EXTENSION: &str = "journal";

/// The record of one operation, locked by this process.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// The end of the last whole frame.
    end: u64,
}

impl Journal {
    /// Records an operation before its first step.
    ///
    /// # Crash safety
    /// Once this has returned the record survives; before, there is none.
    pub(crate) fn begin(folder: &Path, first: &Record) -> Result<Self, FileError> {
        let path = folder.join(format!("{}.{EXTENSION}", Uuid::new_v4()));
        let failed = |source| FileError { path: path.clone(), action: "make the journal", source };
        let new = NewFile::start(&path).map_err(failed)?;
        let file = new.file().try_clone().map_err(failed)?;
        // Before it has a name: nobody shall take it for one whose process has died.
        file.try_lock().map_err(|error| failed(explain_lock(error.into())))?;
        file.write_all_at(MAGIC, 0).map_err(failed)?;
        let mut journal = Self { path: path.clone(), file, end: MAGIC.len() as u64 };
        journal.append(first)?;
        new.publish(&path, Existing::Keep).map_err(failed)?;
        sync_folder(folder)?;
        Ok(journal)
    }

    /// Adds a record, durably.
    pub(crate) fn append(&mut self, record: &Record) -> Result<(), FileError> {
        let failed = |source| FileError { path: self.path.clone(), action: "write the journal", source };
        let text = serde_json::to_vec(record).map_err(|error| failed(error.into()))?;
        let length = u32::try_from(text.len()).ok().filter(|&length| length <= MAX_RECORD);
        let length = length.ok_or_else(|| failed(io::ErrorKind::FileTooLarge.into()))?.to_be_bytes();
        let frame = [&length[..], &checksum(length, &text).to_be_bytes(), &text].concat();
        self.file.write_all_at(&frame, self.end).map_err(failed)?;
        self.file.sync_data().map_err(failed)?;
        self.end += frame.len() as u64;
        Ok(())
    }

    /// Forgets the operation: it has been done, or taken back.
    pub(crate) fn remove(self) -> Result<(), FileError> {
        fs::remove_file(&self.path).map_err(FileError::when(&self.path, "remove the journal"))?;
        sync_folder(folder_of(&self.path))
    }

    /// Has the file system write the time on it, and tells what is known of it then.
    pub(crate) fn touch(&self) -> io::Result<Metadata> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        rustix::fs::futimens(&self.file, &Timestamps { last_access: now, last_modification: now })?;
        self.file.metadata()
    }

    /// Who it is: its name, as it was begun. Nobody can tell where somebody has given it another.
    pub(crate) fn id(&self) -> Option<Uuid> {
        Uuid::try_parse(self.path.file_stem()?.to_str()?).ok()
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes over the journal at `path` and reads it; `None` where its process lives, or it is gone.
    pub(crate) fn take_over(path: &Path) -> Result<Option<(Self, Vec<Record>)>, FileError> {
        let failed = |source| FileError { path: path.into(), action: "read the journal", source };
        let file = match open(path, true) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed)?,
        };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(None),
            locked => locked.map_err(|error| failed(explain_lock(error.into())))?,
        }
        // Its process may have ended it, and the name with it, before the lock was ours. NFS and others then give a file that
        // is open another name: its names say nothing.
        let is_there = match FileIdentity::at(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            found => found.map_err(failed)? == FileIdentity::of(&file).map_err(failed)?,
        };
        if !is_there {
            return Ok(None);
        }
        let Some(bytes) = read(&file).map_err(failed)? else { return Ok(None) };
        let Parsed { records, end, is_foreign } = parse(&bytes);
        if is_foreign {
            // Of a later version, which knows what to do with it.
            return Ok(None);
        }
        // A frame that is not whole must not come back to life behind a shorter one.
        file.set_len(end.max(MAGIC.len()) as u64).map_err(failed)?;
        Ok(Some((Self { path: path.into(), file, end: end as u64 }, records)))
    }

    /// Reads the journal of whoever works on it.
    pub(crate) fn peek(path: &Path) -> Result<Vec<Record>, FileError> {
        match open(path, false).and_then(|file| read(&file)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            bytes => Ok(parse(&bytes.map_err(FileError::when(path, "read the journal"))?.unwrap_or_default()).records),
        }
    }

    /// Lists the journals in a folder, in the order of their names; none where there is no such folder. What is no file,
    /// a link for instance, is no journal.
    pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.and_then(Iterator::collect::<io::Result<Vec<_>>>),
        };
        let entries = entries.map_err(FileError::when(folder, "list the folder"))?;
        let files = entries.into_iter().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
        let paths = files.map(|entry| entry.path());
        let mut found: Vec<_> = paths.filter(|path| path.extension().is_some_and(|it| it == EXTENSION)).collect();
        found.sort_unstable();
        Ok(found)
    }
}

/// Opens a journal: the file itself, not what a link leads to, and without waiting for whatever else it may be.
fn open(path: &Path, write: bool) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    File::options().read(true).write(write).custom_flags(flags.bits().cast_signed()).open(path)
}

/// Reads a journal; `None` for one that is no file, or longer than any can be.
fn read(file: &File) -> io::Result<Option<Vec<u8>>> {
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_JOURNAL {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    // Whoever works on it may add to it meanwhile.
    file.take(MAX_JOURNAL).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

fn checksum(length: [u8; 4], text: &[u8]) -> u32 {
    let mut digest = CRC.digest();
    digest.update(&length);
    digest.update(text);
    digest.finalize()
}

/// What a journal holds.
#[derive(Debug, Default)]
struct Parsed {
    records: Vec<Record>,
    /// The end of the last whole frame.
    end: usize,
    /// A whole frame follows that holds something else than a record.
    is_foreign: bool,
}

fn parse(bytes: &[u8]) -> Parsed {
    let mut parsed = Parsed::default();
    let Parsed { records, end, is_foreign } = &mut parsed;
    if !bytes.starts_with(MAGIC) {
        return parsed;
    }
    *end = MAGIC.len();
    while let Some((header, rest)) = bytes[*end..].split_at_checked(FRAME_HEADER) {
        let (length, crc) = header.split_at(4);
        let length: [u8; 4] = length.try_into().expect("half of eight");
        let size = u32::from_be_bytes(length);
        let Some(text) = rest.get(..size as usize).filter(|_| size <= MAX_RECORD) else { break };
        if checksum(length, text).to_be_bytes() != crc {
            break;
        }
        let Ok(record) = serde_json::from_slice(text) else {
            *is_foreign = true;
            break;
        };
        records.push(record);
        *end += FRAME_HEADER + size as usize;
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(folder: &Path) -> (PathBuf, Vec<u8>) {
        let mut journal = Journal::begin(folder, &Record::Checkpoint { sector: 1 }).unwrap();
        journal.append(&Record::Merged).unwrap();
        let path = journal.path().to_path_buf();
        drop(journal);
        let bytes = fs::read(&path).unwrap();
        (path, bytes)
    }

    #[test]
    fn what_was_appended_is_read_by_whoever_takes_over() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::begin(folder.path(), &Record::Merged).unwrap();
        let path = journal.path().to_path_buf();
        assert!(Journal::take_over(&path).unwrap().is_none(), "its process lives");
        assert_eq!(Journal::peek(&path).unwrap(), [Record::Merged]);
        drop(journal);
        let (mut journal, records) = Journal::take_over(&path).unwrap().unwrap();
        assert_eq!(records, [Record::Merged]);
        journal.append(&Record::Checkpoint { sector: 7 }).unwrap();
        drop(journal);
        let (journal, records) = Journal::take_over(&path).unwrap().unwrap();
        assert_eq!(records, [Record::Merged, Record::Checkpoint { sector: 7 }]);
        assert_eq!(Journal::list(folder.path()).unwrap(), [path]);
        journal.remove().unwrap();
        assert_eq!(Journal::list(folder.path()).unwrap(), <[PathBuf; 0]>::default());
    }

    #[test]
    fn a_torn_tail_is_cut_off_wherever_it_is_torn() {
        let folder = tempfile::tempdir().unwrap();
        let (path, whole) = sample(folder.path());
        let second = parse(&whole).end - (FRAME_HEADER + serde_json::to_vec(&Record::Merged).unwrap().len());
        for end in 0..whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            let (mut journal, records) = Journal::take_over(&path).unwrap().unwrap();
            assert_eq!(records.len(), usize::from(end >= second), "cut at {end}");
            if end >= MAGIC.len() {
                journal.append(&Record::Checkpoint { sector: 9 }).unwrap();
                drop(journal);
                assert_eq!(Journal::peek(&path).unwrap().last(), Some(&Record::Checkpoint { sector: 9 }));
            }
        }
    }

    #[test]
    fn a_journal_of_a_later_version_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (path, mut bytes) = sample(folder.path());
        let text = br#"{"record":"of another kind"}"#;
        let length = (text.len() as u32).to_be_bytes();
        bytes.extend([&length[..], &checksum(length, text).to_be_bytes(), text].concat());
        fs::write(&path, &bytes).unwrap();
        assert!(Journal::take_over(&path).unwrap().is_none());
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }

    #[test]
    fn a_changed_bit_ends_the_journal() {
        let folder = tempfile::tempdir().unwrap();
        let (path, whole) = sample(folder.path());
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            fs::write(&path, bytes).unwrap();
            assert!(Journal::peek(&path).unwrap().len() < 2, "byte {at}");
        }
    }
}
