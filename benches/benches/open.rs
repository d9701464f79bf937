//! Opening and checking the largest images, and listing many.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use benches::{Shape, create_base, create_child, resident};
use criterion::{Criterion, criterion_group, criterion_main};
use vhd_core::{ByteCount, Chain, ChainOptions, FOOTER_SIZE, Folder, Image, Lock, MAX_VIRTUAL_SIZE, Volume};

const DEPTH: usize = 30;
const FILES: usize = 10_000;
/// The depth of the chains in a folder.
const TREE: usize = 10;

fn chain(path: &Path) -> Chain {
    Chain::open(path, &ChainOptions::default()).expect("the chain was just made")
}

fn open(criterion: &mut Criterion) {
    let folder = testkit::scratch::folder();
    let paths = Shape::Largest.make(folder.path(), DEPTH);
    let (base, leaf) = (&paths[0], &paths[DEPTH - 1]);

    let before = resident();
    let opened = black_box(chain(leaf));
    let grown = resident().0.saturating_sub(before.0);
    drop(opened);
    println!("memory of a chain of {DEPTH} images of 2040 GiB: {grown} bytes resident");

    let mut group = criterion.benchmark_group("open/2040-gib");
    group.bench_function("image", |bencher| bencher.iter(|| Image::open(base, Lock::None).expect("it was just made")));
    group.bench_function("chain-of-30", |bencher| bencher.iter(|| chain(leaf)));
    group.bench_function("volume-on-29", |bencher| {
        bencher.iter(|| Volume::open(leaf, &ChainOptions::default()).expect("nobody else has the volume open"));
    });
    group.finish();
}

fn scan(criterion: &mut Criterion) {
    let folder = testkit::scratch::folder();
    let path = |number: usize| folder.path().join(format!("{number:05}.vhd"));
    for number in 0..FILES {
        if number % TREE == 0 {
            create_base(&path(number), ByteCount(1 << 30));
        } else {
            create_child(&path(number), &path(number - 1));
        }
    }
    let mut group = criterion.benchmark_group("scan");
    group.sample_size(10).bench_function("10000-files", |bencher| {
        bencher.iter(|| {
            let folder = Folder::scan(folder.path(), vhd_core::Files::Images).expect("the folder is readable");
            assert_eq!(folder.nodes().count(), FILES);
        });
    });
    group.finish();
}

/// Makes an image of 2040 GiB with every block allocated; the file is one large hole.
fn full_image(path: &Path) -> std::io::Result<()> {
    create_base(path, MAX_VIRTUAL_SIZE);
    let image = Image::open(path, Lock::None).expect("it was just made");
    let header = image.header().expect("a dynamic image has one");
    let (table, entries) = (header.table_offset().0, header.max_table_entries());
    let file = File::options().read(true).write(true).open(path)?;
    let end = file.metadata()?.len() - FOOTER_SIZE.0;
    let mut footer = [0; FOOTER_SIZE.0 as usize];
    file.read_exact_at(&mut footer, end)?;
    let stride = (header.block_size().bytes() + ByteCount(4096)).0;
    let first = (end + 512).next_multiple_of(4096) - 512;
    let bat = (0..u64::from(entries)).flat_map(|block| (((first + block * stride) / 512) as u32).to_be_bytes());
    file.write_all_at(&bat.collect::<Vec<u8>>(), table)?;
    file.write_all_at(&[0; FOOTER_SIZE.0 as usize], end)?;
    file.write_all_at(&footer, first + u64::from(entries) * stride)
}

fn check(criterion: &mut Criterion) {
    let folder = testkit::scratch::folder();
    let path = folder.path().join("full.vhd");
    full_image(&path).expect("the folder has room");
    let mut group = criterion.benchmark_group("check/2040-gib");
    group.sample_size(10).bench_function("every-block", |bencher| {
        bencher.iter(|| {
            let report = vhd_core::check::file(&path).expect("it can be read");
            assert_eq!(report.findings(), []);
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().without_plots().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2));
    targets = open, scan, check
}
criterion_main!(benches);
