//! How fast: guest requests a second, beside what the same bytes cost without an image format.
//!
//! The library half: requests of 4 KiB, one at a time, each to a cluster of its own (64 KiB clusters, 1 GiB disk, no flush
//! inside), in memory and in a file on tmpfs; `plain` is pread and pwrite of the same sizes at the same offsets of a sparse
//! file beside it. One element is one request. Allocating in memory includes the zeroing of 64 KiB of it for each request.
//!
//! The harness half: crash states of a random campaign at 1 KiB to 4 KiB clusters, each fully judged, by one worker; and
//! leaves of an exploration at 1 KiB, beside the naive way to judge a crash image: copy it, audit it, open it, audit it, repair
//! it, audit it again, and neither the guest's units nor power cuts in recovery.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;

use criterion::measurement::WallTime;
use criterion::{
    BatchSize, Bencher, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main,
};
use faultfs::chooser::Always;
use faultfs::direct::{Direct, run};
use faultfs::profile::Profile;
use model::audit::Auditor;
use model::build::Initial;
use model::evidence::BytesEvidence;
use qcow2_core::blocking::{block_on, create};
use qcow2_core::storage::file::{Existing, FileStorage};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{Durability, IoBuf, Storage};
use qcow2_core::{CreateOptions, Image, OpenOptions, Repair, Rules, check};
use qcow2_crashtest::call::open;
use qcow2_crashtest::campaign::{self, Budget, Settings};
use qcow2_crashtest::explore;
use qcow2_crashtest::explore::alphabet::{Symbol, World, operations, worlds};
use qcow2_crashtest::life::{Request, perform};
use qcow2_crashtest::subject::Qcow2Core;
use qcow2_crashtest::workload::Scope;
use tempfile::TempDir;

const DISK: u64 = 1 << 30;
const CLUSTER: u64 = 64 << 10;
const REQUEST: usize = 4 << 10;
const REQUESTS: u64 = 4096;

fn offsets() -> impl Iterator<Item = u64> {
    // Odd, so that every cluster is visited once, and neighbours in time are none in space.
    (0..REQUESTS).map(|index| index * 2731 % (DISK / CLUSTER) * CLUSTER)
}

fn directory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory")
}

/// A new image over a new storage.
fn image<S: Storage>(storage: S) -> Image<S> {
    create(&storage, &CreateOptions::new(DISK)).expect("the image can be created");
    block_on(Image::open(storage, OpenOptions::new())).expect("it was just created")
}

fn file_image(directory: &TempDir) -> Image<FileStorage> {
    let path = directory.path().join("image.qcow2");
    image(FileStorage::create(path, Existing::Replace).expect("a file"))
}

/// A new sparse file.
fn plain(directory: &TempDir) -> File {
    let path = directory.path().join("plain");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
    let file = file.expect("a file");
    file.set_len(DISK).expect("a sparse file");
    file
}

fn write_all<S: Storage>(image: &Image<S>) {
    let mut buf = IoBuf::zeroed(REQUEST, 1);
    buf.fill(7);
    for offset in offsets() {
        let result;
        (buf, result) = block_on(image.write(offset, buf, Durability::Cached));
        result.expect("it is written");
    }
}

fn read_all<S: Storage>(image: &Image<S>) {
    let mut buf = IoBuf::zeroed(REQUEST, 1);
    for offset in offsets() {
        let result;
        (buf, result) = block_on(image.read(offset, buf));
        result.expect("it is read");
        black_box(&buf);
    }
}

fn plain_write_all(file: &File) {
    for offset in offsets() {
        file.write_all_at(&[7; REQUEST], offset).expect("it is written");
    }
}

fn plain_read_all(file: &File) {
    let mut buf = [0; REQUEST];
    for offset in offsets() {
        file.read_exact_at(&mut buf, offset).expect("it is read");
        black_box(&buf);
    }
}

fn group<'a>(criterion: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(REQUESTS)).sample_size(20);
    group
}

/// Each run of the requests gets a fresh target, so that all of them allocate.
fn on_fresh<T>(bencher: &mut Bencher<'_>, fresh: impl FnMut() -> T, run: impl Fn(&T)) {
    bencher.iter_batched_ref(fresh, |target| run(target), BatchSize::PerIteration);
}

fn allocate(criterion: &mut Criterion) {
    let directory = directory();
    let mut group = group(criterion, "allocate 4 KiB");
    group.bench_function("memory", |b| {
        on_fresh(b, || image(MemoryStorage::default()), write_all);
    });
    group.bench_function("file", |b| on_fresh(b, || file_image(&directory), write_all));
    group.bench_function("plain", |b| on_fresh(b, || plain(&directory), plain_write_all));
}

