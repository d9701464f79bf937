//! Images as streams: laid out, written, read back by every reader there is, cut short and damaged.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{self, Read};
use std::sync::Arc;

use testkit::pattern;
use vhd_core::stream::{LayoutError, Silence, StreamError, StreamFault, StreamLayout, StreamReader, StreamedBlock};
use vhd_core::{
    BlockIndex, BlockSize, ByteCount, Chain, Container, DiskType, Image, Layer, MemoryStorage, NewImage, NewKind,
    ParentLink, ReadOnly, Sector, SectorCount, SectorRange, Storage, Timestamp, Uuid, create,
};

const SECTORS: u64 = 4096;

fn range(start: u64, end: u64) -> SectorRange {
    SectorRange::between(Sector(start), Sector(end))
}

/// What the images of these tests hold: a run in each of three blocks, the last of which ends with the disk.
const PRESENT: [(u64, u64); 4] = [(3, 9), (100, 101), (3 * SECTORS, 4 * SECTORS), (5 * SECTORS + 1, 5 * SECTORS + 20)];
const DISK: u64 = 5 * SECTORS + 20;
/// Where the data of the first block lies in the file.
const DATA: usize = 4096;
const BLOCKS: [BlockIndex; 3] = [BlockIndex(0), BlockIndex(3), BlockIndex(5)];

fn new_image(kind: NewKind) -> NewImage {
    NewImage::new(SectorCount(DISK).bytes(), kind)
}

fn dynamic() -> NewKind {
    NewKind::Dynamic { block_size: BlockSize::DEFAULT }
}

fn differencing() -> NewKind {
    let parent = ParentLink::to_named("base.vhd".as_ref(), Uuid::from_u128(9), Timestamp(5)).unwrap();
    NewKind::Differencing { block_size: BlockSize::DEFAULT, parent }
}

/// Writes the image front to back.
fn streamed(kind: NewKind) -> Vec<u8> {
    let layout = StreamLayout::new(&new_image(kind), BLOCKS.to_vec()).unwrap();
    let present: Vec<_> = PRESENT.iter().map(|&(start, end)| range(start, end)).collect();
    let mut bytes = Vec::new();
    layout.write_head(&mut bytes).unwrap();
    for (number, &block) in layout.blocks().iter().enumerate() {
        bytes.extend(layout.lead(number, &present));
        assert!(bytes.len().is_multiple_of(4096), "data is aligned");
        let sectors = BlockSize::DEFAULT.sectors_of(block);
        let mut data = vec![0; BlockSize::DEFAULT.bytes().0 as usize];
        for part in present.iter().filter(|part| part.start >= sectors.start && part.end <= sectors.end) {
            let from = (part.start - sectors.start).bytes().0 as usize;
            let content = pattern::fill(*part, 7);
            data[from..from + content.len()].copy_from_slice(&content);
        }
        bytes.extend(data);
    }
    bytes.extend(layout.end());
    assert_eq!(bytes.len() as u64, layout.length().0);
    bytes
}

fn expected() -> Vec<u8> {
    let mut disk = vec![0; (DISK * 512) as usize];
    for (start, end) in PRESENT {
        disk[start as usize * 512..end as usize * 512].copy_from_slice(&pattern::fill(range(start, end), 7));
    }
    disk
}

fn opened(bytes: &[u8]) -> Image<ReadOnly> {
    let storage = MemoryStorage::default();
    storage.write_at(bytes, vhd_core::FileOffset(0)).unwrap();
    Image::from_container(Container::new("streamed.vhd", Arc::new(storage))).unwrap()
}

/// Gives a byte at a time, and counts them.
struct Dribble<'a> {
    bytes: &'a [u8],
    given: usize,
}

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(1).min(self.bytes.len() - self.given);
        buffer[..most].copy_from_slice(&self.bytes[self.given..self.given + most]);
        self.given += most;
        Ok(most)
    }
}

/// Gives parts of a stream, and is silent after each; after the last it stays open.
struct Hesitant<'a>(Vec<&'a [u8]>);

