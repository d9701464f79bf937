//! A file or device that is written at any place.

use vhd_core::{
    BlockSize, ByteCount, Container, FileOffset, Image, NewImage, NewKind, SECTOR_SIZE, Sector, SectorRange, Volume,
    create, is_zeros,
};

use super::failure::StreamFailure;
use super::pump::Destination;
use crate::error::CommandError;

/// What is known of what is to come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// The size of the disk.
    pub(crate) size: Option<ByteCount>,
    /// Whether everything is said that the disk holds; otherwise what is not said stays as it is.
    pub(crate) whole: bool,
    /// Whether what is there is known to be zero.
    pub(crate) prezeroed: bool,
}

/// The bytes of a disk, in place.
pub(crate) struct RawSink {
    container: Container,
    /// Zeros need not be written.
    blank: bool,
    size: Option<ByteCount>,
    /// How far it was written, or said to be zero.
    end: ByteCount,
    /// The length that cannot change.
    limit: Option<ByteCount>,
    /// Nothing that lies beyond the disk is to stay.
    cut: bool,
}

impl RawSink {
    /// Starts to fill `container`; a file in which nothing is to stay is emptied.
    ///
    /// # Errors
    /// A device that is smaller than the disk.
    pub(crate) fn new(container: Container, fresh: bool, expected: Expected) -> Result<Self, CommandError> {
        let length = container.len()?;
        let limit = container.has_fixed_size().then_some(length);
        if let (Some(limit), Some(size)) = (limit, expected.size)
            && size > limit
        {
            return Err(StreamFailure::TooSmall { path: container.path().into(), length, size }.into());
        }
        let empties = !fresh && limit.is_none() && expected.whole && !expected.prezeroed;
        if empties {
            container.set_len(ByteCount(0))?;
        }
        let blank = fresh || empties || expected.prezeroed;
        let cut = limit.is_none() && expected.whole && expected.size.is_some();
        Ok(Self { container, blank, size: expected.size, end: ByteCount(0), limit, cut })
    }

    /// Checks that a range lies on the disk; beyond the end of a device whose disk nobody gave a size, it is cut.
    fn note(&mut self, at: ByteCount, length: u64) -> Result<(), StreamFailure> {
        let end = u128::from(at.0) + u128::from(length);
        let size = [self.size, self.limit].into_iter().flatten().min();
        if let Some(size) = size.filter(|size| end > u128::from(size.0)) {
            return Err(StreamFailure::PastEnd { end, size });
        }
        self.end = self.end.max(ByteCount(u64::try_from(end).unwrap_or(u64::MAX)));
        Ok(())
    }

    /// The part of some bytes that has room; what has none may only be zeros.
    fn fitting<'a>(&self, at: ByteCount, bytes: &'a [u8]) -> &'a [u8] {
        let Some(limit) = self.limit.filter(|_| self.size.is_none()) else { return bytes };
        let room = limit.0.saturating_sub(at.0).min(bytes.len() as u64) as usize;
        if is_zeros(&bytes[room..]) { &bytes[..room] } else { bytes }
    }
}

impl Destination for RawSink {
    fn data(&mut self, at: ByteCount, bytes: &[u8]) -> Result<(), CommandError> {
        let bytes = self.fitting(at, bytes);
        if bytes.is_empty() {
            return Ok(());
        }
        self.note(at, bytes.len() as u64)?;
        Ok(self.container.write_at(bytes, FileOffset(at.0))?)
    }

    fn zeros(&mut self, at: ByteCount, length: ByteCount) -> Result<(), CommandError> {
        let room = self.limit.filter(|_| self.size.is_none()).map(|limit| limit.0.saturating_sub(at.0));
        let length = ByteCount(room.map_or(length.0, |room| length.0.min(room)));
        self.note(at, length.0)?;
        if self.blank || length.0 == 0 {
            return Ok(());
        }
        Ok(self.container.zero_range(FileOffset(at.0), length)?)
    }

    fn finish(&mut self) -> Result<(), CommandError> {
        let end = self.size.unwrap_or_default().max(self.end);
        let length = self.container.len()?;
        if self.limit.is_none() && length < end || self.cut && length > end {
            self.container.set_len(end)?;
        }
        Ok(self.container.sync()?)
    }
}

/// A new dynamic image that is filled at any place.
pub(crate) struct VhdSink {
    volume: Option<Volume>,
    sectors: Sector,
}

impl VhdSink {
    /// Makes an empty image for a disk of `size` bytes.
    ///
    /// # Errors
    /// A disk that no VHD can hold.
    pub(crate) fn new(container: &Container, size: ByteCount) -> Result<Self, CommandError> {
        let size = ByteCount(size.0.next_multiple_of(SECTOR_SIZE));
        create(container, &NewImage::new(size, NewKind::Dynamic { block_size: BlockSize::DEFAULT }))?;
        let image = Image::writable_from_container(container.clone())?;
        Ok(Self { volume: Some(Volume::from_parts(image, None)), sectors: Sector(size.whole_sectors().0) })
    }

    fn volume(&self) -> &Volume {
        self.volume.as_ref().expect("nothing is written after the end")
    }
}

impl Destination for VhdSink {
    fn data(&mut self, at: ByteCount, bytes: &[u8]) -> Result<(), CommandError> {
        let (start, end) =
            (at.0 / SECTOR_SIZE, (u128::from(at.0) + bytes.len() as u128).div_ceil(u128::from(SECTOR_SIZE)));
        if end > u128::from(self.sectors.0) {
            return Err(StreamFailure::PastEnd { end: end * 512, size: ByteCount(self.sectors.byte_offset()) }.into());
        }
        let range = SectorRange::between(Sector(start), Sector(end as u64));
        if range.count().bytes().0 == bytes.len() as u64 {
            return Ok(self.volume().write(range, bytes)?);
        }
        // Only chunks start or end within sectors, of which others may hold the rest.
        let mut sectors = vec![0; range.count().bytes().0 as usize];
        self.volume().read(range, &mut sectors)?;
        let from = (at.0 % SECTOR_SIZE) as usize;
        sectors[from..from + bytes.len()].copy_from_slice(bytes);
        Ok(self.volume().write(range, &sectors)?)
    }

    fn zeros(&mut self, _: ByteCount, _: ByteCount) -> Result<(), CommandError> {
        Ok(())
    }

    fn finish(&mut self) -> Result<(), CommandError> {
        match self.volume.take() {
            Some(volume) => Ok(volume.close()?),
            None => Ok(()),
        }
    }
}

/// Takes everything and keeps nothing.
pub(crate) struct Nowhere;

impl Destination for Nowhere {
    fn data(&mut self, _: ByteCount, _: &[u8]) -> Result<(), CommandError> {
        Ok(())
    }

    fn zeros(&mut self, _: ByteCount, _: ByteCount) -> Result<(), CommandError> {
        Ok(())
    }

    fn finish(&mut self) -> Result<(), CommandError> {
        Ok(())
    }
}
