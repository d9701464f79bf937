//! Images to be resized, and what must be found when that was interrupted.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use testkit::{pattern, scratch};
use vhd_core::repair::revert_resize;
use vhd_core::{
    BlockSize, ByteCount, ChainOptions, Existing, Image, Lock, NewImage, NewKind, ParentLink, ReadOnly, Sector,
    SectorRange, Volume, create_file,
};

use super::journal::parse;
use crate::program::process;

pub(super) const RESIZE: [&str; 7] = ["resize", "-s", "4", "-n", "disk.vhd", "-j", "jrnl"];
pub(super) const REVERT: [&str; 5] = ["revert", "-n", "disk.vhd", "-j", "jrnl"];

/// An image of small blocks, and what `RESIZE` makes of it.
pub(super) struct Case {
    pub(super) name: &'static str,
    folder: TempDir,
    pub(super) before: Vec<u8>,
    pub(super) after: Vec<u8>,
    locators: usize,
}

fn create(folder: &Path, name: &str, sectors: u64, parent: Option<&str>) -> Volume {
    let (path, block_size) = (folder.join(name), BlockSize::new(4096).unwrap());
    let kind = match parent {
        None => NewKind::Dynamic { block_size },
        Some(parent) => {
            let path = folder.join(parent);
            let id = Image::<ReadOnly>::open(&path, Lock::None).unwrap().footer().unique_id();
            NewKind::Differencing { block_size, parent: ParentLink::new(folder, &path, id).unwrap() }
        }
    };
    create_file(&path, &NewImage::new(ByteCount(sectors * 512), kind), Existing::Keep).unwrap();
    Volume::open(&path, &ChainOptions::default()).unwrap()
}

pub(super) fn write(volume: &Volume, start: u64, end: u64) {
    let range = SectorRange::between(Sector(start), Sector(end));
    volume.write(range, &pattern::fill(range, 1)).unwrap();
}

impl Case {
    fn new(name: &'static str, make: impl FnOnce(&Path)) -> Self {
        let folder = scratch::folder();
        make(folder.path());
        let image = || fs::read(folder.path().join("disk.vhd")).unwrap();
        let before = image();
        assert!(process(folder.path(), &RESIZE).status().unwrap().success(), "{name}");
        let after = image();
        fs::write(folder.path().join("disk.vhd"), &before).unwrap();
        let opened: Image<ReadOnly> = Image::open(&folder.path().join("disk.vhd"), Lock::None).unwrap();
        let locators = opened.header().unwrap().locators().count();
        Self { name, folder, before, after, locators }
    }

    pub(super) fn all() -> [Self; 3] {
        let plain = |folder: &Path| {
            let volume = create(folder, "disk.vhd", 2048, None);
            [(0, 8), (17, 30), (2000, 2048)].into_iter().for_each(|(start, end)| write(&volume, start, end));
            volume.close().unwrap();
        };
        // Beyond the end of the disk, which is within a block, it holds what the disk held when it was larger.
        let leftovers = |folder: &Path| {
            let mut volume = create(folder, "disk.vhd", 2048, None);
            [(0, 8), (1000, 1030)].into_iter().for_each(|(start, end)| write(&volume, start, end));
            volume.set_size(ByteCount(1003 * 512)).unwrap();
            volume.close().unwrap();
        };
        // The larger parent must not show where the disk grows.
        let child = |folder: &Path| {
            let parent = create(folder, "parent.vhd", 1030, None);
            write(&parent, 900, 1030);
            parent.close().unwrap();
            let volume = create(folder, "disk.vhd", 1003, Some("parent.vhd"));
            [(3, 12), (999, 1003)].into_iter().for_each(|(start, end)| write(&volume, start, end));
            volume.close().unwrap();
        };
        [Self::new("plain", plain), Self::new("leftovers", leftovers), Self::new("child", child)]
    }

    pub(super) fn copy(&self) -> TempDir {
        let folder = scratch::folder();
        for entry in fs::read_dir(self.folder.path()).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
        folder
    }

    /// Checks what an interrupted resize has left, and reverts it; tells whether there was a journal.
    pub(super) fn settle(&self, folder: &Path) -> bool {
        let (path, journal) = (folder.join("disk.vhd"), folder.join("jrnl"));
        let found = fs::read(&path).unwrap();
        if !journal.exists() {
            assert!(found == self.before || found == self.after, "without a journal, neither the old nor the new");
            return false;
        }
        self.check_journal(&fs::read(&journal).unwrap());
        // Whoever can write to it meanwhile writes to the old image or to the new one.
        let whole = [&self.before, &self.after].into_iter().any(|whole| found.get(512..) == whole.get(512..));
        assert!(whole || Image::open_writable(&path).is_err(), "half a resize can be written to");
        revert_resize(&path, &journal).unwrap();
        assert!(fs::read(&path).unwrap() == self.before, "not what it was");
        assert!(!journal.exists());
        true
    }

    /// Checks a journal of ours field by field.
    fn check_journal(&self, bytes: &[u8]) {
        let journal = parse(bytes);
        assert_eq!(journal.id, self.before[68..84]);
        assert_eq!(journal.footer_at, self.before.len() as u64 - 512);
        let mut kinds = vec![1, 2, 3];
        kinds.extend(vec![4; self.locators]);
        kinds.extend([5, 6, 7]);
        let metadata: Vec<u32> = journal.entries.iter().map(|entry| entry.kind).filter(|&kind| kind < 8).collect();
        assert_eq!(metadata, kinds);
        assert!(journal.entries.len() > kinds.len(), "no block that made room");
        for entry in &journal.entries {
            let at = entry.at as usize;
            assert!(self.before[at..at + entry.bytes.len()] == entry.bytes, "old bytes at {at}");
        }
    }
}
