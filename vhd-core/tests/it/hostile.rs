//! Files made to do harm, and parents that lead astray: an error that says what and where, and nothing is changed.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{fs, io};

use proptest::prelude::*;
use testkit::golden;
use vhd_core::check;
use vhd_core::{
    BlockSize, ByteCount, Chain, ChainError, ChainOptions, Container, Existing, Files, Folder, Image, Layer, Lock,
    MemoryStorage, NewImage, NewKind, ParentIdentity, ParentLink, ParentPlaces, ReadOnly, Timestamp, Uuid, create_file,
};

use super::{container, new_image, sectors};

fn small() -> Vec<u8> {
    let memory = new_image(256 << 10, NewKind::Dynamic { block_size: BlockSize::new(16 << 10).unwrap() });
    let image = super::open_writable(&memory);
    for start in [0, 40, 100, 501] {
        image.write(sectors(start, 9), &testkit::pattern::fill(sectors(start, 9), 1)).unwrap();
    }
    image.close().unwrap();
    memory.to_vec()
}

/// Opens, reads, maps, checks and writes whatever `bytes` is. Only returning counts.
fn exercise(bytes: Vec<u8>) {
    let memory = Arc::new(MemoryStorage::new(bytes));
    drop(check::container(container(&memory)));
    if let Ok(image) = Image::<ReadOnly>::from_container(container(&memory))
        && !image.is_differencing()
    {
        let chain = Chain::from_layers(vec![Layer::Vhd(Box::new(image))]);
        let end = chain.sectors().0.min(4096);
        let mut buf = vec![0; 512];
        for sector in 0..end {
            drop(chain.read(sectors(sector, 1), &mut buf));
        }
        assert!(chain.extents(sectors(0, end)).take(5000).count() <= 5000);
    }
    if let Ok(mut image) = Image::writable_from_container(container(&memory)) {
        let end = image.sectors().0.min(4096);
        for sector in (0..end).step_by(17) {
            drop(image.write(sectors(sector, 1), &[5; 512]));
        }
        drop(image.flush());
        drop(image.set_size(ByteCount(512 << 10), ByteCount(0)));
        drop(image.close());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_crash_us(
        changes in prop::collection::vec((0_usize..3072, prop_oneof![Just(0_u8), Just(0xff), any::<u8>()]), 1..8),
        words in prop::collection::vec((0_usize..400, prop_oneof![Just(0_u64), Just(u64::MAX), Just(1 << 31), Just(512), any::<u64>()]), 0..3),
        seal_it in any::<bool>(),
        cut in prop::option::of(0_usize..6000),
    ) {
        let mut bytes = small();
        for (at, word) in words {
            bytes[at * 8..at * 8 + 8].copy_from_slice(&word.to_be_bytes());
        }
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        if seal_it {
            testkit::seal(&mut bytes[0..512], 64);
            testkit::seal(&mut bytes[512..1536], 36);
            let end = bytes.len() - 512;
            bytes.copy_within(0..512, end);
        }
        if let Some(cut) = cut {
            bytes.truncate(bytes.len() - cut.min(bytes.len()));
        }
        exercise(bytes);
    }
}

/// Changes one big-endian field of the header, with the checksum set right; gives the error.
fn with_header_field(at: usize, value: &[u8]) -> String {
    let mut bytes = small();
    bytes[512 + at..512 + at + value.len()].copy_from_slice(value);
    testkit::seal(&mut bytes[512..1536], 36);
    let memory = Arc::new(MemoryStorage::new(bytes));
    let error = Image::<ReadOnly>::from_container(container(&memory)).unwrap_err();
    std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
        .map(|error| format!("{error}: "))
        .collect()
}

#[test]
fn impossible_headers_are_named_by_file_offset_and_reason() {
    for (at, value, reason) in [
        (0, &b"cxsparsf"[..], "cookie"),
        (16, &u64::MAX.to_be_bytes(), "BAT at offset 18446744073709551615"),
        (16, &(1_u64 << 40).to_be_bytes(), "BAT at offset 1099511627776"),
        (24, &0x0002_0000_u32.to_be_bytes(), "version"),
        (28, &u32::MAX.to_be_bytes(), "BAT at offset 1536 would end at 17179870716"),
        (28, &3_u32.to_be_bytes(), "the disk has 16 blocks, but the BAT only 3"),
        (32, &0_u32.to_be_bytes(), "block size is 0"),
        (32, &3000_u32.to_be_bytes(), "block size is 3000"),
        (32, &2048_u32.to_be_bytes(), "block size is 2048"),
        (32, &(1_u32 << 29).to_be_bytes(), "block size is 536870912"),
    ] {
        let error = with_header_field(at, value);
        assert!(error.contains(reason) && error.contains("memory.vhd"), "{error}");
    }
}

#[test]
fn blocks_over_tables_are_refused_when_read_and_when_opened_for_writing() {
    for (entry, region) in [(0, "copy of the footer"), (1, "header"), (3, "BAT"), (4, "batmap")] {
        let mut bytes = small();
        bytes[1536..1540].copy_from_slice(&u32::to_be_bytes(entry));
        let memory = Arc::new(MemoryStorage::new(bytes.clone()));
        let chain = Chain::from_layers(vec![Layer::Vhd(Box::new(super::open(&memory)))]);
        let error = chain.read(sectors(0, 1), &mut [0; 512]).unwrap_err().to_string();
        assert!(error.contains(region) && error.contains("block 0"), "{error}");
        Image::writable_from_container(container(&memory)).unwrap_err();
        assert!(memory.to_vec() == bytes);
    }
}

#[test]
fn overlapping_blocks_are_read_and_never_written() {
    let folder = golden::unpack(&["overlapping-blocks.vhd", "bat-beyond-eof.vhd"]);
    let overlapping = folder.path().join("overlapping-blocks.vhd");
    let error = Image::open_writable(&overlapping).unwrap_err().to_string();
    assert!(error.contains("overlap"), "{error}");
    let error = Image::open_writable(&folder.path().join("bat-beyond-eof.vhd")).unwrap_err().to_string();
    assert!(error.contains("the file ends at 50430464"), "{error}");
}

/// A table of four thousand million entries in a sparse file must cost neither memory nor time.
#[test]
fn a_huge_sparse_table_is_no_bomb() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bomb.vhd");
    let mut bytes = small();
    bytes[512 + 28..512 + 32].copy_from_slice(&u32::MAX.to_be_bytes());
    testkit::seal(&mut bytes[512..1536], 36);
    fs::write(&path, &bytes).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(20 << 30).unwrap();
    let started = Instant::now();
    let chain = Chain::open(&path, &ChainOptions::default()).unwrap();
    drop(chain.read(sectors(0, 1), &mut [0; 512]));
    Image::open_writable(&path).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[test]
fn what_is_no_image_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("empty"), b"").unwrap();
    fs::write(path("short"), b"conectix").unwrap();
    fs::write(path("text"), vec![b'x'; 5000]).unwrap();
    fs::create_dir(path("folder")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    for name in ["empty", "short", "text", "folder", "fifo", "missing"] {
        let error = Image::open(&path(name), Lock::None).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    let error = Image::open(Path::new("/dev/null"), Lock::None).unwrap_err().to_string();
    assert!(error.contains("/dev/null"), "{error}");
}

/// Makes a child in `folder` that names `parent`, whatever that is.
fn child(folder: &Path, name: &str, parent: &str, unique_id: Uuid) -> std::path::PathBuf {
    let path = folder.join(name);
    let parent = ParentLink::to_named(Path::new(parent), unique_id, Timestamp(0)).unwrap();
    let kind = NewKind::Differencing { block_size: BlockSize::DEFAULT, parent };
    create_file(&path, &NewImage::new(ByteCount(4096), kind), Existing::Keep).unwrap();
    path
}

#[test]
fn parents_outside_the_folder_are_refused() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("disks");
    fs::create_dir(&folder).unwrap();
    fs::write(outer.path().join("secret.img"), vec![b's'; 4096]).unwrap();
    symlink(outer.path().join("secret.img"), folder.join("link.img")).unwrap();
    symlink("/etc", folder.join("etc")).unwrap();
    fs::write(folder.join("fine.img"), vec![b'f'; 4096]).unwrap();
    symlink("fine.img", folder.join("fine-link.img")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, folder.join("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();

    for parent in
        ["../secret.img", "../../../../../../etc/passwd", "link.img", "etc/passwd", "fifo", "../disks/../secret.img"]
    {
        let path = child(&folder, "child.vhd", parent, Uuid::nil());
        let error = Chain::open(&path, &ChainOptions::default()).unwrap_err();
        assert!(matches!(error, ChainError::Parent { .. }), "{parent}: {error}");
        fs::remove_file(path).unwrap();
    }
    for parent in ["fine.img", "fine-link.img", "../disks/fine.img"] {
        let path = child(&folder, "child.vhd", parent, Uuid::nil());
        let chain = Chain::open(&path, &ChainOptions::default()).unwrap();
        let mut bytes = [0; 512];
        chain.read(sectors(0, 1), &mut bytes).unwrap();
        assert_eq!(bytes, [b'f'; 512]);
        fs::remove_file(path).unwrap();
    }
    let path = child(&folder, "child.vhd", "../secret.img", Uuid::nil());
    for parents in [ParentPlaces::Anywhere, ParentPlaces::Within(vec![outer.path().into()])] {
        Chain::open(&path, &ChainOptions { parents, ..ChainOptions::default() }).unwrap();
    }
}

#[test]
fn a_parent_must_be_who_the_child_says() {
    let folder = golden::unpack(&["base.vhd"]);
    let stranger = Uuid::from_u128(1);
    let path = child(folder.path(), "child.vhd", "base.vhd", stranger);
    let error = Chain::open(&path, &ChainOptions::default()).unwrap_err().to_string();
    assert!(error.contains("fd0bc2b5-b117-45b3-bc39-61c890597f24") && error.contains(&stranger.to_string()), "{error}");
    Chain::open(&path, &ChainOptions { parent_identity: ParentIdentity::Ignore, ..ChainOptions::default() }).unwrap();
}

#[test]
fn cycles_and_endless_chains_end() {
    let folder = tempfile::tempdir().unwrap();
    let ids: Vec<_> = (1..=12).map(Uuid::from_u128).collect();
    let make = |name: &str, own: Uuid, parent: &str, parent_id: Uuid| {
        let parent = ParentLink::to_named(Path::new(parent), parent_id, Timestamp(0)).unwrap();
        let kind = NewKind::Differencing { block_size: BlockSize::DEFAULT, parent };
        let new = NewImage { unique_id: own, ..NewImage::new(ByteCount(4096), kind) };
        create_file(&folder.path().join(name), &new, Existing::Keep).unwrap();
        folder.path().join(name)
    };
    let itself = make("itself.vhd", ids[0], "itself.vhd", ids[0]);
    let a = make("a.vhd", ids[1], "b.vhd", ids[2]);
    make("b.vhd", ids[2], "a.vhd", ids[1]);
    for path in [&itself, &a] {
        let error = Chain::open(path, &ChainOptions::default()).unwrap_err();
        assert!(matches!(error, ChainError::Cycle { .. }), "{error}");
    }
    for i in 3..11 {
        make(&format!("d{i}.vhd"), ids[i], &format!("d{}.vhd", i + 1), ids[i + 1]);
    }
    let limited = ChainOptions { max_depth: 5, ..ChainOptions::default() };
    let error = Chain::open(&folder.path().join("d3.vhd"), &limited).unwrap_err();
    assert!(matches!(error, ChainError::TooDeep { limit: 5, .. }), "{error}");
    let forest = Folder::scan(folder.path(), vhd_core::Files::Images).unwrap();
    assert_eq!(forest.nodes().count(), 11);
}

#[test]
fn a_look_at_a_folder_ends_when_it_is_told_to() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let asked = AtomicUsize::new(0);
    let scan = |limit| {
        asked.store(0, Ordering::Relaxed);
        Folder::scan_while(folder.path(), Files::All, None, &|| asked.fetch_add(1, Ordering::Relaxed) < limit)
    };
    assert_eq!(scan(usize::MAX).unwrap().nodes().count(), 3);
    for limit in 0..asked.load(Ordering::Relaxed) {
        assert_eq!(scan(limit).unwrap_err().source.kind(), io::ErrorKind::Interrupted);
    }
}

#[test]
fn one_bad_file_does_not_hide_the_others() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "on-raw.vhd", "raw-parent.img"]);
    fs::write(folder.path().join("garbage.vhd"), b"garbage").unwrap();
    fs::write(folder.path().join(".hidden.vhd"), b"garbage").unwrap();
    let mut broken = golden::bytes("leaf.vhd");
    broken.truncate(10_000);
    broken[..512].fill(0);
    fs::write(folder.path().join("leaf.vhd"), broken).unwrap();
    let forest = Folder::scan(folder.path(), vhd_core::Files::Images).unwrap();
    let names: Vec<_> = forest.nodes().map(|(_, node)| node.path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["base.vhd", "mid.vhd", "on-raw.vhd", "raw-parent.img"]);
    let mid = forest.find(&folder.path().join("mid.vhd")).unwrap();
    let base = forest.parent(mid).unwrap();
    assert_eq!(forest.children(base), [mid]);
    let damaged: Vec<_> = forest
        .damaged()
        .iter()
        .map(|file| {
            (file.path.file_name().unwrap().to_str().unwrap(), file.parent.as_ref().map(|parent| parent.unique_id))
        })
        .collect();
    let of_mid = forest.node(mid).unique_id;
    assert_eq!(damaged, [("garbage.vhd", None), ("leaf.vhd", Some(of_mid))], "a lost footer does not hide the parent");
}

