//! A model of a repository: what each volume must read as, whatever is done to the files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vhd_core::check::{self, Severity};
use vhd_core::{
    BlockSize, ByteCount, Chain, ChainOptions, Existing, Image, NewImage, NewKind, ParentLink, SECTOR_SIZE, Sector,
    SectorCount, SectorRange, Volume, create_file,
};

use crate::layout::assert_layout;
use crate::{scratch, worker};

/// A folder of images and the content that each volume must have.
#[derive(Debug)]
pub struct Model {
    folder: TempDir,
    contents: BTreeMap<PathBuf, Vec<u8>>,
    made: usize,
}

/// What a new volume of the model starts from.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    /// A fixed image.
    Fixed,
    /// An empty dynamic image.
    Dynamic(BlockSize),
    /// A child of a raw disk full of data.
    OnRaw(BlockSize),
}

impl Default for Model {
    fn default() -> Self {
        Self { folder: scratch::folder(), contents: BTreeMap::new(), made: 0 }
    }
}

impl Model {
    /// Makes one in a new folder within another, on a file system of the test's choice.
    ///
    /// # Panics
    /// If the folder cannot be made.
    pub fn within(folder: &Path) -> Self {
        let folder = tempfile::tempdir_in(folder).expect("the folder is writable");
        Self { folder, contents: BTreeMap::new(), made: 0 }
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A path in the folder that nothing has had yet.
    pub fn new_path(&mut self, extension: &str) -> PathBuf {
        self.made += 1;
        self.folder.path().join(format!("v{}.{extension}", self.made))
    }

    /// The volumes.
    pub fn volumes(&self) -> Vec<PathBuf> {
        self.contents.keys().cloned().collect()
    }

    /// Picks a volume by any number; `None` where there is none.
    pub fn pick(&self, number: usize) -> Option<PathBuf> {
        self.contents.keys().nth(number % self.contents.len().max(1)).cloned()
    }

    /// The sectors of a volume of the model.
    pub fn sectors(&self, volume: &Path) -> u64 {
        self.contents[volume].len() as u64 / SECTOR_SIZE
    }

    /// Makes a volume; gives its path.
    pub fn create(&mut self, start: Start, sectors: u64) -> PathBuf {
        let path = self.new_path("vhd");
        let size = SectorCount(sectors).bytes();
        let mut content = vec![0; size.0 as usize];
        let kind = match start {
            Start::Fixed => NewKind::Fixed,
            Start::Dynamic(block_size) => NewKind::Dynamic { block_size },
            Start::OnRaw(block_size) => {
                let raw = self.new_path("img");
                content = crate::pattern::fill(SectorRange::new(Sector(0), SectorCount(sectors)), 999);
                fs::write(&raw, &content).expect("the folder is writable");
                let parent = ParentLink::new(self.path(), &raw, vhd_core::Uuid::nil()).expect("the parent is there");
                NewKind::Differencing { block_size, parent }
            }
        };
        create_file(&path, &NewImage::new(size, kind), Existing::Keep).expect("the image can be made");
        self.contents.insert(path.clone(), content);
        path
    }

    /// Opens a volume for writing.
    pub fn open(&self, volume: &Path) -> Volume {
        Volume::open(volume, &ChainOptions::default()).expect("the volume opens")
    }

    /// Runs `work` on an open volume and its content in the model, and closes it.
    pub fn change(&mut self, volume: &Path, work: impl FnOnce(&Volume, &mut Vec<u8>)) {
        let open = self.open(volume);
        work(&open, self.contents.get_mut(volume).expect("a volume of the model"));
        open.close().expect("the volume closes");
    }

    /// Replaces what a volume must have, as after a crash, where each sector may be the old or the new.
    ///
    /// # Panics
    /// If a sector is neither.
    pub fn settle(&mut self, volume: &Path, new: &[u8]) {
        let found = read_all(&Chain::open(volume, &ChainOptions::default()).expect("the volume opens"));
        let old = &self.contents[volume];
        for (i, sector) in found.chunks(512).enumerate() {
            let at = i * 512..i * 512 + 512;
            assert!(sector == &old[at.clone()] || sector == &new[at], "sector {i} of {}", volume.display());
        }
        self.contents.insert(volume.into(), found);
    }

    /// Says what a volume must read as from now on.
    pub fn expect(&mut self, volume: &Path, content: Vec<u8>) {
        self.contents.insert(volume.into(), content);
    }

    /// What a volume must read as.
    pub fn content(&self, volume: &Path) -> &[u8] {
        &self.contents[volume]
    }

    /// Gives a volume another size, and back what it held beyond it, as the worker does.
    pub fn resize(&mut self, volume: &Path, sectors: u64) {
        let size = ByteCount(sectors * SECTOR_SIZE);
        let mut open = self.open(volume);
        open.set_size(size).expect("the volume can have that size");
        open.close().expect("the volume closes");
        let mut image = Image::open_writable(volume).expect("the volume opens");
        image.drop_leftovers().and_then(|_| Ok(image.close()?)).expect("the volume is writable");
        self.contents.get_mut(volume).expect("a volume of the model").resize(size.0 as usize, 0);
    }

    /// Takes a snapshot or clone; gives its path.
    pub fn snapshot(&mut self, volume: &Path) -> PathBuf {
        let path = self.new_path("vhd");
        worker::snapshot(volume, &path).expect("the snapshot is taken");
        self.contents.insert(path.clone(), self.contents[volume].clone());
        path
    }

    /// Deletes a volume and its file.
    pub fn delete(&mut self, volume: &Path) {
        fs::remove_file(volume).expect("the volume can be deleted");
        self.contents.remove(volume);
    }

    /// Forgets a volume whose file is gone with a merge.
    pub fn forget(&mut self, volume: &Path) {
        self.contents.remove(volume);
    }

    /// Checks that every volume reads as it must, and that no file shows damage.
    ///
    /// # Panics
    /// If one does not.
    pub fn verify(&self) {
        for (path, content) in &self.contents {
            let chain = Chain::open(path, &ChainOptions::default()).expect("the volume opens");
            assert_eq!(chain.size().0, content.len() as u64, "size of {}", path.display());
            let found = read_all(&chain);
            if let Some(at) = found.iter().zip(content).position(|(a, b)| a != b) {
                panic!("{} differs in sector {}", path.display(), at / 512);
            }
        }
        for entry in fs::read_dir(self.path()).expect("the folder is readable") {
            let path = entry.expect("the folder is readable").path();
            if path.extension().is_some_and(|extension| extension == "vhd") {
                let report = check::file(&path).expect("the file is readable");
                assert!(report.worst() < Some(Severity::Warning), "{}: {:?}", path.display(), report.findings());
                assert_layout(&path);
            }
        }
    }
}

/// Reads a whole disk, in pieces of odd length.
pub fn read_all(chain: &Chain) -> Vec<u8> {
    let mut content = Vec::with_capacity(chain.size().0 as usize);
    for piece in SectorRange::new(Sector(0), chain.sectors()).split_at_multiples(SectorCount(37)) {
        let mut bytes = vec![0xee; piece.count().bytes().0 as usize];
        chain.read(piece, &mut bytes).expect("the chain is readable");
        content.extend(bytes);
    }
    content
}
