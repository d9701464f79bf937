//! Operations on one volume, against a vector of bytes.

use std::sync::Arc;

use vhd_core::check::{self, Severity};
use vhd_core::{
    BlockIndex, BlockSize, ByteCount, Chain, Container, FooterOrigin, Image, Layer, NewImage, NewKind, ParentLink,
    ReadOnly, Sector, SectorCount, SectorRange, Timestamp, Volume, create,
};

use crate::sparse::SparseStorage;

use super::input::Input;

/// The most sectors that the disk has.
const MOST_SECTORS: u64 = 320;
/// The most operations of an input.
const MOST_OPERATIONS: usize = 60;
/// The most snapshots.
const MOST_LAYERS: usize = 6;

/// A volume, the images beneath it, and what each must read as.
#[derive(Debug)]
struct Disk {
    /// Oldest first; the last is the volume's own.
    layers: Vec<(Arc<SparseStorage>, Vec<u8>)>,
    block_size: Option<BlockSize>,
    open: Option<Volume>,
    /// What it read as when it was last durable.
    durable: Vec<u8>,
    tag: u8,
}

/// Does what the bytes say to a volume.
///
/// # Panics
/// Where it does not read as it must, or an operation fails.
pub fn operations(data: &[u8]) {
    let mut input = Input::new(data);
    let block_size =
        [None, BlockSize::new(4096), BlockSize::new(16 << 10), Some(BlockSize::DEFAULT)][usize::from(input.byte() % 4)];
    let mut disk = Disk::new(block_size, 1 + input.below(MOST_SECTORS));
    for _ in 0..MOST_OPERATIONS {
        if input.is_empty() {
            break;
        }
        disk.step(&mut input);
    }
    disk.reopen();
    disk.verify();
}

impl Disk {
    fn new(block_size: Option<BlockSize>, sectors: u64) -> Self {
        let kind = block_size.map_or(NewKind::Fixed, |block_size| NewKind::Dynamic { block_size });
        let memory = Arc::new(SparseStorage::default());
        create(&container(&memory), &NewImage::new(ByteCount(sectors * 512), kind)).expect("it fits");
        let content = vec![0; sectors as usize * 512];
        let mut disk =
            Self { durable: content.clone(), layers: vec![(memory, content)], block_size, open: None, tag: 0 };
        disk.open = Some(disk.opened());
        disk
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let operation = input.byte();
        match operation % 16 {
            0..=3 => self.write(range(input, self.sectors())),
            4 => self.zero(range(input, self.sectors())),
            5..=6 => self.read(range(input, self.sectors())),
            7 => self.flush(),
            8 => self.reopen(),
            9 => self.die(),
            10 => self.snapshot(),
            11 => self.resize(input.below(MOST_SECTORS)),
            12 => self.release(input.byte()),
            13 => self.reserve(input.byte()),
            14 => self.verify(),
            _ => self.volume().trim(range(input, 1)).map_or_else(|error| panic!("{error}"), |()| self.zeroed(0..512)),
        }
    }

    fn volume(&self) -> &Volume {
        self.open.as_ref().expect("it is open between operations")
    }

    fn content(&mut self) -> &mut Vec<u8> {
        &mut self.layers.last_mut().expect("there is a volume").1
    }

    fn sectors(&self) -> u64 {
        self.volume().sectors().0
    }

    fn opened(&self) -> Volume {
        let ((top, _), beneath) = self.layers.split_last().expect("there is a volume");
        let mut leaf = Image::writable_from_container(container(top)).expect("our own image opens");
        // As a volume does that is opened by its path.
        if leaf.footer_origin() == FooterOrigin::Start {
            leaf.trim_tail().expect("memory does not fail");
        }
        leaf.mend_batmap().expect("memory does not fail");
        let parents: Vec<_> = beneath.iter().rev().map(|(memory, _)| Layer::Vhd(Box::new(read_only(memory)))).collect();
        Volume::from_parts(leaf, (!parents.is_empty()).then(|| Chain::from_layers(parents)))
    }

    fn close(&mut self) {
        self.open.take().expect("it is open").close().expect("memory does not fail");
        self.durable = self.content().clone();
        let report = check::container(container(&self.layers.last().expect("there is a volume").0));
        let report = report.expect("memory does not fail");
        assert!(report.worst() < Some(Severity::Warning), "{:?}", report.findings());
    }

    fn reopen(&mut self) {
        self.close();
        self.open = Some(self.opened());
    }

    fn flush(&mut self) {
        self.volume().flush().expect("memory does not fail");
        self.durable = self.content().clone();
    }

    fn write(&mut self, range: SectorRange) {
        self.tag = self.tag.wrapping_add(1);
        let bytes: Vec<u8> = (range.start.0..range.end.0).flat_map(|sector| [self.tag ^ sector as u8; 512]).collect();
        self.volume().write(range, &bytes).expect("memory does not fail");
        let at = range.start.byte_offset() as usize;
        self.content()[at..at + bytes.len()].copy_from_slice(&bytes);
    }

    fn zero(&mut self, range: SectorRange) {
        self.volume().write_zeroes(range).expect("memory does not fail");
        self.zeroed(range.start.byte_offset() as usize..range.end.byte_offset() as usize);
    }

