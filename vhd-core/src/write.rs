//! Writing into one image, from any number of threads.
//!
//! Between flushes a new sector is known only in memory: its data is in the file, but the bit that shows it, and for a
//! new block the BAT entry, are held back until [`flush`](Image::flush) has made the data durable. So whatever the
//! moment of a crash, what the file shows is either the content before a write or the content after it.
//! Bits and BAT entries are only ever added; discarding zeroes data and keeps them.
//!
//! Lock order: `flushing`, then one of `shards`, then `tail`.

mod allocate;
mod flush;
mod release;

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bitmap::Bitmap;
use crate::block_size::{BlockPlace, BlockSize};
use crate::footer::Footer;
use crate::image::{BlockFault, FooterOrigin, Image, OpenError, ReadError, Tables};
use crate::merge_mark::MergeMark;
use crate::resolve::{BlockBits, Extents, Source};
use crate::storage::{Container, StorageError};
use crate::units::{BlockIndex, ByteCount, FileOffset, SECTOR_SIZE, SectorCount, SectorRange};

use allocate::Tail;
pub(crate) use allocate::last_used;

const SHARDS: usize = 64;
/// Memory for block states, clean and dirty; beyond it dirty ones are flushed and clean ones forgotten.
const STATE_MEMORY: ByteCount = ByteCount(32 << 20);

/// Why a write did not take place.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// What had to be read first could not be.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The storage failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A 32-bit sector address does not reach where the next block would lie.
    #[error("{}: the file is full: block {block} would lie at offset {place}, past the 2 TiB that a BAT entry reaches", path.display())]
    FileFull {
        /// The image.
        path: std::path::PathBuf,
        /// The block that finds no place.
        block: BlockIndex,
        /// Where it would lie.
        place: FileOffset,
    },
    /// An earlier write or sync failed, so what the file holds is not certain. Close the image and open it again.
    #[error("{}: an earlier write failed; close the image and open it again", path.display())]
    Failed {
        /// The image.
        path: std::path::PathBuf,
    },
}

/// What is known in memory of a block that has been touched.
#[derive(Debug)]
struct BlockState {
    place: BlockPlace,
    bitmap: Bitmap,
    /// Set bits.
    present: u32,
    /// The bitmap on disk lacks bits.
    dirty: bool,
    /// The BAT on disk lacks the block.
    unpublished: bool,
}

/// A block that has lost sectors because the file was cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CutBlock {
    pub(crate) block: BlockIndex,
    pub(crate) place: FileOffset,
    pub(crate) fault: BlockFault,
}

/// The mode of an image that can be written.
#[derive(Debug)]
pub struct ReadWrite {
    shards: Box<[Mutex<HashMap<BlockIndex, BlockState>>]>,
    tail: Mutex<Tail>,
    flushing: Mutex<flush::Durable>,
    /// States in all shards.
    states: AtomicUsize,
    /// Something was written that is not yet synced.
    unsynced: AtomicBool,
    failed: AtomicBool,
    cut: Option<CutBlock>,
    /// What the footers say of a merge, whatever the one in memory said when it was read.
    merge_mark: Mutex<Option<MergeMark>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves no state half changed: all that is done under these locks is single assignments.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ReadWrite {
    pub(crate) fn new(
        container: &Container,
        footer: &Footer,
        origin: FooterOrigin,
        tables: Option<&Tables>,
        cut: Option<CutBlock>,
    ) -> Result<Self, OpenError> {
        Ok(Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            tail: Mutex::new(Tail::find(container, origin, tables, cut.is_some())?),
            cut,
            flushing: Mutex::default(),
            states: AtomicUsize::new(0),
            unsynced: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            merge_mark: Mutex::new(footer.merge_mark()),
        })
    }

    fn shard(&self, block: BlockIndex) -> MutexGuard<'_, HashMap<BlockIndex, BlockState>> {
        locked(&self.shards[block.0 as usize % SHARDS])
    }
}

/// The bits of a block that a range of sectors, all in that block, stands for.
fn bits_of(block_size: BlockSize, piece: SectorRange) -> Range<u32> {
    let first = (piece.start.0 % block_size.sectors().0) as u32;
    first..first + piece.count().0 as u32
}

