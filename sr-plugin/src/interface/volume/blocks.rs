//! Which blocks volumes share, and in which they differ.

use std::cmp::Reverse;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use vhd_core::{
    Chain, ChainExtent, ChainOptions, ChainSource, FileOffset, Layer, SECTOR_SIZE, Sector, SectorCount, SectorRange,
    resolve_layers,
};

use crate::blocks::GRANULARITY;
use crate::failure::{Failure, Number};
use crate::host::Host;
use crate::sr::Sr;
use crate::wire::{BlockList, ChangedBlocks};

/// What is read and compared at once: 1 MiB.
const CHUNK: SectorCount = SectorCount(2048);

/// Finds the sectors in which two volumes differ; of one that has nothing to do with the other, or where there is no other,
/// those that hold something.
pub(super) fn compare(sr: &Sr, key: &str, key2: &str) -> Result<BlockList, Failure> {
    let ours = open(sr, key)?;
    let mut differing = Ranges::default();
    let other = match sr.image(key2) {
        Ok(Some(_)) => Some(open(sr, key2)?),
        _ => None,
    };
    match other.as_ref().and_then(|theirs| Some((theirs, shared_layers(&ours, theirs)?))) {
        None => {
            ours.copy_data::<Failure>(
                |range, bytes| {
                    differing.add_sectors(range, |sector| bytes[sector].iter().any(|&byte| byte != 0));
                    Ok(())
                },
                drop,
            )?;
        }
        Some((theirs, (above_ours, above_theirs))) => {
            let end = ours.sectors().max(theirs.sectors());
            let disk = SectorRange::new(Sector(0), end);
            let mut candidates = held_above(&ours, above_ours, disk)?;
            candidates.extend(held_above(theirs, above_theirs, disk)?);
            // Beyond the end of the smaller, the larger shows what the smaller does not.
            candidates.push(SectorRange::between(Sector(ours.sectors().min(theirs.sectors()).0), disk.end));
            let mut buffers = [(); 2].map(|()| vec![0; CHUNK.bytes().0 as usize]);
            for range in union(candidates) {
                for piece in range.split_at_multiples(CHUNK) {
                    let length = piece.count().bytes().0 as usize;
                    let [one, other] = &mut buffers;
                    ours.read(piece, &mut one[..length])?;
                    theirs.read(piece, &mut other[..length])?;
                    differing.add_sectors(piece, |sector| one[sector.clone()] != other[sector]);
                }
            }
        }
    }
    Ok(differing.into_list())
}

/// Lists the volumes that share data with one, by the bytes that they share.
pub(super) fn similar_content(sr: &Sr, key: &str) -> Result<Vec<String>, Failure> {
    let ours = open(sr, key)?;
    let ours_found = located(&ours)?;
    let mut similar = Vec::new();
    for other in sr.relatives(key)? {
        // One that is damaged, or gone meanwhile, shares nothing that could be had.
        let Ok(theirs) = open(sr, &other) else { continue };
        if shared_layers(&ours, &theirs).is_some() {
            let shared = shared_sectors(&ours_found, &located(&theirs)?);
            similar.extend((shared > 0).then_some((Reverse(shared), other)));
        }
    }
    similar.sort_unstable();
    Ok(similar.into_iter().map(|(_, key)| key).collect())
}

#[derive(Deserialize)]
pub(super) struct ListChanged {
    sr: String,
    key: String,
    key2: String,
    offset: i64,
    length: i64,
}

/// Finds which blocks have changed between two snapshots of a volume.
pub(super) fn list_changed_blocks(host: &Host, call: &ListChanged) -> Result<ChangedBlocks, Failure> {
    let sr = host.sr(&call.sr)?;
    // Nothing changes between one look and the next.
    let _locked = sr.lock()?;
    sr.existing(&call.key)?;
    let size = u64::try_from(sr.volume(&call.key2)?.virtual_size).unwrap_or_default();
    let refused = || {
        Failure::numbered(
            Number::BadRequest,
            format!("offset {} and length {} make no range", call.offset, call.length),
        )
    };
    let offset = u64::try_from(call.offset).map_err(|_| refused())?.min(size);
    let end = match call.length {
        -1 => size,
        length => offset.saturating_add(u64::try_from(length).map_err(|_| refused())?).min(size),
    };
    let changed = sr.changes_between(&call.key, &call.key2)?;
    let bits = changed.bits(offset / GRANULARITY, end.div_ceil(GRANULARITY));
    Ok(ChangedBlocks { granularity: GRANULARITY as i64, bitmap: STANDARD.encode(bits) })
}