    fn zeroed(&mut self, bytes: std::ops::Range<usize>) {
        self.content()[bytes].fill(0);
    }

    fn read(&mut self, range: SectorRange) {
        let mut bytes = vec![0xee; range.count().bytes().0 as usize];
        self.volume().read(range, &mut bytes).expect("memory does not fail");
        let at = range.start.byte_offset() as usize;
        assert!(self.content()[at..at + bytes.len()] == bytes, "sectors {range}");
    }

    fn verify(&mut self) {
        let disk = SectorRange::new(Sector(0), SectorCount(self.sectors()));
        assert_eq!(disk.count().bytes().0, self.content().len() as u64, "the size");
        disk.split_at_multiples(SectorCount(37)).for_each(|piece| self.read(piece));
        self.volume().flush().expect("memory does not fail");
        self.durable = self.content().clone();
        let mut layers = vec![Layer::Vhd(Box::new(read_only(&self.layers.last().expect("there is a volume").0)))];
        layers.extend(self.layers.iter().rev().skip(1).map(|(memory, _)| Layer::Vhd(Box::new(read_only(memory)))));
        let chain = Chain::from_layers(layers);
        assert!(crate::model::read_all(&chain) == self.durable, "somebody else reads something else");
    }

    /// The process dies: all that it has written is there, but not what it held back.
    fn die(&mut self) {
        drop(self.open.take());
        let volume = self.opened();
        let mut found = vec![0xee; volume.size().0 as usize];
        volume.read(SectorRange::new(Sector(0), volume.sectors()), &mut found).expect("memory does not fail");
        self.open = Some(volume);
        assert_eq!(found.len(), self.content().len(), "the size");
        let durable = std::mem::take(&mut self.durable);
        for (i, sector) in found.chunks(512).enumerate() {
            let at = i * 512..i * 512 + 512;
            let is_known = sector == &self.content()[at.clone()] || Some(sector) == durable.get(at);
            assert!(is_known, "sector {i} is neither old nor new");
        }
        *self.content() = found.clone();
        self.durable = found;
    }

    fn snapshot(&mut self) {
        if self.layers.len() >= MOST_LAYERS {
            return;
        }
        self.close();
        let (top, content) = self.layers.last().expect("there is a volume");
        let parent = read_only(top);
        let link = ParentLink::to_named("parent.vhd".as_ref(), parent.footer().unique_id(), Timestamp(0));
        let new = NewImage::child_of(&parent, link.expect("a plain name"));
        let memory = Arc::new(SparseStorage::default());
        create(&container(&memory), &new).expect("it fits");
        self.layers.push((memory, content.clone()));
        self.block_size.get_or_insert(BlockSize::DEFAULT);
        self.open = Some(self.opened());
    }

    fn resize(&mut self, sectors: u64) {
        let size = ByteCount((1 + sectors) * 512);
        self.open.as_mut().expect("it is open").set_size(size).expect("memory does not fail");
        self.content().resize(size.0 as usize, 0);
        self.durable = self.content().clone();
    }

    /// Gives a block back; what lies beneath shows.
    fn release(&mut self, number: u8) {
        let Some(block_size) = self.block_size else { return };
        self.close();
        let (memory, _) = self.layers.last().expect("there is a volume");
        let mut image = Image::writable_from_container(container(memory)).expect("our own image opens");
        let block = u32::from(number) % image.blocks();
        let sectors = block_size.sectors_of(BlockIndex(block));
        let had = read_only(memory).allocated_blocks().flatten().any(|(found, _)| found.0 == block);
        image.release(&[BlockIndex(block)]).expect("memory does not fail");
        image.close().expect("memory does not fail");
        if had {
            let beneath = self.layers.iter().rev().nth(1).map(|(_, content)| content.clone()).unwrap_or_default();
            let content = self.content();
            let end = content.len();
            for at in (sectors.start.byte_offset() as usize..end.min(sectors.end.byte_offset() as usize)).step_by(512) {
                match beneath.get(at..at + 512) {
                    Some(bytes) => content[at..at + 512].copy_from_slice(bytes),
                    None => content[at..at + 512].fill(0),
                }
            }
        }
        self.durable = self.content().clone();
        self.open = Some(self.opened());
    }

    /// Gives blocks their places, in which nothing shows yet.
    fn reserve(&mut self, number: u8) {
        let blocks = self.volume().leaf().blocks();
        let wanted: Vec<_> = (0..blocks).filter(|block| block % 3 == u32::from(number % 3)).map(BlockIndex).collect();
        self.volume().leaf().reserve(&wanted).expect("memory does not fail");
    }
}

fn range(input: &mut Input<'_>, sectors: u64) -> SectorRange {
    let start = input.below(sectors);
    let count = 1 + u64::from(input.byte()) % 64;
    SectorRange::between(Sector(start), Sector((start + count).min(sectors)))
}

fn container(memory: &Arc<SparseStorage>) -> Container {
    Container::new("volume.vhd", memory.clone())
}

fn read_only(memory: &Arc<SparseStorage>) -> Image<ReadOnly> {
    Image::from_container(container(memory)).expect("our own image opens")
}
