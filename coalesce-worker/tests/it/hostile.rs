//! A state folder that somebody has filled who wants to reach further than the repository.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coalesce_worker::{Recovered, Repository, WaitReason};
use rustix::fs::{CWD, FileType, mknodat};
use testkit::fuzz::framed;
use testkit::scene::{Scene, files};
use vhd_core::{ChainOptions, FileError, Image, Lock, ParentPlaces, Uuid};

const JOURNAL: &str = ".vhd/00000000-0000-0000-0000-0000000000aa.journal";

/// A folder with a repository, and beside that what must not be touched: a hidden image and a text.
struct Surrounded {
    scene: Scene,
    before: std::collections::BTreeMap<String, Vec<u8>>,
    hidden: Uuid,
}

impl Surrounded {
    fn new() -> Self {
        let scene = Scene::default();
        for folder in ["sr", "sr/.vhd", "outside"] {
            fs::create_dir(scene.file(folder)).unwrap();
        }
        scene.dynamic("sr/base.vhd", 64);
        scene.child("sr/leaf.vhd", "sr/base.vhd");
        scene.dynamic("outside/image.vhd", 64);
        scene.hide("outside/image.vhd");
        fs::write(scene.file("outside/text"), "a text that is longer than eight bytes").unwrap();
        let hidden = Image::open(&scene.file("outside/image.vhd"), Lock::None).unwrap().footer().unique_id();
        let before = files(&scene.file("outside"));
        Self { scene, before, hidden }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.scene.file("sr").join(name)
    }

    fn outside(&self) -> PathBuf {
        self.scene.file("outside")
    }

    fn open(&self) -> Result<Recovered, FileError> {
        let (_, recovered) = Repository::open(&self.scene.file("sr"), ChainOptions::default())?;
        Ok(recovered)
    }

    fn check(&self, what: &str) {
        assert!(files(&self.outside()) == self.before, "{what}: {:?}", files(&self.outside()).keys());
    }
}

