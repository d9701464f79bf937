//! Children that cannot be read just now: what they may need stays, and nothing else waits for them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use coalesce_worker::{Abort, Coalesce, Deleted, Direction, Repository, Request, ResizeError, Shrink};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use testkit::scene::{self, Scene};
use testkit::worker;
use vhd_core::{ByteCount, ChainOptions, Image};

const SECTORS: u64 = 100;

/// A tree with something to merge, and two volumes on a base.
fn two_trees() -> Scene {
    let scene = Scene::default();
    scene.dynamic("other-base.vhd", SECTORS);
    scene.write("other-base.vhd", 0..48, 1);
    scene.hide("other-base.vhd");
    scene.child("other-mid.vhd", "other-base.vhd");
    scene.write("other-mid.vhd", 40..64, 2);
    scene.hide("other-mid.vhd");
    scene.child("other.vhd", "other-mid.vhd");
    scene.dynamic("base.vhd", SECTORS);
    scene.write("base.vhd", 0..50, 3);
    scene.hide("base.vhd");
    scene.child("child.vhd", "base.vhd");
    scene.write("child.vhd", 7..30, 4);
    // Nothing is merged into a base with two children.
    scene.child("twin.vhd", "base.vhd");
    scene
}

/// What can happen to a child at `path`, which is kept at `aside` meanwhile.
type Damage = fn(path: &Path, aside: &Path);

const DAMAGES: [(&str, Damage); 6] = [
    ("its file system is not mounted", |path, aside| symlink(aside.with_file_name("nowhere"), path).unwrap()),
    ("the storage fails", |path, _| symlink(path.file_name().unwrap(), path).unwrap()),
    ("it is empty", |path, _| fs::write(path, "").unwrap()),
    ("it is cut short", |path, aside| fs::write(path, &fs::read(aside).unwrap()[..1000]).unwrap()),
    ("its start and its end are lost", |path, aside| {
        let mut bytes = fs::read(aside).unwrap();
        let end = bytes.len() - 512;
        bytes[..4096].fill(0);
        fs::write(path, &bytes[..end]).unwrap();
    }),
    ("it is something else", |path, _| fs::write(path, "no image".repeat(500)).unwrap()),
];

fn damage(scene: &Scene, name: &str, what: Damage) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let aside = folder.path().join("aside");
    fs::copy(scene.file(name), &aside).unwrap();
    fs::remove_file(scene.file(name)).unwrap();
    what(&scene.file(name), &aside);
    folder
}

fn undo(scene: &Scene, name: &str, aside: &tempfile::TempDir) {
    fs::remove_file(scene.file(name)).unwrap();
    fs::copy(aside.path().join("aside"), scene.file(name)).unwrap();
}

fn is_there(scene: &Scene, name: &str) -> bool {
    scene.file(name).exists()
}

#[test]
fn the_base_of_a_child_that_was_seen_before_stays_and_nothing_else_waits() {
    for name in ["child.vhd", "child"] {
        for (why, what) in DAMAGES {
            let scene = two_trees();
            fs::rename(scene.file("child.vhd"), scene.file(name)).unwrap();
            let other = scene::content(&scene.file("other.vhd"));
            let before = scene::content(&scene.file(name));
            worker::snapshot(&scene.file("other.vhd"), &scene.file("more.vhd")).unwrap();
            worker::collect(scene.path());
            let repository = Repository::open(scene.path(), ChainOptions::default()).unwrap().0;
            repository.delete(&scene.file("more.vhd")).unwrap();

            let aside = damage(&scene, name, what);
            repository.delete(&scene.file("twin.vhd")).unwrap();
            for _ in 0..2 {
                worker::collect(scene.path());
                assert!(is_there(&scene, "base.vhd"), "{name}: {why}");
            }
            assert_eq!(scene::depth(&scene.file("other.vhd")), 1, "{name}: {why}");
            assert!(scene::content(&scene.file("other.vhd")) == other, "{name}: {why}");
            undo(&scene, name, &aside);
            assert!(scene::content(&scene.file(name)) == before, "{name}: {why}");
            worker::collect(scene.path());
            assert!(scene::content(&scene.file(name)) == before, "{name}: {why}");
        }
    }
}

/// What a volume loses by getting smaller, a child of it would lose, too.
#[test]
fn a_volume_does_not_shrink_beside_a_file_that_may_be_its_child() {
    let scene = two_trees();
    let aside = damage(&scene, "child.vhd", DAMAGES[1].1);
    let repository = Repository::open(scene.path(), ChainOptions::default()).unwrap().0;
    let shrink = || repository.resize_or_shrink(&scene.file("other.vhd"), ByteCount(8 * 512), Shrink::Discard);
    let refused = shrink().unwrap_err();
    assert!(matches!(&refused, ResizeError::MayHaveChild { file, .. } if file.ends_with("child.vhd")), "{refused}");
    undo(&scene, "child.vhd", &aside);
    shrink().unwrap();
}

