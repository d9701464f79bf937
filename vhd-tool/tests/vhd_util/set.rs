use testkit::golden;
use vhd_core::{Image, Lock, ReadOnly};

use crate::program::{done, refused};

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
fn what_cannot_be_set_is_refused() {
    let folder = golden::unpack(&["raw-parent.img", "empty-10m.vhd"]);
    refused(folder.path(), &["set", "-n", "none.vhd", "-f", "hidden", "-v", "1"], 2);
    refused(folder.path(), &["set", "-n", "raw-parent.img", "-f", "hidden", "-v", "1"], 22);
    refused(folder.path(), &["set", "-n", "empty-10m.vhd", "-f", "hidden", "-v", "256"], 22);
    refused(folder.path(), &["set", "-n", "empty-10m.vhd", "-f", "other", "-v", "1"], 22);
    refused(folder.path(), &["set", "-n", "empty-10m.vhd"], 22);
}
