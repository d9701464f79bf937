//! The golden images in `testdata/golden`: real images from other programs, with known content.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tempfile::TempDir;

/// A write that an image holds: first sector, sectors, tag of the [pattern](crate::pattern).
pub type Write3 = (u64, u64, u16);

/// What the manifest says of an image.
#[derive(Clone, Debug, Deserialize)]
pub struct Golden {
    /// Its file name.
    pub file: String,
    /// What it is.
    pub what: String,
    /// The hash of the file.
    pub sha256: String,
    /// The length of the file.
    pub bytes: u64,
    /// The file name of its parent.
    pub parent: Option<String>,
    /// The image it is a damaged copy of.
    pub damaged_from: Option<String>,
    /// What was written to it.
    pub writes: Option<Vec<Write3>>,
    /// The hash of the whole disk read through the chain.
    pub guest_sha256: Option<String>,
    /// The file that takes an interrupted resize back.
    pub journal: Option<String>,
    /// The hash of the file once that has been taken back.
    pub sha256_after_revert: Option<String>,
    /// The hash of the whole disk then.
    pub guest_sha256_after_revert: Option<String>,
}

#[derive(Deserialize)]
struct Manifest {
    images: Vec<Golden>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/golden")
}

/// Reads the manifest.
///
/// # Panics
/// If it is missing or malformed: the checkout is broken.
pub fn manifest() -> Vec<Golden> {
    let text = fs::read(folder().join("MANIFEST.json")).expect("the manifest is in the checkout");
    serde_json::from_slice::<Manifest>(&text).expect("the manifest is well-formed").images
}

/// Decompresses a golden file.
///
/// # Panics
/// If it is missing or damaged: the checkout is broken.
pub fn bytes(name: &str) -> Vec<u8> {
    let packed = File::open(folder().join(format!("{name}.zst"))).expect("the golden file is in the checkout");
    let mut bytes = Vec::new();
    zstd::Decoder::new(packed).and_then(|mut file| file.read_to_end(&mut bytes)).expect("the golden file is intact");
    bytes
}

/// Decompresses golden files into a folder, with holes where they hold zeros.
///
/// # Panics
/// If a file is missing, or cannot be written.
pub fn unpack_into(folder: &Path, names: &[&str]) {
    for name in names {
        let bytes = bytes(name);
        let mut file = File::create(folder.join(name)).expect("the folder is writable");
        file.set_len(bytes.len() as u64).expect("the folder has room");
        for (i, page) in bytes.chunks(4096).enumerate().filter(|(_, page)| page.iter().any(|&byte| byte != 0)) {
            file.seek(SeekFrom::Start(i as u64 * 4096)).expect("files can seek");
            file.write_all(page).expect("the folder has room");
        }
    }
}

/// As [`unpack_into`], a fresh temporary folder.
///
/// # Panics
/// As there.
pub fn unpack(names: &[&str]) -> TempDir {
    let folder = tempfile::tempdir().expect("there is a temporary folder");
    unpack_into(folder.path(), names);
    folder
}

/// Lists an image and its parents, the image first.
pub fn chain_of(name: &str) -> Vec<String> {
    let parents: HashMap<_, _> = manifest().into_iter().map(|image| (image.file, image.parent)).collect();
    let mut names = vec![name.to_owned()];
    while let Some(parent) = names.last().and_then(|last| parents.get(last)).cloned().flatten() {
        names.push(parent);
    }
    names
}
