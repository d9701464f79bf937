//! A volume becomes a child of another.

use std::ops::Range;

use coalesce_worker::{ComposeError, Repository};
use testkit::scene::{self, Scene};
use testkit::{pattern, worker};
use vhd_core::{Chain, ChainError, ChainOptions, Image, Lock, Sector, SectorRange};

fn repository(scene: &Scene) -> Repository {
    worker::repository_of(&scene.file("parent.vhd"), &ChainOptions::default())
}

fn compose(scene: &Scene, child: &str, parent: &str) -> Result<(), ComposeError> {
    repository(scene).compose(&scene.file(child), &scene.file(parent))
}

/// A volume on a base, with a child of its own, and one that has no parent.
fn apart() -> Scene {
    let scene = Scene::default();
    scene.dynamic("base.vhd", 200);
    scene.write("base.vhd", 0..60, 1);
    scene.hide("base.vhd");
    scene.child("parent.vhd", "base.vhd");
    scene.write("parent.vhd", 50..80, 2);
    scene.child("above.vhd", "parent.vhd");
    scene.write("above.vhd", 0..4, 3);
    scene.dynamic("child.vhd", 256);
    scene.write("child.vhd", 70..100, 4);
    scene
}

fn is_hidden(scene: &Scene, name: &str) -> bool {
    Image::open(&scene.file(name), Lock::None).unwrap().footer().hidden()
}

/// What some sectors of a volume over another are.
fn over(below: &[u8], size: u64, held: Range<u64>, tag: u16) -> Vec<u8> {
    let mut content = below.to_vec();
    content.resize(size as usize * 512, 0);
    let range = SectorRange::between(Sector(held.start), Sector(held.end));
    content[held.start as usize * 512..held.end as usize * 512].copy_from_slice(&pattern::fill(range, tag));
    content
}

#[test]
fn the_parent_shows_where_the_child_holds_nothing() {
    let scene = apart();
    let before = scene::volumes(scene.path());
    compose(&scene, "child.vhd", "parent.vhd").unwrap();
    let mut after = before.clone();
    let parent = after.remove("parent.vhd").unwrap();
    after.insert("child.vhd".into(), over(&parent, 256, 70..100, 4));
    assert_eq!(scene::volumes(scene.path()), after);
    assert_eq!(scene::depth(&scene.file("child.vhd")), 3);
    assert!(is_hidden(&scene, "parent.vhd"));
    assert!(scene::state_files(scene.path()).is_empty());
    scene::check(scene.path());

    scene.write("child.vhd", 0..20, 5);
    after.insert("child.vhd".into(), over(&after["child.vhd"], 256, 0..20, 5));
    assert_eq!(scene::volumes(scene.path()), after);
    scene.settle();
    let files = scene::files(scene.path());
    compose(&scene, "child.vhd", "parent.vhd").unwrap();
    assert!(scene::files(scene.path()) == files, "again");
}

#[test]
fn a_child_of_another_is_taken_from_that() {
    let scene = apart();
    scene.dynamic("old.vhd", 200);
    scene.write("old.vhd", 0..200, 7);
    scene.hide("old.vhd");
    scene.larger_child("moved.vhd", "old.vhd", 256);
    scene.write("moved.vhd", 10..12, 8);
    let parent = scene::content(&scene.file("parent.vhd"));
    compose(&scene, "moved.vhd", "parent.vhd").unwrap();
    assert_eq!(scene::content(&scene.file("moved.vhd")), over(&parent, 256, 10..12, 8));
    assert!(is_hidden(&scene, "parent.vhd"));
    scene::check(scene.path());
}

#[test]
fn a_parent_that_is_visible_again_is_hidden_again() {
    let scene = apart();
    compose(&scene, "child.vhd", "parent.vhd").unwrap();
    Image::open_writable(&scene.file("parent.vhd")).unwrap().set_hidden(false).unwrap();
    compose(&scene, "child.vhd", "parent.vhd").unwrap();
    assert!(is_hidden(&scene, "parent.vhd"));
}

#[test]
fn what_cannot_be_composed_is_left_alone() {
    let scene = apart();
    scene.fixed("fixed.vhd", 256);
    scene.dynamic("small.vhd", 100);
    std::fs::copy(scene.file("child.vhd"), scene.file("copy.vhd")).unwrap();
    scene.settle();
    let before = scene::files(scene.path());
    let refused = |child: &str, parent: &str| compose(&scene, child, parent).unwrap_err();
    assert!(matches!(refused("fixed.vhd", "parent.vhd"), ComposeError::Fixed { .. }));
    assert!(matches!(refused("small.vhd", "parent.vhd"), ComposeError::Smaller { .. }));
    assert!(matches!(refused("base.vhd", "child.vhd"), ComposeError::Hidden { .. }));
    assert!(matches!(refused("child.vhd", "child.vhd"), ComposeError::Cycle { .. }));
    assert!(matches!(refused("child.vhd", "copy.vhd"), ComposeError::Cycle { .. }));
    assert!(matches!(refused("parent.vhd", "above.vhd"), ComposeError::Cycle { .. }));
    assert!(matches!(refused("child.vhd", "missing.vhd"), ComposeError::File(_)));
    for used in ["child.vhd", "parent.vhd"] {
        let user = Image::open_writable(&scene.file(used)).unwrap();
        assert!(matches!(refused("child.vhd", "parent.vhd"), ComposeError::Chain(_)), "{used} is in use");
        drop(user);
    }
    let options = ChainOptions { max_depth: 2, ..ChainOptions::default() };
    let shallow = worker::repository_of(&scene.file("parent.vhd"), &options);
    let too_deep = shallow.compose(&scene.file("child.vhd"), &scene.file("parent.vhd")).unwrap_err();
    assert!(matches!(too_deep, ComposeError::Chain(ChainError::TooDeep { .. })), "{too_deep}");
    let mut after = scene::files(scene.path());
    after.retain(|name, _| !name.starts_with(".vhd/"));
    assert!(after == before);
}

#[test]
fn who_reads_through_the_child_refuses_rather_than_reads_something_else() {
    let scene = apart();
    scene.child("grandchild.vhd", "child.vhd");
    compose(&scene, "child.vhd", "parent.vhd").unwrap();
    let error = Chain::open(&scene.file("grandchild.vhd"), &ChainOptions::default()).unwrap_err();
    assert!(matches!(error, ChainError::Parent { .. }) && error.to_string().contains("unique id"), "{error}");
    let collected = worker::collect(scene.path());
    assert!(collected.merged.is_empty() && collected.isolated[0].reason.contains("grandchild.vhd"), "{collected:?}");
}
