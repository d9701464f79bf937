//! Damaged images: mended where that can be proved, as they were where not, and as they were again when taken back.

mod blocks;
mod crash;
mod footers;
mod hostile;
mod journal;
mod parent;
mod undo;

use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use testkit::{golden, guest_sha256};
use vhd_core::check::{self, Severity};
use vhd_core::repair::{self, Options, RepairError, Repaired};
use vhd_core::{BlockSize, Chain, Container, Image, Layer, MemoryStorage, NewKind, SectorRange};

use super::{container, new_image, open_writable, sectors};

/// An image in memory, and a folder for its undo file.
struct Patient {
    memory: Arc<MemoryStorage>,
    folder: TempDir,
}

impl Patient {
    fn new(bytes: Vec<u8>) -> Self {
        Self { memory: Arc::new(MemoryStorage::new(bytes)), folder: tempfile::tempdir().unwrap() }
    }

    /// The image under a name in its folder, so that what it needs is looked for there.
    fn container(&self) -> Container {
        Container::new(self.folder.path().join("patient.vhd"), self.memory.clone())
    }

    fn undo(&self) -> PathBuf {
        self.folder.path().join("patient.vhd.undo")
    }

    fn repair(&self) -> Result<Repaired, RepairError> {
        repair::container(&self.container(), &self.undo(), &Options::default())
    }

    /// Repairs it, and sees that nothing is wrong with it then, and that all can be taken back, and done again.
    fn repaired(&self) -> Repaired {
        let before = self.memory.to_vec();
        let repaired = self.repair().unwrap();
        let after = self.memory.to_vec();
        assert!(!repaired.mended.is_empty() && repaired.undo.is_some());
        let report = check::container(self.container()).unwrap();
        assert!(report.worst() < Some(Severity::Warning), "{:?}", report.findings());

        let undo = std::fs::read(self.undo()).unwrap();
        for length in [511, 512] {
            assert_ne!(undo[undo.len() - length..][..8], *b"conectix");
        }
        repair::container_taken_back(&self.container(), &self.undo()).unwrap();
        assert!(self.memory.to_vec() == before, "taken back");
        assert!(!self.undo().exists());
        self.repair().unwrap();
        assert!(self.memory.to_vec() == after, "done again");
        let again = self.repair().unwrap();
        assert!(again.mended.is_empty() && again.undo.is_none() && self.undo().exists());
        assert!(self.memory.to_vec() == after, "nothing is left to do");
        repaired
    }

    /// Sees that it is refused and left alone; gives the error with all causes.
    fn refused(&self) -> RepairError {
        let before = self.memory.to_vec();
        let error = self.repair().unwrap_err();
        assert!(self.memory.to_vec() == before, "{error}");
        assert!(!self.undo().exists(), "{error}");
        error
    }

    /// Reads sectors as a guest does, of an image without a parent.
    fn read(&self, range: SectorRange) -> Vec<u8> {
        read(&self.memory, range)
    }
}

fn read(memory: &Arc<MemoryStorage>, range: SectorRange) -> Vec<u8> {
    let image = Image::from_container(container(memory)).unwrap();
    let mut bytes = vec![0; range.count().bytes().0 as usize];
    Chain::from_layers(vec![Layer::Vhd(Box::new(image))]).read(range, &mut bytes).unwrap();
    bytes
}

fn codes(repaired: &Repaired) -> Vec<&'static str> {
    repaired.mended.iter().map(|mended| mended.code).collect()
}

/// A small image with blocks of 4 KiB: block 0 full, blocks 2 and 5 in part.
fn small() -> Vec<u8> {
    let memory = new_image(1 << 20, NewKind::Dynamic { block_size: BlockSize::new(4096).unwrap() });
    let image = open_writable(&memory);
    for range in [sectors(0, 8), sectors(17, 3), sectors(40, 5)] {
        image.write(range, &testkit::pattern::fill(range, 1)).unwrap();
    }
    image.close().unwrap();
    memory.to_vec()
}

/// Writes a big-endian number.
fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Where the BAT of an image is, its blocks' places and what each takes in the file.
fn table(bytes: &[u8]) -> usize {
    u64::from_be_bytes(bytes[512 + 16..512 + 24].try_into().unwrap()) as usize
}

fn entry(bytes: &[u8], block: usize) -> usize {
    let at = table(bytes) + block * 4;
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize * 512
}

fn set_entry(bytes: &mut [u8], block: usize, at: usize) {
    let place = table(bytes) + block * 4;
    put(bytes, place, &((at / 512) as u32).to_be_bytes());
}

#[test]
fn golden_damage_that_leaves_the_content_whole_leaves_no_trace() {
    let base = golden::bytes("base.vhd");
    for (name, code) in [
        ("no-end-footer.vhd", "footer-end-lost"),
        ("footer-511.vhd", "footer-511"),
        ("no-first-footer.vhd", "footer-copy-lost"),
        ("torn-batmap.vhd", "batmap-checksum"),
    ] {
        let patient = Patient::new(golden::bytes(name));
        let repaired = patient.repaired();
        assert_eq!(codes(&repaired), [code], "{name}");
        assert_eq!(repaired.lost, [], "{name}");
        assert!(patient.memory.to_vec() == base, "{name}");
    }
}

#[test]
fn every_golden_image_is_repaired_or_refused_and_sound_ones_are_left_alone() {
    for image in golden::manifest() {
        let patient = Patient::new(golden::bytes(&image.file));
        if image.file == "overlapping-blocks.vhd" || image.journal.is_some() {
            patient.refused();
            continue;
        }
        let repaired = patient.repair().unwrap();
        let is_changed = repaired.undo.is_some() && patient.undo().exists();
        assert_eq!(is_changed, image.damaged_from.is_some(), "{}: {:?}", image.file, repaired.mended);
        assert_eq!(repaired.mended.is_empty(), !is_changed, "{}: {:?}", image.file, repaired.mended);
        let report = check::container(patient.container()).unwrap();
        assert!(report.worst() < Some(Severity::Warning), "{}", image.file);
    }
}

/// Others accept what has been repaired, and read the same.
#[test]
fn qemu_reads_what_has_been_repaired() {
    let expected = golden::manifest().into_iter().find(|image| image.file == "base.vhd").unwrap().guest_sha256.unwrap();
    for name in ["no-end-footer.vhd", "footer-511.vhd", "no-first-footer.vhd", "torn-batmap.vhd", "bat-beyond-eof.vhd"]
    {
        let folder = golden::unpack(&[name]);
        let path = folder.path().join(name);
        let repaired = repair::file(&path, &Options::default()).unwrap();
        testkit::peers::qemu_img(&["info", "-f", "vpc", path.to_str().unwrap()]);
        let chain = Chain::open(&path, &vhd_core::ChainOptions::default()).unwrap();
        let ours = guest_sha256(&chain).unwrap();
        assert_eq!(testkit::peers::qemu_sha256(&path), ours, "{name}");
        assert_eq!(ours == expected, repaired.lost.is_empty(), "{name}");
    }
}