#[test]
fn names_that_are_not_ascii() {
    let folder = tempfile::tempdir().unwrap();
    let name = "Größe 磁盘 💾 100%25.vhd";
    let base = NewImage::new(ByteCount(4096), NewKind::Dynamic { block_size: BlockSize::DEFAULT });
    create_file(&folder.path().join(name), &base, Existing::Keep).unwrap();
    let path = child(folder.path(), "child.vhd", name, base.unique_id);
    let chain = Chain::open(&path, &ChainOptions::default()).unwrap();
    assert_eq!(chain.layers()[1].path().file_name().unwrap(), name);
    let image =
        Image::<ReadOnly>::from_container(Container::new("x", Arc::new(MemoryStorage::new(fs::read(&path).unwrap()))))
            .unwrap();
    assert_eq!(image.header().unwrap().parent_name(), name);
}

#[test]
fn a_child_cannot_call_a_vhd_raw() {
    let folder = golden::unpack(&["base.vhd"]);
    let path = child(folder.path(), "child.vhd", "base.vhd", Uuid::nil());
    let error = Chain::open(&path, &ChainOptions::default()).unwrap_err().to_string();
    assert!(error.contains("says that its parent is raw"), "{error}");
}

#[test]
fn the_length_of_a_sparse_file_costs_no_time() {
    let folder = testkit::scratch::folder();
    let path = folder.path().join("long.vhd");
    fs::write(&path, small()).unwrap();
    let footer = fs::read(&path).unwrap()[..512].to_vec();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.set_len(1 << 62).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &footer, (1 << 62) - 512).unwrap();
    let started = Instant::now();
    check::file(&path).unwrap();
    drop(Image::open_writable(&path));
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn tables_that_overlap_are_never_written() {
    let mut bytes = small();
    bytes[512 + 16..512 + 24].copy_from_slice(&1024_u64.to_be_bytes());
    testkit::seal(&mut bytes[512..1536], 36);
    let memory = Arc::new(MemoryStorage::new(bytes));
    let error = Image::writable_from_container(container(&memory)).unwrap_err().to_string();
    assert!(error.contains("the header and the BAT overlap"), "{error}");
}

