//! What cannot be done: asked once, replaced only where nobody asked for it, and never confused with other errors.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use coalesce_worker::{CopyMethod, Move, Transfer};
use testkit::filesystem::{FileSystem, MountedImage, Tmpfs};
use vhd_core::{Buffer, ByteCount, Container, FileOffset, FileStorage, Storage};

use super::{SIZE, file, fill_source, moved, reset, whole};

/// A file that counts how often it is asked to share and to copy.
#[derive(Debug)]
struct Counting {
    file: FileStorage,
    shared: AtomicU64,
    copied: AtomicU64,
    fault: Option<ErrorKind>,
}

impl Counting {
    fn new(folder: &Path, name: &str, fault: Option<ErrorKind>) -> Arc<Self> {
        fs::write(folder.join(name), b"").unwrap();
        let file = FileStorage::open_writable_beside(&folder.join(name)).unwrap();
        Arc::new(Self { file, shared: AtomicU64::new(0), copied: AtomicU64::new(0), fault })
    }
}

impl Storage for Counting {
    fn len(&self) -> io::Result<ByteCount> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], at: FileOffset) -> io::Result<()> {
        self.file.read_at(buf, at)
    }

    fn write_at(&self, buf: &[u8], at: FileOffset) -> io::Result<()> {
        self.file.write_at(buf, at)
    }

    fn set_len(&self, len: ByteCount) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn zero_range(&self, at: FileOffset, length: ByteCount) -> io::Result<()> {
        self.file.zero_range(at, length)
    }

    fn as_file(&self) -> Option<&FileStorage> {
        self.file.as_file()
    }

    fn clone_range(&self, source: &dyn Storage, from: FileOffset, to: FileOffset, length: ByteCount) -> io::Result<()> {
        self.shared.fetch_add(1, Ordering::Relaxed);
        self.fault.map_or_else(|| self.file.clone_range(source, from, to, length), |kind| Err(kind.into()))
    }

    fn copy_range(&self, source: &dyn Storage, from: FileOffset, to: FileOffset, length: ByteCount) -> io::Result<()> {
        self.copied.fetch_add(1, Ordering::Relaxed);
        self.file.copy_range(source, from, to, length)
    }
}

#[test]
fn what_a_file_system_cannot_do_is_asked_once() {
    let image = MountedImage::new(FileSystem::Ext4, ByteCount(64 << 20));
    let source = file(image.path(), "source");
    fill_source(&source);
    let storage = Counting::new(image.path(), "target", None);
    let target = Container::new("target", storage.clone());
    let transfer = Transfer::new(CopyMethod::Auto, false);
    for _ in 0..3 {
        let done = moved(&transfer, &whole(&source, &target), &mut Buffer::default()).unwrap();
        assert_eq!(done.written, ByteCount(1 << 20));
    }
    assert_eq!(storage.shared.load(Ordering::Relaxed), 1, "no other file of the file system is asked either");
    let second = Counting::new(image.path(), "second", None);
    let target = Container::new("second", second.clone());
    moved(&transfer, &whole(&source, &target), &mut Buffer::default()).unwrap();
    assert_eq!(second.shared.load(Ordering::Relaxed), 0);
    assert_eq!(storage.copied.load(Ordering::Relaxed), 0, "the kernel is no faster here");
}

#[test]
fn two_files_that_cannot_share_say_nothing_of_others() {
    let image = MountedImage::new(FileSystem::Btrfs, SIZE);
    let source = file(image.path(), "source");
    fill_source(&source);
    // Without checksums; files that have them share nothing with it.
    let plain = file(image.path(), "plain");
    let changed = Command::new("chattr").arg("+C").arg(plain.path()).status().unwrap();
    assert!(changed.success());
    let target = file(image.path(), "target");
    let transfer = Transfer::new(CopyMethod::Auto, false);
    let to = |target| moved(&transfer, &whole(&source, target), &mut Buffer::default()).unwrap();
    let done = to(&plain);
    assert_eq!((done.shared.0, done.written.0, done.requests), (0, 1 << 20, 1));
    assert_eq!(to(&plain).requests, 0, "remembered");
    assert_eq!(to(&target).shared.0, 1 << 20);
}

#[test]
fn a_full_disk_and_a_broken_one_are_errors() {
    let image = MountedImage::new(FileSystem::Ext4, ByteCount(64 << 20));
    let source = file(image.path(), "source");
    fill_source(&source);
    for fault in [ErrorKind::StorageFull, ErrorKind::Other, ErrorKind::QuotaExceeded] {
        let storage = Counting::new(image.path(), "target", Some(fault));
        let target = Container::new("target", storage.clone());
        let transfer = Transfer::new(CopyMethod::Auto, false);
        for asked in 1..3 {
            let error = transfer.move_range(&whole(&source, &target), &mut Buffer::default()).unwrap_err();
            assert_eq!((error.source.kind(), error.path.as_path()), (fault, Path::new("target")));
            assert_eq!(storage.shared.load(Ordering::Relaxed), asked, "this is not about the method");
        }
        assert!(target.is_empty().unwrap(), "nothing was done in its stead");
    }

    let small = Tmpfs::new(ByteCount(1 << 20));
    let (source, target) = (file(small.path(), "source"), file(small.path(), "target"));
    source.write_at(&vec![7; 700 << 10], FileOffset(0)).unwrap();
    for method in [CopyMethod::Auto, CopyMethod::CopyFileRange, CopyMethod::ReadWrite] {
        let range = Move { length: ByteCount(700 << 10), ..whole(&source, &target) };
        target.set_len(ByteCount(0)).unwrap();
        let error = Transfer::new(method, false).move_range(&range, &mut Buffer::default()).unwrap_err();
        assert_eq!(error.source.kind(), ErrorKind::StorageFull, "{method}");
    }
}

#[test]
fn a_method_that_was_asked_for_is_not_replaced() {
    let (ext4, xfs) =
        (MountedImage::new(FileSystem::Ext4, ByteCount(64 << 20)), MountedImage::new(FileSystem::Xfs, SIZE));
    let (here, near, there) = (file(ext4.path(), "a"), file(ext4.path(), "b"), file(xfs.path(), "c"));
    fill_source(&here);
    let attempt = |method, target| {
        reset(target, true);
        Transfer::new(method, false).move_range(&whole(&here, target), &mut Buffer::default())
    };
    for (method, target) in
        [(CopyMethod::Reflink, &near), (CopyMethod::Reflink, &there), (CopyMethod::CopyFileRange, &there)]
    {
        let error = attempt(method, target).unwrap_err();
        assert_eq!((error.source.kind(), &*error.path), (ErrorKind::Unsupported, target.path()), "{method}");
        assert!(error.to_string().contains(&here.path().display().to_string()), "{error}");
    }
    for target in [&near, &there] {
        let done = moved(&Transfer::new(CopyMethod::Auto, false), &whole(&here, target), &mut Buffer::default());
        assert_eq!(done.unwrap().written.0, 1 << 20);
    }
}
