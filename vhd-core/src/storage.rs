//! Where bytes live: the one trait between the format and files, memory or test doubles.

mod container;
mod file;
mod identity;
mod lease;
mod lock;
mod memory;
mod padded;
mod stamp;

pub use container::{Container, StorageError};
pub use file::FileStorage;
pub use identity::{DeviceNumber, FileIdentity};
pub use lock::{Lock, explain_lock};
pub use memory::MemoryStorage;
pub use stamp::FileStamp;

use std::fmt;
use std::io;
use std::ops::Range;

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

    /// Gives the space of `length` bytes at `at`, all within the store, back where that takes no writing: they then read as
    /// zeros. Tells whether it could; where not, nothing has changed.
    fn punch_hole(&self, at: FileOffset, length: ByteCount) -> io::Result<bool> {
        let _ = (at, length);
        Ok(false)
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

    /// Tells whether another program on this host has it open now.
    ///
    /// # Errors
    /// Nothing tells.
    fn is_open_elsewhere(&self) -> io::Result<bool> {
        Ok(false)
    }

    /// Tells whether another program has asked for it since it was opened for writing. What is under way is then to be
    /// brought to an end soon: writes fail with [`io::ErrorKind::ResourceBusy`] a while later.
    fn is_wanted(&self) -> bool {
        false
    }

    /// The regular file that holds it, where one does: what the kernel can share or copy by itself.
    fn as_file(&self) -> Option<&FileStorage> {
        None
    }

    /// Makes `length` bytes at `to` share the blocks of those at `from` in `source`, holes included, growing the store
    /// where it must; what is written to either later is not seen in the other.
    ///
    /// What `source` holds is shared even where it is not on disk yet: the kernel writes it out first. It is durable
    /// here once [`sync`](Storage::sync) has returned, as with a write.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where these two stores cannot share anything, and
    /// [`io::ErrorKind::InvalidInput`] where they cannot share these ranges: no whole blocks of the file system, or not
    /// all within `source`; or these very files, of which only one has checksums for instance.
    ///
    /// Source: ioctl_ficlonerange(2); Linux, fs/remap_range.c, `__generic_remap_file_range_prep`: "Wait for the
    /// completion of any pending IOs on both files".
    fn clone_range(&self, source: &dyn Storage, from: FileOffset, to: FileOffset, length: ByteCount) -> io::Result<()> {
        let _ = (source, from, to, length);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Copies `length` bytes at `from` in `source` to `to`, without passing them through this process: on a server, in
    /// the kernel, or by sharing blocks, as the file system likes.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where that is impossible between these two stores,
    /// [`io::ErrorKind::InvalidInput`] where it is between these ranges or files, and
    /// [`io::ErrorKind::UnexpectedEof`] where `source` ends before. An unknown part has been copied then.
    ///
    /// Source: copy_file_range(2).
    fn copy_range(&self, source: &dyn Storage, from: FileOffset, to: FileOffset, length: ByteCount) -> io::Result<()> {
        let _ = (source, from, to, length);
        Err(io::ErrorKind::Unsupported.into())
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
