//! The program under the name `vhd-util`, as xapi's storage manager meets it: a file of tests for each command.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod check;
mod copy;
mod fill;
mod program;
mod read;
mod repair;
mod resize;
mod revert;
mod set;
