use std::fs::{self, File};
use std::path::Path;
use std::thread;

use tempfile::TempDir;

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

fn folders() -> (TempDir, PathBuf, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    fs::create_dir(&one).unwrap();
    fs::create_dir(&two).unwrap();
    (folder, one, two)
}

fn watch(paths: &[&Path], poll: Duration) -> Watch {
    Watch::new(paths.iter().map(|path| path.to_path_buf()), poll).unwrap()
}

/// Waits, but not for ever.
fn wait(watch: &mut Watch, longest: Duration) -> Result<Vec<PathBuf>, Aborted> {
    let (abort, done) = (Abort::new(), Abort::new());
    thread::scope(|scope| {
        scope.spawn(|| done.sleep(longest).map(|()| abort.abort()));
        let waited = watch.wait(&abort);
        done.abort();
        waited
    })
}

fn soon(watch: &mut Watch) -> Vec<PathBuf> {
    wait(watch, Duration::from_secs(5)).expect("something has changed")
}

fn nothing(watch: &mut Watch) {
    assert_eq!(wait(watch, Duration::from_millis(150)), Err(Aborted));
}

#[test]
fn files_that_come_go_move_or_are_written_are_changes() {
    let (_folder, one, two) = folders();
    fs::write(one.join("old"), "").unwrap();
    let mut watch = watch(&[&one, &two], HOUR);
    nothing(&mut watch);
    let changes: [(&dyn Fn(), &[&Path]); 5] = [
        (&|| fs::write(one.join("a"), "a").unwrap(), &[&one]),
        (&|| drop(File::options().write(true).open(one.join("old")).unwrap()), &[&one]),
        (&|| fs::rename(one.join("a"), one.join("b")).unwrap(), &[&one]),
        (&|| fs::rename(one.join("b"), two.join("b")).unwrap(), &[&one, &two]),
        (&|| fs::remove_file(two.join("b")).unwrap(), &[&two]),
    ];
    for (number, (change, expected)) in changes.iter().enumerate() {
        change();
        let start = Instant::now();
        assert_eq!(soon(&mut watch), *expected, "change {number}");
        assert!(start.elapsed() < Duration::from_millis(600), "after {:?}", start.elapsed());
    }
    nothing(&mut watch);
}

#[test]
fn names_with_a_dot_and_mere_reading_are_none() {
    let (_folder, one, _) = folders();
    fs::write(one.join("old"), "old").unwrap();
    let mut watch = watch(&[&one], HOUR);
    fs::write(one.join(".lock"), "").unwrap();
    fs::read(one.join("old")).unwrap();
    fs::remove_file(one.join(".lock")).unwrap();
    nothing(&mut watch);
}

#[test]
fn changes_in_a_row_are_told_together() {
    let (_folder, one, two) = folders();
    let mut watch = watch(&[&one, &two], HOUR);
    let start = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..20 {
                fs::write([&one, &two][number % 2].join("file"), "").unwrap();
            }
        });
        assert_eq!(soon(&mut watch), [&*one, &*two]);
    });
    assert!(start.elapsed() >= DEBOUNCE);
    nothing(&mut watch);
}

#[test]
fn steady_changes_do_not_put_off_the_answer() {
    let (_folder, one, _) = folders();
    let mut watch = watch(&[&one], HOUR);
    let abort = Abort::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            while abort.sleep(Duration::from_millis(5)).is_ok() {
                fs::write(one.join("file"), "").unwrap();
            }
        });
        let start = Instant::now();
        soon(&mut watch);
        assert!(start.elapsed() < Duration::from_millis(700), "after {:?}", start.elapsed());
        abort.abort();
    });
}

#[test]
fn a_folder_may_vanish_and_appear() {
    let (folder, one, two) = folders();
    fs::remove_dir(&two).unwrap();
    let mut watch = watch(&[&one, &two], HOUR);
    fs::create_dir(&two).unwrap();
    assert_eq!(soon(&mut watch), [&*two], "it has appeared");
    fs::write(two.join("file"), "").unwrap();
    assert_eq!(soon(&mut watch), [&*two], "and is watched");

    fs::remove_dir_all(&one).unwrap();
    assert_eq!(soon(&mut watch), [&*one], "it has vanished");
    fs::create_dir(&one).unwrap();
    assert_eq!(soon(&mut watch), [&*one]);

    let elsewhere = folder.path().join("elsewhere");
    fs::rename(&one, &elsewhere).unwrap();
    assert_eq!(soon(&mut watch), [&*one], "it has moved away");
    fs::write(elsewhere.join("file"), "").unwrap();
    nothing(&mut watch);
    fs::create_dir(&one).unwrap();
    assert_eq!(soon(&mut watch), [&*one]);
    fs::write(one.join("file"), "").unwrap();
    assert_eq!(soon(&mut watch), [&*one]);
}

#[test]
fn all_are_told_when_the_poll_is_due() {
    let (folder, one, _) = folders();
    let gone = folder.path().join("gone");
    let mut watch = watch(&[&one, &gone], Duration::from_millis(50));
    for _ in 0..3 {
        let start = Instant::now();
        assert_eq!(soon(&mut watch), [&*one, &*gone]);
        assert!(start.elapsed() < Duration::from_secs(1));
    }
}

#[test]
fn the_poll_finds_what_is_there_under_the_name_now() {
    let (_folder, one, two) = folders();
    let link = one.with_file_name("link");
    std::os::unix::fs::symlink(&one, &link).unwrap();
    let mut watch = watch(&[&link], Duration::from_millis(50));
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&two, &link).unwrap();
    soon(&mut watch);
    watch.poll = HOUR;
    fs::write(one.join("file"), "").unwrap();
    nothing(&mut watch);
    fs::write(two.join("file"), "").unwrap();
    assert_eq!(soon(&mut watch), [&*link]);
}

#[test]
fn two_names_of_one_folder_both_change() {
    let (_folder, one, _) = folders();
    let link = one.with_file_name("link");
    std::os::unix::fs::symlink(&one, &link).unwrap();
    let mut watch = watch(&[&one, &link], HOUR);
    fs::write(one.join("file"), "").unwrap();
    assert_eq!(soon(&mut watch), [&*one, &*link]);
}

#[test]
fn the_waker_and_the_abort_end_a_wait_at_once() {
    let (_folder, one, _) = folders();
    let mut watch = watch(&[&one], HOUR);
    let waker = watch.waker();
    for aborted in [false, true] {
        let abort = Abort::new();
        let late = thread::scope(|scope| {
            let told = scope.spawn(|| {
                thread::sleep(Duration::from_millis(30));
                let told = Instant::now();
                if aborted {
                    abort.abort();
                } else {
                    waker.wake_by_ref();
                }
                told
            });
            let waited = watch.wait(&abort);
            assert_eq!(waited, if aborted { Err(Aborted) } else { Ok(Vec::new()) });
            told.join().unwrap().elapsed()
        });
        assert!(late < Duration::from_millis(50), "after {late:?}");
    }
    // Rung while nobody waited.
    waker.wake_by_ref();
    assert_eq!(watch.wait(&Abort::new()), Ok(Vec::new()));
}
