//! The worker as its users meet it: real processes, with commands through its socket.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod control;
mod disks;
mod poor;
mod process;
mod reach;
mod work;
