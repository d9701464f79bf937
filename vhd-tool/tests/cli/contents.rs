use testkit::golden;

use crate::program::{done, write};

#[test]
fn a_file_is_listed_in_its_order() {
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), &["create", "disk.vhd", "--size", "9M"]);
    write(folder.path(), "disk.vhd", 6 << 20, &[1; 4096]);
    write(folder.path(), "disk.vhd", 0, &[1; 512]);
    write(folder.path(), "disk.vhd", 1 << 20, &[1; 1024]);
    assert_eq!(
        done(folder.path(), &["contents", "disk.vhd"]),
        "Footer\nHeader\nBAT\nBlock 12288 (len 4096)\nBlock 0 (len 512)\nBlock 2048 (len 1024)\nFooter\n"
    );
}

#[test]
fn a_fixed_image_is_one_piece() {
    let folder = golden::unpack(&["fixed-4m.vhd"]);
    assert_eq!(done(folder.path(), &["contents", "fixed-4m.vhd"]), "Block 0 (len 4194304)\nFooter\n");
}
