//! Which files a pattern means: `*`, `?` and `[…]` in any part of a path, whatever bytes names consist of.

use std::fs;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};

/// A star does not match a dot at the start.
const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// Lists what matches, in the order of the names. What cannot be listed holds nothing to be found.
pub(super) fn matching(pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from(if pattern.starts_with('/') { "/" } else { "" })];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        found = match part_pattern(part) {
            Some(part) => found.iter().flat_map(|folder| entries(folder, &part)).collect(),
            None => found.into_iter().map(|folder| folder.join(part)).collect(),
        };
    }
    found.retain(|path| path.symlink_metadata().is_ok());
    found
}

/// The pattern that a part of a path is, if it is one and not a name.
fn part_pattern(part: &str) -> Option<Pattern> {
    let mut text = part.to_owned();
    while text.contains("**") {
        text = text.replace("**", "*");
    }
    if text.contains(['*', '?', '[']) { Pattern::new(&text).ok() } else { None }
}

fn entries(folder: &Path, pattern: &Pattern) -> Vec<PathBuf> {
    let list = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let Ok(list) = fs::read_dir(list) else { return Vec::new() };
    let mut names: Vec<_> = list.filter_map(Result::ok).map(|entry| entry.file_name()).collect();
    names.retain(|name| pattern.matches_with(&name.to_string_lossy(), OPTIONS));
    names.sort_unstable();
    names.into_iter().map(|name| folder.join(name)).collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn names_match_in_every_part_of_a_path() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["sr1/b.vhd", "sr1/a.vhd", "sr1/.c.vhd", "sr2/d.vhd", "sr2/e.txt", "other/f.vhd", "odd[x/g.vhd"] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let odd = folder.path().join("sr1").join(OsStr::from_bytes(b"\xff.vhd"));
        fs::write(&odd, "").unwrap();
        let found = |pattern: &str| -> Vec<String> {
            let all = matching(&format!("{}/{pattern}", folder.path().display()));
            all.iter().map(|path| path.strip_prefix(folder.path()).unwrap().display().to_string()).collect()
        };
        assert_eq!(found("sr1/*.vhd"), ["sr1/a.vhd", "sr1/b.vhd", "sr1/\u{fffd}.vhd"]);
        assert_eq!(found("sr?/[de].*"), ["sr2/d.vhd", "sr2/e.txt"]);
        assert_eq!(found("*/[!a-d]***.vhd"), ["odd[x/g.vhd", "other/f.vhd", "sr1/\u{fffd}.vhd"]);
        assert_eq!(found("odd[x/g.vhd"), ["odd[x/g.vhd"]);
        assert_eq!(found("sr1/.c.vhd"), ["sr1/.c.vhd"]);
        assert_eq!(found("sr1/nothing.vhd"), [""; 0]);
        assert_eq!(found("nowhere/*"), [""; 0]);
    }
}
