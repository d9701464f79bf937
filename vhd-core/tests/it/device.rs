//! Images on block devices: the footer is in the last 512 bytes, whatever the image holds. Needs root, for a loop device.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use testkit::loop_device::LoopDevice;
use testkit::{pattern, sha256};
use vhd_core::check::{self, Severity};
use vhd_core::{
    BlockSize, ByteCount, Chain, ChainError, ChainOptions, Container, CreateError, Existing, FileStorage, Image, Lock,
    NewImage, NewKind, ParentLink, ParentPlaces, Storage, Volume, WriteError, create, create_file,
};

use super::sectors;

#[test]
fn a_device_holds_an_image_until_it_is_full() {
    let folder = tempfile::tempdir().unwrap();
    let device = LoopDevice::new(&folder.path().join("disk"), 6 << 20);
    let storage = FileStorage::open_writable(&device.path).unwrap();
    assert!(storage.has_fixed_size());
    let kind = NewKind::Dynamic { block_size: BlockSize::DEFAULT };
    create(&Container::new(&device.path, Arc::new(storage)), &NewImage::new(ByteCount(20 << 20), kind)).unwrap();

    let volume = Volume::open(&device.path, &ChainOptions::default()).unwrap();
    for start in [4096, 0] {
        volume.write(sectors(start, 100), &pattern::fill(sectors(start, 100), 1)).unwrap();
    }
    volume.close().unwrap();
    let before = fs::read(&device.path).unwrap();
    let volume = Volume::open(&device.path, &ChainOptions::default()).unwrap();
    volume.write(sectors(4196, 50), &pattern::fill(sectors(4196, 50), 1)).unwrap();
    let full = volume.write(sectors(9000, 1), &[1; 512]).unwrap_err();
    assert!(matches!(full, WriteError::Storage(_)), "{full}");
    volume.close().unwrap();

    let after = fs::read(&device.path).unwrap();
    assert_eq!(after[after.len() - 512..], before[before.len() - 512..], "the footer stays");
    assert_ne!(sha256(&after), sha256(&before));
    let chain = Chain::open(&device.path, &ChainOptions::default()).unwrap();
    let mut bytes = vec![0; 150 * 512];
    chain.read(sectors(4096, 150), &mut bytes).unwrap();
    assert_eq!(bytes, pattern::fill(sectors(4096, 150), 1));
    let report = check::file(&device.path).unwrap();
    assert!(report.worst() < Some(Severity::Warning), "{:?}", report.findings());
}

/// A crash, or another program, has taken it: the copy at the start speaks for the image, and the next flush puts it back.
#[test]
fn a_device_that_has_lost_its_footer_gets_it_back_at_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let device = LoopDevice::new(&folder.path().join("disk"), 6 << 20);
    let storage = FileStorage::open_writable(&device.path).unwrap();
    let kind = NewKind::Dynamic { block_size: BlockSize::DEFAULT };
    create(&Container::new(&device.path, Arc::new(storage)), &NewImage::new(ByteCount(20 << 20), kind)).unwrap();
    let mut before = fs::read(&device.path).unwrap();
    let end = before.len() - 512;
    let footer = before.split_off(end);
    fs::write(&device.path, [&before[..], &[0; 512]].concat()).unwrap();
    let volume = Volume::open(&device.path, &ChainOptions::default()).unwrap();
    volume.write(sectors(0, 100), &pattern::fill(sectors(0, 100), 1)).unwrap();
    volume.close().unwrap();
    assert_eq!(fs::read(&device.path).unwrap()[end..], footer);
}

#[test]
fn a_device_can_be_a_parent_and_is_never_replaced_by_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let device = LoopDevice::new(&folder.path().join("disk"), 1 << 20);
    fs::write(&device.path, pattern::fill(sectors(0, 2048), 6)).unwrap();
    let path = folder.path().join("child.vhd");
    let parent = ParentLink::new(folder.path(), &device.path, vhd_core::Uuid::nil()).unwrap();
    let kind = NewKind::Differencing { block_size: BlockSize::DEFAULT, parent };
    create_file(&path, &NewImage::new(ByteCount(1 << 20), kind), Existing::Keep).unwrap();
    let options = ChainOptions { parents: ParentPlaces::Within(vec!["/dev".into()]), ..ChainOptions::default() };
    let chain = Chain::open(&path, &options).unwrap();
    let mut bytes = vec![0; 2048 * 512];
    chain.read(sectors(0, 2048), &mut bytes).unwrap();
    assert!(bytes == pattern::fill(sectors(0, 2048), 6));

    let new = NewImage::new(ByteCount(1 << 20), NewKind::Fixed);
    let refused = create_file(&device.path, &new, Existing::Replace).unwrap_err();
    assert!(matches!(refused, CreateError::NotAFile { .. }), "{refused}");
    Image::open(&device.path, Lock::None).unwrap_err();
}

