//! Moving ranges on real file systems, as root.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod refusals;

use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, LazyLock};

use coalesce_worker::{CopyMethod, Move, Transfer, Transferred};
use testkit::filesystem::{FileSystem, MountedImage, Tmpfs};
use vhd_core::{Buffer, ByteCount, Container, FileOffset, FileStorage, MemoryStorage, StorageError};

const SIZE: ByteCount = ByteCount(400 << 20);
/// The length of all test files; not a whole number of blocks.
const LENGTH: usize = (4 << 20) + 1536;

fn file(folder: &Path, name: &str) -> Container {
    let path = folder.join(name);
    fs::write(&path, b"").unwrap();
    Container::new(&path, Arc::new(FileStorage::open_writable_beside(&path).unwrap()))
}

fn memory() -> Container {
    Container::new("memory", Arc::new(MemoryStorage::default()))
}

/// What the source holds: two holes, one of them unaligned, and written zeros from 3 MiB on.
const HOLES: [Range<usize>; 2] = [1 << 20..(1 << 20) + 300_000, (2 << 20) + 512..(2 << 20) + 700_000];
const ZEROS: Range<usize> = (3 << 20)..(3 << 20) + 500_000;

static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes: Vec<u8> = (0..LENGTH).map(|i| (i / 512 * 7 + i % 251) as u8 | 1).collect();
    for range in [ZEROS].into_iter().chain(HOLES) {
        bytes[range].fill(0);
    }
    bytes
});

fn fill_source(source: &Container) {
    let mut at = 0;
    for end in HOLES.map(|hole| hole.start).into_iter().chain([LENGTH]) {
        source.write_at(&CONTENT[at..end], FileOffset(at as u64)).unwrap();
        at = HOLES.iter().find(|hole| hole.start == end).map_or(end, |hole| hole.end);
    }
}

/// Clears a file: nothing but a hole, or nothing but the number nine.
fn reset(target: &Container, target_is_hole: bool) {
    target.set_len(ByteCount(0)).unwrap();
    target.set_len(ByteCount(LENGTH as u64)).unwrap();
    if !target_is_hole {
        target.write_at(&[9; LENGTH], FileOffset(0)).unwrap();
    }
}

/// Moves a range and checks all of the target.
fn moved(transfer: &Transfer, range: &Move<'_>, buffer: &mut [u8]) -> Result<Transferred, StorageError> {
    reset(range.target, range.target_is_hole);
    let done = transfer.move_range(range, buffer)?;
    let mut expected = vec![if range.target_is_hole { 0 } else { 9 }; LENGTH];
    let [from, to, length] = [range.from.0, range.to.0, range.length.0].map(|n| n as usize);
    expected[to..to + length].copy_from_slice(&CONTENT[from..from + length]);
    let mut found = vec![0; LENGTH];
    range.target.read_at(&mut found, FileOffset(0)).unwrap();
    if found != expected {
        let wrong = (0..LENGTH).find(|&at| found[at] != expected[at]);
        panic!("{transfer:?} {range:?} {done:?}: wrong at {wrong:?}");
    }
    assert_eq!(range.target.len().unwrap().0 as usize, LENGTH);
    assert_eq!(done.total(), range.length, "{done:?}");
    Ok(done)
}

const RANGES: [(usize, usize, usize); 9] = [
    (0, 0, 4 << 20),
    (4096, 1 << 20, 2 << 20),
    (512, 512, 3 << 20),
    (512, 4096 + 512, 1024),
    (512, 1024, 3 << 20),
    (3 << 20, 512, 600_064),
    (1 << 20, 0, 65_536),
    (4096 - 512, 4096 - 512, 1024),
    (LENGTH - 70_144, LENGTH - 70_144, 70_144),
];

/// Every method, every kind of range, into holes and into data, with and without a search for zeros.
fn moves_everything(folder: &Path, shares: bool) {
    let (source, target) = (file(folder, "source"), file(folder, "target"));
    fill_source(&source);
    let mut buffer = Buffer::default();
    for method in CopyMethod::ALL.into_iter().filter(|&method| shares || method != CopyMethod::Reflink) {
        for detect_zeroes in [false, true] {
            let transfer = Transfer::new(method, detect_zeroes);
            for (target_is_hole, (from, to, length)) in [true, false].into_iter().flat_map(|h| RANGES.map(|r| (h, r))) {
                let [from, to] = [from, to].map(|at| FileOffset(at as u64));
                let length = ByteCount(length as u64);
                let range = Move { source: &source, from, target: &target, to, length, target_is_hole };
                for size in [buffer.len(), 65_536 + 512] {
                    let done = moved(&transfer, &range, &mut buffer[..size]).unwrap();
                    let congruent = from.0 % 4096 == to.0 % 4096 && length.0 > 8192;
                    let is_hole = from.0 as usize == HOLES[0].start;
                    let sharing = matches!(method, CopyMethod::Auto | CopyMethod::Reflink)
                        && shares
                        && congruent
                        && !(detect_zeroes && is_hole);
                    assert_eq!(done.shared.0 > 0, sharing, "{method} {range:?} {done:?}");
                    let copying = method == CopyMethod::CopyFileRange && !is_hole;
                    assert_eq!(done.copied.0 > 0, copying, "{method} {range:?} {done:?}");
                    assert!(!sharing || done.written.0 < 8192, "{range:?} {done:?}");
                }
            }
        }
    }
}

