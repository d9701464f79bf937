//! The NBD protocol: a client for disks that others serve, and a server that takes one disk from one client.
//!
//! ```text
//!   Client::connect ─▶ negotiation ─▶ read_at, write_at, zero, flush, allocated ─▶ disconnect
//!   serve           ─▶ negotiation ─▶ one request after the other onto an Export ─▶ the client disconnects
//! ```
//!
//! Neither side trusts the other: every length is checked against a limit or against what was asked for before memory
//! is taken or a buffer is filled. Waiting is bounded by the stream's own time-outs.
//!
//! Source: `doc/proto.md` of the reference implementation (NetworkBlockDevice/nbd), without TLS and extended headers.

mod client;
mod handshake;
mod hybrid;
mod server;
#[cfg(test)]
mod tests;
mod wire;

use std::io;

pub(crate) use client::Client;
pub(crate) use hybrid::{HybridError, HybridSource};
pub(crate) use server::{Export, serve};
pub(crate) use wire::Command;

use vhd_core::{ByteCount, FileOffset};

/// What went wrong between an NBD client and its server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NbdError {
    /// The stream broke off, or the peer takes too long.
    #[error("the NBD connection failed")]
    Io(#[from] io::Error),
    /// The peer speaks something else.
    #[error("not NBD: found {found:#x} where {what} should be")]
    Magic {
        /// What stands there in the protocol.
        what: &'static str,
        /// What was sent.
        found: u64,
    },
    /// The peer breaks the rules.
    #[error("the NBD peer breaks the protocol: {what} is {found}")]
    Protocol {
        /// What is wrong.
        what: &'static str,
        /// What was sent.
        found: u64,
    },
    /// The server gives no access to the export.
    #[error("the NBD server refuses export {export:?} with reply {reply:#x} {message:?}")]
    Refused {
        /// What was asked for.
        export: String,
        /// Its reason as a number of the protocol.
        reply: u32,
        /// And in words, if it gave any.
        message: String,
    },
    /// The name cannot be sent.
    #[error("the name of an export has at most {limit} bytes")]
    LongName {
        /// How many.
        limit: usize,
    },
    /// The server could not do what was asked.
    #[error("the NBD server answers {command} at {offset} with error {code} {message:?}")]
    Command {
        /// What was asked.
        command: Command,
        /// Where.
        offset: FileOffset,
        /// An errno of the protocol.
        code: u32,
        /// What it says of it, if anything.
        message: String,
    },
    /// The export is smaller.
    #[error("{length} bytes at {offset} reach past the end of the export, {size}")]
    Outside {
        /// Where.
        offset: FileOffset,
        /// How many.
        length: ByteCount,
        /// The end.
        size: ByteCount,
    },
    /// The export cannot be written to.
    #[error("the export is read-only")]
    ReadOnly,
    /// The export is in too many pieces to be kept in memory.
    #[error("the export has more than {limit} ranges of data")]
    Fragmented {
        /// How many are kept.
        limit: usize,
    },
    /// The client left before it took the export.
    #[error("the NBD client gave up in the negotiation")]
    Aborted,
    /// The disk that is served failed. The client has been told, and has disconnected since.
    #[error("cannot {command} at {offset} of the disk")]
    Disk {
        /// What was to be done.
        command: Command,
        /// Where.
        offset: FileOffset,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}