/// On a device nothing but the header tells where the texts of the locators are.
#[test]
fn blocks_do_not_lie_over_locators() {
    let folder = tempfile::tempdir().unwrap();
    let device = LoopDevice::new(&folder.path().join("disk"), 8 << 20);
    let storage = FileStorage::open_writable(&device.path).unwrap();
    let container = Container::new(&device.path, Arc::new(storage));
    let parent =
        ParentLink::to_named(Path::new("base.vhd"), vhd_core::Uuid::from_u128(5), vhd_core::Timestamp(1)).unwrap();
    let kind = NewKind::Differencing { block_size: BlockSize::DEFAULT, parent };
    create(&container, &NewImage::new(ByteCount(8 << 20), kind)).unwrap();
    let before = fs::read(&device.path).unwrap();
    let image = Image::writable_from_container(container).unwrap();
    image.write(sectors(0, 8), &[b'!'; 4096]).unwrap();
    image.close().unwrap();
    assert_eq!(fs::read(&device.path).unwrap()[3072..4608], before[3072..4608]);
    let report = check::file(&device.path).unwrap();
    assert!(report.worst() < Some(Severity::Warning), "{:?}", report.findings());
}

/// As LVM has them: a folder of links for each volume group, and what they lead to somewhere in /dev.
#[test]
fn devices_find_their_parents_beside_the_names_of_their_links() {
    let folder = tempfile::tempdir().unwrap();
    let group = folder.path().join("group");
    fs::create_dir(&group).unwrap();
    let devices: Vec<_> = ["base", "leaf", "other"]
        .map(|name| {
            let device = LoopDevice::new(&folder.path().join(name), 6 << 20);
            symlink(&device.path, group.join(name)).unwrap();
            device
        })
        .into();
    let make = |name: &str, kind: NewKind| {
        let storage = FileStorage::open_writable(&group.join(name)).unwrap();
        let new = NewImage::new(ByteCount(4 << 20), kind);
        create(&Container::new(group.join(name), Arc::new(storage)), &new).unwrap();
        new.unique_id
    };
    let id = make("base", NewKind::Dynamic { block_size: BlockSize::DEFAULT });
    let volume = Volume::open(&group.join("base"), &ChainOptions::default()).unwrap();
    volume.write(sectors(7, 1), &[7; 512]).unwrap();
    volume.close().unwrap();
    let parent = ParentLink::new(&group, &group.join("base"), id).unwrap();
    make("leaf", NewKind::Differencing { block_size: BlockSize::DEFAULT, parent });

    let chain = Chain::open(&group.join("leaf"), &ChainOptions::default()).unwrap();
    assert_eq!(chain.layers()[1].path(), group.join("base"));
    let mut sector = [0; 512];
    chain.read(sectors(7, 1), &mut sector).unwrap();
    assert_eq!(sector, [7; 512]);

    // Of a device that is opened by its own name nothing beside it is a parent, least of all a disk of the host.
    let refused = Chain::open(&devices[1].path, &ChainOptions::default()).unwrap_err();
    assert!(matches!(refused, ChainError::Parent { .. }), "{refused}");
    let name = devices[2].path.file_name().unwrap();
    let raw = ParentLink::to_named(Path::new(name), vhd_core::Uuid::nil(), vhd_core::Timestamp(1)).unwrap();
    make("leaf", NewKind::Differencing { block_size: BlockSize::DEFAULT, parent: raw });
    for path in [&group.join("leaf"), &devices[1].path] {
        let refused = Chain::open(path, &ChainOptions::default()).unwrap_err();
        assert!(matches!(refused, ChainError::Parent { .. }), "{refused}");
    }
    let up = ParentLink::to_named(&Path::new("..").join("up"), vhd_core::Uuid::nil(), vhd_core::Timestamp(1)).unwrap();
    symlink(&devices[2].path, folder.path().join("up")).unwrap();
    make("leaf", NewKind::Differencing { block_size: BlockSize::DEFAULT, parent: up });
    Chain::open(&group.join("leaf"), &ChainOptions::default()).unwrap_err();
}
