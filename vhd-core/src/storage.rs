//! Where bytes live: the one trait between the format and files, memory or test doubles.

mod file;
mod memory;
mod padded;

pub use file::{FileStorage, Lock};
pub use memory::MemoryStorage;

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::units::{ByteCount, FileOffset};

/// A flat, positioned, synchronous store of bytes that may be used from several threads at once.
///
/// Reads and writes are whole: a short one is an error. What is written reads back at once, but survives a
/// power failure only once [`sync`](Storage::sync) has returned; until then any part of it may be lost, in any order.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Tells the present length.
    fn len(&self) -> io::Result<ByteCount>;

    /// Tells whether it holds nothing.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()?.0 == 0)
    }

    /// Fills `buf` with the bytes at `at`; past the end it fails with [`io::ErrorKind::UnexpectedEof`].
    fn read_at(&self, buf: &mut [u8], at: FileOffset) -> io::Result<()>;

    /// Writes all of `buf` at `at`, growing the store where it must.
    fn write_at(&self, buf: &[u8], at: FileOffset) -> io::Result<()>;

    /// Cuts or extends the store; an extension reads as zeros and takes no space.
    ///
    /// A store of fixed size (a block device) accepts every length up to its own and fails with
    /// [`io::ErrorKind::StorageFull`] beyond.
    fn set_len(&self, len: ByteCount) -> io::Result<()>;

    /// Returns once all that was written and every change of length is durable.
    fn sync(&self) -> io::Result<()>;

    /// Makes `length` bytes at `at`, all within the store, read as zeros, freeing their space where that can be done.
    fn zero_range(&self, at: FileOffset, length: ByteCount) -> io::Result<()> {
        write_zeros(self, at, length)
    }

    /// Finds the next range at or after `from` that may hold anything but zeros; `None` where only a hole follows.
    fn next_data(&self, from: FileOffset) -> io::Result<Option<Range<FileOffset>>> {
        let end = FileOffset(self.len()?.0);
        Ok((from < end).then_some(from..end))
    }

    /// Tells whether its size cannot change (a block device): the footer is then in its last 512 bytes.
    fn has_fixed_size(&self) -> bool {
        false
    }
}

fn write_zeros<S: Storage + ?Sized>(storage: &S, at: FileOffset, length: ByteCount) -> io::Result<()> {
    static ZEROS: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut done = 0;
    while done < length.0 {
        let step = (length.0 - done).min(ZEROS.len() as u64);
        storage.write_at(&ZEROS[..step as usize], at + ByteCount(done))?;
        done += step;
    }
    Ok(())
}

/// A failed access to an image's storage.
#[derive(Debug, thiserror::Error)]
#[error("{}: cannot {action} at offset {offset}", path.display())]
pub struct StorageError {
    /// The image.
    pub path: PathBuf,
    /// What was tried: `read 512 bytes`, `sync`, …
    pub action: String,
    /// Where in the file.
    pub offset: FileOffset,
    /// What the system answered.
    #[source]
    pub source: io::Error,
}

impl StorageError {
    /// Tells that a file could not be opened.
    pub(crate) fn from_open(path: &Path, source: io::Error) -> Self {
        Self { path: path.into(), action: "open".into(), offset: FileOffset(0), source }
    }
}

/// A store and the name that errors call it by.
#[derive(Clone, Debug)]
pub struct Container {
    storage: Arc<dyn Storage>,
    path: Arc<Path>,
}

impl Container {
    /// Names a store.
    pub fn new(path: impl Into<PathBuf>, storage: Arc<dyn Storage>) -> Self {
        Self { storage, path: path.into().into() }
    }

    /// The name that errors call it by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The store itself.
    pub fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    /// The same for reading, filled up with zeros to a whole sector.
    pub(crate) fn padded(&self) -> Self {
        Self { storage: Arc::new(padded::Padded(self.storage.clone())), path: self.path.clone() }
    }

    fn named<T>(
        &self,
        result: io::Result<T>,
        at: FileOffset,
        action: impl FnOnce() -> String,
    ) -> Result<T, StorageError> {
        result.map_err(|source| StorageError { path: self.path.to_path_buf(), action: action(), offset: at, source })
    }

    /// As [`Storage::len`].
    pub fn len(&self) -> Result<ByteCount, StorageError> {
        self.named(self.storage.len(), FileOffset(0), || "tell the length".into())
    }

    /// As [`Storage::is_empty`].
    pub fn is_empty(&self) -> Result<bool, StorageError> {
        Ok(self.len()?.0 == 0)
    }

    /// As [`Storage::read_at`].
    pub fn read_at(&self, buf: &mut [u8], at: FileOffset) -> Result<(), StorageError> {
        let length = buf.len();
        self.named(self.storage.read_at(buf, at), at, || format!("read {length} bytes"))
    }

    /// As [`Storage::write_at`].
    pub fn write_at(&self, buf: &[u8], at: FileOffset) -> Result<(), StorageError> {
        self.named(self.storage.write_at(buf, at), at, || format!("write {} bytes", buf.len()))
    }

    /// As [`Storage::set_len`].
    pub fn set_len(&self, len: ByteCount) -> Result<(), StorageError> {
        self.named(self.storage.set_len(len), FileOffset(len.0), || "end the file".into())
    }

    /// As [`Storage::sync`].
    pub fn sync(&self) -> Result<(), StorageError> {
        self.named(self.storage.sync(), FileOffset(0), || "sync".into())
    }

    /// As [`Storage::zero_range`].
    pub fn zero_range(&self, at: FileOffset, length: ByteCount) -> Result<(), StorageError> {
        self.named(self.storage.zero_range(at, length), at, || format!("zero {length} bytes"))
    }

    /// As [`Storage::next_data`].
    pub fn next_data(&self, from: FileOffset) -> Result<Option<Range<FileOffset>>, StorageError> {
        self.named(self.storage.next_data(from), from, || "look for data".into())
    }

    /// As [`Storage::has_fixed_size`].
    pub fn has_fixed_size(&self) -> bool {
        self.storage.has_fixed_size()
    }
}
