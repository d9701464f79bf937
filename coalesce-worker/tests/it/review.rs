//! What must not be lost: repositories that are changed between a crash and the recovery, or while others read.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coalesce_worker::{Abort, Budget, Coalesce, CopyMethod, Direction, MergeOptions, Repository, Request};
use testkit::model::{Model, Start, read_all};
use testkit::pattern;
use testkit::worker::{self, collect};
use vhd_core::{
    BlockSize, ByteCount, Chain, ChainOptions, Existing, Image, Lock, NewImage, NewKind, ParentLink, Sector,
    SectorCount, SectorRange, Volume, create_file,
};

fn open(folder: &Path) -> Repository {
    Repository::open(folder, ChainOptions::default()).unwrap().0
}

fn write(model: &mut Model, volume: &Path, start: u64, count: u64, tag: u16) {
    let range = SectorRange::new(Sector(start), SectorCount(count));
    model.change(volume, |open, content| {
        let data = pattern::fill(range, tag);
        open.write(range, &data).unwrap();
        content[start as usize * 512..][..data.len()].copy_from_slice(&data);
    });
}

/// Takes a snapshot; gives it and the new base.
fn snapshot(model: &mut Model, volume: &Path) -> (PathBuf, PathBuf) {
    let before = model.volumes();
    model.snapshot(volume);
    let twin = model.volumes().into_iter().find(|path| !before.contains(path)).unwrap();
    let chain = Chain::open(volume, &ChainOptions::default()).unwrap();
    (twin, chain.layers()[1].path().to_path_buf())
}

fn delete(model: &mut Model, volume: &Path) {
    open(model.path()).delete(volume).unwrap();
    model.forget(volume);
}

/// A volume on a hidden base that nobody else needs.
fn volume_on_base() -> (Model, PathBuf, PathBuf) {
    let mut model = Model::default();
    model.create(Start::Dynamic(BlockSize::new(4096).unwrap()), 400);
    let volume = model.volumes().remove(0);
    write(&mut model, &volume, 0, 200, 1);
    let (twin, base) = snapshot(&mut model, &volume);
    delete(&mut model, &twin);
    write(&mut model, &volume, 100, 50, 2);
    (model, volume, base)
}

/// Merges, and has the steps that follow fail, as a crash after the merge does: one file is not there meanwhile.
fn merge_and_die(request: &Request, missing: &Path) {
    std::thread::sleep(Duration::from_millis(150));
    let repository = worker::repository_of(&request.node, &ChainOptions::default());
    let away = repository.folder().join(".vhd/away");
    let prepared = Coalesce::prepare(&repository, request).unwrap();
    let hide = |_| drop(fs::rename(missing, &away));
    worker::with_options(&hide, |options| prepared.execute(options)).unwrap_err();
    fs::rename(&away, missing).unwrap();
    assert!(journals(&repository).iter().any(|text| text.contains("merged")));
}

fn journals(repository: &Repository) -> Vec<String> {
    let entries = fs::read_dir(repository.folder().join(".vhd")).unwrap().map(|entry| entry.unwrap().path());
    let journals = entries.filter(|path| path.extension().is_some_and(|extension| extension == "journal"));
    journals.map(|path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()).collect()
}

fn request(node: &Path, into: Option<&Path>, direction: Direction) -> Request {
    Request { node: node.into(), into: into.map(Path::to_path_buf), direction, keep: false }
}

/// Leaves the journal of a process that has died.
fn leave_journal(folder: &Path, records: &[String]) {
    let mut bytes = b"vhdjrnl1".to_vec();
    for text in records {
        let mut framed = (text.len() as u32).to_be_bytes().to_vec();
        framed.extend(text.as_bytes());
        let crc = !framed.iter().fold(!0_u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
        });
        bytes.extend(&framed[..4]);
        bytes.extend(crc.to_be_bytes());
        bytes.extend(text.as_bytes());
    }
    fs::create_dir_all(folder.join(".vhd")).unwrap();
    fs::write(folder.join(".vhd/left.journal"), bytes).unwrap();
}

