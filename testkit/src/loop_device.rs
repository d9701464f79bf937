//! Block devices for tests, as root.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A block device whose bytes are in a file.
#[derive(Debug)]
pub struct LoopDevice {
    /// Its path.
    pub path: PathBuf,
}

impl LoopDevice {
    /// Makes one of `size` bytes, all zero, in a new file.
    ///
    /// # Panics
    /// If that cannot be done, for want of root for instance.
    pub fn new(file: &Path, size: u64) -> Self {
        File::create(file).and_then(|file| file.set_len(size)).expect("the folder is writable");
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output();
        let output = output.expect("losetup is there");
        assert!(output.status.success(), "losetup (as root): {}", String::from_utf8_lossy(&output.stderr));
        Self { path: String::from_utf8_lossy(&output.stdout).trim().into() }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.path).status();
        assert!(detached.is_ok_and(|status| status.success()));
    }
}
