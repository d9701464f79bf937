//! What a look at a folder finds: what there is to do, what waits and for what, what is left alone and why.

use std::fs;
use std::path::Path;

use coalesce_worker::{Abort, Coalesce, Direction, Repository, Request, Survey};
use testkit::filesystem::Tmpfs;
use testkit::scene::{self, Scene};
use testkit::worker;
use vhd_core::{ByteCount, ChainOptions, Image, Lock, ReadOnly, Volume};

const SECTORS: u64 = 100;

fn survey(scene: &Scene) -> Survey {
    Survey::of(&Repository::open(scene.path(), ChainOptions::default()).unwrap().0).unwrap()
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into()
}

/// What is left alone, and why.
fn isolated(scene: &Scene) -> Vec<(String, String)> {
    let mut isolated: Vec<_> = survey(scene).isolated.into_iter().map(|it| (name(&it.path), it.reason)).collect();
    isolated.sort();
    isolated
}

/// Hidden images from the lowest to the highest, and a volume on them, each with something of its own.
fn chain(scene: &Scene, names: &[&str]) {
    for (i, name) in names.iter().enumerate() {
        match i.checked_sub(1) {
            None => scene.dynamic(name, SECTORS),
            Some(parent) => {
                scene.hide(names[parent]);
                scene.child(name, names[parent]);
            }
        }
        scene.write(name, i as u64 * 9..i as u64 * 9 + 20, i as u16);
    }
}

#[test]
fn images_are_counted_and_measured() {
    let scene = Scene::default();
    chain(&scene, &["base.vhd", "mid.vhd", "leaf.vhd"]);
    scene.child("twin.vhd", "mid.vhd");
    scene.dynamic("other.vhd", SECTORS);
    let survey = survey(&scene);
    assert_eq!((survey.images, survey.deepest_chain), (5, 3));
    let sizes = fs::read_dir(scene.path()).unwrap().map(|entry| entry.unwrap());
    let images = sizes.filter(|entry| entry.path().extension().is_some_and(|it| it == "vhd") && entry.path().is_file());
    let taken: u64 = images.map(|entry| std::os::unix::fs::MetadataExt::blocks(&entry.metadata().unwrap()) * 512).sum();
    assert_eq!(survey.physical, ByteCount(taken));
    assert!(survey.free > ByteCount(0));
    // What is merged of this, and that it is all of it.
    let runs: Vec<_> = survey.runs().map(|run| (name(&run.node), name(&run.into), run.nodes)).collect();
    assert_eq!(runs, [("mid.vhd".into(), "base.vhd".into(), 2)]);
    assert!(survey.data() > ByteCount(0) && !survey.is_empty());
}

#[test]
fn what_is_in_use_keeps_what_it_needs() {
    let scene = Scene::default();
    chain(&scene, &["base.vhd", "mid.vhd", "top.vhd"]);
    scene.hide("top.vhd");
    let user = Image::<ReadOnly>::open(&scene.file("top.vhd"), Lock::Shared).unwrap();
    let busy = survey(&scene);
    assert!(busy.garbage.is_empty(), "{busy:?}");
    let waiting: Vec<_> = busy.waiting.iter().map(|it| (name(&it.path), it.reason.as_str())).collect();
    let needed = "deleted, but still needed";
    let expected = [("top.vhd", "deleted, but still in use"), ("mid.vhd", needed), ("base.vhd", needed)];
    assert_eq!(waiting, expected.map(|(name, reason)| (name.into(), reason)));
    worker::collect(scene.path());
    assert_eq!(scene::images(scene.path()), 3);
    drop(user);
    let garbage: Vec<_> = survey(&scene).garbage.iter().map(|path| name(path)).collect();
    assert_eq!(garbage, ["top.vhd", "mid.vhd", "base.vhd"], "children before their parents");
    worker::collect(scene.path());
    assert_eq!(scene::images(scene.path()), 0);
}

