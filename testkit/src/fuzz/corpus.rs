//! The inputs that are known: `fuzz/corpus/TARGET/`.

use std::fs;
use std::path::{Path, PathBuf};

use super::seeds;

fn folder(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target)
}

/// Reads the inputs of a target, with their names and in the order of these.
///
/// # Panics
/// If there are none: the checkout is broken.
pub fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder(target)).expect("the corpus is in the checkout");
    let mut found: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("the corpus is readable").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            (name, fs::read(&path).expect("the corpus is readable"))
        })
        .collect();
    assert!(!found.is_empty(), "{target} has inputs");
    found.sort();
    found
}

/// Writes the inputs that the project's own code can make.
///
/// # Panics
/// If a file cannot be written.
pub fn write_seeds() {
    for (target, name, bytes) in seeds::all() {
        let folder = folder(target);
        fs::create_dir_all(&folder).expect("the checkout is writable");
        fs::write(folder.join(name), bytes).expect("the checkout is writable");
    }
}
