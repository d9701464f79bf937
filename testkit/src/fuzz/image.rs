//! One file, whatever is in it.

use std::collections::BTreeSet;
use std::sync::Arc;

use vhd_core::{
    BlockIndex, BlockSize, ByteCount, Chain, Container, FileOffset, Image, Layer, MemoryStorage, RawDisk, ReadOnly,
    ReadWrite, Sector, SectorCount, SectorRange, Storage, check,
};

use crate::pattern;
use crate::sparse::SparseStorage;

use super::sealed;

/// How many sectors at either end are looked at.
const EDGE: u64 = 96;
/// The largest disk that is mapped as a whole.
const MAPPED: ByteCount = ByteCount(256 << 20);

/// Opens, checks, reads, maps and writes what the bytes are as a file, as they are and with the checksums set right.
///
/// # Panics
/// Where what is read is not what the tables say, or a write changes anything but what it says.
pub fn image(data: &[u8]) {
    exercise(data);
    let right = sealed(data);
    if right != data {
        exercise(&right);
    }
}

fn exercise(bytes: &[u8]) {
    let memory = Arc::new(SparseStorage::new(bytes));
    let _ = check::container(container(&memory));
    let Some(chain) = open(&memory) else { return };
    let sectors = interesting(&chain);
    let before = read_each(&chain, &sectors);
    check_reads(&chain, &memory, &sectors, &before);
    if chain.size() <= MAPPED {
        check_map(&chain);
    }
    if let Ok(image) = Image::writable_from_container(container(&memory)) {
        check_writes(image, &memory, &sectors, &before);
    }
}

fn container(memory: &Arc<SparseStorage>) -> Container {
    Container::new("image.vhd", memory.clone())
}

/// Opens it; a differencing one on a disk without a sector.
fn open(memory: &Arc<SparseStorage>) -> Option<Chain> {
    let image = Image::<ReadOnly>::from_container(container(memory)).ok()?;
    let _ = (image.regions().count(), image.parent_paths(), image.batmap().is_some(), image.batmap_overwritten());
    let nothing = Container::new("nothing.img", Arc::new(MemoryStorage::default()));
    let base = image.is_differencing().then(|| Layer::Raw(RawDisk::open(nothing).expect("memory has a length")));
    Some(Chain::from_layers(std::iter::once(Layer::Vhd(Box::new(image))).chain(base).collect()))
}

/// The sectors at both ends of the disk, and at both ends of the first blocks.
fn interesting(chain: &Chain) -> BTreeSet<u64> {
    let end = chain.sectors().0;
    let mut sectors: BTreeSet<u64> = (0..end.min(EDGE)).chain(end.saturating_sub(EDGE)..end).collect();
    let Some(image) = chain.top().as_vhd() else { return sectors };
    let size = image.header().map_or(BlockSize::DEFAULT, vhd_core::Header::block_size);
    for (block, _) in image.allocated_blocks().take(16).flatten() {
        let SectorRange { start, end: after } = size.sectors_of(block);
        let edges = (start.0..start.0 + 4).chain(after.0.saturating_sub(4)..after.0);
        sectors.extend(edges.filter(|&sector| sector < end));
    }
    sectors
}

type Read = Option<[u8; 512]>;

fn read_each(chain: &Chain, sectors: &BTreeSet<u64>) -> Vec<Read> {
    sectors
        .iter()
        .map(|&sector| {
            let mut bytes = [0xee; 512];
            chain.read(one(sector), &mut bytes).ok().map(|()| bytes)
        })
        .collect()
}

fn one(sector: u64) -> SectorRange {
    SectorRange::new(Sector(sector), SectorCount(1))
}

/// Reads each sector again by the letter of the specification.
fn check_reads(chain: &Chain, memory: &SparseStorage, sectors: &BTreeSet<u64>, found: &[Read]) {
    let Some(image) = chain.top().as_vhd() else { return };
    for (&sector, found) in sectors.iter().zip(found) {
        if let Some(found) = found {
            let expected = by_the_letter(image, memory, sector);
            assert!(expected.as_ref() == Some(found), "sector {sector} is not what the tables say");
        }
    }
}

/// Source: Microsoft VHD specification, "Block Allocation Table and Data Blocks".
fn by_the_letter(image: &Image<ReadOnly>, memory: &SparseStorage, sector: u64) -> Read {
    fn read<const N: usize>(memory: &SparseStorage, at: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        memory.read_at(&mut bytes, FileOffset(at)).ok().map(|()| bytes)
    }
    let Some(header) = image.header() else { return read(memory, sector * 512) };
    let per_block = u64::from(header.block_size().get()) / 512;
    let entry = header.table_offset().0 + sector / per_block * 4;
    let entry = u32::from_be_bytes(read(memory, entry)?);
    if entry == u32::MAX {
        return Some([0; 512]);
    }
    let (bitmap, within) = (u64::from(entry) * 512, sector % per_block);
    let [bits] = read(memory, bitmap + within / 8)?;
    if bits >> (7 - within % 8) & 1 == 0 {
        return Some([0; 512]);
    }
    read(memory, bitmap + (per_block / 8).next_multiple_of(512) + within * 512)
}

/// Compares a map of the disk, and what is said to be no zeros, with the disk's size.
fn check_map(chain: &Chain) {
    let disk = SectorRange::new(Sector(0), chain.sectors());
    let mut at = disk.start;
    for extent in chain.extents(disk) {
        let Ok(extent) = extent else { return };
        assert!(extent.sectors.start == at && extent.sectors.end > at, "a map has no holes and no overlaps");
        at = extent.sectors.end;
    }
    assert!(at == disk.end, "a map reaches to the end of the disk");
    let mut at = Sector(0);
    for range in chain.data_ranges() {
        let Ok(range) = range else { return };
        assert!(range.start >= at && range.end > range.start && range.end <= disk.end, "data has its order");
        at = range.end;
    }
}

/// Writes some of the sectors, and looks what all of them are then.
fn check_writes(mut image: Image<ReadWrite>, memory: &Arc<SparseStorage>, sectors: &BTreeSet<u64>, before: &[Read]) {
    let mut expected = before.to_vec();
    for (i, &sector) in sectors.iter().enumerate().step_by(7) {
        let content = pattern::sector(Sector(sector), 5);
        let done = match i % 3 {
            0 => image.write_zeroes(one(sector)).map(|()| [0; 512]),
            _ => image.write(one(sector), &content).map(|()| content),
        };
        expected[i] = done.ok();
    }
    if image.flush().is_err() {
        return;
    }
    let sizes = (image.footer().current_size(), ByteCount(512 << 10));
    let closed = image.close();
    if closed.is_ok() {
        let chain = open(memory).expect("what could be written can be opened");
        for ((sector, expected), found) in sectors.iter().zip(&expected).zip(read_each(&chain, sectors)) {
            let starts = |bytes: Read| bytes.map(|bytes| u64::from_be_bytes(bytes[..8].try_into().expect("eight")));
            let (wanted, got) = (starts(*expected), starts(found));
            assert!(expected.is_none() || *expected == found, "sector {sector}: {got:x?} instead of {wanted:x?}");
        }
    }
    let Ok(again) = Image::writable_from_container(container(&Arc::new(memory.copy()))) else { return };
    image = again;
    let _ = image.set_size(sizes.1, ByteCount(0));
    let _ = image.set_size(sizes.0, ByteCount(64 << 10));
    let _ = image.release(&[BlockIndex(0), BlockIndex(1), BlockIndex(7)]);
    let _ = image.mend_batmap();
    let _ = image.trim_tail();
    let _ = image.set_hidden(true);
    let _ = image.close();
}
