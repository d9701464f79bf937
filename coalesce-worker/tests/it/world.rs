//! The world has changed between a process's death and the recovery, or between a look and a lock: volumes have been written,
//! children made, names taken, and several journals speak of one tree.

use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use coalesce_worker::{
    Abort, Budget, Coalesce, CoalesceError, CopyMethod, DeleteError, Deleted, Direction, MergeOptions, Repository,
    Request, Snapshotted, Unfinished, WaitReason,
};
use rustix::fs::{CWD, IFlags, RenameFlags, ioctl_getflags, ioctl_setflags, renameat_with};
use testkit::scene::{self, Scene};
use testkit::{pattern, worker};
use vhd_core::{
    ChainOptions, FileStorage, HeaderChange, Image, Lock, MergeMark, MetadataError, ParentLink, Sector, SectorRange,
    Volume,
};

const SECTORS: u64 = 400;

fn open(folder: &Path) -> Repository {
    let (repository, recovered) = Repository::open(folder, ChainOptions::default()).unwrap();
    assert!(recovered.waiting.is_empty(), "{recovered:?}");
    repository
}

/// What a disk holds after these writes, one over the other.
fn disk(writes: &[(Range<u64>, u16)]) -> Vec<u8> {
    let mut disk = vec![0; SECTORS as usize * 512];
    for (sectors, tag) in writes {
        let data = pattern::fill(SectorRange::between(Sector(sectors.start), Sector(sectors.end)), *tag);
        disk[sectors.start as usize * 512..][..data.len()].copy_from_slice(&data);
    }
    disk
}

const BASE: (Range<u64>, u16) = (0..200, 1);
const MID: (Range<u64>, u16) = (150..250, 2);
const LEAF: (Range<u64>, u16) = (100..110, 3);

fn add(scene: &Scene, name: &str, (sectors, tag): (Range<u64>, u16)) {
    scene.write(name, sectors, tag);
}

/// A hidden base, a hidden child of it, and a volume on that; each has something that the others have not.
fn chain() -> Scene {
    let scene = Scene::default();
    scene.dynamic("base.vhd", SECTORS);
    add(&scene, "base.vhd", BASE);
    scene.hide("base.vhd");
    scene.child("mid.vhd", "base.vhd");
    add(&scene, "mid.vhd", MID);
    scene.hide("mid.vhd");
    scene.child("leaf.vhd", "mid.vhd");
    add(&scene, "leaf.vhd", LEAF);
    scene.settle();
    scene
}

fn request(scene: &Scene, node: &str, into: &str, direction: Direction) -> Request {
    Request { node: scene.file(node), into: Some(scene.file(into)), direction, keep: false }
}

/// Executes a merge that is aborted before it moves anything, or where `merged`, just after its data is durable.
fn interrupt(repository: &Repository, request: &Request, merged: bool) {
    let (budget, abort) = (Budget::default(), Abort::new());
    let prepared = Coalesce::prepare(repository, request).unwrap();
    if !merged {
        abort.abort();
    }
    let options = MergeOptions {
        threads: None,
        progress: &|_| (),
        merged: &|| abort.abort(),
        budget: &budget,
        abort: &abort,
        method: CopyMethod::Auto,
        detect_zeroes: false,
        checkpoint_every: None,
    };
    prepared.execute(&options).unwrap_err();
    let text = journals(repository.folder()).concat();
    assert!(text.contains(r#""record":"merge""#) && text.contains(r#""record":"merged""#) == merged, "{text}");
}

fn journals(folder: &Path) -> Vec<String> {
    let mut names = scene::state_files(folder);
    names.retain(|name| name.ends_with(".journal"));
    let read = |name: &String| fs::read(folder.join(".vhd").join(name)).unwrap();
    names.iter().map(|name| String::from_utf8_lossy(&read(name)).into_owned()).collect()
}

/// The only journal there is gets another name: journals are taken in the order of their names.
fn rename_journal(folder: &Path, name: &str) {
    let names = scene::state_files(folder);
    let journal = names.iter().find(|name| name.ends_with(".journal")).unwrap();
    fs::rename(folder.join(".vhd").join(journal), folder.join(".vhd").join(name)).unwrap();
}

/// A record as it stands in a journal.
fn frame(text: &str) -> Vec<u8> {
    let length = (text.len() as u32).to_be_bytes();
    let crc = !length.iter().chain(text.as_bytes()).fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    });
    [&length[..], &crc.to_be_bytes(), text.as_bytes()].concat()
}

