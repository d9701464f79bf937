//! Keeps the files for those who collect numbers.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, SystemTime};

use vhd_core::FileError;

use super::DaemonOptions;
use crate::metrics::{RrdFile, write_prometheus};
use crate::status::{Board, Status};
use crate::survey::with_causes;

/// As often as xcp-rrdd reads.
const INTERVAL: Duration = Duration::from_secs(5);

/// Writes the files.
#[derive(Debug)]
pub(super) struct Publisher {
    board: Board,
    prometheus: Option<PathBuf>,
    rrd: Option<RrdFile>,
    last_error: String,
}

impl Publisher {
    pub(super) fn new(board: &Board, options: &DaemonOptions) -> Self {
        let rrd = options.rrd.as_deref().map(RrdFile::new);
        Self { board: board.clone(), prometheus: options.prometheus.clone(), rrd, last_error: String::new() }
    }

    /// Writes them every five seconds and whenever something has been collected, until nobody collects any more.
    pub(super) fn work(mut self, collected: &Receiver<()>) {
        while collected.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Disconnected) {
            // Several at once are worth one look.
            collected.try_iter().for_each(drop);
            if self.prometheus.is_none() && self.rrd.is_none() {
                continue;
            }
            let written = self.write(&self.board.status());
            let error = written.err().map(|error| with_causes(&error)).unwrap_or_default();
            if !error.is_empty() && error != self.last_error {
                tracing::warn!(error, "metrics cannot be written");
            }
            self.last_error = error;
        }
        if let Some(Err(error)) = self.rrd.map(RrdFile::remove) {
            tracing::warn!(error = %with_causes(&error), "the metrics file stays");
        }
    }

    fn write(&mut self, status: &Status) -> Result<(), FileError> {
        if let Some(path) = &self.prometheus {
            write_prometheus(path, status)?;
        }
        if let Some(rrd) = &mut self.rrd {
            // This format has no word for a value that is not known.
            let mut known = status.clone();
            known.repositories.retain(|repository| repository.last_scan.is_some() && repository.unreachable.is_none());
            rrd.update(&known, SystemTime::now())?;
        }
        Ok(())
    }
}