/// A record of each kind that names a file to be removed, renamed or written.
fn records(path: &str, id: Uuid) -> Vec<String> {
    let file = format!(r#"{{"path":"{path}","unique_id":"{id}"}}"#);
    let base = format!(r#"{{"path":"base.vhd","unique_id":"{id}"}}"#);
    let header = vec!["1"; 1024].join(",");
    let merge = |target: &str, source: &str| {
        format!(
            r#"{{"record":"merge","direction":"down","keep":false,"target":{target},"target_length":9,"target_hidden":true,"sources":[{source}],"node_is_volume":false,"volume":null,"beneath":null}}"#
        )
    };
    vec![
        format!(r#"{{"record":"delete","path":"{path}","unique_id":"{id}"}}"#),
        format!(r#"{{"record":"resize","file":{file},"length":512}}"#),
        format!(r#"{{"record":"revert","volume":"leaf.vhd","displaced":"gone.vhd","prepared":"{path}"}}"#),
        format!(r#"{{"record":"revert","volume":"leaf.vhd","displaced":"{path}","prepared":"gone.vhd"}}"#),
        format!(
            r#"{{"record":"snapshot","volume":"leaf.vhd","snapshot":"s.vhd","base":"b.vhd","new_volume_id":"{id}","prepared_volume":"{path}","prepared_snapshot":"x.vhd"}}"#
        ),
        format!(
            r#"{{"record":"snapshot","volume":"leaf.vhd","snapshot":"s.vhd","base":"b.vhd","new_volume_id":"{id}","prepared_volume":"x.vhd","prepared_snapshot":"{path}"}}"#
        ),
        format!(r#"{{"record":"compose","child":{file},"becomes":"{id}","parent":{base}}}"#),
        format!(r#"{{"record":"linked","obsolete":[{file}],"readers":[]}}"#),
        merge(&file, &base),
        merge(&base, &file) + "\n{\"record\":\"linked\",\"obsolete\":[" + &file + "],\"readers\":[]}",
        merge(&base, &base)
            + &format!(
                "\n{{\"record\":\"merged\"}}\n{{\"record\":\"header\",\"image\":\"{path}\",\"at\":0,\"old\":[{header}],\"new\":[{header}]}}"
            ),
    ]
}

#[test]
fn a_journal_reaches_no_further_than_the_repository() {
    for how in
        ["../outside/image.vhd", "../outside/text", "link.vhd", "folder/image.vhd", "ABSOLUTE", "..", "base.vhd/.."]
    {
        for number in 0..records("", Uuid::nil()).len() {
            let it = Surrounded::new();
            symlink("../outside/image.vhd", it.file("link.vhd")).unwrap();
            symlink("../outside", it.file("folder")).unwrap();
            let absolute = it.outside().join("image.vhd");
            let path = if how == "ABSOLUTE" { absolute.to_str().unwrap() } else { how };
            let record = &records(path, it.hidden)[number];
            fs::write(it.file(JOURNAL), framed(record.as_bytes())).unwrap();
            let recovered = it.open().unwrap();
            it.check(record);
            let [waiting] = &recovered.waiting[..] else { panic!("{record}: {recovered:?}") };
            assert!(matches!(waiting.reason, WaitReason::Outside { .. }), "{record}: {}", waiting.reason);
            assert!(it.file(JOURNAL).exists(), "it is left for a person to look at");
        }
    }
}

#[test]
fn a_journal_may_name_places_where_parents_may_be() {
    let it = Surrounded::new();
    let record = &records("../outside/image.vhd", it.hidden)[0];
    fs::write(it.file(JOURNAL), framed(record.as_bytes())).unwrap();
    let parents = ParentPlaces::Within(vec![it.outside()]);
    let options = ChainOptions { parents, ..ChainOptions::default() };
    let (_, recovered) = Repository::open(&it.file(""), options).unwrap();
    assert_eq!((recovered.finished, recovered.waiting.len()), (1, 0));
    assert!(!it.outside().join("image.vhd").exists());
}

#[test]
fn a_journal_that_is_a_link_or_a_fifo_is_none() {
    let it = Surrounded::new();
    symlink("../../outside/text", it.file(JOURNAL)).unwrap();
    mknodat(CWD, it.file(".vhd/a.journal"), FileType::Fifo, 0o600.into(), 0).unwrap();
    fs::create_dir(it.file(".vhd/b.journal")).unwrap();
    let start = Instant::now();
    it.open().unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
    it.check("a link");
}

#[test]
fn a_journal_as_long_as_a_disk_costs_nothing() {
    let it = Surrounded::new();
    let file = File::create(it.file(JOURNAL)).unwrap();
    file.set_len(1 << 40).unwrap();
    it.open().unwrap();
    assert!(it.file(JOURNAL).exists());
}

#[test]
fn a_state_folder_that_is_a_link_is_refused() {
    let it = Surrounded::new();
    fs::remove_dir(it.file(".vhd")).unwrap();
    symlink("../outside", it.file(".vhd")).unwrap();
    let error = it.open().unwrap_err();
    assert!(error.path.ends_with(".vhd"), "{error}");
    it.check("a state folder");
}

#[test]
fn a_lock_that_is_a_link_or_a_fifo_is_refused() {
    let it = Surrounded::new();
    fs::write(it.file(".vhd/x.vhd"), "left over").unwrap();
    symlink("../../outside/new", it.file(".vhd/lock")).unwrap();
    it.open().unwrap_err();
    it.check("a lock");
    fs::remove_file(it.file(".vhd/lock")).unwrap();
    mknodat(CWD, it.file(".vhd/lock"), FileType::Fifo, 0o600.into(), 0).unwrap();
    it.open().unwrap_err();
}

#[test]
fn notes_to_a_merge_are_written_to_no_link() {
    let it = Surrounded::new();
    let leaf = it.file("leaf.vhd");
    let held = Image::open_writable(&leaf).unwrap();
    let id = Uuid::from_u128(1);
    let merge = &records("leaf.vhd", id)[8];
    fs::write(it.file(JOURNAL), framed(merge.as_bytes())).unwrap();
    let repository = Repository::look_at(&it.file(""), ChainOptions::default()).unwrap();
    symlink("../../outside/new", it.file(JOURNAL).with_extension("yield")).unwrap();
    repository.hide(&leaf).unwrap_err();
    it.check("a note");
    drop(held);
    assert!(Path::new(&leaf).exists());
}
