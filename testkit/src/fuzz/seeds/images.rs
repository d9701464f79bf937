//! Records, images and chains.

use std::path::Path;
use std::sync::Arc;

use vhd_core::{
    BlockIndex, BlockSize, ByteCount, Container, Image, MemoryStorage, NewImage, NewKind, ParentLink, Sector,
    SectorCount, SectorRange, Timestamp, Uuid, create,
};

use super::Seed;
use crate::fuzz::input::counted;
use crate::{golden, pattern};

/// What is kept of the start of a golden image.
const KEPT: usize = 6 << 10;

/// A golden image cut short, with its last footer at the end.
fn cut(name: &str) -> Vec<u8> {
    let mut bytes = golden::bytes(name);
    if bytes.len() > KEPT + 512 {
        let footer = bytes.split_off(bytes.len() - 512);
        bytes.truncate(KEPT);
        bytes.extend(footer);
    }
    bytes
}

fn golden_names() -> Vec<String> {
    let names = golden::manifest().into_iter().map(|image| image.file);
    names.filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "vhd")).collect()
}

pub(super) fn footers() -> Vec<Seed> {
    let mut found: Vec<Seed> = Vec::new();
    for name in golden_names() {
        let bytes = golden::bytes(&name);
        let footer = bytes[bytes.len() - 512..].to_vec();
        if footer.starts_with(b"conectix") && !found.iter().any(|(_, _, known)| *known == footer) {
            found.push(("footer", name, footer));
        }
    }
    found
}

pub(super) fn headers() -> Vec<Seed> {
    let mut found: Vec<Seed> = Vec::new();
    for name in golden_names() {
        let bytes = golden::bytes(&name);
        let header = bytes[512..bytes.len().min(KEPT)].to_vec();
        if header.starts_with(b"cxsparse") && !found.iter().any(|(_, _, known)| *known == header) {
            found.push(("header", name, header));
        }
    }
    for (name, parent) in [("up", "../outside/secret.img"), ("far-up", "../../../../../../etc/passwd")] {
        let child = differencing(Path::new(parent), 0, 2).finish();
        found.push(("header", name.into(), child[512..].to_vec()));
    }
    found
}

pub(super) fn images() -> Vec<Seed> {
    let mut found: Vec<Seed> = golden_names().into_iter().map(|name| ("image", name.clone(), cut(&name))).collect();
    let small = BlockSize::new(4096).expect("a power of two");
    let medium = BlockSize::new(16 << 10).expect("a power of two");
    let dynamic = |block_size| Made::new(64 << 10, NewKind::Dynamic { block_size }, 1);
    let child = differencing(Path::new("b.vhd"), 2, 1);
    let mut own = vec![
        ("empty", dynamic(small).finish()),
        ("written", dynamic(small).write(0, 9).write(40, 20).write(120, 8).finish()),
        ("larger-blocks", dynamic(medium).write(30, 5).write(127, 1).finish()),
        ("fixed", Made::new(8 << 10, NewKind::Fixed, 1).write(3, 9).finish()),
        ("child", child.write(7, 20).finish()),
        ("released", dynamic(small).write(0, 64).release(3).finish()),
        ("grown", dynamic(small).write(0, 9).grow(9 << 20).finish()),
        ("not-closed", dynamic(small).write(0, 9).flush().write(40, 9).drop()),
    ];
    own.push(("no-footer", own[1].1[..own[1].1.len() - 512].to_vec()));
    found.extend(own.into_iter().map(|(name, bytes)| ("image", name.into(), bytes)));
    found
}

pub(super) fn chains() -> Vec<Seed> {
    let base = Made::new(64 << 10, NewKind::Dynamic { block_size: BlockSize::new(4096).expect("a power of two") }, 3);
    let base = base.write(0, 20).finish();
    let on =
        |parent: &str, of: u128, own: u128| differencing(Path::new(parent), of, own).write(own as u64 * 5, 4).finish();
    let raw = pattern::fill(SectorRange::new(Sector(0), SectorCount(8)), 9);
    let (top, middle) = (on("b.vhd", 2, 1), on("c.vhd", 3, 2));
    let chain = |name: &str, files: [&[u8]; 3]| ("chain", name.to_owned(), [&[0], &counted(&files)[..], &raw].concat());
    vec![
        chain("three", [&top, &middle, &base]),
        chain("on-raw", [&top, &middle, &on("d.img", 0, 3)]),
        chain("cycle", [&top, &middle, &on("a.vhd", 1, 3)]),
        chain("itself", [&on("a.vhd", 1, 1), &on("b.vhd", 1, 2), &base]),
        chain("wrong-id", [&on("b.vhd", 7, 1), &on("c.vhd", 2, 2), &base]),
        chain("secret", [&on("../outside/secret.img", 0, 1), &on("../inside/a.vhd", 1, 2), &base]),
        chain("passwd", [&on("../../../../etc/passwd", 0, 1), &on("../../../../dev/zero", 0, 2), &base]),
        chain("folder", [&on("../inside", 0, 1), &on("c.vhd", 3, 2), &base]),
        chain("vhd-as-raw", [&on("c.vhd", 0, 1), &on("missing.vhd", 3, 2), &base]),
    ]
}

/// An image that is being made.
struct Made {
    memory: Arc<MemoryStorage>,
    image: Image<vhd_core::ReadWrite>,
}

fn differencing(parent: &Path, of: u128, own: u128) -> Made {
    let block_size = BlockSize::new(4096).expect("a power of two");
    let parent = ParentLink::to_named(parent, Uuid::from_u128(of), Timestamp(0)).expect("a plain name");
    Made::new(64 << 10, NewKind::Differencing { block_size, parent }, own)
}

fn open(memory: &Arc<MemoryStorage>) -> Image<vhd_core::ReadWrite> {
    Image::writable_from_container(Container::new("made.vhd", memory.clone())).expect("our own image opens")
}

impl Made {
    fn new(size: u64, kind: NewKind, id: u128) -> Self {
        let memory = Arc::new(MemoryStorage::default());
        let new = NewImage {
            unique_id: Uuid::from_u128(id),
            timestamp: Timestamp(0),
            ..NewImage::new(ByteCount(size), kind)
        };
        create(&Container::new("made.vhd", memory.clone()), &new).expect("it fits");
        Self { image: open(&memory), memory }
    }

    fn write(self, start: u64, count: u64) -> Self {
        let range = SectorRange::new(Sector(start), SectorCount(count));
        self.image.write(range, &pattern::fill(range, 3)).expect("memory does not fail");
        self
    }

    fn flush(self) -> Self {
        self.image.flush().expect("memory does not fail");
        self
    }

    fn grow(mut self, size: u64) -> Self {
        self.image.set_size(ByteCount(size), ByteCount(0)).expect("memory does not fail");
        self
    }

    fn release(mut self, block: u32) -> Self {
        self.image.release(&[BlockIndex(block)]).expect("memory does not fail");
        self
    }

    fn finish(self) -> Vec<u8> {
        self.image.close().expect("memory does not fail");
        self.memory.to_vec()
    }

    /// Leaves it as a process that dies does.
    fn drop(self) -> Vec<u8> {
        drop(self.image);
        self.memory.to_vec()
    }
}
