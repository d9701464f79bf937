//! Operation N fails, for every N: an error, and nothing that was flushed is lost.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use testkit::fault::FaultStorage;
use testkit::pattern;
use vhd_core::check::{self, Severity};
use vhd_core::{
    BlockSize, Chain, Container, Image, Layer, MemoryStorage, NewKind, ParentLink, ReadWrite, SectorRange, Timestamp,
    WriteError,
};

use super::{container, new_image, open, sectors};

/// Writes in rounds, each ended by a flush. Gives the rounds that were flushed and whether all went well.
fn work(image: &Image<ReadWrite>) -> (u16, Result<(), WriteError>) {
    for round in 0..4 {
        let result = (|| {
            for range in ranges(round) {
                image.write(range, &pattern::fill(range, round + 1))?;
            }
            image.flush()
        })();
        if result.is_err() {
            return (round, result);
        }
    }
    (4, Ok(()))
}

fn ranges(round: u16) -> [SectorRange; 3] {
    let round = u64::from(round);
    [sectors(round * 5, 16), sectors(100 + round * 40, 8), sectors(60, 3 + round)]
}

/// What an image stands on, before a fault: nothing, or a parent with content throughout.
const BENEATH: u16 = 50;

fn fresh() -> Arc<MemoryStorage> {
    new_image(1 << 20, NewKind::Dynamic { block_size: BlockSize::new(4096).unwrap() })
}

fn full_parent() -> Arc<MemoryStorage> {
    let memory = fresh();
    let image = super::open_writable(&memory);
    image.write(sectors(0, 300), &pattern::fill(sectors(0, 300), BENEATH)).unwrap();
    image.close().unwrap();
    memory
}

fn fresh_on(parent: Option<&Arc<MemoryStorage>>) -> Arc<MemoryStorage> {
    let Some(parent) = parent else { return fresh() };
    let unique_id = open(parent).footer().unique_id();
    let parent = ParentLink::to_named(Path::new("parent.vhd"), unique_id, Timestamp::now()).unwrap();
    new_image(1 << 20, NewKind::Differencing { block_size: BlockSize::new(4096).unwrap(), parent })
}

/// Each sector as some round up to `round`, which need not have been flushed, left it; and at least as new as `flushed`.
fn check_content(
    memory: &Arc<MemoryStorage>,
    parent: Option<&Arc<MemoryStorage>>,
    flushed: u16,
    round: u16,
    context: &str,
) {
    let layers = [Some(memory), parent].into_iter().flatten();
    let chain = Chain::from_layers(layers.map(|memory| Layer::Vhd(Box::new(open(memory)))).collect());
    for sector in 0..300 {
        let range = sectors(sector, 1);
        let mut found = [0; 512];
        chain.read(range, &mut found).unwrap();
        let writers = (0..=round).filter(|&r| ranges(r).iter().any(|w| w.start <= range.start && range.end <= w.end));
        let writers: Vec<u16> = writers.collect();
        let newest_flushed = writers.iter().copied().filter(|&r| r < flushed).max();
        let mut allowed =
            writers.into_iter().filter(|&r| Some(r) >= newest_flushed).map(|r| pattern::sector(range.start, r + 1));
        let beneath = parent.map_or([0; 512], |_| pattern::sector(range.start, BENEATH));
        let old = newest_flushed.is_none() && found == beneath;
        assert!(old || allowed.any(|content| content == found), "{context}: sector {sector}");
    }
}

fn run(kind: ErrorKind, faults: u64) {
    run_on(None, kind, faults);
    run_on(Some(&full_parent()), kind, faults);
}

fn run_on(parent: Option<&Arc<MemoryStorage>>, kind: ErrorKind, faults: u64) {
    let mut first = 0;
    loop {
        let memory = fresh_on(parent);
        let storage = Arc::new(FaultStorage::new(memory.clone(), first, faults, kind));
        let image = Image::writable_from_container(Container::new("faulty.vhd", storage.clone())).unwrap();
        let (flushed, result) = work(&image);
        let context = format!("{kind}, {faults} faults from operation {first}");
        if result.is_ok() {
            assert!(storage.operations() <= first, "{context}: a fault went unnoticed");
            return;
        }
        let again = image.write(sectors(0, 1), &[0; 512]);
        assert!(matches!(again, Err(WriteError::Failed { .. })), "{context}: writes go on");
        drop(image.close());
        check_content(&memory, parent, flushed, flushed, &context);

        // Once the fault is gone, the same work succeeds and the file is whole.
        let image = super::open_writable(&memory);
        work(&image).1.unwrap();
        image.close().unwrap();
        check_content(&memory, parent, 4, 3, &context);
        // A batmap torn by the fault is found out and rebuilt when the next block fills up; nobody misreads it until then.
        let report = check::container(container(&memory)).unwrap();
        let bad = |finding: &&check::Finding| finding.severity > Severity::Info && finding.code != "batmap-checksum";
        assert_eq!(report.findings().iter().find(bad), None, "{context}");
        first += 1;
    }
}

#[test]
fn one_failed_operation() {
    run(ErrorKind::Other, 1);
    run(ErrorKind::StorageFull, 1);
}

#[test]
fn all_operations_fail_from_some_point_on() {
    run(ErrorKind::Other, u64::MAX);
    run(ErrorKind::StorageFull, u64::MAX);
}

/// A disk that fills up between flushes leaves the image with its end footer where it was.
#[test]
fn a_full_disk_does_not_cost_the_footer() {
    let memory = fresh();
    let image = super::open_writable(&memory);
    image.write(sectors(0, 8), &pattern::fill(sectors(0, 8), 1)).unwrap();
    image.close().unwrap();
    let before = memory.to_vec();
    // The length can still change; nothing can be written any more.
    let storage = Arc::new(FaultStorage::new(memory.clone(), 1, 2, ErrorKind::StorageFull));
    let image = Image::writable_from_container(Container::new("full.vhd", storage)).unwrap();
    image.write(sectors(64, 8), &[7; 4096]).unwrap_err();
    image.close().unwrap_err();
    assert!(memory.to_vec() == before);
}

#[test]
fn metadata_that_could_not_be_written_is_not_taken_for_written() {
    for first in 0..3 {
        let memory = fresh();
        let storage = Arc::new(FaultStorage::new(memory.clone(), first, 1, ErrorKind::Other));
        let mut image = Image::writable_from_container(Container::new("faulty.vhd", storage)).unwrap();
        image.set_hidden(true).unwrap_err();
        image.set_hidden(true).unwrap_err();
        drop(image);
        let mut image = super::open_writable(&memory);
        image.set_hidden(true).unwrap();
        assert!(open(&memory).footer().hidden());
    }
}
