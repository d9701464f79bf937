//! The program under the name `vhd-util`, as xapi's storage manager meets it: a file of tests for each command.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod check;
mod coalesce;
mod copy;
mod crash;
mod create;
mod devices;
mod fill;
mod key;
mod life_cycle;
mod modify;
mod poor;
mod program;
mod query;
mod read;
mod repair;
mod resize;
mod revert;
mod scan;
mod set;
mod snapshot;
mod tapdisk;
mod volume_group;
