//! What a folder looks like from outside, to tell whether it has changed.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Names, lengths and times of all files of a folder but those whose names start with a dot, as one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint(pub(super) u64);

impl Fingerprint {
    /// Takes it, without opening a file; `None` where the folder cannot be listed.
    pub(super) fn of(folder: &Path) -> Option<Self> {
        // A sum, as the order of the files says nothing.
        let mut sum = 0_u64;
        for entry in fs::read_dir(folder).ok()? {
            let entry = entry.ok()?;
            let name = entry.file_name();
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let mut hasher = DefaultHasher::new();
            name.hash(&mut hasher);
            // It may have gone since it was listed.
            if let Ok(of) = entry.metadata() {
                let times = (of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec());
                (of.dev(), of.ino(), of.len(), times).hash(&mut hasher);
            }
            sum = sum.wrapping_add(hasher.finish());
        }
        Some(Self(sum))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn what_changes_a_file_changes_it_and_opening_one_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let look = || Fingerprint::of(folder.path()).unwrap();
        let path = folder.path().join("a.vhd");
        let empty = look();
        fs::write(&path, "one").unwrap();
        let one = look();
        drop(File::options().write(true).open(&path).unwrap());
        fs::write(folder.path().join(".hidden"), "").unwrap();
        assert_eq!(look(), one);
        assert_ne!(one, empty);
        fs::rename(&path, folder.path().join("b.vhd")).unwrap();
        assert_ne!(look(), one);
        fs::remove_file(folder.path().join("b.vhd")).unwrap();
        assert_eq!(look(), empty);
        assert_eq!(Fingerprint::of(&path), None);
    }
}
