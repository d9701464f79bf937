//! Which file or device something is.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A file or device, known by what it is rather than by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    device: DeviceNumber,
    inode: u64,
}

/// A mounted file system, or a subvolume of one, as `stat` numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceNumber(u64);

impl FileIdentity {
    /// Looks at what a path leads to.
    ///
    /// # Errors
    /// What the system answers.
    pub fn at(path: &Path) -> io::Result<Self> {
        Ok(Self::new(&std::fs::metadata(path)?))
    }

    /// Looks at an open file.
    ///
    /// # Errors
    /// What the system answers.
    pub fn of(file: &File) -> io::Result<Self> {
        Ok(Self::new(&file.metadata()?))
    }

    pub(super) fn new(metadata: &Metadata) -> Self {
        Self { device: DeviceNumber(metadata.dev()), inode: metadata.ino() }
    }

    /// What `/proc/locks` calls it.
    pub(super) fn in_locks(&self) -> String {
        let (major, minor) = (rustix::fs::major(self.device.0), rustix::fs::minor(self.device.0));
        format!("{major:02x}:{minor:02x}:{}", self.inode)
    }

    /// Where it is.
    pub fn device(&self) -> DeviceNumber {
        self.device
    }
}
