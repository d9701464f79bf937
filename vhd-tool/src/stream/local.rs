//! A disk of this host, read at any place: a raw file or device, a chain of images, or both.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vhd_core::{
    BlockIndex, BlockSize, ByteCount, Chain, ChainOptions, FileStorage, Image, Layer, Lock, NewImage, NewKind,
    ParentLink, ReadOnly, SECTOR_SIZE, Sector, SectorCount, SectorRange, Storage, Timestamp, Uuid, is_zeros,
};

use super::delta::Delta;
use super::failure::StreamFailure;
use super::pump::{BATCH, Outlet, Source};
use crate::disk;
use crate::error::{CommandError, Refusal};

/// What is asked at once for where content is: 64 MiB.
const WINDOW: SectorCount = SectorCount(1 << 17);
/// What is read at once where zeros are looked for: 64 KiB.
const LOOK: SectorCount = SectorCount(128);

/// Lists the sectors of a range that hold data, in order, without overlaps.
pub(crate) type FindData = Box<dyn Fn(SectorRange) -> Result<Vec<SectorRange>, CommandError> + Send>;

/// A disk that is sent.
pub(crate) struct LocalDisk {
    /// Where its content is read.
    data: Arc<Chain>,
    /// Its size, which may end within a sector.
    size: ByteCount,
    content: Content,
    unique_id: Uuid,
    timestamp: Timestamp,
    base_path: Option<PathBuf>,
}

/// Which sectors are sent.
enum Content {
    /// All that the tables and holes of a chain do not tell to be zero.
    Of(Arc<Chain>),
    /// Those in which a chain differs from a base.
    Delta(Arc<Chain>, Delta),
    /// Those that something else tells of.
    Found(FindData),
}

impl LocalDisk {
    /// Opens a raw file or device.
    ///
    /// # Errors
    /// Anything else; what cannot be opened.
    pub(crate) fn raw(path: &Path) -> Result<Self, CommandError> {
        let (data, size) = open_raw(path)?;
        let content = Content::Of(data.clone());
        let (unique_id, timestamp) = (Uuid::new_v4(), Timestamp::now());
        Ok(Self { data, size, content, unique_id, timestamp, base_path: None })
    }

    /// Opens an image and its parents.
    ///
    /// # Errors
    /// What cannot be opened.
    pub(crate) fn vhd(path: &Path, options: &ChainOptions) -> Result<Self, CommandError> {
        let chain = Arc::new(disk::open_vhd(path, options)?);
        Ok(Self::of_chain(chain.clone(), chain))
    }

    /// Takes the content from a raw device, and from a chain of images what of it is data.
    ///
    /// # Errors
    /// What cannot be opened; a device that is smaller than the disk.
    pub(crate) fn hybrid(device: &Path, image: &Path, options: &ChainOptions) -> Result<Self, CommandError> {
        let tables = Arc::new(disk::open_vhd(image, options)?);
        let (data, length) = open_raw(device)?;
        let size = tables.sectors().bytes();
        if length < size {
            return Err(StreamFailure::ShortDevice { path: device.into(), length, size }.into());
        }
        Ok(Self::of_chain(tables, data))
    }

    /// Takes the content from a raw device, and from `find` what of it is data.
    ///
    /// # Errors
    /// What cannot be opened; a device that is smaller than the disk.
    pub(crate) fn found(device: &Path, size: ByteCount, find: FindData) -> Result<Self, CommandError> {
        let (data, length) = open_raw(device)?;
        if length < size {
            return Err(StreamFailure::ShortDevice { path: device.into(), length, size }.into());
        }
        let (unique_id, timestamp) = (Uuid::new_v4(), Timestamp::now());
        Ok(Self { data, size, content: Content::Found(find), unique_id, timestamp, base_path: None })
    }

    fn of_chain(tables: Arc<Chain>, data: Arc<Chain>) -> Self {
        let top = tables.top().as_vhd().map(Image::<ReadOnly>::footer);
        // Sent as a VHD it is the same image to whoever makes, or has, children of it.
        let unique_id = top.map_or_else(Uuid::new_v4, vhd_core::Footer::unique_id);
        let timestamp = top.map_or_else(Timestamp::now, vhd_core::Footer::timestamp);
        let size = tables.sectors().bytes();
        Self { data, size, content: Content::Of(tables), unique_id, timestamp, base_path: None }
    }

