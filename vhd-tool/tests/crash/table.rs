//! The operations, each on a repository of its own.

use std::ops::Range;
use std::path::Path;
use std::sync::LazyLock;

use testkit::inject::kill_at;
use testkit::pattern;
use testkit::scene::Scene;
use vhd_core::{BlockSize, ByteCount, Sector, SectorRange};

use crate::case::{Case, Change, SECTORS};
use crate::program::{Program, vhd_tool};

use Program::{Collect, Compose, Revert, Tool, ToolWith};

/// A hidden base and a hidden child of it, both with data.
fn run(scene: &Scene) {
    scene.dynamic("base.vhd", SECTORS);
    scene.write("base.vhd", 0..60, 1);
    scene.write("base.vhd", 100..130, 1);
    scene.hide("base.vhd");
    scene.child("mid.vhd", "base.vhd");
    scene.write("mid.vhd", 30..75, 2);
    scene.scatter("mid.vhd", 16..20, 2);
    scene.hide("mid.vhd");
}

/// A volume on that.
fn chain(scene: &Scene) {
    run(scene);
    scene.child("leaf.vhd", "mid.vhd");
    scene.scatter("leaf.vhd", 4..12, 3);
    scene.write("leaf.vhd", 200..210, 3);
}

/// Three volumes on that.
fn three_children(scene: &Scene) {
    chain(scene);
    scene.child("second.vhd", "mid.vhd");
    scene.write("second.vhd", 0..9, 4);
    scene.child("third.vhd", "mid.vhd");
}

fn chain_on_a_root(scene: &Scene) {
    scene.dynamic("root.vhd", SECTORS);
    scene.write("root.vhd", 0..140, 9);
    scene.hide("root.vhd");
    scene.child("base.vhd", "root.vhd");
    scene.scatter("base.vhd", 2..8, 1);
    scene.hide("base.vhd");
    scene.child("mid.vhd", "base.vhd");
    scene.write("mid.vhd", 30..75, 2);
    scene.hide("mid.vhd");
    scene.child("leaf.vhd", "mid.vhd");
    scene.write("leaf.vhd", 10..90, 3);
    scene.child("other.vhd", "root.vhd");
    scene.write("other.vhd", 120..130, 4);
}

/// A volume with two others beside it, one of them larger and one that has written nothing.
fn snapshots(scene: &Scene) {
    chain(scene);
    scene.larger_child("second.vhd", "mid.vhd", SECTORS + 40);
    scene.write("second.vhd", 0..9, 4);
    scene.write("second.vhd", SECTORS + 30..SECTORS + 40, 4);
    scene.child("third.vhd", "mid.vhd");
}

/// What a volume holds that is to be a child of another.
const HELD: [Range<u64>; 2] = [20..53, 190..SECTORS + 32];

/// A volume, and a larger one that has no parent.
fn apart(scene: &Scene) {
    chain(scene);
    scene.dynamic("new.vhd", SECTORS + 40);
    HELD.into_iter().for_each(|sectors| scene.write("new.vhd", sectors, 6));
}

fn apart_on_a_base(scene: &Scene) {
    chain(scene);
    scene.dynamic("old.vhd", SECTORS);
    scene.write("old.vhd", 0..100, 5);
    scene.hide("old.vhd");
    scene.larger_child("new.vhd", "old.vhd", SECTORS + 40);
    HELD.into_iter().for_each(|sectors| scene.write("new.vhd", sectors, 6));
}

/// A base with little in it, and much above it, of which 2 MiB of the disk are merged at a time.
fn much_to_merge(scene: &Scene) {
    scene.dynamic("base.vhd", 4 * 4096 + 768);
    scene.write("base.vhd", 0..60, 1);
    scene.hide("base.vhd");
    scene.child("mid.vhd", "base.vhd");
    scene.write("mid.vhd", 30..75, 2);
    scene.write("mid.vhd", 4096..4096 + 300, 2);
    scene.hide("mid.vhd");
    scene.child("leaf.vhd", "mid.vhd");
    (0..5).for_each(|part| scene.write("leaf.vhd", part * 4096..part * 4096 + 768, 3));
}

/// The table of blocks needs more room than there is before the first block.
fn chain_that_grows(scene: &Scene) {
    scene.dynamic("base.vhd", SECTORS);
    scene.write("base.vhd", 0..30, 1);
    scene.hide("base.vhd");
    scene.larger_child("mid.vhd", "base.vhd", 2400);
    scene.scatter("mid.vhd", 2..6, 2);
    scene.write("mid.vhd", 2390..2400, 2);
    scene.hide("mid.vhd");
    scene.child("leaf.vhd", "mid.vhd");
    scene.write("leaf.vhd", 8..20, 3);
}

