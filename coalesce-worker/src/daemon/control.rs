//! What a daemon does when it is told something.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::worker::Worker;
use crate::budget::Budget;
use crate::metrics::prometheus_text;
use crate::socket::{Command, Refused};
use crate::status::Board;

/// How long merges may take to stop.
const PATIENCE: Duration = Duration::from_secs(5);

/// What commands act upon.
#[derive(Debug)]
pub(super) struct Control {
    board: Board,
    budget: Arc<Budget>,
    workers: Vec<Arc<Worker>>,
}

impl Control {
    pub(super) fn new(board: &Board, budget: &Arc<Budget>, workers: Vec<Arc<Worker>>) -> Self {
        Self { board: board.clone(), budget: Arc::clone(budget), workers }
    }

    /// Does what a command says, and gives the answer to it.
    pub(super) fn obey(&self, command: Command) -> Result<Value, Refused> {
        if !matches!(command, Command::Status | Command::Metrics) {
            tracing::info!(?command, "told");
        }
        match command {
            Command::Status => return value(&self.board.status()),
            Command::Metrics => return Ok(Value::String(prometheus_text(&self.board.status()))),
            Command::Pause => self.budget.pause(),
            Command::Resume => {
                self.budget.resume();
                self.workers.iter().for_each(|worker| worker.wake());
            }
            Command::SetRate { bytes_per_second, in_flight } => {
                let mut limits = self.budget.limits();
                limits.bytes_per_second = bytes_per_second.unwrap_or(limits.bytes_per_second);
                limits.in_flight = in_flight.unwrap_or(limits.in_flight);
                self.budget.set_limits(limits);
            }
            Command::Collect { path } => self.chosen(path.as_deref())?.for_each(|worker| worker.ask()),
            Command::Abort { path } => {
                let deadline = Instant::now() + PATIENCE;
                let stopped: Vec<_> = self.chosen(path.as_deref())?.filter(|worker| worker.stop()).collect();
                stopped.iter().for_each(|worker| worker.wait_until_stopped(deadline));
                let folders: Vec<_> = stopped.iter().map(|worker| worker.folder().display().to_string()).collect();
                return value(&folders);
            }
        }
        Ok(Value::Null)
    }

    /// The repository of a path, or all.
    fn chosen<'a>(&'a self, path: Option<&'a Path>) -> Result<impl Iterator<Item = &'a Arc<Worker>>, Refused> {
        let is = |worker: &Worker, path: &Path| {
            let real = |path: &Path| path.canonicalize().ok();
            worker.folder() == path || real(path).is_some_and(|path| real(worker.folder()) == Some(path))
        };
        if let Some(path) = path
            && !self.workers.iter().any(|worker| is(worker, path))
        {
            return Err(Refused::new(format!("{}: is none of this worker's repositories", path.display())));
        }
        Ok(self.workers.iter().filter(move |worker| path.is_none_or(|path| is(worker, path))))
    }
}

fn value(answer: &impl Serialize) -> Result<Value, Refused> {
    serde_json::to_value(answer).map_err(|error| Refused::new(error.to_string()))
}
