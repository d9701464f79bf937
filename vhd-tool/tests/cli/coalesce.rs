use std::fs;

use testkit::golden;

use crate::program::{done, ended, expected, files, guest, json, names, refused, write};

#[test]
fn children_of_the_node_are_relinked_to_the_ancestor() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd", "sibling.vhd"]);
    let merged = json(folder.path(), &["coalesce", "mid.vhd"]);
    assert_eq!(names(folder.path()), ["base.vhd", "leaf.vhd", "sibling.vhd"]);
    for (image, reads_as) in [("leaf.vhd", "leaf.vhd"), ("sibling.vhd", "sibling.vhd"), ("base.vhd", "mid.vhd")] {
        assert_eq!(guest(folder.path(), image), expected(reads_as), "{image}");
    }
    let file = |name: &str| folder.path().join(name).canonicalize().unwrap().display().to_string();
    assert_eq!(merged["relinked"], serde_json::json!([file("leaf.vhd"), file("sibling.vhd")]));
    assert_eq!(merged["deleted"].as_array().unwrap().len(), 1);
    assert_eq!(merged["target"], file("base.vhd"));
    assert!(merged["renamed"].is_null());
    assert_eq!(done(folder.path(), &["check", "leaf.vhd", "--chain"]).matches("nothing found").count(), 2);
}

#[test]
fn the_ancestor_takes_the_name_of_a_node_without_children() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let (text, notes) = ended(folder.path(), &["coalesce", "leaf.vhd", "--into", "base.vhd", "--threads", "2"], 0);
    assert_eq!(names(folder.path()), ["leaf.vhd"]);
    assert_eq!(guest(folder.path(), "leaf.vhd"), expected("leaf.vhd"));
    assert_eq!(json(folder.path(), &["info", "leaf.vhd"])["type"], "dynamic");
    for line in ["moved ", "\nrenamed ", "\ndeleted "] {
        assert_eq!(text.matches(line).count(), 1, "{line:?} in {text}");
    }
    assert!(!text.lines().any(|line| line.starts_with("deleted") && line.ends_with("base.vhd")), "{text}");
    // The golden parents are not hidden, so somebody may know them as volumes.
    assert!(notes.contains("mid.vhd is no hidden base but a volume, and is deleted"), "{notes}");
    assert!(notes.contains("base.vhd is no hidden base but a volume, and its content changes"), "{notes}");
}

#[test]
fn hidden_bases_are_worth_no_note() {
    let folder = golden::unpack(&["fixed-4m.vhd"]);
    done(folder.path(), &["snapshot", "fixed-4m.vhd", "snap.vhd"]);
    write(folder.path(), "fixed-4m.vhd", 100, b"x");
    fs::remove_file(folder.path().join("snap.vhd")).unwrap();
    let before = guest(folder.path(), "fixed-4m.vhd");
    let merged = json(folder.path(), &["coalesce", "fixed-4m.vhd"]);
    assert_eq!(merged["notes"], serde_json::json!([]));
    assert_eq!(guest(folder.path(), "fixed-4m.vhd"), before);
    assert_eq!(json(folder.path(), &["info", "fixed-4m.vhd"])["hidden"], false);
    assert_eq!(names(folder.path()), ["fixed-4m.vhd"]);
}

#[test]
fn keep_only_merges() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let before = files(folder.path());
    done(folder.path(), &["coalesce", "leaf.vhd", "--into", "base.vhd", "--keep"]);
    let after = files(folder.path());
    assert_eq!((&after["mid.vhd"], &after["leaf.vhd"]), (&before["mid.vhd"], &before["leaf.vhd"]));
    assert_eq!(guest(folder.path(), "base.vhd"), expected("leaf.vhd"));
    assert_eq!(guest(folder.path(), "leaf.vhd"), expected("leaf.vhd"));
}

#[test]
fn a_raw_target_is_merged_into_but_takes_no_name() {
    let folder = golden::unpack(&["on-raw.vhd", "raw-parent.img"]);
    let before = files(folder.path());
    refused(folder.path(), &["coalesce", "on-raw.vhd"], 5, &["raw-parent.img", "is a raw disk", "hint: with --keep"]);
    assert_eq!(files(folder.path()), before);
    done(folder.path(), &["coalesce", "on-raw.vhd", "--keep"]);
    let raw = fs::read(folder.path().join("raw-parent.img")).unwrap();
    assert_eq!(testkit::sha256(&raw), expected("on-raw.vhd"));
}

