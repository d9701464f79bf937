//! Where an image ends in its file or device.

use super::MetadataError;
use crate::footer::FOOTER_SIZE;
use crate::image::Image;
use crate::units::{ByteCount, FileOffset, SECTOR_SIZE};
use crate::write::ReadWrite;

impl Image<ReadWrite> {
    /// Ends the image at `size`: the footer goes into the last 512 bytes before. A file then ends there, too; a device is
    /// expected to get that size next, or to have got it, and where it is larger the footer at its end stays.
    ///
    /// # Errors
    /// A size that is not in whole sectors, or leaves no room for the footer after all that the image holds; a device that
    /// ends before; a failed write or sync.
    ///
    /// # Crash safety
    /// The new footer is durable before an older one, further on, is cut off, or one before it is zeroed. While a file
    /// grows by the write of the new footer, what shows is the one or the other; to repeat it does what is left to do.
    pub fn set_physical_size(mut self, size: ByteCount) -> Result<(), MetadataError> {
        self.check_can_grow()?;
        self.settle()?;
        let used = match self.tables {
            Some(_) => self.used_end()?,
            None => FileOffset(self.footer.current_size().0),
        };
        let at = size.0.checked_sub(FOOTER_SIZE.0).map(FileOffset);
        let at = at.filter(|&at| at >= used && size.0.is_multiple_of(SECTOR_SIZE));
        let at = at.ok_or_else(|| MetadataError::InUse { path: self.path().into(), size, used })?;
        self.commit(|image| {
            let container = &image.container;
            let old = image.end_footer().filter(|&old| old < at);
            container.write_at(&image.current_footer().to_bytes(), at)?;
            container.sync()?;
            if container.has_fixed_size() {
                return Ok(());
            }
            if let Some(old) = old {
                let length = (at - old).min(FOOTER_SIZE);
                container.write_at(&vec![0; length.0 as usize], old)?;
            }
            container.set_len(size)?;
            Ok(container.sync()?)
        })
    }
}
