//! Looking at one image: footer, header and locators, with as few calls of the system as that takes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use vhd_core::{Batmap, ByteCount, Container, FileError, Image, KeyHash, ReadOnly, Storage};

use super::peek::Peek;
use super::plain;
use crate::vhd_util::{Failure, Refused};

/// What a line tells of an image.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) capacity: ByteCount,
    /// The length of its file, or the size of its volume.
    pub(super) size: ByteCount,
    pub(super) hidden: u8,
    /// Where that was asked for.
    pub(super) marks: Option<(u8, Option<KeyHash>)>,
    pub(super) parent: Option<Parent>,
}

/// The parent of an image, as that calls it.
#[derive(Debug)]
pub(super) struct Parent {
    /// The paths that it may be at.
    pub(super) candidates: Vec<PathBuf>,
    pub(super) is_raw: bool,
}

/// Looks at the image in a file or device.
pub(super) fn look(path: &Path, marks: bool) -> Result<Found, Failure> {
    let peek = Peek::open(path).map_err(FileError::when(path, "open it"))?;
    let size = peek.len().map_err(FileError::when(path, "tell its length"))?;
    let image = Image::<ReadOnly>::from_container(Container::new(path, Arc::new(peek)))?;
    // Without a batmap they are attributes of the file, which only the real file can tell.
    let marks = match (marks, image.batmap()) {
        (false, _) => None,
        (true, Some(batmap)) => Some((batmap.marker(), batmap.key_hash())),
        (true, None) => {
            let image: Image<ReadOnly> = Image::open(path, vhd_core::Lock::None)?;
            Some((image.marker()?, image.key_hash()?))
        }
    };
    describe(&image, size, marks, |path| vec![plain(&path)])
}

/// Looks at the raw parent of an image.
pub(super) fn look_at_raw(path: &Path, marks: bool) -> Result<Found, Failure> {
    let peek = Peek::open(path).map_err(FileError::when(path, "open it"))?;
    Ok(raw(peek.len().map_err(FileError::when(path, "tell its length"))?, marks))
}

/// What a raw disk tells: it is nobody's volume as long as an image is its child.
pub(super) fn raw(size: ByteCount, marks: bool) -> Found {
    Found { capacity: size, size, hidden: 1, marks: marks.then_some((0, None)), parent: None }
}

/// Looks at the image in a volume; its parent is another volume, by whatever path the image calls that.
pub(super) fn look_at_volume(container: Container, size: ByteCount, marks: bool) -> Result<Found, Failure> {
    let image = Image::<ReadOnly>::from_container(container)?;
    let marks = marks.then(|| (image.batmap().map_or(0, Batmap::marker), image.batmap().and_then(Batmap::key_hash)));
    describe(&image, size, marks, |path| volume_names(&path))
}

/// The names that a volume may have: that of a link in the folder of its group, or what one in `/dev/mapper` means, in
/// which a hyphen stands between group and volume and those of their names are doubled.
fn volume_names(path: &Path) -> Vec<PathBuf> {
    let Some(name) = path.file_name() else { return Vec::new() };
    let undoubled = name.to_str().map(|name| name.replace("--", "/"));
    let mapped = undoubled.as_deref().and_then(|name| name.split_once('-')).filter(|(_, volume)| !volume.contains('-'));
    let mapped = mapped.map(|(_, volume)| PathBuf::from(volume.replace('/', "-")));
    [PathBuf::from(name)].into_iter().chain(mapped).collect()
}

fn describe(
    image: &Image<ReadOnly>,
    size: ByteCount,
    marks: Option<(u8, Option<KeyHash>)>,
    candidates: impl Fn(PathBuf) -> Vec<PathBuf>,
) -> Result<Found, Failure> {
    let parent = match image.header().filter(|_| image.is_differencing()) {
        Some(header) => {
            let candidates: Vec<PathBuf> = image.parent_paths()?.into_iter().flat_map(candidates).collect();
            if candidates.is_empty() {
                let what = "it says of its parent nothing that can be read";
                return Err(Refused::image(image.path(), Errno::INVAL, what).into());
            }
            Some(Parent { candidates, is_raw: header.parent_unique_id().is_nil() })
        }
        None => None,
    };
    let (capacity, hidden) = (image.footer().current_size(), image.footer().hidden_value());
    Ok(Found { capacity, size, hidden, marks, parent })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_known_by_both_of_its_names() {
        let names = |path: &str| -> Vec<String> {
            volume_names(Path::new(path)).iter().map(|name| name.display().to_string()).collect()
        };
        let volume = "VHD-5c1f6f6e-0d0a-4b0e";
        assert_eq!(names(&format!("/dev/group/{volume}")), [volume]);
        let mapped = "VG_XenStorage--f0e1-VHD--5c1f6f6e--0d0a--4b0e";
        assert_eq!(names(mapped), [mapped, volume]);
        assert_eq!(names("/dev/mapper/g-disk"), ["g-disk", "disk"]);
        assert_eq!(names("plain"), ["plain"]);
        assert!(names("/").is_empty());
    }
}
