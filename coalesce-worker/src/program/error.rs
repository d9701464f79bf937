//! The error of commands, and what to do about it.

use std::io::{self, Write};

use crate::daemon::DaemonError;
use crate::socket::{AskError, SocketError};
use crate::survey::with_causes;

/// A command that failed.
#[derive(Debug)]
pub(super) struct ProgramError {
    exit_code: u8,
    text: String,
    hint: Option<&'static str>,
}

impl ProgramError {
    /// A command that cannot be meant as it was given.
    pub(super) fn usage(text: impl Into<String>) -> Self {
        Self { exit_code: 2, text: text.into(), hint: None }
    }

    fn failed(error: &dyn std::error::Error, hint: Option<&'static str>) -> Self {
        Self { exit_code: 5, text: with_causes(error), hint }
    }

    /// A failed write to standard output. Whoever has closed a pipe has seen enough.
    pub(super) fn stdout(error: &io::Error) -> Self {
        let exit_code = if error.kind() == io::ErrorKind::BrokenPipe { 0 } else { 5 };
        Self { exit_code, text: format!("standard output: {error}"), hint: None }
    }

    /// Prints it, then what to do.
    pub(super) fn print(&self) {
        if self.exit_code == 0 {
            return;
        }
        let mut out = io::stderr().lock();
        // Where nobody listens any more, there is nobody to tell.
        let _ = writeln!(out, "error: {}", self.text);
        let _ = self.hint.map(|hint| writeln!(out, "hint: {hint}"));
    }

    /// The exit code that it makes.
    pub(super) fn exit_code(&self) -> u8 {
        self.exit_code
    }
}

impl From<AskError> for ProgramError {
    fn from(error: AskError) -> Self {
        match &error {
            AskError::NotRunning { path, .. } => Self {
                exit_code: 5,
                text: format!("no worker answers at {}", path.display()),
                hint: Some("start one with `coalesce-worker run DIR`, or give the socket of one with --socket PATH"),
            },
            AskError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Self::failed(&error, Some("only the user that the worker runs as, and root, may talk to it"))
            }
            AskError::TimedOut { .. } => Self::failed(&error, Some("its log may tell why")),
            _ => Self::failed(&error, None),
        }
    }
}

impl From<DaemonError> for ProgramError {
    fn from(error: DaemonError) -> Self {
        let hint = match &error {
            DaemonError::Socket(SocketError::InUse { .. }) => {
                Some("one worker can keep many folders; for a second one, give another socket with --socket PATH")
            }
            DaemonError::Socket(_) => {
                Some("the folder of the socket must be there: --socket PATH chooses another place")
            }
            _ => None,
        };
        Self::failed(&error, hint)
    }
}
