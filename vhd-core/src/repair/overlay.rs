//! A store as it would be: changes stay in memory, everything else is read from below.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::storage::{Container, Storage, StorageError};
use crate::units::{ByteCount, FileOffset, SECTOR_SIZE};

/// Bytes that are copied from below at a time.
const PAGE: u64 = 4096;
/// What one repair may change: more than the tables of the largest image and the blocks that a resize moves for them.
pub(super) const MAX_CHANGED: ByteCount = ByteCount(256 << 20);
/// The longest piece of a changed range that is handed out at a time.
pub(super) const MAX_PIECE: u64 = 1 << 20;

/// A store whose changes are held in memory, up to [`MAX_CHANGED`]; beyond that it is full.
#[derive(Debug)]
pub(super) struct Overlay {
    below: Container,
    state: RwLock<State>,
    most: ByteCount,
}

#[derive(Debug)]
struct State {
    pages: BTreeMap<u64, Box<[u8; PAGE as usize]>>,
    len: u64,
    /// What lies past this below has been cut off at some time, and is zero where the store is long enough again.
    shown: u64,
}

impl Overlay {
    /// Starts with what `below` holds.
    pub(super) fn new(below: Container) -> Result<Self, StorageError> {
        let len = below.len()?.0;
        Ok(Self { below, state: RwLock::new(State { pages: BTreeMap::new(), len, shown: len }), most: MAX_CHANGED })
    }

    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a page as it is below; what is cut off there, or past the end, is zero.
    fn page_below(&self, shown: u64, page: u64) -> io::Result<Box<[u8; PAGE as usize]>> {
        let mut bytes = Box::new([0; PAGE as usize]);
        let length = shown.saturating_sub(page * PAGE).min(PAGE);
        if length > 0 {
            self.below.storage().read_at(&mut bytes[..length as usize], FileOffset(page * PAGE))?;
        }
        Ok(bytes)
    }

    /// Lists the ranges whose content differs from what is below, in order, in whole sectors but for the ends of the two
    /// stores, and in pieces of at most [`MAX_PIECE`]. What is cut off or added counts.
    pub(super) fn changed(&self) -> io::Result<Vec<Range<FileOffset>>> {
        let state = self.state();
        let old_len = self.below.storage().len()?.0;
        let mut ranges: Vec<Range<FileOffset>> = Vec::new();
        let mut add = |start: u64, end: u64| match ranges.last_mut() {
            Some(last) if last.end.0 == start && end - last.start.0 <= MAX_PIECE => last.end = FileOffset(end),
            _ => ranges.push(FileOffset(start)..FileOffset(end)),
        };
        for (&page, new) in &state.pages {
            let old = self.page_below(old_len, page)?;
            for at in (0..PAGE).step_by(SECTOR_SIZE as usize) {
                let start = page * PAGE + at;
                let sector = at as usize..(at + SECTOR_SIZE) as usize;
                let end = (start + SECTOR_SIZE).min(state.len);
                if start < end && new[sector.clone()] != old[sector] {
                    add(start, end);
                }
            }
        }
        // What is cut off, and what is added: a hole, too, is content from now on.
        for (from, to) in [(state.len.min(state.shown), old_len), (old_len, state.len)] {
            let mut at = from;
            while at < to {
                let end = ((at / MAX_PIECE + 1) * MAX_PIECE).min(to);
                ranges.push(FileOffset(at)..FileOffset(end));
                at = end;
            }
        }
        Ok(merged(ranges))
    }
}

/// Sorts ranges and takes out of each what an earlier one covers.
fn merged(mut ranges: Vec<Range<FileOffset>>) -> Vec<Range<FileOffset>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut covered = FileOffset(0);
    let mut apart = Vec::with_capacity(ranges.len());
    for range in ranges {
        let start = range.start.max(covered);
        if start < range.end {
            apart.push(start..range.end);
            covered = range.end;
        }
    }
    apart
}

impl Storage for Overlay {
    fn len(&self) -> io::Result<ByteCount> {
        Ok(ByteCount(self.state().len))
    }

    fn read_at(&self, buf: &mut [u8], at: FileOffset) -> io::Result<()> {
        let state = self.state();
        let end = at.0.checked_add(buf.len() as u64).filter(|&end| end <= state.len);
        let end = end.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let inside = end.min(state.shown).saturating_sub(at.0) as usize;
        let (below, past) = buf.split_at_mut(inside);
        past.fill(0);
        if !below.is_empty() {
            self.below.storage().read_at(below, at)?;
        }
        if buf.is_empty() {
            return Ok(());
        }
        for (&page, bytes) in state.pages.range(at.0 / PAGE..=(end - 1) / PAGE) {
            let (from, to) = (at.0.max(page * PAGE), end.min((page + 1) * PAGE));
            let source = (from - page * PAGE) as usize..(to - page * PAGE) as usize;
            buf[(from - at.0) as usize..(to - at.0) as usize].copy_from_slice(&bytes[source]);
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], at: FileOffset) -> io::Result<()> {
        let mut state = self.state_mut();
        let full = || io::Error::new(io::ErrorKind::StorageFull, "more than a repair may change");
        let end = at.0.checked_add(buf.len() as u64).ok_or_else(full)?;
        if end > state.len && self.has_fixed_size() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut from = at.0;
        while from < end {
            let page = from / PAGE;
            let to = end.min((page + 1) * PAGE);
            if !state.pages.contains_key(&page) {
                if state.pages.len() as u64 * PAGE > self.most.0 - PAGE {
                    return Err(full());
                }
                let bytes = self.page_below(state.shown.min(state.len), page)?;
                state.pages.insert(page, bytes);
            }
            if let Some(bytes) = state.pages.get_mut(&page) {
                let target = (from - page * PAGE) as usize..(to - page * PAGE) as usize;
                bytes[target].copy_from_slice(&buf[(from - at.0) as usize..(to - at.0) as usize]);
            }
            from = to;
        }
        state.len = state.len.max(end);
        Ok(())
    }