/// Leaves the journal of a process that has died.
pub(crate) fn leave_journal(folder: &Path, name: &str, text: &str) {
    fs::create_dir_all(folder.join(".vhd")).unwrap();
    fs::write(folder.join(".vhd").join(name), [b"vhdjrnl1".to_vec(), frame(text)].concat()).unwrap();
}

fn unique_id(scene: &Scene, name: &str) -> vhd_core::Uuid {
    Image::open(&scene.file(name), Lock::None).unwrap().footer().unique_id()
}

/// Recovers, and checks that the volumes are these and nothing else, whole and alone.
fn recovers_to(scene: &Scene, volumes: &[(&str, Vec<u8>)], images: usize) {
    open(scene.path());
    let found = scene::volumes(scene.path());
    assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), volumes.iter().map(|it| it.0).collect::<Vec<_>>());
    for (name, content) in volumes {
        assert!(found[*name] == *content, "{name} has changed");
    }
    scene::check(scene.path());
    assert_eq!(scene::images(scene.path()), images);
    assert_eq!(scene::state_files(scene.path()), <[String; 0]>::default());
}

#[test]
fn a_volume_that_was_written_after_its_merge_keeps_that() {
    let scene = chain();
    interrupt(&open(scene.path()), &request(&scene, "leaf.vhd", "base.vhd", Direction::Down), true);
    let late = (20..30, 9);
    add(&scene, "leaf.vhd", late.clone());
    recovers_to(&scene, &[("leaf.vhd", disk(&[BASE, MID, LEAF, late]))], 3);
}

/// A process was killed just before the target, which has a mark, was to take the place of a volume.
fn show_with_mark(scene: &Scene, target: &str) {
    let mark = MergeMark { merge: vhd_core::Uuid::from_u128(4), merged_before: Sector(SECTORS) };
    let mut image = Image::open_writable(&scene.file(target)).unwrap();
    image.set_merge_mark(Some(mark)).unwrap();
    image.set_hidden(false).unwrap();
}

/// What the footers say of a merge goes with it, and the target is no volume.
#[test]
fn a_merge_that_is_forgotten_leaves_no_mark() {
    let scene = chain();
    interrupt(&open(scene.path()), &request(&scene, "leaf.vhd", "base.vhd", Direction::Down), true);
    show_with_mark(&scene, "base.vhd");
    let mark = || Image::open(&scene.file("base.vhd"), Lock::None).unwrap().footer().merge_mark();
    assert!(mark().is_some());
    add(&scene, "leaf.vhd", (20..30, 9));
    recovers_to(&scene, &[("leaf.vhd", disk(&[BASE, MID, LEAF, (20..30, 9)]))], 3);
    assert!(mark().is_none());
}

/// Of a merge with checkpoints that went to its end nothing is left in the footers, whatever it ended in.
#[test]
fn a_merge_that_is_done_leaves_no_mark() {
    for (node, target) in [("mid.vhd", "base.vhd"), ("leaf.vhd", "leaf.vhd")] {
        let scene = chain();
        interrupt(&open(scene.path()), &request(&scene, node, "base.vhd", Direction::Down), true);
        let mark = MergeMark { merge: vhd_core::Uuid::from_u128(4), merged_before: MergeMark::ALL };
        Image::open_writable(&scene.file("base.vhd")).unwrap().set_merge_mark(Some(mark)).unwrap();
        open(scene.path());
        let image = Image::open(&scene.file(target), Lock::None).unwrap();
        assert!(image.footer().merge_mark().is_none(), "{node}");
        assert!(scene::state_files(scene.path()).is_empty());
        assert!(scene::content(&scene.file("leaf.vhd")) == disk(&[BASE, MID, LEAF]));
    }
}

#[test]
fn a_volume_that_was_not_gets_the_merged_file() {
    let scene = chain();
    interrupt(&open(scene.path()), &request(&scene, "leaf.vhd", "base.vhd", Direction::Down), true);
    recovers_to(&scene, &[("leaf.vhd", disk(&[BASE, MID, LEAF]))], 1);
}