impl Read for Hesitant<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let part = self.0.first_mut().expect("after the footer nothing is read any more");
        if part.is_empty() {
            self.0.remove(0);
            return Err(io::Error::other(Silence));
        }
        part.read(buffer)
    }
}

/// Reads a stream to its end; gives the disk and the sectors that were there.
fn received(input: impl Read, length: Option<ByteCount>) -> Result<(Vec<u8>, Vec<SectorRange>), StreamError> {
    let mut reader = StreamReader::open(input, length)?;
    let mut disk = vec![0; (DISK * 512) as usize];
    let mut present: Vec<SectorRange> = Vec::new();
    let mut block = StreamedBlock::default();
    while reader.next_block(&mut block)? {
        for (run, _) in block.runs.iter().filter(|(_, set)| *set) {
            let at = run.start.byte_offset() as usize;
            let content = block.content(*run);
            if disk.len() < at + content.len() {
                disk.resize(at + content.len(), 0);
            }
            disk[at..at + content.len()].copy_from_slice(content);
            match present.last_mut() {
                Some(last) if last.end == run.start => last.end = run.end,
                _ => present.push(*run),
            }
        }
    }
    let end = reader.finish()?;
    disk.truncate(end.footer.current_size().0 as usize);
    Ok((disk, present))
}

#[test]
fn a_streamed_image_is_what_the_reader_of_files_expects() {
    let image = opened(&streamed(dynamic()));
    image.check_blocks().unwrap();
    assert_eq!(image.footer().disk_type(), DiskType::Dynamic);
    assert!(!image.footer().promises_batmap(), "readers would look for one");
    assert_eq!(image.present_sectors(BlockIndex(0)).unwrap(), SectorCount(7));
    let chain = Chain::from_layers(vec![Layer::Vhd(Box::new(image))]);
    let mut disk = vec![1; (DISK * 512) as usize];
    chain.read(range(0, DISK), &mut disk).unwrap();
    assert!(disk == expected());
}

#[test]
fn a_streamed_child_names_its_parent_in_every_way() {
    let image = opened(&streamed(differencing()));
    assert_eq!(image.footer().disk_type(), DiskType::Differencing);
    let header = image.header().unwrap();
    assert_eq!((header.parent_unique_id(), header.parent_name()), (Uuid::from_u128(9), "base.vhd".into()));
    assert_eq!(header.locators().count(), 3);
    for (_, locator) in header.locators() {
        let mut text = vec![0; locator.length.0 as usize];
        image.container().read_at(&mut text, locator.offset).unwrap();
        let text: String = text.iter().filter(|&&byte| byte != 0).map(|&byte| char::from(byte)).collect();
        assert!(text.ends_with("base.vhd"), "{text}");
        assert!(locator.space >= locator.length && locator.space.0.is_multiple_of(512));
    }
    assert!(image.parent_paths().unwrap().iter().all(|path| path.ends_with("base.vhd")));
}

/// Xen Orchestra reads the room of a locator as sectors, whatever the number.
#[test]
fn the_room_of_locators_is_counted_in_sectors_and_bytes_are_read_as_well() {
    let new = streamed(differencing());
    let room = |slot: usize| 512 + 576 + slot * 24 + 4;
    for slot in 0..3 {
        assert_eq!(new[room(slot)..room(slot) + 4], [0, 0, 0, 1], "locator {slot}");
    }
    let mut old = new.clone();
    (0..3).for_each(|slot| old[room(slot)..room(slot) + 4].copy_from_slice(&512_u32.to_be_bytes()));
    testkit::seal(&mut old[512..1536], 36);
    for (bytes, in_bytes) in [(&new, false), (&old, true)] {
        assert_eq!(StreamReader::open(&bytes[..], None).unwrap().counts_locators_in_bytes(), in_bytes);
        let image = opened(bytes);
        assert!(image.header().unwrap().locators().all(|(_, locator)| locator.space == ByteCount(512)));
        assert_eq!(image.parent_paths().unwrap().len(), 1);
        let (disk, present) = received(&bytes[..], None).unwrap();
        assert!(disk == expected() && present.len() == PRESENT.len());
        let report = vhd_core::check::container(image.container().clone()).unwrap();
        let codes: Vec<_> = report.findings().iter().map(|finding| finding.code).collect();
        assert_eq!(codes.contains(&"locator-bytes"), in_bytes, "{codes:?}");
        assert!(report.worst() <= Some(vhd_core::check::Severity::Info), "{codes:?}");
    }
}

