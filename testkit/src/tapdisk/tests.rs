use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vhd_core::{Sector, SectorRange};

use super::*;
use crate::layout::assert_layout;
use crate::random::Random;
use crate::{golden, pattern, peers, sha256};

const SECTORS: u64 = headers::BLOCK / SECTOR;

fn data(range: Range<u64>, tag: u16) -> Vec<u8> {
    pattern::fill(SectorRange::between(Sector(range.start), Sector(range.end)), tag)
}

/// A disk of 10 MiB, and what a guest has on it.
struct Small {
    folder: TempDir,
    path: PathBuf,
    content: Vec<u8>,
}

impl Small {
    fn new() -> Self {
        let folder = golden::unpack(&["empty-10m.vhd"]);
        let path = folder.path().join("empty-10m.vhd");
        Self { folder, path, content: vec![0; 10 << 20] }
    }

    fn write(&mut self, tapdisk: &mut Tapdisk, range: Range<u64>, tag: u16) {
        let bytes = data(range.clone(), tag);
        tapdisk.write(range.start, &bytes).unwrap();
        self.content[(range.start * SECTOR) as usize..][..bytes.len()].copy_from_slice(&bytes);
    }

    fn assert_read(&self, tapdisk: &mut Tapdisk) {
        assert!(tapdisk.read(0..tapdisk.sectors()).unwrap() == self.content);
    }

    /// The sector of a block's bitmap.
    fn entry(&self, block: u64) -> u64 {
        let bytes = fs::read(&self.path).unwrap();
        headers::be32(&bytes, 1536 + block as usize * 4).into()
    }

    fn bytes(&self, sectors: Range<u64>) -> Vec<u8> {
        fs::read(&self.path).unwrap()[(sectors.start * SECTOR) as usize..(sectors.end * SECTOR) as usize].to_vec()
    }
}

#[test]
fn it_reads_real_chains_as_libvhdi_does() {
    let names = ["base.vhd", "mid.vhd", "leaf.vhd", "raw-parent.img", "on-raw.vhd", "fixed-4m.vhd", "prealloc.vhd"];
    let folder = golden::unpack(&names);
    let manifest = golden::manifest();
    for name in names.into_iter().filter(|name| name.ends_with(".vhd")) {
        let image = manifest.iter().find(|image| image.file == name).unwrap();
        let path = folder.path().join(name);
        let before = sha256(&fs::read(&path).unwrap());
        let mut tapdisk = Tapdisk::open(&path).unwrap();
        let bytes = tapdisk.read(0..tapdisk.sectors()).unwrap();
        assert_eq!(Some(sha256(&bytes)), image.guest_sha256, "{name}");
        tapdisk.close().unwrap();
        assert_eq!(sha256(&fs::read(&path).unwrap()), before, "{name} is only read");
    }
}

#[test]
fn what_it_writes_other_programs_read() {
    let mut disk = Small::new();
    let mut tapdisk = Tapdisk::open(&disk.path).unwrap();
    for (number, range) in [9000..9100, 0..SECTORS, 5000..13000, 3..4, 20479..20480, 0..20].into_iter().enumerate() {
        disk.write(&mut tapdisk, range, number as u16 + 1);
        disk.assert_read(&mut tapdisk);
        if number == 2 {
            tapdisk.pause().unwrap();
            assert_layout(&disk.path);
            tapdisk.unpause().unwrap();
        }
    }
    tapdisk.close().unwrap();
    assert_layout(&disk.path);
    let expected = sha256(&disk.content);
    assert_eq!(peers::qemu_sha256(&disk.path), expected);
    assert_eq!(peers::vhdi_sha256(&[&disk.path]), expected);
    // Blocks in the order of their first write, with a gap before each but the first, whose place is the end of the tables.
    let first = disk.entry(2);
    assert_eq!([disk.entry(0), disk.entry(1), disk.entry(3)], [first + 4104, first + 4104 * 2, first + 4104 * 3]);
    assert_eq!(first % 8, 7);
}

#[test]
fn a_full_block_is_rewritten_with_zeros_before_its_bitmap() {
    let mut disk = Small::new();
    let mut tapdisk = Tapdisk::open(&disk.path).unwrap();
    disk.write(&mut tapdisk, 0..2 * SECTORS, 1);
    tapdisk.close().unwrap();
    let (first, second) = (disk.entry(0), disk.entry(1));
    let tables = disk.bytes(first - 7..first + 1);
    let file = OpenOptions::new().write(true).open(&disk.path).unwrap();
    file.write_all_at(&[9; 7 * 512], (second - 7) * SECTOR).unwrap();
    let before = |disk: &Small| disk.bytes(second - 7..second);

    let mut tapdisk = Tapdisk::open(&disk.path).unwrap();
    disk.write(&mut tapdisk, SECTORS + 1..SECTORS + 9, 2);
    assert_eq!(before(&disk), [9; 7 * 512], "only the first sector of a block does it");
    disk.write(&mut tapdisk, SECTORS..SECTORS + 1, 3);
    assert_eq!(before(&disk), [0; 7 * 512]);
    assert_eq!(disk.bytes(second..second + 1), [0xff; 512]);
    disk.write(&mut tapdisk, 0..1, 4);
    assert_eq!(disk.bytes(first - 7..first + 1), tables, "the block next to the tables is left alone");
    disk.assert_read(&mut tapdisk);
}

