//! What every backend promises.

use std::io::ErrorKind;

use vhd_core::{ByteCount, FileOffset, FileStorage, Lock, MemoryStorage, Storage};

fn conforms(storage: &dyn Storage) {
    assert_eq!(storage.len().unwrap(), ByteCount(0));
    assert!(storage.is_empty().unwrap());
    storage.write_at(b"abc", FileOffset(10_000)).unwrap();
    assert_eq!(storage.len().unwrap(), ByteCount(10_003), "a write grows the store");
    let mut bytes = [1; 8];
    storage.read_at(&mut bytes, FileOffset(9_995)).unwrap();
    assert_eq!(&bytes, b"\0\0\0\0\0abc", "what was skipped reads as zeros");
    let past = storage.read_at(&mut bytes, FileOffset(9_996)).unwrap_err();
    assert_eq!(past.kind(), ErrorKind::UnexpectedEof, "reads are whole or fail");

    storage.set_len(ByteCount(10_001)).unwrap();
    storage.set_len(ByteCount(30_000)).unwrap();
    storage.read_at(&mut bytes, FileOffset(9_999)).unwrap();
    assert_eq!(&bytes, b"\0a\0\0\0\0\0\0", "what was cut off does not come back");
    storage.sync().unwrap();

    storage.write_at(&[7; 20_000], FileOffset(5_000)).unwrap();
    storage.zero_range(FileOffset(6_001), ByteCount(12_000)).unwrap();
    assert_eq!(storage.len().unwrap(), ByteCount(30_000));
    let mut all = vec![1; 30_000];
    storage.read_at(&mut all, FileOffset(0)).unwrap();
    let expected = |at: usize| if (5_000..25_000).contains(&at) && !(6_001..18_001).contains(&at) { 7 } else { 0 };
    assert!(all.iter().enumerate().all(|(at, &byte)| byte == expected(at)));

    let mut from = FileOffset(0);
    let mut covered = vec![false; 30_000];
    while let Some(range) = storage.next_data(from).unwrap() {
        assert!(range.start >= from && range.start < range.end && range.end.0 <= 30_000);
        covered[range.start.0 as usize..range.end.0 as usize].fill(true);
        from = range.end;
    }
    assert!((0..30_000).all(|at| covered[at] || all[at] == 0), "what is not found is zeros");
}

/// Sharing and copying either do what they promise or say that they cannot, and then nothing has changed.
fn moves(source: &dyn Storage, target: &dyn Storage) -> [bool; 2] {
    let content: Vec<u8> = (0..40_000_u32).map(|i| (i / 512) as u8 + 100).collect();
    source.write_at(&content, FileOffset(0)).unwrap();
    let mut done = [false; 2];
    for (share, done) in [true, false].into_iter().zip(&mut done) {
        target.set_len(ByteCount(0)).unwrap();
        target.write_at(&[9; 30_000], FileOffset(0)).unwrap();
        let (from, to, length) = (FileOffset(4096), FileOffset(8192), ByteCount(16_384));
        let outcome = match share {
            true => target.clone_range(source, from, to, length),
            false => target.copy_range(source, from, to, length),
        };
        let mut found = vec![0; 30_000];
        target.read_at(&mut found, FileOffset(0)).unwrap();
        let mut expected = vec![9; 30_000];
        match outcome {
            Ok(()) => expected[8192..24_576].copy_from_slice(&content[4096..20_480]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}"),
        }
        assert!(found == expected, "sharing: {share}");
        *done = found[8192] != 9;
    }
    done
}

#[test]
fn memory() {
    conforms(&MemoryStorage::default());
    let unsupported = moves(&MemoryStorage::default(), &MemoryStorage::default());
    assert_eq!(unsupported, [false, false], "memory leaves it to reading and writing");
}

#[test]
fn file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, b"").unwrap();
    conforms(&FileStorage::open_writable(&path).unwrap());
}

#[test]
fn files_are_shared_or_copied() {
    let folder = tempfile::tempdir().unwrap();
    let open = |name| {
        std::fs::write(folder.path().join(name), b"").unwrap();
        FileStorage::open_writable(&folder.path().join(name)).unwrap()
    };
    let (source, target) = (open("source"), open("target"));
    let [_, copied] = moves(&source, &target);
    assert!(copied, "Linux copies within any file system");
    assert_eq!(moves(&MemoryStorage::default(), &target), [false, false]);
    assert_eq!(moves(&source, &MemoryStorage::default()), [false, false]);

    let (from, length) = (FileOffset(39_000), ByteCount(1001));
    let past = target.copy_range(&source, from, FileOffset(0), length).unwrap_err();
    assert_eq!(past.kind(), ErrorKind::UnexpectedEof, "copies are whole or fail");
    target.copy_range(&source, from, FileOffset(29_500), ByteCount(1000)).unwrap();
    assert_eq!(target.len().unwrap(), ByteCount(30_500), "a copy grows the store");
    target.copy_range(&source, from, FileOffset(0), ByteCount(0)).unwrap();
}

#[test]
fn nothing_is_shared_or_copied_between_file_systems() {
    let folder = tempfile::tempdir_in(".").unwrap();
    std::fs::write(folder.path().join("file"), b"").unwrap();
    let source = FileStorage::open_writable(&folder.path().join("file")).unwrap();
    let memory = rustix::fs::memfd_create("target", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let target = FileStorage::new(memory.into()).unwrap();
    assert_eq!(moves(&source, &target), [false, false]);
}

#[test]
fn locks_keep_writers_apart_and_let_readers_in() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, b"").unwrap();
    let busy = |lock| FileStorage::open(&path, lock).is_err_and(|error| error.kind() == ErrorKind::ResourceBusy);
    let writer = FileStorage::open_writable(&path).unwrap();
    assert!(busy(Lock::Exclusive) && busy(Lock::Shared) && !busy(Lock::None));
    drop(writer);
    let reader = FileStorage::open(&path, Lock::Shared).unwrap();
    assert!(busy(Lock::Exclusive) && !busy(Lock::Shared));
    drop(reader);
    assert!(!busy(Lock::Exclusive));
}
