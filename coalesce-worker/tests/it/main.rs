//! Tests of the public interface; one file per kind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod coalesce;
mod collect;
mod model;
mod review;
mod snapshot;
