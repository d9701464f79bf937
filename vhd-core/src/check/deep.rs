//! Data that no bitmap shows.

use super::{Report, kind};
use crate::block_size::BlockPlace;
use crate::buffer::Buffer;
use crate::image::{Image, ReadOnly};
use crate::storage::StorageError;
use crate::units::{ByteCount, FileOffset, SECTOR_SIZE};

const SECTOR: usize = SECTOR_SIZE as usize;
/// What is read at once.
const CHUNK: usize = 256 << 10;

/// Looks at the data of all blocks; holes are passed over.
pub(super) fn check(image: &Image<ReadOnly>, report: &mut Report) -> Result<(), StorageError> {
    let Some(tables) = &image.tables else { return Ok(()) };
    let (container, size) = (image.container(), tables.header.block_size());
    let mut buffer = Buffer::new(ByteCount(CHUNK as u64));
    for found in tables.bat.allocated(container, tables.bat.entries()) {
        let (block, entry) = found?;
        let place = BlockPlace::from_entry(entry, size);
        if tables.fault_of(place).is_some() {
            continue;
        }
        let bitmap = tables.read_bitmap(container, place)?;
        let end = (place.data + size.bytes()).min(FileOffset(tables.file_len().0));
        let mut at = place.data;
        let (mut unmarked, mut first) = (0_u64, None);
        while let Some(data) = container.next_data(at)?.filter(|data| data.start < end) {
            // Whole sectors of the block, whatever the file system's holes begin with.
            let skipped = (data.start.max(at) - place.data).0 / SECTOR_SIZE * SECTOR_SIZE;
            let from = place.data + ByteCount(skipped);
            let length = (end - from).0.min(CHUNK as u64) as usize / SECTOR * SECTOR;
            if length == 0 {
                break;
            }
            container.read_at(&mut buffer[..length], from)?;
            for (i, sector) in buffer[..length].chunks_exact(SECTOR).enumerate() {
                let number = (from - place.data).0 / SECTOR_SIZE + i as u64;
                if sector.iter().any(|&byte| byte != 0) && bitmap.count(number as u32..number as u32 + 1) == 0 {
                    unmarked += 1;
                    first.get_or_insert(from + ByteCount((i * SECTOR) as u64));
                }
            }
            at = from + ByteCount(length as u64);
        }
        if unmarked > 0 {
            let text = format!("block {block}: {unmarked} sectors hold data that its bitmap does not show");
            report.add(&kind::DATA_UNMARKED, first, text);
        }
    }
    Ok(())
}
