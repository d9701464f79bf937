//! Whether a file is what it was, told by what the file system keeps of it.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

/// The clock of a file system ticks as the kernel does, every 10 ms at most.
const TICK: Duration = Duration::from_millis(50);
/// Times that are whole hundredths of a second may be of a file system that counts in these.
const COARSE: Duration = Duration::from_secs(1);
const COARSE_UNIT: i64 = 10_000_000;
/// Times that are whole seconds may be of one that counts in seconds, or in two.
const VERY_COARSE: Duration = Duration::from_secs(5);

/// What changes when a file is written to, restored or replaced.
///
/// Everything but a restored file system changes the time of change (`ctime`), and no program can set it. File systems count
/// it in steps from nanoseconds to two seconds, which they do not tell. Two changes within a step show as one. So a stamp
/// tells later changes from none only if it was taken some time after the change that it names, by the clock of the file
/// system itself: see [`is_settled`](Self::is_settled).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStamp {
    /// The number of the file in its file system.
    pub inode: u64,
    /// In bytes.
    pub length: u64,
    /// The last change of its content, in seconds and nanoseconds.
    pub modified: (i64, i64),
    /// The last change of anything.
    pub changed: (i64, i64),
}

impl FileStamp {
    /// Takes the stamp of a file.
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Tells whether every later change gives another stamp. `now` is of a file of the same file system that has been written
    /// to just before this stamp was taken.
    pub fn is_settled(&self, now: &Self) -> bool {
        let unit = match self.changed.1 {
            0 => VERY_COARSE,
            nanoseconds if nanoseconds % COARSE_UNIT == 0 => COARSE,
            _ => TICK,
        };
        nanoseconds(now.changed) - nanoseconds(self.changed) > unit.as_nanos().cast_signed()
    }
}

fn nanoseconds(time: (i64, i64)) -> i128 {
    i128::from(time.0) * 1_000_000_000 + i128::from(time.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(changed: (i64, i64)) -> FileStamp {
        FileStamp { inode: 1, length: 2, modified: (3, 4), changed }
    }

    #[test]
    fn a_stamp_is_settled_once_a_change_must_show() {
        let settled = |changed, now| stamp(changed).is_settled(&stamp(now));
        assert!(settled((7, 123_456_789), (7, 173_456_790)));
        assert!(!settled((7, 123_456_789), (7, 173_456_789)));
        assert!(!settled((7, 123_456_789), (7, 123_456_788)));
        assert!(!settled((7, 120_000_000), (8, 120_000_000)));
        assert!(settled((7, 120_000_000), (8, 120_000_001)));
        assert!(!settled((7, 0), (12, 0)));
        assert!(settled((7, 0), (13, 0)));
        assert!(!settled((-1, 5), (-2, 0)));
    }
}
