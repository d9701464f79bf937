//! Other programs that read VHD images. The set-up of the tests installs them; a test that needs one fails without it.

use std::path::Path;
use std::process::{Command, Output};

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; run `make setup` first"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?} failed: {text}");
    output
}

/// Runs `qemu-img`.
///
/// # Panics
/// If it is missing or fails.
pub fn qemu_img(arguments: &[&str]) {
    run(Command::new("qemu-img").args(arguments));
}

/// Runs `qemu-io` on an image.
///
/// # Panics
/// If it is missing or fails.
pub fn qemu_io(format: &str, path: &Path, command: &str) {
    let output = run(Command::new("qemu-io").args(["-f", format, "-c", command]).arg(path));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(!text.contains("fail"), "{text}");
}

/// Hashes a disk as qemu reads it. The image is no differencing one: qemu ignores parents.
///
/// # Panics
/// If qemu is missing or cannot read the image.
pub fn qemu_sha256(path: &Path) -> String {
    let raw = path.with_extension("qemu-raw");
    run(Command::new("qemu-img").args(["convert", "-f", "vpc", "-O", "raw"]).arg(path).arg(&raw));
    let bytes = std::fs::read(&raw).expect("qemu-img has written it");
    std::fs::remove_file(&raw).expect("it is there");
    crate::sha256(&bytes)
}

/// Hashes a disk as libvhdi reads it: the image first, then its parents.
///
/// # Panics
/// If libvhdi for Python is missing or cannot read the images.
pub fn vhdi_sha256(chain: &[&Path]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("../target/test-python/bin/python");
    let output = run(Command::new(python).arg(root.join("interop/read_vhdi.py")).args(chain));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