fn fixed_that_grows(scene: &Scene) {
    scene.fixed("base.vhd", 128);
    scene.write("base.vhd", 0..128, 1);
    scene.hide("base.vhd");
    scene.larger_child("mid.vhd", "base.vhd", SECTORS);
    scene.scatter("mid.vhd", 2..6, 2);
    scene.write("mid.vhd", 120..140, 2);
    scene.hide("mid.vhd");
    scene.child("leaf.vhd", "mid.vhd");
    scene.write("leaf.vhd", 8..20, 3);
}

fn chain_on_raw(scene: &Scene) {
    scene.raw("disk.img", SECTORS);
    scene.child("mid.vhd", "disk.img");
    scene.write("mid.vhd", 30..75, 2);
    scene.scatter("mid.vhd", 16..20, 2);
    scene.hide("mid.vhd");
    scene.child("leaf.vhd", "mid.vhd");
    scene.write("leaf.vhd", 8..20, 3);
    scene.child("second.vhd", "mid.vhd");
}

fn fixed(scene: &Scene) {
    scene.fixed("disk.vhd", 128);
    scene.write("disk.vhd", 0..128, 1);
}

/// A volume that holds nothing in its second half.
fn unused_end(scene: &Scene) {
    scene.dynamic("base.vhd", SECTORS);
    scene.write("base.vhd", 0..60, 1);
    scene.hide("base.vhd");
    scene.child("leaf.vhd", "base.vhd");
    scene.scatter("leaf.vhd", 4..12, 3);
    scene.reserve("leaf.vhd", 13..30);
}

/// Blocks of zeros, some of them holes, between others; a child with zeros over data and over nothing.
fn with_zeros(scene: &Scene) {
    scene.dynamic("base.vhd", SECTORS);
    scene.write("base.vhd", 0..200, 1);
    scene.write_zeros("base.vhd", 16..70);
    scene.trim("base.vhd", 90..150);
    scene.reserve("base.vhd", 28..30);
    scene.hide("base.vhd");
    scene.child("leaf.vhd", "base.vhd");
    scene.write_zeros("leaf.vhd", 20..100);
    scene.write("leaf.vhd", 100..120, 2);
    scene.trim("leaf.vhd", 170..240);
    scene.write("leaf.vhd", 150..170, 3);
}

fn forest(scene: &Scene) {
    chain(scene);
    scene.fixed("b-base.vhd", 128);
    scene.write("b-base.vhd", 0..90, 5);
    scene.hide("b-base.vhd");
    scene.child("b-mid.vhd", "b-base.vhd");
    scene.write("b-mid.vhd", 80..100, 6);
    scene.hide("b-mid.vhd");
    for leaf in ["b-leaf.vhd", "b-twin.vhd"] {
        scene.child(leaf, "b-mid.vhd");
    }
    scene.write("b-leaf.vhd", 5..8, 7);
    scene.dynamic("waste.vhd", 128);
    scene.write("waste.vhd", 0..20, 8);
    scene.hide("waste.vhd");
    scene.child("waste-too.vhd", "waste.vhd");
    scene.hide("waste-too.vhd");
}

const RELINK: &[&str] = &["coalesce", "mid.vhd", "--into", "base.vhd", "--threads", "2"];
const TAKE_NAME: &[&str] = &["coalesce", "leaf.vhd", "--into", "base.vhd", "--threads", "1"];

/// A merge that was killed as it moved data.
fn interrupted(scene: &Scene) {
    three_children(scene);
    kill(scene, RELINK, "fdatasync", 4);
}

fn interrupted_otherwise(scene: &Scene) {
    chain(scene);
    kill(scene, RELINK, "fdatasync", 3);
}

fn kill(scene: &Scene, arguments: &[&str], call: &str, number: usize) {
    scene.settle();
    assert!(kill_at(vhd_tool(arguments).current_dir(scene.path()), call, number).hit);
    assert!(!testkit::scene::state_files(scene.path()).is_empty());
}

/// What `vhd-tool write` is given.
static INPUT: LazyLock<&'static Path> = LazyLock::new(|| {
    let folder = Box::leak(Box::new(testkit::scratch::folder()));
    let path = folder.path().join("input");
    std::fs::write(&path, pattern::fill(SectorRange::between(Sector(20), Sector(90)), 11)).unwrap();
    Box::leak(path.into_boxed_path())
});

/// Makes a function of each operation that gives its case.
macro_rules! cases {
    ($($name:ident: $build:ident, $program:expr, $change:expr, $images:expr;)*) => {
        $(pub(crate) fn $name() -> Case {
            let (name, block_size) = (stringify!($name), BlockSize::new(4096).unwrap());
            Case { name, block_size, build: $build, program: $program, change: $change, images: $images, free: None }
        })*
    };
}

