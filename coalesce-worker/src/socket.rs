//! Talking to a running worker: one line of JSON for a request, one for the answer, on a socket in the file system.
//!
//! ```text
//!   {"command":"status"}                                          {"ok":{"pid":23,…}}
//!   {"command":"set-rate","bytes_per_second":104857600}           {"ok":null}
//!   {"command":"dance"}                                           {"error":{"message":"unknown variant `dance`, …"}}
//! ```
//! Members that are not known are ignored. `GET /metrics` on the same socket is answered in HTTP, for Prometheus.

mod client;
mod server;

use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

pub use client::{AskError, ask};
pub use server::{Server, SocketError};

/// What a worker can be told, or asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// Tells how everything stands: a [`Status`](crate::Status).
    Status,
    /// Waits from now on.
    Pause,
    /// Waits no longer.
    Resume,
    /// Ends what is being merged, in a state that can be resumed, and tells where; it goes on with the next change or poll.
    Abort {
        /// Only in this repository.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<PathBuf>,
    },
    /// Changes limits. One that is not mentioned stays as it is; `null` takes it away.
    SetRate {
        /// Bytes moved per second.
        #[serde(default, deserialize_with = "mentioned", skip_serializing_if = "Option::is_none")]
        bytes_per_second: Option<Option<NonZeroU64>>,
        /// Operations in flight.
        #[serde(default, deserialize_with = "mentioned", skip_serializing_if = "Option::is_none")]
        in_flight: Option<Option<NonZeroU32>>,
    },
    /// Scans, and merges what is found, now.
    Collect {
        /// Only this repository.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<PathBuf>,
    },
    /// Tells how everything stands, in Prometheus's text format.
    Metrics,
}

fn mentioned<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Why a worker does not do what it was told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Refused {
    /// For people.
    pub message: String,
}

impl Refused {
    /// Refuses with these words.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// The line that answers a command.
#[derive(Debug, Serialize, Deserialize)]
enum Reply {
    #[serde(rename = "ok")]
    Done(Value),
    #[serde(rename = "error")]
    Refused(Refused),
}

#[cfg(test)]
mod tests;
