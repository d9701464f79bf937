//! Memory that holds only what is not zero: images of any length, in little space.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vhd_core::{ByteCount, FileOffset, Storage};

const PAGE: u64 = 4096;
/// The most pages that one store holds: 16 MiB. Whoever writes more finds it full.
const MOST_PAGES: usize = 4096;

/// A store of up to 2^63 bytes, of which few are anything but zeros.
#[derive(Debug, Default)]
pub struct SparseStorage {
    state: Mutex<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    pages: BTreeMap<u64, Box<[u8]>>,
    len: u64,
}

impl SparseStorage {
    /// Starts with the given bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let mut state = State { pages: BTreeMap::new(), len: bytes.len() as u64 };
        for (index, chunk) in (0..).zip(bytes.chunks(PAGE as usize)) {
            if chunk.iter().any(|&byte| byte != 0) {
                state.page(index)[..chunk.len()].copy_from_slice(chunk);
            }
        }
        Self { state: Mutex::new(state) }
    }

    /// Makes another one that holds the same now.
    pub fn copy(&self) -> Self {
        Self { state: Mutex::new(self.state().clone()) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn page(&mut self, index: u64) -> &mut [u8] {
        self.pages.entry(index).or_insert_with(|| vec![0; PAGE as usize].into())
    }

    /// Visits the parts of pages that a range of bytes lies in: page, place in it, place in the range.
    fn parts(at: u64, length: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
        let mut done = 0;
        std::iter::from_fn(move || {
            let place = at + done as u64;
            let within = (place % PAGE) as usize;
            let step = (PAGE as usize - within).min(length - done);
            let part = (place / PAGE, within..within + step, done..done + step);
            done += step;
            (step > 0).then_some(part)
        })
    }

    fn zero(&mut self, at: u64, end: u64) {
        let touched: Vec<u64> = self.pages.range(at / PAGE..end.div_ceil(PAGE)).map(|(&index, _)| index).collect();
        for index in touched {
            let start = index * PAGE;
            if at <= start && start + PAGE <= end {
                self.pages.remove(&index);
            } else {
                let within = at.saturating_sub(start)..(end - start).min(PAGE);
                self.page(index)[within.start as usize..within.end as usize].fill(0);
            }
        }
    }
}

impl Storage for SparseStorage {
    fn len(&self) -> io::Result<ByteCount> {
        Ok(ByteCount(self.state().len))
    }

    fn read_at(&self, buf: &mut [u8], at: FileOffset) -> io::Result<()> {
        let state = self.state();
        let end = at.0.checked_add(buf.len() as u64).filter(|&end| end <= state.len);
        end.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        for (index, within, part) in State::parts(at.0, buf.len()) {
            match state.pages.get(&index) {
                Some(page) => buf[part].copy_from_slice(&page[within]),
                None => buf[part].fill(0),
            }
        }
        Ok(())
    }

    fn write_at(&self, buf: &[u8], at: FileOffset) -> io::Result<()> {
        let mut state = self.state();
        let end = at.0.checked_add(buf.len() as u64).filter(|&end| i64::try_from(end).is_ok());
        let end = end.ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        for (index, within, part) in State::parts(at.0, buf.len()) {
            if state.pages.len() >= MOST_PAGES && !state.pages.contains_key(&index) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            state.page(index)[within].copy_from_slice(&buf[part]);
        }
        state.len = state.len.max(end);
        Ok(())
    }

    fn set_len(&self, len: ByteCount) -> io::Result<()> {
        if i64::try_from(len.0).is_err() {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut state = self.state();
        let old = state.len;
        if len.0 < old {
            state.zero(len.0, old);
        }
        state.len = len.0;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn zero_range(&self, at: FileOffset, length: ByteCount) -> io::Result<()> {
        let mut state = self.state();
        let end = at.0.checked_add(length.0).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let end = end.min(state.len);
        if at.0 < end {
            state.zero(at.0, end);
        }
        Ok(())
    }

    fn next_data(&self, from: FileOffset) -> io::Result<Option<Range<FileOffset>>> {
        let state = self.state();
        if from.0 >= state.len {
            return Ok(None);
        }
        let next = state.pages.range(from.0 / PAGE..).map(|(&index, _)| index * PAGE).find(|&start| start < state.len);
        Ok(next.map(|start| FileOffset(start.max(from.0))..FileOffset((start + PAGE).min(state.len))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_as_what_was_written() {
        let storage = SparseStorage::new(&[7; 5000]);
        storage.write_at(&[1; 6000], FileOffset(1 << 40)).unwrap();
        storage.zero_range(FileOffset(1000), ByteCount(3500)).unwrap();
        storage.set_len(ByteCount((1 << 40) + 5000)).unwrap();
        storage.set_len(ByteCount(1 << 50)).unwrap();
        let mut bytes = vec![9; 5500];
        storage.read_at(&mut bytes, FileOffset(0)).unwrap();
        assert_eq!(bytes, [&[7; 1000][..], &[0; 3500], &[7; 500], &[0; 500]].concat());
        storage.read_at(&mut bytes, FileOffset(1 << 40)).unwrap();
        assert_eq!(bytes, [&[1; 5000][..], &[0; 500]].concat());
        assert_eq!(storage.next_data(FileOffset(9000)).unwrap().unwrap().start, FileOffset(1 << 40));
        assert!(storage.read_at(&mut bytes, FileOffset(u64::MAX)).is_err());
        assert_eq!(SparseStorage::new(&[7; 100]).next_data(FileOffset(200)).unwrap(), None);
    }
}
