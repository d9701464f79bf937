//! Reading chains of several depths.

use std::hint::black_box;
use std::time::Duration;

use benches::{PAGE, Random, layered, pages_with_data};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vhd_core::{Chain, ChainOptions, Sector, SectorCount, SectorRange};

const DEPTHS: [usize; 3] = [1, 8, 30];
const WRITES: usize = 60_000;
/// A sequential read goes through this much of the disk, in pieces of 1 MiB.
const SEQUENTIAL: SectorCount = SectorCount(128 << 11);
const PIECE: SectorCount = SectorCount(1 << 11);

fn read(criterion: &mut Criterion) {
    let folders = DEPTHS.map(|depth| (depth, testkit::scratch::folder()));
    let chains = folders.each_ref().map(|(depth, folder)| {
        let paths = layered(folder.path(), *depth, WRITES);
        (*depth, Chain::open(&paths[depth - 1], &ChainOptions::default()).expect("the chain was just made"))
    });

    let mut group = criterion.benchmark_group("read/sequential");
    group.sample_size(20).throughput(Throughput::Bytes(SEQUENTIAL.bytes().0));
    for (depth, chain) in &chains {
        let mut piece_bytes = vec![0; PIECE.bytes().0 as usize];
        group.bench_function(BenchmarkId::from_parameter(depth), |bencher| {
            bencher.iter(|| {
                for piece in SectorRange::new(Sector(0), SEQUENTIAL).split_at_multiples(PIECE) {
                    chain.read(piece, black_box(&mut piece_bytes)).expect("the chain is readable");
                }
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("read/random-4k-resolved");
    group.throughput(Throughput::Bytes(PAGE.bytes().0));
    for (depth, chain) in &chains {
        let pages = pages_with_data(chain).expect("the chain is readable");
        let mut buffer = vec![0; PAGE.bytes().0 as usize];
        for &page in &pages {
            chain.read(page, &mut buffer).expect("the chain is readable");
        }
        let mut random = Random::new(7);
        group.bench_function(BenchmarkId::from_parameter(depth), |bencher| {
            bencher.iter(|| chain.read(random.choose(&pages), black_box(&mut buffer)).expect("the chain is readable"));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().without_plots().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2));
    targets = read
}
criterion_main!(benches);