fn rewrite(criterion: &mut Criterion) {
    let directory = directory();
    let mut group = group(criterion, "rewrite 4 KiB");
    let (memory, file, plain) =
        (image(MemoryStorage::default()), file_image(&directory), plain(&directory));
    write_all(&memory);
    write_all(&file);
    plain_write_all(&plain);
    group.bench_function("memory", |b| b.iter(|| write_all(&memory)));
    group.bench_function("file", |b| b.iter(|| write_all(&file)));
    group.bench_function("plain", |b| b.iter(|| plain_write_all(&plain)));
}

fn read(criterion: &mut Criterion) {
    let directory = directory();
    let mut group = group(criterion, "read 4 KiB");
    let (memory, file, plain) =
        (image(MemoryStorage::default()), file_image(&directory), plain(&directory));
    write_all(&memory);
    write_all(&file);
    plain_write_all(&plain);
    group.bench_function("memory", |b| b.iter(|| read_all(&memory)));
    group.bench_function("file", |b| b.iter(|| read_all(&file)));
    group.bench_function("plain", |b| b.iter(|| plain_read_all(&plain)));
}

/// Fully judged crash states of the random campaign, by one worker: one element is one state.
fn judge(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("judge crash states");
    for (name, lazy) in [("eager", false), ("lazy", true)] {
        let settings = Settings {
            damage: None,
            seed: 2,
            profile: Profile::TornLength,
            scope: Scope { lazy: Some(lazy), tiny: true, ..Scope::default() },
            budget: Budget::Cases(60),
            workers: 1,
        };
        let run = || campaign::run(&Qcow2Core::default(), &settings, |_| {});
        let states = run().figures.states;
        group.throughput(Throughput::Elements(states)).sample_size(10);
        group.bench_function(name, |b| b.iter(run));
    }
}

/// Images that a power cut in one request may leave: of every moment, with all kept and with all lost.
fn crash_images(world: &World) -> Vec<Vec<u8>> {
    let subject = Qcow2Core::default();
    let initial = || world.start(&subject).expect("feasible");
    let mut images = Vec::new();
    for symbol in Symbol::ALL {
        let (disk, guest) = initial();
        let direct = Direct::new(disk, Always(0));
        let opened = run(open(&subject, direct.clone(), world.session));
        let Some(Ok(image)) = opened else { panic!("it opens") };
        direct.take_forks(true);
        let [op] = operations(&[symbol], &world.geometry)[..] else { panic!("one request") };
        let request = op.clip(guest.size()).map(Request::Op);
        run(perform(&image, request.as_ref()));
        for live in direct.take_forks(false) {
            for mut fate in [Always(0), Always(u32::MAX)] {
                images.push(live.crash(Profile::TornLength, &mut fate).image(&mut fate));
            }
        }
    }
    images
}

/// Judges one crash image as if there were no sets.
fn judge_copy(image: &[u8]) {
    let mut auditor = Auditor::default();
    auditor.audit(&mut BytesEvidence::new(image));
    let storage = MemoryStorage::new(image.to_vec());
    drop(block_on(Image::open(storage.clone(), OpenOptions::new())).expect("it opens"));
    auditor.audit(&mut BytesEvidence::new(&storage.to_vec()));
    block_on(check(&storage, Repair::All, Rules::all())).expect("it can be repaired");
    auditor.audit(&mut BytesEvidence::new(&storage.to_vec()));
    black_box(&auditor);
}

/// Leaves of every power cut in every workload of up to two requests, by one worker: one element is one executed leaf. Beside it
/// the naive way: one element is one image.
fn explore_leaves(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("explore");
    let kinds = [Initial::Fresh, Initial::Fragmented, Initial::Leaky, Initial::L1AboutToGrow];
    let worlds = worlds(&[1024], &[false, true], &kinds);
    let images: Vec<Vec<u8>> = worlds.iter().flat_map(crash_images).collect();
    let settings =
        explore::ExploreSettings { workers: 1, ..explore::ExploreSettings::new(worlds, 2) };
    let run = || explore::run(&Qcow2Core::default(), &settings, |_, _, _, _| {});
    let leaves = run().worlds.iter().map(|explored| explored.counts.leaves).sum();
    group.throughput(Throughput::Elements(leaves)).sample_size(20);
    group.bench_function("possible disks", |b| b.iter(run));
    group.throughput(Throughput::Elements(images.len() as u64));
    group.bench_function("copied images", |b| b.iter(|| images.iter().for_each(|i| judge_copy(i))));
}

criterion_group!(library, allocate, rewrite, read);
criterion_group!(harness, judge, explore_leaves);
criterion_main!(library, harness);
