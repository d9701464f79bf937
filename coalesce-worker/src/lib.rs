//! Merges runs of VHD images.
//!
//! A *run* is `target ← n1 ← … ← nk` in which every node but the last has exactly one child. One pass moves the newest
//! version of each sector into the target: each surviving sector is read once and written once, whatever the length of
//! the run.
//!
//! ```text
//!   Coalesce::prepare   open, lock, check      nothing is changed
//!     └─ Plan           what will move where   data: print it, or go on
//!   Coalesce::execute
//!     ├─ grow the target, where the node at the top is larger
//!     ├─ merge          blocks in parallel, then one flush
//!     ├─ relink the children of the top node, or give the target its name
//!     └─ delete the merged files, top first
//! ```
//!
//! # Crash safety
//! The merge writes only sectors of the target that nobody reads through it, because a node above it holds each of
//! them; so whatever the moment of a crash, every leaf reads as before, and the same command can be given again.
//! Where some children had been relinked already, it finds that the target holds everything and does only the rest.

mod abort;
mod budget;
mod coalesce;
mod error;
mod idle;
mod merge;
mod merged;
mod metrics;
mod notify;
mod plan;
mod run;
mod socket;
mod status;
mod target;
mod watch;

pub use abort::{Abort, Aborted, WakeGuard};
pub use budget::{Budget, Limits, Permit};
pub use coalesce::{Coalesce, Ending, Outcome, Request};
pub use error::CoalesceError;
pub use idle::{IdleError, enter_idle};
pub use merge::{MergeError, MergeOptions, Moved, merge};
pub use metrics::{RrdFile, prometheus_text, write_prometheus};
pub use notify::{LifeCycle, notify};
pub use plan::{Plan, TargetTables, Unit};
pub use socket::{AskError, Command, Refused, Server, SocketError, ask};
pub use status::{
    Board, Direction, Isolated, Phase, Repository, RepositoryStatus, RunHandle, RunStatus, RunTotals, Scan, State,
    Status, Waiting,
};
pub use target::Target;
pub use watch::{Watch, WatchError};
