//! What no file system for temporary files can do, and what happens too seldom: from traces written by hand.

use super::Replay;
use crate::crash::operation::Change;
use crate::crash::tree::Tree;
use crate::scratch;

/// Replays lines in which `'@name'` stands for the path of a file, printed with a descriptor, and `'text'` for a string.
fn replay(lines: &[&str]) -> Replay {
    let folder = scratch::folder();
    let hex = |text: &str| -> String { text.bytes().map(|byte| format!("\\x{byte:02x}")).collect() };
    let path = |name: &str| hex(folder.path().join(name).to_str().expect("temporary folders have plain names"));
    let mut trace = String::new();
    for line in lines {
        for (i, part) in line.split('\'').enumerate() {
            match (i % 2, part.strip_prefix('@')) {
                (0, _) => trace.push_str(part),
                (_, Some(name)) => trace.push_str(&format!("<{}>", path(name))),
                (_, None) => trace.push_str(&format!("\"{}\"", hex(part))),
            }
        }
        trace.push('\n');
    }
    let mut replay = Replay::new(folder.path(), folder.path(), Tree::default());
    replay.run(&trace);
    replay
}

const OPEN: &str = "7 openat(AT_FDCWD'@', 'a', O_RDWR|O_CREAT|O_CLOEXEC, 0666) = 3'@a'";

fn read(replay: &Replay, name: &str) -> Vec<u8> {
    let content = replay.tree.content(replay.tree.find(name).expect("it was made").inode);
    content.read(0..content.len())
}

#[test]
fn clones_share_content() {
    let replay = replay(&[
        OPEN,
        "7 write(3'@a', 'abcdef', 6) = 6",
        "7 openat(AT_FDCWD'@', 'b', O_RDWR|O_CREAT|O_CLOEXEC, 0666) = 4'@b'",
        "7 ioctl(4'@b', BTRFS_IOC_CLONE or FICLONE, 3) = 0",
        "7 ioctl(4'@b', BTRFS_IOC_CLONE_RANGE or FICLONERANGE, \
         {src_fd=3'@a', src_offset=1, src_length=2, dest_offset=9}) = 0",
        "7 ioctl(4'@b', BTRFS_IOC_CLONE or FICLONE, 3) = -1 EIO (Input/output error) (INJECTED)",
    ]);
    assert_eq!(read(&replay, "b"), b"abcdef\0\0\0bc");
}

#[test]
fn a_write_that_ends_during_a_sync_is_not_covered() {
    let replay = replay(&[
        OPEN,
        "7 clone3({flags=CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_THREAD, exit_signal=0} => {parent_tid=[8]}, 88) = 8",
        "8 pwrite64(3'@a', 'late', 4, 0 <unfinished ...>",
        "7 fsync(3'@a' <unfinished ...>",
        "8 <... pwrite64 resumed>) = 4",
        "7 <... fsync resumed>) = 0",
    ]);
    let Change::Sync { covers, .. } = replay.operations[2].change else { panic!("{:?}", replay.operations[2]) };
    assert!(matches!(replay.operations[1].change, Change::Data { .. }));
    assert_eq!(covers, 1);
    assert_eq!(read(&replay, "a"), b"late");
}

#[test]
fn a_descriptor_is_free_as_soon_as_its_close_begins() {
    let replay = replay(&[
        OPEN,
        "7 clone3({flags=CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_THREAD, exit_signal=0} => {parent_tid=[8]}, 88) = 8",
        "7 close(3'@a' <unfinished ...>",
        "8 openat(AT_FDCWD'@', 'b', O_RDWR|O_CREAT, 0666) = 3'@b'",
        "7 <... close resumed>) = 0",
        "8 write(3'@b', 'x', 1) = 1",
        "8 rename('b', 'c') = 0",
    ]);
    assert_eq!(read(&replay, "c"), b"x");
    assert_eq!(read(&replay, "a"), b"");
}