    fn set_len(&self, len: ByteCount) -> io::Result<()> {
        let mut state = self.state_mut();
        if self.has_fixed_size() {
            return if len.0 > state.len { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) };
        }
        if len.0 < state.len {
            state.shown = state.shown.min(len.0);
            drop(state.pages.split_off(&len.0.div_ceil(PAGE)));
            if let Some(bytes) = state.pages.get_mut(&(len.0 / PAGE)) {
                bytes[(len.0 % PAGE) as usize..].fill(0);
            }
        }
        state.len = len.0;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn next_data(&self, from: FileOffset) -> io::Result<Option<Range<FileOffset>>> {
        let state = self.state();
        let clip = |range: Range<FileOffset>| {
            let end = FileOffset(range.end.0.min(state.shown).min(state.len));
            (range.start < end).then_some(range.start..end)
        };
        let below = if from.0 < state.shown { self.below.storage().next_data(from)?.and_then(clip) } else { None };
        let page = state
            .pages
            .range(from.0 / PAGE..)
            .next()
            .map(|(&page, _)| FileOffset(from.0.max(page * PAGE))..FileOffset(((page + 1) * PAGE).min(state.len)));
        let page = page.filter(|range| range.start < range.end);
        Ok(match (below, page) {
            (Some(below), Some(page)) if page.start < below.start => Some(page),
            (Some(below), _) => Some(below),
            (None, page) => page,
        })
    }

    fn has_fixed_size(&self) -> bool {
        self.below.has_fixed_size()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::storage::MemoryStorage;

    #[derive(Clone, Debug)]
    enum Step {
        Write(u64, usize, u8),
        Cut(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_u64..20_000, 1_usize..9000, any::<u8>()).prop_map(|(at, length, byte)| Step::Write(at, length, byte)),
            (0_u64..26_000).prop_map(Step::Cut),
        ]
    }

    #[test]
    fn it_holds_no_more_than_it_may() {
        let memory = Arc::new(MemoryStorage::new(vec![1; 64 << 10]));
        let mut overlay = Overlay::new(Container::new("below", memory)).unwrap();
        overlay.most = ByteCount(3 * PAGE);
        overlay.write_at(&[2; 2 * PAGE as usize], FileOffset(PAGE / 2)).unwrap();
        overlay.write_at(&[3; 512], FileOffset(PAGE)).unwrap();
        let error = overlay.write_at(&[4; 512], FileOffset(8 * PAGE)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    proptest! {
        /// It reads as a copy would on which the same was done, leaves what is below alone, and its changed ranges,
        /// copied over what is below, make that equal.
        #[test]
        fn is_as_a_copy_would_be(start in 0_usize..20_000, steps in prop::collection::vec(step(), 0..12)) {
            let before: Vec<u8> = (0..start).map(|i| (i / 7) as u8).collect();
            let memory = Arc::new(MemoryStorage::new(before.clone()));
            let overlay = Overlay::new(Container::new("below", memory.clone())).unwrap();
            let copy = MemoryStorage::new(before.clone());
            for step in steps {
                for storage in [&overlay as &dyn Storage, &copy] {
                    match step {
                        Step::Write(at, length, byte) => storage.write_at(&vec![byte; length], FileOffset(at)).unwrap(),
                        Step::Cut(len) => storage.set_len(ByteCount(len)).unwrap(),
                    }
                }
            }
            let expected = copy.to_vec();
            let mut found = vec![0xcc; expected.len()];
            prop_assert_eq!(overlay.len().unwrap().0, expected.len() as u64);
            overlay.read_at(&mut found, FileOffset(0)).unwrap();
            prop_assert!(found == expected);
            prop_assert!(memory.to_vec() == before);

            let mut applied = before.clone();
            applied.resize(expected.len(), 0);
            for range in overlay.changed().unwrap() {
                let (from, to) = (range.start.0 as usize, (range.end.0 as usize).min(expected.len()));
                if from < to {
                    applied[from..to].copy_from_slice(&expected[from..to]);
                }
            }
            prop_assert!(applied == expected);
            let cut: u64 = overlay.changed().unwrap().iter()
                .map(|range| range.end.0.min(before.len() as u64).saturating_sub(range.start.0.max(expected.len() as u64)))
                .sum();
            prop_assert_eq!(cut, (before.len() as u64).saturating_sub(expected.len() as u64), "all that is cut off");
        }
    }
}
