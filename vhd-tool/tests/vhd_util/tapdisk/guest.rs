//! A guest, and a model of what its disk must hold.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;

use testkit::pattern;
use testkit::random::Random;
use testkit::tapdisk::{Disk, Tapdisk};
use vhd_core::{Chain, ChainOptions, Sector, SectorRange};

/// Sectors of a block.
pub(super) const BLOCK: u64 = 4096;

/// What opens the chain of an image for a guest.
pub(super) type Opener = fn(&Path) -> io::Result<Box<dyn Disk>>;

/// What a disk holds: the blocks that have been written to. All others hold zeros.
#[derive(Clone, Debug)]
pub(super) struct Content {
    sectors: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
}

impl Content {
    pub(super) fn new(sectors: u64) -> Self {
        // Nothing was written to the first and the last.
        let blocks = [0, (sectors - 1) / BLOCK].map(|block| (block, zeros(sectors, block)));
        Self { sectors, blocks: blocks.into() }
    }

    /// Makes the disk larger.
    pub(super) fn grow(&mut self, sectors: u64) {
        self.sectors = sectors;
        for (block, bytes) in &mut self.blocks {
            bytes.resize(zeros(sectors, *block).len(), 0);
        }
        let last = (sectors - 1) / BLOCK;
        self.blocks.entry(last).or_insert_with(|| zeros(sectors, last));
    }

    /// Takes over blocks of another disk.
    pub(super) fn take(&mut self, other: &Self, blocks: Range<u64>) {
        self.blocks.extend(other.blocks.range(blocks).map(|(&block, bytes)| (block, bytes.clone())));
    }

    /// Also looks at a block that nothing was written to.
    pub(super) fn expect_zeros(&mut self, block: u64) {
        self.blocks.entry(block).or_insert_with(|| zeros(self.sectors, block));
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) {
        for (sector, bytes) in (sector..).zip(bytes.chunks(512)) {
            let block = self.blocks.entry(sector / BLOCK).or_insert_with(|| zeros(self.sectors, sector / BLOCK));
            block[(sector % BLOCK * 512) as usize..][..512].copy_from_slice(bytes);
        }
    }

    /// Compares with what a reader finds.
    fn assert(&self, what: &str, mut read: impl FnMut(Range<u64>) -> Vec<u8>) {
        for (block, expected) in &self.blocks {
            let start = block * BLOCK;
            let found = read(start..start + expected.len() as u64 / 512);
            if found != *expected {
                let at = found.chunks(512).zip(expected.chunks(512)).position(|(found, expected)| found != expected);
                panic!("{what}: sector {at:?} of block {block} differs");
            }
        }
    }

    /// Compares with what the library reads from a file.
    pub(super) fn assert_file(&self, what: &str, path: &Path) {
        let chain = Chain::open(path, &ChainOptions::default())
            .unwrap_or_else(|error| panic!("{what}: {}: {error}", path.display()));
        assert_eq!(chain.sectors().0, self.sectors, "{what}: size of {}", path.display());
        self.assert(&format!("{what}: {}, by the library", path.display()), |sectors| {
            let range = SectorRange::between(Sector(sectors.start), Sector(sectors.end));
            let mut bytes = vec![0xee; range.count().bytes().0 as usize];
            chain.read(range, &mut bytes).expect("the chain is readable");
            bytes
        });
    }

    /// Compares with what a tapdisk that is opened for that reads from a file.
    pub(super) fn assert_tapdisk(&self, what: &str, path: &Path) {
        let mut tapdisk = Tapdisk::open(path).unwrap_or_else(|error| panic!("{what}: {}: {error}", path.display()));
        self.assert_disk(what, &mut tapdisk);
    }

    fn assert_disk(&self, what: &str, disk: &mut dyn Disk) {
        assert_eq!(disk.sectors(), self.sectors, "{what}: the size");
        let read = |sectors| disk.read(sectors).expect("the files are readable");
        self.assert(&format!("{what}: as the guest reads it"), read);
    }
}

/// What a block holds that nothing was written to; the last one may be shorter.
fn zeros(sectors: u64, block: u64) -> Vec<u8> {
    vec![0; ((sectors - block * BLOCK).min(BLOCK) * 512) as usize]
}

/// A guest that uses a disk.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) disk: Box<dyn Disk>,
    pub(super) content: Content,
    tag: u16,
}

impl Guest {
    /// Starts on a disk that holds what has been told.
    pub(super) fn start(path: &Path, content: Content) -> Self {
        Self::start_by(|path| Ok(Box::new(Tapdisk::open(path)?)), path, content)
    }

    /// The same by a tapdisk of the caller's.
    pub(super) fn start_by(open: Opener, path: &Path, content: Content) -> Self {
        let disk = open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let tag = content.blocks.values().flat_map(|block| block.chunks(512)).map(|sector| sector[6]).max();
        Self { disk, content, tag: tag.unwrap_or(0).into() }
    }

    pub(super) fn write(&mut self, sectors: Range<u64>) {
        self.write_beside(sectors, &mut || ());
    }

    /// Writes what it has never written before.
    pub(super) fn write_beside(&mut self, sectors: Range<u64>, between: &mut dyn FnMut()) {
        self.tag += 1;
        let range = SectorRange::between(Sector(sectors.start), Sector(sectors.end));
        let bytes = pattern::fill(range, self.tag);
        self.disk.write_beside(sectors.start, &bytes, between).expect("the leaf is writable");
        self.content.write(sectors.start, &bytes);
    }

    /// Fills a block, in two halves.
    pub(super) fn fill(&mut self, block: u64) {
        self.write(block * BLOCK + 2048..(block + 1) * BLOCK);
        self.write(block * BLOCK..block * BLOCK + 2048);
    }

    /// Compares the disk with what it must hold.
    pub(super) fn assert(&mut self, what: &str) {
        self.content.assert_disk(what, &mut *self.disk);
    }

    /// Writes the first sectors of all blocks that it knows, where tapdisk rewrites the bitmaps of full ones.
    pub(super) fn touch(&mut self) {
        let blocks: Vec<u64> = self.content.blocks.keys().copied().collect();
        for block in blocks {
            self.write(block * BLOCK..block * BLOCK + 1);
        }
    }

    /// A range that a guest may write to: a few blocks are written to again and again.
    pub(super) fn somewhere(&self, random: &mut Random) -> Range<u64> {
        let blocks = self.content.sectors.div_ceil(BLOCK);
        let block = [0, 1, 2, blocks / 2, blocks - 2, blocks - 1][random.below(6) as usize];
        let (start, count) = match random.below(5) {
            0 => (0, BLOCK),
            1 => (0, 1 + random.below(64)),
            2 => (BLOCK / 2, BLOCK),
            _ => (random.below(BLOCK), 1 + random.below(300)),
        };
        let start = block * BLOCK + start;
        start..(start + count).min(self.content.sectors)
    }
}
