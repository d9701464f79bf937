//! Three files and a raw disk, each of which may say that another is its parent.

use std::fs;
use std::path::Path;

use vhd_core::{Chain, ChainOptions, Files, Folder, Sector, SectorCount, SectorRange, Volume};

use super::input::Input;
use super::place::{Place, SECRET};
use super::sealed;

/// The names that the files have; the last is a raw disk.
pub(super) const NAMES: [&str; 4] = ["a.vhd", "b.vhd", "c.vhd", "d.img"];

/// Lays the files of an input in a folder and opens each as a chain, for reading and for writing, and the folder as a
/// forest.
///
/// # Panics
/// Where content shows, or changes, that lies outside the folder.
pub fn chain(data: &[u8]) {
    if data.windows(SECRET.len()).any(|bytes| bytes == SECRET) {
        return;
    }
    let place = Place::new(&[]);
    let (folder, mut input) = (place.inside(), Input::new(data));
    let seals = input.byte() & 1 == 0;
    for name in &NAMES[..3] {
        let bytes = input.counted();
        let right = if seals { sealed(bytes) } else { bytes.to_vec() };
        fs::write(folder.join(name), right).expect("the folder is ours");
    }
    fs::write(folder.join(NAMES[3]), input.rest()).expect("the folder is ours");
    if let Ok(forest) = Folder::scan(&folder, Files::All) {
        for (id, node) in forest.nodes() {
            let _ = (forest.parent(id), forest.children(id).len(), forest.dependants(&node.path, node.unique_id).len());
        }
    }
    for name in &NAMES[..3] {
        read(&folder.join(name));
    }
    for name in &NAMES[..3] {
        write(&folder.join(name));
    }
    place.check();
}

fn pieces(sectors: SectorCount) -> impl Iterator<Item = SectorRange> {
    let last = sectors.0.saturating_sub(40);
    let edges =
        [SectorRange::new(Sector(0), SectorCount(sectors.0.min(160))), SectorRange::new(Sector(last), SectorCount(48))];
    edges.into_iter().flat_map(|edge| edge.split_at_multiples(SectorCount(8)))
}

fn read(path: &Path) {
    let Ok(chain) = Chain::open(path, &ChainOptions::default()) else { return };
    assert!(chain.layers().len() <= NAMES.len(), "a chain is no longer than there are files");
    for piece in pieces(chain.sectors()) {
        let mut bytes = vec![0xee; piece.count().bytes().0 as usize];
        if chain.read(piece, &mut bytes).is_ok() {
            assert!(!bytes.windows(SECRET.len()).any(|bytes| bytes == SECRET), "the secret shows");
        }
    }
}

fn write(path: &Path) {
    let Ok(volume) = Volume::open(path, &ChainOptions::default()) else { return };
    for piece in pieces(volume.sectors()).filter(|piece| piece.end.0 <= volume.sectors().0).step_by(5) {
        let mut bytes = vec![0x5a; piece.count().bytes().0 as usize];
        if volume.write(piece, &bytes).is_ok() {
            bytes.fill(0);
            volume.read(piece, &mut bytes).expect("what was written can be read");
            assert!(bytes.iter().all(|&byte| byte == 0x5a), "what was written is read");
        }
    }
    let _ = volume.close();
}
