//! A folder in which something hostile happens, and what lies around it and must stay as it is.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::{scene, scratch};

/// What no image may show. An input that holds it proves nothing.
pub(super) const SECRET: &[u8; 17] = b"\x9c\x17secret\xe3 of no 1";

/// Two folders: what happens in `inside` must not change `outside`.
#[derive(Debug)]
pub(super) struct Place {
    root: TempDir,
    before: BTreeMap<String, Vec<u8>>,
}

impl Place {
    /// Makes it, with a secret outside, and whatever else is to be there.
    pub(super) fn new(outside: &[(&str, &[u8])]) -> Self {
        let root = scratch::folder();
        let made =
            fs::create_dir(root.path().join("inside")).and_then(|()| fs::create_dir(root.path().join("outside")));
        made.expect("the folder is ours");
        let mut place = Self { root, before: BTreeMap::new() };
        fs::write(place.outside().join("secret.img"), SECRET.repeat(512)).expect("the folder is ours");
        for (name, bytes) in outside {
            fs::write(place.outside().join(name), bytes).expect("the folder is ours");
        }
        place.before = scene::files(&place.outside());
        place
    }

    /// Where it happens.
    pub(super) fn inside(&self) -> PathBuf {
        self.root.path().join("inside")
    }

    /// What must not change.
    pub(super) fn outside(&self) -> PathBuf {
        self.root.path().join("outside")
    }

    /// Where both are.
    pub(super) fn root(&self) -> &Path {
        self.root.path()
    }

    /// Checks that nothing has changed outside.
    ///
    /// # Panics
    /// If anything has.
    pub(super) fn check(&self) {
        let after = scene::files(&self.outside());
        assert!(after.keys().eq(self.before.keys()), "files outside: {:?}", after.keys());
        for (name, bytes) in &self.before {
            assert!(&after[name] == bytes, "{name} outside has changed");
        }
    }
}
