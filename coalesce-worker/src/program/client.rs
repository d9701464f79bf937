//! What commands for a running worker have in common.

use std::io::{self, Write};
use std::path::PathBuf;

use serde_json::Value;

use super::error::ProgramError;
use crate::socket::{Command, ask};

/// Where the worker listens.
#[derive(Debug, clap::Args)]
pub(super) struct Socket {
    /// The socket of the worker
    #[arg(long, value_name = "PATH", env = "COALESCE_WORKER_SOCKET", default_value = "/run/coalesce-worker/socket")]
    pub(super) socket: PathBuf,
}

impl Socket {
    /// Tells the worker something.
    pub(super) fn ask(&self, command: &Command) -> Result<Value, ProgramError> {
        Ok(ask(&self.socket, command)?)
    }
}

/// One of the worker's repositories.
#[derive(Debug, clap::Args)]
pub(super) struct Repository {
    /// Only this repository [default: all]
    #[arg(value_name = "DIR")]
    dir: Option<PathBuf>,
}

impl Repository {
    /// Its path, which means the same to the worker wherever that was started.
    pub(super) fn path(&self) -> Result<Option<PathBuf>, ProgramError> {
        let absolute = self.dir.as_deref().map(std::path::absolute).transpose();
        absolute.map_err(|error| ProgramError::usage(format!("DIR: {error}")))
    }
}

/// Prints what was asked for.
pub(super) fn print(text: &str) -> Result<(), ProgramError> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| ProgramError::stdout(&error))
}
