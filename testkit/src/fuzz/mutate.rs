//! Small changes to inputs, the same ones each time.

use crate::random::Random;

/// Numbers at which something changes.
const NUMBERS: [u64; 12] =
    [0, 1, 511, 512, 4096, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 2040 << 30, i64::MAX as u64, 1 << 63, u64::MAX];

/// Gives changed copies of the inputs, without end; which ones, the seed says.
pub fn mutations(inputs: &[Vec<u8>], seed: u64) -> impl Iterator<Item = Vec<u8>> + '_ {
    let mut random = Random::new(seed);
    std::iter::from_fn(move || {
        let mut bytes = pick(&mut random, inputs)?.clone();
        for _ in 0..=random.next() % 4 {
            mutate(&mut bytes, inputs, &mut random);
        }
        Some(bytes)
    })
}

fn pick<'a, T>(random: &mut Random, of: &'a [T]) -> Option<&'a T> {
    of.get((random.next() % of.len().max(1) as u64) as usize)
}

/// A place in some bytes: most often in their first two KiB, which is where records and tables are.
fn place(random: &mut Random, length: usize) -> usize {
    let within = if random.chance(180) { length.min(2048) } else { length };
    (random.next() % within.max(1) as u64) as usize
}

fn mutate(bytes: &mut Vec<u8>, inputs: &[Vec<u8>], random: &mut Random) {
    let at = place(random, bytes.len());
    if bytes.is_empty() {
        bytes.push(random.next() as u8);
        return;
    }
    match random.next() % 8 {
        0 => bytes[at] ^= 1 << (random.next() % 8),
        1 => bytes[at] = random.next() as u8,
        2..=4 => {
            let number = NUMBERS[(random.next() % NUMBERS.len() as u64) as usize];
            let width = [2, 4, 8][(random.next() % 3) as usize];
            let aligned = at / width * width;
            let number = number.to_be_bytes();
            let end = (aligned + width).min(bytes.len());
            bytes[aligned..end].copy_from_slice(&number[8 - width..][..end - aligned]);
        }
        5 => bytes.truncate(at),
        6 => {
            let length = (random.next() % 64) as usize;
            let copy = bytes[at..(at + length).min(bytes.len())].to_vec();
            let to = place(random, bytes.len());
            bytes.splice(to..to, copy);
        }
        _ => {
            let other = pick(random, inputs).map(Vec::as_slice).unwrap_or_default();
            let from = place(random, other.len());
            bytes.truncate(at);
            bytes.extend(&other[from.min(other.len())..]);
        }
    }
}
