//! Storage that fails when told to.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vhd_core::{ByteCount, FileOffset, MemoryStorage, Storage};

/// Memory whose changing operations (writes, changes of length, syncs) fail from a given one on.
#[derive(Debug)]
pub struct FaultStorage {
    memory: Arc<MemoryStorage>,
    done: AtomicU64,
    first: u64,
    faults: u64,
    kind: io::ErrorKind,
}

impl FaultStorage {
    /// Lets `first` operations pass, fails the next `faults` with `kind`, and lets all later ones pass.
    pub fn new(memory: Arc<MemoryStorage>, first: u64, faults: u64, kind: io::ErrorKind) -> Self {
        Self { memory, done: AtomicU64::new(0), first, faults, kind }
    }

    /// Counts the operations so far.
    pub fn operations(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn step(&self) -> io::Result<()> {
        let number = self.done.fetch_add(1, Ordering::Relaxed);
        let failing = self.first..self.first.saturating_add(self.faults);
        if failing.contains(&number) { Err(self.kind.into()) } else { Ok(()) }
    }
}

impl Storage for FaultStorage {
    fn len(&self) -> io::Result<ByteCount> {
        self.memory.len()
    }

    fn read_at(&self, buf: &mut [u8], at: FileOffset) -> io::Result<()> {
        self.memory.read_at(buf, at)
    }

    fn write_at(&self, buf: &[u8], at: FileOffset) -> io::Result<()> {
        self.step()?;
        self.memory.write_at(buf, at)
    }

    fn set_len(&self, len: ByteCount) -> io::Result<()> {
        self.step()?;
        self.memory.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.step()?;
        self.memory.sync()
    }
}
