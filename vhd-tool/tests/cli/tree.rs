use std::fs;

use serde_json::Value;
use testkit::golden;

use crate::program::{done, json, refused, write};

fn image<'a>(tree: &'a Value, name: &str) -> &'a Value {
    let images = tree["images"].as_array().expect("the tree lists images");
    let found = images.iter().find(|image| image["file"].as_str().is_some_and(|file| file.ends_with(name)));
    found.unwrap_or_else(|| panic!("{name} is not in {tree}"))
}

#[test]
fn parents_come_before_children_with_sizes_and_depth() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd", "sibling.vhd", "meta.vhd"]);
    let tree = json(folder.path(), &["tree", "."]);
    let images = tree["images"].as_array().unwrap();
    let listed: Vec<_> =
        images.iter().map(|image| (image["file"].as_str().unwrap(), image["depth"].as_u64().unwrap())).collect();
    let expected = [("./base.vhd", 1), ("./mid.vhd", 2), ("./leaf.vhd", 3), ("./sibling.vhd", 3), ("./meta.vhd", 1)];
    assert_eq!(listed, expected);
    assert_eq!(image(&tree, "leaf.vhd")["parent"], "./mid.vhd");
    assert_eq!(image(&tree, "leaf.vhd")["size"], 64 << 20);
    let own = image(&tree, "leaf.vhd")["own_size"].as_u64().unwrap();
    assert_eq!(own, crate::program::space(&folder.path().join("leaf.vhd")));
    assert_eq!(image(&tree, "leaf.vhd")["hidden"], false);
    assert_eq!(image(&tree, "meta.vhd")["hidden"], true);
}

#[test]
fn text_is_indented_by_depth() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let text = done(folder.path(), &["tree", "."]);
    let starts: Vec<&str> = text.lines().map(|line| line.split(".vhd").next().unwrap()).skip(1).collect();
    assert_eq!(starts, ["base", "  mid", "    leaf"]);
}

#[test]
fn damaged_files_are_listed_apart_and_are_no_failure() {
    let folder = golden::unpack(&["base.vhd"]);
    fs::write(folder.path().join("bad.vhd"), [0; 4096]).unwrap();
    let tree = json(folder.path(), &["tree", "."]);
    assert_eq!(tree["images"].as_array().unwrap().len(), 1);
    assert_eq!(tree["damaged"][0]["file"], "./bad.vhd");
    assert!(tree["damaged"][0]["reason"].as_str().unwrap().contains("offset 3584"), "{tree}");
    let text = done(folder.path(), &["tree", "."]);
    assert!(text.contains("\ndamaged:\n  ./bad.vhd: not a VHD"), "{text}");
}

#[test]
fn absent_parents_are_shown_missing_or_in_another_place() {
    let folder = golden::unpack(&["leaf.vhd"]);
    let tree = json(folder.path(), &["tree", "."]);
    assert_eq!(image(&tree, "leaf.vhd")["absent_parent"]["uuid"], "3222b98e-d11f-47cb-b3a8-4a73e5ff7caa");
    assert!(done(folder.path(), &["tree", "."]).contains("3222b98e-d11f-47cb-b3a8-4a73e5ff7caa is missing"));

    done(folder.path(), &["create", "base.vhd", "--size", "1M"]);
    fs::create_dir(folder.path().join("sub")).unwrap();
    done(folder.path(), &["create", "sub/child.vhd", "--parent", "base.vhd"]);
    let tree = json(folder.path(), &["tree", "sub"]);
    let elsewhere = image(&tree, "child.vhd")["absent_parent"]["elsewhere"].as_str().unwrap();
    assert!(elsewhere.ends_with("base.vhd"), "{elsewhere}");
}

#[test]
fn a_raw_parent_is_part_of_the_tree() {
    let folder = golden::unpack(&["on-raw.vhd", "raw-parent.img"]);
    let tree = json(folder.path(), &["tree", "."]);
    assert_eq!(image(&tree, "raw-parent.img")["type"], "raw");
    assert_eq!(image(&tree, "on-raw.vhd")["depth"], 2);
}

#[test]
fn a_cycle_is_listed_and_does_not_hang() {
    let folder = tempfile::tempdir().unwrap();
    // Two images that are each other's parent: a is made with b's id as its own once b is its child.
    done(folder.path(), &["create", "root.vhd", "--size", "1M"]);
    done(folder.path(), &["create", "a.vhd", "--parent", "root.vhd"]);
    done(folder.path(), &["create", "b.vhd", "--parent", "a.vhd"]);
    write(folder.path(), "b.vhd", 0, b"x");
    let mut image = vhd_core::Image::open_writable(&folder.path().join("a.vhd")).unwrap();
    let b = vhd_core::Image::<vhd_core::ReadOnly>::open(&folder.path().join("b.vhd"), vhd_core::Lock::None).unwrap();
    let link = vhd_core::ParentLink::new(folder.path(), b.path(), b.footer().unique_id()).unwrap();
    image.relink(&link).unwrap();
    image.close().unwrap();
    let tree = json(folder.path(), &["tree", "."]);
    assert_eq!(tree["images"].as_array().unwrap().len(), 3);
    assert_eq!(done(folder.path(), &["tree", "."]).matches("among its own ancestors").count(), 2);
    refused(folder.path(), &["read", "b.vhd"], 5, &["one of its own descendants", "hint: "]);
}

#[test]
fn an_empty_folder_and_no_folder_differ() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(done(folder.path(), &["tree", "."]), "no images\n");
    refused(folder.path(), &["tree", "nowhere"], 5, &["nowhere: cannot list the folder"]);
}
