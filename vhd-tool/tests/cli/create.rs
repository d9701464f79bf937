use std::fs;

use testkit::golden;
use vhd_core::{BlockSize, ByteCount, DiskType, Image, Lock, ReadOnly};

use crate::program::{done, ended, expected, files, guest, json, refused, write};

fn image(folder: &std::path::Path, name: &str) -> Image<ReadOnly> {
    Image::open(&folder.join(name), Lock::None).expect("the image opens")
}

#[test]
fn a_dynamic_image_is_empty_and_has_the_size_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let text = done(folder.path(), &["create", "a.vhd", "--size", "64M"]);
    assert!(text.starts_with("created a.vhd: 64.0 MiB (67108864 bytes), uuid "), "{text}");
    let image = image(folder.path(), "a.vhd");
    assert_eq!(image.footer().disk_type(), DiskType::Dynamic);
    assert_eq!(image.footer().current_size(), ByteCount(64 << 20));
    assert_eq!(image.header().unwrap().block_size(), BlockSize::DEFAULT);
    assert_eq!(image.allocated_blocks().count(), 0);
}

#[test]
fn type_and_block_size_are_as_asked() {
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), &["create", "f.vhd", "--size", "1M", "--type", "fixed"]);
    assert_eq!(image(folder.path(), "f.vhd").footer().disk_type(), DiskType::Fixed);
    assert_eq!(fs::metadata(folder.path().join("f.vhd")).unwrap().len(), (1 << 20) + 512);
    done(folder.path(), &["create", "d.vhd", "--size", "1M", "--block-size", "64k"]);
    assert_eq!(image(folder.path(), "d.vhd").header().unwrap().block_size().get(), 64 << 10);
}

#[test]
fn json_tells_what_was_made() {
    let folder = tempfile::tempdir().unwrap();
    let made = json(folder.path(), &["create", "a.vhd", "--size", "1M"]);
    assert_eq!(made["file"], "a.vhd");
    assert_eq!(made["size"], 1 << 20);
    assert!(made["parent"].is_null());
    let uuid = image(folder.path(), "a.vhd").footer().unique_id().to_string();
    assert_eq!(made["uuid"], uuid);
}

#[test]
fn an_existing_file_is_replaced_only_with_force() {
    let folder = golden::unpack(&["fixed-4m.vhd"]);
    let before = files(folder.path());
    let create = ["create", "fixed-4m.vhd", "--size", "1M"];
    refused(folder.path(), &create, 5, &["error: fixed-4m.vhd: exists already", "hint: --force"]);
    assert_eq!(files(folder.path()), before);
    done(folder.path(), &[&create[..], &["--force"]].concat());
    assert_eq!(image(folder.path(), "fixed-4m.vhd").footer().current_size(), ByteCount(1 << 20));
}

#[test]
fn force_replaces_nothing_but_regular_files() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("precious"), "x").unwrap();
    std::os::unix::fs::symlink("precious", folder.path().join("link.vhd")).unwrap();
    let create = ["create", "link.vhd", "--size", "1M", "--force"];
    refused(folder.path(), &create, 5, &["link.vhd", "not a regular file"]);
    assert!(folder.path().join("link.vhd").is_symlink());
}

#[test]
fn force_does_not_replace_an_image_in_use() {
    let folder = golden::unpack(&["fixed-4m.vhd"]);
    let before = files(folder.path());
    let _open = Image::open_writable(&folder.path().join("fixed-4m.vhd")).unwrap();
    let create = ["create", "fixed-4m.vhd", "--size", "1M", "--force"];
    refused(folder.path(), &create, 5, &["fixed-4m.vhd: cannot replace it", "locked", "hint: another process"]);
    assert_eq!(files(folder.path()), before);
}

#[test]
fn sizes_that_cannot_be_are_wrong_usage() {
    let folder = tempfile::tempdir().unwrap();
    for (size, part) in [("1000", "1000 bytes"), ("0", "0 bytes"), ("2041G", "2190433320960"), ("many", "not a size")] {
        refused(folder.path(), &["create", "a.vhd", "--size", size], 2, &["error: ", part]);
    }
    refused(folder.path(), &["create", "a.vhd", "--size", "1M", "--block-size", "3M"], 2, &["power of two"]);
    refused(
        folder.path(),
        &["create", "a.vhd", "--size", "1M", "--type", "fixed", "--block-size", "2M"],
        2,
        &["no blocks"],
    );
    refused(folder.path(), &["create", "a.vhd"], 2, &["--size"]);
    assert_eq!(files(folder.path()).len(), 0);
}

#[test]
fn a_child_reads_as_its_parent_and_has_its_size_and_block_size() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let (_, notes) = ended(folder.path(), &["create", "child.vhd", "--parent", "leaf.vhd"], 0);
    assert!(notes.contains("leaf.vhd is no hidden base"), "{notes}");
    assert_eq!(guest(folder.path(), "child.vhd"), expected("leaf.vhd"));
    let (child, parent) = (image(folder.path(), "child.vhd"), image(folder.path(), "leaf.vhd"));
    assert_eq!(child.header().unwrap().parent_unique_id(), parent.footer().unique_id());
    assert_eq!(child.footer().current_size(), parent.footer().current_size());

    done(folder.path(), &["create", "small.vhd", "--size", "1M", "--block-size", "4K"]);
    done(folder.path(), &["create", "kid.vhd", "--parent", "small.vhd"]);
    assert_eq!(image(folder.path(), "kid.vhd").header().unwrap().block_size().get(), 4096);
}

