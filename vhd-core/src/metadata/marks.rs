//! What blktap's users keep with an image: a marker, and the hash of the key that it is encrypted with.
//!
//! Both are in the header of the batmap; of an image that has none, in extended attributes of its file.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{XattrFlags, fgetxattr, fsetxattr};
use rustix::io::Errno;

use super::MetadataError;
use crate::batmap::{Batmap, BatmapState, KeyHash};
use crate::image::Image;
use crate::write::ReadWrite;

/// Source: blktap; one byte.
const MARKER: &str = "user.com.citrix.xenclient.backend.marker";
/// Source: blktap; a cookie of one byte, which is 1, the nonce and the hash.
const KEY_HASH: &str = "user.com.citrix.xenclient.backend.keyhash";
const KEY_HASH_SIZE: usize = 65;

impl<Mode> Image<Mode> {
    /// The byte that blktap's users mark an image with; 0 where nobody has.
    ///
    /// # Errors
    /// An attribute that cannot be read.
    pub fn marker(&self) -> Result<u8, MetadataError> {
        if self.promises_batmap() {
            return Ok(self.batmap().map_or(0, Batmap::marker));
        }
        let mut marker = [0];
        Ok(if self.read_attribute(MARKER, &mut marker)? { marker[0] } else { 0 })
    }

    /// The hash of the key that the image is encrypted with.
    ///
    /// # Errors
    /// An attribute that cannot be read.
    pub fn key_hash(&self) -> Result<Option<KeyHash>, MetadataError> {
        if self.promises_batmap() {
            return Ok(self.batmap().and_then(Batmap::key_hash));
        }
        let mut bytes = [0; KEY_HASH_SIZE];
        if !self.read_attribute(KEY_HASH, &mut bytes)? || bytes[0] != 1 {
            return Ok(None);
        }
        let mut key = KeyHash { nonce: [0; 32], hash: [0; 32] };
        key.nonce.copy_from_slice(&bytes[1..33]);
        key.hash.copy_from_slice(&bytes[33..]);
        Ok(Some(key))
    }

    fn promises_batmap(&self) -> bool {
        self.tables.as_ref().is_some_and(|tables| tables.batmap != BatmapState::Absent)
    }

    /// Fills `value` with an attribute of just that length; tells whether there is one.
    fn read_attribute(&self, name: &'static str, value: &mut [u8]) -> Result<bool, MetadataError> {
        let Some(file) = self.container.storage().as_file() else { return Ok(false) };
        match fgetxattr(file.file().as_fd(), name, &mut *value) {
            Ok(length) => Ok(length == value.len()),
            // There is none, or it is something else.
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
            Err(errno) => Err(self.attribute_error("read", name, errno.into())),
        }
    }

    fn attribute_error(&self, action: &'static str, name: &'static str, source: io::Error) -> MetadataError {
        MetadataError::Attribute { path: self.path().into(), action, name, source }
    }
}

impl Image<ReadWrite> {
    /// Marks the image with a byte.
    ///
    /// # Errors
    /// A batmap that has been overwritten; a file system or device without attributes; a failed write or sync.
    ///
    /// # Crash safety
    /// One sector, the header of the batmap, or one attribute.
    pub fn set_marker(&mut self, marker: u8) -> Result<(), MetadataError> {
        if self.promises_batmap() {
            return self.change_batmap(|batmap| batmap.set_marker(marker));
        }
        self.write_attribute(MARKER, &[marker])
    }

    /// Records the hash of the key that the image is encrypted with.
    ///
    /// # Errors
    /// As [`set_marker`](Self::set_marker).
    ///
    /// # Crash safety
    /// As [`set_marker`](Self::set_marker).
    pub fn set_key_hash(&mut self, key: KeyHash) -> Result<(), MetadataError> {
        if self.promises_batmap() {
            return self.change_batmap(|batmap| batmap.set_key_hash(Some(key)));
        }
        self.write_attribute(KEY_HASH, &[&[1][..], &key.nonce, &key.hash].concat())
    }

    fn change_batmap(&mut self, change: impl FnOnce(&mut Batmap)) -> Result<(), MetadataError> {
        self.flush()?;
        self.commit(|image| {
            let tables = image.tables.as_mut().expect("a batmap is among the tables");
            // The one in memory may have the checksum of before the flush.
            let state = BatmapState::read(&image.container, &tables.header, image.container.len()?)?;
            let BatmapState::Present(mut batmap) = state else {
                return Err(MetadataError::NoBatmap { path: image.container.path().into() });
            };
            change(&mut batmap);
            batmap.write_header(&image.container)?;
            image.container.sync()?;
            tables.batmap = BatmapState::Present(batmap);
            image.forget_batmap();
            Ok(())
        })
    }

    fn write_attribute(&self, name: &'static str, value: &[u8]) -> Result<(), MetadataError> {
        let failed = |source| self.attribute_error("write", name, source);
        let file = self.container.storage().as_file();
        let file = file.ok_or_else(|| failed(Errno::OPNOTSUPP.into()))?;
        fsetxattr(file.file().as_fd(), name, value, XattrFlags::empty()).map_err(|errno| failed(errno.into()))?;
        Ok(self.container.sync()?)
    }
}
