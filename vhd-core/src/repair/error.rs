//! Why a repair is not done.

use std::fmt::{self, Write};
use std::path::PathBuf;

use uuid::Uuid;

use super::undo::UndoError;
use crate::chain::ParentRefusal;
use crate::check::Finding;
use crate::create::CreateError;
use crate::gate::GateError;
use crate::header::HeaderError;
use crate::image::{OpenError, ReadError};
use crate::metadata::{LinkError, MetadataError};
use crate::new_file::FileError;
use crate::overlap::Overlap;
use crate::storage::StorageError;
use crate::units::{BlockIndex, FileOffset, SectorRange};
use crate::write::WriteError;

/// Why an image is not repaired. But for [`Interrupted`](Self::Interrupted), nothing has been changed.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// The storage failed, or the repair would have to change more than fits in memory.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A step on a file as a whole failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Too little is left of the image.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The header's checksum is wrong, and nothing proves what its fields should be.
    #[error("{}: the header at offset {offset} cannot be trusted: {doubt}", path.display())]
    Header {
        /// The image.
        path: PathBuf,
        /// Where the header is.
        offset: FileOffset,
        /// What speaks against it.
        doubt: HeaderDoubt,
        /// What is wrong with it.
        #[source]
        source: HeaderError,
    },
    /// Two blocks share bytes of the file, and both claim to hold something.
    #[error(
        "{}: {overlap}, and nothing proves which of them is right: without block {} its sectors {} would be lost, \
         without block {} its sectors {}", path.display(), overlap.first, Listed(first), overlap.second, Listed(second)
    )]
    Overlap {
        /// The image.
        path: PathBuf,
        /// Which blocks.
        overlap: Overlap,
        /// What the first holds, as far as its bitmap can be believed.
        first: Vec<SectorRange>,
        /// What the second holds.
        second: Vec<SectorRange>,
    },
    /// A block and the batmap share bytes of the file, and nothing proves which is right.
    #[error("{}: block {block} at offset {offset} and the batmap lie over each other, and nothing proves which is right", path.display())]
    OverBatmap {
        /// The image.
        path: PathBuf,
        /// The block.
        block: BlockIndex,
        /// Where the block is.
        offset: FileOffset,
    },
    /// A device has no room for what must be written.
    #[error("{}: blocks and tables reach to offset {end}, over the place of the footer", path.display())]
    NoRoom {
        /// The device.
        path: PathBuf,
        /// Where they end.
        end: FileOffset,
    },
    /// A resize that was interrupted cannot be taken back.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What is recorded of the parent contradicts itself, and no file proves which part is right.
    #[error("{}: what it records of its parent {parent} contradicts itself, and {found} files that it names have that id{}", path.display(), list(tried))]
    Parent {
        /// The image.
        path: PathBuf,
        /// The parent's unique id in the header.
        parent: Uuid,
        /// How many files have it.
        found: usize,
        /// Why others are not it.
        tried: Vec<ParentRefusal>,
    },
    /// The rule for parents cannot be made.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// What a check would still find afterwards.
    #[error("{}: cannot be repaired{}", path.display(), describe(findings))]
    Remaining {
        /// The image.
        path: PathBuf,
        /// The findings.
        findings: Vec<Finding>,
    },
    /// A step of the repair failed.
    #[error(transparent)]
    Step(#[from] Box<MetadataError>),
    /// The undo file cannot be written.
    #[error(transparent)]
    Create(Box<CreateError>),
    /// A write to the image failed, which may by now be partly changed: the next repair begins by taking that back.
    #[error("the repair has not ended; what was there before is in {}", undo.display())]
    Interrupted {
        /// The undo file.
        undo: PathBuf,
        /// What failed.
        #[source]
        source: Box<RepairError>,
    },
    /// The undo file cannot be used.
    #[error(transparent)]
    Undo(#[from] UndoError),
    /// A resize under a journal failed, and taking it back did, too: the image can be used once that is done.
    #[error("the resize has not ended, and could not be taken back; what was there before is in {}", journal.display())]
    ResizeInterrupted {
        /// The journal.
        journal: PathBuf,
        /// What failed.
        #[source]
        source: Box<RepairError>,
    },
}

/// What speaks against a header whose checksum is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderDoubt {
    /// Its own fields make no header.
    #[error("its fields make no sense")]
    Fields,
    /// The BAT is not where it can be shown to be.
    #[error("nothing shows that the BAT is where it says")]
    Table,
    /// The BAT's entries are no blocks of such an image.
    #[error("read as it says, the BAT puts blocks where none can be")]
    Blocks,
    /// Its parent cannot be proved.
    #[error("no file that it names has the unique id of the parent that it names")]
    Parent,
}

