//! The shapes of the chains that are measured.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use vhd_core::{
    BlockIndex, BlockSize, ByteCount, Chain, ChainSource, MAX_VIRTUAL_SIZE, ReadError, Sector, SectorCount, SectorRange,
};

use crate::image::{create_base, create_child, hide, write_random};
use crate::random::Random;

/// The length of a scattered write: 4 KiB.
pub const PAGE: SectorCount = SectorCount(8);

const GIB: u64 = 1 << 30;
/// The disk of the scattered writes.
const WIDE_DISK: ByteCount = ByteCount(8 * GIB);
/// The disk of what is read at random or overlaps from level to level.
const NARROW_DISK: ByteCount = ByteCount(GIB);
/// Levels that are merged at once.
const LEVELS: usize = 10;
/// The disk of the hidden levels, what each of them has written, and the size of one write.
const LEVELED_DISK: ByteCount = ByteCount(256 << 20);
const LEVEL: u64 = 8 << 20;
const PIECE: SectorCount = SectorCount(128);
/// The depth of the deep chain.
const DEPTH: usize = 30;

/// A chain to be measured; each has a count that tells how much of it there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A child with scattered writes over an empty parent of 8 GiB.
    ScatteredNew,
    /// The same over a parent that has all blocks.
    ScatteredExisting,
    /// A child with full blocks over an empty parent.
    FullBlocks,
    /// Ten children, each with scattered writes of its own, over a parent of 1 GiB with as many.
    TenLevels,
    /// Scattered writes spread over 30 images.
    Deep,
    /// The same writes in one image.
    Flat,
    /// A single image with full blocks.
    SingleFull,
    /// A single image of 8 GiB with scattered writes.
    SingleScattered,
    /// A chain of as many empty images of 2040 GiB, the largest there are.
    Largest,
    /// A hidden base, as many hidden children of it with 8 MiB each, and a volume.
    HiddenLevels,
    /// As many trees: a hidden base, a hidden child with a page of its own, and a volume.
    Trees,
    /// Two trees: a hidden base, a hidden child with as many full blocks, and a volume.
    TwoTrees,
}

impl Shape {
    /// All, with their names on the command line.
    pub const NAMED: [(&str, Self); 12] = [
        ("scattered-new", Self::ScatteredNew),
        ("scattered-existing", Self::ScatteredExisting),
        ("full-blocks", Self::FullBlocks),
        ("ten-levels", Self::TenLevels),
        ("deep", Self::Deep),
        ("flat", Self::Flat),
        ("single-full", Self::SingleFull),
        ("single-scattered", Self::SingleScattered),
        ("largest", Self::Largest),
        ("hidden-levels", Self::HiddenLevels),
        ("trees", Self::Trees),
        ("two-trees", Self::TwoTrees),
    ];

    /// Makes it in a folder and names its images, base first.
    ///
    /// # Panics
    /// If the folder has no room, or the disk has fewer pages than `count` asks to be written.
    pub fn make(self, folder: &Path, count: usize) -> Vec<PathBuf> {
        match self {
            Self::ScatteredNew => {
                let paths = stack(folder, WIDE_DISK, 2);
                write_random(&paths[1], &scattered(WIDE_DISK, count, 1), 1);
                paths
            }
            Self::ScatteredExisting => {
                let paths = stack(folder, WIDE_DISK, 2);
                write_random(&paths[0], &first_pages(WIDE_DISK), 0);
                write_random(&paths[1], &scattered(WIDE_DISK, count, 1), 1);
                paths
            }
            Self::FullBlocks => {
                let paths = stack(folder, blocks(count), 2);
                write_random(&paths[1], &full_blocks(count), 1);
                paths
            }
            Self::TenLevels => {
                let paths = stack(folder, NARROW_DISK, LEVELS + 1);
                for (level, path) in paths.iter().enumerate() {
                    write_random(path, &scattered(NARROW_DISK, count, level as u64), level as u64);
                }
                paths
            }
            Self::Deep => layered(folder, DEPTH, count),
            Self::Flat => layered(folder, 1, count),
            Self::SingleFull => {
                let paths = stack(folder, blocks(count), 1);
                write_random(&paths[0], &full_blocks(count), 1);
                paths
            }
            Self::SingleScattered => layered_on(folder, WIDE_DISK, 1, count),
            Self::Largest => stack(folder, MAX_VIRTUAL_SIZE, count),
            Self::HiddenLevels => {
                let paths = tree(folder, "", LEVELED_DISK, count + 2);
                for (level, path) in paths[1..=count].iter().enumerate() {
                    write_random(path, &pieces(LEVELED_DISK, LEVEL / PIECE.bytes().0, level as u64), level as u64);
                }
                paths
            }
            Self::Trees => (0..count)
                .flat_map(|number| {
                    let paths = tree(folder, &format!("{number:05}-"), ByteCount(4 << 20), 3);
                    let page = SectorRange::new(Sector(number as u64 % 1000 * PAGE.0), PAGE);
                    write_random(&paths[1], &[page], number as u64);
                    paths
                })
                .collect(),
            Self::TwoTrees => ["a", "b"]
                .iter()
                .flat_map(|name| {
                    let paths = tree(folder, name, blocks(count), 3);
                    write_random(&paths[1], &full_blocks(count), 1);
                    paths
                })
                .collect(),
        }
    }
}