/// Recovery waits for the program that uses an image of the run, whichever image that is.
#[test]
fn a_merge_is_not_finished_while_one_of_its_images_is_in_use() {
    for direction in [Direction::Down, Direction::Up] {
        for used in ["base.vhd", "mid.vhd", "leaf.vhd"] {
            let scene = chain();
            interrupt(&open(scene.path()), &request(&scene, "leaf.vhd", "base.vhd", direction), true);
            let user = Image::open_writable(&scene.file(used)).unwrap();
            let recovered = Repository::open(scene.path(), ChainOptions::default()).unwrap().1;
            let waits = matches!(
                &recovered.waiting[..],
                [Unfinished { reason: WaitReason::InUse, path }] if path.ends_with(used)
            );
            assert!(waits, "{direction:?} {used}: {recovered:?}");
            drop(user);
            recovers_to(&scene, &[("leaf.vhd", disk(&[BASE, MID, LEAF]))], 1);
        }
    }
}

/// A merge whose volume then was to be snapshotted: the second name that this gave the volume's file must go first, or it
/// would be left over as a volume of its own.
#[test]
fn merges_are_finished_after_everything_else() {
    let scene = chain();
    interrupt(&open(scene.path()), &request(&scene, "leaf.vhd", "base.vhd", Direction::Down), true);
    rename_journal(scene.path(), "0.journal");
    fs::hard_link(scene.file("leaf.vhd"), scene.file("new-base.vhd")).unwrap();
    for prepared in ["a.vhd", "b.vhd"] {
        fs::write(scene.file(".vhd").join(prepared), "not there yet").unwrap();
    }
    let id = vhd_core::Uuid::from_u128(5);
    let text = format!(
        r#"{{"record":"snapshot","volume":"leaf.vhd","snapshot":"snap.vhd","base":"new-base.vhd","new_volume_id":"{id}","prepared_volume":".vhd/a.vhd","prepared_snapshot":".vhd/b.vhd"}}"#
    );
    leave_journal(scene.path(), "1.journal", &text);
    recovers_to(&scene, &[("leaf.vhd", disk(&[BASE, MID, LEAF]))], 1);
}

/// Power failed as the header of the image that all was merged into changed.
fn torn_header() -> Scene {
    let scene = chain();
    interrupt(&open(scene.path()), &request(&scene, "leaf.vhd", "mid.vhd", Direction::Up), true);
    let link = ParentLink::new(scene.path(), &scene.file("base.vhd"), unique_id(&scene, "base.vhd")).unwrap();
    let mut change = None;
    let mut image = Image::open_writable(&scene.file("leaf.vhd")).unwrap();
    let stopped = image.relink_recorded(&link, |it: &HeaderChange| {
        change = Some(it.clone());
        Err(MetadataError::NoParent { path: "leaf.vhd".into() })
    });
    stopped.unwrap_err();
    drop(image);
    let HeaderChange { at, old, new, texts } = change.unwrap();
    let mut bytes = fs::read(scene.file("leaf.vhd")).unwrap();
    bytes[at.0 as usize..][..512].copy_from_slice(&new[..512]);
    fs::write(scene.file("leaf.vhd"), bytes).unwrap();
    Image::open(&scene.file("leaf.vhd"), Lock::None).unwrap_err();
    let texts: Vec<String> = texts.iter().map(|(at, text)| format!("[{},{text:?}]", at.0)).collect();
    let texts = texts.join(",");
    let text = format!(
        r#"{{"record":"header","image":"leaf.vhd","at":{},"old":{old:?},"new":{new:?},"texts":[{texts}]}}"#,
        at.0
    );
    let journal = scene.file(".vhd").join(&scene::state_files(scene.path())[0]);
    fs::write(&journal, [fs::read(&journal).unwrap(), frame(&text)].concat()).unwrap();
    scene
}

