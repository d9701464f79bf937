//! Who has files open for writing without taking our locks: tapdisk and other programs on this host.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use vhd_core::FileIdentity;

/// The files that other processes of this host have open for writing, as far as this process may see them.
#[derive(Debug, Default)]
pub(crate) struct Writers(HashSet<FileIdentity>);

impl Writers {
    /// Looks at all processes but this one. Those that end meanwhile, or may not be looked at, are passed over.
    ///
    /// Source: proc(5), `/proc/PID/fd` and `/proc/PID/fdinfo`.
    pub(crate) fn look() -> Self {
        let own = std::process::id().to_string();
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let is_other = |name: &str| name != own && name.bytes().all(|byte| byte.is_ascii_digit());
        let others = processes.filter(|entry| entry.file_name().to_str().is_some_and(is_other));
        Self(others.flat_map(|process| written_by(&process.path())).collect())
    }

    /// Tells whether somebody else writes to the file at `path`, or may.
    pub(crate) fn has(&self, path: &Path) -> bool {
        !self.0.is_empty() && FileIdentity::at(path).is_ok_and(|file| self.0.contains(&file))
    }
}

fn written_by(process: &Path) -> Vec<FileIdentity> {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let files = descriptors.filter(|entry| {
        // Most descriptors are sockets, pipes and the like, which have no path.
        let is_file = fs::read_link(entry.path()).is_ok_and(|target| target.is_absolute());
        is_file && is_writable(&process.join("fdinfo").join(entry.file_name()))
    });
    files.filter_map(|entry| FileIdentity::at(&entry.path()).ok()).collect()
}

/// Reads the access mode, the lowest two bits of the flags.
fn is_writable(info: &Path) -> bool {
    let text = fs::read_to_string(info).unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok()).is_some_and(|flags| flags & 3 != 0)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn only_those_who_may_write_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["read", "written", "neither"] {
            fs::write(path(name), "").unwrap();
        }
        let open = |name: &str, write: bool| fs::File::options().read(true).write(write).open(path(name)).unwrap();
        let mut other = Command::new("sleep")
            .arg("60")
            .stdin(open("read", false))
            .stdout(open("written", true))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let _own = open("neither", true);
        let writers = Writers::look();
        other.kill().unwrap();
        other.wait().unwrap();
        assert!(writers.has(&path("written")));
        assert!(!writers.has(&path("read")));
        assert!(!writers.has(&path("gone")));
    }
}
