//! Power fails at every point of an operation, and any part of what was not synced is on the disk: the image opens, each
//! sector reads as some step since the last flush left it, and what the documentation promises mends the rest.

mod metadata;
mod parent;
mod space;
mod writing;

use std::path::Path;
use std::sync::Arc;

use testkit::crash::{Options, PowerStorage, State};
use testkit::model::read_all;
use testkit::{pattern, plain};
use vhd_core::check::{self, Finding, Severity};
use vhd_core::{
    BlockSize, Chain, Container, Image, Layer, MemoryStorage, NewKind, ParentLink, ReadOnly, ReadWrite, SectorRange,
    Timestamp,
};

use super::{container, new_image, open, open_writable, sectors};

/// The sectors of the disks here.
const DISK: u64 = 96;

fn dynamic(block_size: u32) -> NewKind {
    NewKind::Dynamic { block_size: BlockSize::new(block_size).unwrap() }
}

/// An image with the pattern of a tag in these ranges of its disk.
fn written(kind: NewKind, size: u64, tag: u16, ranges: &[SectorRange]) -> Arc<MemoryStorage> {
    let memory = new_image(size * 512, kind);
    let image = open_writable(&memory);
    for &range in ranges {
        image.write(range, &pattern::fill(range, tag)).unwrap();
    }
    image.close().unwrap();
    memory
}

fn link_to(parent: &Arc<MemoryStorage>, name: &str) -> ParentLink {
    ParentLink::to_named(Path::new(name), open(parent).footer().unique_id(), Timestamp::now()).unwrap()
}

/// A parent that has content but for its last sectors.
fn parent() -> Arc<MemoryStorage> {
    written(dynamic(8192), DISK, 1, &[sectors(0, DISK - 9)])
}

/// A child of it with a full block, one that is not, and a sector that it shares with nothing.
fn child(parent: &Arc<MemoryStorage>, block_size: u32) -> Arc<MemoryStorage> {
    let block_size = BlockSize::new(block_size).unwrap();
    let kind = NewKind::Differencing { block_size, parent: link_to(parent, "parent.vhd") };
    written(kind, DISK, 2, &[sectors(0, 34), sectors(41, 3), sectors(DISK - 2, 1)])
}

fn content(image: &Arc<MemoryStorage>, parent: Option<&Arc<MemoryStorage>>) -> Vec<u8> {
    let is_child = open(image).is_differencing();
    let layers = [Some(image), parent.filter(|_| is_child)];
    read_all(&Chain::from_layers(layers.into_iter().flatten().map(|it| Layer::Vhd(Box::new(open(it)))).collect()))
}

/// An image in the hands of an operation, what its disk is to hold after each step, and what has been promised.
struct Trial {
    storage: Arc<PowerStorage>,
    parent: Option<Arc<MemoryStorage>>,
    /// The contents, oldest first, each with the count of operations that were done before its step began.
    contents: Vec<(usize, Vec<u8>)>,
    /// The content that each promise was about.
    promised: Vec<usize>,
}

impl Trial {
    fn new(image: &Arc<MemoryStorage>, parent: Option<&Arc<MemoryStorage>>) -> Self {
        Self::on(PowerStorage::new(image.to_vec()), image, parent)
    }

    /// On a file system that makes holes into files, and on one that makes none.
    fn both(image: &Arc<MemoryStorage>, parent: Option<&Arc<MemoryStorage>>) -> [Self; 2] {
        [Self::new(image, parent), Self::on(PowerStorage::without_holes(image.to_vec()), image, parent)]
    }

    fn on(storage: PowerStorage, image: &Arc<MemoryStorage>, parent: Option<&Arc<MemoryStorage>>) -> Self {
        let contents = vec![(0, content(image, parent))];
        Self { storage: Arc::new(storage), parent: parent.cloned(), contents, promised: Vec::new() }
    }

    fn image(&self) -> Image<ReadWrite> {
        Image::writable_from_container(Container::new("power.vhd", self.storage.clone())).unwrap()
    }

    /// Says what the next operations do to the disk.
    fn step(&mut self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut next = self.contents.last().unwrap().1.clone();
        change(&mut next);
        self.contents.push((self.storage.operations(), next));
    }

    /// Says that all of this has become durable.
    fn promise(&mut self) {
        self.storage.promise();
        self.promised.push(self.contents.len() - 1);
    }

