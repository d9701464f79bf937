//! Footers and headers.

use std::sync::Arc;
use std::time::SystemTime;

use vhd_core::{
    BlockSize, ByteCount, Container, Footer, HEADER_SIZE, Header, Image, MAX_LOCATOR_LENGTH, MemoryStorage, NewImage,
    NewKind, ParentLink, ReadOnly, Timestamp, Uuid, create,
};

/// Fills or cuts to a length.
fn sized<const N: usize>(bytes: &[u8]) -> [u8; N] {
    std::array::from_fn(|i| bytes.get(i).copied().unwrap_or(0))
}

/// Reads 512 bytes as a footer, as they are and with the checksum set right.
///
/// # Panics
/// Where what was read is not written as it was.
pub fn footer(data: &[u8]) {
    let bytes: [u8; 512] = sized(data);
    let mut right = bytes;
    crate::seal(&mut right, 64);
    for bytes in [bytes, right] {
        if let Ok(footer) = Footer::try_from(&bytes) {
            assert_eq!(footer.to_bytes(), bytes, "a footer is kept as it was");
            let size = footer.current_size().whole_sectors();
            assert!(size.0 <= u64::MAX / 512, "{size}");
            let _ = (SystemTime::from(footer.timestamp()), footer.geometry(), footer.header_offset());
            let _ = format!("{footer:?}");
        }
    }
}

/// Reads a header, as it is and with the checksum set right, and in an image with what follows it.
///
/// # Panics
/// Where what was read is not written as it was, or a parent has a path that is longer than a locator's text.
pub fn header(data: &[u8]) {
    let bytes: [u8; HEADER_SIZE.0 as usize] = sized(data);
    let mut right = bytes;
    crate::seal(&mut right, 36);
    for bytes in [bytes, right] {
        if let Ok(header) = Header::try_from(&bytes) {
            assert_eq!(header.to_bytes(), bytes, "a header is kept as it was");
            assert!(header.parent_name().chars().count() <= 256, "a name has a fixed field");
            assert!(header.locators().count() <= 8, "there are eight places");
        }
    }
    let memory = Arc::new(MemoryStorage::new(differencing(&right, data.get(1024..).unwrap_or_default())));
    let Ok(image) = Image::<ReadOnly>::from_container(Container::new("child.vhd", memory)) else { return };
    if let Ok(paths) = image.parent_paths() {
        // Each text may be read in two ways, and the name is one more.
        assert!(paths.len() <= 17, "{} paths", paths.len());
        let longest = MAX_LOCATOR_LENGTH.0 as usize * 3 + 16;
        assert!(paths.iter().all(|path| path.as_os_str().len() <= longest), "a path is longer than its text");
    }
}

/// An image of a differencing disk with this header, and these bytes after it.
fn differencing(header: &[u8; HEADER_SIZE.0 as usize], follows: &[u8]) -> Vec<u8> {
    let memory = Arc::new(MemoryStorage::default());
    let parent = ParentLink::to_named("parent.vhd".as_ref(), Uuid::from_u128(1), Timestamp(0)).expect("a plain name");
    let kind = NewKind::Differencing { block_size: BlockSize::DEFAULT, parent };
    create(&Container::new("child.vhd", memory.clone()), &NewImage::new(ByteCount(4096), kind)).expect("it fits");
    let footer = memory.to_vec()[..512].to_vec();
    [&footer, &header[..], follows, &footer].concat()
}