#[test]
fn an_empty_image_is_its_tables_and_footers() {
    for kind in [dynamic(), differencing()] {
        let layout = StreamLayout::new(&new_image(kind), Vec::new()).unwrap();
        let mut bytes = Vec::new();
        layout.write_head(&mut bytes).unwrap();
        bytes.extend(layout.end());
        assert_eq!(bytes.len() as u64, layout.length().0);
        assert_eq!(opened(&bytes).sectors(), SectorCount(DISK));
        let (disk, present) = received(&bytes[..], None).unwrap();
        assert!(present.is_empty() && disk.iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_layout_that_cannot_be_is_refused() {
    let new = |size: u64| NewImage::new(ByteCount(size), dynamic());
    for size in [0, 511, 513, u64::MAX, (2040 << 30) + 512] {
        assert!(matches!(StreamLayout::new(&new(size), Vec::new()), Err(LayoutError::Size { .. })), "{size}");
    }
    for blocks in [vec![BlockIndex(1), BlockIndex(1)], vec![BlockIndex(1), BlockIndex(0)], vec![BlockIndex(6)]] {
        assert!(matches!(StreamLayout::new(&new_image(dynamic()), blocks), Err(LayoutError::Order { .. })));
    }
    let fixed = StreamLayout::new(&new_image(NewKind::Fixed), Vec::new());
    assert!(matches!(fixed, Err(LayoutError::Fixed)));
    let full = StreamLayout::new(&new(2040 << 30), (0..1020 << 10).map(BlockIndex).collect()).unwrap();
    // The largest disk can be sent full, with more than half of its blocks past 2^31 sectors.
    let mut head = Vec::new();
    full.write_head(&mut head).unwrap();
    let reader = StreamReader::open(&head[..], None).unwrap();
    assert_eq!(reader.expected_length(), Some(full.length()));
    assert!(full.length().0 > 2040 << 30);
}

#[test]
fn what_was_written_is_received_to_the_sector_and_not_a_byte_more_is_read() {
    for kind in [dynamic(), differencing()] {
        let mut bytes = streamed(kind);
        let length = bytes.len();
        bytes.extend([0xee; 5000]);
        for known in [None, Some(ByteCount(length as u64))] {
            let mut input = Dribble { bytes: &bytes, given: 0 };
            let (disk, present) = received(&mut input, known).unwrap();
            assert!(disk == expected());
            assert_eq!(present, PRESENT.map(|(start, end)| range(start, end)));
            assert_eq!(input.given, length);
        }
    }
}

#[test]
fn every_cut_is_noticed() {
    let bytes = streamed(differencing());
    let first_block = DATA - 512;
    let cuts = [0, 1, 511, 512, 1000, 1535, 1536, 1540, 2047, 2048, 4000, first_block, first_block + 100, DATA, 9000];
    let last = bytes.len();
    for cut in cuts.into_iter().chain([DATA + (2 << 20), last / 2, last - 513, last - 512, last - 511, last - 1]) {
        for known in [None, Some(ByteCount(last as u64)), Some(ByteCount(cut as u64))] {
            assert!(received(&bytes[..cut], known).is_err(), "{cut} {known:?}");
        }
    }
    assert!(received(&bytes[..], Some(ByteCount(last as u64 + 1))).is_err());
}

/// The blocks of an image in another order of the file, with gaps, and one gap before the footer.
fn shuffled() -> Vec<u8> {
    let bytes = streamed(dynamic());
    let stride = (2 << 20) + 4096;
    let block = |number: usize| {
        let start = DATA - 512 + number * stride;
        &bytes[start..start + 512 + (2 << 20)]
    };
    let mut moved = bytes[..DATA - 512].to_vec();
    for number in [2, 0, 1] {
        moved.resize(moved.len() + 512 * (number * 7 + 1), 0xdd);
        let sector = (moved.len() / 512) as u32;
        let at = 1536 + BLOCKS[number].0 as usize * 4;
        moved[at..at + 4].copy_from_slice(&sector.to_be_bytes());
        moved.extend(block(number));
    }
    moved.resize(moved.len() + 4096, 0xdd);
    moved.extend(&bytes[bytes.len() - 512..]);
    moved
}

#[test]
fn blocks_may_lie_in_any_order_and_with_gaps() {
    let bytes = shuffled();
    for known in [None, Some(ByteCount(bytes.len() as u64))] {
        let (disk, _) = received(&bytes[..], known).unwrap();
        assert!(disk == expected());
    }
}

#[test]
fn the_footer_at_the_end_serves_where_the_first_is_damaged() {
    let mut bytes = streamed(dynamic());
    bytes[70] ^= 1;
    let (disk, _) = received(&bytes[..], None).unwrap();
    assert!(disk == expected());
    bytes[..512].fill(0);
    let (disk, _) = received(&bytes[..], None).unwrap();
    assert!(disk == expected());
    let end = bytes.len() - 500;
    bytes[end] ^= 1;
    assert!(matches!(received(&bytes[..], None), Err(StreamError::End { .. })));
}

#[test]
fn another_footer_at_the_end_is_an_error() {
    let mut bytes = streamed(dynamic());
    let other = streamed(dynamic());
    let end = bytes.len() - 512;
    bytes[end..].copy_from_slice(&other[end..]);
    let known = Some(ByteCount(bytes.len() as u64));
    assert!(matches!(received(&bytes[..], known), Err(StreamError::Damaged(StreamFault::Footers))));
    assert!(received(&bytes[..], None).is_err());
}

fn with_entry(block: usize, entry: u32) -> Vec<u8> {
    let mut bytes = streamed(dynamic());
    bytes[1536 + block * 4..1540 + block * 4].copy_from_slice(&entry.to_be_bytes());
    bytes
}

#[test]
fn entries_that_cannot_be_are_errors_before_anything_is_received() {
    let first = (DATA as u32 - 512) / 512;
    for (block, entry) in [(0, 0), (1, first), (1, first + 1), (0, 3), (1, 0x7fff_ffff - 4000), (1, first - 1)] {
        let bytes = with_entry(block, entry);
        let result = StreamReader::open(&bytes[..], None);
        match result {
            // Over the tables, which have gone by.
            Err(StreamError::Damaged(StreamFault::Behind { .. })) => assert!(entry < 4, "{block} {entry}"),
            Err(StreamError::Damaged(StreamFault::Overlap { .. })) => {
                assert!((4..1 << 30).contains(&entry), "{block} {entry}");
            }
            result => assert!(result.is_ok() && entry >= 1 << 30, "{block} {entry}"),
        }
    }
    for entry in [0x8000_0000, 0xffff_fffe, 0x0010_0000] {
        let bytes = with_entry(1, entry);
        let length = Some(ByteCount(bytes.len() as u64));
        let result = StreamReader::open(&bytes[..], length);
        assert!(matches!(result, Err(StreamError::Damaged(StreamFault::Beyond { .. }))), "{entry}");
        assert!(matches!(received(&bytes[..], None), Err(StreamError::Short { .. })), "{entry}");
    }
}

#[test]
fn absurd_headers_take_no_memory() {
    let with_header = |at: usize, value: &[u8]| {
        let mut bytes = streamed(dynamic());
        bytes[at..at + value.len()].copy_from_slice(value);
        testkit::seal(&mut bytes[512..1536], 36);
        bytes
    };
    for (at, value) in [
        (512 + 28, &u32::MAX.to_be_bytes()[..]),
        (512 + 28, &[0; 4]),
        (512 + 16, &u64::MAX.to_be_bytes()),
        (512 + 16, &(1_u64 << 62).to_be_bytes()),
        (512 + 16, &[0; 8]),
        (512 + 16, &1535_u64.to_be_bytes()),
        (512 + 32, &(256_u32 << 20).to_be_bytes()),
        (512 + 32, &4096_u32.to_be_bytes()),
        (512 + 32, &3_u32.to_be_bytes()),
    ] {
        assert!(received(&with_header(at, value)[..], None).is_err(), "{at} {value:?}");
    }
    let mut bytes = streamed(dynamic());
    bytes[48..56].fill(0xff);
    testkit::seal(&mut bytes[..512], 64);
    assert!(matches!(received(&bytes[..], None), Err(StreamError::Damaged(StreamFault::ShortBat { .. }))));
}

/// A fixed image that holds `disk`.
fn fixed(disk: &[u8]) -> Vec<u8> {
    let storage = MemoryStorage::default();
    storage.write_at(disk, vhd_core::FileOffset(0)).unwrap();
    let storage: Arc<dyn Storage> = Arc::new(storage);
    let new = NewImage { size: ByteCount(disk.len() as u64), ..new_image(NewKind::Fixed) };
    create(&Container::new("fixed.vhd", storage.clone()), &new).unwrap();
    let mut bytes = vec![0; storage.len().unwrap().0 as usize];
    storage.read_at(&mut bytes, vhd_core::FileOffset(0)).unwrap();
    bytes
}

#[test]
fn a_fixed_image_is_received() {
    let bytes = fixed(&expected());
    for known in [None, Some(ByteCount(bytes.len() as u64))] {
        let (disk, _) = received(Dribble { bytes: &bytes, given: 0 }, known).unwrap();
        assert!(disk == expected(), "{known:?}");
    }
    for cut in [0, 1, 600, 1537, 1 << 20, (1 << 20) + 512, bytes.len() - 512, bytes.len() - 1] {
        for known in [None, Some(ByteCount(bytes.len() as u64)), Some(ByteCount(cut as u64))] {
            assert!(received(&bytes[..cut], known).is_err(), "{cut} {known:?}");
        }
    }
}

#[test]
fn the_smallest_fixed_image_is_received() {
    let bytes = fixed(&[0; 512]);
    assert_eq!(received(&bytes[..], None).unwrap().0, [0; 512]);
    // Not a byte more is read than there are, for the stream may stay open.
    assert_eq!(received(Hesitant(vec![&bytes]), Some(ByteCount(1024))).unwrap().0, [0; 512]);
}

#[test]
fn a_fixed_image_ends_where_the_stream_is_silent_after_its_footer() {
    for sectors in [1, 2, 3, 5000] {
        let size = sectors * 512;
        let mut disk: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        let footer = |size: u64| fixed(&vec![0; size as usize]).split_off(size as usize);
        // A guest has written what could be the footer, and the stream hesitates before it, within it and after it.
        if sectors > 2 {
            disk.splice(512..1024, footer(512));
        }
        let whole = [&disk[..], &footer(size)].concat();
        let middle = whole.len() - 100;
        for cuts in [vec![], vec![100], vec![512], vec![512, 700], vec![middle], vec![512, middle]] {
            let mut parts = Vec::new();
            let mut rest = &whole[..];
            let mut at = 0;
            for cut in cuts.into_iter().filter(|&cut| cut < whole.len()) {
                let (part, left) = rest.split_at(cut - at);
                parts.push(part);
                (rest, at) = (left, cut);
            }
            parts.push(rest);
            let (found, _) = received(Hesitant(parts), None).unwrap();
            assert!(found == disk, "{sectors} sectors");
        }
        // With a length, only that counts; where something follows at once, it was no footer.
        let (found, _) = received(&whole[..], Some(ByteCount(whole.len() as u64))).unwrap();
        assert!(found == disk);
        received(&[&whole[..], &[0; 512]].concat()[..], None).unwrap_err();
    }
}
