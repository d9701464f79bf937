//! Inputs to begin with: golden images cut short, small images of our own, journals, operations and calls.

mod calls;
mod images;
mod journals;

use crate::random::Random;

/// An input: its target, its name, and what it is.
pub(super) type Seed = (&'static str, String, Vec<u8>);

/// All of them.
pub(super) fn all() -> Vec<Seed> {
    let parts = [images::footers(), images::headers(), images::images(), images::chains()];
    let more = [operations(), journals::journals(), calls::calls()];
    parts.into_iter().chain(more).flatten().collect()
}

fn operations() -> Vec<Seed> {
    let mut random = Random::new(7);
    let lengths = [16, 40, 80, 160, 240, 400];
    let many = (0..24).map(|number| {
        let bytes = (0..lengths[number % lengths.len()]).map(|_| random.next() as u8);
        // The kind of disk is the first byte, so that there are as many of each.
        let bytes = std::iter::once(number as u8).chain(bytes).collect();
        ("operations", format!("random-{number:02}"), bytes)
    });
    many.collect()
}