fn unique_id(path: &Path) -> String {
    Image::open(path, Lock::None).unwrap().footer().unique_id().to_string()
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

/// It is no leaf any more, and no longer what the base may take the name of.
#[test]
fn a_volume_that_got_a_child_after_its_merge_stays() {
    let (model, volume, _) = volume_on_base();
    merge_and_die(&request(&volume, None, Direction::Down), &volume);
    let child = model.path().join("child.vhd");
    let parent = ParentLink::new(model.path(), &volume, Image::open(&volume, Lock::None).unwrap().footer().unique_id());
    let kind = NewKind::Differencing { block_size: BlockSize::DEFAULT, parent: parent.unwrap() };
    create_file(&child, &NewImage::new(ByteCount(400 * 512), kind), Existing::Keep).unwrap();
    let repository = open(model.path());
    model.verify();
    assert!(read_all(&Chain::open(&child, repository.options()).unwrap()) == model.content(&volume));
    assert!(!Image::open(&volume, Lock::None).unwrap().footer().hidden());
}

/// What it gained reads as zeros, and must not show what lies beneath the run.
#[test]
fn a_volume_that_grew_after_it_was_merged_into_reads_the_same() {
    let mut model = Model::default();
    model.create(Start::Dynamic(BlockSize::new(4096).unwrap()), 400);
    let volume = model.volumes().remove(0);
    write(&mut model, &volume, 0, 400, 1);
    let (twin, beneath) = snapshot(&mut model, &volume);
    delete(&mut model, &twin);
    model.resize(&volume, 100);
    write(&mut model, &volume, 10, 20, 2);
    let (twin, middle) = snapshot(&mut model, &volume);
    delete(&mut model, &twin);
    write(&mut model, &volume, 50, 10, 3);
    merge_and_die(&request(&volume, Some(&middle), Direction::Up), &beneath);
    model.verify();
    model.resize(&volume, 400);
    model.verify();
    open(model.path());
    model.verify();
}

/// A child whose header is lost may be a child of any image that seems to have none.
#[test]
fn what_a_damaged_image_may_need_is_kept() {
    let (model, volume, base) = volume_on_base();
    let mut bytes = fs::read(&volume).unwrap();
    bytes[512..1536].fill(0);
    fs::write(&volume, bytes).unwrap();
    let collected = collect(model.path());
    assert!(base.exists(), "{collected:?}");
}

/// Another merge of the image that took the data must not forget whom the first one waits for.
#[test]
fn what_a_reader_has_open_outlasts_the_next_merge() {
    let mut model = Model::default();
    model.create(Start::Dynamic(BlockSize::new(4096).unwrap()), 400);
    let volume = model.volumes().remove(0);
    let mut bases = Vec::new();
    let mut twins = Vec::new();
    for round in 1..5 {
        write(&mut model, &volume, 20 * u64::from(round), 30, round);
        let (twin, base) = snapshot(&mut model, &volume);
        bases.push(base);
        twins.push(twin);
    }
    write(&mut model, &volume, 5, 5, 9);
    delete(&mut model, &twins[0]);
    delete(&mut model, &twins[1]);
    let user = Volume::open(&volume, &ChainOptions::default()).unwrap();
    let outcome =
        worker::coalesce(&request(&bases[2], Some(&bases[1]), Direction::Down), &ChainOptions::default()).unwrap();
    assert_eq!(outcome.waits_for, Some(volume.canonicalize().unwrap()));
    collect(model.path());
    let collected = collect(model.path());
    assert!(bases[2].exists(), "a reader has it open: {collected:?}");
    user.close().unwrap();
    collect(model.path());
    model.verify();
    assert!(!bases[2].exists());
}

/// A deletion that had not begun, and one of a hidden image that has been brought back since.
#[test]
fn an_old_deletion_does_not_take_what_has_been_restored() {
    for record in ["delete", "linked"] {
        let (model, volume, _) = volume_on_base();
        let file = format!(r#"{{"path":"{}","unique_id":"{}"}}"#, name(&volume), unique_id(&volume));
        let text = match record {
            "delete" => format!(r#"{{"record":"delete",{}"#, &file[1..]),
            _ => format!(r#"{{"record":"linked","obsolete":[{file}],"readers":[]}}"#),
        };
        leave_journal(model.path(), &[text]);
        open(model.path());
        assert!(volume.exists(), "{record}");
        model.verify();
    }
}

/// Somebody puts a backup in the place of a volume while that is merged.
#[test]
fn what_was_put_in_the_volumes_place_is_not_replaced() {
    let (model, volume, base) = volume_on_base();
    let restored = model.path().join("restored.tmp");
    let repository = open(model.path());
    let prepared = Coalesce::prepare(&repository, &request(&volume, Some(&base), Direction::Down)).unwrap();
    fs::copy(&volume, &restored).unwrap();
    let identity = vhd_core::FileIdentity::at(&restored).unwrap();
    let put = |_| drop(fs::rename(&restored, &volume));
    let result = worker::with_options(&put, |options| prepared.execute(options));
    assert!(vhd_core::FileIdentity::at(&volume).unwrap() == identity, "{result:?}");
    open(model.path());
    assert!(vhd_core::FileIdentity::at(&volume).unwrap() == identity);
    model.verify();
}

/// What a checkpoint says is true of the file that was written to, and of no copy of what it was before.
#[test]
fn a_target_that_was_restored_is_merged_into_from_the_start() {
    let folder = testkit::scratch::folder();
    let path = |name: &str| folder.path().join(name);
    let kind = NewKind::Dynamic { block_size: BlockSize::DEFAULT };
    create_file(&path("v.vhd"), &NewImage::new(ByteCount(64 << 20), kind), Existing::Keep).unwrap();
    let fill = |tag: u16| {
        let volume = Volume::open(&path("v.vhd"), &ChainOptions::default()).unwrap();
        for block in 0..16 {
            let range = SectorRange::new(Sector(block * 4096), SectorCount(4096));
            volume.write(range, &pattern::fill(range, tag)).unwrap();
        }
        volume.close().unwrap();
    };
    fill(1);
    let repository = open(folder.path());
    repository.snapshot(&path("v.vhd"), &path("s.vhd")).unwrap();
    fill(2);
    let base = Chain::open(&path("v.vhd"), &ChainOptions::default()).unwrap().layers()[1].path().to_path_buf();
    fs::remove_file(path("s.vhd")).unwrap();
    let hash = || testkit::guest_sha256(&Chain::open(&path("v.vhd"), &ChainOptions::default()).unwrap()).unwrap();
    let before = hash();
    fs::copy(&base, path("backup")).unwrap();
    std::thread::sleep(Duration::from_millis(150));
    let (budget, abort) = (Budget::default(), Abort::new());
    let progress = |moved: ByteCount| {
        std::thread::sleep(Duration::from_millis(20));
        if moved.0 > 24 << 20 {
            abort.abort();
        }
    };
    let request = request(&path("v.vhd"), None, Direction::Down);
    let prepared = Coalesce::prepare(&repository, &request).unwrap();
    let options = MergeOptions {
        threads: None,
        progress: &progress,
        budget: &budget,
        abort: &abort,
        method: CopyMethod::ReadWrite,
        detect_zeroes: false,
        merged: &|| (),
        checkpoint_every: None,
    };
    prepared.execute(&options).unwrap_err();
    assert_eq!(hash(), before);
    assert!(Coalesce::prepare(&repository, &request).unwrap().resumes_at().is_some_and(|at| at > Sector(0)));
    fs::rename(path("backup"), &base).unwrap();
    assert_eq!(hash(), before);
    worker::coalesce(&request, &ChainOptions::default()).unwrap();
    assert_eq!(hash(), before);
}