/// Nothing can be merged down into a leaf in use, nor up out of a disk that has no blocks to leave out.
#[test]
fn between_a_leaf_and_a_disk_without_blocks_the_rest_is_merged() {
    for raw in [false, true] {
        let scene = Scene::default();
        let base = if raw { "base.img" } else { "base.vhd" };
        if raw {
            scene.raw(base, SECTORS);
        } else {
            scene.fixed(base, SECTORS);
            scene.write(base, 0..SECTORS, 9);
            scene.hide(base);
        }
        for (i, (name, parent)) in [("a.vhd", base), ("b.vhd", "a.vhd"), ("leaf.vhd", "b.vhd")].into_iter().enumerate()
        {
            scene.child(name, parent);
            scene.write(name, i as u64 * 10..i as u64 * 10 + 15, i as u16);
            if name != "leaf.vhd" {
                scene.hide(name);
            }
        }
        let before = scene::content(&scene.file("leaf.vhd"));
        let disk = fs::read(scene.file(base)).unwrap();
        let user = Volume::open(&scene.file("leaf.vhd"), &ChainOptions::default()).unwrap();
        let found: Vec<_> =
            survey(&scene).runs().map(|run| (name(&run.node), name(&run.into), run.direction)).collect();
        assert_eq!(found, [("b.vhd".into(), "a.vhd".into(), Direction::Up)], "raw: {raw}");
        worker::collect(scene.path());
        assert_eq!(scene::depth(&scene.file("leaf.vhd")), 3);
        assert!(fs::read(scene.file(base)).unwrap() == disk);
        user.close().unwrap();
        assert!(scene::content(&scene.file("leaf.vhd")) == before);
        // A raw disk cannot take the leaf's name, and all else goes into it.
        let (node, depth) = if raw { ("b.vhd", 2) } else { ("leaf.vhd", 1) };
        let found: Vec<_> =
            survey(&scene).runs().map(|run| (name(&run.node), name(&run.into), run.direction)).collect();
        assert_eq!(found, [(node.into(), base.into(), Direction::Down)]);
        worker::collect(scene.path());
        assert_eq!(scene::depth(&scene.file("leaf.vhd")), depth);
        assert!(scene::content(&scene.file("leaf.vhd")) == before);
        let done = survey(&scene);
        assert!(done.is_empty() && done.waiting.is_empty(), "{done:?}");
    }
}

/// As where its file system was unmounted: another folder is there, with nothing in it.
#[test]
fn a_folder_that_is_another_now_is_not_looked_through() {
    let scene = Scene::default();
    fs::create_dir(scene.file("sr")).unwrap();
    let repository = Repository::open(&scene.file("sr"), ChainOptions::default()).unwrap().0;
    Survey::of(&repository).unwrap();
    fs::rename(scene.file("sr"), scene.file("away")).unwrap();
    fs::create_dir(scene.file("sr")).unwrap();
    Survey::of(&repository).unwrap_err();
}

/// It keeps its name, and so the others go up into it.
#[test]
fn what_lies_below_a_volume_with_children_is_merged_up() {
    let scene = Scene::default();
    // There is much to be moved up, and little to be moved down.
    scene.dynamic("base.vhd", SECTORS);
    scene.write("base.vhd", 0..SECTORS, 1);
    scene.hide("base.vhd");
    for (name, parent) in [("mid.vhd", "base.vhd"), ("volume.vhd", "mid.vhd"), ("above.vhd", "volume.vhd")] {
        scene.child(name, parent);
        scene.write(name, 5..7, 2);
    }
    scene.hide("mid.vhd");
    let before = scene::volumes(scene.path());
    let found: Vec<_> = survey(&scene).runs().map(|run| (name(&run.node), name(&run.into), run.direction)).collect();
    assert_eq!(found, [("volume.vhd".into(), "base.vhd".into(), Direction::Up)]);
    worker::collect(scene.path());
    assert!(scene::volumes(scene.path()) == before);
    assert_eq!(scene::depth(&scene.file("above.vhd")), 2);
}

