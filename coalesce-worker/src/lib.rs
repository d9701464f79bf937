//! Merges chains of VHD images: whole repositories of them, in parallel, so that a crash loses nothing.
//!
//! A *run* is `target ← n1 ← … ← nk` in which every node but the last has exactly one child. One pass moves the newest
//! version of each sector into one of them: each surviving sector is read once and written once, whatever the length of
//! the run. Down, into the lowest; or up, into the newest, where that has the most already.
//!
//! ```text
//!   Repository::open      finishes or takes back what processes that died have left
//!     ├─ snapshot, revert, compose, resize, delete
//!     └─ Coalesce::prepare   open, lock, check      nothing is changed
//!          └─ Plan             what will move where   data: print it, or go on
//!        Coalesce::execute
//!          ├─ journal          what is to be done
//!          ├─ merge            units in parallel; checkpoints go into the journal
//!          ├─ relink the children of the top node, or give the target its name, or the top node another parent
//!          └─ delete the merged files, once nobody can have them open
//!
//!   InPlace::prepare, execute   one image into its parent and nothing else, for those who keep the tree themselves
//! ```

mod abort;
mod budget;
mod coalesce;
mod collect;
mod compact;
mod compose;
mod daemon;
mod delete;
mod error;
mod finish;
mod idle;
mod in_place;
mod in_use;
mod journal;
mod known_parents;
mod marks;
mod merge;
mod metrics;
mod mounts;
mod names;
mod notify;
mod plan;
pub mod program;
mod record;
mod report;
mod repository;
mod resize;
mod revert;
mod run;
pub mod size;
mod snapshot;
mod socket;
mod sources;
mod status;
mod steps;
mod survey;
mod tapdisk;
mod target;
mod transfer;
mod verify;
mod watch;
mod yielding;

pub use abort::{Abort, Aborted, WakeGuard};
pub use budget::{Budget, Limits, Permit};
pub use coalesce::{Coalesce, Ending, Outcome, Request};
pub use collect::{CollectError, CollectOptions, Collected, Failed, Merged};
pub use compact::{Compacted, CompactingError, LockedParents, ParentsError, open_locked_parents};
pub use compose::ComposeError;
pub use daemon::{DaemonError, DaemonOptions, Merging, run_daemon};
pub use delete::{DeleteError, Deleted};
pub use error::CoalesceError;
pub use idle::{IdleError, enter_idle};
pub use in_place::InPlace;
pub use in_use::check_not_served;
pub use merge::{MergeError, MergeOptions, Moved};
pub use metrics::{RrdFile, prometheus_text, write_prometheus};
pub use mounts::{Gone, HeldFolder, mount_of};
pub use notify::{LifeCycle, notify};
pub use plan::{Plan, Unit};
pub use record::Direction;
pub use report::{FailedRun, Forecast, ForecastRun, MergedRun, Report};
pub use repository::{Recovered, Repository, Unfinished, WaitReason};
pub use resize::{ResizeError, Shrink};
pub use revert::RevertError;
pub use snapshot::{SnapshotError, Snapshotted};
pub use socket::{AskError, Command, Refused, Server, SocketError, ask};
pub use status::{
    Board, Entry, Isolated, Phase, RepositoryStatus, RunHandle, RunStatus, RunTotals, Scan, State, Status, Waiting,
};
pub use survey::{PlannedRun, Survey, SurveyError};
pub use transfer::{CopyMethod, Move, Transfer, Transferred, UnknownMethod};
pub use watch::{Watch, WatchError};
