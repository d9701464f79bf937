//! A disk that is full in mid-merge.

use std::path::Path;

use testkit::filesystem::Tmpfs;
use testkit::{pattern, scene};
use vhd_core::{
    BlockSize, ByteCount, ChainOptions, Existing, NewImage, NewKind, Sector, SectorCount, SectorRange, Volume,
    create_file,
};

use crate::program::vhd_tool;

const BLOCK: u64 = 4096;

fn write(volume: &Path, sectors: impl Iterator<Item = SectorRange>, tag: u16) {
    let volume = Volume::open(volume, &ChainOptions::default()).unwrap();
    for range in sectors {
        volume.write(range, &pattern::fill(range, tag)).unwrap();
    }
    volume.close().unwrap();
}

/// A base with a little in each of its blocks, and a snapshot and a volume on it, full: what is merged goes into the holes
/// of the base, which no plan can foresee.
#[test]
fn a_disk_that_is_full_in_mid_merge_is_survived_and_the_merge_goes_on() {
    let disk = Tmpfs::new(ByteCount(48 << 20));
    let path = |name: &str| disk.path().join(name);
    let run = |arguments: &[&str]| vhd_tool(arguments).current_dir(disk.path()).output().unwrap();
    let kind = NewKind::Dynamic { block_size: BlockSize::DEFAULT };
    create_file(&path("v.vhd"), &NewImage::new(ByteCount(64 << 20), kind), Existing::Keep).unwrap();
    write(&path("v.vhd"), (0..14).map(|block| SectorRange::new(Sector(block * BLOCK), SectorCount(8))), 1);
    assert!(run(&["snapshot", "v.vhd", "s.vhd"]).status.success());
    write(&path("v.vhd"), (0..14).map(|block| SectorRange::new(Sector(block * BLOCK), SectorCount(BLOCK))), 2);
    assert!(run(&["delete", "s.vhd"]).status.success());
    let before = scene::volumes(disk.path());
    let layers = scene::layers(&path("v.vhd"));
    let base = layers[1].to_str().unwrap();
    let merge = ["coalesce", "v.vhd", "--into", base, "--threads", "1", "--copy-method", "read-write"];

    let output = run(&merge);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(text.contains("No space left"), "{text}");
    assert!(scene::volumes(disk.path()) == before);
    assert_eq!(scene::layers(&path("v.vhd")), layers);
    scene::check(disk.path());
    // Not even a snapshot, which has no room either, loses anything.
    let _ = run(&["snapshot", "v.vhd", "t.vhd"]);
    assert!(scene::volumes(disk.path())["v.vhd"] == before["v.vhd"]);

    disk.leave_free(ByteCount(150 << 20));
    if path("t.vhd").exists() {
        assert!(run(&["delete", "t.vhd"]).status.success());
    }
    let dry = run(&["coalesce", "v.vhd", "--into", base, "--dry-run"]);
    assert!(dry.status.success());
    let output = run(&merge);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(scene::volumes(disk.path()) == before);
    assert_eq!(scene::depth(&path("v.vhd")), 1);
    scene::check(disk.path());
    assert_eq!(scene::state_files(disk.path()), <[String; 0]>::default());
}
