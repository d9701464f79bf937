//! The images that tapdisks on this host serve, paused ones too.
//!
//! A paused tapdisk has no file open, and opens its chain again by name when it goes on: the kernel knows nothing of it. Its
//! control program does, where there is one. That names the image at the top of each chain.
//!
//! Source: what blktap's `tap-ctl list` prints, a line for each tapdisk: `pid=1 minor=2 state=0x2a args=vhd:/path/of.vhd`.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use vhd_core::{Chain, ChainOptions, FileError, Image, Layer, Lock, ParentIdentity, ParentPlaces, ReadOnly};

/// The control program.
const TAP_CTL: &str = "tap-ctl";
/// How long what it says is taken for true.
const FRESH: Duration = Duration::from_millis(200);

/// What tapdisks serve, as of some moment.
struct Served {
    seen: Instant,
    /// Without links.
    images: BTreeSet<PathBuf>,
}

static LAST: Mutex<Option<Served>> = Mutex::new(None);

/// Tells whether a tapdisk serves the image at `path`, or one that reads through it.
///
/// # Errors
/// A control program that is there and does not answer: it may.
pub(crate) fn serves(path: &Path) -> Result<bool, FileError> {
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if last.as_ref().is_none_or(|served| served.seen.elapsed() > FRESH) {
        let images = served().map_err(FileError::when(path, "ask tap-ctl whether a tapdisk serves it"))?;
        *last = Some(Served { seen: Instant::now(), images });
    }
    let real = path.canonicalize().unwrap_or_else(|_| path.into());
    Ok(last.as_ref().is_some_and(|served| served.images.contains(&real)))
}

fn served() -> io::Result<BTreeSet<PathBuf>> {
    let output = match Command::new(TAP_CTL).arg("list").stdin(Stdio::null()).output() {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound) => return Ok(BTreeSet::new()),
        output => output?,
    };
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(image_of).flat_map(|path| chain_of(Path::new(path))).collect())
}

/// The image that a line names.
fn image_of(line: &str) -> Option<&str> {
    let (_, args) = line.split_once(" args=")?;
    let (_, path) = args.split_once(':')?;
    Some(path.trim_end()).filter(|path| path.starts_with('/'))
}

/// An image and all that it reads through, as far as that can be found.
fn chain_of(image: &Path) -> Vec<PathBuf> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.into());
    let options = ChainOptions {
        parents: ParentPlaces::Anywhere,
        parent_identity: ParentIdentity::Ignore,
        ..ChainOptions::default()
    };
    let parents =
        Image::<ReadOnly>::open(image, Lock::None).ok().and_then(|top| options.open_parents(&top, image).ok());
    let parents = parents.flatten().map_or(Vec::new(), Chain::into_layers);
    std::iter::once(real(image)).chain(parents.iter().map(Layer::path).map(real)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_name_images() {
        for (line, image) in [
            ("pid=4711 minor=0 state=0 args=vhd:/run/sr-mount/a b/x.vhd", Some("/run/sr-mount/a b/x.vhd")),
            ("pid=4711 minor=1 state=0x2a args=vhd:/x.vhd ", Some("/x.vhd")),
            ("pid=4711 minor=2 state=0 args=aio:/disk.img", Some("/disk.img")),
            ("      - minor=3 state=-", None),
            ("pid=4711", None),
            ("", None),
        ] {
            assert_eq!(image_of(line), image, "{line}");
        }
    }
}
