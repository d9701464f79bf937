//! Which file an image's parent is, as libvhd finds it.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::headers::{Headers, Locator, read};

/// Finds the parent by the first locator, in the order of the header, whose path is that of a readable file.
///
/// # Errors
/// No such locator.
pub(super) fn find(child: &Path, file: &File, headers: &Headers) -> io::Result<PathBuf> {
    let child = fs::canonicalize(child)?;
    let folder = child.parent().unwrap_or(Path::new("/"));
    for name in headers.locators().filter_map(|locator| text(file, &locator)) {
        let beside = folder.join(name.trim_start_matches('/'));
        // What is absolute is tried first as it is, and then beneath the folder.
        for candidate in [folder.join(&name), beside] {
            if File::open(&candidate).is_ok() {
                return fs::canonicalize(candidate);
            }
        }
    }
    Err(io::Error::new(ErrorKind::NotFound, format!("{}: no locator leads to a parent", child.display())))
}

/// Decodes the path of a locator; `None` for kinds that are not read and for text that is not ASCII.
fn text(file: &File, locator: &Locator) -> Option<String> {
    let bytes = read(file, locator.offset, locator.length.min(locator.space)).ok()?;
    let ascii = |text: String| (!text.is_empty() && text.is_ascii()).then_some(text);
    match &locator.code {
        b"MacX" => ascii(String::from_utf8(bytes).ok()?.strip_prefix("file://")?.to_owned()),
        b"W2ku" | b"W2ru" => {
            let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
            let path = ascii(String::from_utf16(&units).ok()?)?.replace('\\', "/");
            Some(path.strip_prefix("C:").or(path.strip_prefix("c:")).unwrap_or(&path).to_owned())
        }
        _ => None,
    }
}