#[test]
fn a_torn_header_of_the_target_is_mended_before_the_rest() {
    let scene = torn_header();
    let user = FileStorage::open(&scene.file("leaf.vhd"), Lock::Shared).unwrap();
    let recovered = Repository::open(scene.path(), ChainOptions::default()).unwrap().1;
    assert!(matches!(&recovered.waiting[..], [Unfinished { reason: WaitReason::InUse, .. }]), "{recovered:?}");
    drop(user);
    recovers_to(&scene, &[("leaf.vhd", disk(&[BASE, MID, LEAF]))], 2);
}

#[test]
fn a_torn_header_goes_with_its_image() {
    let scene = torn_header();
    fs::remove_file(scene.file("leaf.vhd")).unwrap();
    recovers_to(&scene, &[], 2);
}

/// Another tool makes a child of an image that is about to be deleted, for which it needs none of our locks.
#[test]
fn what_has_a_child_again_is_not_deleted() {
    let scene = chain();
    let repository = open(scene.path());
    let prepared = Coalesce::prepare(&repository, &request(&scene, "mid.vhd", "base.vhd", Direction::Down)).unwrap();
    let reader = FileStorage::open(&scene.file("leaf.vhd"), Lock::Shared).unwrap();
    let outcome = worker::execute(prepared).unwrap();
    assert!(outcome.waits_for.is_some() && scene.file("mid.vhd").exists());
    scene.child("late.vhd", "mid.vhd");
    let late = scene::content(&scene.file("late.vhd"));
    drop(reader);
    open(scene.path());
    assert!(scene::content(&scene.file("late.vhd")) == late);
    assert!(scene::content(&scene.file("leaf.vhd")) == disk(&[BASE, MID, LEAF]));
}