#[test]
fn a_run_with_another_child_is_refused_and_the_child_is_named() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd", "sibling.vhd"]);
    let before = files(folder.path());
    for into in [&[][..], &["--into", "base.vhd"], &["--keep"]] {
        let args = [&["coalesce", "leaf.vhd"][..], into].concat();
        refused(folder.path(), &args, 5, &["mid.vhd: has another child", "sibling.vhd", "hint: "]);
    }
    assert_eq!(files(folder.path()), before);
}

#[test]
fn what_is_no_run_is_refused() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd", "sibling.vhd"]);
    let before = files(folder.path());
    refused(folder.path(), &["coalesce", "base.vhd"], 5, &["base.vhd: has no parent", "hint: "]);
    let args = ["coalesce", "leaf.vhd", "--into", "sibling.vhd"];
    refused(folder.path(), &args, 5, &["sibling.vhd: is not an ancestor of", "leaf.vhd", "hint: "]);
    assert_eq!(files(folder.path()), before);
}

#[test]
fn a_dry_run_tells_all_and_changes_nothing() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd"]);
    let before = files(folder.path());
    let plan = json(folder.path(), &["coalesce", "leaf.vhd", "--into", "base.vhd", "--dry-run"]);
    let text = done(folder.path(), &["coalesce", "leaf.vhd", "--into", "base.vhd", "--dry-run"]);
    assert_eq!(files(folder.path()), before);

    assert_eq!(plan["sources"].as_array().unwrap().len(), 2);
    let number = |name: &str| plan[name].as_u64().unwrap_or_else(|| panic!("{name} in {plan}"));
    assert_eq!(number("bytes_read"), number("data") + number("tables_read"));
    assert_eq!(number("bytes_written"), number("data") + number("tables_written"));
    assert!(number("new_blocks") > 0 && number("new_blocks") < number("blocks"));
    assert!(number("space_needed") > 0 && number("space_needed") < number("space_free"));
    assert!(plan["then"]["rename"]["to"].as_str().unwrap().ends_with("/leaf.vhd"));
    assert!(plan["then"]["delete"][0].as_str().unwrap().ends_with("/mid.vhd"));
    for line in ["merge ", "into ", "read ", "write ", "blocks ", "space needed ", "rename ", "delete ", "note "] {
        assert!(text.lines().any(|found| found.starts_with(line)), "{line:?} in {text}");
    }

    // What was planned is what moves.
    let merged = json(folder.path(), &["coalesce", "leaf.vhd", "--into", "base.vhd"]);
    assert_eq!(merged["data"], plan["data"]);
}

#[test]
fn the_plan_of_a_kept_merge_keeps_the_files() {
    let folder = golden::unpack(&["base.vhd", "mid.vhd", "leaf.vhd", "sibling.vhd"]);
    let text = done(folder.path(), &["coalesce", "mid.vhd", "--keep", "--dry-run"]);
    assert!(text.contains("\nkeep         all files"), "{text}");
    let plan = json(folder.path(), &["coalesce", "mid.vhd", "--dry-run"]);
    assert_eq!(plan["then"]["relink"].as_array().unwrap().len(), 2);
    assert!(plan["then"]["rename"].is_null());
}

#[test]
fn names_need_not_be_ascii() {
    let folder = tempfile::tempdir().unwrap();
    done(folder.path(), &["create", "основа.vhd", "--size", "4M"]);
    done(folder.path(), &["create", "середина.vhd", "--parent", "основа.vhd"]);
    write(folder.path(), "середина.vhd", 5, b"data");
    done(folder.path(), &["create", "叶.vhd", "--parent", "середина.vhd"]);
    let before = guest(folder.path(), "叶.vhd");
    done(folder.path(), &["coalesce", "середина.vhd"]);
    assert_eq!(names(folder.path()), ["основа.vhd", "叶.vhd"]);
    assert_eq!(guest(folder.path(), "叶.vhd"), before);
}
