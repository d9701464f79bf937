use std::fs;

use testkit::{golden, inject};
use vhd_core::{FooterOrigin, Image, Lock, ReadOnly};

use crate::program::{done, files, guest, process, refused, write};

#[test]
fn a_child_holds_all_of_its_disk_afterwards() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd"]);
    let (before, parent) = (guest(folder.path(), "mid.vhd"), files(folder.path())["base.vhd"].clone());
    assert_eq!(done(folder.path(), &["fill", "--debug", "-n", "mid.vhd"]), "");
    assert_eq!(guest(folder.path(), "mid.vhd"), before);
    assert_eq!(done(folder.path(), &["read", "-e", "-n", "mid.vhd"]), "0 131072\n");
    assert_eq!(files(folder.path())["base.vhd"], parent);
    done(folder.path(), &["check", "-t", "-b", "-n", "mid.vhd"]);
    fs::remove_file(folder.path().join("base.vhd")).unwrap();
    refused(folder.path(), &["fill", "-n", "mid.vhd"], 2);
}

#[test]
fn blocks_alone_change_nothing_of_the_disk() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "fixed-4m.vhd"]);
    let before = guest(folder.path(), "mid.vhd");
    let extents = done(folder.path(), &["read", "-e", "-n", "mid.vhd"]);
    done(folder.path(), &["fill", "-b", "-n", "mid.vhd"]);
    assert_eq!(guest(folder.path(), "mid.vhd"), before);
    assert_eq!(done(folder.path(), &["read", "-e", "-n", "mid.vhd"]), extents);
    let image: Image<ReadOnly> = Image::open(&folder.path().join("mid.vhd"), Lock::None).unwrap();
    assert_eq!(image.allocated_blocks().count(), 32);
    done(folder.path(), &["check", "-t", "-n", "mid.vhd"]);

    let fixed = files(folder.path())["fixed-4m.vhd"].clone();
    done(folder.path(), &["fill", "-n", "fixed-4m.vhd"]);
    assert_eq!(files(folder.path())["fixed-4m.vhd"], fixed);
}

#[test]
fn without_space_an_image_keeps_its_end_footer_and_its_content() {
    for options in [&["-n", "leaf.vhd"][..], &["-b", "-n", "leaf.vhd"]] {
        for call in ["pwrite64", "ftruncate", "fallocate", "fdatasync"] {
            for number in 1.. {
                let folder = testkit::scratch::folder();
                let here = folder.path();
                done(here, &["create", "-n", "base.vhd", "-s", "8"]);
                write(here, "base.vhd", 0, &[1; 6000]);
                done(here, &["snapshot", "-n", "leaf.vhd", "-p", "base.vhd"]);
                let before = guest(here, "leaf.vhd");
                let run = process(here, &[&["fill"], options].concat());
                let injected = inject::fail_from(&run, call, number, "ENOSPC");
                if !injected.hit {
                    break;
                }
                let what = format!("{options:?} {call} {number}");
                assert_eq!(injected.output.status.code(), Some(28), "{what}");
                let image: Image<ReadOnly> = Image::open(&here.join("leaf.vhd"), Lock::None).unwrap();
                assert_eq!(image.footer_origin(), FooterOrigin::End, "{what}");
                assert_eq!(guest(here, "leaf.vhd"), before, "{what}");
            }
        }
    }
}

#[test]
fn blocks_alone_may_be_some_of_them() {
    let folder = golden::unpack(&["empty-10m.vhd"]);
    let here = folder.path();
    done(here, &["fill", "-b", "-B", "-f", "5000", "-t", "8192", "-n", "empty-10m.vhd"]);
    let image: Image<ReadOnly> = Image::open(&here.join("empty-10m.vhd"), Lock::None).unwrap();
    let blocks: Vec<_> = image.allocated_blocks().map(|block| block.unwrap().0.0).collect();
    assert_eq!(blocks, [1, 2]);
    drop(image);
    refused(here, &["fill", "-b", "-f", "2", "-t", "1", "-n", "empty-10m.vhd"], 22);
    refused(here, &["fill", "-f", "2", "-n", "empty-10m.vhd"], 22);
}