#[test]
fn a_child_may_be_larger_and_never_smaller() {
    let folder = golden::unpack(&["fixed-4m.vhd"]);
    done(folder.path(), &["create", "large.vhd", "--parent", "fixed-4m.vhd", "--size", "8M"]);
    assert_eq!(image(folder.path(), "large.vhd").footer().current_size(), ByteCount(8 << 20));
    let smaller = ["create", "small.vhd", "--parent", "fixed-4m.vhd", "--size", "2M"];
    refused(folder.path(), &smaller, 2, &["small.vhd", "2097152", "fixed-4m.vhd", "4194304"]);
}

#[test]
fn a_raw_parent_has_no_id_and_gives_its_content() {
    let folder = golden::unpack(&["raw-parent.img"]);
    done(folder.path(), &["create", "child.vhd", "--parent", "raw-parent.img", "--parent-raw"]);
    let header = image(folder.path(), "child.vhd");
    assert!(header.header().unwrap().parent_unique_id().is_nil());
    let raw = fs::read(folder.path().join("raw-parent.img")).unwrap();
    assert_eq!(guest(folder.path(), "child.vhd"), testkit::sha256(&raw));
}

#[test]
fn a_raw_parent_of_odd_length_is_filled_up_with_zeros() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("odd.img"), [7; 1000]).unwrap();
    done(folder.path(), &["create", "c.vhd", "--parent", "odd.img", "--parent-raw"]);
    assert_eq!(image(folder.path(), "c.vhd").footer().current_size(), ByteCount(1024));
    let content = [vec![7; 1000], vec![0; 24]].concat();
    assert_eq!(guest(folder.path(), "c.vhd"), testkit::sha256(&content));
}

#[test]
fn a_raw_file_is_no_parent_unless_it_is_said_to_be_raw() {
    let folder = golden::unpack(&["raw-parent.img"]);
    let create = ["create", "child.vhd", "--parent", "raw-parent.img"];
    refused(folder.path(), &create, 5, &["raw-parent.img: not a VHD", "offset 4999680"]);
    refused(folder.path(), &["create", "child.vhd", "--size", "1M", "--parent-raw"], 2, &["--parent"]);
}

#[test]
fn a_child_never_replaces_its_own_ancestor() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd"]);
    let before = files(folder.path());
    let create = ["create", "base.vhd", "--parent", "mid.vhd", "--force"];
    refused(folder.path(), &create, 5, &["base.vhd: would be replaced", "mid.vhd"]);
    assert_eq!(files(folder.path()), before);
}

#[test]
fn names_need_not_be_ascii() {
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), &["create", "größe 磁盘.vhd", "--size", "1M"]);
    done(folder.path(), &["create", "ребёнок.vhd", "--parent", "größe 磁盘.vhd"]);
    let info = json(folder.path(), &["info", "ребёнок.vhd", "--chain"]);
    assert_eq!(info[0]["parent"]["name"], "größe 磁盘.vhd");
    assert!(info[1]["file"].as_str().unwrap().ends_with("größe 磁盘.vhd"));
}

#[test]
fn sizes_as_xapis_tool_is_given_them_are_whole_blocks() {
    let folder = tempfile::tempdir().unwrap();
    for (text, size) in
        [("1KiB", 2 << 20), ("3MiB", 4 << 20), ("4MiB", 4 << 20), ("3M", 3 << 20), ("524800", 1025 << 9)]
    {
        done(folder.path(), &["create", "disk.vhd", "--force", "--size", text]);
        assert_eq!(done(folder.path(), &["get", "disk.vhd", "current-size"]), format!("{size}\n"), "{text}");
    }
}

/// Who deletes or merges in one folder looks into no other; so its repository is told of a child that is made elsewhere.
#[test]
fn a_parent_in_another_folder_is_kept_for_its_child() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    fs::create_dir(&a).unwrap();
    fs::create_dir(&b).unwrap();
    done(&a, &["create", "v.vhd", "--size", "1M"]);
    write(&a, "v.vhd", 0, &[7; 4096]);
    done(folder.path(), &["create", "b/c.vhd", "--parent", "a/v.vhd"]);
    let content = guest(&b, "c.vhd");
    refused(&a, &["snapshot", "v.vhd", "s.vhd"], 5, &["c.vhd"]);
    let kept = done(&a, &["delete", "v.vhd"]);
    assert!(kept.contains("hidden"), "{kept}");
    for is_mounted in [true, false, true] {
        if !is_mounted {
            fs::rename(&b, folder.path().join("away")).unwrap();
        }
        let (told, _) = ended(&a, &["gc", "."], 3);
        assert!(told.contains("c.vhd"), "{told}");
        if !is_mounted {
            fs::rename(folder.path().join("away"), &b).unwrap();
        }
        assert_eq!(guest(&b, "c.vhd"), content);
    }
    // Once the child is gone for good, nothing is kept for it.
    fs::remove_file(b.join("c.vhd")).unwrap();
    done(&a, &["gc", "."]);
    assert!(!a.join("v.vhd").exists());
}
