//! The poor file system refuses what it is told to refuse, and nothing else.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{
    CWD, FallocateFlags, FlockOperation, Mode, OFlags, RenameFlags, SeekFrom, XattrFlags, fallocate, flock,
    renameat_with, seek, setxattr,
};
use testkit::poorfs::{Errno, PoorFs, Refusal};

type Answered = Result<(), Errno>;

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap()
}

/// Everything that may be refused, tried on a file that holds 64 KiB, with a hole in the middle.
fn all_answers(folder: &Path) -> Vec<(&'static str, Answered)> {
    let path = folder.join("file");
    let new = |name: &str| folder.join(name);
    let file = File::options().create(true).truncate(false).read(true).write(true).open(&path).unwrap();
    file.set_len(64 << 10).unwrap();
    file.write_all_at(&[1; 4096], 0).unwrap();
    let copy = File::create(new("copy")).unwrap();
    let link = fs::hard_link(&path, new("link")).map_err(|error| errno(&error));
    fs::write(new("old"), "").unwrap();
    let rename = renameat_with(CWD, new("old"), CWD, new("new"), RenameFlags::NOREPLACE);
    let unnamed = OFlags::TMPFILE | OFlags::RDWR;
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_500);
    file.set_modified(time).unwrap();
    let fine = fs::metadata(&path).unwrap().mtime_nsec() > 0;
    let reader = File::open(&path).unwrap();
    let answers = vec![
        ("link", link),
        ("rename", rename),
        ("space", fallocate(&file, FallocateFlags::empty(), 0, 4096)),
        ("punch", fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4096, 4096)),
        ("seek", seek(&file, SeekFrom::Data(0)).map(drop)),
        ("copy", rustix::fs::copy_file_range(&file, Some(&mut 0), &copy, Some(&mut 0), 4096).map(drop)),
        ("lock", flock(&reader, FlockOperation::NonBlockingLockShared)),
        ("read-only lock", flock(&reader, FlockOperation::NonBlockingLockExclusive)),
        ("unnamed", rustix::fs::open(folder, unnamed, Mode::RUSR).map(drop)),
        ("times", if fine { Ok(()) } else { Err(Errno::INVAL) }),
        ("symlink", std::os::unix::fs::symlink("file", new("symlink")).map_err(|error| errno(&error))),
        ("attribute", setxattr(&path, "user.a", b"b", XattrFlags::empty())),
        ("folder sync", File::open(folder).unwrap().sync_all().map_err(|error| errno(&error))),
    ];
    for name in ["link", "old", "new", "symlink", "copy"] {
        let _ = fs::remove_file(new(name));
    }
    answers
}

#[test]
fn each_refusal_is_of_that_alone() {
    let only = |refusal: Refusal| -> Vec<(&'static str, Errno)> {
        match refusal {
            Refusal::RenameFlags => vec![("rename", Errno::INVAL)],
            Refusal::HardLinks(errno) => vec![("link", errno)],
            Refusal::Punching => vec![("punch", Errno::OPNOTSUPP)],
            Refusal::Fallocate => vec![("space", Errno::OPNOTSUPP), ("punch", Errno::OPNOTSUPP)],
            Refusal::SeekData => vec![("seek", Errno::INVAL)],
            // What the kernel does by itself then.
            Refusal::CopyFileRange(Errno::XDEV | Errno::OPNOTSUPP | Errno::NOSYS) => vec![],
            Refusal::CopyFileRange(errno) => vec![("copy", errno)],
            Refusal::Flock(errno) => vec![("lock", errno), ("read-only lock", errno)],
            Refusal::FlockWithoutWriting => vec![("read-only lock", Errno::BADF)],
            Refusal::FineTimes => vec![("times", Errno::INVAL)],
            Refusal::Symlinks => vec![("symlink", Errno::PERM)],
            Refusal::Attributes => vec![("attribute", Errno::OPNOTSUPP)],
            Refusal::FolderSync => vec![("folder sync", Errno::INVAL)],
        }
    };
    let locks = [Refusal::Flock(Errno::NOLCK), Refusal::Flock(Errno::NOSYS), Refusal::CopyFileRange(Errno::IO)];
    for refusal in Refusal::BEARABLE.into_iter().chain(locks) {
        let poor = PoorFs::new(&[refusal]);
        let mut refused: Vec<_> =
            all_answers(poor.path()).into_iter().filter_map(|(what, answer)| Some((what, answer.err()?))).collect();
        let unnamed = refused.iter().position(|(what, _)| *what == "unnamed").unwrap();
        assert_eq!(refused.remove(unnamed).1, Errno::OPNOTSUPP, "{refusal}");
        assert_eq!(refused, only(refusal), "{refusal}");
    }
}

#[test]
fn what_is_written_is_there_on_both_sides() {
    let poor = PoorFs::new(&Refusal::BEARABLE);
    fs::create_dir(poor.path().join("folder")).unwrap();
    let (here, there) = (poor.path().join("folder/a"), poor.real().join("folder/a"));
    let content: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    fs::write(&here, &content).unwrap();
    assert!(fs::read(&there).unwrap() == content);
    fs::write(&there, "short").unwrap();
    assert_eq!(fs::read(&here).unwrap(), b"short");
    fs::rename(&there, poor.real().join("b")).unwrap();
    let names: Vec<_> = fs::read_dir(poor.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2);
    assert!(!here.exists());
    let open = File::open(poor.path().join("b")).unwrap();
    fs::remove_file(poor.path().join("b")).unwrap();
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    fs::write(poor.path().join("b"), "another").unwrap();
    let mut bytes = [0; 5];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"short");
}

#[test]
fn locks_are_kept_between_openers() {
    let poor = PoorFs::new(&[Refusal::FlockWithoutWriting]);
    let open = || File::options().create(true).truncate(false).write(true).open(poor.path().join("a")).unwrap();
    let (one, other) = (open(), open());
    one.try_lock().unwrap();
    assert!(other.try_lock().is_err());
    drop(one);
    other.try_lock().unwrap();
}

#[test]
fn it_is_gone_when_a_test_fails_with_a_file_open() {
    let mut path = None;
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let poor = PoorFs::new(&[]);
        path = Some(poor.path().to_path_buf());
        let _open = File::create(poor.path().join("a")).unwrap();
        std::panic::resume_unwind(Box::new("as a test does"));
    }));
    assert!(failed.is_err());
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    assert!(!mounts.contains(path.unwrap().to_str().unwrap()));
}
