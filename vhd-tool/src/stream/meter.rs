//! How far a transfer is: for people, or three digits for each percent for programs.

use std::io::{self, Write};

use vhd_core::ByteCount;

use crate::progress::Progress;

/// Shows how far a transfer is.
pub(crate) enum Meter {
    /// Not at all.
    None,
    /// To people.
    Human(Progress),
    /// To a program.
    Machine(Percent<Box<dyn Write>>),
}

impl Meter {
    /// The one that prints digits: on standard output, or on standard error where the disk itself goes there.
    pub(crate) fn machine(total: Option<ByteCount>, stdout_is_taken: bool) -> Self {
        let out: Box<dyn Write> = if stdout_is_taken { Box::new(io::stderr()) } else { Box::new(io::stdout()) };
        Self::Machine(Percent::start(out, total))
    }

    /// Tells that so much is done.
    pub(crate) fn set(&mut self, done: ByteCount) {
        match self {
            Self::None => {}
            Self::Human(progress) => progress.set(done),
            Self::Machine(percent) => percent.set(done),
        }
    }

    /// Tells that all is done.
    pub(crate) fn finish(self) {
        match self {
            Self::None => {}
            Self::Human(progress) => progress.finish(),
            Self::Machine(mut percent) => percent.show(100),
        }
    }
}

/// Prints each percent once, in order: `000001002…100`, with nothing in between. 100 is printed only at the end.
pub(crate) struct Percent<W> {
    out: W,
    total: Option<ByteCount>,
    /// The next to be printed.
    next: u64,
}

impl<W: Write> Percent<W> {
    fn start(out: W, total: Option<ByteCount>) -> Self {
        let mut percent = Self { out, total, next: 0 };
        percent.show(0);
        percent
    }

    fn set(&mut self, done: ByteCount) {
        let Some(total) = self.total.filter(|total| total.0 > 0) else { return };
        let percent = u128::from(done.0) * 100 / u128::from(total.0);
        self.show(u64::try_from(percent).unwrap_or(99).min(99));
    }

    /// Prints all up to `percent` that were not printed before.
    fn show(&mut self, percent: u64) {
        while self.next <= percent {
            // Each by itself: whoever reads them takes three bytes at a time. That nobody does hinders nothing.
            let _ = write!(self.out, "{:03}", self.next).and_then(|()| self.out.flush());
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(total: Option<u64>, steps: &[u64]) -> String {
        let mut out = Vec::new();
        let mut percent = Percent::start(&mut out, total.map(ByteCount));
        steps.iter().for_each(|&step| percent.set(ByteCount(step)));
        percent.show(100);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_percent_comes_once_and_in_order() {
        let all: String = (0..=100).map(|percent| format!("{percent:03}")).collect();
        for (total, steps) in [
            (Some(7), &[1, 2, 2, 1, 7][..]),
            (Some(1 << 60), &[u64::MAX]),
            (Some(0), &[0]),
            (None, &[5]),
            (Some(1000), &[]),
        ] {
            assert_eq!(printed(total, steps), all);
        }
    }

    #[test]
    fn a_hundred_is_for_the_end() {
        let mut out = Vec::new();
        let mut percent = Percent::start(&mut out, Some(ByteCount(2)));
        percent.set(ByteCount(2));
        assert!(out.ends_with(b"098099"));
    }
}
