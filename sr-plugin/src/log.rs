//! The plugin's log: syslog's local2, which installations put into SMlog.

use std::os::unix::net::UnixDatagram;

/// How much a line matters. Source: RFC 5424, section 6.2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Severity {
    /// Something failed.
    Error = 3,
    /// All is well.
    Information = 6,
}

const LOCAL2: u8 = 18;

/// Writes a line. Where nobody takes it, it is lost.
pub(crate) fn line(severity: Severity, text: &str) {
    let priority = LOCAL2 * 8 + severity as u8;
    let line = format!("<{priority}>sr-plugin[{}]: {}", std::process::id(), text.replace('\n', " "));
    let _ = UnixDatagram::unbound().and_then(|socket| socket.send_to(line.as_bytes(), "/dev/log"));
}
