//! The content of a file in shared sectors: cheap to copy, to change a little and to compare.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

/// Bytes in a sector, the most that a disk writes or does not write as a whole.
pub(super) const SECTOR: u64 = 512;
/// Sectors in a chunk: what is copied when one sector of it changes.
const CHUNK: u64 = 64;

#[derive(Debug)]
pub(super) struct Sector {
    bytes: [u8; SECTOR as usize],
    hash: u64,
}

impl Sector {
    /// Shares a sector; one of zeros is none.
    fn new(bytes: [u8; SECTOR as usize]) -> Option<Arc<Self>> {
        if bytes == [0; SECTOR as usize] {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        Some(Arc::new(Self { bytes, hash: hasher.finish() }))
    }
}

/// What a write puts into one sector.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// The number of the sector in the file.
    pub(super) sector: u64,
    /// Which bytes of it are written.
    within: Range<usize>,
    /// The bytes, where they belong in the sector; zeros around them.
    bytes: Option<Arc<Sector>>,
}

/// Splits a range of a file at the borders of sectors.
fn sectors(range: Range<u64>) -> impl Iterator<Item = (u64, Range<usize>)> {
    (range.start / SECTOR..range.end.div_ceil(SECTOR)).map(move |sector| {
        let start = sector * SECTOR;
        let within = range.start.saturating_sub(start)..(range.end - start).min(SECTOR);
        (sector, within.start as usize..within.end as usize)
    })
}

/// Splits bytes for a place in a file into sectors.
pub(super) fn pieces(at: u64, bytes: &[u8]) -> Vec<Piece> {
    let mut rest = bytes;
    let split = sectors(at..at + bytes.len() as u64).map(|(sector, within)| {
        let (part, after) = rest.split_at(within.len());
        rest = after;
        let mut whole = [0; SECTOR as usize];
        whole[within.clone()].copy_from_slice(part);
        Piece { sector, within, bytes: Sector::new(whole) }
    });
    split.collect()
}

/// As [`pieces`], with zeros.
pub(super) fn zeros(range: Range<u64>) -> Vec<Piece> {
    sectors(range).map(|(sector, within)| Piece { sector, within, bytes: None }).collect()
}

impl Piece {
    /// The start of what is written, in the file.
    pub(super) fn start(&self) -> u64 {
        self.sector * SECTOR + self.within.start as u64
    }

    /// The end of what is written, in the file.
    pub(super) fn end(&self) -> u64 {
        self.sector * SECTOR + self.within.end as u64
    }
}

type Chunk = [Option<Arc<Sector>>; CHUNK as usize];

/// A file's length and bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    len: u64,
    chunks: BTreeMap<u64, Arc<Chunk>>,
    /// The sum over all sectors of a hash of number and bytes: equal for equal bytes however they came about.
    sum: u64,
}

impl Content {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut content = Self::default();
        for piece in pieces(0, bytes) {
            content.put(&piece);
        }
        content.set_len(bytes.len() as u64);
        content
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Tells files apart by a hash: of the bytes, with the length.
    pub(super) fn identity(&self) -> (u64, u64) {
        (self.len, self.sum)
    }

    fn sector(&self, number: u64) -> Option<&Arc<Sector>> {
        self.chunks.get(&(number / CHUNK))?[(number % CHUNK) as usize].as_ref()
    }

    fn set(&mut self, number: u64, new: Option<Arc<Sector>>) {
        if new.is_none() && !self.chunks.contains_key(&(number / CHUNK)) {
            return;
        }
        let chunk = self.chunks.entry(number / CHUNK).or_insert_with(|| Arc::new([const { None }; CHUNK as usize]));
        let place = &mut Arc::make_mut(chunk)[(number % CHUNK) as usize];
        let hash = |sector: &Option<Arc<Sector>>| sector.as_ref().map_or(0, |sector| mix(number, sector.hash));
        self.sum = self.sum.wrapping_sub(hash(place)).wrapping_add(hash(&new));
        *place = new;
    }

    /// Writes a piece; the file is as long as that needs afterwards.
    pub(super) fn put(&mut self, piece: &Piece) {
        let new = if piece.within.len() as u64 == SECTOR {
            piece.bytes.clone()
        } else {
            let mut bytes = self.sector(piece.sector).map_or([0; SECTOR as usize], |sector| sector.bytes);
            match &piece.bytes {
                Some(sector) => bytes[piece.within.clone()].copy_from_slice(&sector.bytes[piece.within.clone()]),
                None => bytes[piece.within.clone()].fill(0),
            }
            Sector::new(bytes)
        };
        self.set(piece.sector, new);
        self.len = self.len.max(piece.end());
    }

    /// Cuts the file short, or lengthens it by a hole.
    pub(super) fn set_len(&mut self, len: u64) {
        if len < self.len {
            for chunk in self.chunks.split_off(&(len / SECTOR / CHUNK).saturating_add(1)) {
                let sectors = (0..).zip(chunk.1.iter());
                for (i, sector) in sectors.filter_map(|(i, sector)| Some((i, sector.as_ref()?))) {
                    self.sum = self.sum.wrapping_sub(mix(chunk.0 * CHUNK + i, sector.hash));
                }
            }
            let chunk_end = (len / SECTOR / CHUNK + 1) * CHUNK * SECTOR;
            for piece in zeros(len..chunk_end) {
                self.put(&piece);
            }
        }
        self.len = len;
    }

    /// Reads a range, which must lie in the file.
    pub(super) fn read(&self, range: Range<u64>) -> Vec<u8> {
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        for (sector, within) in sectors(range) {
            match self.sector(sector) {
                Some(sector) => bytes.extend_from_slice(&sector.bytes[within]),
                None => bytes.resize(bytes.len() + within.len(), 0),
            }
        }
        bytes
    }

    /// Gives the data, in order, as pieces of at most a chunk with the place of each; the rest is holes.
    pub(super) fn data(&self) -> impl Iterator<Item = (u64, Vec<u8>)> {
        self.chunks
            .iter()
            .flat_map(|(chunk, sectors)| {
                sectors.chunk_by(|a, b| a.is_some() == b.is_some()).scan(chunk * CHUNK, |next, run| {
                    let first = *next;
                    *next += run.len() as u64;
                    Some((first, run))
                })
            })
            .filter(|(_, run)| run[0].is_some())
            .map(|(first, run)| {
                let mut bytes = Vec::with_capacity(run.len() * SECTOR as usize);
                run.iter().flatten().for_each(|sector| bytes.extend_from_slice(&sector.bytes));
                bytes.truncate((self.len - first * SECTOR) as usize);
                (first * SECTOR, bytes)
            })
    }
}

fn mix(number: u64, hash: u64) -> u64 {
    crate::random::scramble(hash ^ crate::random::scramble(number))
}