/// Makes a chain of empty images whose names start with `prefix`, all but the newest hidden; names them base first.
fn tree(folder: &Path, prefix: &str, size: ByteCount, depth: usize) -> Vec<PathBuf> {
    let paths: Vec<PathBuf> = (0..depth).map(|level| folder.join(format!("{prefix}{level:02}.vhd"))).collect();
    create_base(&paths[0], size);
    for pair in paths.windows(2) {
        create_child(&pair[1], &pair[0]);
        hide(&pair[0]);
    }
    paths
}

/// Chooses as many different pieces of a disk.
fn pieces(size: ByteCount, count: u64, seed: u64) -> Vec<SectorRange> {
    let pages = scattered(ByteCount(size.0 / PIECE.0 * PAGE.0), count as usize, seed);
    pages.into_iter().map(|page| SectorRange::new(Sector(page.start.0 / PAGE.0 * PIECE.0), PIECE)).collect()
}

/// Makes a chain of `depth` images over a disk of 1 GiB that share out `writes` scattered writes; names them base first.
///
/// The disk reads the same whatever the depth, but for the bytes in each page.
///
/// # Panics
/// As [`Shape::make`].
pub fn layered(folder: &Path, depth: usize, writes: usize) -> Vec<PathBuf> {
    layered_on(folder, NARROW_DISK, depth, writes)
}

fn layered_on(folder: &Path, size: ByteCount, depth: usize, writes: usize) -> Vec<PathBuf> {
    let paths = stack(folder, size, depth);
    let ranges = scattered(size, writes, 1);
    for (layer, path) in paths.iter().enumerate() {
        let own: Vec<_> = ranges.iter().skip(layer).step_by(depth).copied().collect();
        write_random(path, &own, layer as u64);
    }
    paths
}

/// Makes a chain of empty images and names them, base first.
fn stack(folder: &Path, size: ByteCount, depth: usize) -> Vec<PathBuf> {
    let paths: Vec<PathBuf> = (0..depth).map(|level| folder.join(format!("{level:02}.vhd"))).collect();
    create_base(&paths[0], size);
    for pair in paths.windows(2) {
        create_child(&pair[1], &pair[0]);
    }
    paths
}

fn blocks(count: usize) -> ByteCount {
    ByteCount(count as u64 * BlockSize::DEFAULT.bytes().0)
}

fn full_blocks(count: usize) -> Vec<SectorRange> {
    (0..count as u32).map(|block| BlockSize::DEFAULT.sectors_of(BlockIndex(block))).collect()
}

/// The first page of each block.
fn first_pages(size: ByteCount) -> Vec<SectorRange> {
    let blocks = BlockSize::DEFAULT.blocks_for(size);
    (0..blocks).map(|block| SectorRange::new(Sector(block * BlockSize::DEFAULT.sectors().0), PAGE)).collect()
}

/// Chooses as many different pages of a disk, in no order.
///
/// # Panics
/// If the disk has fewer.
pub fn scattered(size: ByteCount, count: usize, seed: u64) -> Vec<SectorRange> {
    let pages = size.whole_sectors().0 / PAGE.0;
    assert!(count as u64 <= pages, "a disk of {size} bytes has no {count} pages");
    let mut random = Random::new(seed);
    let mut chosen = HashSet::with_capacity(count);
    let mut ranges = Vec::with_capacity(count);
    while ranges.len() < count {
        let page = random.below(pages);
        if chosen.insert(page) {
            ranges.push(SectorRange::new(Sector(page * PAGE.0), PAGE));
        }
    }
    ranges
}

/// Lists the pages of a disk that are data, not zeros, in the order of the disk.
///
/// # Errors
/// As [`Chain::extents`].
pub fn pages_with_data(chain: &Chain) -> Result<Vec<SectorRange>, ReadError> {
    let mut pages = Vec::new();
    for extent in chain.extents(SectorRange::new(Sector(0), chain.sectors())) {
        let extent = extent?;
        if extent.source != ChainSource::Zero {
            pages.extend(extent.sectors.split_at_multiples(PAGE));
        }
    }
    Ok(pages)
}
