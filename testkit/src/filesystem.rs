//! File systems for tests, as root.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use vhd_core::ByteCount;

/// A file system that can be made in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileSystem {
    /// Shares nothing.
    Ext4,
    /// Shares blocks of files; at least 300 MiB large.
    Xfs,
    /// Shares blocks of files; at least 114 MiB large.
    Btrfs,
}

impl FileSystem {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        })
    }
}

/// A new, empty file system in a sparse file, mounted until this is dropped.
#[derive(Debug)]
pub struct MountedImage {
    mount: Mount,
    _folder: TempDir,
}

impl MountedImage {
    /// Makes one with the blocks that it has by default.
    ///
    /// # Panics
    /// If that cannot be done, for want of root or of its tools for instance.
    pub fn new(kind: FileSystem, size: ByteCount) -> Self {
        Self::with_options(kind, size, &[])
    }

    /// Makes one, with more options for `mkfs`.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn with_options(kind: FileSystem, size: ByteCount, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("there is a temporary folder");
        let (image, path) = (folder.path().join("image"), folder.path().join("mount"));
        File::create(&image).and_then(|file| file.set_len(size.0)).expect("the folder is writable");
        let quiet = if kind == FileSystem::Ext4 { "-qF" } else { "-qf" };
        run(Command::new(format!("mkfs.{kind}")).arg(quiet).args(options).arg(&image));
        let mount = Mount::new(path, &[OsStr::new("-o"), OsStr::new("loop"), image.as_os_str()]);
        Self { mount, _folder: folder }
    }

    /// Its root folder.
    pub fn path(&self) -> &Path {
        &self.mount.path
    }

    /// Unmounts it: its content is away until it is [back](Self::back).
    ///
    /// # Panics
    /// If it is in use.
    pub fn away(&mut self) {
        self.mount.away(&[]);
    }

    /// Takes it out of the tree of folders though it is in use.
    ///
    /// # Panics
    /// If that cannot be done.
    pub fn away_lazily(&mut self) {
        self.mount.away(&["--lazy"]);
    }

    /// Mounts it again.
    ///
    /// # Panics
    /// If that cannot be done.
    pub fn back(&mut self) {
        self.mount.back();
    }
}

/// An ext4 file system served by another program (FUSE), mounted until this is dropped. Its renames take no flags.
#[derive(Debug)]
pub struct Fuse2fs {
    mount: Mount,
    _folder: TempDir,
}

impl Fuse2fs {
    /// Makes one.
    ///
    /// # Panics
    /// If that cannot be done, for want of root or of its tools for instance.
    pub fn new(size: ByteCount) -> Self {
        let folder = tempfile::tempdir().expect("there is a temporary folder");
        let (image, path) = (folder.path().join("image"), folder.path().join("mount"));
        File::create(&image).and_then(|file| file.set_len(size.0)).expect("the folder is writable");
        run(Command::new("mkfs.ext4").arg("-qF").arg(&image));
        std::fs::create_dir(&path).expect("the folder is writable");
        run(Command::new("fuse2fs").arg(&image).arg(&path).args(["-o", "rw"]));
        // It is never mounted again.
        Self { mount: Mount { path, arguments: Vec::new(), is_there: true }, _folder: folder }
    }

    /// Its root folder.
    pub fn path(&self) -> &Path {
        &self.mount.path
    }
}

/// A file system in memory that is soon full, mounted until this is dropped.
#[derive(Debug)]
pub struct Tmpfs {
    mount: Mount,
    _folder: TempDir,
}

impl Tmpfs {
    /// Makes one.
    ///
    /// # Panics
    /// If that cannot be done, for want of root for instance.
    pub fn new(size: ByteCount) -> Self {
        let folder = tempfile::tempdir().expect("there is a temporary folder");
        let options = format!("size={size}");
        let mount = Mount::new(folder.path().join("mount"), &["-t", "tmpfs", "-o", &options, "tmpfs"].map(OsStr::new));
        Self { mount, _folder: folder }
    }

    /// Its root folder.
    pub fn path(&self) -> &Path {
        &self.mount.path
    }

    /// Makes it as large as what is in it, and this.
    ///
    /// # Panics
    /// If that cannot be done.
    pub fn leave_free(&self, free: ByteCount) {
        let found = rustix::fs::statvfs(self.path()).expect("it is mounted");
        let used = (found.f_blocks - found.f_bfree) * found.f_frsize;
        let size = format!("remount,size={}", used + free.0);
        run(Command::new("mount").args(["-o", &size]).arg(self.path()));
    }
}

/// Dropped before the folder that it is in.
#[derive(Debug)]
struct Mount {
    path: PathBuf,
    arguments: Vec<OsString>,
    is_there: bool,
}

impl Mount {
    fn new(path: PathBuf, arguments: &[&OsStr]) -> Self {
        std::fs::create_dir(&path).expect("the folder is writable");
        let arguments = arguments.iter().map(Into::into).collect();
        let mut mount = Self { path, arguments, is_there: false };
        mount.back();
        mount
    }

    fn back(&mut self) {
        run(Command::new("mount").args(&self.arguments).arg(&self.path));
        self.is_there = true;
    }

    fn away(&mut self, options: &[&str]) {
        run(Command::new("umount").args(options).arg(&self.path));
        self.is_there = false;
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if !self.is_there {
            return;
        }
        let unmounted = |options: &[&str]| Command::new("umount").args(options).arg(&self.path).output();
        if unmounted(&[]).is_ok_and(|output| output.status.success()) {
            return;
        }
        // Busy, as when a test fails: it goes when the last file in it is closed.
        let lazily = unmounted(&["--lazy"]);
        assert!(
            std::thread::panicking() || lazily.is_ok_and(|output| output.status.success()),
            "{} cannot be unmounted",
            self.path.display()
        );
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; run `make setup`, as root"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed; run `make setup`, as root: {text}");
}
