//! Many images that nobody needs.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;

use coalesce_worker::{Abort, CollectError};
use tempfile::TempDir;
use testkit::worker;
use vhd_core::{BlockSize, ByteCount, Existing, NewImage, NewKind, create_file};

fn hidden_images(count: u32) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for i in 0..count {
        let kind = NewKind::Dynamic { block_size: BlockSize::DEFAULT };
        let new = NewImage { hidden: true, ..NewImage::new(ByteCount(4096), kind) };
        create_file(&folder.path().join(format!("{i:04}.vhd")), &new, Existing::Keep).unwrap();
    }
    folder
}

/// The images and the state folder.
fn entries(folder: &Path) -> usize {
    fs::read_dir(folder).unwrap().count()
}

#[test]
fn more_than_a_process_may_have_open_are_deleted() {
    let folder = hidden_images(300);
    let limited = ["-c", r#"ulimit -n 180; exec "$@""#, "sh", env!("CARGO_BIN_EXE_coalesce-worker"), "once"];
    let output = Command::new("sh").args(limited).arg(folder.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(entries(folder.path()), 1, "{output:?}");
}

#[test]
fn an_abort_ends_their_deletion_between_two() {
    let folder = hidden_images(1000);
    let abort = Abort::new();
    let collected = thread::scope(|scope| {
        scope.spawn(|| {
            while entries(folder.path()) > 900 {
                thread::yield_now();
            }
            abort.abort();
        });
        worker::collect_until(folder.path(), &abort)
    });
    assert!(matches!(collected, Err(CollectError::Aborted(_))), "{collected:?}");
    assert!(entries(folder.path()) > 100, "it went on");
    worker::collect(folder.path());
    assert_eq!(entries(folder.path()), 1);
}