fn open(sr: &Sr, key: &str) -> Result<Chain, Failure> {
    if sr.image(key)?.is_none() {
        return Err(Failure::volume_does_not_exist(key));
    }
    Ok(Chain::open(&sr.image_path(key)?, &ChainOptions::default())?)
}

/// How many layers of each chain lie above the first that both have; `None` where they have none in common.
fn shared_layers(ours: &Chain, theirs: &Chain) -> Option<(usize, usize)> {
    let paths = |chain: &Chain| -> Vec<PathBuf> { chain.layers().iter().map(|layer| real(layer.path())).collect() };
    let (ours, theirs) = (paths(ours), paths(theirs));
    ours.iter().enumerate().find_map(|(i, path)| Some((i, theirs.iter().position(|other| other == path)?)))
}

fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.into())
}

/// The ranges that the topmost layers of a chain hold.
fn held_above(chain: &Chain, layers: usize, disk: SectorRange) -> Result<Vec<SectorRange>, Failure> {
    let range = SectorRange::between(disk.start, disk.end.min(Sector(chain.sectors().0)));
    let found = resolve_layers(&chain.layers()[..layers], range)?;
    Ok(found.into_iter().map(|extent: ChainExtent| extent.sectors).collect())
}

/// Sorts ranges, and joins those that touch.
fn union(mut ranges: Vec<SectorRange>) -> Vec<SectorRange> {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<SectorRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// A piece of a disk, and where its data is.
struct Located {
    sectors: SectorRange,
    file: PathBuf,
    at: FileOffset,
}

fn located(chain: &Chain) -> Result<Vec<Located>, Failure> {
    let files: Vec<PathBuf> = chain.layers().iter().map(|layer: &Layer| real(layer.path())).collect();
    let mut found = Vec::new();
    for extent in chain.extents(SectorRange::new(Sector(0), chain.sectors())) {
        let extent = extent?;
        if let ChainSource::Data { layer, at } = extent.source {
            found.push(Located { sectors: extent.sectors, file: files[layer].clone(), at });
        }
    }
    Ok(found)
}

/// The sectors that both find in the same place.
fn shared_sectors(ours: &[Located], theirs: &[Located]) -> u64 {
    let (mut ours, mut theirs) = (ours.iter().peekable(), theirs.iter().peekable());
    let mut shared = 0;
    while let (Some(one), Some(other)) = (ours.peek(), theirs.peek()) {
        let common = SectorRange::between(
            one.sectors.start.max(other.sectors.start),
            one.sectors.end.min(other.sectors.end).max(one.sectors.start.max(other.sectors.start)),
        );
        let origin = |it: &Located| it.at.0.wrapping_sub(it.sectors.start.byte_offset());
        if !common.is_empty() && one.file == other.file && origin(one) == origin(other) {
            shared += common.count().0;
        }
        if one.sectors.end <= other.sectors.end {
            ours.next();
        } else {
            theirs.next();
        }
    }
    shared
}

/// Ranges of sectors, in order.
#[derive(Debug, Default)]
struct Ranges(Vec<SectorRange>);

impl Ranges {
    /// Adds the sectors of a piece that `is_in` tells of; it is given where in the piece each is.
    fn add_sectors(&mut self, piece: SectorRange, is_in: impl Fn(std::ops::Range<usize>) -> bool) {
        for index in 0..piece.count().0 {
            let from = (index * SECTOR_SIZE) as usize;
            if is_in(from..from + SECTOR_SIZE as usize) {
                let start = Sector(piece.start.0 + index);
                match self.0.last_mut() {
                    Some(last) if last.end == start => last.end = Sector(start.0 + 1),
                    _ => self.0.push(SectorRange::new(start, SectorCount(1))),
                }
            }
        }
    }

    fn into_list(self) -> BlockList {
        let ranges = self.0.into_iter().map(|range| (range.start.0 as i64, range.count().0 as i64));
        BlockList { blocksize: SECTOR_SIZE as i64, ranges: ranges.collect() }
    }
}
