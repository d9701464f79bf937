//! An inactive volume, read where it lies.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use vhd_core::{ByteCount, FileOffset, FileStorage, Lock, Storage};

/// A part of a volume that lies in one piece on a physical volume.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    /// Where it starts in the volume, in bytes.
    pub(super) start: u64,
    /// Its bytes.
    pub(super) length: u64,
    /// The physical volume.
    pub(super) device: PathBuf,
    /// Where it is there.
    pub(super) at: FileOffset,
}

/// The segments of a volume, open for reading.
#[derive(Debug)]
pub(super) struct Segments {
    size: ByteCount,
    /// In the order of the volume, without gaps.
    segments: Vec<(Segment, Arc<FileStorage>)>,
}

impl Segments {
    /// Opens the physical volumes that the segments, which are in order, lie on.
    ///
    /// # Errors
    /// One that cannot be opened; segments that do not make up the volume.
    pub(super) fn open(segments: &[Segment], size: ByteCount) -> io::Result<Self> {
        let mut devices: HashMap<&PathBuf, Arc<FileStorage>> = HashMap::new();
        let mut open = Vec::with_capacity(segments.len());
        let mut end = 0;
        for segment in segments {
            if segment.start != end {
                return Err(io::Error::other("its segments leave gaps"));
            }
            end += segment.length;
            let device = match devices.get(&segment.device) {
                Some(device) => device.clone(),
                None => Arc::new(FileStorage::open(&segment.device, Lock::None)?),
            };
            devices.insert(&segment.device, device.clone());
            open.push((segment.clone(), device));
        }
        if end != size.0 {
            return Err(io::Error::other("its segments are not as long as it is"));
        }
        Ok(Self { size, segments: open })
    }
}

impl Storage for Segments {
    fn len(&self) -> io::Result<ByteCount> {
        Ok(self.size)
    }

    fn read_at(&self, buf: &mut [u8], at: FileOffset) -> io::Result<()> {
        let (mut rest, mut at) = (buf, at.0);
        while !rest.is_empty() {
            let holds = |(segment, _): &&(Segment, _)| at >= segment.start && at - segment.start < segment.length;
            let (segment, device) = self.segments.iter().find(holds).ok_or(io::ErrorKind::UnexpectedEof)?;
            let within = at - segment.start;
            let length = (segment.length - within).min(rest.len() as u64);
            let (now, later) = rest.split_at_mut(usize::try_from(length).map_err(io::Error::other)?);
            device.read_at(now, segment.at + ByteCount(within))?;
            (rest, at) = (later, at + length);
        }
        Ok(())
    }

    fn write_at(&self, _: &[u8], _: FileOffset) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn set_len(&self, _: ByteCount) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}
