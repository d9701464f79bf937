//! What is remembered of blocks takes no more than 32 MiB, and nothing is forgotten too early.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tempfile::TempDir;
use testkit::{pattern, scratch};
use vhd_core::{
    BlockIndex, BlockSize, ByteCount, Container, Existing, Extents, FileOffset, FileStorage, Image, Lock, NewImage,
    NewKind, ReadWrite, SectorRange, Source, Storage, WriteError, create_file,
};

use super::sectors;

/// Blocks have 256 MiB, so that the states of few take much memory: a bitmap of 64 KiB, and 128 bytes.
const BLOCK: u64 = 256 << 20;
/// The most states that fit into 32 MiB.
const MOST: u64 = (32 << 20) / ((64 << 10) + 128);
const BLOCKS: u64 = MOST + 9;

/// What a test does at a sync; an error is that of the sync.
type AtSync = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// A file that counts what is read of it, and lets a test do something when it is synced next.
struct Watched {
    file: FileStorage,
    read: AtomicU64,
    at_sync: Mutex<Option<AtSync>>,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.file.fmt(f)
    }
}

impl Storage for Watched {
    fn len(&self) -> io::Result<ByteCount> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], at: FileOffset) -> io::Result<()> {
        self.read.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.file.read_at(buf, at)
    }

    fn write_at(&self, buf: &[u8], at: FileOffset) -> io::Result<()> {
        self.file.write_at(buf, at)
    }

    fn set_len(&self, len: ByteCount) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        let work = self.at_sync.lock().unwrap().take();
        work.map_or(Ok(()), |work| work())?;
        self.file.sync()
    }
}

fn sector_of(block: u64, number: u64) -> SectorRange {
    sectors(block * (BLOCK / 512) + number, 1)
}

/// An image with the first sector of each block written.
fn large() -> (TempDir, PathBuf) {
    let folder = scratch::folder();
    let path = folder.path().join("large-blocks.vhd");
    let kind = NewKind::Dynamic { block_size: BlockSize::new(BLOCK as u32).unwrap() };
    create_file(&path, &NewImage::new(ByteCount(BLOCKS * BLOCK), kind), Existing::Keep).unwrap();
    let image = Image::open_writable(&path).unwrap();
    for block in 0..BLOCKS {
        write(&image, block, 0);
    }
    image.close().unwrap();
    (folder, path)
}

fn write(image: &Image<ReadWrite>, block: u64, number: u64) {
    let range = sector_of(block, number);
    image.write(range, &pattern::fill(range, 1)).unwrap();
}

fn watched(path: &std::path::Path) -> (Arc<Watched>, Arc<Image<ReadWrite>>) {
    let file = FileStorage::open_writable(path).unwrap();
    let storage = Arc::new(Watched { file, read: AtomicU64::new(0), at_sync: Mutex::new(None) });
    (storage.clone(), Arc::new(Image::writable_from_container(Container::new(path, storage)).unwrap()))
}

fn source(image: &Image<ReadWrite>, block: u64, number: u64) -> Source {
    let mut extents = Extents::default();
    image.resolve(sector_of(block, number), &mut extents).unwrap();
    extents.as_slice()[0].source
}

/// The sectors of a block that another reader sees.
fn shown(path: &std::path::Path, block: u64) -> u64 {
    Image::open(path, Lock::None).unwrap().present_sectors(BlockIndex(block as u32)).unwrap().0
}

#[test]
fn dirty_states_are_flushed_when_they_take_too_much_memory() {
    let (_folder, path) = large();
    let (_, image) = watched(&path);
    for block in 0..MOST {
        write(&image, block, 1);
    }
    assert_eq!(shown(&path, 0), 1, "all of the states fit");
    write(&image, MOST, 1);
    assert_eq!((shown(&path, 0), shown(&path, MOST)), (2, 2), "one more does not");
    // And they count anew from there.
    for block in 0..MOST {
        write(&image, block, 2);
    }
    assert_eq!(shown(&path, 0), 2);
    write(&image, MOST, 2);
    assert_eq!(shown(&path, 0), 3);
}

#[test]
fn clean_states_are_forgotten_when_they_take_too_much_memory() {
    let (_folder, path) = large();
    let (storage, image) = watched(&path);
    let read_by = |block| {
        let before = storage.read.load(Ordering::Relaxed);
        assert!(matches!(source(&image, block, 0), Source::Data(_)));
        storage.read.load(Ordering::Relaxed) - before
    };
    for block in 0..MOST {
        read_by(block);
    }
    assert_eq!(read_by(0), 0, "all of the states fit");
    read_by(MOST);
    assert_eq!(read_by(0), BLOCK / 512 / 8, "one more does not");
    assert_eq!(read_by(0), 0);
}

