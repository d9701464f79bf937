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

#[test]
fn memory() {
    conforms(&MemoryStorage::default());
}

#[test]
fn file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, b"").unwrap();
    conforms(&FileStorage::open_writable(&path).unwrap());
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
