//! A change of the parent that power failed in.

use std::fs;
use std::path::Path;

use tempfile::TempDir;
use testkit::pattern;
use vhd_core::repair::{self, HeaderDoubt, Options, RepairError};
use vhd_core::{
    BlockSize, ByteCount, Chain, ChainOptions, Existing, HeaderChange, Image, Lock, MetadataError, NewImage, NewKind,
    ParentLink, Uuid, Volume, create_file,
};

use super::codes;
use crate::sectors;

/// Two bases with the same content and different ids, and a child of the first.
struct Family {
    folder: TempDir,
    ids: [Uuid; 2],
    /// The change of the child's header, and of its locators, to the second.
    change: HeaderChange,
}

/// A longer name changes both sectors of the header, one as long as the old one only the first.
fn family(new_name: &str) -> Family {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let block_size = BlockSize::DEFAULT;
    let ids = ["old.vhd", new_name].map(|name| {
        let new = NewImage::new(ByteCount(8 << 20), NewKind::Dynamic { block_size });
        create_file(&path(name), &new, Existing::Keep).unwrap();
        let volume = Volume::open(&path(name), &ChainOptions::default()).unwrap();
        volume.write(sectors(0, 64), &pattern::fill(sectors(0, 64), 1)).unwrap();
        volume.close().unwrap();
        new.unique_id
    });
    let parent = ParentLink::new(folder.path(), &path("old.vhd"), ids[0]).unwrap();
    let kind = NewKind::Differencing { block_size, parent };
    create_file(&path("child.vhd"), &NewImage::new(ByteCount(8 << 20), kind), Existing::Keep).unwrap();
    let volume = Volume::open(&path("child.vhd"), &ChainOptions::default()).unwrap();
    volume.write(sectors(32, 64), &pattern::fill(sectors(32, 64), 2)).unwrap();
    volume.close().unwrap();

    let mut image = Image::open_writable(&path("child.vhd")).unwrap();
    let link = ParentLink::new(folder.path(), &path(new_name), ids[1]).unwrap();
    let mut recorded = None;
    let stopped = image.relink_recorded(&link, |change| {
        recorded = Some(change.clone());
        Err(MetadataError::NoParent { path: "child.vhd".into() })
    });
    stopped.unwrap_err();
    drop(image);
    Family { ids, change: recorded.unwrap(), folder }
}

impl Family {
    fn child(&self) -> std::path::PathBuf {
        self.folder.path().join("child.vhd")
    }

    fn edit(&self, edit: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.child()).unwrap();
        edit(&mut bytes);
        fs::write(self.child(), bytes).unwrap();
    }

    /// Sees that the child is the child of `parent`, reads as before, and was what it was when that is taken back.
    fn is_repaired(&self, code: &str, parent: Uuid) {
        let before = fs::read(self.child()).unwrap();
        let repaired = repair::file(&self.child(), &Options::default()).unwrap();
        assert!(codes(&repaired).contains(&code), "{:?}", repaired.mended);
        let chain = Chain::open(&self.child(), &ChainOptions::default()).unwrap();
        let mut found = vec![0; 96 * 512];
        chain.read(sectors(0, 96), &mut found).unwrap();
        assert!(found == [pattern::fill(sectors(0, 32), 1), pattern::fill(sectors(32, 64), 2)].concat());
        drop(chain);
        let image = Image::open(&self.child(), Lock::None).unwrap();
        assert_eq!(image.header().unwrap().parent_unique_id(), parent);
        assert_eq!(vhd_core::check::file(&self.child()).unwrap().findings(), []);
        repair::take_back(&self.child(), &Options::default()).unwrap();
        assert!(fs::read(self.child()).unwrap() == before);
    }

    fn is_refused(&self) -> RepairError {
        let before = fs::read(self.child()).unwrap();
        let error = repair::file(&self.child(), &Options::default()).unwrap_err();
        assert!(fs::read(self.child()).unwrap() == before);
        error
    }
}

/// The first sector holds name and id, the second the lengths of the locators.
#[test]
fn a_torn_header_is_settled_by_the_parents_id() {
    for (sectors, parent) in [(0..512, 1), (512..1024, 0)] {
        let family = family("newer.vhd");
        let at = family.change.at.0 as usize;
        family.edit(|bytes| {
            bytes[at + sectors.start..at + sectors.end].copy_from_slice(&family.change.new[sectors.clone()]);
        });
        assert!(Image::open(&family.child(), Lock::None).is_err());
        family.is_repaired("header-damaged", family.ids[parent]);
    }
}

#[test]
fn a_torn_header_whose_parent_is_gone_is_refused() {
    let family = family("newer.vhd");
    let at = family.change.at.0 as usize;
    family.edit(|bytes| bytes[at + 512..at + 1024].copy_from_slice(&family.change.new[512..]));
    fs::remove_file(family.folder.path().join("old.vhd")).unwrap();
    let error = family.is_refused();
    assert!(matches!(error, RepairError::Header { doubt: HeaderDoubt::Parent, .. }), "{error}");
}

/// Who writes new locators over the old ones before the header leaves the name of one parent beside the paths of another.
fn with_locators_over_the_header(family: &Family) {
    family.edit(|bytes| {
        for (at, text) in &family.change.texts {
            bytes[at.0 as usize..][..text.len()].copy_from_slice(text);
        }
    });
}

#[test]
fn locators_of_another_parent_give_way_to_the_one_with_the_id() {
    let family = family("new.vhd");
    with_locators_over_the_header(&family);
    family.is_repaired("locator-differs", family.ids[0]);
}

#[test]
fn where_nobody_has_the_id_nothing_is_done() {
    let family = family("new.vhd");
    with_locators_over_the_header(&family);
    fs::remove_file(family.folder.path().join("old.vhd")).unwrap();
    let error = family.is_refused();
    let RepairError::Parent { found: 0, parent, .. } = &error else { panic!("{error}") };
    assert_eq!(*parent, family.ids[0]);
    assert!(error.to_string().contains("new.vhd: its unique id is "), "{error}");
}

/// A copy of the parent has the same id, and may have other content by now.
#[test]
fn where_two_files_have_the_id_nothing_is_done() {
    let family = family("new.vhd");
    with_locators_over_the_header(&family);
    let file = |name: &str| family.folder.path().join(name);
    fs::copy(file("old.vhd"), file("new.vhd")).unwrap();
    let error = family.is_refused();
    assert!(matches!(error, RepairError::Parent { found: 2, .. }), "{error}");
    // Two names of one file are one parent.
    fs::remove_file(file("new.vhd")).unwrap();
    fs::hard_link(file("old.vhd"), file("new.vhd")).unwrap();
    family.is_repaired("locator-differs", family.ids[0]);
}

/// The way to a parent is the image's, so it leads nowhere that parents may not be.
#[test]
fn parents_elsewhere_prove_nothing() {
    let family = family("new.vhd");
    with_locators_over_the_header(&family);
    let elsewhere = tempfile::tempdir().unwrap();
    let old = family.folder.path().join("old.vhd");
    fs::copy(&old, elsewhere.path().join("old.vhd")).unwrap();
    fs::remove_file(&old).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("old.vhd"), &old).unwrap();
    let error = family.is_refused();
    assert!(matches!(error, RepairError::Parent { found: 0, .. }), "{error}");
    let parents = vhd_core::ParentPlaces::Within(vec![Path::new(elsewhere.path()).into()]);
    repair::file(&family.child(), &Options { parents, ..Options::default() }).unwrap();
}
