//! A journal that somebody else may have written.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use coalesce_worker::Repository;
use crc::{CRC_32_ISO_HDLC, Crc};
use vhd_core::{
    BlockSize, ByteCount, ChainOptions, Container, Image, MemoryStorage, NewImage, NewKind, ParentLink, Sector,
    SectorCount, SectorRange, Timestamp, Uuid, create,
};

use super::place::Place;
use crate::pattern;

const MAGIC: &[u8] = b"vhdjrnl1";
/// The name of the journal.
pub(super) const NAME: &str = "00000000-0000-0000-0000-0000000000aa.journal";

/// Opens a repository that holds the bytes as a journal, as they are or, where they do not begin like one, as the records of
/// one, a line each; twice, as the second opening finds what the first has left.
///
/// # Panics
/// Where anything outside the repository changes.
pub fn journal(data: &[u8]) {
    let place = Place::new(&[("outside.vhd", &image("outside.vhd"))]);
    let folder = place.inside();
    furnish(&folder);
    let bytes = if data.starts_with(MAGIC) { data.to_vec() } else { framed(data) };
    fs::write(folder.join(".vhd").join(NAME), bytes).expect("the folder is ours");
    for _ in 0..2 {
        let Ok((repository, recovered)) = Repository::open(&folder, ChainOptions::default()) else { break };
        let texts = recovered.waiting.iter().map(|waiting| format!("{} {}", waiting.path.display(), waiting.reason));
        let _ = (texts.count(), repository.is_merged_from(&folder.join("leaf.vhd")));
    }
    place.check();
}

/// Makes a journal of records, a line of JSON each.
pub fn framed(lines: &[u8]) -> Vec<u8> {
    let crc = Crc::<u32>::new(&CRC_32_ISO_HDLC);
    let mut bytes = MAGIC.to_vec();
    for line in lines.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let length = (line.len() as u32).to_be_bytes();
        let mut digest = crc.digest();
        digest.update(&length);
        digest.update(line);
        bytes.extend([&length[..], &digest.finalize().to_be_bytes(), line].concat());
    }
    bytes
}

/// Fills a folder with a chain of three images, children that wait for their names, and links that lead outside.
pub(super) fn furnish(folder: &Path) {
    fs::create_dir(folder.join(".vhd")).expect("the folder is ours");
    for name in ["base.vhd", "mid.vhd", "leaf.vhd", ".vhd/new.vhd", ".vhd/twin.vhd"] {
        fs::write(folder.join(name), image(name)).expect("the folder is ours");
    }
    let linked = symlink("../outside/outside.vhd", folder.join("link.vhd"));
    linked.and_then(|()| symlink("../outside", folder.join("out"))).expect("the folder is ours");
}

/// One of the images: its name says which.
fn image(name: &str) -> Vec<u8> {
    static IMAGES: OnceLock<Vec<(&str, Vec<u8>)>> = OnceLock::new();
    let images = IMAGES.get_or_init(|| {
        vec![
            ("base.vhd", made(1, None, true)),
            ("mid.vhd", made(2, Some(("base.vhd", 1)), true)),
            ("leaf.vhd", made(3, Some(("mid.vhd", 2)), false)),
            (".vhd/new.vhd", made(4, Some(("leaf.vhd", 3)), false)),
            (".vhd/twin.vhd", made(5, Some(("leaf.vhd", 3)), false)),
            ("outside.vhd", made(6, None, true)),
        ]
    });
    images.iter().find(|(known, _)| *known == name).map(|(_, bytes)| bytes.clone()).expect("one of the names")
}

/// A small image whose unique id is a number, with something written to it.
fn made(number: u128, parent: Option<(&str, u128)>, hidden: bool) -> Vec<u8> {
    let block_size = BlockSize::new(4096).expect("a power of two");
    let kind = match parent {
        None => NewKind::Dynamic { block_size },
        Some((name, number)) => {
            let link = ParentLink::to_named(name.as_ref(), Uuid::from_u128(number), Timestamp(0));
            NewKind::Differencing { block_size, parent: link.expect("a plain name") }
        }
    };
    let memory = Arc::new(MemoryStorage::default());
    let container = Container::new("made.vhd", memory.clone());
    let new = NewImage { unique_id: Uuid::from_u128(number), hidden, ..NewImage::new(ByteCount(32 << 10), kind) };
    create(&container, &new).expect("it fits");
    let image = Image::writable_from_container(container).expect("our own image opens");
    let range = SectorRange::new(Sector(number as u64 * 4), SectorCount(9));
    image.write(range, &pattern::fill(range, number as u16)).expect("memory does not fail");
    image.close().expect("memory does not fail");
    memory.to_vec()
}
