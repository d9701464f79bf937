//! A store with the name that errors call it by.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Storage, padded};
use crate::units::{ByteCount, FileOffset};

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

    /// As [`Storage::punch_hole`].
    pub fn punch_hole(&self, at: FileOffset, length: ByteCount) -> Result<bool, StorageError> {
        self.named(self.storage.punch_hole(at, length), at, || format!("make a hole of {length} bytes"))
    }

    /// As [`Storage::next_data`].
    pub fn next_data(&self, from: FileOffset) -> Result<Option<Range<FileOffset>>, StorageError> {
        self.named(self.storage.next_data(from), from, || "look for data".into())
    }

    /// As [`Storage::has_fixed_size`].
    pub fn has_fixed_size(&self) -> bool {
        self.storage.has_fixed_size()
    }

    /// As [`Storage::is_open_elsewhere`].
    pub fn is_open_elsewhere(&self) -> Result<bool, StorageError> {
        self.named(self.storage.is_open_elsewhere(), FileOffset(0), || "tell who has it open".into())
    }

    /// As [`Storage::is_wanted`].
    pub fn is_wanted(&self) -> bool {
        self.storage.is_wanted()
    }

    /// As [`Storage::clone_range`].
    pub fn clone_range(
        &self,
        source: &Self,
        from: FileOffset,
        to: FileOffset,
        length: ByteCount,
    ) -> Result<(), StorageError> {
        self.named(self.storage.clone_range(source.storage(), from, to, length), to, || {
            format!("share {length} bytes with {} (its offset {from})", source.path.display())
        })
    }

    /// As [`Storage::copy_range`].
    pub fn copy_range(
        &self,
        source: &Self,
        from: FileOffset,
        to: FileOffset,
        length: ByteCount,
    ) -> Result<(), StorageError> {
        self.named(self.storage.copy_range(source.storage(), from, to, length), to, || {
            format!("copy {length} bytes from {} (its offset {from})", source.path.display())
        })
    }
}
