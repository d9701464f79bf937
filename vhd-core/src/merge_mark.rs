//! How far a merge into an image has come, in the image itself.
//!
//! Whoever goes on with a merge that was interrupted must not rely on what is remembered beside the file: it may have been
//! restored or replaced since. So the footers say it, in bytes that no format gives a meaning to:
//!
//! ```text
//!   480          488                     504              512
//!   | "vhdmerge" | who merges: a UUID    | sector, 64 bit |     the last bytes of a footer, big-endian
//! ```
//!
//! A mark is written once everything before its sector is durable, and a file that was restored has an older one or none.
//! Programs that do not know it keep it, as they keep all bytes of a footer.

use uuid::Uuid;

use crate::footer::FOOTER_SIZE;
use crate::image::Image;
use crate::units::{FileOffset, Sector};
use crate::write::{ReadWrite, WriteError};

pub(crate) const MERGE_MARK_SIZE: usize = 32;
const MAGIC: &[u8; 8] = b"vhdmerge";

/// How far a merge into an image has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergeMark {
    /// Which merge it is.
    pub merge: Uuid,
    /// Everything before this sector has been merged, durably.
    pub merged_before: Sector,
}

impl MergeMark {
    /// The sector behind every disk: all has been merged.
    pub const ALL: Sector = Sector(u64::MAX);

    pub(crate) fn from_bytes(bytes: &[u8; MERGE_MARK_SIZE]) -> Option<Self> {
        let merge = bytes[8..24].try_into().ok()?;
        let sector = bytes[24..].try_into().ok()?;
        let mark = Self { merge: Uuid::from_bytes(merge), merged_before: Sector(u64::from_be_bytes(sector)) };
        (&bytes[..8] == MAGIC).then_some(mark)
    }

    pub(crate) fn to_bytes(self) -> [u8; MERGE_MARK_SIZE] {
        let mut bytes = [0; MERGE_MARK_SIZE];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..24].copy_from_slice(self.merge.as_bytes());
        bytes[24..].copy_from_slice(&self.merged_before.0.to_be_bytes());
        bytes
    }
}

impl Image<ReadWrite> {
    /// How far a merge that has not ended has come.
    pub fn merge_mark(&self) -> Option<MergeMark> {
        self.current_footer().merge_mark()
    }

    /// Says in the footers how far a merge into the image has come, or with `None` that there is none. Others may go on
    /// writing meanwhile.
    ///
    /// # Errors
    /// A failed write or sync; the image then accepts no more writes.
    ///
    /// # Crash safety
    /// Every write that returned before is durable first. Each footer then has the old mark or the new one, and both marks
    /// are true.
    pub fn set_merge_mark(&self, mark: Option<MergeMark>) -> Result<(), WriteError> {
        self.flush()?;
        self.put_merge_mark(mark);
        let footer = self.current_footer().to_bytes();
        let write = || {
            self.rewrite_end_footer()?;
            if self.tables.is_some() {
                self.container.write_at(&footer, FileOffset(0))?;
            }
            self.container.sync()
        };
        Ok(write().inspect_err(|_| self.fail())?)
    }
}

const _: () = assert!(MERGE_MARK_SIZE < FOOTER_SIZE.0 as usize - 86);
