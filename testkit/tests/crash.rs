//! Power failures of small programs whose possible outcomes are known.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use rayon::iter::{ParallelBridge, ParallelIterator};
use testkit::crash::{Options, Recording, State};
use testkit::{inject, scratch};

/// Makes the command that runs a program in Python in a folder, whose descriptor it has as `d`.
fn python(folder: &Path, program: &str) -> Command {
    let mut python = Command::new("python3");
    let program = format!("import os, threading\nd = os.open('.', os.O_RDONLY)\n{program}");
    python.args(["-I", "-S", "-c", &program]).current_dir(folder);
    python
}

fn record(files: &[(&str, &[u8])], program: &str) -> Recording {
    let folder = scratch::folder();
    for (name, bytes) in files {
        fs::write(folder.path().join(name), bytes).unwrap();
    }
    Recording::of(folder.path(), &python(folder.path(), program))
}

type Files = BTreeMap<String, Option<Vec<u8>>>;

fn states(recording: &Recording) -> BTreeSet<Files> {
    let states = recording.states(Options::default());
    states.map(|state| state.paths().into_iter().map(|path| (path.clone(), state.read(&path))).collect()).collect()
}

/// What a file holds in any of the states, shortened to a letter per sector; "-" where there is no such file.
fn contents(recording: &Recording, name: &str) -> BTreeSet<String> {
    let letter = |sector: &[u8]| match sector[0] {
        0 => '0',
        byte => byte as char,
    };
    let short = |bytes: Vec<u8>| bytes.chunks(512).map(letter).collect();
    let states = states(recording).into_iter();
    states.map(|files| files.get(name).cloned().flatten().map_or("-".to_owned(), short)).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

const NEW_FILE: &str = "n = os.open('new', os.O_WRONLY | os.O_CREAT)\nos.write(n, b'n' * 1024)\n";

#[test]
fn a_file_renamed_without_a_sync_may_be_old_new_empty_or_torn() {
    let recording = record(&[("a", &[b'o'; 1024])], &format!("{NEW_FILE}os.rename('new', 'a')"));
    assert_eq!(contents(&recording, "a"), set(&["oo", "nn", "", "n", "0n", "00"]));
    assert_eq!(contents(&recording, "new"), set(&["-", "", "nn", "n", "0n", "00"]));
}

#[test]
fn a_file_synced_and_renamed_is_old_or_new() {
    let program = format!("{NEW_FILE}os.fsync(n)\nos.rename('new', 'a')\nos.fsync(d)");
    let recording = record(&[("a", &[b'o'; 1024])], &program);
    assert_eq!(contents(&recording, "a"), set(&["oo", "nn"]));
    let ended: Vec<_> = recording.states(Options::default()).filter(State::has_ended).collect();
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].read("a").unwrap(), [b'n'; 1024]);
}

#[test]
fn a_synced_file_without_a_synced_name_may_be_lost() {
    let recording = record(&[], &format!("{NEW_FILE}os.fsync(n)"));
    let ended = recording.states(Options::default()).filter(State::has_ended);
    let names: BTreeSet<_> = ended.map(|state| state.paths()).collect();
    assert_eq!(names, [vec![], vec!["new".to_owned()]].into());
}

#[test]
fn the_last_sector_may_be_there_without_the_first() {
    let recording = record(&[("a", &[b'o'; 1536])], "f = os.open('a', os.O_RDWR)\nos.pwrite(f, b'n' * 1536, 0)");
    assert_eq!(contents(&recording, "a"), set(&["ooo", "noo", "ono", "oon", "nno", "non", "onn", "nnn"]));
}

#[test]
fn writes_reorder_until_they_are_synced() {
    let write = |sector: usize| format!("os.pwrite(f, b'n' * 512, {})\n", sector * 512);
    let open = "f = os.open('a', os.O_RDWR)\n";
    let recording = record(&[("a", b"oo")], &format!("{open}{}{}", write(0), write(1)));
    assert_eq!(contents(&recording, "a"), set(&["o", "n", "nn", "on", "o0", "n0"]));
    let recording = record(&[("a", b"oo")], &format!("{open}{}os.fdatasync(f)\n{}", write(0), write(1)));
    assert_eq!(contents(&recording, "a"), set(&["o", "n", "nn", "n0"]));
}

#[test]
fn lengths_and_holes_persist_in_order() {
    let program =
        "f = os.open('a', os.O_RDWR)\nos.ftruncate(f, 0)\nos.ftruncate(f, 1536)\nos.pwrite(f, b'n' * 512, 512)";
    let recording = record(&[("a", &[b'o'; 1024])], program);
    assert_eq!(contents(&recording, "a"), set(&["oo", "", "000", "0n0"]));
}