impl Image<ReadWrite> {
    /// Finds where the content of `range` is, as far as this layer knows.
    ///
    /// # Errors
    /// A range beyond the disk, a BAT entry that cannot be, a failed read.
    pub fn resolve(&self, range: SectorRange, extents: &mut Extents) -> Result<(), ReadError> {
        self.check_range(range)?;
        let Some(tables) = &self.tables else {
            extents.push(range, Source::Data(FileOffset(range.start.byte_offset())));
            return Ok(());
        };
        let block_size = tables.header.block_size();
        for piece in range.split_at_multiples(block_size.sectors()) {
            let Some(block) = block_size.block_of(piece.start) else { continue };
            let mut shard = self.mode.shard(block);
            match self.known(tables, &mut shard, block)? {
                None => extents.push(piece, self.absent()),
                Some(state) => {
                    let present = BlockBits { bits: Cow::Borrowed(&state.bitmap), first_bit: 0 };
                    self.resolve_in_block(tables, piece, (block, state.place), &present, extents)?;
                }
            }
        }
        if self.is_crowded(block_size)
            && let Ok(_not_flushing) = self.mode.flushing.try_lock()
        {
            self.forget_clean_states();
        }
        Ok(())
    }

    /// Writes whole sectors.
    ///
    /// # Errors
    /// A range beyond the disk, no space, a failed read or write. After a failure the image accepts no more writes.
    ///
    /// # Crash safety
    /// Until the next [`flush`](Self::flush) each sector holds either its old or its new content.
    ///
    /// # Panics
    /// If `data` is not the length of `range`.
    pub fn write(&self, range: SectorRange, data: &[u8]) -> Result<(), WriteError> {
        assert_eq!(data.len() as u64, range.count().bytes().0, "the data is as long as the range");
        let mut rest = data;
        for piece in self.writable_pieces(range)? {
            let (now, later) = rest.split_at(piece.count().bytes().0 as usize);
            let at = self.place_for(piece)?;
            self.guarded(|| self.container.write_at(now, at))?;
            self.mark_present(piece)?;
            rest = later;
        }
        Ok(())
    }

    /// Makes sectors read as zeros, freeing the space of their data where the storage can.
    ///
    /// Sectors that nothing was ever written to, in an image without a parent, are left alone.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    ///
    /// # Crash safety
    /// As [`write`](Self::write).
    pub fn write_zeroes(&self, range: SectorRange) -> Result<(), WriteError> {
        let mut extents = Extents::default();
        for piece in self.writable_pieces(range)? {
            extents.clear();
            self.resolve(piece, &mut extents)?;
            for extent in extents.as_slice() {
                if extent.source == Source::Zero {
                    continue;
                }
                let at = self.place_for(extent.sectors)?;
                self.guarded(|| self.container.zero_range(at, extent.sectors.count().bytes()))?;
                self.mark_present(extent.sectors)?;
            }
        }
        Ok(())
    }

    fn writable_pieces(&self, range: SectorRange) -> Result<impl Iterator<Item = SectorRange>, WriteError> {
        self.check_range(range)?;
        self.check_not_failed()?;
        self.check_can_grow()?;
        let whole_disk = SectorCount(self.sectors().0.max(1));
        Ok(range.split_at_multiples(self.tables.as_ref().map_or(whole_disk, |t| t.header.block_size().sectors())))
    }

    /// The footer as it is to stand in the file.
    pub(crate) fn current_footer(&self) -> Footer {
        let mut footer = self.footer.clone();
        footer.set_merge_mark(*locked(&self.mode.merge_mark));
        footer
    }

    pub(crate) fn put_merge_mark(&self, mark: Option<MergeMark>) {
        *locked(&self.mode.merge_mark) = mark;
    }

    pub(crate) fn check_not_failed(&self) -> Result<(), WriteError> {
        if self.mode.failed.load(Ordering::Acquire) {
            return Err(WriteError::Failed { path: self.path().into() });
        }
        Ok(())
    }

    /// Refuses to change what would hide that the file has been cut.
    pub(crate) fn check_can_grow(&self) -> Result<(), WriteError> {
        match self.mode.cut {
            None => Ok(()),
            Some(CutBlock { block, place, fault }) => {
                Err(ReadError::Block { path: self.path().into(), block, place, fault }.into())
            }
        }
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.mode.cut.is_some()
    }

    pub(crate) fn fail(&self) {
        self.mode.failed.store(true, Ordering::Release);
    }

    /// Runs a step that leaves the image unusable for writing if it fails.
    fn guarded<T, E>(&self, step: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        step().inspect_err(|_| self.fail())
    }

