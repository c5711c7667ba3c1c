//! What things cost as that grows which might make them dearer, in time: the curves that `qcow2-core/tests/cost.rs` counts and judges.
//! One element is one table, one cluster or one request; a row of figures that stays level says that the cost is in proportion.

use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use qcow2_core::blocking::{Image, check, create};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::{CreateOptions, OpenOptions, Repair};

/// A new image whose cache holds so many pages.
fn image(cluster_bits: u32, size: u64, pages: usize) -> Image<MemoryStorage> {
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(size).cluster_bits(cluster_bits)).expect("there is room");
    let options = OpenOptions::new().cache_pages(pages);
    Image::open(storage, options).expect("it was just made")
}

/// The same, with so many clusters of 512 bytes in use.
fn filled(clusters: u64) -> Image<MemoryStorage> {
    let image = image(9, clusters * 512, 10_000);
    let piece = vec![1; 64 << 10];
    for at in (0..clusters * 512).step_by(piece.len()) {
        let len = piece.len().min(usize::try_from(clusters * 512 - at).expect("it is small"));
        image.write(at, &piece[..len]).expect("there is room");
    }
    image.flush().expect("nothing fails");
    image
}

/// Times `run` on what `prepare` makes of each size.
fn curve<T>(
    criterion: &mut Criterion,
    name: &str,
    sizes: &[u64],
    elements: impl Fn(u64) -> u64,
    prepare: impl Fn(u64) -> T,
    run: impl Fn(&mut T, u64),
) {
    let mut group = criterion.benchmark_group(name);
    group.sample_size(10).warm_up_time(Duration::from_millis(200));
    group.measurement_time(Duration::from_secs(1));
    for &size in sizes {
        group.throughput(Throughput::Elements(elements(size)));
        group.bench_function(BenchmarkId::from_parameter(size), |b| {
            b.iter_batched_ref(
                || prepare(size),
                |target| run(target, size),
                BatchSize::PerIteration,
            );
        });
    }
}

fn flush(criterion: &mut Criterion) {
    // Clusters of 4 KiB: one page is a table, which maps 2 MiB.
    let dirty = |tables: u64| {
        let image = image(12, tables << 21, 40_000);
        (0..tables).for_each(|at| image.write(at << 21, &[1; 4096]).expect("there is room"));
        image
    };
    curve(
        criterion,
        "flush, by dirty tables",
        &[10, 100, 1_000, 10_000],
        |n| n,
        dirty,
        |image, _| {
            image.flush().expect("nothing fails");
        },
    );
}

fn miss(criterion: &mut Criterion) {
    let new = |tables: u64| image(12, tables << 21, 256);
    curve(
        criterion,
        "write that misses, by tables",
        &[1_000, 5_000, 30_000],
        |n| n,
        new,
        |image, n| {
            for index in 0..n {
                image.write((index * 7919 % n) << 21, &[1; 4096]).expect("there is room");
            }
        },
    );
}

fn allocate(criterion: &mut Criterion) {
    const REQUESTS: u64 = 200;
    let sizes = [1_000, 10_000, 100_000, 400_000];
    curve(
        criterion,
        "discard, flush and write, by clusters in use",
        &sizes,
        |_| REQUESTS,
        filled,
        |image, n| {
            for index in 0..REQUESTS {
                let guest = index * 7919 % (n / 2) * 512;
                image.discard(guest, 512).expect("nothing fails");
                image.flush().expect("nothing fails");
                image.write(guest, &[2; 512]).expect("there is room");
            }
        },
    );
}

fn discard(criterion: &mut Criterion) {
    let sizes = [100, 1_000, 10_000, 100_000];
    curve(
        criterion,
        "discard and flush, by clusters",
        &sizes,
        |n| n,
        filled,
        |image, n| {
            image.discard(0, n * 512).expect("nothing fails");
            image.flush().expect("nothing fails");
        },
    );
}

fn one_check(criterion: &mut Criterion) {
    let closed = |clusters| filled(clusters).close().expect("nothing fails");
    let sizes = [1_000, 10_000, 100_000, 1_000_000];
    curve(
        criterion,
        "check, by clusters in use",
        &sizes,
        |n| n,
        closed,
        |storage, _| {
            let report = check(storage, Repair::None).expect("it can be read");
            assert!(report.is_consistent());
        },
    );
}

criterion_group!(curves, flush, miss, allocate, discard, one_check);
criterion_main!(curves);