/// Why the journal of an interrupted resize is of no use.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// There is none beside the image.
    #[error("{}: a resize was interrupted, and no journal in its folder was made for it", image.display())]
    Missing {
        /// The image.
        image: PathBuf,
    },
    /// There are several.
    #[error("{}: a resize was interrupted, and several journals were made for it: {} and {}", image.display(), first.display(), second.display())]
    Several {
        /// The image.
        image: PathBuf,
        /// One of them.
        first: PathBuf,
        /// Another.
        second: PathBuf,
    },
    /// It is no journal, or not whole.
    #[error("{}: not the journal of a resize, or damaged (at offset {offset}); nothing was changed", path.display())]
    Damaged {
        /// The journal.
        path: PathBuf,
        /// Where it stops making sense.
        offset: FileOffset,
    },
    /// It was made for another image.
    #[error("{}: made for the image {found}, but this is {expected}", path.display())]
    OtherImage {
        /// The journal.
        path: PathBuf,
        /// Who the image is.
        expected: Uuid,
        /// Whom the journal was made for.
        found: Uuid,
    },
    /// The image has been used since the resize has ended, or since the journal was made.
    #[error("{}: made before the last changes to {}, which would be lost; nothing was changed", path.display(), image.display())]
    Stale {
        /// The journal.
        path: PathBuf,
        /// The image.
        image: PathBuf,
    },
    /// No journal can be made for this image.
    #[error("{}: {why}, so there is no journal of a resize", image.display())]
    Unfit {
        /// The image.
        image: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// What it restores is no image.
    #[error("{}: does not restore a whole image; nothing was changed", path.display())]
    NoImage {
        /// The journal.
        path: PathBuf,
    },
}

impl From<ReadError> for RepairError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Storage(error) => Self::Storage(error),
            other => Self::Open(other.into()),
        }
    }
}

impl From<MetadataError> for RepairError {
    fn from(error: MetadataError) -> Self {
        Self::Step(Box::new(error))
    }
}

impl From<WriteError> for RepairError {
    fn from(error: WriteError) -> Self {
        MetadataError::from(error).into()
    }
}

impl From<LinkError> for RepairError {
    fn from(error: LinkError) -> Self {
        MetadataError::from(error).into()
    }
}

/// Ranges that an error lists one by one; of the rest only the number.
const LISTED: usize = 8;

struct Listed<'a>(&'a [SectorRange]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("(none)");
        }
        for (i, range) in self.0.iter().take(LISTED).enumerate() {
            write!(f, "{}{range}", if i == 0 { "" } else { ", " })?;
        }
        match self.0.len().saturating_sub(LISTED) {
            0 => Ok(()),
            more => write!(f, " and {more} more ranges"),
        }
    }
}

// Writing into a String cannot fail.
fn describe(findings: &[Finding]) -> String {
    findings.iter().fold(String::new(), |mut text, Finding { severity, code, text: meaning, .. }| {
        let _ = write!(text, "\n  {severity}: {meaning} [{code}]");
        text
    })
}

fn list(tried: &[ParentRefusal]) -> String {
    tried.iter().fold(String::new(), |mut text, refusal| {
        let _ = write!(text, "\n  {refusal}");
        text
    })
}
