//! Why a disk did not arrive.

use std::io;
use std::path::PathBuf;

use vhd_core::ByteCount;

/// A stream that broke, or a combination that cannot be.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamFailure {
    /// Reading the source stream failed.
    #[error("cannot read the source at offset {at}")]
    Read {
        /// How far it was read.
        at: ByteCount,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// Writing the destination stream failed.
    #[error("cannot write to the destination, after {at} bytes")]
    Write {
        /// How far it was written.
        at: ByteCount,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// A descriptor cannot be used.
    #[error("cannot use file descriptor {number}")]
    Descriptor {
        /// Which.
        number: i32,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The source stream ends too soon.
    #[error("the source ends at offset {at}, within {part}")]
    Short {
        /// Where it ends.
        at: ByteCount,
        /// What it should have held there.
        part: &'static str,
    },
    /// There is more than the disk holds.
    #[error("the source sends bytes up to {end}, but the disk ends at {size}")]
    PastEnd {
        /// Where they would end.
        end: u128,
        /// The end of the disk.
        size: ByteCount,
    },
    /// An archive that is not as it should be.
    #[error("bad archive at offset {at}: {fault}")]
    Archive {
        /// Where in the stream.
        at: ByteCount,
        /// What is wrong.
        fault: ArchiveFault,
    },
    /// The destination is too small.
    #[error("{}: has {length} bytes, but the disk has {size}", path.display())]
    TooSmall {
        /// The destination.
        path: PathBuf,
        /// Its length.
        length: ByteCount,
        /// The disk.
        size: ByteCount,
    },
    /// A delta needs what it changes.
    #[error("the source holds only what differs from another disk, so the destination must be a copy of that disk")]
    NeedsBase,
    /// It would be emptied before it is read.
    #[error("the source and the destination are the same file")]
    OwnSource,
    /// The end of the disk is not known.
    #[error("the end of the disk is not known: give it with --destination-size")]
    SizeUnknown,
    /// Those two do not go together.
    #[error("{what} cannot be sent {how}")]
    Mismatch {
        /// What was to be sent.
        what: &'static str,
        /// By which means.
        how: &'static str,
    },
    /// Only images have bitmaps.
    #[error("--sector-deltas is about the bitmaps of images: it goes with --destination-format vhd")]
    SectorsOfRaw,
    /// A prefix that no member's name has room for.
    #[error("the prefix of the members' names is longer than {limit} bytes")]
    Prefix {
        /// The longest.
        limit: usize,
    },
    /// Such a source is a pair.
    #[error("{found}: a source of this format is given as DEVICE:VHD")]
    NotAPair {
        /// What was given.
        found: String,
    },
    /// What is read at any place must be a file.
    #[error("{found}: the disk to be sent must be a file or a block device")]
    NotAFile {
        /// What was given.
        found: String,
    },
    /// The device does not hold the disk.
    #[error("{}: has {length} bytes, fewer than the disk, {size}", path.display())]
    ShortDevice {
        /// The device.
        path: PathBuf,
        /// Its length.
        length: ByteCount,
        /// The disk.
        size: ByteCount,
    },
    /// No means to do that.
    #[error("{what}: not supported")]
    Unsupported {
        /// What was asked for.
        what: String,
    },
    /// The other side has gone; it says why.
    #[error("stopped")]
    Stopped,
}

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ArchiveFault {
    /// A header whose checksum is wrong.
    #[error("no member starts here")]
    Header,
    /// A size that cannot be.
    #[error("a member of {size} bytes, where at most {limit} can be")]
    Size {
        /// What is said.
        size: u64,
        /// What can be.
        limit: u64,
    },
    /// A number that does not come after the one before.
    #[error("block {number} comes after block {last}")]
    Order {
        /// The number.
        number: u64,
        /// The one before.
        last: u64,
    },
    /// The content has changed on its way.
    #[error("block {number} has checksum {found}, but {expected} was sent with it")]
    Checksum {
        /// The block.
        number: u64,
        /// What its bytes give.
        found: String,
        /// What was sent.
        expected: String,
    },
    /// There is no checksum, or not of a kind that we know.
    #[error("no checksum of block {number}")]
    NoChecksum {
        /// The block.
        number: u64,
    },
}
