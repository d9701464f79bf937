use std::fs;

use testkit::golden;
use vhd_core::{Header, Image, KeyHash, Lock, ReadOnly};

use crate::program::{done, files, guest, refused};

#[test]
fn a_copy_is_the_same_but_for_its_id() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "meta.vhd", "fixed-4m.vhd"]);
    done(folder.path(), &["set", "-n", "fixed-4m.vhd", "-f", "marker", "-v", "9"]);
    let key = KeyHash { nonce: [3; 32], hash: [4; 32] };
    Image::open_writable(&folder.path().join("fixed-4m.vhd")).unwrap().set_key_hash(key).unwrap();
    for name in ["base.vhd", "mid.vhd", "meta.vhd", "fixed-4m.vhd"] {
        let before = files(folder.path())[name].clone();
        let new = format!("copy-of-{name}");
        assert_eq!(done(folder.path(), &["copy", "-n", name, "-N", &new]), "");
        assert_eq!(files(folder.path())[name], before);
        assert_eq!(guest(folder.path(), name), guest(folder.path(), &new));
        let extents = |name: &str| done(folder.path(), &["read", "-e", "-n", name]);
        assert_eq!(extents(name), extents(&new));
        let open = |name: &str| -> Image<ReadOnly> { Image::open(&folder.path().join(name), Lock::None).unwrap() };
        let (image, copy) = (open(name), open(&new));
        assert_ne!(image.footer().unique_id(), copy.footer().unique_id());
        assert_eq!(image.footer().hidden(), copy.footer().hidden());
        assert_eq!(image.header().map(Header::parent_unique_id), copy.header().map(Header::parent_unique_id));
        assert_eq!(image.key_hash().unwrap(), copy.key_hash().unwrap());
        assert_eq!(image.marker().unwrap(), copy.marker().unwrap());
        done(folder.path(), &["check", "-t", "-n", &new]);
    }
}

#[test]
fn a_copy_in_another_folder_finds_the_parent() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd"]);
    fs::create_dir(folder.path().join("other")).unwrap();
    done(folder.path(), &["copy", "-n", "mid.vhd", "-N", "other/mid.vhd"]);
    assert_eq!(guest(folder.path(), "mid.vhd"), guest(folder.path(), "other/mid.vhd"));
}

#[test]
fn what_is_not_copied_leaves_nothing() {
    let folder = golden::unpack(&["base.vhd", "meta.vhd", "poisoned.vhd", "overlapping-blocks.vhd"]);
    let before = files(folder.path());
    refused(folder.path(), &["copy", "-n", "base.vhd", "-N", "meta.vhd"], 17);
    refused(folder.path(), &["copy", "-n", "none.vhd", "-N", "new.vhd"], 2);
    refused(folder.path(), &["copy", "-n", "poisoned.vhd", "-N", "new.vhd"], 22);
    refused(folder.path(), &["copy", "-n", "overlapping-blocks.vhd", "-N", "new.vhd"], 22);
    // Nothing is encrypted or decrypted here.
    refused(folder.path(), &["copy", "-n", "base.vhd", "-N", "new.vhd", "-k", "key"], 95);
    refused(folder.path(), &["copy", "-n", "base.vhd", "-N", "new.vhd", "-E"], 95);
    refused(folder.path(), &["copy", "-n", "base.vhd"], 22);
    assert_eq!(files(folder.path()), before);
}
