//! Tests of the public interface; one file per kind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod behaviours;
mod coalesce;
mod collect;
mod compose;
mod file_systems;
mod forests;
mod garbage;
mod hostile;
mod locks;
mod model;
mod poor;
mod restored;
mod revert;
mod review;
mod snapshot;
mod survey;
mod unreadable;
mod world;