    /// Gives the place in the file for sectors that lie in one block, allocating the block where it is new.
    ///
    /// What is put there is part of the disk only once [`mark_present`](Self::mark_present) says so. This and that are
    /// the two halves of [`write`](Self::write), for callers that move the data in another way.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn place_for(&self, piece: SectorRange) -> Result<FileOffset, WriteError> {
        let Some(tables) = &self.tables else { return Ok(FileOffset(piece.start.byte_offset())) };
        self.check_can_grow()?;
        let block_size = tables.header.block_size();
        let block = block_size.block_of(piece.start).expect("the range is within the disk, the disk within the BAT");
        let within = ByteCount(u64::from(bits_of(block_size, piece).start) * SECTOR_SIZE);
        let mut shard = self.mode.shard(block);
        if let Some(state) = self.known(tables, &mut shard, block)? {
            return Ok(state.place.data + within);
        }
        let place = self.guarded(|| self.allocate(tables, &[block]))?[0];
        self.insert_new(&mut shard, block_size, block, place);
        Ok(place.data + within)
    }

    /// Allocates blocks that are not yet allocated, side by side and in the order given.
    ///
    /// They hold nothing until something is written to them.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn reserve(&self, blocks: &[BlockIndex]) -> Result<(), WriteError> {
        self.check_not_failed()?;
        let Some(tables) = &self.tables else { return Ok(()) };
        let mut missing = Vec::new();
        for &block in blocks {
            if self.known(tables, &mut self.mode.shard(block), block)?.is_none() {
                missing.push(block);
            }
        }
        let places = self.guarded(|| self.allocate(tables, &missing))?;
        for (block, place) in missing.into_iter().zip(places) {
            self.insert_new(&mut self.mode.shard(block), tables.header.block_size(), block, place);
        }
        Ok(())
    }

    fn insert_new(
        &self,
        shard: &mut HashMap<BlockIndex, BlockState>,
        block_size: BlockSize,
        block: BlockIndex,
        place: BlockPlace,
    ) {
        let bitmap = Bitmap::clear(block_size.sectors().0 as u32);
        // Somebody may have allocated the block while its place was reserved; that place is then left empty.
        if let Entry::Vacant(vacant) = shard.entry(block) {
            vacant.insert(BlockState { place, bitmap, present: 0, dirty: true, unpublished: true });
            self.mode.states.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Makes sectors that lie in one block, and whose data has been written, part of the disk.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn mark_present(&self, piece: SectorRange) -> Result<(), WriteError> {
        self.mode.unsynced.store(true, Ordering::Release);
        let Some(tables) = &self.tables else { return Ok(()) };
        let block_size = tables.header.block_size();
        let block = block_size.block_of(piece.start).expect("the range is within the disk, the disk within the BAT");
        {
            let mut shard = self.mode.shard(block);
            let state = self.known(tables, &mut shard, block)?;
            let state = state.expect("place_for has allocated the block");
            let fresh = state.bitmap.set(bits_of(block_size, piece));
            state.present += fresh;
            state.dirty |= fresh > 0;
        }
        if self.is_crowded(block_size) { self.flush_and_forget() } else { Ok(()) }
    }

    /// Finds the state of a block, reading it from disk where it is not in memory; `None` for one that is not allocated.
    fn known<'a>(
        &self,
        tables: &Tables,
        shard: &'a mut HashMap<BlockIndex, BlockState>,
        block: BlockIndex,
    ) -> Result<Option<&'a mut BlockState>, ReadError> {
        match shard.entry(block) {
            Entry::Occupied(state) => Ok(Some(state.into_mut())),
            Entry::Vacant(vacant) => {
                let Some(place) = self.published_place(tables, block)? else { return Ok(None) };
                let bitmap = tables.read_bitmap(&self.container, place)?;
                let present = bitmap.count(0..tables.header.block_size().sectors().0 as u32);
                self.mode.states.fetch_add(1, Ordering::Relaxed);
                Ok(Some(vacant.insert(BlockState { place, bitmap, present, dirty: false, unpublished: false })))
            }
        }
    }

    /// Tells whether the block states take more memory than they may.
    fn is_crowded(&self, block_size: BlockSize) -> bool {
        let most = STATE_MEMORY.0 / (block_size.sectors().0 / 8 + 128);
        self.mode.states.load(Ordering::Relaxed) as u64 > most
    }

    /// Only called while `flushing` is held: a state that a flush has taken as clean is not on disk before that ends.
    fn forget_clean_states(&self) {
        for shard in &self.mode.shards {
            let mut shard = locked(shard);
            let before = shard.len();
            shard.retain(|_, state| state.dirty || state.unpublished);
            self.mode.states.fetch_sub(before - shard.len(), Ordering::Relaxed);
        }
    }
}
