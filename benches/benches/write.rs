//! Random writes into a volume.

use std::time::Duration;

use benches::{PAGE, Random, create_base, scattered, write_random};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use vhd_core::{BlockIndex, BlockSize, ByteCount, ChainOptions, Sector, SectorRange, Volume};

const DISK: ByteCount = ByteCount(2 << 30);
/// Writes before each flush.
const WRITES: u64 = 64;

fn write(criterion: &mut Criterion) {
    let folder = testkit::scratch::folder();
    let open = |path| Volume::open(path, &ChainOptions::default()).expect("nobody else has the volume open");
    let mut group = criterion.benchmark_group("write/random-4k-and-flush");
    group.throughput(Throughput::Elements(WRITES));
    let page = vec![0x5a; PAGE.bytes().0 as usize];

    let existing = folder.path().join("existing.vhd");
    create_base(&existing, DISK);
    write_random(&existing, &scattered(DISK, 20_000, 1), 1);
    let volume = open(&existing);
    let mut random = Random::new(7);
    let pages = volume.sectors().0 / PAGE.0;
    group.bench_function("existing-blocks", |bencher| {
        bencher.iter(|| {
            for _ in 0..WRITES {
                let range = SectorRange::new(Sector(random.below(pages) * PAGE.0), PAGE);
                volume.write(range, &page).expect("the folder has room");
            }
            volume.flush().expect("the folder has room");
        });
    });

    let new = folder.path().join("new.vhd");
    group.sample_size(20).bench_function("new-blocks", |bencher| {
        let fresh = || {
            create_base(&new, DISK);
            open(&new)
        };
        let fill = |volume: Volume| {
            for number in 0..WRITES {
                let block = BlockIndex((number * 37 % 1024) as u32);
                let range = SectorRange::new(BlockSize::DEFAULT.sectors_of(block).start, PAGE);
                volume.write(range, &page).expect("the folder has room");
            }
            volume.flush().expect("the folder has room");
            volume
        };
        bencher.iter_batched(fresh, fill, BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().without_plots().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2));
    targets = write
}
criterion_main!(benches);
