//! A header whose checksum is wrong.

use super::footers::Footers;
use super::{HeaderDoubt, Plan, RepairError};
use crate::block_size::BlockSize;
use crate::footer::Footer;
use crate::format;
use crate::header::{HEADER_SIZE, Header, HeaderError};
use crate::image::Image;
use crate::units::{ByteCount, FileOffset, SECTOR_SIZE};

/// The fields that are the same in every header, and where they are.
const CONSTANTS: [(usize, &[u8]); 3] =
    [(0, &format::HEADER_COOKIE), (8, &format::NO_OFFSET.to_be_bytes()), (24, &format::FORMAT_VERSION.to_be_bytes())];

impl Plan<'_> {
    /// Mends a header that is refused; tells what was wrong with it where it is right only if its parent is.
    ///
    /// Either its checksum is right once the fields that are the same everywhere are; or all the rest of the image is as
    /// it says, and then the checksum is made anew. So is that of a header half of which is from before a change of the
    /// parent: which parent is meant, its unique id must prove.
    pub(super) fn mend_header(&mut self) -> Result<Option<HeaderError>, RepairError> {
        let footers = Footers::read(&self.container)?;
        let Some(at) = footers.best().and_then(Footer::header_offset) else { return Ok(None) };
        let fits =
            at.0.checked_add(HEADER_SIZE.0).is_some_and(|end| self.container.len().is_ok_and(|len| end <= len.0));
        if !fits {
            return Ok(None);
        }
        let mut bytes = [0; HEADER_SIZE.0 as usize];
        self.container.read_at(&mut bytes, at)?;
        let Err(source) = Header::try_from(&bytes) else { return Ok(None) };
        for (field, value) in CONSTANTS {
            bytes[field..field + value.len()].copy_from_slice(value);
        }
        match Header::try_from(&bytes) {
            Ok(_) => {
                self.container.write_at(&bytes, at)?;
                self.note("header-damaged", "the header's fields that are the same in every image are put right");
                return Ok(None);
            }
            Err(HeaderError::Checksum { expected, .. }) => bytes[36..40].copy_from_slice(&expected.to_be_bytes()),
            Err(_) => {}
        }
        let path = self.container.path().to_path_buf();
        let refused = |doubt, source| RepairError::Header { path, offset: at, doubt, source };
        let Ok(header) = Header::try_from(&bytes) else { return Err(refused(HeaderDoubt::Fields, source)) };
        self.container.write_at(&bytes, at)?;
        if let Some(doubt) = self.doubt_of(at, &header)? {
            return Err(refused(doubt, source));
        }
        self.note("header-damaged", "the header's checksum is made anew: all the rest of the image is as it says");
        Ok(self.open()?.is_differencing().then_some(source))
    }

    /// What speaks against a header that was given the checksum of its fields.
    fn doubt_of(&self, at: FileOffset, header: &Header) -> Result<Option<HeaderDoubt>, RepairError> {
        let image = match Image::from_container(self.container.clone()) {
            Err(crate::image::OpenError::Storage(error)) => return Err(error.into()),
            Err(_) => return Ok(Some(HeaderDoubt::Fields)),
            Ok(image) => image,
        };
        let Some(tables) = &image.tables else { return Ok(Some(HeaderDoubt::Fields)) };
        // A batmap begins where the BAT ends; without one only the usual place proves anything.
        let shown = if image.footer().promises_batmap() {
            image.batmap().is_some()
        } else {
            header.table_offset() == at + HEADER_SIZE
        };
        let usual = header.block_size() == BlockSize::DEFAULT || header.max_table_entries() == image.blocks();
        if !shown || !usual || !header.table_offset().0.is_multiple_of(SECTOR_SIZE) {
            return Ok(Some(HeaderDoubt::Table));
        }
        let room = ByteCount(tables.file_len().0);
        for found in tables.bat.allocated(&self.container, tables.bat.entries()) {
            let (block, entry) = found?;
            let place = crate::block_size::BlockPlace::from_entry(entry, header.block_size());
            let end = place.data + header.block_size().bytes();
            if block.0 >= image.blocks() || tables.fault_of(place).is_some() || end.0 > room.0 {
                return Ok(Some(HeaderDoubt::Blocks));
            }
        }
        Ok(image.check_blocks().is_err().then_some(HeaderDoubt::Blocks))
    }
}
