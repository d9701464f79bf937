//! The files that the kernel knows of, each held open without access, so that none gets the number of another.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};
use rustix::fs::OFlags;

/// A file, open without access.
#[derive(Debug)]
pub(super) struct Node(File);

impl Node {
    fn open(path: &Path) -> io::Result<Self> {
        let flags = (OFlags::PATH | OFlags::NOFOLLOW).bits().cast_signed();
        Ok(Self(File::options().read(true).custom_flags(flags).open(path)?))
    }

    /// A path that leads to the very file, whatever its names.
    pub(super) fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    pub(super) fn file(&self) -> &File {
        &self.0
    }
}

/// All of them, by number, and how often the kernel was told of each.
#[derive(Debug)]
pub(super) struct Nodes {
    known: Mutex<HashMap<u64, (Arc<Node>, u64)>>,
    /// What the root is really numbered.
    root: u64,
    fine_times: bool,
}

impl Nodes {
    pub(super) fn new(root: &Path, fine_times: bool) -> io::Result<Self> {
        let node = Node::open(root)?;
        let number = node.0.metadata()?.ino();
        let known = HashMap::from([(INodeNo::ROOT.0, (Arc::new(node), 1))]);
        Ok(Self { known: Mutex::new(known), root: number, fine_times })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, (Arc<Node>, u64)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, number: INodeNo) -> io::Result<Arc<Node>> {
        self.lock().get(&number.0).map(|(node, _)| node.clone()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// A name in a folder.
    pub(super) fn name(&self, folder: INodeNo, name: &OsStr) -> io::Result<PathBuf> {
        Ok(self.find(folder)?.path().join(name))
    }

    /// Looks at a name, of which the kernel is about to be told.
    pub(super) fn look_up(&self, folder: INodeNo, name: &OsStr) -> io::Result<FileAttr> {
        let node = Node::open(&self.name(folder, name)?)?;
        let attr = self.attr(&node.0.metadata()?);
        self.lock().entry(attr.ino.0).or_insert_with(|| (Arc::new(node), 0)).1 += 1;
        Ok(attr)
    }

    pub(super) fn forget(&self, number: INodeNo, times: u64) {
        let mut known = self.lock();
        if let Some((_, count)) = known.get_mut(&number.0) {
            *count = count.saturating_sub(times);
            if *count == 0 {
                known.remove(&number.0);
            }
        }
    }

    pub(super) fn number(&self, real: u64) -> INodeNo {
        if real == self.root { INodeNo::ROOT } else { INodeNo(real) }
    }

    pub(super) fn attr(&self, metadata: &Metadata) -> FileAttr {
        let time = |seconds: i64, nanoseconds: i64| self.time(seconds, nanoseconds);
        let changed = time(metadata.ctime(), metadata.ctime_nsec());
        FileAttr {
            ino: self.number(metadata.ino()),
            size: metadata.len(),
            blocks: metadata.blocks(),
            atime: time(metadata.atime(), metadata.atime_nsec()),
            mtime: time(metadata.mtime(), metadata.mtime_nsec()),
            ctime: changed,
            crtime: changed,
            kind: FileType::from_std(metadata.file_type()).unwrap_or(FileType::RegularFile),
            perm: (metadata.permissions().mode() & 0o7777) as u16,
            nlink: metadata.nlink() as u32,
            uid: metadata.uid(),
            gid: metadata.gid(),
            rdev: metadata.rdev() as u32,
            blksize: 4096,
            flags: 0,
        }
    }

    fn time(&self, seconds: i64, nanoseconds: i64) -> SystemTime {
        let fine = if self.fine_times { nanoseconds } else { 0 };
        UNIX_EPOCH + Duration::new(u64::try_from(seconds).unwrap_or(0), u32::try_from(fine).unwrap_or(0))
    }
}
