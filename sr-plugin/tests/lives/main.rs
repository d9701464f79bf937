//! Whole lives of repositories and volumes, through the executables only; what the disks hold is seen without them.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod background;
mod changes;
mod disks;
mod foreign;
mod in_use;
mod interrupted;
mod life;
mod plugin;
mod poor;
mod review;
mod similar;
mod together;
mod tracked;
