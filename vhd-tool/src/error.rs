//! The one error of commands: what it is, what caused it, what to do, and the exit code that it makes.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use coalesce_worker::{CoalesceError, CompactingError, DeleteError, ResizeError, SnapshotError};
use vhd_core::repair::{JournalError, RepairError, UndoError};
use vhd_core::stream::{LayoutError, StreamError, StreamFault};
use vhd_core::{
    ByteCount, ChainError, CompactError, CreateError, FileError, FolderError, LinkError, MetadataError, OpenError,
    ReadError, StorageError, WriteError,
};

use crate::nbd::{HybridError, NbdError};
use crate::output;
use crate::stream::failure::StreamFailure;
use crate::transport::ConnectError;

/// What an error means to whoever started the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ErrorKind {
    /// The command cannot be meant as it was given.
    Usage,
    /// It was not, or not all, done.
    Failed,
    /// There is no field of that name.
    UnknownKey,
    /// Whoever read the output has seen enough.
    ClosedPipe,
}

/// A command that failed.
#[derive(Debug)]
pub(crate) struct CommandError {
    kind: ErrorKind,
    hints: Vec<&'static str>,
    source: Box<dyn Error + Send + Sync>,
}

/// What the command line refuses by itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// A child that ends before its parent would hide the rest.
    #[error("{}: a child of {} bytes would be smaller than its parent, {}, of {}", file.display(), size, parent.display(), parent_size)]
    SmallerThanParent {
        /// The child.
        file: PathBuf,
        /// Its size as asked for.
        size: ByteCount,
        /// The parent.
        parent: PathBuf,
        /// The parent's size.
        parent_size: ByteCount,
    },
    /// Fixed images have no blocks.
    #[error("a fixed image has no blocks, so --block-size has no meaning")]
    BlocksOfFixed,
    /// What is to be replaced is a folder, a device or a link.
    #[error("{}: not a regular file, and only such are replaced", path.display())]
    NotRegular {
        /// What is there.
        path: PathBuf,
    },
    /// The new file would take the place of one that it is made from.
    #[error("{}: would be replaced, but {} is read through it", path.display(), reader.display())]
    OwnSource {
        /// The file to be replaced.
        path: PathBuf,
        /// The image that is read through it.
        reader: PathBuf,
    },
    /// The start lies past the end of the disk.
    #[error("{}: offset {offset} is past the end of the disk, {size}", path.display())]
    Offset {
        /// The image.
        path: PathBuf,
        /// What was asked for.
        offset: ByteCount,
        /// The end.
        size: ByteCount,
    },
    /// There is more input than disk.
    #[error("{}: the disk ends at {size}; {written} bytes were written and there is more input", path.display())]
    PastEnd {
        /// The image.
        path: PathBuf,
        /// The end.
        size: ByteCount,
        /// What was written before it.
        written: ByteCount,
    },
    /// Children read through it.
    #[error("{}: a hidden base; its children would read what is written to it", path.display())]
    HiddenBase {
        /// The image.
        path: PathBuf,
    },
    /// It holds a disk, or other files, in a format of its own.
    #[error("{}: is {name}, not the bytes of a disk", path.display())]
    Container {
        /// The file.
        path: PathBuf,
        /// What it is.
        name: &'static str,
    },
    /// No field of the image has that name.
    #[error("Unknown key {key}. Known keys are: {known}")]
    Key {
        /// What was asked for.
        key: String,
        /// What there is.
        known: String,
    },
    /// The system refused something outside the images.
    #[error(transparent)]
    File(#[from] FileError),
}

const LOCKED: &str = "another process uses the image: detach the disk there, or wait until that work has ended";
const PARENT: &str = "a parent must lie in the folder of the image, or beneath one given with --parent-root DIR; \
    --any-parent allows any place (only for images that you trust), and --ignore-parent-uuid a parent with another id";

impl CommandError {
    fn failed(source: impl Error + Send + Sync + 'static) -> Self {
        let mut error = Self { kind: ErrorKind::Failed, hints: Vec::new(), source: Box::new(source) };
        if error.is_locked() {
            error.hints.push(LOCKED);
        }
        error
    }

    /// A command that cannot be meant as it was given.
    pub(crate) fn usage(source: impl Error + Send + Sync + 'static) -> Self {
        Self { kind: ErrorKind::Usage, ..Self::failed(source) }
    }

