//! Making the disk larger under a journal, with which it can be taken back.

use std::path::Path;

use super::MetadataError;
use crate::image::Image;
use crate::repair::RepairError;
use crate::repair::journal::Journal;
use crate::units::ByteCount;
use crate::write::ReadWrite;

impl Image<ReadWrite> {
    /// As [`set_size`](Self::set_size), and all that it replaces is in a journal meanwhile, in blktap's format: what was
    /// there before comes back by [`revert_resize`](crate::repair::revert_resize), or by blktap. Until the disk has its new
    /// size, the footers say `v_poison`. The journal is a file that is not there yet, or a block device without one.
    ///
    /// # Errors
    /// As [`set_size`](Self::set_size); [`JournalError::Unfit`](crate::repair::JournalError::Unfit) for an image without
    /// tables or without a footer at its end; a journal that is there already. Unless the error is
    /// [`ResizeInterrupted`](RepairError::ResizeInterrupted), the image is then what it was, and no journal is left.
    ///
    /// # Crash safety
    /// The journal is durable, name and all, before anything changes, and the footers say so before anything else does. It
    /// goes once the new size is durable. Until then it brings back, byte for byte, the image that it was made for.
    pub fn set_size_journaled(
        &mut self,
        size: ByteCount,
        parent_size: ByteCount,
        journal: &Path,
    ) -> Result<(), RepairError> {
        self.check_size(size)?;
        self.check_can_grow().map_err(MetadataError::from)?;
        self.flush()?;
        let journal = Journal::record(journal, self, size)?;
        match self.change_under(&journal, size, parent_size) {
            Ok(()) => journal.remove(),
            Err(error) => {
                self.fail();
                match journal.take_back(self.container()) {
                    Ok(()) => journal.remove().and(Err(error)),
                    Err(_) => {
                        let journal = journal.path().into();
                        Err(RepairError::ResizeInterrupted { journal, source: Box::new(error) })
                    }
                }
            }
        }
    }

    fn change_under(&mut self, journal: &Journal, size: ByteCount, parent_size: ByteCount) -> Result<(), RepairError> {
        self.mark_poisoned(true)?;
        self.set_size(size, parent_size)?;
        self.settle().map_err(MetadataError::from)?;
        journal.mark_ended(self.container())?;
        Ok(self.mark_poisoned(false)?)
    }

    fn mark_poisoned(&mut self, poisoned: bool) -> Result<(), MetadataError> {
        let mut footer = self.footer.clone();
        footer.set_poisoned(poisoned);
        self.commit(|image| image.rewrite_footers(footer))
    }
}