/// A disk that has shrunk keeps its blocks, and texts of locators must not be put over them.
#[test]
fn a_relink_spares_blocks_beyond_the_end() {
    let folder = golden::unpack(&["base.vhd"]);
    let unique_id = Image::open(&folder.path().join("base.vhd"), Lock::None).unwrap().footer().unique_id();
    let parent = ParentLink::new(folder.path(), &folder.path().join("base.vhd"), unique_id).unwrap();
    for mib in (16..2048).step_by(64) {
        let path = folder.path().join(format!("c{mib}.vhd"));
        let kind = NewKind::Differencing { block_size: BlockSize::DEFAULT, parent: parent.clone() };
        create_file(&path, &NewImage::new(ByteCount(mib << 20), kind), Existing::Keep).unwrap();
        let mut image = Image::open_writable(&path).unwrap();
        image.write(sectors((mib << 11) - 4096, 1), &[7; 512]).unwrap();
        image.flush().unwrap();
        let block = Image::open(&path, Lock::None).unwrap().allocated_blocks().next().unwrap().unwrap().1;
        image.set_size(ByteCount(2 << 20), ByteCount(64 << 20)).unwrap();
        image.relink(&parent).unwrap();
        image.close().unwrap();
        for (_, entry) in Image::open(&path, Lock::None).unwrap().header().unwrap().locators() {
            let apart = entry.offset.0 + entry.space.0 <= block.bitmap.0 || entry.offset.0 >= block.data.0 + (2 << 20);
            assert!(apart, "{mib} MiB: locator at {} over the block at {}", entry.offset, block.bitmap);
        }
    }
}

/// The place that a BAT has left stays what it was: somebody who opened the image before still reads his tables there.
#[test]
fn a_relink_leaves_a_bat_that_has_moved_to_its_readers() {
    let folder = golden::unpack(&["base.vhd"]);
    let base = folder.path().join("base.vhd");
    let unique_id = Image::open(&base, Lock::None).unwrap().footer().unique_id();
    let parent = ParentLink::new(folder.path(), &base, unique_id).unwrap();
    let path = folder.path().join("child.vhd");
    let kind = NewKind::Differencing { block_size: BlockSize::new(4096).unwrap(), parent: parent.clone() };
    create_file(&path, &NewImage::new(ByteCount(16 << 20), kind), Existing::Keep).unwrap();
    let reader = Image::open(&path, Lock::None).unwrap();
    let mut image = Image::open_writable(&path).unwrap();
    image.set_size(ByteCount(64 << 20), ByteCount(64 << 20)).unwrap();
    image.relink(&parent).unwrap();
    image.relink(&parent).unwrap();
    image.close().unwrap();
    assert_eq!(reader.allocated_blocks().collect::<Result<Vec<_>, _>>().unwrap(), []);
}