#[test]
fn holes_are_torn_at_pages_and_never_lost_under_what_was_written_into_them() {
    let program = "import ctypes\nf = os.open('a', os.O_RDWR)\nos.fallocate = ctypes.CDLL(None).fallocate\n\
        assert os.fallocate(f, 3, ctypes.c_long(0), ctypes.c_long(8192)) == 0\nos.pwrite(f, b'n' * 512, 0)";
    let recording = record(&[("a", &[b'o'; 8192])], program);
    let pages = |first: &str, second: &str| format!("{}{}", first, second.repeat(8));
    let expected = ["o", "0"].map(|page| pages(&page.repeat(8), "o")).into_iter();
    let expected =
        expected.chain(["o", "0"].map(|page| pages(&page.repeat(8), "0"))).chain([format!("n{}", "0".repeat(15))]);
    assert_eq!(contents(&recording, "a"), expected.collect());
}

#[test]
fn names_reorder_until_the_folder_is_synced() {
    let program = "os.link('a', 'b')\nos.rename('a', 'c')\nos.unlink('b')\nos.mkdir('e')\nos.fsync(d)";
    let recording = record(&[("a", b"1")], program);
    let names = |ended| -> BTreeSet<String> {
        let states = recording.states(Options::default()).filter(|state| state.has_ended() >= ended);
        states.map(|state| state.paths().concat()).collect()
    };
    assert_eq!(names(false), set(&["a", "ab", "bc", "c", "ae", "abe", "bce", "ce"]));
    assert_eq!(names(true), set(&["ce"]));
}

#[test]
fn a_rename_to_another_folder_needs_the_sync_of_that_folder() {
    let program = |sync: &str| {
        format!(
            "os.mkdir('s')\nos.fsync(d)\ns = os.open('s', os.O_RDONLY)\n{NEW_FILE}os.fsync(n)\n\
             os.rename('new', 's/f')\nos.fsync({sync})"
        )
    };
    let ended = |sync| -> BTreeSet<_> {
        let recording = record(&[], &program(sync));
        let states = recording.states(Options::default()).filter(State::has_ended);
        states.map(|state| state.paths().join(" ")).collect()
    };
    assert_eq!(ended("s"), set(&["s s/f"]));
    assert_eq!(ended("d"), set(&["s s/f", "new s"]));
}

#[test]
fn a_file_without_a_name_gets_one() {
    let program = "t = os.open('.', os.O_TMPFILE | os.O_RDWR)\nos.write(t, b'ab')\nos.fsync(t)\n\
        os.link(f'/proc/self/fd/{t}', 't', src_dir_fd=d, dst_dir_fd=d, follow_symlinks=True)\nos.fsync(d)";
    let recording = record(&[], program);
    assert_eq!(contents(&recording, "t"), set(&["-", "a"]));
}

#[test]
fn every_way_to_change_a_file_is_understood() {
    // The recorder itself checks that what it has seen explains what is there afterwards.
    let program = "
f = os.open('f', os.O_RDWR | os.O_CREAT)
os.write(f, b'0123456789' * 1000)
os.lseek(f, 100, os.SEEK_SET)
os.read(f, 50)
os.write(f, b'after')
os.writev(f, [b'x', b'\\x00\\n\"<,', b'yz'])
os.pwritev(f, [b'p', b'q'], 4095)
g = os.dup(f)
os.write(g, b'dup')
os.dup2(f, 20)
os.close(f)
os.write(20, b'dup2')
a = os.open('a', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.write(a, b'one')
os.write(a, b'two')
os.sendfile(g, 20, 5000, 600)
os.lseek(g, 3, 0)
os.sendfile(os.open('b', os.O_WRONLY | os.O_CREAT), g, None, 700)
os.write(g, b'moved')
os.copy_file_range(g, os.open('c', os.O_WRONLY | os.O_CREAT), 3000, 10, 7)
os.sendfile(os.open('x', os.O_WRONLY | os.O_CREAT), os.open('/proc/self/exe', os.O_RDONLY), 4096, 5000)
os.posix_fallocate(g, 9000, 3000)
os.truncate('a', 300)
os.close(os.open('c', os.O_WRONLY | os.O_TRUNC))
os.makedirs('s/t')
os.rename('f', 's/t/f')
os.rename('s', 'u')
os.link('u/t/f', 'again')
os.rename('again', 'u/t/f')
os.write(g, b'renamed')
if os.fork() == 0:
    os.write(g, b'child')
    os.close(g)
    os._exit(0)
os.wait()
os.write(g, b'parent')
open('../outside', 'w').write('x')
os.unlink('../outside')
os.mkdir('gone')
os.rmdir('gone')
open('again', 'a').write('more')
os.sync()
";
    let folder = scratch::folder();
    let inner = folder.path().join("inner");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("old"), [7; 3000]).unwrap();
    fs::hard_link(inner.join("old"), inner.join("old2")).unwrap();
    let recording = Recording::of(&inner, &python(&inner, program));
    println!("{}", recording.log().collect::<Vec<_>>().join("\n"));
    let last = recording.states(Options::default()).find(State::has_ended).unwrap();
    let copy = folder.path().join("copy");
    last.write_to(&copy);
    assert_eq!(fs::read(copy.join("u/t/f")).unwrap(), fs::read(inner.join("u/t/f")).unwrap());
    assert_eq!(copy.join("old").metadata().unwrap().ino(), copy.join("old2").metadata().unwrap().ino());
    let difference = Command::new("diff").arg("-r").args([&inner, &copy]).output().unwrap();
    assert!(difference.status.success(), "{difference:?}");
}

