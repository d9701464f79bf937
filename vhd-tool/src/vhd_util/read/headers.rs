//! The headers of an image for people, as far as they can be read: nothing needs to be sound.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use vhd_core::{
    ByteCount, Container, FOOTER_SIZE, FileOffset, FileStorage, Footer, HEADER_SIZE, Lock, MAX_LOCATOR_LENGTH,
    PlatformCode, StorageError,
};

use super::summary::{self, Record};
use super::{Failure, Numbers, refused};

/// The most of a map that is read for its checksum: that of 2040 GiB in blocks of 4 KiB.
const MOST_OF_MAP: u64 = 128 << 20;
/// The first version of blktap's images that have a batmap.
const HAS_BATMAP: u32 = 0x0001_0002;
/// The type of a differencing disk.
const DIFFERENCING: u32 = 4;

/// Prints all that there is, and fails where something is not.
pub(in crate::vhd_util) fn print(path: &Path, numbers: Numbers, out: &mut dyn Write) -> Result<(), Failure> {
    let file = FileStorage::open(path, Lock::None).map_err(|source| StorageError {
        path: path.into(),
        action: "open".into(),
        offset: FileOffset(0),
        source,
    })?;
    let image = Container::new(path, Arc::new(file));
    let footer = find_footer(&image)?.ok_or_else(|| refused(path, "there is no footer"))?;
    summary::footer(&footer, numbers, out)?;
    let header_at = FileOffset(footer.u64(16));
    if matches!(footer.u32(60), 2) || header_at.0 == u64::MAX {
        return Ok(());
    }
    let header = read(&image, header_at, HEADER_SIZE)?.filter(|header| header.bytes().starts_with(b"cxsparse"));
    let header = header.ok_or_else(|| refused(path, &format!("there is no header at offset {header_at}")))?;
    summary::header(&header, numbers, out)?;
    if footer.u32(60) == DIFFERENCING {
        summary::locators(numbers, out)?;
    }
    for slot in 0..8 {
        let entry = 576 + slot * 24;
        if footer.u32(60) == DIFFERENCING && header.u32(entry) != 0 {
            let name = locator_name(&image, &header, entry)?;
            summary::locator(slot, &header, entry, name.as_deref(), numbers, out)?;
        }
    }
    if footer.bytes()[28..32] == *b"tap\0" && footer.u32(32) >= HAS_BATMAP {
        print_batmap(&image, &header, numbers, out)?;
    }
    Ok(())
}

/// Finds what is, or best looks like, a footer: at the end, of 512 bytes or of 511, or its copy.
fn find_footer(image: &Container) -> Result<Option<Record>, Failure> {
    let len = image.len()?.0;
    let (mut sound, mut likely) = (None, None);
    for (at, length) in [(len.saturating_sub(512), 512), (len.saturating_sub(511), 511), (0, 512)] {
        let Some(found) = read(image, FileOffset(at), ByteCount(length))? else { continue };
        let mut bytes = [0; FOOTER_SIZE.0 as usize];
        bytes[..length as usize].copy_from_slice(found.bytes());
        let found = Record::new(bytes.to_vec());
        if sound.is_none() && Footer::try_from(&bytes).is_ok() {
            sound = Some(found);
        } else if likely.is_none() && (bytes.starts_with(b"conectix") || bytes.starts_with(b"v_poison")) {
            likely = Some(found);
        }
    }
    Ok(sound.or(likely))
}

/// Reads a record; none where it does not lie in the file.
fn read(image: &Container, at: FileOffset, length: ByteCount) -> Result<Option<Record>, StorageError> {
    let end = at.0.checked_add(length.0);
    if end.is_none_or(|end| image.len().is_ok_and(|len| end > len.0)) {
        return Ok(None);
    }
    let mut bytes = vec![0; length.0 as usize];
    image.read_at(&mut bytes, at)?;
    Ok(Some(Record::new(bytes)))
}

fn locator_name(image: &Container, header: &Record, entry: usize) -> Result<Option<String>, StorageError> {
    let length = ByteCount(header.u32(entry + 8).into());
    if length > MAX_LOCATOR_LENGTH {
        return Ok(None);
    }
    let code = PlatformCode::from_bytes(header.u32(entry).to_be_bytes());
    let text = read(image, FileOffset(header.u64(entry + 16)), length)?;
    let paths = text.map(|text| code.paths(text.bytes())).unwrap_or_default();
    Ok(paths.first().map(|path| path.display().to_string()))
}

fn print_batmap(image: &Container, header: &Record, numbers: Numbers, out: &mut dyn Write) -> Result<(), Failure> {
    let table = (u64::from(header.u32(28)) * 4).next_multiple_of(512);
    let at = header.u64(16).saturating_add(table);
    let batmap = read(image, FileOffset(at), ByteCount(512))?;
    let batmap = batmap.filter(|batmap| batmap.bytes().starts_with(b"tdbatmap"));
    let batmap = batmap.ok_or_else(|| refused(image.path(), &format!("there is no batmap at offset {at}")))?;
    let length = ByteCount(u64::from(batmap.u32(16)) * 512);
    let map = if length.0 <= MOST_OF_MAP { read(image, FileOffset(batmap.u64(8)), length)? } else { None };
    summary::batmap(&batmap, map.as_ref().map(Record::bytes), numbers, out)?;
    map.map(drop).ok_or_else(|| refused(image.path(), "the batmap does not lie in the file").into())
}
