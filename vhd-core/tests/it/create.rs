//! New images, against those that blktap makes.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use testkit::golden;
use vhd_core::{
    BlockSize, ByteCount, Container, CreateError, DiskType, Existing, Image, MAX_VIRTUAL_SIZE, MemoryStorage, NewImage,
    NewKind, ParentLink, ReadOnly, create, create_file,
};

/// Makes the image that has the identity, time and size of a golden one.
fn remake(name: &str, kind: NewKind) -> (Vec<u8>, Vec<u8>) {
    let theirs = golden::bytes(name);
    let memory = Arc::new(MemoryStorage::new(theirs.clone()));
    let footer = Image::<ReadOnly>::from_container(Container::new(name, memory)).unwrap().footer().clone();
    let new = NewImage {
        unique_id: footer.unique_id(),
        timestamp: footer.timestamp(),
        ..NewImage::new(footer.current_size(), kind)
    };
    let memory = Arc::new(MemoryStorage::default());
    create(&Container::new(name, memory.clone()), &new).unwrap();
    (memory.to_vec(), theirs)
}

const TWO_MIB: BlockSize = BlockSize::DEFAULT;

#[test]
fn empty_dynamic_images_are_byte_for_byte_those_of_vhd_util() {
    for name in ["empty-10m.vhd", "max-2040g.vhd"] {
        let (ours, theirs) = remake(name, NewKind::Dynamic { block_size: TWO_MIB });
        assert!(ours == theirs, "{name}");
    }
}

#[test]
fn room_to_grow_is_laid_out_as_by_vhd_util() {
    let theirs = golden::bytes("prealloc.vhd");
    let image = Arc::new(MemoryStorage::new(theirs.clone()));
    let footer = Image::<ReadOnly>::from_container(Container::new("prealloc.vhd", image)).unwrap().footer().clone();
    let kind = NewKind::Dynamic { block_size: TWO_MIB };
    let new = NewImage {
        unique_id: footer.unique_id(),
        timestamp: footer.timestamp(),
        room: ByteCount(4096 << 20),
        ..NewImage::new(footer.current_size(), kind)
    };
    let memory = Arc::new(MemoryStorage::default());
    create(&Container::new("prealloc.vhd", memory.clone()), &new).unwrap();
    let ours = memory.to_vec();
    assert_eq!(ours.len(), 10752 + 512);
    // The first block has been written to, so its BAT entry differs.
    assert!(ours[..1536] == theirs[..1536] && ours[1540..10752] == theirs[1540..10752]);
    let too_large = NewImage { room: ByteCount((2 << 40) + 512), ..new };
    let refused = create(&Container::new("x", Arc::new(MemoryStorage::default())), &too_large).unwrap_err();
    assert!(matches!(refused, CreateError::Room { .. }), "{refused}");
}

#[test]
fn a_fixed_image_ends_in_the_footer_of_vhd_util() {
    let (ours, theirs) = remake("fixed-4m.vhd", NewKind::Fixed);
    assert_eq!(ours.len(), theirs.len());
    assert_eq!(ours[ours.len() - 512..], theirs[theirs.len() - 512..]);
    assert!(ours[..ours.len() - 512].iter().all(|&byte| byte == 0));
}

/// Footer, header and locators; BAT and batmap have been filled by writes.
#[test]
fn snapshots_are_laid_out_as_those_of_vhd_util() {
    for (name, parent) in [("mid.vhd", "base.vhd"), ("leaf.vhd", "mid.vhd"), ("on-raw.vhd", "raw-parent.img")] {
        let theirs = Arc::new(MemoryStorage::new(golden::bytes(name)));
        let header = Image::<ReadOnly>::from_container(Container::new(name, theirs)).unwrap().header().unwrap().clone();
        let link =
            ParentLink::to_named(Path::new(parent), header.parent_unique_id(), header.parent_timestamp()).unwrap();
        let (ours, theirs) = remake(name, NewKind::Differencing { block_size: TWO_MIB, parent: link });
        assert_eq!(ours[..1536], theirs[..1536], "{name}: footer and header");
        assert_eq!(ours[3072..4608], theirs[3072..4608], "{name}: locators");
        assert_eq!(ours[4608..], ours[..512], "{name}: footer at the end");
    }
}

#[test]
fn sizes_that_cannot_be_are_refused_before_anything_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.vhd");
    let dynamic = |size, block| {
        let kind = NewKind::Dynamic { block_size: BlockSize::new(block).unwrap() };
        create_file(&path, &NewImage::new(ByteCount(size), kind), Existing::Keep)
    };
    for size in [0, 511, 1000, MAX_VIRTUAL_SIZE.0 + 512] {
        assert!(matches!(dynamic(size, 2 << 20), Err(CreateError::Size { .. })), "{size}");
    }
    assert!(matches!(dynamic(MAX_VIRTUAL_SIZE.0, 4096), Err(CreateError::BlockSize { .. })));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    dynamic(MAX_VIRTUAL_SIZE.0, 2 << 20).unwrap();
}

#[test]
fn a_file_that_is_there_is_kept_unless_asked_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.vhd");
    fs::write(&path, "precious").unwrap();
    let new = NewImage::new(ByteCount(1 << 20), NewKind::Fixed);
    assert!(matches!(create_file(&path, &new, Existing::Keep), Err(CreateError::Exists { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    create_file(&path, &new, Existing::Replace).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    let image = Image::open(&path, vhd_core::Lock::None).unwrap();
    assert_eq!(image.footer().disk_type(), DiskType::Fixed);
}