#[test]
fn ext4_moves_everything() {
    moves_everything(MountedImage::new(FileSystem::Ext4, SIZE).path(), false);
}

#[test]
fn xfs_moves_everything() {
    moves_everything(MountedImage::new(FileSystem::Xfs, SIZE).path(), true);
}

#[test]
fn btrfs_moves_everything() {
    moves_everything(MountedImage::new(FileSystem::Btrfs, SIZE).path(), true);
}

#[test]
fn tmpfs_moves_everything() {
    moves_everything(Tmpfs::new(ByteCount(64 << 20)).path(), false);
}

#[test]
fn memory_and_files_are_read_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = file(folder.path(), "file");
    let mut buffer = Buffer::default();
    for (source, target) in [(memory(), memory()), (file.clone(), memory()), (memory(), file)] {
        fill_source(&source);
        for (detect_zeroes, (from, to, length)) in [true, false].into_iter().flat_map(|d| RANGES.map(|r| (d, r))) {
            let [from, to] = [from, to].map(|at| FileOffset(at as u64));
            let length = ByteCount(length as u64);
            let range = Move { source: &source, from, target: &target, to, length, target_is_hole: false };
            let done = moved(&Transfer::new(CopyMethod::Auto, detect_zeroes), &range, &mut buffer).unwrap();
            assert_eq!(done.written.0 + done.holes.0, length.0);
            if length.0 < 16_384 || from.0 as usize == HOLES[0].start {
                continue;
            }
            for method in [CopyMethod::Reflink, CopyMethod::CopyFileRange] {
                let outcome = Transfer::new(method, detect_zeroes).move_range(&range, &mut buffer);
                if method == CopyMethod::CopyFileRange || from.0 % 4096 == to.0 % 4096 {
                    assert_eq!(outcome.unwrap_err().source.kind(), ErrorKind::Unsupported, "{method}");
                }
            }
        }
    }
}

/// The bytes that `filefrag` says are shared with another file.
fn shared_by_filefrag(container: &Container) -> u64 {
    let output = Command::new("filefrag").args(["-v", "-s", "-b1"]).arg(container.path()).output();
    let output = output.unwrap_or_else(|error| panic!("filefrag: {error}; run `make setup`, as root"));
    let text = String::from_utf8(output.stdout).unwrap();
    let shared = text.lines().filter(|line| line.contains("shared"));
    shared.map(|line| line.split(':').nth(3).unwrap().trim().parse::<u64>().unwrap()).sum()
}

#[test]
fn what_is_shared_takes_no_space() {
    for kind in [FileSystem::Xfs, FileSystem::Btrfs] {
        let image = MountedImage::new(kind, SIZE);
        let (source, target) = (file(image.path(), "source"), file(image.path(), "target"));
        let length = ByteCount(64 << 20);
        let bytes: Vec<u8> = (0..length.0).map(|i| (i / 512 + i % 509) as u8).collect();
        source.write_at(&bytes, FileOffset(0)).unwrap();
        source.sync().unwrap();
        target.set_len(ByteCount(length.0 + 8192)).unwrap();
        target.sync().unwrap();
        let available = || {
            rustix::fs::sync();
            let answer = rustix::fs::statvfs(image.path()).unwrap();
            answer.f_bfree * answer.f_frsize
        };
        let before = available();
        let range = Move {
            source: &source,
            from: FileOffset(512),
            target: &target,
            to: FileOffset(8192 + 512),
            length: ByteCount(length.0 - 1024),
            target_is_hole: true,
        };
        let done = Transfer::new(CopyMethod::Auto, false).move_range(&range, &mut Buffer::default()).unwrap();
        target.sync().unwrap();
        let shared = ByteCount(length.0 - 8192);
        let written = ByteCount(7168);
        let expected = Transferred { shared, written, reads: 2, writes: 2, requests: 1, ..Transferred::default() };
        assert_eq!(done, expected, "{kind}");
        assert_eq!(shared_by_filefrag(&target), shared.0, "{kind}");
        let taken = before.saturating_sub(available());
        assert!(taken < 2 << 20, "{kind}: {taken} bytes");

        let mut found = vec![0; range.length.0 as usize];
        target.read_at(&mut found, range.to).unwrap();
        assert!(found == bytes[512..bytes.len() - 512]);
        source.write_at(&[0xEE; 4096], FileOffset(4096)).unwrap();
        target.read_at(&mut found[..4096], range.to + ByteCount(3584)).unwrap();
        assert!(found[..4096] == bytes[4096..8192], "{kind}: writing to one is not seen in the other");
    }
}

