//! What was learnt about file systems, so that none is asked twice for what it does not do.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vhd_core::{ByteCount, DeviceNumber, FileIdentity, FileOffset, StorageError};

use super::Move;
use super::zeroes::BLOCK;

/// What the kernel may do by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Way {
    /// Sharing blocks.
    Share,
    /// Copying.
    Copy,
}

/// No file system of Linux has larger blocks; what NFS and the like call their block is a transfer's size.
const LARGEST_BLOCK: ByteCount = ByteCount(64 * 1024);

/// File systems of which a server does the copying: `f_type` of statfs(2), as linux/magic.h has it.
const SERVERS: [u32; 4] = [
    0x6969,      // NFS
    0xFF53_4D42, // CIFS
    0xFE53_4D42, // SMB 2 and later
    0x00C3_6400, // Ceph
];

/// What is known, for pairs of file systems and, where these differ within one, of files.
#[derive(Debug, Default)]
pub(super) struct Support(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    devices: HashMap<(DeviceNumber, DeviceNumber), Devices>,
    /// Pairs of files that a way is impossible between. On btrfs, say, of one that has checksums and one that has none.
    refused: HashSet<(Way, FileIdentity, FileIdentity)>,
}

#[derive(Clone, Copy, Debug)]
struct Devices {
    shares: bool,
    copies: bool,
    block: ByteCount,
}

impl Support {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells whether a way may be possible and is the better one.
    pub(super) fn may(&self, way: Way, range: &Move<'_>) -> bool {
        let Some((source, target)) = files(range) else { return false };
        let mut known = self.lock();
        let devices = known.devices(range, source, target);
        let supported = match way {
            Way::Share => devices.shares,
            Way::Copy => devices.copies,
        };
        supported && !known.refused.contains(&(way, source, target))
    }

    /// What must be whole to be shared.
    pub(super) fn block(&self, range: &Move<'_>) -> ByteCount {
        let known = self.lock();
        let devices = files(range).and_then(|(source, target)| known.devices.get(&(source.device(), target.device())));
        devices.map_or(ByteCount(BLOCK), |devices| devices.block)
    }

    /// Finds out, where blocks of this size were refused, whether the file system has larger ones; remembers it.
    pub(super) fn has_larger_blocks(&self, range: &Move<'_>, tried: ByteCount) -> Result<bool, StorageError> {
        let (Some((source, target)), Some(file)) = (files(range), range.target.storage().as_file()) else {
            return Ok(false);
        };
        let answer = rustix::fs::fstatfs(file.file()).map_err(|error| StorageError {
            path: range.target.path().into(),
            action: "ask for the size of the file system's blocks".into(),
            offset: FileOffset(0),
            source: error.into(),
        })?;
        let block = ByteCount(u64::try_from(answer.f_bsize).unwrap_or(0));
        let is_larger = block > tried && block <= LARGEST_BLOCK && block.0.is_power_of_two();
        if is_larger {
            self.lock().devices(range, source, target).block = block;
        }
        Ok(is_larger)
    }

    /// Remembers that a way is impossible: between the file systems, or only between these two files.
    pub(super) fn refuse(&self, way: Way, range: &Move<'_>, everywhere: bool) {
        let Some((source, target)) = files(range) else { return };
        let mut known = self.lock();
        if !everywhere {
            known.refused.insert((way, source, target));
            return;
        }
        let devices = known.devices(range, source, target);
        match way {
            Way::Share => devices.shares = false,
            Way::Copy => devices.copies = false,
        }
    }
}

impl Known {
    fn devices(&mut self, range: &Move<'_>, source: FileIdentity, target: FileIdentity) -> &mut Devices {
        self.devices.entry((source.device(), target.device())).or_insert_with(|| Devices {
            shares: true,
            copies: has_server(range),
            block: ByteCount(BLOCK),
        })
    }
}

fn files(range: &Move<'_>) -> Option<(FileIdentity, FileIdentity)> {
    Some((range.source.storage().as_file()?.identity(), range.target.storage().as_file()?.identity()))
}

fn has_server(range: &Move<'_>) -> bool {
    let answer = range.target.storage().as_file().and_then(|file| rustix::fs::fstatfs(file.file()).ok());
    // The field's type differs between architectures; its low half is the magic number on all.
    answer.is_some_and(|answer| SERVERS.contains(&(answer.f_type as u32)))
}
