//! What the worker is doing, as data: written by a board that the work itself keeps up to date, read by the `status`
//! command, the metrics and whoever asks on the socket.

mod board;
mod rate;
mod text;

use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

pub(crate) use text::Plain;

pub use board::{Board, Entry, RunHandle, RunTotals, Scan};

use crate::record::Direction;

/// A worker process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its process id.
    pub pid: u32,
    /// What it does.
    pub state: State,
    /// The limit of its rate.
    pub bytes_per_second: Option<NonZeroU64>,
    /// The limit of its operations in flight.
    pub in_flight: Option<NonZeroU32>,
    /// When it started, in seconds since 1970.
    pub started: u64,
    /// Bytes it has moved since.
    pub bytes_moved_total: u64,
    /// Nodes it has merged since.
    pub nodes_merged_total: u64,
    /// Errors since.
    pub errors_total: u64,
    /// Its repositories.
    pub repositories: Vec<RepositoryStatus>,
}

/// Whether a worker works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// There is nothing to do.
    Idle,
    /// Runs are being merged.
    Working,
    /// Somebody has told it to wait.
    Paused,
}

/// One repository. Sizes and counts are those of the last scan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RepositoryStatus {
    /// Its folder.
    #[serde(serialize_with = "path_as_text")]
    pub path: PathBuf,
    /// The storage repository that it is to the toolstack, where that was told.
    pub uuid: Option<Uuid>,
    /// What is being merged.
    pub runs: Vec<RunStatus>,
    /// What could be merged but for something that passes.
    pub waiting: Vec<Waiting>,
    /// What is damaged, or needs something damaged, and left alone.
    pub isolated: Vec<Isolated>,
    /// Nodes that are still to be merged.
    pub backlog_nodes: u64,
    /// Bytes that are still to be moved for that.
    pub backlog_bytes: u64,
    /// Images in the deepest chain.
    pub deepest_chain: u32,
    /// Bytes that are free in its file system.
    pub free_bytes: u64,
    /// Bytes that its files occupy.
    pub physical_bytes: u64,
    /// Why it cannot be reached; then sizes and counts are of when it could.
    #[serde(default)]
    pub unreachable: Option<String>,
    /// When it was scanned last, in seconds since 1970.
    pub last_scan: Option<u64>,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Bytes moved here since the process started.
    pub bytes_moved_total: u64,
    /// Nodes merged here since.
    pub nodes_merged_total: u64,
    /// Errors here since.
    pub errors_total: u64,
}

/// A run that is being merged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunStatus {
    /// The image that all is merged into.
    #[serde(serialize_with = "path_as_text")]
    pub target: PathBuf,
    /// The newest image of the run.
    #[serde(serialize_with = "path_as_text")]
    pub node: PathBuf,
    /// How many images are merged.
    pub nodes: u32,
    /// Where the data goes.
    pub direction: Direction,
    /// How far it is.
    pub phase: Phase,
    /// Bytes that are where they belong, those that a process before this one moved included.
    pub bytes_done: u64,
    /// Bytes that are to be moved.
    pub bytes_total: u64,
    /// Bytes moved per second, lately.
    pub bytes_per_second: u64,
    /// What is left at that rate.
    pub seconds_left: Option<u64>,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Data moves.
    Copying,
    /// Children are relinked and files deleted.
    Finishing,
}

/// An image that waits for something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The image.
    #[serde(serialize_with = "path_as_text")]
    pub path: PathBuf,
    /// What for.
    pub reason: String,
}

/// An image that is left alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolated {
    /// The image.
    #[serde(serialize_with = "path_as_text")]
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// Writes a path as text. A file's name need not be text, and whoever can make files must not be able to hinder a report.
pub(crate) fn path_as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// A status with something in every member.
#[cfg(test)]
pub(crate) fn example() -> Status {
    let run = RunStatus {
        target: "/sr/base.vhd".into(),
        node: "/sr/node.vhd".into(),
        nodes: 3,
        direction: Direction::Up,
        phase: Phase::Copying,
        bytes_done: 3 << 29,
        bytes_total: 6 << 30,
        bytes_per_second: 100 << 20,
        seconds_left: Some(47),
    };
    let repository = RepositoryStatus {
        path: "/sr".into(),
        uuid: Some(Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef)),
        runs: vec![run],
        waiting: vec![Waiting { path: "/sr/leaf.vhd".into(), reason: "in use".into() }],
        isolated: vec![Isolated { path: "/sr/odd.vhd".into(), reason: "its footer is damaged".into() }],
        backlog_nodes: 5,
        backlog_bytes: 7 << 30,
        deepest_chain: 9,
        free_bytes: 11 << 30,
        physical_bytes: 13 << 30,
        unreachable: None,
        last_scan: Some(1_800_000_000),
        last_error: Some("/sr/odd.vhd: cannot open it".into()),
        bytes_moved_total: 17 << 30,
        nodes_merged_total: 19,
        errors_total: 1,
    };
    Status {
        pid: 23,
        state: State::Working,
        bytes_per_second: NonZeroU64::new(200 << 20),
        in_flight: NonZeroU32::new(4),
        started: 1_799_999_000,
        bytes_moved_total: 17 << 30,
        nodes_merged_total: 19,
        errors_total: 1,
        repositories: vec![repository],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_survives_json() {
        let status = example();
        let json = serde_json::to_string(&status).unwrap();
        assert!(json.contains(r#""state":"working""#) && json.contains(r#""direction":"up""#), "{json}");
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
    }

    #[test]
    fn a_name_that_is_no_text_is_told_all_the_same() {
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(std::ffi::OsStr::from_bytes(b"/sr/\xff.vhd")).to_path_buf();
        let json = serde_json::to_string(&Waiting { path, reason: "in use".into() }).unwrap();
        assert_eq!(json, "{\"path\":\"/sr/\u{fffd}.vhd\",\"reason\":\"in use\"}");
    }
}
