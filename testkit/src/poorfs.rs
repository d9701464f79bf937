//! A poor file system: passes everything through to a real folder (FUSE, as root), but for what it is told to refuse.
//!
//! Files without a name (`O_TMPFILE`) and sharing blocks (`FICLONERANGE`) it never has. Nothing is cached: what a test
//! changes in the real folder shows at once, and the other way round.

mod nodes;
mod serve;
mod server;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use fuser::{BackgroundSession, Config, MountOption, SessionACL};
pub use rustix::io::Errno;
use tempfile::TempDir;

use crate::scratch;
use server::Server;

/// What a file system can do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// `renameat2` with flags: `EINVAL`, as on NFS.
    RenameFlags,
    /// Second names of a file.
    HardLinks(Errno),
    /// `fallocate` of all but plain space: no holes can be made.
    Punching,
    /// `fallocate` altogether.
    Fallocate,
    /// `SEEK_DATA` and `SEEK_HOLE`: `EINVAL`.
    SeekData,
    /// `copy_file_range`. The kernel answers with a copy of its own where this is EXDEV or EOPNOTSUPP.
    CopyFileRange(Errno),
    /// `flock`.
    Flock(Errno),
    /// An exclusive `flock` through a descriptor that cannot write: `EBADF`, as on NFS.
    FlockWithoutWriting,
    /// Times finer than a second: what is left of them is cut off.
    FineTimes,
    /// Symbolic links: `EPERM`.
    Symlinks,
    /// Extended attributes: `EOPNOTSUPP`.
    Attributes,
    /// Syncing folders: `EINVAL`, as on older SMB.
    FolderSync,
}

impl Refusal {
    /// All that the programs must cope with: locks are not among them.
    pub const BEARABLE: [Self; 12] = [
        Self::RenameFlags,
        Self::HardLinks(Errno::PERM),
        Self::HardLinks(Errno::OPNOTSUPP),
        Self::Punching,
        Self::Fallocate,
        Self::SeekData,
        Self::CopyFileRange(Errno::NOSYS),
        Self::FlockWithoutWriting,
        Self::FineTimes,
        Self::Symlinks,
        Self::Attributes,
        Self::FolderSync,
    ];
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A poor file system, mounted until this is dropped.
#[derive(Debug)]
pub struct PoorFs {
    // Dropped in this order: what serves the mount before the folders.
    session: Option<BackgroundSession>,
    mount: PathBuf,
    _folder: TempDir,
    real: TempDir,
}

impl PoorFs {
    /// Mounts an empty one that refuses these.
    ///
    /// # Panics
    /// If that cannot be done, for want of root for instance.
    pub fn new(refused: &[Refusal]) -> Self {
        let (folder, real) = (tempfile::tempdir().expect("there is a temporary folder"), scratch::folder());
        let mount = folder.path().join("poor");
        std::fs::create_dir(&mount).expect("the folder is writable");
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("poorfs".into()), MountOption::DefaultPermissions];
        config.acl = SessionACL::All;
        config.n_threads = Some(4);
        let server = Server::new(real.path(), refused).expect("the folder is there");
        let session = fuser::spawn_mount(server, &mount, &config).expect("FUSE is there, and this is root");
        Self { session: Some(session), mount, _folder: folder, real }
    }

    /// Its root folder.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// The folder that really holds what is in it.
    pub fn real(&self) -> &Path {
        self.real.path()
    }
}

impl Drop for PoorFs {
    fn drop(&mut self) {
        let unmounted = |options: &[&str]| {
            let output = Command::new("umount").args(options).arg(&self.mount).output();
            output.is_ok_and(|output| output.status.success())
        };
        let is_idle = unmounted(&[]);
        // Busy, as when a test fails: it goes when the last file in it is closed.
        let is_gone = is_idle || unmounted(&["--lazy"]);
        if let Some(session) = self.session.take().filter(|_| is_idle) {
            let _ = session.join();
        }
        assert!(std::thread::panicking() || is_gone, "{} cannot be unmounted", self.mount.display());
    }
}
