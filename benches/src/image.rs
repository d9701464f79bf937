//! Making and filling single images.

use std::path::Path;
use std::sync::Arc;

use vhd_core::{
    BlockSize, ByteCount, Container, Existing, FileOffset, FileStorage, Image, Lock, NewImage, NewKind, ParentLink,
    SectorRange, create_file,
};

use crate::random::Random;

/// The most that is copied at once.
const STEP: u64 = 1 << 20;

/// Makes an empty dynamic image.
///
/// # Panics
/// If it cannot be made.
pub fn create_base(path: &Path, size: ByteCount) {
    create(path, size, NewKind::Dynamic { block_size: BlockSize::DEFAULT });
}

/// Makes an empty child, as large as its parent.
///
/// # Panics
/// If the parent cannot be opened or the child cannot be made.
pub fn create_child(path: &Path, parent: &Path) {
    let image = Image::open(parent, Lock::None).expect("the parent is an image");
    let folder = path.parent().expect("the child is in a folder");
    let link = ParentLink::new(folder, parent, image.footer().unique_id()).expect("the parent has a name");
    let kind = NewKind::Differencing { block_size: BlockSize::DEFAULT, parent: link };
    create(path, image.footer().current_size(), kind);
}

/// Makes an image an inner node.
///
/// # Panics
/// If it cannot be written.
pub(crate) fn hide(path: &Path) {
    let mut image = Image::open_writable(path).expect("nobody else has the image open");
    image.set_hidden(true).expect("the folder has room");
}

fn create(path: &Path, size: ByteCount, kind: NewKind) {
    create_file(path, &NewImage::new(size, kind), Existing::Replace).expect("the folder has room");
}

/// Writes bytes that do not compress to ranges of an image.
///
/// # Panics
/// If a range is not on the disk or the image cannot be written.
pub fn write_random(path: &Path, ranges: &[SectorRange], seed: u64) {
    let image = Image::open_writable(path).expect("nobody else has the image open");
    let mut random = Random::new(seed);
    let mut bytes = Vec::new();
    for &range in ranges {
        bytes.resize(range.count().bytes().0 as usize, 0);
        random.fill(&mut bytes);
        image.write(range, &bytes).expect("the folder has room");
    }
    image.close().expect("the folder has room");
}

/// Copies a file and leaves holes where it has some.
///
/// # Panics
/// If one cannot be read or the other cannot be written.
pub fn copy_sparse(from: &Path, to: &Path) {
    let _ = std::fs::remove_file(to);
    std::fs::File::create(to).expect("the folder is writable");
    let open = |storage| Container::new(from, Arc::new(storage));
    let from = open(FileStorage::open(from, Lock::None).expect("the file is there"));
    let to = open(FileStorage::open_writable(to).expect("the file is new"));
    let mut at = FileOffset(0);
    let mut bytes = Vec::new();
    while let Some(data) = from.next_data(at).expect("the file is readable") {
        at = data.start;
        while at < data.end {
            bytes.resize((data.end - at).0.min(STEP) as usize, 0);
            from.read_at(&mut bytes, at).expect("the file is readable");
            to.write_at(&bytes, at).expect("the folder has room");
            at = at + ByteCount(bytes.len() as u64);
        }
    }
    to.set_len(from.len().expect("the file is readable")).expect("the folder has room");
}