cases! {
    create: chain, Tool(&["create", "new.vhd", "--size", "128K", "--block-size", "4K"]), new(None), 4;
    create_a_child: chain, Tool(&["create", "new.vhd", "--parent", "mid.vhd"]), new(Some("mid.vhd")), 4;
    write: chain, ToolWith(&["write", "leaf.vhd", "--offset", "10K"], &INPUT), Change::Written("leaf.vhd", 20..90, 11), 3;
    snapshot: three_children, Tool(&["snapshot", "leaf.vhd", "new.vhd"]), new(Some("leaf.vhd")), 7;
    clone: chain, Tool(&["clone", "leaf.vhd", "new.vhd"]), new(Some("leaf.vhd")), 5;
    clone_with_shared_parent: three_children, Tool(&["clone", "third.vhd", "new.vhd"]), new(Some("third.vhd")), 6;
    delete: three_children, Tool(&["delete", "leaf.vhd"]), Change::Disappears("leaf.vhd"), 4;
    delete_hides: volume_with_child, Tool(&["delete", "leaf.vhd"]), Change::Disappears("leaf.vhd"), 4;
    relink: three_children, Tool(RELINK), Change::None, 4;
    take_name: chain, Tool(TAKE_NAME), Change::None, 1;
    up: chain, Tool(&["coalesce", "leaf.vhd", "--into", "base.vhd", "--up", "--threads", "2"]), Change::None, 1;
    up_to_a_parent: chain_on_a_root, Tool(&["coalesce", "leaf.vhd", "--into", "base.vhd", "--up"]), Change::None, 3;
    grow: chain_that_grows, Tool(RELINK), Change::None, 2;
    grow_and_take_name: chain_that_grows, Tool(TAKE_NAME), Change::None, 1;
    grow_fixed: fixed_that_grows, Tool(RELINK), Change::None, 2;
    grow_fixed_and_take_name: fixed_that_grows, Tool(TAKE_NAME), Change::None, 1;
    raw: chain_on_raw, Tool(&["coalesce", "mid.vhd", "--into", "disk.img"]), Change::None, 2;
    resume: interrupted, Tool(RELINK), Change::None, 4;
    supersede: interrupted_otherwise, Tool(TAKE_NAME), Change::None, 1;
    revert: snapshots, Revert("leaf.vhd", "second.vhd"), Change::Reverted("leaf.vhd", "second.vhd"), 7;
    revert_with_shared_parent: snapshots, Revert("leaf.vhd", "third.vhd"), Change::Reverted("leaf.vhd", "third.vhd"), 6;
    compose: apart, Compose("new.vhd", "leaf.vhd"), Change::Composed("new.vhd", "leaf.vhd", &HELD), 4;
    compose_over_another_parent: apart_on_a_base, Compose("new.vhd", "leaf.vhd"),
        Change::Composed("new.vhd", "leaf.vhd", &HELD), 5;
    resize_to_more: chain, Tool(&["resize", "leaf.vhd", "2M"]), Change::Resized("leaf.vhd", 4096), 3;
    resize_fixed_to_more: fixed, Tool(&["resize", "disk.vhd", "96K"]), Change::Resized("disk.vhd", 192), 1;
    resize_to_less: unused_end, Tool(&["resize", "leaf.vhd", "50K"]), Change::Resized("leaf.vhd", 100), 2;
    resize_and_discard: chain, Tool(&["resize", "leaf.vhd", "18K", "--discard"]), Change::Resized("leaf.vhd", 36), 3;
    resize_fixed_and_discard: fixed, Tool(&["resize", "disk.vhd", "18K", "--discard"]), Change::Resized("disk.vhd", 36), 1;
    compact: with_zeros, Tool(&["compact", "base.vhd"]), Change::Compacted, 2;
    compact_a_child: with_zeros, Tool(&["compact", "leaf.vhd"]), Change::Compacted, 2;
    collect: forest, Collect, Change::None, 4;
    collect_an_interrupted_merge: interrupted, Collect, Change::None, 4;
}

/// A merge for which there is so little room that it goes in steps.
pub(crate) fn merge_in_steps() -> Case {
    let (block_size, free) = (BlockSize::new(32 << 10).unwrap(), Some(ByteCount(1_750_000)));
    Case { name: "merge_in_steps", block_size, build: much_to_merge, free, ..take_name() }
}

fn new(like: Option<&'static str>) -> Change {
    Change::Appears("new.vhd", like)
}

/// Makes a test of each operation, which gives its case to a function.
macro_rules! test_each_case {
    ($check:ident) => {
        $crate::table::test_each_case! { $check:
            create create_a_child write snapshot clone clone_with_shared_parent delete delete_hides relink take_name
            up up_to_a_parent grow grow_and_take_name grow_fixed grow_fixed_and_take_name raw resume supersede
            merge_in_steps revert revert_with_shared_parent compose compose_over_another_parent resize_to_more
            resize_fixed_to_more resize_to_less resize_and_discard resize_fixed_and_discard compact compact_a_child
            collect collect_an_interrupted_merge
        }
    };
    ($check:ident: $($name:ident)*) => {
        $(#[test]
        fn $name() {
            $check($crate::table::$name());
        })*
    };
}
pub(crate) use test_each_case;

fn volume_with_child(scene: &Scene) {
    chain(scene);
    scene.child("above.vhd", "leaf.vhd");
    scene.write("above.vhd", 40..50, 5);
}
