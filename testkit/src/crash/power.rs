//! One image in memory, and what of it a power failure may leave, by the same rules as for the folders of real programs.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhd_core::{ByteCount, FileOffset, MemoryStorage, Storage};

use super::content::{Content, pieces, zeros};
use super::operation::{Change, Operation};
use super::states::{Options, States};
use super::tree::{DataChange, Entry, Inode, Place, Tree};

const FILE: Inode = Inode(1);

/// Memory that remembers all that was done to it since it was made; what it held then is durable.
#[derive(Debug)]
pub struct PowerStorage {
    memory: MemoryStorage,
    initial: Tree,
    has_holes: bool,
    log: Mutex<Log>,
}

#[derive(Debug, Default)]
struct Log {
    operations: Vec<Operation>,
    promises: Vec<usize>,
}

impl PowerStorage {
    /// The name of the image in the [states](super::State).
    pub const NAME: &str = "image";

    /// Starts with these bytes, on a file system that makes holes into files.
    pub fn new(bytes: Vec<u8>) -> Self {
        let mut initial = Tree::default();
        let place = Place { folder: Inode::ROOT, name: Self::NAME.into() };
        initial.names.insert(place, Entry { inode: FILE, is_folder: false });
        initial.files.insert(FILE, Arc::new(Content::of(&bytes)));
        Self { memory: MemoryStorage::new(bytes), initial, has_holes: true, log: Mutex::default() }
    }

    /// As [`new`](Self::new), on one that makes none: zeros are written, and so may be torn and reordered like any data.
    pub fn without_holes(bytes: Vec<u8>) -> Self {
        Self { has_holes: false, ..Self::new(bytes) }
    }

    /// Copies out what it holds now.
    pub fn to_vec(&self) -> Vec<u8> {
        self.memory.to_vec()
    }

    /// Counts what was done so far: changes and syncs.
    pub fn operations(&self) -> usize {
        self.log().operations.len()
    }

    /// Says that more is promised from now on, as after a flush: see
    /// [`promises_made`](super::State::promises_made).
    pub fn promise(&self) {
        let mut log = self.log();
        let made = log.operations.len();
        log.promises.push(made);
    }

    /// Gives the distinct states that a power failure may leave, from before the first operation to after the last.
    pub fn states(&self, options: Options) -> States {
        let log = self.log();
        let (operations, promises) = (log.operations.as_slice().into(), log.promises.as_slice().into());
        States::new(operations, self.initial.clone(), Arc::default(), promises, options)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something and remembers it, in the order in which readers see it.
    fn change(
        &self,
        text: String,
        change: impl FnOnce(u64) -> DataChange,
        work: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        let mut log = self.log();
        let length = self.memory.len()?.0;
        work()?;
        log.operations.push(Operation { change: Change::Data { inode: FILE, change: change(length) }, text });
        Ok(())
    }

    fn make_hole(&self, at: FileOffset, length: ByteCount) -> io::Result<()> {
        let end = at.0 + length.0;
        self.change(
            format!("a hole from {at} to {end}"),
            |_| DataChange::Zero { pieces: zeros(at.0..end).into() },
            || self.memory.zero_range(at, length),
        )
    }
}

impl Storage for PowerStorage {
    fn len(&self) -> io::Result<ByteCount> {
        self.memory.len()
    }

    fn read_at(&self, buf: &mut [u8], at: FileOffset) -> io::Result<()> {
        self.memory.read_at(buf, at)
    }

    fn write_at(&self, buf: &[u8], at: FileOffset) -> io::Result<()> {
        self.change(
            format!("{} bytes written at {at}", buf.len()),
            |_| DataChange::Write { pieces: pieces(at.0, buf).into() },
            || self.memory.write_at(buf, at),
        )
    }

    fn set_len(&self, len: ByteCount) -> io::Result<()> {
        self.change(
            format!("the length set to {len}"),
            |old| DataChange::SetLen { old, len: len.0 },
            || self.memory.set_len(len),
        )
    }

    fn sync(&self) -> io::Result<()> {
        let mut log = self.log();
        let covers = log.operations.len();
        log.operations.push(Operation { change: Change::Sync { inode: Some(FILE), covers }, text: "a sync".into() });
        Ok(())
    }

    fn zero_range(&self, at: FileOffset, length: ByteCount) -> io::Result<()> {
        if self.has_holes {
            return self.make_hole(at, length);
        }
        self.write_at(&vec![0; length.0 as usize], at)
    }

    fn punch_hole(&self, at: FileOffset, length: ByteCount) -> io::Result<bool> {
        if self.has_holes {
            self.make_hole(at, length)?;
        }
        Ok(self.has_holes)
    }
}
