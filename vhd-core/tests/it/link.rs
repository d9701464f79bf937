//! Getting a parent, and losing it.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use testkit::fault::FaultStorage;
use testkit::pattern;
use vhd_core::check::{self, Severity};
use vhd_core::{
    BlockSize, Chain, Container, Existing, Files, Folder, HeaderChange, Image, Layer, MemoryStorage, MetadataError,
    NewImage, NewKind, ParentLink, Timestamp, Uuid, create_file,
};

use super::{container, new_image, open, open_writable, sectors};

fn dynamic() -> NewKind {
    NewKind::Dynamic { block_size: BlockSize::new(4096).unwrap() }
}

/// An image with the pattern of a tag in these sectors.
fn written(start: u64, count: u64, tag: u16) -> Arc<MemoryStorage> {
    let memory = new_image(1 << 20, dynamic());
    let image = open_writable(&memory);
    image.write(sectors(start, count), &pattern::fill(sectors(start, count), tag)).unwrap();
    image.close().unwrap();
    memory
}

fn link_to(parent: &Arc<MemoryStorage>) -> ParentLink {
    ParentLink::to_named(Path::new("parent.vhd"), open(parent).footer().unique_id(), Timestamp::now()).unwrap()
}

fn read(layers: &[&Arc<MemoryStorage>], start: u64, count: u64) -> Vec<u8> {
    let chain = Chain::from_layers(layers.iter().map(|memory| Layer::Vhd(Box::new(open(memory)))).collect());
    let mut bytes = vec![0; count as usize * 512];
    chain.read(sectors(start, count), &mut bytes).unwrap();
    bytes
}

fn unrecorded(_: &HeaderChange) -> Result<(), MetadataError> {
    Ok(())
}

#[test]
fn an_image_that_gets_a_parent_shows_it_where_it_holds_nothing() {
    let (parent, child) = (written(0, 40, 1), written(30, 20, 2));
    let mut image = open_writable(&child);
    image.attach(&link_to(&parent), unrecorded).unwrap();
    image.close().unwrap();
    let expected = [pattern::fill(sectors(0, 30), 1), pattern::fill(sectors(30, 20), 2)].concat();
    assert_eq!(read(&[&child, &parent], 0, 50), expected);
    let image = open(&child);
    assert_eq!(image.header().unwrap().parent_unique_id(), open(&parent).footer().unique_id());
    assert!(image.parent_paths().unwrap().iter().any(|path| path.ends_with("parent.vhd")));
    assert!(check::container(container(&child)).unwrap().worst() < Some(Severity::Warning));

    let mut image = open_writable(&child);
    image.detach(unrecorded).unwrap();
    image.close().unwrap();
    assert_eq!(read(&[&child], 0, 50), [vec![0; 30 * 512], pattern::fill(sectors(30, 20), 2)].concat());
    assert!(check::container(container(&child)).unwrap().worst() < Some(Severity::Warning));
}

#[test]
fn a_fixed_image_gets_no_parent() {
    let (parent, child) = (written(0, 40, 1), new_image(1 << 20, NewKind::Fixed));
    let before = child.to_vec();
    let error = open_writable(&child).attach(&link_to(&parent), unrecorded).unwrap_err();
    assert!(matches!(error, MetadataError::Fixed { .. }), "{error}");
    assert!(child.to_vec() == before);
}

/// Whatever fails, the image is without a parent or has all of it, and what is recorded takes the header back.
#[test]
fn an_image_that_nearly_got_a_parent_is_what_it_was() {
    let parent = written(0, 40, 1);
    let link = link_to(&parent);
    let (mut before, mut after) = (0, 0);
    for fault in 0.. {
        let child = written(30, 20, 2);
        let header = open(&child).header().unwrap().to_bytes();
        let storage = Arc::new(FaultStorage::new(child.clone(), fault, u64::MAX, ErrorKind::Other));
        let mut image = Image::writable_from_container(Container::new("memory.vhd", storage)).unwrap();
        let mut recorded = None;
        let result = image.attach(&link, |change| {
            recorded = Some(change.clone());
            Ok::<_, MetadataError>(())
        });
        drop(image);
        if open(&child).is_differencing() {
            assert_eq!(read(&[&child, &parent], 0, 30), pattern::fill(sectors(0, 30), 1), "fault {fault}");
            after += 1;
        } else {
            assert_eq!(read(&[&child], 0, 30), vec![0; 30 * 512], "fault {fault}");
            if let Some(HeaderChange { at, old, new, .. }) = recorded {
                HeaderChange { at, old: new, new: old, texts: Vec::new() }.finish(&container(&child)).unwrap();
            }
            assert_eq!(open(&child).header().unwrap().to_bytes(), header, "fault {fault}");
            before += 1;
        }
        assert_eq!(read(&[&child, &parent], 30, 20), pattern::fill(sectors(30, 20), 2), "fault {fault}");
        if result.is_ok() {
            break;
        }
    }
    assert!(before > 4 && after > 1, "{before} before, {after} after");
}

#[test]
fn who_only_names_a_parent_is_no_child() {
    let folder = testkit::scratch::folder();
    let parent = NewImage::new(vhd_core::ByteCount(1 << 20), dynamic());
    create_file(&folder.path().join("parent.vhd"), &parent, Existing::Keep).unwrap();
    let link = ParentLink::to_named(Path::new("parent.vhd"), parent.unique_id, Timestamp::now()).unwrap();
    let child = written(30, 20, 2);
    let mut image = open_writable(&child);
    let mut change = None;
    let stopped = image.attach(&link, |it| {
        change = Some(it.clone());
        Err(MetadataError::NoParent { path: "memory.vhd".into() })
    });
    stopped.unwrap_err();
    drop(image);
    change.unwrap().finish(&container(&child)).unwrap();
    assert_ne!(open(&child).header().unwrap().parent_unique_id(), Uuid::nil());
    std::fs::write(folder.path().join("child.vhd"), child.to_vec()).unwrap();
    let forest = Folder::scan(folder.path(), Files::All).unwrap();
    assert!(forest.dependants(&folder.path().join("parent.vhd"), parent.unique_id).is_empty());
    let worst = check::file(&folder.path().join("child.vhd")).unwrap().worst();
    assert!(worst < Some(Severity::Warning), "{worst:?}");
}