/// What a smaller image hides would show where blocks are taken out above it: there are no steps, and none are needed.
#[test]
fn what_cannot_go_in_steps_goes_where_there_is_room() {
    let scene = Scene::default();
    chain(&scene, &["base.vhd", "mid.vhd"]);
    scene.hide("mid.vhd");
    scene.larger_child("top.vhd", "mid.vhd", SECTORS + 40);
    scene.write("top.vhd", SECTORS..SECTORS + 8, 5);
    scene.hide("top.vhd");
    scene.child("leaf.vhd", "top.vhd");
    scene.child("twin.vhd", "top.vhd");
    let found = survey(&scene);
    let runs: Vec<_> = found.runs().map(|run| (name(&run.node), name(&run.into), run.fits_in_steps)).collect();
    let fits = found.runs().any(|run| run.direction == Direction::Up);
    assert_eq!(runs, [("top.vhd".into(), "base.vhd".into(), fits)]);
    assert!(found.waiting.is_empty(), "{found:?}");
}

/// Neither way, nor in steps.
#[test]
fn what_has_no_room_waits_and_tells_how_much_is_missing() {
    let disk = Tmpfs::new(ByteCount(64 << 20));
    let scene = Scene::within(disk.path());
    scene.dynamic("base.vhd", 5 * 4096);
    scene.write("base.vhd", 0..3 * 4096, 1);
    scene.hide("base.vhd");
    scene.child("mid.vhd", "base.vhd");
    scene.write("mid.vhd", 4096..5 * 4096, 2);
    scene.hide("mid.vhd");
    scene.child("leaf.vhd", "mid.vhd");
    scene.child("twin.vhd", "mid.vhd");
    disk.leave_free(ByteCount(1 << 19));
    let found = survey(&scene);
    assert_eq!(found.runs().count(), 0);
    let [waiting] = &found.waiting[..] else { panic!("{found:?}") };
    assert!(waiting.path.ends_with("mid.vhd") && waiting.reason.ends_with("are missing"), "{waiting:?}");
    disk.leave_free(ByteCount(32 << 20));
    assert_eq!(survey(&scene).runs().count(), 1);
}

/// They have no ids that could be the same.
#[test]
fn raw_disks_are_not_taken_for_copies_of_each_other() {
    let scene = Scene::default();
    for (raw, child) in [("one.img", "one.vhd"), ("two.img", "two.vhd")] {
        scene.raw(raw, SECTORS);
        scene.child(child, raw);
    }
    assert_eq!(isolated(&scene), []);
}

#[test]
fn trees_in_which_something_is_wrong_are_left_alone() {
    let scene = Scene::default();
    chain(&scene, &["base.vhd", "mid.vhd", "leaf.vhd"]);
    chain(&scene, &["well-base.vhd", "well-mid.vhd", "well.vhd"]);
    assert_eq!(isolated(&scene), []);

    // Two files with one id.
    fs::copy(scene.file("leaf.vhd"), scene.file("copy.vhd")).unwrap();
    let found = isolated(&scene);
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["base.vhd", "copy.vhd", "leaf.vhd", "mid.vhd"]);
    for (name, reason) in &found {
        assert!(reason.contains("the same unique id") && reason.contains("copy.vhd"), "{name}: {reason}");
    }
    fs::remove_file(scene.file("copy.vhd")).unwrap();
    assert_eq!(isolated(&scene), []);

    // Copies of one image in two trees.
    fs::copy(scene.file("well-base.vhd"), scene.file("well-copy.vhd")).unwrap();
    let names: Vec<String> = isolated(&scene).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["well-base.vhd", "well-copy.vhd", "well-mid.vhd", "well.vhd"]);
    fs::remove_file(scene.file("well-copy.vhd")).unwrap();

    // A parent that is gone.
    let aside = scene.path().with_extension("aside");
    fs::rename(scene.file("mid.vhd"), &aside).unwrap();
    let found = isolated(&scene);
    assert!(
        matches!(&found[..], [(name, reason)] if name == "leaf.vhd" && reason.contains("lost its parent")),
        "{found:?}"
    );
    assert_eq!(survey(&scene).runs().map(|run| name(&run.into)).collect::<Vec<_>>(), ["well-base.vhd"]);
    fs::rename(&aside, scene.file("mid.vhd")).unwrap();

    // A damaged image: the collector touches neither that image nor its children.
    let whole = fs::read(scene.file("mid.vhd")).unwrap();
    let mut damaged = whole.clone();
    damaged[512..1536].fill(0);
    fs::write(scene.file("mid.vhd"), damaged).unwrap();
    let found = isolated(&scene);
    let of = |wanted: &str| found.iter().find(|(name, _)| name == wanted).map_or("", |(_, reason)| reason);
    assert!(of("mid.vhd").contains("header") && of("leaf.vhd").contains("lost its parent"), "{found:?}");
    fs::write(scene.file("mid.vhd"), whole).unwrap();

    // One that names another's path, and is no child of it.
    let well = fs::read(scene.file("well-mid.vhd")).unwrap();
    fs::copy(scene.file("leaf.vhd"), scene.file("well-mid.vhd")).unwrap();
    fs::remove_file(scene.file("leaf.vhd")).unwrap();
    let found = isolated(&scene);
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["base.vhd", "mid.vhd", "well-mid.vhd"], "{found:?}");
    assert!(
        found.iter().all(|(_, reason)| reason.contains("well.vhd names") && reason.contains("well-mid.vhd")),
        "{found:?}"
    );
    assert_eq!(survey(&scene).runs().count(), 0);
    fs::rename(scene.file("well-mid.vhd"), scene.file("leaf.vhd")).unwrap();
    fs::write(scene.file("well-mid.vhd"), well).unwrap();
    assert_eq!(isolated(&scene), []);
    assert_eq!(survey(&scene).runs().count(), 2);
}

