//! Merging runs: from opening the images until all is durable.

use std::time::Duration;

use benches::{Shape, copy_sparse};
use coalesce_worker::{Coalesce, Direction, Request};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use testkit::worker;
use vhd_core::ChainOptions;

fn merge(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("merge");
    group.sample_size(10);
    for (name, shape, count) in [
        ("full-blocks", Shape::FullBlocks, 128),
        ("scattered-4k-new-blocks", Shape::ScatteredNew, 5_000),
        ("scattered-4k-existing-blocks", Shape::ScatteredExisting, 5_000),
        ("ten-levels", Shape::TenLevels, 2_000),
    ] {
        let folder = testkit::scratch::folder();
        let paths = shape.make(folder.path(), count);
        let (base, pristine) = (&paths[0], folder.path().join("pristine"));
        copy_sparse(base, &pristine);
        let request = Request {
            node: paths[paths.len() - 1].clone(),
            into: Some(base.clone()),
            direction: Direction::Down,
            keep: true,
        };
        let repository = worker::repository_of(&request.node, &ChainOptions::default());
        let prepare = || Coalesce::prepare(&repository, &request).expect("the run was just made");

        group.throughput(Throughput::Bytes(prepare().plan().data.0));
        group.bench_function(name, |bencher| {
            let merge = |()| worker::execute(prepare()).expect("the folder has room");
            bencher.iter_batched(|| copy_sparse(&pristine, base), merge, BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().without_plots().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(2));
    targets = merge
}
criterion_main!(benches);
