//! Takes an input apart.

/// Bytes that are used up from the front; past the end they are zeros.
#[derive(Debug)]
pub(super) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn byte(&mut self) -> u8 {
        let (&first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        first
    }

    /// A number from `0..end`, of two bytes; `end` is not zero.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        u64::from(u16::from_be_bytes([self.byte(), self.byte()])) % end
    }

    /// What comes next, preceded by its length in four bytes.
    pub(super) fn counted(&mut self) -> &'a [u8] {
        let length = u32::from_be_bytes([self.byte(), self.byte(), self.byte(), self.byte()]) as usize;
        let (counted, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        counted
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.0
    }
}

/// Puts parts together as [`Input::counted`] takes them apart.
pub(super) fn counted(parts: &[&[u8]]) -> Vec<u8> {
    parts.iter().flat_map(|part| [&(part.len() as u32).to_be_bytes(), *part].concat()).collect()
}
