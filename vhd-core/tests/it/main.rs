//! Tests of the public interface; one file per kind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod astray;
mod compact;
mod create;
mod device;
mod fault;
mod findings;
mod golden;
mod hostile;
mod in_use;
mod interop;
mod layout;
mod link;
mod matrix;
mod power;
mod repair;
mod resize;
mod short;
mod states;
mod storage;
mod write;

use std::sync::Arc;

use vhd_core::{
    ByteCount, Container, Image, MemoryStorage, NewImage, NewKind, ReadOnly, ReadWrite, Sector, SectorCount,
    SectorRange,
};

/// Names bytes in memory as an image.
fn container(memory: &Arc<MemoryStorage>) -> Container {
    Container::new("memory.vhd", memory.clone())
}

fn new_image(size: u64, kind: NewKind) -> Arc<MemoryStorage> {
    let memory = Arc::new(MemoryStorage::default());
    vhd_core::create(&container(&memory), &NewImage::new(ByteCount(size), kind)).unwrap();
    memory
}

fn open(memory: &Arc<MemoryStorage>) -> Image<ReadOnly> {
    Image::from_container(container(memory)).unwrap()
}

fn open_writable(memory: &Arc<MemoryStorage>) -> Image<ReadWrite> {
    Image::writable_from_container(container(memory)).unwrap()
}

fn sectors(start: u64, count: u64) -> SectorRange {
    SectorRange::new(Sector(start), SectorCount(count))
}