    /// A failed write to standard output.
    pub(crate) fn stdout(source: io::Error) -> Self {
        let closed = source.kind() == io::ErrorKind::BrokenPipe;
        let kind = if closed { ErrorKind::ClosedPipe } else { ErrorKind::Failed };
        let refusal = Refusal::io("standard output", "write")(source);
        Self { kind, ..Self::failed(refusal) }
    }

    /// Adds what to do about it.
    pub(crate) fn hint(self, hint: &'static str) -> Self {
        self.hints([hint])
    }

    fn hints(mut self, hints: impl IntoIterator<Item = &'static str>) -> Self {
        self.hints.extend(hints);
        self
    }

    fn is_locked(&self) -> bool {
        let mut found = causes(&*self.source).filter_map(|cause| cause.downcast_ref::<io::Error>());
        found.any(|error| error.kind() == io::ErrorKind::ResourceBusy)
    }

    /// Prints it with its causes, then what to do.
    pub(crate) fn print(&self) {
        if self.kind == ErrorKind::ClosedPipe {
            return;
        }
        output::to_stderr(&format!("error: {}", with_causes(&*self.source)));
        for hint in &self.hints {
            output::to_stderr(&format!("hint: {hint}"));
        }
    }

    /// The exit code that it makes.
    pub(crate) fn exit_code(&self) -> u8 {
        match self.kind {
            ErrorKind::ClosedPipe => 0,
            ErrorKind::Usage => 2,
            ErrorKind::Failed => 5,
            // What xapi's tool ends with.
            ErrorKind::UnknownKey => 124,
        }
    }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// An error and all its causes, in one line.
pub(crate) fn with_causes(error: &(dyn Error + 'static)) -> String {
    causes(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

macro_rules! failed_from {
    ($($error:ty),*) => {$(
        impl From<$error> for CommandError {
            fn from(error: $error) -> Self {
                Self::failed(error)
            }
        }
    )*};
}

failed_from!(
    ConnectError,
    FileError,
    FolderError,
    HybridError,
    LayoutError,
    LinkError,
    MetadataError,
    NbdError,
    ReadError,
    StorageError,
    StreamFailure,
    WriteError
);

impl From<Refusal> for CommandError {
    fn from(error: Refusal) -> Self {
        let hint = match &error {
            Refusal::HiddenBase { .. } => Some("write to a child of it: `create CHILD --parent FILE` makes one"),
            Refusal::PastEnd { .. } | Refusal::Offset { .. } => Some("`info FILE` shows the size of the disk"),
            _ => None,
        };
        let kind = if matches!(error, Refusal::Key { .. }) { ErrorKind::UnknownKey } else { ErrorKind::Failed };
        Self { kind, ..Self::failed(error) }.hints(hint)
    }
}

impl From<StreamError> for CommandError {
    fn from(error: StreamError) -> Self {
        let is_behind = matches!(error, StreamError::Damaged(StreamFault::Behind { .. }));
        let hint = "`stream --source FILE --source-format vhd` reads an image from its file, in whatever order that is";
        Self::failed(error).hints(is_behind.then_some(hint))
    }
}

impl From<OpenError> for CommandError {
    fn from(error: OpenError) -> Self {
        let hint = match &error {
            OpenError::Footer { .. }
            | OpenError::Header { .. }
            | OpenError::Outside { .. }
            | OpenError::FixedShort { .. } => {
                Some("is the file whole, and a VHD? Restore it from a copy if it was one")
            }
            OpenError::Overlap { .. } | OpenError::Block(ReadError::Block { .. }) => Some(
                "`check FILE` lists all that is wrong with it, and `repair FILE` mends what can be; nothing is written to it before",
            ),
            OpenError::UnfinishedResize { .. } => {
                Some("`repair FILE` takes an interrupted resize back with its journal")
            }
            _ => None,
        };
        Self::failed(error).hints(hint)
    }
}

impl From<ChainError> for CommandError {
    fn from(error: ChainError) -> Self {
        match error {
            ChainError::Open(error) => error.into(),
            ChainError::Mend(error) => Self::failed(error),
            ChainError::Parent { .. } => Self::failed(error).hint(PARENT),
            ChainError::Cycle { .. } | ChainError::TooDeep { .. } => {
                Self::failed(error).hint("`info FILE` shows the parent that each image records")
            }
        }
    }
}

impl From<RepairError> for CommandError {
    fn from(error: RepairError) -> Self {
        let hint = match error {
            RepairError::Open(_) => Some("too little is left of it: restore it from a copy"),
            RepairError::Header { .. } => Some("restore it from a copy, or the header alone from one of the same size"),
            RepairError::Overlap { .. } | RepairError::OverBatmap { .. } => {
                Some("nothing was changed: copy out what can be read (`convert`), and restore the rest from a copy")
            }
            RepairError::Journal(JournalError::Missing { .. } | JournalError::Several { .. }) => {
                Some("--journal names the journal of the resize")
            }
            RepairError::Parent { .. } => Some(PARENT),
            RepairError::Interrupted { .. } => Some("repair it again, or take the repair back with --undo"),
            RepairError::Remaining { .. } => Some("nothing was changed; `check FILE` lists all that is wrong with it"),
            RepairError::Undo(UndoError::Device { .. }) => Some("--backup DIR names a folder for it"),
            RepairError::Undo(UndoError::Missing { .. }) => {
                Some("was the repair done with --backup DIR? Give it again")
            }
            RepairError::Undo(UndoError::Damaged { .. }) => Some("if it is of no use to you, move it away"),
            _ => None,
        };
        Self::failed(error).hints(hint)
    }
}

impl From<CreateError> for CommandError {
    fn from(error: CreateError) -> Self {
        match error {
            CreateError::Exists { .. } => Self::failed(error).hint("--force replaces it"),
            other => Self::failed(other),
        }
    }
}

impl From<SnapshotError> for CommandError {
    fn from(error: SnapshotError) -> Self {
        match error {
            SnapshotError::Chain(error) => error.into(),
            SnapshotError::Create(CreateError::Exists { .. }) => {
                Self::failed(error).hint("choose another name, or delete that file if nothing needs it")
            }
            SnapshotError::Create(error) => error.into(),
            SnapshotError::HasChild { .. } => {
                Self::failed(error).hint("the volume's content is shared: take the snapshot of its child")
            }
            other => Self::failed(other),
        }
    }
}

impl From<DeleteError> for CommandError {
    fn from(error: DeleteError) -> Self {
        match error {
            DeleteError::Open(error) => error.into(),
            other => Self::failed(other),
        }
    }
}

impl From<ResizeError> for CommandError {
    fn from(error: ResizeError) -> Self {
        match error {
            ResizeError::Chain(error) => error.into(),
            ResizeError::Metadata(MetadataError::Size { .. }) => Self::usage(error),
            ResizeError::Data { .. } => Self::failed(error).hint("--discard gives up what lies there"),
            ResizeError::HasChild { .. } => {
                Self::failed(error).hint("delete the child, or merge it into this image with `coalesce`")
            }
            other => Self::failed(other),
        }
    }
}

impl From<CompactError> for CommandError {
    fn from(error: CompactError) -> Self {
        match error {
            CompactError::Open(error) => error.into(),
            other => Self::failed(other),
        }
    }
}

impl From<CompactingError> for CommandError {
    fn from(error: CompactingError) -> Self {
        match error {
            CompactingError::Open(error) => error.into(),
            CompactingError::Compact(error) => error.into(),
            other => Self::failed(other),
        }
    }
}

impl From<CoalesceError> for CommandError {
    fn from(error: CoalesceError) -> Self {
        let hint = match error {
            CoalesceError::Chain(error) => return error.into(),
            CoalesceError::OtherChild { .. } => Some(
                "`tree` shows the forest; merge down to an image above the fork with --into, or delete what nobody needs",
            ),
            CoalesceError::RawTarget { .. } | CoalesceError::OtherFolder { .. } => {
                Some("with --keep the data moves and every file stays, under its name")
            }
            CoalesceError::SecondName { .. } => Some("delete the other name, or make it a copy (`cp --reflink=auto`)"),
            CoalesceError::NotAnAncestor { .. } => Some("`info NODE --chain` lists the ancestors"),
            CoalesceError::NoParent { .. } => Some("only a differencing image can be merged into something"),
            CoalesceError::NoSpace { .. } => Some("make room, or move the folder to a larger file system"),
            _ => None,
        };
        Self::failed(error).hints(hint)
    }
}

impl Refusal {
    /// Makes the error of a failed step on a file.
    pub(crate) fn io(path: impl Into<PathBuf>, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| FileError { path, action, source }.into()
    }
}
