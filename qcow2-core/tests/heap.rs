//! What requests take from the heap: nothing, where one extent takes the whole request and the tables that it needs are in memory.
//! Counted by the allocator, so that no clock has a say.

use allocation_counter::measure;
use qcow2_core::blocking::{self, block_on, create};
use qcow2_core::storage::file::{Existing, FileStorage};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{Durability, IoBuf, Storage};
use qcow2_core::{CreateOptions, Image, OpenOptions};

const REQUEST: usize = 4096;
const REQUESTS: u64 = 100;
const CLUSTER: u64 = 64 << 10;

/// Clusters of 64 KiB, all mapped by one table whose pages are in memory.
fn options() -> CreateOptions {
    CreateOptions::new(512 << 20).cluster_bits(16)
}

/// The file has grown enough before anything is counted: that belongs to no request.
fn open_options() -> OpenOptions {
    OpenOptions::new().growth(1 << 30)
}

/// Where in the clusters with these numbers requests go.
fn offsets(first: u64) -> impl Iterator<Item = u64> {
    (first..first + REQUESTS).map(|cluster| cluster * CLUSTER)
}

fn write<S: Storage>(image: &Image<S>, mut buf: IoBuf, first: u64) -> IoBuf {
    for offset in offsets(first) {
        let result;
        (buf, result) = block_on(image.write(offset, buf, Durability::Cached));
        result.expect("there is room");
    }
    buf
}

fn read<S: Storage>(image: &Image<S>, mut buf: IoBuf, first: u64) -> IoBuf {
    for offset in offsets(first) {
        let result;
        (buf, result) = block_on(image.read(offset, buf));
        result.expect("nothing fails");
    }
    buf
}

fn assert_nothing(what: &str, requests: impl FnOnce()) {
    let heap = measure(requests);
    println!("{what}: {} allocations of {} bytes", heap.count_total, heap.bytes_total);
    assert_eq!(heap.count_total, 0, "{what}");
}

/// Goal: no request allocates on its way. Method: a hundred of each kind on an image in a file, after some that bring in what they need.
#[test]
fn requests_take_nothing_from_the_heap() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image.qcow2");
    let storage = FileStorage::create(path, Existing::Refuse).expect("a file");
    create(&storage, &options()).expect("there is room");
    let image = block_on(Image::open(storage, open_options())).expect("it was just made");
    let mut buf = Some(IoBuf::copy_of(&[7; REQUEST], 1));
    let mut with = |requests: fn(&Image<FileStorage>, IoBuf, u64) -> IoBuf, first| {
        let back = requests(&image, buf.take().expect("it came back"), first);
        buf = Some(back);
    };
    with(write, 0);
    with(read, 0);
    assert_nothing("rewrites", || with(write, 0));
    assert_nothing("allocating writes", || with(write, REQUESTS));
    assert_nothing("reads", || with(read, 0));
    assert_nothing("reads of nothing", || with(read, 2 * REQUESTS));
    block_on(image.flush()).expect("nothing fails");
    assert_nothing("rewrites of what is durable", || with(write, 0));
}

/// Goal: the same of plain calls, which bring no buffer of the library's, whatever their alignment.
#[test]
fn plain_calls_take_nothing_from_the_heap() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("image.qcow2");
    let storage = FileStorage::create(path, Existing::Refuse).expect("a file");
    create(&storage, &options()).expect("there is room");
    let image = blocking::Image::open(storage, open_options()).expect("it was just made");
    let mut data = [7; REQUEST];
    let write = |data: &[u8], first, at| {
        offsets(first).for_each(|offset| image.write(offset + at, data).expect("there is room"));
    };
    let read = |data: &mut [u8], at| {
        offsets(0).for_each(|offset| image.read(offset + at, data).expect("nothing fails"));
    };
    write(&data, 0, 0);
    read(&mut data, 0);
    assert_nothing("rewrites", || write(&data, 0, 0));
    assert_nothing("allocating writes", || write(&data, REQUESTS, 0));
    assert_nothing("reads", || read(&mut data, 0));
    assert_nothing("reads at odd offsets", || read(&mut data[..1000], 77));
    assert_nothing("rewrites at odd offsets", || write(&data[..1000], 0, 77));
}

/// Goal: where the cache is too small, a page takes the memory of the one that went. Method: reads from many tables in turn.
#[test]
fn pages_take_the_memory_of_those_that_went() {
    let storage = MemoryStorage::default();
    let tables = 200;
    // Clusters of 4 KiB: one page is a table, which maps 2 MiB.
    let create_options = CreateOptions::new(tables << 21).cluster_bits(12);
    create(&storage, &create_options).expect("there is room");
    let options = OpenOptions::new().cache_pages(40);
    let image = block_on(Image::open(storage, options)).expect("it was just made");
    let mut buf = IoBuf::copy_of(&[7; REQUEST], 1);
    for table in 0..tables {
        let result;
        (buf, result) = block_on(image.write(table << 21, buf, Durability::Cached));
        result.expect("there is room");
    }
    block_on(image.flush()).expect("nothing fails");
    let before = image.work();
    let heap = measure(|| {
        for table in 0..tables {
            let result;
            (buf, result) = block_on(image.read(table << 21, buf));
            result.expect("nothing fails");
        }
    });
    let misses = image.work().steps - before.steps - 2 * tables;
    println!(
        "{} bytes for {tables} reads with {misses} steps more than two each",
        heap.bytes_total
    );
    assert!(misses >= tables, "the cache is not too small");
    assert!(heap.bytes_total < tables * 1024, "{} bytes for {tables} pages", heap.bytes_total);
}
