//! Merges on real file systems, mounted by loop: what they share, copy and leave as holes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use coalesce_worker::{Abort, Budget, Coalesce, CopyMethod, Direction, MergeOptions, Outcome, Repository, Request};
use testkit::filesystem::{FileSystem, MountedImage};
use testkit::{guest_sha256, pattern, scratch, worker};
use vhd_core::check::{self, Severity};
use vhd_core::{
    BlockSize, ByteCount, Chain, ChainOptions, Existing, NewImage, NewKind, Sector, SectorCount, SectorRange, Volume,
    create_file,
};

const BLOCKS: u64 = 12;

fn open(path: &Path) -> Volume {
    Volume::open(path, &ChainOptions::default()).unwrap()
}

fn block(number: u64) -> SectorRange {
    SectorRange::new(Sector(number * 4096), SectorCount(4096))
}

/// A volume with a full block, one of zeros, scattered sectors at odd places, and a hole, over a base with some of it.
fn chain(folder: &Path) -> PathBuf {
    let path = folder.join("v.vhd");
    let kind = NewKind::Dynamic { block_size: BlockSize::DEFAULT };
    create_file(&path, &NewImage::new(ByteCount(64 << 20), kind), Existing::Keep).unwrap();
    let volume = open(&path);
    volume.write(block(1), &pattern::fill(block(1), 1)).unwrap();
    volume.write(block(2), &pattern::fill(block(2), 1)).unwrap();
    volume.close().unwrap();
    worker::snapshot(&path, &folder.join("s.vhd")).unwrap();
    fs::remove_file(folder.join("s.vhd")).unwrap();
    let volume = open(&path);
    for number in [0, 2].into_iter().chain(4..BLOCKS) {
        volume.write(block(number), &pattern::fill(block(number), 2)).unwrap();
    }
    volume.write(block(3), &vec![0; 2 << 20]).unwrap();
    for i in 0..50 {
        let range = SectorRange::new(Sector(BLOCKS * 4096 + i * 37), SectorCount(1 + i % 11));
        volume.write(range, &pattern::fill(range, 3)).unwrap();
    }
    volume.close().unwrap();
    path
}

fn merge(volume: &Path, direction: Direction, method: CopyMethod, detect_zeroes: bool) -> Outcome {
    let (repository, _) = Repository::open(volume.parent().unwrap(), ChainOptions::default()).unwrap();
    let (budget, abort) = (Budget::default(), Abort::new());
    let request = Request { node: volume.into(), into: None, direction, keep: false };
    let options = MergeOptions {
        threads: None,
        progress: &|_| {},
        merged: &|| (),
        budget: &budget,
        abort: &abort,
        method,
        detect_zeroes,
        checkpoint_every: None,
    };
    Coalesce::prepare(&repository, &request).unwrap().execute(&options).unwrap()
}

fn hash(path: &Path) -> String {
    guest_sha256(&Chain::open(path, &ChainOptions::default()).unwrap()).unwrap()
}

/// Merges such a chain in every way that the folder's file system has, and gives what the last merge by `Auto` did.
fn every_way(folder: &Path, shares: bool) {
    for (number, direction) in [Direction::Down, Direction::Up].into_iter().enumerate() {
        for (method, detect_zeroes) in [
            (CopyMethod::Auto, false),
            (CopyMethod::Auto, true),
            (CopyMethod::ReadWrite, false),
            (CopyMethod::CopyFileRange, true),
        ] {
            let folder = folder.join(format!("{number}-{method}-{detect_zeroes}"));
            fs::create_dir(&folder).unwrap();
            let volume = chain(&folder);
            let before = hash(&volume);
            let outcome = merge(&volume, direction, method, detect_zeroes);
            let context = format!("{direction:?} by {method}, zeros {detect_zeroes}: {:?}", outcome.moved);
            assert_eq!(hash(&volume), before, "{context}");
            assert_eq!(Chain::open(&volume, &ChainOptions::default()).unwrap().layers().len(), 1, "{context}");
            let report = check::file(&volume).unwrap();
            assert!(report.worst() < Some(Severity::Warning), "{context}: {:?}", report.findings());
            let by = outcome.moved.by;
            assert_eq!(by.total(), outcome.moved.data, "{context}");
            match (method, shares) {
                (CopyMethod::Auto, true) => {
                    let most = if direction == Direction::Down { 9 << 20 } else { 1 << 20 };
                    assert!(by.shared.0 >= most, "{context}");
                }
                (CopyMethod::CopyFileRange, _) => assert!(by.copied.0 > 0, "{context}"),
                _ => assert_eq!(by.shared.0, 0, "{context}"),
            }
            if detect_zeroes && direction == Direction::Down {
                assert!(by.holes.0 >= 2 << 20, "{context}");
                let taken = fs::metadata(&volume).unwrap().blocks() * 512;
                assert!(taken < (BLOCKS + 1) << 21, "{taken} bytes: {context}");
            }
            fs::remove_dir_all(&folder).unwrap();
        }
    }
}

#[test]
fn merges_on_ext4_copy() {
    let mounted = MountedImage::new(FileSystem::Ext4, ByteCount(300 << 20));
    every_way(mounted.path(), false);
}

#[test]
fn merges_on_xfs_share_blocks() {
    let mounted = MountedImage::new(FileSystem::Xfs, ByteCount(400 << 20));
    every_way(mounted.path(), true);
}

#[test]
fn merges_on_btrfs_share_blocks() {
    let mounted = MountedImage::new(FileSystem::Btrfs, ByteCount(400 << 20));
    every_way(mounted.path(), true);
}

#[test]
fn merges_in_memory_copy() {
    every_way(scratch::folder().path(), false);
}
