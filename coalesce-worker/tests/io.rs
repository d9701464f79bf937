//! What a merge reads and writes by system calls, in bytes, against the least that is possible.
//!
//! Alone in its process: the kernel counts for the process as a whole.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use coalesce_worker::{Coalesce, Direction, Request};
use testkit::{guest_sha256, pattern, scratch, worker};
use vhd_core::{
    BlockSize, ByteCount, Chain, ChainOptions, Existing, NewImage, NewKind, Sector, SectorCount, SectorRange, Volume,
    create_file,
};

const DISK: ByteCount = ByteCount(8 << 30);
const LEVELS: u16 = 10;

/// Bytes that system calls of this process have read and written so far.
fn counted() -> (u64, u64) {
    let text = fs::read_to_string("/proc/self/io").unwrap();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    (field("rchar:"), field("wchar:"))
}

/// Writes one level: scattered 4 KiB pieces and one whole block; gives what it has written.
fn write_level(path: &Path, level: u16) -> Vec<SectorRange> {
    let volume = Volume::open(path, &ChainOptions::default()).unwrap();
    let pages = DISK.0 / 4096;
    let mut ranges = vec![SectorRange::new(Sector(u64::from(level) * 4096), SectorCount(4096))];
    let mut random = u64::from(level) + 1;
    for _ in 0..700 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ranges.push(SectorRange::new(Sector((random >> 20) % pages * 8), SectorCount(8)));
    }
    for &range in &ranges {
        volume.write(range, &pattern::fill(range, level)).unwrap();
    }
    volume.close().unwrap();
    ranges
}

#[test]
fn each_surviving_sector_is_read_and_written_once() {
    let folder = scratch::folder();
    let path = folder.path().join("leaf.vhd");
    let kind = NewKind::Dynamic { block_size: BlockSize::DEFAULT };
    create_file(&path, &NewImage::new(DISK, kind), Existing::Keep).unwrap();
    let in_base = write_level(&path, 0);
    let mut surviving = BTreeSet::new();
    let mut blocks_of_sources = 0;
    let block = |range: &SectorRange| range.start.0 / 4096;
    for level in 1..=LEVELS {
        worker::snapshot(&path, &folder.path().join(format!("s{level}.vhd"))).unwrap();
        fs::remove_file(folder.path().join(format!("s{level}.vhd"))).unwrap();
        let ranges = write_level(&path, level);
        surviving.extend(ranges.iter().flat_map(|range| range.start.0..range.end.0));
        blocks_of_sources += ranges.iter().map(block).collect::<BTreeSet<_>>().len() as u64;
    }
    let chain = Chain::open(&path, &ChainOptions::default()).unwrap();
    let before = guest_sha256(&chain).unwrap();
    let base = chain.layers()[usize::from(LEVELS)].path().to_path_buf();
    drop(chain);

    let base_blocks: BTreeSet<u64> = in_base.iter().map(block).collect();
    let touched: BTreeSet<u64> = surviving.iter().map(|sector| sector / 4096).collect();
    let data = surviving.len() as u64 * 512;
    let bat = DISK.0 / (2 << 20) * 4;
    let existing = touched.intersection(&base_blocks).count() as u64;
    let least_read = data + (u64::from(LEVELS) + 1) * bat + (blocks_of_sources + existing) * 512;
    let least_written = data + touched.len() as u64 * 512 + bat;

    let request = Request { node: path.clone(), into: Some(base), direction: Direction::Down, keep: true };
    let repository = worker::repository_of(&path, &ChainOptions::default());
    let start = counted();
    let coalesce = Coalesce::prepare(&repository, &request).unwrap();
    let (planned_read, planned_written) = (coalesce.plan().bytes_read().0, coalesce.plan().bytes_written().0);
    let outcome = worker::execute(coalesce).unwrap();
    let end = counted();
    let (read, written) = (end.0 - start.0, end.1 - start.1);

    println!(
        "data {data}; read {read} (plan {planned_read}, least {least_read}); written {written} (plan {planned_written}, least {least_written})"
    );
    assert_eq!(outcome.moved.data.0, data);
    assert!(read as f64 <= 1.05 * least_read as f64, "read {read}, the least is {least_read}");
    assert!(written as f64 <= 1.05 * least_written as f64, "written {written}, the least is {least_written}");
    assert!(read.abs_diff(planned_read) as f64 <= 0.02 * read as f64, "read {read}, planned {planned_read}");
    assert!(
        written.abs_diff(planned_written) as f64 <= 0.02 * written as f64,
        "written {written}, planned {planned_written}"
    );

    let chain = Chain::open(&path, &ChainOptions::default()).unwrap();
    assert_eq!(guest_sha256(&chain).unwrap(), before);
}
