//! What a command prints: text for people or JSON for programs.

use std::io::{self, BufWriter, StdoutLock, Write};

use serde::Serialize;

use crate::error::CommandError;

/// Prints what a command found or did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
    quiet: bool,
}

impl Output {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// Whether JSON was asked for.
    pub(crate) fn json(self) -> bool {
        self.json
    }

    /// Prints data that was asked for.
    ///
    /// A reader that has closed the pipe has seen enough: that is no error, and does not change the exit code.
    pub(crate) fn data<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), CommandError> {
        let mut out = stdout();
        let written = if self.json {
            serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from).and_then(|()| writeln!(out))
        } else {
            text(&mut out)
        };
        match written.and_then(|()| out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CommandError::stdout(error)),
            _ => Ok(()),
        }
    }

    /// Prints what was done, which nobody asked for in so many words: as text it is left out when quiet.
    pub(crate) fn outcome<T: Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), CommandError> {
        if self.quiet && !self.json { Ok(()) } else { self.data(value, text) }
    }
}

/// Standard output, locked and buffered. Writing to it after its reader has gone gives an error, never a panic.
pub(crate) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(64 * 1024, io::stdout().lock())
}

/// Prints a line for people beside the output.
pub(crate) fn to_stderr(line: &str) {
    // Where nobody listens any more, there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{line}");
}
