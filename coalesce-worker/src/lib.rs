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

mod coalesce;
mod error;
mod merge;
mod merged;
mod plan;
mod run;
mod target;
mod transfer;

pub use coalesce::{Coalesce, Ending, Outcome, Request};
pub use error::CoalesceError;
pub use merge::{MergeError, MergeOptions, Moved, merge};
pub use plan::{Plan, TargetTables, Unit};
pub use target::Target;
pub use transfer::{Buffer, CopyMethod, Move, Transfer, Transferred, UnknownMethod};
