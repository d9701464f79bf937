//! The file system's state: what is open, and what is refused.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirEntryExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use fuser::{Errno as Answer, FileHandle, FileType, INodeNo, OpenAccMode, OpenFlags};
use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use super::Refusal;
use super::nodes::Nodes;

const WRITE_LOCK: i32 = 1;
const NO_LOCK: i32 = 2;
const MOMENT: Duration = Duration::from_micros(200);
const MOMENTS: u32 = 25;

/// An open file or folder.
#[derive(Debug)]
pub(super) enum Handle {
    File { file: File, is_writable: bool },
    Folder(Vec<(u64, FileType, std::ffi::OsString)>),
}

/// The file system.
#[derive(Debug)]
pub(super) struct Server {
    refused: Vec<Refusal>,
    pub(super) nodes: Nodes,
    open: RwLock<HashMap<u64, Arc<Handle>>>,
    last: AtomicU64,
}

pub(super) fn answer(error: &io::Error) -> Answer {
    Answer::from_i32(error.raw_os_error().unwrap_or(match error.kind() {
        io::ErrorKind::NotFound => Errno::NOENT.raw_os_error(),
        _ => Errno::IO.raw_os_error(),
    }))
}

impl Server {
    pub(super) fn new(root: &Path, refused: &[Refusal]) -> io::Result<Self> {
        let nodes = Nodes::new(root, !refused.contains(&Refusal::FineTimes))?;
        Ok(Self { refused: refused.to_vec(), nodes, open: RwLock::default(), last: AtomicU64::new(0) })
    }

    pub(super) fn refuses(&self, what: Refusal) -> bool {
        self.refused.contains(&what)
    }

    /// Fails where this is refused.
    pub(super) fn check(&self, what: Refusal, error: Errno) -> io::Result<()> {
        if self.refuses(what) { Err(error.into()) } else { Ok(()) }
    }

    /// The answer that is refused with, where it is.
    pub(super) fn refusal(&self, with: impl Fn(&Refusal) -> Option<Errno>) -> io::Result<()> {
        self.refused.iter().find_map(with).map_or(Ok(()), |errno| Err(errno.into()))
    }

    pub(super) fn keep(&self, handle: Handle) -> FileHandle {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.open.write().unwrap_or_else(PoisonError::into_inner).insert(number, Arc::new(handle));
        FileHandle(number)
    }

    pub(super) fn drop_handle(&self, handle: FileHandle) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
    }

    pub(super) fn handle(&self, handle: FileHandle) -> io::Result<Arc<Handle>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&handle.0).cloned().ok_or_else(|| Errno::BADF.into())
    }

    /// Runs `work` on an open file.
    pub(super) fn with<T>(&self, handle: FileHandle, work: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        match &*self.handle(handle)? {
            Handle::File { file, .. } => work(file),
            Handle::Folder(_) => Err(Errno::ISDIR.into()),
        }
    }

    pub(super) fn open_as(&self, path: &Path, flags: OpenFlags, create: Option<u32>) -> io::Result<FileHandle> {
        let is_writable = flags.acc_mode() != OpenAccMode::O_RDONLY;
        let is_readable = flags.acc_mode() != OpenAccMode::O_WRONLY;
        let mut options = File::options();
        options.read(is_readable).write(is_writable).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
        if let Some(mode) = create {
            options.write(true).create(true).mode(mode);
            if OFlags::from_bits_retain(flags.0.cast_unsigned()).contains(OFlags::EXCL) {
                options.create_new(true);
            }
        }
        Ok(self.keep(Handle::File { file: options.open(path)?, is_writable }))
    }

    pub(super) fn list(&self, number: INodeNo) -> io::Result<Handle> {
        let dots = [".", ".."].map(|name| (number.0, FileType::Directory, name.into()));
        let mut entries = dots.to_vec();
        for entry in fs::read_dir(self.nodes.find(number)?.path())? {
            let entry = entry?;
            let kind = FileType::from_std(entry.file_type()?).unwrap_or(FileType::RegularFile);
            entries.push((self.nodes.number(entry.ino()).0, kind, entry.file_name()));
        }
        Ok(Handle::Folder(entries))
    }

    /// Takes or gives back a lock, where that is not left to the kernel.
    pub(super) fn lock(&self, handle: FileHandle, kind: i32) -> io::Result<()> {
        self.refusal(|it| if let Refusal::Flock(errno) = it { Some(*errno) } else { None })?;
        let handle = self.handle(handle)?;
        let Handle::File { file, is_writable } = &*handle else { return Err(Errno::BADF.into()) };
        if kind == WRITE_LOCK && !is_writable {
            return Err(Errno::BADF.into());
        }
        let operation = match kind {
            WRITE_LOCK => FlockOperation::NonBlockingLockExclusive,
            NO_LOCK => FlockOperation::NonBlockingUnlock,
            _ => FlockOperation::NonBlockingLockShared,
        };
        // The kernel does not wait for the end of a file that has been closed, and its lock may be there for a moment.
        let mut tries = 0;
        loop {
            match rustix::fs::flock(file, operation) {
                Err(Errno::WOULDBLOCK) if tries < MOMENTS => std::thread::sleep(MOMENT),
                locked => return Ok(locked?),
            }
            tries += 1;
        }
    }

    pub(super) fn locks_itself(&self) -> bool {
        self.refuses(Refusal::FlockWithoutWriting) || self.refused.iter().any(|it| matches!(it, Refusal::Flock(_)))
    }
}