/// After a merge the child names another parent than before, also where no collection has looked since.
#[test]
fn the_base_that_a_child_was_linked_to_stays() {
    for collected in [true, false] {
        let scene = two_trees();
        worker::snapshot(&scene.file("other.vhd"), &scene.file("more.vhd")).unwrap();
        let expected = ["other.vhd", "more.vhd"].map(|name| scene::content(&scene.file(name)));
        if collected {
            worker::collect(scene.path());
        } else {
            let layers = scene::layers(&scene.file("other.vhd"));
            let (node, into) = (layers[1].clone(), layers.last().cloned());
            let request = Request { node, into, direction: Direction::Down, keep: false };
            worker::coalesce(&request, &ChainOptions::default()).unwrap();
        }
        assert_eq!(scene::depth(&scene.file("other.vhd")), 2);
        let [other, more] = ["other.vhd", "more.vhd"].map(|name| damage(&scene, name, DAMAGES[3].1));
        worker::collect(scene.path());
        undo(&scene, "other.vhd", &other);
        undo(&scene, "more.vhd", &more);
        assert!(["other.vhd", "more.vhd"].map(|name| scene::content(&scene.file(name))) == expected);
    }
}

/// No collection has looked since: the snapshot itself records what the parents of its images are.
#[test]
fn the_base_of_a_child_that_was_just_made_stays() {
    for volume in ["child.vhd", "empty.vhd"] {
        for (why, what) in DAMAGES {
            let scene = two_trees();
            scene.child("empty.vhd", "base.vhd");
            worker::snapshot(&scene.file(volume), &scene.file("more.vhd")).unwrap();
            let before = scene::content(&scene.file("more.vhd"));
            let aside = damage(&scene, "more.vhd", what);
            let repository = Repository::open(scene.path(), ChainOptions::default()).unwrap().0;
            for name in ["child.vhd", "twin.vhd", "empty.vhd"] {
                repository.delete(&scene.file(name)).unwrap();
            }
            worker::collect(scene.path());
            undo(&scene, "more.vhd", &aside);
            assert!(scene::content(&scene.file("more.vhd")) == before, "{volume}: {why}");
        }
    }
}

/// The process that merged was killed when the merged file had just got the volume's name: it is a child of what the one that
/// was merged into it stood on.
#[test]
fn the_base_of_a_merged_file_that_has_just_got_its_name_stays() {
    for (why, what) in DAMAGES {
        let scene = two_trees();
        scene.child("beside.vhd", "other-base.vhd");
        let before = scene::content(&scene.file("other.vhd"));
        let repository = Repository::open(scene.path(), ChainOptions::default()).unwrap().0;
        let node = scene.file("other.vhd");
        let into = Some(scene.file("other-mid.vhd"));
        let request = Request { node, into, direction: Direction::Down, keep: false };
        worker::interrupt(Coalesce::prepare(&repository, &request).unwrap(), &|_| (), &Abort::new()).unwrap_err();
        Image::open_writable(&scene.file("other-mid.vhd")).unwrap().set_hidden(false).unwrap();
        fs::rename(scene.file("other-mid.vhd"), scene.file("other.vhd")).unwrap();
        drop(Repository::open(scene.path(), ChainOptions::default()).unwrap());
        assert_eq!(scene::depth(&scene.file("other.vhd")), 2, "{why}");
        let aside = damage(&scene, "other.vhd", what);
        repository.delete(&scene.file("beside.vhd")).unwrap();
        worker::collect(scene.path());
        undo(&scene, "other.vhd", &aside);
        assert!(scene::content(&scene.file("other.vhd")) == before, "{why}");
    }
}

/// As does whatever that needs.
#[test]
fn what_may_have_lost_its_child_keeps_its_own_parents() {
    for (why, what) in DAMAGES {
        let scene = two_trees();
        let before = scene::content(&scene.file("other.vhd"));
        let aside = damage(&scene, "other.vhd", what);
        let collected = worker::collect(scene.path());
        for name in ["other-mid.vhd", "other-base.vhd"] {
            assert!(is_there(&scene, name), "{why}: {name}");
            assert!(collected.waiting.iter().any(|waiting| waiting.path.ends_with(name)), "{why}: {name}");
        }
        undo(&scene, "other.vhd", &aside);
        worker::collect(scene.path());
        assert!(scene::content(&scene.file("other.vhd")) == before, "{why}");
    }
}

