//! Random operations on a repository, against a plain byte vector for each volume.

use std::path::{Path, PathBuf};

use coalesce_worker::{Coalesce, CoalesceError, ComposeError, Direction, Ending, Request, RevertError};
use proptest::prelude::*;
use testkit::model::{Model, Start, read_all};
use testkit::{pattern, worker};
use vhd_core::{
    BlockSize, Chain, ChainOptions, Existing, Extents, Folder, Image, Lock, NewImage, NewKind, ParentLink, Sector,
    SectorCount, SectorRange, Source, create_file,
};

#[derive(Clone, Debug)]
enum Operation {
    Create { shape: u8, block: u8, sectors: u64 },
    Write { volume: usize, start: u64, count: u64, flush: bool },
    Trim { volume: usize, start: u64, count: u64 },
    WriteAndCrash { volume: usize, start: u64, count: u64, flush: bool },
    Resize { volume: usize, sectors: u64 },
    Snapshot { volume: usize },
    Delete { volume: usize },
    Revert { volume: usize, snapshot: usize },
    Compose { child: usize, parent: usize },
    Coalesce { node: usize, depth: usize, keep: bool, up: bool },
    Reparent { volume: usize, block: u8 },
}

fn operation() -> impl Strategy<Value = Operation> {
    let volume = || 0..100_usize;
    let start = || 0..700_u64;
    let count = || prop_oneof![1..10_u64, 1..200_u64];
    prop_oneof![
        1 => (0..3_u8, 0..4_u8, 1..600_u64).prop_map(|(shape, block, sectors)| Operation::Create { shape, block, sectors }),
        6 => (volume(), start(), count(), any::<bool>())
            .prop_map(|(volume, start, count, flush)| Operation::Write { volume, start, count, flush }),
        2 => (volume(), start(), count()).prop_map(|(volume, start, count)| Operation::Trim { volume, start, count }),
        1 => (volume(), start(), count(), any::<bool>())
            .prop_map(|(volume, start, count, flush)| Operation::WriteAndCrash { volume, start, count, flush }),
        2 => (volume(), 1..800_u64).prop_map(|(volume, sectors)| Operation::Resize { volume, sectors }),
        3 => volume().prop_map(|volume| Operation::Snapshot { volume }),
        1 => volume().prop_map(|volume| Operation::Delete { volume }),
        1 => (volume(), volume()).prop_map(|(volume, snapshot)| Operation::Revert { volume, snapshot }),
        2 => (volume(), volume()).prop_map(|(child, parent)| Operation::Compose { child, parent }),
        4 => (volume(), 0..4_usize, prop::bool::weighted(0.2), any::<bool>())
            .prop_map(|(node, depth, keep, up)| Operation::Coalesce { node, depth, keep: keep && !up, up }),
        1 => (volume(), 0..4_u8).prop_map(|(volume, block)| Operation::Reparent { volume, block }),
    ]
}

fn block_size(choice: u8) -> BlockSize {
    BlockSize::new(4096 << choice).unwrap()
}

fn clamp(start: u64, count: u64, sectors: u64) -> SectorRange {
    let start = start % sectors;
    SectorRange::new(Sector(start), SectorCount(count.min(sectors - start)))
}

fn bytes(range: SectorRange) -> std::ops::Range<usize> {
    range.start.byte_offset() as usize..range.end.byte_offset() as usize
}