/// A parent whose name has changed is found by its id, if it is hidden and the only one.
#[test]
fn children_whose_parent_was_renamed_are_strays() {
    let scene = Scene::default();
    chain(&scene, &["base.vhd", "leaf.vhd"]);
    scene.child("twin.vhd", "base.vhd");
    let strays = |scene: &Scene| -> Vec<(String, String)> {
        let mut strays: Vec<_> =
            survey(scene).strays.iter().map(|(child, parent)| (name(child), name(parent))).collect();
        strays.sort();
        strays
    };
    assert_eq!(strays(&scene), []);
    fs::rename(scene.file("base.vhd"), scene.file("renamed.vhd")).unwrap();
    let both = [("leaf.vhd", "renamed.vhd"), ("twin.vhd", "renamed.vhd")];
    assert_eq!(strays(&scene), both.map(|(child, parent)| (child.into(), parent.into())));
    fs::copy(scene.file("renamed.vhd"), scene.file("copy.vhd")).unwrap();
    assert_eq!(strays(&scene), [], "the collector cannot tell which of two files with one id is the parent");
    fs::remove_file(scene.file("copy.vhd")).unwrap();
    Image::open_writable(&scene.file("renamed.vhd")).unwrap().set_hidden(false).unwrap();
    assert_eq!(strays(&scene), [], "a volume is not taken for a base");
}

/// What has been moved in one direction is not moved again in the other, even if that would have been cheaper.
#[test]
fn a_merge_that_was_begun_goes_on() {
    for begun in [Direction::Up, Direction::Down] {
        let scene = Scene::default();
        chain(&scene, &["base.vhd", "mid.vhd"]);
        // The cheaper direction is the other one.
        let most = if begun == Direction::Up { "base.vhd" } else { "mid.vhd" };
        scene.write(most, 0..SECTORS, 7);
        let planned = |scene: &Scene| survey(scene).runs().map(|run| run.direction).collect::<Vec<_>>();
        assert_ne!(planned(&scene), [begun]);
        let repository = Repository::open(scene.path(), ChainOptions::default()).unwrap().0;
        let request =
            Request { node: scene.file("mid.vhd"), into: Some(scene.file("base.vhd")), direction: begun, keep: false };
        let abort = Abort::new();
        let stop = |_: ByteCount| abort.abort();
        worker::interrupt(Coalesce::prepare(&repository, &request).unwrap(), &stop, &abort).unwrap_err();
        assert_eq!(planned(&scene), [begun]);
    }
}
