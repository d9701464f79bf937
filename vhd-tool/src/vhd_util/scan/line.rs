//! The line of an image.

use std::fmt;
use std::path::Path;

use super::{Args, Listed};
use crate::vhd_util::key::hex;
use crate::vhd_util::printable;

/// An image, to be printed as a line.
pub(super) struct Line<'a> {
    pub(super) image: &'a Listed,
    pub(super) args: &'a Args,
    /// What is to be said of the parent.
    pub(super) note: &'static str,
}

impl fmt::Display for Line<'_> {
    fn fmt(&self, line: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |path: &Path| match path.file_name().filter(|_| !self.args.verbose) {
            Some(name) => printable(&name.to_string_lossy()),
            None => printable(&path.to_string_lossy()),
        };
        let found = match &self.image.found {
            Ok(found) => found,
            Err(failure) => {
                write!(line, "vhd={}", printable(&self.image.path.to_string_lossy()))?;
                // It is one line, and quoted.
                let message = printable(&failure.to_string().replace('\'', "\"").replace(['\n', '\r'], " "));
                return write!(line, " scan-error={} error-message='{message}'", -failure.errno().raw_os_error());
            }
        };
        write!(line, "vhd={}", name(&self.image.path))?;
        write!(line, " capacity={} size={} hidden={}", found.capacity, found.size, found.hidden)?;
        if let Some((marker, key)) = &found.marks {
            let key = key.map(|key| hex(&key.hash)).unwrap_or_default();
            write!(line, " marker={marker} keyhash={key}")?;
        }
        let parent = self.image.parent.as_deref().map_or_else(|| "none".into(), name);
        write!(line, " parent={parent}{}", self.note)
    }
}
