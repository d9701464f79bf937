//! Repositories to collect.

use std::fs;
use std::path::{Path, PathBuf};

use coalesce_worker::Repository;
use testkit::model::{Model, Start};
use testkit::pattern;
use vhd_core::{BlockSize, ChainOptions, Files, Folder, Sector, SectorCount, SectorRange};

/// Sectors in a mebibyte.
const MIB: u64 = 2048;

/// A volume whose snapshots are to be deleted.
pub(crate) struct Disk {
    pub(crate) model: Model,
    pub(crate) volume: PathBuf,
    /// Oldest first.
    pub(crate) snapshots: Vec<PathBuf>,
}

impl Disk {
    /// A disk of 48 MiB, full; a snapshot; 32 MiB written again; another snapshot; and a little more.
    pub(crate) fn large() -> Self {
        Self::new(48, 32)
    }

    /// One that is merged in no time.
    pub(crate) fn small() -> Self {
        Self::new(2, 1)
    }

    /// A small one on a file system of the test's choice.
    pub(crate) fn within(folder: &Path) -> Self {
        Self::filled(Model::within(folder), 2, 1)
    }

    fn new(size: u64, again: u64) -> Self {
        Self::filled(Model::default(), size, again)
    }

    fn filled(mut model: Model, size: u64, again: u64) -> Self {
        let volume = model.create(Start::Dynamic(BlockSize::DEFAULT), size * MIB);
        let mut disk = Self { model, volume, snapshots: Vec::new() };
        disk.write(0, size * MIB, 1);
        disk.snapshot();
        disk.write(0, again * MIB, 2);
        disk.snapshot();
        disk.write(5, 9, 3);
        disk
    }

    pub(crate) fn path(&self) -> &Path {
        self.model.path()
    }

    fn write(&mut self, start: u64, count: u64, tag: u16) {
        let range = SectorRange::new(Sector(start), SectorCount(count));
        self.model.change(&self.volume, |open, content| {
            let data = pattern::fill(range, tag);
            open.write(range, &data).unwrap();
            content[start as usize * 512..][..data.len()].copy_from_slice(&data);
        });
    }

    fn snapshot(&mut self) {
        self.snapshots.push(self.model.snapshot(&self.volume));
    }

    /// Deletes all snapshots as people do, with `rm`.
    pub(crate) fn remove_snapshots(&mut self) {
        for snapshot in &self.snapshots {
            self.model.delete(snapshot);
        }
    }

    /// Deletes all snapshots as `vhd-tool delete` does.
    pub(crate) fn delete_snapshots(&mut self) {
        for snapshot in &self.snapshots {
            let (repository, _) = Repository::open(self.model.path(), ChainOptions::default()).unwrap();
            repository.delete(snapshot).unwrap();
            self.model.forget(snapshot);
        }
    }

    /// Images in the folder.
    pub(crate) fn images(&self) -> usize {
        Folder::scan(self.path(), Files::Images).unwrap().nodes().count()
    }

    /// Waits until all is merged, and checks the content.
    pub(crate) fn merged(&self) {
        crate::process::until("all is merged", || (self.names().len() == 1).then_some(()));
        self.model.verify();
    }

    fn names(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path()).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "vhd")).collect()
    }
}