#[test]
fn what_a_collection_was_to_delete_is_looked_at_again() {
    let scene = chain();
    let id = unique_id(&scene, "mid.vhd");
    let text = format!(r#"{{"record":"linked","obsolete":[{{"path":"mid.vhd","unique_id":"{id}"}}],"readers":[]}}"#);
    leave_journal(scene.path(), "0.journal", &text);
    recovers_to(&scene, &[("leaf.vhd", disk(&[BASE, MID, LEAF]))], 3);
}

#[test]
fn what_a_merge_leaves_takes_no_other_file_of_that_name() {
    let scene = chain();
    scene.hide("leaf.vhd");
    let leave = |id| {
        let text =
            format!(r#"{{"record":"linked","obsolete":[{{"path":"leaf.vhd","unique_id":"{id}"}}],"readers":[]}}"#);
        leave_journal(scene.path(), "0.journal", &text);
        open(scene.path());
        assert!(scene::state_files(scene.path()).is_empty());
    };
    leave(vhd_core::Uuid::from_u128(8));
    assert!(scene.file("leaf.vhd").exists());
    leave(unique_id(&scene, "leaf.vhd"));
    assert!(!scene.file("leaf.vhd").exists());
}

/// The data of a source is another since: the merge is forgotten, and a volume that was deleted meanwhile stays so.
#[test]
fn a_merge_that_is_forgotten_brings_no_volume_back() {
    let scene = chain();
    interrupt(&open(scene.path()), &request(&scene, "leaf.vhd", "mid.vhd", Direction::Up), true);
    scene.write("mid.vhd", 300..310, 9);
    scene.hide("leaf.vhd");
    open(scene.path());
    assert!(Image::open(&scene.file("leaf.vhd"), Lock::None).unwrap().footer().hidden());
    assert!(journals(scene.path()).is_empty() && scene.file("mid.vhd").exists());
}

/// Makes an image look as when it was being changed: its batmap has the checksum of another, and its file is too long.
fn untidy(path: &Path, is_longer: bool) {
    let mut bytes = fs::read(path).unwrap();
    let batmap = bytes.windows(8).position(|it| it == b"tdbatmap").unwrap();
    bytes[batmap + 24..batmap + 28].fill(1);
    if is_longer {
        let end = bytes.len() - 512;
        let footer = bytes.split_off(end);
        bytes.extend([&[0; 9 * 512][..], &footer].concat());
    }
    fs::write(path, bytes).unwrap();
    assert_ne!(untidiness(path), [""; 0]);
}

fn untidiness(path: &Path) -> Vec<&'static str> {
    let report = vhd_core::check::file(path).unwrap();
    let codes = report.findings().iter().map(|finding| finding.code);
    // Those are the tests' own.
    codes.filter(|code| !matches!(*code, "block-size" | "parent-modified")).collect()
}

#[test]
fn what_an_interrupted_change_leaves_untidy_is_mended() {
    // Of a source nothing but the batmap may have changed.
    for (name, is_longer) in [("base.vhd", true), ("mid.vhd", false), ("leaf.vhd", false)] {
        let scene = chain();
        interrupt(&open(scene.path()), &request(&scene, "leaf.vhd", "base.vhd", Direction::Down), false);
        untidy(&scene.file(name), is_longer);
        open(scene.path());
        assert_eq!(untidiness(&scene.file(name)), [""; 0], "{name}");
        assert!(scene::content(&scene.file("leaf.vhd")) == disk(&[BASE, MID, LEAF]));
    }
    // All had moved: what is then left to do is done on a tidy image.
    for direction in [Direction::Down, Direction::Up] {
        let scene = chain();
        interrupt(&open(scene.path()), &request(&scene, "leaf.vhd", "base.vhd", direction), true);
        untidy(&scene.file(if direction == Direction::Down { "base.vhd" } else { "leaf.vhd" }), true);
        recovers_to(&scene, &[("leaf.vhd", disk(&[BASE, MID, LEAF]))], 1);
        assert_eq!(untidiness(&scene.file("leaf.vhd")), [""; 0], "{direction:?}");
    }
    for record in ["compact", "resize"] {
        let scene = chain();
        let path = scene.file("leaf.vhd");
        let length = fs::metadata(&path).unwrap().len();
        let leave = |id: vhd_core::Uuid| {
            let file = format!(r#"{{"path":"leaf.vhd","unique_id":"{id}"}}"#);
            let text = match record {
                "compact" => format!(r#"{{"record":"compact","path":"leaf.vhd","unique_id":"{id}"}}"#),
                _ => format!(r#"{{"record":"resize","file":{file},"length":{length},"shrinks":false}}"#),
            };
            leave_journal(scene.path(), "0.journal", &text);
        };
        untidy(&path, true);
        // Recovery leaves a file alone that has the name in the journal and another id.
        let before = fs::read(&path).unwrap();
        leave(vhd_core::Uuid::from_u128(6));
        open(scene.path());
        assert!(fs::read(&path).unwrap() == before && scene::state_files(scene.path()).is_empty(), "{record}");
        leave(unique_id(&scene, "leaf.vhd"));
        recovers_to(&scene, &[("leaf.vhd", disk(&[BASE, MID, LEAF]))], 3);
        assert_eq!(untidiness(&path), [""; 0], "{record}");
        assert_eq!(fs::metadata(&path).unwrap().len(), length, "{record}");
    }
}

/// What is swept up is what nobody can come back for; what others keep there stays.
#[test]
fn what_never_got_its_name_is_swept_up() {
    let scene = chain();
    let state = scene.file(".vhd");
    open(scene.path()).delete(&scene.file("leaf.vhd")).unwrap();
    for name in ["prepared.vhd", "half.new", "gone.yield", "notes.txt"] {
        fs::write(state.join(name), "left").unwrap();
    }
    open(scene.path());
    assert_eq!(scene::state_files(scene.path()), ["notes.txt"]);
    // The images of a snapshot that cannot be finished now are not among them.
    let scene = snapshot_without_a_name();
    fs::write(scene.file("snap.vhd"), "something else").unwrap();
    drop(Repository::open(scene.path(), ChainOptions::default()).unwrap());
    assert!(scene.file(".vhd/s.vhd").exists());
}

/// A child in the middle of a run whose data has moved: it needs what lies beneath it, under the name it has now.
#[test]
fn a_run_that_has_got_another_child_is_left_as_it_is() {
    let scene = chain();
    interrupt(&open(scene.path()), &request(&scene, "leaf.vhd", "base.vhd", Direction::Down), true);
    show_with_mark(&scene, "base.vhd");
    scene.child("late.vhd", "mid.vhd");
    let late = scene::content(&scene.file("late.vhd"));
    drop(Repository::open(scene.path(), ChainOptions::default()).unwrap());
    let base = Image::open(&scene.file("base.vhd"), Lock::None).unwrap();
    assert!(base.footer().hidden() && base.footer().merge_mark().is_none(), "the base is a base again");
    assert!(journals(scene.path()).is_empty());
    assert!(scene::content(&scene.file("late.vhd")) == late);
    assert!(scene::content(&scene.file("leaf.vhd")) == disk(&[BASE, MID, LEAF]));
    scene::check(scene.path());
}

#[test]
fn a_volume_that_a_damaged_file_may_need_is_only_hidden() {
    let scene = chain();
    scene.child("damaged.vhd", "leaf.vhd");
    let path = scene.file("damaged.vhd");
    let mut bytes = fs::read(&path).unwrap();
    // The header, and with it the name of its parent, is lost.
    bytes[512..1536].fill(0);
    fs::write(&path, bytes).unwrap();
    assert_eq!(open(scene.path()).delete(&scene.file("leaf.vhd")).unwrap(), Deleted::Hidden);
    assert!(scene.file("leaf.vhd").exists());
}

/// The journal of a deletion that was killed.
fn leave_deletion(scene: &Scene, name: &str, id: vhd_core::Uuid) {
    let text = format!(r#"{{"record":"delete","path":"{name}","unique_id":"{id}"}}"#);
    leave_journal(scene.path(), "0.journal", &text);
}

/// It was killed before it had hidden anything, and somebody uses the volume: nothing is left to do, and nothing to wait for.
#[test]
fn a_deletion_that_has_hidden_nothing_is_forgotten() {
    let scene = chain();
    leave_deletion(&scene, "leaf.vhd", unique_id(&scene, "leaf.vhd"));
    let user = Volume::open(&scene.file("leaf.vhd"), &ChainOptions::default()).unwrap();
    open(scene.path());
    user.close().unwrap();
    recovers_to(&scene, &[("leaf.vhd", disk(&[BASE, MID, LEAF]))], 3);
}

#[test]
fn a_deletion_takes_no_other_file_of_that_name() {
    let scene = chain();
    leave_deletion(&scene, "leaf.vhd", vhd_core::Uuid::from_u128(7));
    scene.hide("leaf.vhd");
    open(scene.path());
    assert!(scene.file("leaf.vhd").exists() && scene::state_files(scene.path()).is_empty());
    leave_deletion(&scene, "leaf.vhd", unique_id(&scene, "leaf.vhd"));
    open(scene.path());
    assert!(!scene.file("leaf.vhd").exists());
}

/// In a folder to which files are only added nothing can be deleted.
#[test]
fn a_deletion_that_fails_is_an_error_and_is_done_later() {
    let scene = chain();
    let append_only = |on| {
        let folder = fs::File::open(scene.path()).unwrap();
        let flags = ioctl_getflags(&folder).unwrap();
        let flags = if on { flags | IFlags::APPEND } else { flags - IFlags::APPEND };
        ioctl_setflags(&folder, flags).unwrap();
    };
    let repository = open(scene.path());
    append_only(true);
    let deleted = repository.delete(&scene.file("leaf.vhd"));
    let recovered = Repository::open(scene.path(), ChainOptions::default()).unwrap().1;
    append_only(false);
    assert!(matches!(deleted, Err(DeleteError::File(_))), "{deleted:?}");
    assert!(matches!(&recovered.waiting[..], [it] if it.path.ends_with("leaf.vhd")), "{recovered:?}");
    open(scene.path());
    assert!(!scene.file("leaf.vhd").exists() && scene::state_files(scene.path()).is_empty());
}

#[test]
fn a_merge_that_another_takes_over_is_forgotten() {
    let scene = chain();
    let repository = open(scene.path());
    interrupt(&repository, &request(&scene, "mid.vhd", "base.vhd", Direction::Down), false);
    interrupt(&repository, &request(&scene, "leaf.vhd", "base.vhd", Direction::Down), false);
    assert_eq!(journals(scene.path()).len(), 1);
    assert!(journals(scene.path())[0].contains("leaf.vhd"));
    worker::coalesce(&request(&scene, "leaf.vhd", "base.vhd", Direction::Down), &ChainOptions::default()).unwrap();
    recovers_to(&scene, &[("leaf.vhd", disk(&[BASE, MID, LEAF]))], 1);
}

/// Only who has an image in common with it may forget what it has done.
#[test]
fn an_interrupted_merge_of_another_tree_goes_on() {
    let scene = chain();
    scene.dynamic("low.vhd", SECTORS);
    scene.hide("low.vhd");
    scene.child("high.vhd", "low.vhd");
    scene.write("high.vhd", 5..50, 7);
    scene.settle();
    let repository = open(scene.path());
    let ours = request(&scene, "mid.vhd", "base.vhd", Direction::Down);
    let theirs = request(&scene, "high.vhd", "low.vhd", Direction::Down);
    interrupt(&repository, &ours, false);
    assert_eq!(Coalesce::prepare(&repository, &theirs).unwrap().resumes_at(), None);
    interrupt(&repository, &theirs, false);
    assert_eq!(journals(scene.path()).len(), 2);
    interrupt(&repository, &ours, true);
    assert!(Coalesce::prepare(&repository, &theirs).unwrap().resumes_at().is_some());
    assert_eq!(journals(scene.path()).len(), 2);
    worker::coalesce(&theirs, &ChainOptions::default()).unwrap();
    recovers_to(&scene, &[("high.vhd", disk(&[(5..50, 7)])), ("leaf.vhd", disk(&[BASE, MID, LEAF]))], 3);
}

#[test]
fn a_merge_whose_run_is_gone_is_forgotten() {
    for merged in [false, true] {
        let scene = chain();
        interrupt(&open(scene.path()), &request(&scene, "leaf.vhd", "base.vhd", Direction::Down), merged);
        fs::remove_file(scene.file("leaf.vhd")).unwrap();
        recovers_to(&scene, &[], 2);
    }
}

/// Its journal is what puts right a header that is torn, or a target that already shows.
#[test]
fn a_merge_whose_data_has_moved_is_finished_before_another_begins() {
    let scene = chain();
    let repository = open(scene.path());
    interrupt(&repository, &request(&scene, "mid.vhd", "base.vhd", Direction::Down), true);
    let refused = Coalesce::prepare(&repository, &request(&scene, "leaf.vhd", "base.vhd", Direction::Down));
    assert!(matches!(refused, Err(CoalesceError::Unfinished { .. })), "{refused:?}");
    recovers_to(&scene, &[("leaf.vhd", disk(&[BASE, MID, LEAF]))], 2);
}

#[test]
fn an_image_whose_blocks_overlap_is_not_merged() {
    let scene = chain();
    let path = scene.file("mid.vhd");
    let table = Image::open(&path, Lock::None).unwrap().header().unwrap().table_offset().0 as usize;
    let mut bytes = fs::read(&path).unwrap();
    // Sectors 160 to 175 are in the blocks 20 and 21.
    bytes.copy_within(table + 80..table + 84, table + 84);
    fs::write(&path, bytes).unwrap();
    let before = scene::files(scene.path());
    for (node, into) in [("mid.vhd", "base.vhd"), ("leaf.vhd", "base.vhd")] {
        let refused = worker::coalesce(&request(&scene, node, into, Direction::Down), &ChainOptions::default());
        assert!(refused.is_err(), "{refused:?}");
    }
    let mut after = scene::files(scene.path());
    after.retain(|name, _| before.contains_key(name));
    assert!(after == before, "something was written");
}

/// The chain changes again and again while it is locked: what is merged is what is locked, or nothing.
#[test]
fn a_run_that_changes_before_it_is_locked_is_refused() {
    let scene = chain();
    scene.dynamic("apart.vhd", SECTORS);
    scene.hide("apart.vhd");
    scene.child("mid-apart.vhd", "apart.vhd");
    scene.hide("mid-apart.vhd");
    scene.child("other.vhd", "mid-apart.vhd");
    let repository = open(scene.path());
    let request = Request { into: None, ..request(&scene, "leaf.vhd", "mid.vhd", Direction::Down) };
    let stop = AtomicBool::new(false);
    let (leaf, other) = (scene.file("leaf.vhd"), scene.file("other.vhd"));
    let exchange = || {
        while !stop.load(Ordering::Relaxed) {
            renameat_with(CWD, &leaf, CWD, &other, RenameFlags::EXCHANGE).unwrap();
            std::thread::yield_now();
        }
    };
    let prepare = || {
        let run = Coalesce::prepare(&repository, &request).ok()?;
        let node = run.sources()[0].as_vhd()?;
        let parent = node.parent_paths().unwrap().iter().find_map(|path| path.canonicalize().ok());
        Some((parent?, run.target().to_path_buf()))
    };
    let prepared: Vec<_> = std::thread::scope(|scope| {
        scope.spawn(exchange);
        let prepared = (0..400).filter_map(|_| prepare()).collect();
        stop.store(true, Ordering::Relaxed);
        prepared
    });
    assert!(!prepared.is_empty());
    for (planned, locked) in prepared {
        assert_eq!(planned, locked, "another image is locked than planned for");
    }
}

/// The state of a snapshot that was killed when the volume had its new file, and the snapshot not yet its name.
fn snapshot_without_a_name() -> Scene {
    let scene = chain();
    let repository = open(scene.path());
    let snapshotted = repository.snapshot(&scene.file("leaf.vhd"), &scene.file("snap.vhd")).unwrap();
    let Snapshotted::NewBase(base) = snapshotted else { panic!("{snapshotted:?}") };
    fs::rename(scene.file("snap.vhd"), scene.file(".vhd/s.vhd")).unwrap();
    let (id, base) = (unique_id(&scene, "leaf.vhd"), base.file_name().unwrap().to_str().unwrap());
    let text = format!(
        r#"{{"record":"snapshot","volume":"leaf.vhd","snapshot":"snap.vhd","base":"{base}","new_volume_id":"{id}","prepared_volume":".vhd/v.vhd","prepared_snapshot":".vhd/s.vhd"}}"#
    );
    leave_journal(scene.path(), "0.journal", &text);
    scene
}

#[test]
fn an_interrupted_snapshot_gets_its_name() {
    let content = disk(&[BASE, MID, LEAF]);
    recovers_to(&snapshot_without_a_name(), &[("leaf.vhd", content.clone()), ("snap.vhd", content)], 5);
}

/// The name has been taken by a file of somebody else.
/// Where no file can be kept from being replaced, a name is claimed with an empty file first.
#[test]
fn an_interrupted_snapshot_gets_the_name_that_it_has_claimed() {
    let scene = snapshot_without_a_name();
    fs::write(scene.file("snap.vhd"), "").unwrap();
    let content = disk(&[BASE, MID, LEAF]);
    recovers_to(&scene, &[("leaf.vhd", content.clone()), ("snap.vhd", content)], 5);
}

#[test]
fn an_interrupted_snapshot_replaces_nothing() {
    let scene = snapshot_without_a_name();
    fs::write(scene.file("snap.vhd"), "something else").unwrap();
    let (_, recovered) = Repository::open(scene.path(), ChainOptions::default()).unwrap();
    assert_eq!(recovered.waiting.len(), 1, "{recovered:?}");
    assert_eq!(fs::read(scene.file("snap.vhd")).unwrap(), b"something else");
    fs::remove_file(scene.file("snap.vhd")).unwrap();
    let content = disk(&[BASE, MID, LEAF]);
    recovers_to(&scene, &[("leaf.vhd", content.clone()), ("snap.vhd", content)], 5);
}

/// Whoever merges a parent makes it another one: no new child comes to stand on it meanwhile.
#[test]
fn an_empty_volume_shares_no_parent_that_is_being_merged() {
    let scene = chain();
    let repository = open(scene.path());
    let clone = |name: &str| repository.snapshot(&scene.file("leaf.vhd"), &scene.file(name)).unwrap();
    let Snapshotted::NewBase(base) = clone("first.vhd") else { panic!("the volume had data") };
    assert_eq!(clone("second.vhd"), Snapshotted::SharedParent(base.clone()));
    let merging = Image::open_writable(&base).unwrap();
    assert!(matches!(clone("third.vhd"), Snapshotted::NewBase(_)));
    drop(merging);
    for name in ["leaf.vhd", "first.vhd", "second.vhd", "third.vhd"] {
        assert!(scene::content(&scene.file(name)) == disk(&[BASE, MID, LEAF]), "{name}");
    }
}
