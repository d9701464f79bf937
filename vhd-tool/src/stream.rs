//! Disks on their way: from a file or a stream, to a file, a device or a stream.
//!
//! ```text
//!   Source ──▶ Batch ──▶ queue ──▶ Batch ──▶ Destination
//!   (its own thread)   (bounded)            (this thread, which also shows the progress)
//! ```
//!
//! A [`Source`](pump::Source) is a local disk or what a protocol delivers; a [`Destination`](pump::Destination) is a
//! file or device that is written in place, or a protocol. Each protocol is a file with both of its ends.

pub(crate) mod chunked;
mod descriptor;
pub(crate) mod endpoint;
pub(crate) mod failure;
pub(crate) mod human;
pub(crate) mod image;
pub(crate) mod local;
pub(crate) mod meter;
pub(crate) mod nbd;
pub(crate) mod options;
pub(crate) mod peer;
pub(crate) mod plain;
pub(crate) mod protocol;
pub(crate) mod pump;
pub(crate) mod received;
pub(crate) mod sink;
pub(crate) mod tar;
pub(crate) mod waiting;

mod delta;
