use std::fs;

use testkit::{golden, inject};
use vhd_core::{Image, Lock, ReadOnly};

use crate::program::{done, guest, process, refused, write};

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
fn any_value_but_zero_hides_and_is_kept() {
    let folder = golden::unpack(&["empty-10m.vhd"]);
    for value in ["255", "7", "1", "0"] {
        done(folder.path(), &["set", "-n", "empty-10m.vhd", "-f", "hidden", "-v", value]);
        assert_eq!(done(folder.path(), &["query", "-f", "-n", "empty-10m.vhd"]), format!("hidden: {value}\n"));
        let line = done(folder.path(), &["scan", "-f", "empty-10m.vhd"]);
        assert!(line.contains(&format!(" hidden={value} ")), "{line}");
        let image: Image<ReadOnly> = Image::open(&folder.path().join("empty-10m.vhd"), Lock::None).unwrap();
        assert_eq!(image.footer().hidden(), value != "0");
    }
}

#[test]
fn a_value_may_begin_with_a_hyphen() {
    let folder = golden::unpack(&["empty-10m.vhd"]);
    fs::rename(folder.path().join("empty-10m.vhd"), folder.path().join("-disk.vhd")).unwrap();
    done(folder.path(), &["set", "--debug", "-n", "-disk.vhd", "-f", "hidden", "-v", "1"]);
    assert_eq!(done(folder.path(), &["query", "-fn", "-disk.vhd"]), "hidden: 1\n");
    refused(folder.path(), &["set", "-n", "-disk.vhd", "-f", "hidden", "-v", "-1"], 22);
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

/// Then it can be deleted, which makes room.
#[test]
fn without_room_for_a_footer_an_image_is_hidden_by_its_copy() {
    let folder = golden::unpack(&["no-end-footer.vhd"]);
    let before = guest(folder.path(), "no-end-footer.vhd");
    for (args, code) in [(["hidden", "1"], 0), (["hidden", "0"], 28), (["marker", "1"], 28)] {
        let set = process(folder.path(), &["set", "-n", "no-end-footer.vhd", "-f", args[0], "-v", args[1]]);
        let run = inject::fail_at(&set, "pwrite64", 1, "ENOSPC");
        assert!(run.hit && run.output.status.code() == Some(code), "{args:?} {run:?}");
        let answers = done(folder.path(), &["query", "-fm", "-n", "no-end-footer.vhd"]);
        assert_eq!(answers, "hidden: 1\nmarker: 0\n", "{args:?}");
        assert_eq!(guest(folder.path(), "no-end-footer.vhd"), before);
    }
    done(folder.path(), &["set", "-n", "no-end-footer.vhd", "-f", "hidden", "-v", "0"]);
    assert_eq!(done(folder.path(), &["check", "-t", "-n", "no-end-footer.vhd"]), "no-end-footer.vhd is valid\n");
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