#[test]
fn the_end_footer_goes_and_comes_back() {
    let mut disk = Small::new();
    let footer = disk.bytes(0..1);
    let last = |disk: &Small| {
        let bytes = fs::read(&disk.path).unwrap();
        bytes[bytes.len() - 512..].to_vec()
    };
    let mut tapdisk = Tapdisk::open(&disk.path).unwrap();
    assert_eq!(last(&disk), footer, "until a block is put there");
    disk.write(&mut tapdisk, 0..1, 1);
    assert_eq!(last(&disk), [0; 512]);
    tapdisk.pause().unwrap();
    assert_eq!(last(&disk), footer);
    tapdisk.unpause().unwrap();
    assert_eq!(last(&disk), [0xc7; 512]);
    disk.assert_read(&mut tapdisk);
    drop(tapdisk);
    assert_eq!(last(&disk), [0xc7; 512], "a killed process writes none");
    let mut tapdisk = Tapdisk::open(&disk.path).unwrap();
    disk.assert_read(&mut tapdisk);
}

/// What others write while it has an image open, it does not see, and overwrites.
#[test]
fn tables_are_those_of_when_it_was_opened() {
    let mut disk = Small::new();
    let mut tapdisk = Tapdisk::open(&disk.path).unwrap();
    let mut other = Tapdisk::open(&disk.path).unwrap();
    other.write(0, &data(0..8, 7)).unwrap();
    other.close().unwrap();
    disk.assert_read(&mut tapdisk);
    disk.write(&mut tapdisk, SECTORS..SECTORS + 8, 1);
    assert_eq!(disk.entry(0), u64::from(u32::MAX), "the other's block is lost");
    tapdisk.close().unwrap();
    assert_layout(&disk.path);
}

#[test]
fn it_goes_on_with_the_same_disk_only() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd", "empty-10m.vhd"]);
    let at = |name: &str| folder.path().join(name);
    let mut tapdisk = Tapdisk::open(&at("leaf.vhd")).unwrap();
    let before = tapdisk.read(0..tapdisk.sectors()).unwrap();
    tapdisk.pause().unwrap();
    fs::rename(at("leaf.vhd"), at("other.vhd")).unwrap();
    assert_eq!(tapdisk.unpause().unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(tapdisk.unpause_as(&at("empty-10m.vhd")).unwrap_err().raw_os_error(), Some(ANOTHER_SIZE));
    assert_layout(&at("empty-10m.vhd"));
    tapdisk.unpause_as(&at("other.vhd")).unwrap();
    assert!(tapdisk.read(0..tapdisk.sectors()).unwrap() == before);
    tapdisk.pause().unwrap();
    fs::rename(at("base.vhd"), at("mid.vhd")).unwrap();
    assert!(tapdisk.unpause().is_err(), "the parent is another image");
}

#[test]
fn others_may_act_between_its_writes() {
    let mut disk = Small::new();
    let mut tapdisk = Tapdisk::open(&disk.path).unwrap();
    let path: &Path = &disk.path.clone();
    let mut lengths = Vec::new();
    tapdisk.write_beside(5, &data(5..6, 1), &mut || lengths.push(fs::metadata(path).unwrap().len())).unwrap();
    assert_eq!(lengths.len(), 4, "zeros, BAT, data, bitmap");
    assert!(lengths.iter().all(|length| *length == lengths[0]));
    disk.content[5 * 512..6 * 512].copy_from_slice(&data(5..6, 1));
    disk.assert_read(&mut tapdisk);
    assert_eq!(disk.folder.path().read_dir().unwrap().count(), 1);
}

/// Each image as the two leave it, at each step.
#[test]
fn it_leaves_the_bytes_that_the_real_one_leaves() {
    if !real::is_installed() {
        return;
    }
    for (seed, name) in (0..2).flat_map(|seed| ["empty-10m.vhd", "leaf.vhd", "prealloc.vhd"].map(|name| (seed, name))) {
        let mut random = Random::new(seed);
        let names = ["base.vhd", "mid.vhd", "leaf.vhd", "prealloc.vhd", "empty-10m.vhd"];
        let folders = [golden::unpack(&names), golden::unpack(&names)];
        let paths = folders.each_ref().map(|folder| folder.path().join(name));
        let mut real = real::RealTapdisk::open(&paths[0]).unwrap();
        let mut double = Tapdisk::open(&paths[1]).unwrap();
        assert_eq!(real.sectors(), double.sectors());
        let same = |step: u16, what: &str| {
            let [one, other] = paths.each_ref().map(|path| fs::read(path).unwrap());
            let differs = one.chunks(512).zip(other.chunks(512)).position(|(one, other)| one != other);
            assert_eq!((one.len(), differs), (other.len(), None), "{name}, seed {seed}, step {step}, {what}");
        };
        for step in 0..15 {
            let start = random.below(double.sectors() / 8) * 8;
            let start = if random.chance(80) { start / SECTORS * SECTORS } else { start };
            let end = (start + 1 + random.below(2 * SECTORS)).min(double.sectors());
            let bytes = data(start..end, step + 1);
            real.write_beside(start, &bytes, &mut || ()).unwrap();
            double.write(start, &bytes).unwrap();
            let around = start.saturating_sub(1000)..(end + 1000).min(double.sectors());
            assert!(real.read(around.clone()).unwrap() == double.read(around).unwrap());
            same(step, "while it runs");
            if random.chance(60) {
                real.pause().unwrap();
                double.pause().unwrap();
                same(step, "paused");
                real.unpause().unwrap();
                double.unpause().unwrap();
                same(step, "after a pause");
            }
        }
    }
}