    /// Sends only what differs from `base`, the disk at `path`.
    ///
    /// # Errors
    /// Content that no chain tells of.
    pub(crate) fn relative_to(self, base: Chain, path: &Path) -> Result<Self, CommandError> {
        let Content::Of(tables) = self.content else {
            return Err(StreamFailure::Mismatch { what: "such a disk", how: "relative to another" }.into());
        };
        let delta = Delta::new(&tables, base);
        Ok(Self { content: Content::Delta(tables, delta), base_path: Some(path.into()), ..self })
    }

    /// Its size.
    pub(crate) fn size(&self) -> ByteCount {
        self.size
    }

    /// Whether it is only what differs from a base.
    pub(crate) fn is_delta(&self) -> bool {
        matches!(self.content, Content::Delta(..))
    }

    /// The files that it, or the base, is read from.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let (tables, base) = match &self.content {
            Content::Of(tables) => (Some(&**tables), None),
            Content::Delta(tables, delta) => (Some(&**tables), Some(delta.base())),
            Content::Found(_) => (None, None),
        };
        let chains = std::iter::once(&*self.data).chain(tables).chain(base);
        chains.flat_map(Chain::layers).map(|layer| layer.path().to_path_buf()).collect()
    }

    /// Describes the image that it is sent as: whole, or a child of the base.
    ///
    /// # Errors
    /// A base whose name no locator can hold.
    pub(crate) fn image(&self) -> Result<NewImage, CommandError> {
        let size = ByteCount(self.size.0.next_multiple_of(SECTOR_SIZE));
        let block_size = BlockSize::DEFAULT;
        let kind = match (&self.content, &self.base_path) {
            (Content::Delta(_, delta), Some(path)) => {
                let modified = std::fs::metadata(path).and_then(|found| found.modified());
                let modified = modified.map_err(Refusal::io(path, "look at it"))?;
                let unique_id = match delta.base().top() {
                    Layer::Vhd(image) => image.footer().unique_id(),
                    Layer::Raw(_) => Uuid::nil(),
                };
                let name = Path::new(path.file_name().unwrap_or_default());
                let parent = ParentLink::to_named(name, unique_id, modified.into())?;
                NewKind::Differencing { block_size, parent }
            }
            _ => NewKind::Dynamic { block_size },
        };
        Ok(NewImage { unique_id: self.unique_id, timestamp: self.timestamp, ..NewImage::new(size, kind) })
    }

    /// Lists the sectors that are sent, in order and without overlaps.
    ///
    /// It is one walk over all of the disk, as files are asked for their holes no more than once: on some file systems
    /// an answer costs as much as the data that it covers is long.
    pub(crate) fn ranges(&self) -> Box<dyn Iterator<Item = Result<SectorRange, CommandError>> + '_> {
        match &self.content {
            Content::Of(tables) => Box::new(tables.data_ranges().map(|range| Ok(range?))),
            Content::Delta(tables, delta) => Box::new(self.found_ranges(|window| Ok(delta.ranges(tables, window)?))),
            Content::Found(find) => Box::new(self.found_ranges(find)),
        }
    }

    fn found_ranges<'a>(
        &'a self,
        find: impl Fn(SectorRange) -> Result<Vec<SectorRange>, CommandError> + 'a,
    ) -> impl Iterator<Item = Result<SectorRange, CommandError>> + 'a {
        let windows = SectorRange::new(Sector(0), self.sectors()).split_at_multiples(WINDOW);
        windows.flat_map(move |window| match find(window) {
            Ok(ranges) => ranges.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        })
    }

    /// Counts its sectors, the last of which may be cut short.
    pub(crate) fn sectors(&self) -> SectorCount {
        SectorCount(self.size.0.div_ceil(SECTOR_SIZE))
    }

    /// Whether only a look at it tells what is zero: without tables all that is stored counts as data.
    fn stores_zeros(&self) -> bool {
        match &self.content {
            Content::Of(tables) => tables.layers().iter().any(|layer| match layer {
                Layer::Raw(_) => true,
                Layer::Vhd(image) => image.header().is_none(),
            }),
            Content::Found(_) => true,
            // A block of zeros is content where the base has another.
            Content::Delta(..) => false,
        }
    }

    /// Tells whether sectors are zero. Of a block of data no more than its start is read for that, as a rule.
    fn is_zero(&self, range: SectorRange, buffer: &mut Vec<u8>) -> Result<bool, CommandError> {
        for piece in range.split_at_multiples(LOOK) {
            buffer.resize(piece.count().bytes().0 as usize, 0);
            self.read(piece, buffer)?;
            if !is_zeros(buffer) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Lists the blocks of an image that hold anything of what is sent.
    pub(crate) fn blocks(&self, block_size: BlockSize) -> Result<Vec<BlockIndex>, CommandError> {
        let (looks, mut buffer) = (self.stores_zeros(), Vec::new());
        let mut blocks: Vec<BlockIndex> = Vec::new();
        for range in self.ranges() {
            for piece in range?.split_at_multiples(block_size.sectors()) {
                let Some(block) = block_size.block_of(piece.start) else { continue };
                if blocks.last() != Some(&block) && !(looks && self.is_zero(piece, &mut buffer)?) {
                    blocks.push(block);
                }
            }
        }
        Ok(blocks)
    }

    /// Reads sectors.
    pub(crate) fn read(&self, range: SectorRange, bytes: &mut [u8]) -> Result<(), CommandError> {
        Ok(self.data.read(range, bytes)?)
    }
}

fn open_raw(path: &Path) -> Result<(Arc<Chain>, ByteCount), CommandError> {
    let found = std::fs::metadata(path).map_err(Refusal::io(path, "open it"))?.file_type();
    if !found.is_file() && !std::os::unix::fs::FileTypeExt::is_block_device(&found) {
        return Err(StreamFailure::NotAFile { found: path.display().to_string() }.into());
    }
    let size = FileStorage::open(path, Lock::None).and_then(|file| file.len());
    let size = size.map_err(Refusal::io(path, "open it"))?;
    Ok((Arc::new(Chain::from_layers(vec![Layer::Raw(disk::open_raw(path)?)])), size))
}

/// The bytes of the disk: what is data, what is zero; of a delta only what differs, also where it is zero.
impl Source for LocalDisk {
    fn total(&self) -> Option<ByteCount> {
        Some(self.size)
    }

    fn run(self: Box<Self>, outlet: &Outlet) -> Result<(), CommandError> {
        let size = self.size.0;
        let mut at = 0;
        for range in self.ranges() {
            for piece in range?.split_at_multiples(BATCH.whole_sectors()) {
                let (start, end) = (piece.start.byte_offset(), piece.end.byte_offset().min(size));
                let mut batch = outlet.batch(ByteCount(start));
                batch.bytes.resize(piece.count().bytes().0 as usize, 0);
                self.read(piece, &mut batch.bytes)?;
                if self.is_delta() {
                    batch.add_data(start..end);
                } else {
                    batch.add_zeros(at..start);
                    batch.add_content(start..end);
                }
                batch.done = ByteCount(end);
                at = end;
                outlet.send(batch)?;
            }
        }
        let mut last = outlet.batch(ByteCount(at));
        match &self.content {
            // Nothing else tells the receiver that the disk has become larger than the base.
            Content::Delta(_, delta) if at < size && delta.base().size() < self.size => {
                let sector = Sector((size - 1) / SECTOR_SIZE);
                last = outlet.batch(ByteCount(sector.byte_offset()));
                last.bytes.resize(SECTOR_SIZE as usize, 0);
                self.read(SectorRange::new(sector, SectorCount(1)), &mut last.bytes)?;
                last.add_data(sector.byte_offset()..size);
            }
            Content::Delta(..) => {}
            Content::Of(_) | Content::Found(_) => last.add_zeros(at..size),
        }
        last.done = self.size;
        outlet.send(last)
    }
}