fn apply(repository: &mut Model, operation: &Operation, tag: u16) {
    let volume = |number: usize, repository: &Model| repository.pick(number);
    match *operation {
        Operation::Create { shape, block, sectors } => {
            let block = block_size(block);
            let start = [Start::Fixed, Start::Dynamic(block), Start::OnRaw(block)][usize::from(shape)];
            repository.create(start, sectors);
        }
        Operation::Write { volume: number, start, count, flush } => {
            let Some(path) = volume(number, repository) else { return };
            let range = clamp(start, count, repository.sectors(&path));
            repository.change(&path, |open, content| {
                let data = pattern::fill(range, tag);
                open.write(range, &data).unwrap();
                content[bytes(range)].copy_from_slice(&data);
                if flush {
                    open.flush().unwrap();
                }
                let mut read = vec![0; data.len()];
                open.read(range, &mut read).unwrap();
                assert_eq!(read, data, "a write reads back at once");
            });
        }
        Operation::Trim { volume: number, start, count } => {
            let Some(path) = volume(number, repository) else { return };
            let range = clamp(start, count, repository.sectors(&path));
            repository.change(&path, |open, content| {
                open.trim(range).unwrap();
                content[bytes(range)].fill(0);
            });
        }
        Operation::WriteAndCrash { volume: number, start, count, flush } => {
            let Some(path) = volume(number, repository) else { return };
            let range = clamp(start, count, repository.sectors(&path));
            let open = repository.open(&path);
            let data = pattern::fill(range, tag);
            open.write(range, &data).unwrap();
            let mut new = repository.content(&path).to_vec();
            new[bytes(range)].copy_from_slice(&data);
            if flush {
                open.flush().unwrap();
            }
            drop(open);
            repository.settle(&path, &new);
            assert!(!flush || repository.content(&path) == new, "a flushed write survives");
            // The end footer may be gone; the next write to the volume brings it back.
            let first = SectorRange::new(Sector(0), SectorCount(1));
            repository.change(&path, |open, content| open.write(first, &content[..512]).unwrap());
        }
        Operation::Resize { volume: number, sectors } => {
            let Some(path) = volume(number, repository) else { return };
            repository.resize(&path, sectors);
        }
        Operation::Snapshot { volume: number } => {
            let Some(path) = volume(number, repository) else { return };
            repository.snapshot(&path);
        }
        Operation::Delete { volume: number } => {
            let Some(path) = volume(number, repository).filter(|_| repository.volumes().len() > 2) else { return };
            repository.delete(&path);
        }
        Operation::Revert { volume: number, snapshot } => {
            let Some((path, snapshot)) = volume(number, repository).zip(volume(snapshot, repository)) else { return };
            match worker::repository_of(&path, &ChainOptions::default()).revert(&path, &snapshot) {
                Ok(_) => repository.expect(&path, repository.content(&snapshot).to_vec()),
                Err(error) => assert!(matches!(error, RevertError::Itself { .. }) && path == snapshot, "{error}"),
            }
        }
        Operation::Compose { child, parent } => {
            let Some((child, parent)) = volume(child, repository).zip(volume(parent, repository)) else { return };
            compose(repository, &child, &parent);
        }
        Operation::Coalesce { node, depth, keep, up } => coalesce(repository, node, depth, keep, up),
        Operation::Reparent { volume: number, block } => {
            let Some(path) = volume(number, repository) else { return };
            reparent(repository, &path, block_size(block));
        }
    }
}

/// Makes a volume a child of another, or finds that this is refused and for a good reason.
fn compose(repository: &mut Model, child: &Path, parent: &Path) {
    let held = held(child);
    match worker::repository_of(child, &ChainOptions::default()).compose(child, parent) {
        Ok(()) => {
            let mut content = repository.content(parent).to_vec();
            let own = repository.content(child);
            content.resize(own.len(), 0);
            for at in held.into_iter().map(bytes) {
                content[at.clone()].copy_from_slice(&own[at]);
            }
            repository.expect(child, content);
            repository.forget(parent);
        }
        Err(ComposeError::Cycle { .. }) => assert_eq!(child, parent),
        Err(ComposeError::Smaller { .. }) => assert!(repository.sectors(child) < repository.sectors(parent)),
        Err(ComposeError::Fixed { .. }) => assert!(Image::open(child, Lock::None).unwrap().header().is_none()),
        Err(error) => panic!("{error}"),
    }
}

/// The sectors that an image holds itself.
fn held(image: &Path) -> Vec<SectorRange> {
    let image = Image::open(image, Lock::None).unwrap();
    let mut extents = Extents::default();
    image.resolve(SectorRange::new(Sector(0), image.sectors()), &mut extents).unwrap();
    let held = extents.as_slice().iter().filter(|extent| matches!(extent.source, Source::Data(_)));
    held.map(|extent| extent.sectors).collect()
}