/// Linux mounts XFS with blocks larger than its pages from 6.12 on.
#[test]
fn larger_blocks_are_found_out() {
    let image = MountedImage::with_options(FileSystem::Xfs, SIZE, &["-bsize=16384"]);
    let (source, target) = (file(image.path(), "source"), file(image.path(), "target"));
    fill_source(&source);
    let transfer = Transfer::new(CopyMethod::Auto, false);
    let range = |from, to| Move {
        source: &source,
        from: FileOffset(from),
        target: &target,
        to: FileOffset(to),
        length: ByteCount(1 << 20),
        target_is_hole: true,
    };
    let done = moved(&transfer, &range(4096, 16_384 + 4096), &mut Buffer::default()).unwrap();
    assert_eq!((done.shared, done.requests), (ByteCount((1 << 20) - 16_384), 2), "asked with 4 KiB, then with 16");
    let done = moved(&transfer, &range(4096, 8192), &mut Buffer::default()).unwrap();
    assert_eq!((done.shared, done.requests), (ByteCount(0), 0), "remembered");
    assert!(moved(&transfer, &range(8192, 8192), &mut Buffer::default()).unwrap().shared.0 > 0);
}

fn whole<'a>(source: &'a Container, target: &'a Container) -> Move<'a> {
    let (from, to) = (FileOffset(0), FileOffset(0));
    Move { source, from, target, to, length: ByteCount(1 << 20), target_is_hole: false }
}

#[test]
fn holes_stay_holes() {
    let images = FileSystem::ALL.map(|kind| MountedImage::new(kind, SIZE));
    let tmpfs = Tmpfs::new(ByteCount(64 << 20));
    for folder in images.iter().map(MountedImage::path).chain([tmpfs.path()]) {
        let (source, target) = (file(folder, "source"), file(folder, "target"));
        fill_source(&source);
        source.sync().unwrap();
        let space = |container: &Container| {
            container.sync().unwrap();
            fs::metadata(container.path()).unwrap().blocks() * 512
        };
        let holes = [HOLES[0].len() as u64, HOLES[1].len() as u64, 0];
        for method in CopyMethod::ALL.into_iter().filter(|&method| method != CopyMethod::Reflink) {
            for (detect_zeroes, target_is_hole) in [(false, true), (false, false), (true, true), (true, false)] {
                let length = ByteCount(4 << 20);
                let range = Move { length, target_is_hole, ..whole(&source, &target) };
                moved(&Transfer::new(method, detect_zeroes), &range, &mut Buffer::default()).unwrap();
                let zeros = if detect_zeroes { ZEROS.len() as u64 } else { 0 };
                let most = LENGTH as u64 - holes.iter().sum::<u64>() - zeros + 8 * 4096;
                let least = if target_is_hole { most - (64 << 10) } else { most - (80 << 10) };
                let found = space(&target);
                let what = format!("{} {method} {detect_zeroes} {target_is_hole}", folder.display());
                assert!(found <= most, "{what}: {found} bytes, at most {most}");
                assert!(found >= least, "{what}: {found} bytes, at least {least}");
            }
        }
    }
}

#[test]
fn threads_move_side_by_side() {
    const PIECE: usize = 128 * 1024;
    let images = FileSystem::ALL.map(|kind| MountedImage::new(kind, SIZE));
    for folder in images.iter().map(MountedImage::path) {
        let (source, target) = (file(folder, "source"), file(folder, "target"));
        fill_source(&source);
        for method in [CopyMethod::Auto, CopyMethod::CopyFileRange, CopyMethod::ReadWrite] {
            reset(&target, true);
            let transfer = Transfer::new(method, false);
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let (transfer, source, target) = (&transfer, &source, &target);
                    scope.spawn(move || {
                        let mut buffer = Buffer::default();
                        for at in (0..LENGTH).step_by(PIECE).skip(thread).step_by(4) {
                            let (from, to) = (FileOffset(at as u64), FileOffset(at as u64));
                            let length = ByteCount(PIECE.min(LENGTH - at) as u64);
                            let range = Move { source, from, target, to, length, target_is_hole: true };
                            transfer.move_range(&range, &mut buffer).unwrap();
                        }
                    });
                }
            });
            let mut found = vec![0; LENGTH];
            target.read_at(&mut found, FileOffset(0)).unwrap();
            assert!(found == *CONTENT, "{} {method}", folder.display());
        }
    }
}

#[test]
fn a_source_that_ends_too_soon_is_an_error() {
    let tmpfs = Tmpfs::new(ByteCount(64 << 20));
    let (source, target) = (file(tmpfs.path(), "source"), file(tmpfs.path(), "target"));
    source.set_len(ByteCount(1 << 20)).unwrap();
    for method in [CopyMethod::Auto, CopyMethod::CopyFileRange, CopyMethod::ReadWrite] {
        let range = Move { length: ByteCount((1 << 20) + 512), ..whole(&source, &target) };
        let error = Transfer::new(method, false).move_range(&range, &mut Buffer::default()).unwrap_err();
        assert_eq!(error.source.kind(), ErrorKind::UnexpectedEof, "{method}: {error}");
    }
}

#[test]
fn methods_have_names() {
    for method in CopyMethod::ALL {
        assert_eq!(method.to_string().parse(), Ok(method));
    }
    assert!("reflnk".parse::<CopyMethod>().unwrap_err().to_string().contains("copy-file-range"));
}
