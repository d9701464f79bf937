//! Real processes interrupted in every way: by power failures, failing system calls, kills and full disks.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod case;
mod defects;
mod faults;
mod full;
mod kills;
mod program;
mod repair;
mod states;
mod table;
