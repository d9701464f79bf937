//! Others read what we write, and we read what they write.

use std::fs;
use std::path::Path;

use testkit::peers::{qemu_img, qemu_io, qemu_sha256, vhdi_sha256};
use testkit::{golden, guest_sha256, pattern, sha256};
use vhd_core::check::{self, Severity};
use vhd_core::{
    BlockSize, ByteCount, Chain, ChainOptions, Existing, Image, Lock, NewImage, NewKind, SectorCount, Volume,
    create_file,
};

use super::sectors;

fn hash(path: &Path) -> String {
    guest_sha256(&Chain::open(path, &ChainOptions::default()).unwrap()).unwrap()
}

fn write_scattered(path: &Path, tag: u16, step: u64) {
    let volume = Volume::open(path, &ChainOptions::default()).unwrap();
    for start in (0..volume.sectors().0 - 64).step_by(step as usize) {
        // libvhdi misreads runs that are not multiples of 8 sectors.
        let range = sectors(start / 8 * 8, 8 * (1 + start % 7));
        volume.write(range, &pattern::fill(range, tag)).unwrap();
    }
    volume.close().unwrap();
}

#[test]
fn qemu_and_libvhdi_read_our_dynamic_and_fixed_images() {
    let folder = tempfile::tempdir().unwrap();
    for (name, size, kind) in [
        ("dynamic.vhd", 64 << 20, NewKind::Dynamic { block_size: BlockSize::DEFAULT }),
        ("odd.vhd", (64 << 20) + 512 * 77, NewKind::Dynamic { block_size: BlockSize::DEFAULT }),
        ("small-blocks.vhd", 16 << 20, NewKind::Dynamic { block_size: BlockSize::new(512 << 10).unwrap() }),
        ("fixed.vhd", 16 << 20, NewKind::Fixed),
    ] {
        let path = folder.path().join(name);
        create_file(&path, &NewImage::new(ByteCount(size), kind), Existing::Keep).unwrap();
        write_scattered(&path, 1, 1000);
        let ours = hash(&path);
        assert_eq!(qemu_sha256(&path), ours, "{name} by qemu");
        // libvhdi reads the ends of blocks of other sizes as zeros.
        if name != "small-blocks.vhd" {
            assert_eq!(vhdi_sha256(&[&path]), ours, "{name} by libvhdi");
        }
    }
}

#[test]
fn libvhdi_reads_our_chains() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let kind = NewKind::Dynamic { block_size: BlockSize::DEFAULT };
    create_file(&path("v.vhd"), &NewImage::new(ByteCount(32 << 20), kind), Existing::Keep).unwrap();
    for level in 1..4 {
        write_scattered(&path("v.vhd"), level, 900 * u64::from(level));
        testkit::worker::snapshot(&path("v.vhd"), &path(&format!("s{level}.vhd"))).unwrap();
    }
    write_scattered(&path("v.vhd"), 9, 5000);
    for name in ["v.vhd", "s1.vhd", "s2.vhd", "s3.vhd"] {
        let chain = Chain::open(&path(name), &ChainOptions::default()).unwrap();
        let paths: Vec<_> = chain.layers().iter().map(vhd_core::Layer::path).collect();
        assert_eq!(vhdi_sha256(&paths), hash(&path(name)), "{name}");
    }
}

#[test]
fn we_read_and_go_on_writing_what_qemu_made() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("q.vhd");
    let name = path.to_str().unwrap();
    for subformat in ["dynamic", "fixed"] {
        let option = format!("subformat={subformat},force_size=on");
        qemu_img(&["create", "-q", "-f", "vpc", "-o", &option, name, "32M"]);
        qemu_io("vpc", &path, "write -q -P 0x5a 3M 300k");
        qemu_io("vpc", &path, "write -q -P 0x5b 20000k 4k");
        assert_eq!(hash(&path), qemu_sha256(&path), "{subformat} as made");
        write_scattered(&path, 3, 3000);
        assert_eq!(hash(&path), qemu_sha256(&path), "{subformat} as continued");
        qemu_io("vpc", &path, "write -q -P 0x5c 9M 64k");
        assert_eq!(hash(&path), qemu_sha256(&path), "{subformat} as continued by qemu");
        let report = check::file(&path).unwrap();
        assert!(report.worst() < Some(Severity::Warning), "{:?}", report.findings());
        fs::remove_file(&path).unwrap();
    }
}

/// qemu knows nothing of the batmap and puts its first block there.
#[test]
fn a_batmap_that_qemu_has_overwritten_is_done_without() {
    let folder = golden::unpack(&["empty-10m.vhd"]);
    let path = folder.path().join("empty-10m.vhd");
    qemu_io("vpc", &path, "write -q -P 0x11 0 1M");
    assert!(Image::open(&path, Lock::None).unwrap().batmap_overwritten());
    let codes: Vec<_> = check::file(&path).unwrap().findings().iter().map(|finding| finding.code).collect();
    assert_eq!(codes, ["batmap-lost"]);
    let expected = sha256(&[vec![0x11; 1 << 20], vec![0; 9 << 20]].concat());
    assert_eq!(hash(&path), expected);

    let volume = Volume::open(&path, &ChainOptions::default()).unwrap();
    let range = sectors(4096, SectorCount(4096).0);
    volume.write(range, &pattern::fill(range, 2)).unwrap();
    volume.close().unwrap();
    assert_eq!(hash(&path), qemu_sha256(&path), "and what we write later leaves qemu's block alone");
}
