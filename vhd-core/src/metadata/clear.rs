//! Dropping all that an image holds.

use super::MetadataError;
use crate::bat::{ENTRIES_PER_SECTOR, table_size};
use crate::batmap::{self, BATMAP_HEADER_SIZE, BatmapState};
use crate::create::write_empty_bat;
use crate::header::Header;
use crate::image::{Image, Tables};
use crate::storage::{Container, StorageError};
use crate::units::{ByteCount, FileOffset, SECTOR_SIZE};
use crate::write::{ReadWrite, WriteError};

impl Image<ReadWrite> {
    /// Drops every block: the image then reads as its parent does, or as zeros. It keeps its name, size, parent, marker and
    /// key; a file ends after its tables, and a device keeps its footer.
    ///
    /// # Errors
    /// A fixed image; no space for a second BAT beside the first; a failed write or sync.
    ///
    /// # Crash safety
    /// One sector decides between all blocks and none. Of a BAT that is one sector, that is it. A longer one is left for an
    /// empty one at the end of the file, by the header's first sector, and once it has been emptied, too, the header points
    /// to it again. Only on a device without room for that is the BAT emptied as it stands, and a crash can leave some of
    /// the blocks; to repeat it drops them.
    pub fn clear(mut self) -> Result<(), MetadataError> {
        self.flush()?;
        if self.tables.is_none() {
            return Err(MetadataError::NoBlocks { path: self.path().into() });
        }
        self.commit(Self::drop_blocks)?;
        let container = self.container.clone();
        drop(self);
        Image::writable_from_container(container)?.trim_tail()
    }

    fn drop_blocks(&mut self) -> Result<(), MetadataError> {
        let tables = self.tables.as_ref().expect("only called with tables");
        let container = &self.container;
        // Clear bits are right whatever the BAT says.
        if let BatmapState::Present(batmap) = BatmapState::read(container, &tables.header, container.len()?)? {
            let mut batmap = *batmap;
            batmap.make_anew(container, tables.bat.entries(), |_| Ok::<_, WriteError>(false))?;
            container.sync()?;
        }
        let entries = tables.bat.entries();
        let detour = if entries > ENTRIES_PER_SECTOR { self.write_empty_tables(tables)? } else { None };
        let header = &tables.header;
        if let Some(detour) = &detour {
            point_to(container, tables.header_at, detour)?;
        }
        write_empty_bat(container, header.table_offset(), entries)?;
        container.sync()?;
        if detour.is_some() {
            point_to(container, tables.header_at, header)?;
        }
        Ok(())
    }

    /// Writes an empty BAT and batmap at the end of the file, durably; gives the header that would point there, or `None`
    /// on a device that has no room.
    fn write_empty_tables(&self, tables: &Tables) -> Result<Option<Header>, MetadataError> {
        let (container, entries) = (&self.container, tables.bat.entries());
        let batmap_room = match &tables.batmap {
            BatmapState::Absent => ByteCount(0),
            BatmapState::Present(_) | BatmapState::Overwritten => BATMAP_HEADER_SIZE + batmap::map_size(entries),
        };
        let at = match self.allocate_bytes(table_size(entries) + batmap_room) {
            Err(_) if container.has_fixed_size() => return Ok(None),
            at => at?,
        };
        write_empty_bat(container, at, entries)?;
        let mut header = tables.header.clone();
        header.set_table(at, entries);
        if let BatmapState::Present(batmap) = &tables.batmap {
            let batmap = batmap.moved(batmap::header_offset(&header), entries);
            container.zero_range(batmap.map_offset(), batmap.map_size())?;
            batmap.write_header(container)?;
        }
        // A file that has grown has no footer at its end; the copy at the start speaks for it.
        container.sync()?;
        Ok(Some(header))
    }
}

/// Points the header to another table, durably: table offset, entries and checksum are all in its first sector.
fn point_to(container: &Container, header_at: FileOffset, header: &Header) -> Result<(), StorageError> {
    container.write_at(&header.to_bytes()[..SECTOR_SIZE as usize], header_at)?;
    container.sync()
}
