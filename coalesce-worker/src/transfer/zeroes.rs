//! Telling blocks of zeros from the rest.

use std::ops::Range;

use vhd_core::FileOffset;

/// What becomes a hole: the block of nearly every file system.
pub(super) const BLOCK: u64 = 4096;

static ZEROES: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// Neighbouring bytes that go the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) place: Range<usize>,
    pub(super) is_zero: bool,
}

/// Splits bytes that go to `to` into runs of whole blocks of zeros and of all else.
pub(super) fn runs(bytes: &[u8], to: FileOffset) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let to_border = (BLOCK - (to.0 + at as u64) % BLOCK) as usize;
        let end = bytes.len().min(at + to_border);
        let is_zero = bytes[at..end] == ZEROES;
        match runs.last_mut() {
            Some(last) if last.is_zero == is_zero => last.place.end = end,
            _ => runs.push(Run { place: at..end, is_zero }),
        }
        at = end;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(bytes: &[u8], to: u64) -> Vec<(Range<usize>, bool)> {
        runs(bytes, FileOffset(to)).into_iter().map(|run| (run.place, run.is_zero)).collect()
    }

    #[test]
    fn only_whole_blocks_of_zeros_are_holes() {
        let mut bytes = vec![0; 20_480];
        assert_eq!(found(&bytes, 8192), [(0..20_480, true)]);
        assert_eq!(found(&bytes, 8192 + 512), [(0..3584, false), (3584..19_968, true), (19_968..20_480, false)]);
        bytes[4096 * 2 + 4095] = 1;
        bytes[4096 * 3] = 1;
        assert_eq!(found(&bytes, 0), [(0..8192, true), (8192..16_384, false), (16_384..20_480, true)]);
        assert_eq!(found(&bytes[..4095], 0), [(0..4095, false)], "less than a block");
        assert_eq!(found(&[], 0), []);
    }
}
