//! Reading and writing at the same time, with a bounded queue in between.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use vhd_core::{ByteCount, is_zeros};

use super::failure::StreamFailure;
use super::meter::Meter;
use crate::error::{CommandError, Refusal};

/// Batches between the two. With those in work at both ends and those kept to be used again, at most 16 MiB.
const DEPTH: usize = 3;
/// The most that a source puts into a batch, apart from tables of images.
pub(crate) const BATCH: ByteCount = ByteCount(1 << 20);
/// What zeros are looked for by: what file systems give space by.
const PAGE: usize = 4096;

/// A part of a disk, or of an image as a file, and what is known of it.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Where its bytes start.
    pub(crate) at: ByteCount,
    /// Bytes, of which those count that `parts` names.
    pub(crate) bytes: Vec<u8>,
    /// What there is, in order. Places that no part names stay as they are.
    pub(crate) parts: Vec<Part>,
    /// How far the source is, of its total.
    pub(crate) done: ByteCount,
}

/// A range and what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Bytes of the batch.
    Data(Range<u64>),
    /// Nothing but zeros, of which the batch need not have bytes.
    Zeros(Range<u64>),
}

impl Batch {
    /// Names a range of the batch's bytes as content; pages of zeros in it are told apart.
    pub(crate) fn add_content(&mut self, range: Range<u64>) {
        let mut at = range.start;
        while at < range.end {
            let end = (at / PAGE as u64 + 1).saturating_mul(PAGE as u64).min(range.end);
            let zeros = is_zeros(&self.bytes[(at - self.at.0) as usize..(end - self.at.0) as usize]);
            if zeros {
                self.add_zeros(at..end);
            } else {
                self.add_data(at..end);
            }
            at = end;
        }
    }

    /// Names a range of the batch's bytes, which is not empty, as data, also where they are zero.
    pub(crate) fn add_data(&mut self, range: Range<u64>) {
        match self.parts.last_mut() {
            Some(Part::Data(last)) if last.end == range.start => last.end = range.end,
            _ => self.parts.push(Part::Data(range)),
        }
    }

    /// Names a range that holds zeros.
    pub(crate) fn add_zeros(&mut self, range: Range<u64>) {
        match self.parts.last_mut() {
            Some(Part::Zeros(last)) if last.end == range.start => last.end = range.end,
            _ if range.is_empty() => {}
            _ => self.parts.push(Part::Zeros(range)),
        }
    }
}

/// What delivers a disk: runs in a thread of its own.
pub(crate) trait Source: Send {
    /// What `done` of the last batch will be, if that is known.
    fn total(&self) -> Option<ByteCount>;

    /// Sends everything.
    ///
    /// # Errors
    /// A failed read, a broken stream; the other side having gone.
    fn run(self: Box<Self>, outlet: &Outlet) -> Result<(), CommandError>;
}

/// What takes a disk.
pub(crate) trait Destination {
    /// Takes bytes for a place.
    fn data(&mut self, at: ByteCount, bytes: &[u8]) -> Result<(), CommandError>;

    /// Takes note that a range is zero.
    fn zeros(&mut self, at: ByteCount, length: ByteCount) -> Result<(), CommandError>;

    /// Makes everything durable, or sends what marks the end. Not called after a failure of either side.
    fn finish(&mut self) -> Result<(), CommandError>;
}

/// Where a source puts its batches.
#[derive(Debug)]
pub(crate) struct Outlet {
    batches: SyncSender<Batch>,
    spare: Receiver<Batch>,
}

impl Outlet {
    /// An empty batch, with the memory of one that was used before where there is one.
    pub(crate) fn batch(&self, at: ByteCount) -> Batch {
        let mut batch = self.spare.try_recv().unwrap_or_default();
        batch.parts.clear();
        Batch { at, ..batch }
    }

    /// Sends a batch, once there is room.
    ///
    /// # Errors
    /// [`StreamFailure::Stopped`] where nobody takes it.
    pub(crate) fn send(&self, batch: Batch) -> Result<(), CommandError> {
        Ok(self.batches.send(batch).map_err(|_| StreamFailure::Stopped)?)
    }
}

/// Moves everything from a source to a destination.
///
/// If the destination fails, the source is not waited for: it may wait for bytes that never come.
pub(crate) fn pump(
    source: Box<dyn Source>,
    destination: &mut dyn Destination,
    mut meter: Meter,
) -> Result<(), CommandError> {
    let (batches, queue) = sync_channel(DEPTH);
    let (recycled, spare) = sync_channel(DEPTH);
    let outlet = Outlet { batches, spare };
    let reader = thread::Builder::new().name("source".into()).spawn(move || source.run(&outlet));
    let reader = reader.map_err(Refusal::io("source", "start a thread for it"))?;
    for batch in queue {
        take(&batch, destination)?;
        meter.set(batch.done);
        // Where enough wait to be used again, this one is not needed.
        let _ = recycled.try_send(batch);
    }
    reader.join().expect("a source does not panic")?;
    destination.finish()?;
    meter.finish();
    Ok(())
}

fn take(batch: &Batch, destination: &mut dyn Destination) -> Result<(), CommandError> {
    for part in &batch.parts {
        match part {
            Part::Data(range) => {
                let bytes = &batch.bytes[(range.start - batch.at.0) as usize..(range.end - batch.at.0) as usize];
                destination.data(ByteCount(range.start), bytes)?;
            }
            Part::Zeros(range) => destination.zeros(ByteCount(range.start), ByteCount(range.end - range.start))?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_zeros_are_told_apart() {
        let mut bytes = vec![0; 5 * PAGE - 100];
        bytes[PAGE + 7] = 1;
        bytes[2 * PAGE] = 1;
        let mut batch = Batch { at: ByteCount(8192), bytes, ..Batch::default() };
        let end = 8192 + 5 * 4096 - 100;
        batch.add_content(8192..end);
        assert_eq!(batch.parts, [Part::Zeros(8192..12288), Part::Data(12288..20480), Part::Zeros(20480..end)]);
    }
}
