//! Small repositories made image by image, and what must hold for a repository whatever has been done to it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use vhd_core::check::{self, Severity};
use vhd_core::{
    BlockIndex, BlockSize, ByteCount, Chain, ChainOptions, Existing, Files, Folder, Image, Layer, Lock, NewImage,
    NewKind, ParentLink, Sector, SectorRange, Uuid, Volume, create_file,
};

use crate::layout::assert_layout;
use crate::model::read_all;
use crate::{pattern, scratch};

/// A folder in which a repository is made. Blocks are of 4 KiB, sizes in sectors.
#[derive(Debug)]
pub struct Scene {
    folder: TempDir,
    block_size: BlockSize,
}

impl Default for Scene {
    fn default() -> Self {
        Self::with_blocks(BlockSize::new(4096).expect("a power of two"))
    }
}

impl Scene {
    /// Makes an empty one whose images have blocks of another size.
    pub fn with_blocks(block_size: BlockSize) -> Self {
        Self { folder: scratch::folder(), block_size }
    }

    /// Makes an empty one in a new folder within another, on a file system of the test's choice.
    ///
    /// # Panics
    /// If the folder cannot be made.
    pub fn within(folder: &Path) -> Self {
        let folder = tempfile::tempdir_in(folder).expect("the folder is writable");
        Self { folder, block_size: BlockSize::new(4096).expect("a power of two") }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    fn image(&self, name: &str, sectors: u64, kind: NewKind) {
        create_file(&self.file(name), &NewImage::new(ByteCount(sectors * 512), kind), Existing::Keep)
            .expect("the image can be made");
    }

    /// Makes an empty dynamic image.
    pub fn dynamic(&self, name: &str, sectors: u64) {
        self.image(name, sectors, NewKind::Dynamic { block_size: self.block_size });
    }

    /// Makes an empty fixed image.
    pub fn fixed(&self, name: &str, sectors: u64) {
        self.image(name, sectors, NewKind::Fixed);
    }

    /// Makes a raw disk full of data.
    pub fn raw(&self, name: &str, sectors: u64) {
        let content = pattern::fill(SectorRange::between(Sector(0), Sector(sectors)), 999);
        fs::write(self.file(name), content).expect("the folder is writable");
    }

    /// Makes an empty child of an image, or of a raw disk, of the same size.
    pub fn child(&self, name: &str, parent: &str) {
        self.larger_child(name, parent, 0);
    }

    /// Makes an empty child that has at least so many sectors.
    pub fn larger_child(&self, name: &str, parent: &str, sectors: u64) {
        let path = self.file(parent);
        let (unique_id, size) = match Image::open(&path, Lock::None) {
            Ok(image) => (image.footer().unique_id(), image.footer().current_size().0),
            Err(_) => (Uuid::nil(), path.metadata().expect("the parent is there").len()),
        };
        let parent = ParentLink::new(self.path(), &path, unique_id).expect("its path can be written");
        let kind = NewKind::Differencing { block_size: self.block_size, parent };
        self.image(name, sectors.max(size / 512), kind);
    }

    /// Writes the pattern of a tag to sectors of an image.
    pub fn write(&self, name: &str, sectors: Range<u64>, tag: u16) {
        let range = SectorRange::between(Sector(sectors.start), Sector(sectors.end));
        self.change(name, |volume| volume.write(range, &pattern::fill(range, tag)).expect("the image can be written"));
    }

    /// Runs `work` on an open image, and closes it.
    fn change(&self, name: &str, work: impl FnOnce(&Volume)) {
        let volume = patiently(|| Volume::open(&self.file(name), &ChainOptions::default())).expect("the image opens");
        work(&volume);
        volume.close().expect("the image closes");
    }

    /// Writes zeros, as data, to sectors of an image.
    pub fn write_zeros(&self, name: &str, sectors: Range<u64>) {
        let range = SectorRange::between(Sector(sectors.start), Sector(sectors.end));
        let zeros = vec![0; range.count().bytes().0 as usize];
        self.change(name, |volume| volume.write(range, &zeros).expect("the image can be written"));
    }

    /// Makes sectors of an image read as zeros without data.
    pub fn trim(&self, name: &str, sectors: Range<u64>) {
        let range = SectorRange::between(Sector(sectors.start), Sector(sectors.end));
        self.change(name, |volume| volume.trim(range).expect("the image can be written"));
    }

    /// Allocates blocks of an image that hold nothing.
    pub fn reserve(&self, name: &str, blocks: Range<u32>) {
        let blocks: Vec<BlockIndex> = blocks.map(BlockIndex).collect();
        self.change(name, |volume| volume.leaf().reserve(&blocks).expect("the image can be written"));
    }

    /// Writes the pattern of a tag to the first sector of each of some blocks of 4 KiB, and to the first half of every third.
    pub fn scatter(&self, name: &str, blocks: Range<u64>, tag: u16) {
        for block in blocks {
            let sectors = if block % 3 == 0 { 4 } else { 1 };
            self.write(name, block * 8..block * 8 + sectors, tag);
        }
    }

    /// Makes an image an inner node.
    pub fn hide(&self, name: &str) {
        let mut image = patiently(|| Image::open_writable(&self.file(name))).expect("the image opens");
        image.set_hidden(true).expect("the image can be hidden");
    }

    /// Makes all files look as if nobody had changed them for years.
    pub fn settle(&self) {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        for path in files(self.path()).into_keys() {
            let file = File::options().write(true).open(self.file(&path)).expect("the file is ours");
            file.set_modified(time).expect("the file is ours");
        }
    }
}

/// Tries for a while: a process that another test is just starting shares our locks until it is a program of its own.
///
/// # Errors
/// Those of the last time.
pub fn patiently<T, E>(work: impl Fn() -> Result<T, E>) -> Result<T, E> {
    for _ in 0..100 {
        if let Ok(done) = work() {
            return Ok(done);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    work()
}

/// Reads what every visible volume of a folder holds, by file name.
///
/// # Panics
/// If one cannot be read.
pub fn volumes(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let forest = scan(folder);
    let visible = forest.nodes().filter(|(_, node)| !node.hidden && node.disk_type.is_some());
    visible.map(|(_, node)| (name_of(&node.path), content(&node.path))).collect()
}

/// Reads what a volume holds.
///
/// # Panics
/// If it cannot be read.
pub fn content(volume: &Path) -> Vec<u8> {
    let chain = Chain::open(volume, &ChainOptions::default());
    read_all(&chain.unwrap_or_else(|error| panic!("{}: {error}", volume.display())))
}

/// Counts the images of a folder, raw disks left out.
///
/// # Panics
/// If the folder cannot be listed.
pub fn images(folder: &Path) -> usize {
    scan(folder).nodes().filter(|(_, node)| node.disk_type.is_some()).count()
}

/// Counts the images that a volume is read through, raw disks included.
///
/// # Panics
/// If it cannot be opened.
pub fn depth(volume: &Path) -> usize {
    Chain::open(volume, &ChainOptions::default()).expect("the volume opens").layers().len()
}

/// Lists the files that a volume is read through, the volume first.
///
/// # Panics
/// If it cannot be opened.
pub fn layers(volume: &Path) -> Vec<PathBuf> {
    let chain = Chain::open(volume, &ChainOptions::default()).expect("the volume opens");
    chain.layers().iter().map(Layer::path).map(Path::to_path_buf).collect()
}

/// Checks that every image of a folder is sound, laid out as it must be, and has its parent.
///
/// # Panics
/// If one is not, or has not.
pub fn check(folder: &Path) {
    let forest = scan(folder);
    assert!(forest.damaged().is_empty(), "{:?}", forest.damaged());
    for (id, node) in forest.nodes().filter(|(_, node)| node.disk_type.is_some()) {
        let name = name_of(&node.path);
        assert!(node.parent.is_none() || forest.parent(id).is_some(), "{name} has lost its parent");
        let report = check::file(&node.path).expect("the image can be read");
        let bad: Vec<_> = report.findings().iter().filter(|finding| finding.severity >= Severity::Warning).collect();
        assert!(bad.is_empty(), "{name}: {bad:?}");
        assert_layout(&node.path);
    }
}

/// Reads all files of a folder, at any depth.
///
/// # Panics
/// If one cannot be read.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("the folder can be listed") {
        let path = entry.expect("the folder can be listed").path();
        if path.is_dir() {
            found.extend(files(&path).into_iter().map(|(name, bytes)| (format!("{}/{name}", name_of(&path)), bytes)));
        } else {
            found.insert(name_of(&path), crate::read_beside(&path).expect("the file can be read"));
        }
    }
    found
}

/// Lists what is in the state folder of a repository beside the lock.
pub fn state_files(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder.join(".vhd")) else { return Vec::new() };
    let names = entries.map(|entry| name_of(&entry.expect("the folder can be listed").path()));
    names.filter(|name| name != "lock" && name != "parents").collect()
}

fn scan(folder: &Path) -> Folder {
    Folder::scan(folder, Files::Images).expect("the folder can be listed")
}

fn name_of(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
