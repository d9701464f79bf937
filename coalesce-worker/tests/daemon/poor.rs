//! The worker on file systems that can less.

use testkit::poorfs::{Errno, PoorFs, Refusal};

use crate::disks::Disk;
use crate::process::{Worker, program, until};

#[test]
fn it_merges_without_any_one_ability() {
    let poor: Vec<PoorFs> = Refusal::BEARABLE.iter().map(|refusal| PoorFs::new(&[*refusal])).collect();
    let all = PoorFs::new(&Refusal::BEARABLE);
    let mut disks: Vec<Disk> = poor.iter().chain([&all]).map(|poor| Disk::within(poor.path())).collect();
    let folders: Vec<_> = disks.iter().map(|disk| disk.path().to_path_buf()).collect();
    let folders: Vec<_> = folders.iter().map(std::path::PathBuf::as_path).collect();
    let worker = Worker::start(&folders, &["--poll", "1"]);
    disks.iter_mut().for_each(Disk::delete_snapshots);
    disks.iter().for_each(Disk::merged);
    assert_eq!(worker.settled().errors_total, 0);
}

#[test]
fn without_locks_it_says_so() {
    let poor = PoorFs::new(&[Refusal::Flock(Errno::NOLCK)]);
    let mut disk = Disk::small();
    disk.remove_snapshots();
    for entry in std::fs::read_dir(disk.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::copy(&path, poor.real().join(path.file_name().unwrap())).unwrap();
        }
    }
    let why = "its file system has no file locks (flock)";
    let output = program(&["once"]).arg(poor.path()).output().unwrap();
    let text = format!("{output:?}");
    assert_eq!(output.status.code(), Some(5), "{text}");
    assert!(text.contains(why), "{text}");
    let worker = Worker::start(&[poor.path()], &[]);
    until("the worker tells", || worker.log().contains(why).then_some(()));
}
