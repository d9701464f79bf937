use testkit::golden;
use vhd_core::{Image, Lock, ReadOnly};

use crate::program::{done, guest, refused, write};

#[test]
fn hidden_is_set_and_cleared_as_the_storage_manager_does_it() {
    let folder = golden::unpack(&["fixed-4m.vhd", "empty-10m.vhd"]);
    for image in ["fixed-4m.vhd", "empty-10m.vhd"] {
        let hidden = || {
            let image: Image<ReadOnly> = Image::open(&folder.path().join(image), Lock::None).unwrap();
            image.footer().hidden()
        };
        assert_eq!(done(folder.path(), &["set", "--debug", "-n", image, "-f", "hidden", "-v", "1"]), "");
        assert!(hidden());
        assert_eq!(done(folder.path(), &["--debug", "set", "-n", image, "-f", "hidden", "-v", "0"]), "");
        assert!(!hidden());
    }
}

#[test]
fn the_marker_is_kept_with_the_batmap_or_as_an_attribute_of_the_file() {
    let folder = golden::unpack(&["fixed-4m.vhd", "base.vhd", "meta.vhd"]);
    for image in ["fixed-4m.vhd", "base.vhd", "meta.vhd"] {
        let before = guest(folder.path(), image);
        done(folder.path(), &["set", "-n", image, "-f", "marker", "-v", "255"]);
        assert_eq!(done(folder.path(), &["query", "-m", "-n", image]), "marker: 255\n", "{image}");
        // What is written later leaves it alone.
        write(folder.path(), image, 0, &vec![7; 2 << 20]);
        assert_eq!(done(folder.path(), &["query", "-m", "-n", image]), "marker: 255\n", "{image}");
        done(folder.path(), &["set", "-n", image, "-f", "marker", "-v", "0"]);
        assert_eq!(done(folder.path(), &["query", "-m", "-n", image]), "marker: 0\n", "{image}");
        assert_ne!(guest(folder.path(), image), before);
    }
    let key = format!("{} {}\n", "01".repeat(32), "ab".repeat(32));
    assert_eq!(done(folder.path(), &["key", "-p", "-n", "meta.vhd"]), key);
}

#[test]
fn what_cannot_be_set_is_refused() {
    let folder = golden::unpack(&["raw-parent.img", "empty-10m.vhd", "poisoned.vhd"]);
    refused(folder.path(), &["set", "-n", "none.vhd", "-f", "hidden", "-v", "1"], 2);
    refused(folder.path(), &["set", "-n", "raw-parent.img", "-f", "hidden", "-v", "1"], 22);
    refused(folder.path(), &["set", "-n", "poisoned.vhd", "-f", "hidden", "-v", "1"], 22);
    refused(folder.path(), &["set", "-n", "empty-10m.vhd", "-f", "hidden", "-v", "256"], 22);
    refused(folder.path(), &["set", "-n", "empty-10m.vhd", "-f", "other", "-v", "1"], 22);
    refused(folder.path(), &["set", "-n", "empty-10m.vhd"], 22);
}