    fn write(&mut self, image: &Image<ReadWrite>, range: SectorRange, tag: u16) {
        let data = pattern::fill(range, tag);
        self.step(|disk| disk[range.start.byte_offset() as usize..][..data.len()].copy_from_slice(&data));
        image.write(range, &data).unwrap();
    }

    fn zero(&mut self, image: &Image<ReadWrite>, range: SectorRange) {
        let length = range.count().bytes().0 as usize;
        self.step(|disk| disk[range.start.byte_offset() as usize..][..length].fill(0));
        image.write_zeroes(range).unwrap();
    }

    fn flush(&mut self, image: &Image<ReadWrite>) {
        image.flush().unwrap();
        self.promise();
    }

    /// Checks that a disk holds in each sector what some step since the last promise left there.
    fn check_content(&self, state: &State, found: &[u8]) {
        let first = state.promises_made().checked_sub(1).map_or(0, |last| self.promised[last]);
        let begun = self.contents.iter().rposition(|(before, _)| *before <= state.operations_done()).unwrap();
        let allowed = &self.contents[first..=begun.max(first)];
        assert!(allowed.iter().any(|(_, disk)| disk.len() == found.len()), "{}", state.describe());
        for (i, sector) in found.chunks(512).enumerate() {
            let is_right = allowed.iter().any(|(_, disk)| disk.get(i * 512..).is_some_and(|it| it.starts_with(sector)));
            assert!(is_right, "sector {i} begins with {:02x?}: {}", &sector[..16], state.describe());
        }
    }

    fn check(&self) {
        self.check_with(|_, _| (), |_, _, _| ());
    }

    /// Checks every state. `mend` is what the holder of a record does before the image is opened, `look` what else is to hold
    /// of it, with the content of its disk.
    fn check_with(&self, mend: impl Fn(&State, &Arc<MemoryStorage>), look: impl Fn(&State, &Image<ReadOnly>, &[u8])) {
        let mut states = 0;
        let parent = self.parent.as_ref().map_or(Vec::new(), |parent| content(parent, None));
        for state in self.storage.states(Options::default()) {
            let memory = Arc::new(MemoryStorage::new(state.read(PowerStorage::NAME).unwrap()));
            mend(&state, &memory);
            let image = Image::from_container(container(&memory));
            let image = image.unwrap_or_else(|error| panic!("{error}: {}", state.describe()));
            let found = content(&memory, self.parent.as_ref());
            self.check_content(&state, &found);
            look(&state, &image, &found);
            let read = || plain::read(&memory.to_vec(), &parent);
            assert!(read().as_deref() == Some(&*found), "blktap reads something else: {}", state.describe());

            let mut image = open_writable(&memory);
            image.trim_tail().unwrap();
            image.mend_batmap().unwrap();
            image.close().unwrap();
            assert!(content(&memory, self.parent.as_ref()) == found, "mended: {}", state.describe());
            assert!(read().as_deref() == Some(&*found), "mended, for blktap: {}", state.describe());
            check_sound(&memory, &state);
            if states % 5 == 0 {
                self.write_on(&memory, found, &state);
            }
            states += 1;
        }
        assert!(states > 2, "{states} states");
    }

    /// Writes over nearly all of a mended image: nothing that was left over gets in the way.
    fn write_on(&self, memory: &Arc<MemoryStorage>, mut disk: Vec<u8>, state: &State) {
        let range = sectors(3, disk.len() as u64 / 512 - 6);
        let image = open_writable(memory);
        image.write(range, &pattern::fill(range, 99)).unwrap();
        image.close().unwrap();
        disk[3 * 512..][..range.count().bytes().0 as usize].copy_from_slice(&pattern::fill(range, 99));
        assert!(content(memory, self.parent.as_ref()) == disk, "written on: {}", state.describe());
        check_sound(memory, state);
    }
}

/// Nothing is wrong with a mended image, but for what an operation that was not finished may leave to be done.
fn check_sound(memory: &Arc<MemoryStorage>, state: &State) {
    let report = check::container(container(memory)).unwrap();
    // Tables that are being laid out are so by the next change of the size.
    let is_to_be_done = |code| ["bat-beyond-disk", "tables-behind-blocks"].contains(&code);
    let is_left_over = |finding: &&Finding| finding.severity > Severity::Info && !is_to_be_done(finding.code);
    assert_eq!(report.findings().iter().find(is_left_over), None, "{}", state.describe());
}