/// Merges some node of the folder into some ancestor, or finds that this is refused and for a good reason.
fn coalesce(repository: &mut Model, number: usize, depth: usize, keep: bool, up: bool) {
    let forest = Folder::scan(repository.path(), vhd_core::Files::Images).unwrap();
    let nodes: Vec<_> = forest.nodes().filter(|(_, node)| node.parent.is_some()).map(|(id, _)| id).collect();
    if nodes.is_empty() {
        return;
    }
    let node = nodes[number % nodes.len()];
    let mut into = forest.parent(node).unwrap();
    for _ in 0..depth {
        into = forest.parent(into).unwrap_or(into);
    }
    let (node_path, into_path) = (forest.node(node).path.clone(), forest.node(into).path.clone());
    let direction = if up { Direction::Up } else { Direction::Down };
    let request = Request { node: node_path.clone(), into: Some(into_path.clone()), direction, keep };
    let opened = worker::repository_of(&node_path, &ChainOptions::default());
    let prepared = match Coalesce::prepare(&opened, &request) {
        Ok(prepared) => prepared,
        Err(CoalesceError::OtherChild { .. }) => {
            let mut run = std::iter::successors(forest.parent(node), |&id| (id != into).then(|| forest.parent(id))?);
            assert!(run.any(|id| forest.children(id).len() > 1), "refused without another child");
            return;
        }
        Err(CoalesceError::RawTarget { .. } | CoalesceError::FlatSource { .. }) => return,
        Err(error) => panic!("{error}"),
    };
    let (ending, planned) = (prepared.ending().clone(), prepared.plan().data);
    let moved_last = std::sync::atomic::AtomicU64::new(0);
    let progress = |moved: vhd_core::ByteCount| {
        moved_last.fetch_max(moved.0, std::sync::atomic::Ordering::Relaxed);
    };
    let outcome = worker::with_options(&progress, |options| prepared.execute(options)).unwrap();
    assert_eq!(outcome.moved.data, planned);
    assert_eq!(moved_last.into_inner(), planned.0);
    match ending {
        Ending::Keep => assert!(outcome.deleted.is_empty()),
        Ending::Relink(children) => {
            assert_eq!(outcome.relinked, children);
            repository.forget(&node_path);
        }
        Ending::TakeName | Ending::Stand => assert!(node_path.exists() && !into_path.exists()),
    }
    assert!(outcome.deleted.iter().all(|path| !path.exists()));
}

/// Puts a flat copy of a volume's parent in the place of that parent.
fn reparent(repository: &mut Model, volume: &Path, block_size: BlockSize) {
    let open = repository.open(volume);
    let Some(parents) = open.parents() else { return };
    let (size, content) = (parents.size(), read_all(parents));
    let copy: PathBuf = repository.new_path("vhd");
    let new = NewImage { hidden: true, ..NewImage::new(size, NewKind::Dynamic { block_size }) };
    create_file(&copy, &new, Existing::Keep).unwrap();
    let base = Image::open_writable(&copy).unwrap();
    base.write(SectorRange::new(Sector(0), size.whole_sectors()), &content).unwrap();
    base.close().unwrap();
    open.close().unwrap();
    let mut child = Image::open_writable(volume).unwrap();
    child.relink(&ParentLink::new(repository.path(), &copy, new.unique_id).unwrap()).unwrap();
    child.close().unwrap();
    let chain = Chain::open(volume, &ChainOptions::default()).unwrap();
    assert_eq!(chain.layers().len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_volume_reads_as_the_model(
        first in (0..3_u8, 0..4_u8, 1..600_u64),
        operations in prop::collection::vec(operation(), 1..24),
    ) {
        let mut repository = Model::default();
        let (shape, block, sectors) = first;
        apply(&mut repository, &Operation::Create { shape, block, sectors }, 0);
        for (tag, operation) in (1..).zip(&operations) {
            apply(&mut repository, operation, tag);
            repository.verify();
        }
    }
}