/// Nobody has ever seen what a file was. What may have lost its last child by that stays, and is told; what was deleted on
/// purpose goes.
#[test]
fn a_file_that_nobody_has_seen_whole_holds_back_what_has_lost_its_children() {
    for (why, what) in DAMAGES {
        let scene = two_trees();
        let before = scene::content(&scene.file("child.vhd"));
        fs::remove_file(scene.file("twin.vhd")).unwrap();
        let aside = damage(&scene, "child.vhd", what);
        let repository = Repository::open(scene.path(), ChainOptions::default()).unwrap().0;
        let may_come_back = matches!(why, "its file system is not mounted" | "the storage fails");
        if !may_come_back {
            assert_eq!(repository.delete(&scene.file("other.vhd")).unwrap(), Deleted::Removed, "{why}");
        }
        let collected = worker::collect(scene.path());
        for name in ["other-mid.vhd", "other-base.vhd"] {
            assert_eq!(is_there(&scene, name), may_come_back, "{why}: {name}");
        }
        assert!(is_there(&scene, "base.vhd"), "{why}");
        let told = collected.waiting.iter().find(|waiting| waiting.path.ends_with("base.vhd")).unwrap();
        assert!(told.reason.contains("child.vhd") && told.reason.contains("move it"), "{why}: {told:?}");
        undo(&scene, "child.vhd", &aside);
        worker::collect(scene.path());
        assert!(scene::content(&scene.file("child.vhd")) == before, "{why}");
    }
}

/// What is kept is a hint: it is never believed before a file that can be read, and its loss loses nothing else.
#[test]
fn what_was_kept_is_no_more_than_a_hint() {
    let scene = two_trees();
    worker::collect(scene.path());
    let kept = scene.path().join(".vhd/parents");
    let text = fs::read_to_string(&kept).unwrap();
    assert!(text.contains(r#""file":"child.vhd""#) && text.contains(r#""paths":["base.vhd"]"#), "{text}");
    let repository = Repository::open(scene.path(), ChainOptions::default()).unwrap().0;
    for wrong in ["", "torn", "\n{\"file\":\"child.vhd\"", "[]\n\n\0", &text[..text.len() / 2]] {
        fs::write(&kept, wrong).unwrap();
        worker::collect(scene.path());
        let text = fs::read_to_string(&kept).unwrap();
        assert!(text.contains(r#""file":"child.vhd","parent":{"id":"#), "{wrong:?}: {text}");
    }
    // Links and pipes are neither followed nor waited for.
    let aside = scene.path().join("aside");
    fs::write(&aside, "mine").unwrap();
    fs::remove_file(&kept).unwrap();
    symlink(&aside, &kept).unwrap();
    worker::collect(scene.path());
    fs::remove_file(&kept).unwrap();
    assert_eq!(fs::read_to_string(&aside).unwrap(), "mine");
    fs::remove_file(&aside).unwrap();
    mknodat(CWD, &kept, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    worker::collect(scene.path());
    fs::remove_file(&kept).unwrap();
    worker::collect(scene.path());
    // A person deletes the children by hand, and they are gone for good.
    fs::remove_file(scene.file("child.vhd")).unwrap();
    fs::remove_file(scene.file("twin.vhd")).unwrap();
    worker::collect(scene.path());
    assert!(!is_there(&scene, "base.vhd"));
    repository.delete(&scene.file("other.vhd")).unwrap();
    worker::collect(scene.path());
    assert_eq!(scene::images(scene.path()), 0);
}

/// The end of an image is lost. Neither a merge into it nor one above it hides that.
#[test]
fn a_loss_is_found_before_a_merge_and_after_it() {
    for name in ["other-base.vhd", "other-mid.vhd"] {
        for is_above in [false, true] {
            let scene = two_trees();
            let path = scene.file(name);
            if is_above {
                scene.hide("other.vhd");
                scene.child("top.vhd", "other.vhd");
                scene.write("top.vhd", 0..9, 5);
                scene.child("top-too.vhd", "other.vhd");
            }
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_len(file.metadata().unwrap().len() - 512 - 3000).unwrap();
            let lost = |path: &Path| {
                let report = vhd_core::check::file(path).unwrap();
                report.findings().iter().any(|finding| finding.code == "block-truncated")
            };
            assert!(lost(&path), "{name}");
            let images = scene::images(scene.path());
            let collected = worker::collect(scene.path());
            let waits = collected.waiting.iter().any(|waiting| waiting.reason.contains(name));
            let failed = collected.failed.iter().any(|failed| failed.error.to_string().contains(name));
            assert!(waits || failed, "{name}: {collected:?}");
            assert_eq!(scene::images(scene.path()), images, "{name}: nothing of this tree is merged");
            assert!(lost(&path), "{name}");
        }
    }
}
