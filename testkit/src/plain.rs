//! The shortest reader of VHDs that there can be. It believes the batmap, as blktap does, and shares nothing with the
//! engine: what the two read must be the same.

/// Reads a whole disk from an image's bytes; what the image leaves to its parent comes from `parent`, and beyond that reads
/// as zeros. `None` for what has no footer, or points out of itself.
pub fn read(image: &[u8], parent: &[u8]) -> Option<Vec<u8>> {
    let end = image.get(image.len().checked_sub(512)?..);
    let footer = end.filter(|it| is_footer(it)).or_else(|| image.get(..512).filter(|it| is_footer(it)))?;
    let size = usize::try_from(u64_at(footer, 48)?).ok()?;
    let mut disk = match u32_at(footer, 60)? {
        2 => return image.get(..size).map(<[u8]>::to_vec),
        3 => Vec::new(),
        _ => parent.to_vec(),
    };
    disk.resize(size, 0);
    let header = image.get(usize::try_from(u64_at(footer, 16)?).ok()?..)?;
    let (table, entries) = (usize::try_from(u64_at(header, 16)?).ok()?, u32_at(header, 28)?);
    let block = u32_at(header, 32)? as usize;
    let batmap = image.get(table + (entries as usize * 4).next_multiple_of(512)..)?;
    let is_batmap = footer.get(28..36) == Some(b"tap\0\0\x01\0\x03") && batmap.starts_with(b"tdbatmap");
    let full = if is_batmap { image.get(usize::try_from(u64_at(batmap, 8)?).ok()?..)? } else { &[] };
    for (number, part) in disk.chunks_mut(block).enumerate() {
        let entry = u32_at(image, table + number * 4)?;
        if entry == u32::MAX {
            continue;
        }
        let bits = image.get(entry as usize * 512..)?;
        let data = bits.get((block / 512).div_ceil(8).next_multiple_of(512)..)?;
        for (sector, bytes) in part.chunks_mut(512).enumerate() {
            if bit(full, number) || bit(bits, sector) {
                bytes.copy_from_slice(data.get(sector * 512..)?.get(..512)?);
            }
        }
    }
    Some(disk)
}

fn is_footer(bytes: &[u8]) -> bool {
    let mut bytes = bytes.to_vec();
    let stored = u32_at(&bytes, 64);
    crate::seal(&mut bytes, 64);
    bytes.starts_with(b"conectix") && u32_at(&bytes, 64) == stored
}

fn bit(bits: &[u8], number: usize) -> bool {
    bits.get(number / 8).is_some_and(|byte| byte >> (7 - number % 8) & 1 == 1)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
