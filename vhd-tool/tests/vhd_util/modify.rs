use std::fs;
use std::path::Path;

use testkit::{golden, inject};
use vhd_core::check::{self, Severity};
use vhd_core::{FooterOrigin, Image, Lock, ReadOnly};

use crate::program::{done, files, guest, process, refused, write};

fn is_sound(path: &Path) {
    let report = check::file(path).expect("the image can be checked");
    assert!(report.worst() < Some(Severity::Warning), "{:?}", report.findings());
}

#[test]
fn a_child_is_given_another_parent() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let here = folder.path();
    done(here, &["coalesce", "--debug", "-n", "mid.vhd"]);
    let before = guest(here, "leaf.vhd");
    assert_eq!(done(here, &["modify", "--debug", "-p", "base.vhd", "-n", "leaf.vhd"]), "");
    fs::remove_file(here.join("mid.vhd")).unwrap();
    assert_eq!(guest(here, "leaf.vhd"), before);
    let parent = here.canonicalize().unwrap().join("base.vhd");
    assert_eq!(done(here, &["query", "-pd", "-n", "leaf.vhd"]), format!("{}\nchain depth: 2\n", parent.display()));
    let open = |name: &str| -> Image<ReadOnly> { Image::open(&here.join(name), Lock::None).unwrap() };
    let header = open("leaf.vhd").header().unwrap().clone();
    assert_eq!(header.parent_unique_id(), open("base.vhd").footer().unique_id());
    assert_eq!(header.parent_name(), "base.vhd");
    is_sound(&here.join("leaf.vhd"));
}

#[test]
fn the_new_parent_may_be_raw() {
    let folder = golden::unpack(&["raw-parent.img", "on-raw.vhd"]);
    let here = folder.path();
    fs::copy(here.join("raw-parent.img"), here.join("other.img")).unwrap();
    let before = guest(here, "on-raw.vhd");
    done(here, &["modify", "--debug", "-p", "other.img", "-n", "on-raw.vhd", "-m"]);
    fs::remove_file(here.join("raw-parent.img")).unwrap();
    assert_eq!(guest(here, "on-raw.vhd"), before);
}

#[test]
fn parents_that_cannot_be_are_refused() {
    let folder =
        golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd", "empty-10m.vhd", "fixed-4m.vhd", "raw-parent.img"]);
    let here = folder.path();
    done(here, &["snapshot", "-n", "small.vhd", "-p", "empty-10m.vhd"]);
    let before = files(here);
    for (image, parent, code) in [
        ("mid.vhd", "leaf.vhd", 22),
        ("mid.vhd", "mid.vhd", 22),
        ("base.vhd", "empty-10m.vhd", 22),
        ("fixed-4m.vhd", "empty-10m.vhd", 22),
        ("small.vhd", "base.vhd", 22),
        ("leaf.vhd", "raw-parent.img", 22),
        ("leaf.vhd", "none.vhd", 2),
        ("none.vhd", "base.vhd", 2),
    ] {
        refused(here, &["modify", "-n", image, "-p", parent], code);
    }
    refused(here, &["modify", "-n", "leaf.vhd"], 22);
    refused(here, &["modify", "-n", "leaf.vhd", "-m"], 22);
    assert_eq!(files(here), before);
}

#[test]
fn an_image_ends_where_it_is_told_to() {
    let folder = golden::unpack(&["mid.vhd", "base.vhd", "fixed-4m.vhd"]);
    let here = folder.path();
    for image in ["mid.vhd", "fixed-4m.vhd"] {
        let (before, bytes) = (guest(here, image), fs::read(here.join(image)).unwrap());
        let larger = (bytes.len() + (1 << 20)).to_string();
        assert_eq!(done(here, &["modify", "-s", &larger, "-n", image]), "");
        assert_eq!(fs::metadata(here.join(image)).unwrap().len().to_string(), larger);
        assert_eq!(guest(here, image), before);
        assert!(fs::read(here.join(image)).unwrap().ends_with(&bytes[bytes.len() - 512..]));
        refused(here, &["modify", "-s", &(bytes.len() - 512).to_string(), "-n", image], 22);
        refused(here, &["modify", "-s", "511", "-n", image], 22);
        refused(here, &["modify", "-s", &(bytes.len() + 100).to_string(), "-n", image], 22);
        done(here, &["modify", "--debug", "-s", &bytes.len().to_string(), "-n", image]);
        assert!(fs::read(here.join(image)).unwrap() == bytes, "{image} is what it was");
    }
}

#[test]
fn what_an_image_holds_is_dropped() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "meta.vhd"]);
    let here = folder.path();
    done(here, &["modify", "--debug", "-z", "-n", "mid.vhd"]);
    assert_eq!(guest(here, "mid.vhd"), guest(here, "base.vhd"));
    assert_eq!(done(here, &["query", "-as", "-n", "mid.vhd"]), "5120\n0\n");
    assert_eq!(fs::metadata(here.join("mid.vhd")).unwrap().len(), 5120);
    is_sound(&here.join("mid.vhd"));

    let before = done(here, &["key", "-p", "-n", "meta.vhd"]);
    done(here, &["modify", "-z", "-n", "meta.vhd"]);
    assert_eq!(done(here, &["query", "-vfma", "-n", "meta.vhd"]), "10\nhidden: 1\nmarker: 5\n0\n");
    assert_eq!(done(here, &["key", "-p", "-n", "meta.vhd"]), before);
    write(here, "meta.vhd", 0, &vec![1; 4 << 20]);
    is_sound(&here.join("meta.vhd"));
}

/// A BAT of many sectors takes another way, and comes back to where it was.
#[test]
fn what_a_large_image_holds_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    done(here, &["create", "-n", "large.vhd", "-s", "4096"]);
    let empty = fs::read(here.join("large.vhd")).unwrap();
    for offset in [0, 1 << 30, 3 << 30] {
        write(here, "large.vhd", offset, &vec![9; 3 << 20]);
    }
    done(here, &["modify", "-z", "-n", "large.vhd"]);
    assert!(fs::read(here.join("large.vhd")).unwrap() == empty, "it is as it was made");
    is_sound(&here.join("large.vhd"));
}

#[test]
fn a_fixed_image_has_nothing_that_could_be_dropped() {
    let folder = golden::unpack(&["fixed-4m.vhd", "poisoned.vhd"]);
    let before = files(folder.path());
    refused(folder.path(), &["modify", "-z", "-n", "fixed-4m.vhd"], 22);
    refused(folder.path(), &["modify", "-z", "-n", "poisoned.vhd"], 22);
    assert_eq!(files(folder.path()), before);
}

#[test]
fn without_space_for_another_parent_an_image_keeps_its_end_footer() {
    for call in ["pwrite64", "ftruncate", "fdatasync"] {
        for number in 1.. {
            let folder = testkit::scratch::folder();
            let here = folder.path();
            done(here, &["create", "-n", "a.vhd", "-s", "8"]);
            done(here, &["snapshot", "-n", "c.vhd", "-p", "a.vhd"]);
            let run = process(here, &["modify", "-n", "c.vhd", "-p", "a.vhd"]);
            let injected = inject::fail_from(&run, call, number, "ENOSPC");
            if !injected.hit {
                break;
            }
            assert_eq!(injected.output.status.code(), Some(28), "{call} {number}");
            let image: Image<ReadOnly> = Image::open(&here.join("c.vhd"), Lock::None).unwrap();
            assert_eq!(image.footer_origin(), FooterOrigin::End, "{call} {number}");
            done(here, &["check", "-t", "-n", "c.vhd"]);
        }
    }
}
