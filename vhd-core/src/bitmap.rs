//! Sector bitmaps: which sectors of a block a layer holds.

use std::ops::Range;

use byteorder::{BigEndian, ByteOrder};

/// Bits in the order of the disk: bit 0 is the most significant of byte 0.
///
/// Source: Microsoft VHD specification, "Block Allocation Table and Data Blocks".
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bitmap {
    words: Box<[u64]>,
}

/// The number of bits in a word; ranges are read from disk in multiples of it.
pub(crate) const WORD_BITS: u32 = u64::BITS;

impl Bitmap {
    /// Makes one of at least `bits` bits, all clear.
    pub(crate) fn clear(bits: u32) -> Self {
        Self { words: vec![0; bits.div_ceil(WORD_BITS) as usize].into() }
    }

    /// Reads bytes as stored; their number is a multiple of 8.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let mut words = vec![0; bytes.len() / 8];
        BigEndian::read_u64_into(bytes, &mut words);
        Self { words: words.into() }
    }

    /// Gives the bytes as stored, padded with clear bits to `length`.
    pub(crate) fn to_bytes(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length.max(self.words.len() * 8)];
        BigEndian::write_u64_into(&self.words, &mut bytes[..self.words.len() * 8]);
        bytes
    }

    /// Sets a range of bits; tells how many of them were clear.
    pub(crate) fn set(&mut self, range: Range<u32>) -> u32 {
        let mut fresh = 0;
        let mut at = range.start;
        while at < range.end {
            let word = at / WORD_BITS;
            let end = range.end.min((word + 1) * WORD_BITS);
            let mask = (u64::MAX >> (at % WORD_BITS)) & (u64::MAX << ((word + 1) * WORD_BITS - end));
            let slot = &mut self.words[word as usize];
            fresh += (mask & !*slot).count_ones();
            *slot |= mask;
            at = end;
        }
        fresh
    }

    /// Counts the set bits of a range.
    pub(crate) fn count(&self, range: Range<u32>) -> u32 {
        self.runs(range).filter(|(_, set)| *set).map(|(run, _)| run.end - run.start).sum()
    }

    /// Cuts a range into runs of equal bits.
    pub(crate) fn runs(&self, range: Range<u32>) -> impl Iterator<Item = (Range<u32>, bool)> + '_ {
        let mut at = range.start;
        std::iter::from_fn(move || {
            (at < range.end).then(|| {
                let (end, set) = self.run_from(at, range.end);
                let run = at..end;
                at = end;
                (run, set)
            })
        })
    }

    fn run_from(&self, start: u32, limit: u32) -> (u32, bool) {
        let set = self.words[(start / WORD_BITS) as usize] << (start % WORD_BITS) >> (WORD_BITS - 1) == 1;
        let mut at = start;
        while at < limit {
            let word = self.words[(at / WORD_BITS) as usize];
            let differing = (if set { !word } else { word }) << (at % WORD_BITS);
            if differing != 0 {
                return ((at + differing.leading_zeros()).min(limit), set);
            }
            at = (at / WORD_BITS + 1) * WORD_BITS;
        }
        (limit, set)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn agrees_with_a_vector_of_bools(
            ranges in prop::collection::vec((0_u32..700, 0_u32..90), 0..12),
            asked in (0_u32..512, 0_u32..200),
        ) {
            let mut bitmap = Bitmap::clear(768);
            let mut model = vec![false; 768];
            for (start, length) in ranges {
                let range = start..(start + length).min(768);
                let fresh = range.clone().filter(|&bit| !model[bit as usize]).count() as u32;
                range.clone().for_each(|bit| model[bit as usize] = true);
                prop_assert_eq!(bitmap.set(range), fresh);
            }
            let asked = asked.0..asked.0 + asked.1;
            let mut at = asked.start;
            let mut last = None;
            for (run, set) in bitmap.runs(asked.clone()) {
                prop_assert_eq!(run.start, at);
                prop_assert_ne!(last, Some(set), "neighbours are joined");
                prop_assert!(run.clone().all(|bit| model[bit as usize] == set));
                (at, last) = (run.end, Some(set));
            }
            prop_assert_eq!(at, asked.end);
            prop_assert_eq!(bitmap.count(0..768) as usize, model.iter().filter(|&&set| set).count());

            let bytes = bitmap.to_bytes(512);
            for (bit, &set) in model.iter().enumerate() {
                prop_assert_eq!(bytes[bit / 8] >> (7 - bit % 8) & 1 == 1, set);
            }
            prop_assert_eq!(Bitmap::from_bytes(&bytes[..96]), bitmap);
        }
    }
}