#[test]
fn threads_that_write_side_by_side_are_followed() {
    let program = "
def work(k):
    f = os.open(f'f{k}', os.O_RDWR | os.O_CREAT)
    for i in range(50):
        os.pwrite(f, bytes([65 + k]) * 512, i * 512)
        if i % 10 == 9:
            os.fdatasync(f)
    os.fsync(f)
    os.close(f)
threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
[t.start() for t in threads]
[t.join() for t in threads]
os.fsync(d)";
    let recording = record(&[], program);
    assert_eq!(recording.operations(), 4 * (1 + 50 + 5 + 1) + 1);
    let ended: Vec<_> = recording.states(Options::default()).filter(State::has_ended).collect();
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].read("f3").unwrap(), [b'D'; 50 * 512]);
}

#[test]
fn the_same_seed_gives_the_same_states() {
    let recording = record(
        &[("a", &[b'o'; 8192])],
        "f = os.open('a', os.O_RDWR)\n[os.pwrite(f, b'n' * 4096, i * 700) for i in range(9)]",
    );
    let all = |seed| -> Vec<_> {
        let states = recording.states(Options { seed, ..Options::default() });
        states.map(|state| state.read("a")).collect()
    };
    assert!(all(1).len() > 100, "{}", all(1).len());
    assert!(all(1) == all(1));
    assert!(all(1) != all(2));
}

#[test]
fn a_state_says_what_was_lost() {
    let recording = record(&[("a", b"o")], &format!("{NEW_FILE}os.rename('new', 'a')"));
    let state = recording.states(Options::default()).find(|state| state.read("a") == Some(vec![])).unwrap();
    let text = state.describe();
    assert!(text.contains("after 3 of 3 operations, the last being: rename new to a"), "{text}");
    assert!(text.contains("2: write 1024 bytes at 0 of new: lost"), "{text}");
    assert!(text.contains("3: rename new to a: kept"), "{text}");
}

#[test]
fn thousands_of_states_are_written_side_by_side() {
    let program = "
for i in range(6):
    f = os.open(f'f{i}', os.O_RDWR | os.O_CREAT)
    for j in range(10 * (i + 1)):
        os.pwrite(f, bytes([i * 40 + j & 255]) * (4096 * (1 + j % 3)), j * 791900 % 90000)
        if j % 9 == 8:
            os.fdatasync(f)
    os.fsync(f)
    os.rename(f'f{i}', f'g{i}')
    if i % 2:
        os.fsync(d)";
    let recording = record(&[], program);
    let started = std::time::Instant::now();
    let written = recording.states(Options::default()).take(3000).par_bridge().map(|state| {
        let folder = scratch::folder();
        state.write_to(folder.path());
        for path in state.paths() {
            assert_eq!(fs::read(folder.path().join(&path)).ok(), state.read(&path), "{path}: {}", state.describe());
        }
        1
    });
    let written: usize = written.sum();
    println!("{written} states, {:.0} a second", written as f64 / started.elapsed().as_secs_f64());
    assert_eq!(written, 3000);
}

#[test]
#[should_panic(expected = "is not modelled")]
fn what_is_not_modelled_is_refused() {
    record(&[("a", b"o")], "os.symlink('a', 'b')");
}

#[test]
fn faults_and_kills_tell_whether_they_happened() {
    let folder = scratch::folder();
    let program = python(
        folder.path(),
        "f = os.open('a', os.O_RDWR | os.O_CREAT)\nos.fsync(f)\nos.pwrite(f, b'x', 0)\nos.fsync(f)",
    );
    let failed = inject::fail_at(&program, "fsync", 2, "EIO");
    assert!(failed.hit && !failed.output.status.success());
    assert!(String::from_utf8_lossy(&failed.output.stderr).contains("Input/output error"));
    let passed = inject::fail_at(&program, "fsync", 3, "EIO");
    assert!(!passed.hit && passed.output.status.success());
    assert!(inject::fail_from(&program, "pwrite64", 1, "ENOSPC").hit);
    fs::write(folder.path().join("a"), "").unwrap();
    assert!(inject::kill_at(&program, "pwrite64", 1).hit);
    assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"");
    assert!(!inject::kill_at(&program, "pwrite64", 2).hit);
}