/// Between taking a state as clean and writing its bitmap a flush syncs. A reader that makes the states too many just then
/// must not forget it: what it would read next is the old bitmap, and the next flush would write that.
#[test]
fn readers_forget_nothing_that_a_flush_is_writing_out() {
    let (_folder, path) = large();
    let (storage, image) = watched(&path);
    for block in 0..MOST {
        write(&image, block, 1);
    }
    let reader = image.clone();
    *storage.at_sync.lock().unwrap() = Some(Box::new(move || {
        let look = || {
            assert!(matches!(source(&reader, MOST, 0), Source::Data(_)));
            assert!(matches!(source(&reader, 0, 1), Source::Data(_)), "what was written is forgotten");
        };
        std::thread::scope(|scope| scope.spawn(look).join().unwrap());
        Ok(())
    }));
    image.flush().unwrap();
    assert!(storage.at_sync.lock().unwrap().is_none(), "there was a sync to look beside");
    write(&image, 0, 2);
    image.flush().unwrap();
    assert_eq!(shown(&path, 0), 3);
}

#[test]
fn states_of_blocks_that_are_given_back_take_no_memory() {
    const SOME: u64 = 300;
    let (_folder, path) = large();
    let mut image = Image::open_writable(&path).unwrap();
    for block in 0..SOME {
        write(&image, block, 1);
    }
    image.release(&(0..SOME as u32).map(BlockIndex).collect::<Vec<_>>()).unwrap();
    for block in 0..SOME {
        write(&image, block, 2);
    }
    assert_eq!(shown(&path, 0), 0, "nothing had to be flushed");
    image.close().unwrap();
    assert_eq!(shown(&path, 0), 1);
}

/// Also a block that no flush has shown yet; the next one is not to show it.
#[test]
fn blocks_that_are_given_back_leave_nothing_in_the_file() {
    let kind = NewKind::Dynamic { block_size: BlockSize::new(4096).unwrap() };
    let memory = super::new_image(40 * 512, kind);
    let mut image = super::open_writable(&memory);
    let block = |number: u64| sectors(number * 8, 8);
    for number in [0, 1] {
        image.write(block(number), &pattern::fill(block(number), 1)).unwrap();
    }
    image.flush().unwrap();
    image.write(block(2), &pattern::fill(block(2), 1)).unwrap();
    image.release(&[BlockIndex(0), BlockIndex(2)]).unwrap();
    let is_in_file = |number: u64| {
        let data = pattern::fill(block(number), 1);
        memory.to_vec().windows(data.len()).any(|bytes| bytes == data)
    };
    assert_eq!([0, 1, 2].map(is_in_file), [false, true, false]);
    image.close().unwrap();
    let image = super::open(&memory);
    let blocks: Vec<_> = image.allocated_blocks().map(|found| found.unwrap().0).collect();
    assert_eq!(blocks, [BlockIndex(1)]);
}

/// A batmap whose checksum is wrong is made anew, without the blocks that go, in whatever order these are named.
#[test]
fn blocks_that_are_given_back_leave_a_batmap_that_is_made_anew() {
    let kind = NewKind::Dynamic { block_size: BlockSize::new(4096).unwrap() };
    let memory = super::new_image(80 * 512, kind);
    let image = super::open_writable(&memory);
    image.write(sectors(0, 80), &pattern::fill(sectors(0, 80), 1)).unwrap();
    image.close().unwrap();
    let is_full = |number: u32| {
        let image = super::open(&memory);
        let batmap = image.batmap().unwrap();
        let mut byte = [0];
        let storage: &dyn Storage = &*memory;
        storage.read_at(&mut byte, FileOffset(batmap.map_offset().0 + u64::from(number / 8))).unwrap();
        byte[0] & (0x80 >> (number % 8)) != 0
    };
    assert!((0..10).all(is_full));
    let at = memory.to_vec().windows(8).position(|bytes| bytes == b"tdbatmap").unwrap();
    let storage: &dyn Storage = &*memory;
    storage.write_at(&[1, 2, 3, 4], FileOffset(at as u64 + 28)).unwrap();
    let mut image = super::open_writable(&memory);
    image.release(&[9, 0, 7, 3, 1].map(BlockIndex)).unwrap();
    image.close().unwrap();
    let full: Vec<u32> = (0..10).filter(|&number| is_full(number)).collect();
    assert_eq!(full, [2, 4, 5, 6, 8]);
}

/// The sync that failed may have lost the data of a write that has not returned yet: a sync that goes well says nothing
/// of it.
#[test]
fn nothing_is_shown_after_a_sync_that_failed() {
    type Step = fn(&Image<ReadWrite>) -> Result<(), WriteError>;
    let cases: [(u64, Step); 3] = [(9, Image::flush), (9, Image::settle), (MOST, |_| Ok(()))];
    for (others, then) in cases {
        let (_folder, path) = large();
        let (storage, image) = watched(&path);
        for block in 0..others {
            write(&image, block, 1);
        }
        let late = sector_of(MOST, 1);
        let place = image.place_for(late).unwrap();
        storage.write_at(&pattern::fill(late, 1), place).unwrap();
        *storage.at_sync.lock().unwrap() = Some(Box::new(|| Err(io::ErrorKind::Other.into())));
        image.flush().unwrap_err();
        let failed = image.mark_present(late).and_then(|()| then(&image)).unwrap_err();
        assert!(matches!(failed, WriteError::Failed { .. }), "{failed}");
        let failed = image.reserve(&[BlockIndex(MOST as u32 + 1)]).unwrap_err();
        assert!(matches!(failed, WriteError::Failed { .. }), "{failed}");
        drop(image);
        assert_eq!((shown(&path, 0), shown(&path, MOST)), (1, 1));
    }
}
