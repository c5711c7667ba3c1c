//! What requests cost, counted: steps under the lock and what is looked at in them, over three decades of whatever might make them
//! dearer. No seconds, so that a busy machine changes nothing.

use std::sync::Arc;

use allocation_counter::measure;
use qcow2_core::blocking::{Image, block_on, check, create, create_over};
use qcow2_core::{
    Backing, CheckReport, CreateOptions, Format, Layer, OpenOptions, Preallocation, Raw, Repair,
    Work, Zeroing,
};

use crate::sparse::SparseStorage;
use qcow2_core::storage::Storage;

/// The most that may be looked at in one step.
const MOST_IN_A_STEP: u64 = 4096;

/// A new image over a sparse storage.
fn image(cluster_bits: u32, virtual_size: u64, options: OpenOptions) -> Image<SparseStorage> {
    let storage = SparseStorage::default();
    create(&storage, &CreateOptions::new(virtual_size).cluster_bits(cluster_bits))
        .expect("there is room");
    Image::open(storage, options).expect("it was just made")
}

/// What `requests` cost.
fn work(image: &Image<SparseStorage>, requests: impl FnOnce(&Image<SparseStorage>)) -> Work {
    let before = image.work();
    requests(image);
    let after = image.work();
    assert!(
        after.most_in_a_step <= MOST_IN_A_STEP,
        "{} looked at in one step",
        after.most_in_a_step
    );
    spent(after, after.steps - before.steps, after.looked_at - before.looked_at)
}

/// What one of so many requests cost, as if it were for each of `n`: flat is what does not depend on `n` at all.
fn one_of(cost: Work, requests: u64, n: u64) -> Work {
    let one = |all: u64| all * n / requests;
    spent(cost, one(cost.steps), one(cost.looked_at))
}

/// The same with these counts.
fn spent(mut work: Work, steps: u64, looked_at: u64) -> Work {
    (work.steps, work.looked_at) = (steps, looked_at);
    work
}

/// Checks that a cost for each of `n` is the same at every size, but for some slack; prints what it is.
fn assert_flat(what: &str, costs: &[(u64, Work)]) {
    let each = |cost: u64, n: u64| cost as f64 / n as f64;
    println!("{what}");
    for (n, cost) in costs {
        let (steps, looked_at) = (each(cost.steps, *n), each(cost.looked_at, *n));
        println!("{n:>9} {steps:>9.2} steps and {looked_at:>9.2} looked at for each");
    }
    let [(small, first), .., (large, last)] = costs else { panic!("two sizes at least") };
    for (name, of) in [("steps", (|w| w.steps) as fn(&Work) -> u64), ("looked at", |w| w.looked_at)]
    {
        let (before, after) = (each(of(first), *small), each(of(last), *large));
        assert!(after <= before * 1.25 + 1.0, "{what}: {name} go from {before:.2} to {after:.2}");
    }
}

/// Goal: where there is no table, a request costs one look for all that the table would map, and a step for many of them. Method: all of
/// empty disks of very different sizes is discarded, searched for what is shared, and cut off.
#[test]
fn nothing_costs_next_to_nothing() {
    type Request = fn(&Image<SparseStorage>, u64);
    let requests: [(&str, Request); 3] = [
        ("a discard", |image, size| image.discard(0, size).expect("nothing fails")),
        ("separating", |image, _| {
            assert_eq!(image.separate().expect("nothing fails"), 0);
        }),
        ("a shrink", |image, _| image.shrink(0).expect("nothing fails")),
    ];
    for (what, request) in requests {
        let costs = [1u64 << 33, 1 << 36, 1 << 40, 1 << 43].map(|size| {
            let image = image(16, size, OpenOptions::new());
            (size >> 29, work(&image, |image| request(image, size)))
        });
        assert_flat(&format!("{what}, for each table that is not there"), &costs);
        let bounded = |(tables, cost): &(u64, Work)| {
            cost.looked_at <= tables + 2048 && cost.steps <= tables / 32 + 64
        };
        assert!(costs.iter().all(bounded), "{what}: {costs:?}");
    }
}

const DECADES: [u64; 4] = [10, 100, 1_000, 10_000];

/// Goal: a flush costs what there is to write. Method: so many L2 tables, each with one change.
#[test]
fn a_flush_costs_what_is_dirty() {
    let costs = DECADES.map(|pages| {
        let options = OpenOptions::new().cache_pages(40_000);
        // Clusters of 4 KiB: one page is a table, which maps 2 MiB.
        let image = image(12, pages << 21, options);
        for table in 0..pages {
            image.write(table << 21, &[1; 4096]).expect("there is room");
        }
        let cost = work(&image, |image| image.flush().expect("nothing fails"));
        (pages, cost)
    });
    assert_flat("a flush, for each dirty table", &costs);
}

/// Goal: pages that follow each other are one write. Method: a flush of 100 pages of one table, beside a few others.
#[test]
fn neighbouring_pages_are_one_write() {
    let storage = SparseStorage::default();
    create(&storage, &CreateOptions::new(1 << 30)).expect("there is room");
    let options = OpenOptions::new().page_size(512);
    let image = Image::open(storage.clone(), options).expect("it was just made");
    // A page maps 64 clusters of 64 KiB.
    (0..100u64).for_each(|page| image.write(page << 22, &[1; 512]).expect("there is room"));
    let before = storage.writes();
    image.flush().expect("nothing fails");
    let writes = storage.writes() - before;
    assert!(writes < 12, "{writes} writes");
}

/// Goal: a cache that is too small costs what is loaded and written, and holds its limit. Method: writes to tables in a strange order.
#[test]
fn a_full_cache_costs_what_goes_through_it() {
    // The L1 table of the largest takes 59 pages.
    const LIMIT: usize = 256;
    let costs = [1_000, 5_000, 30_000].map(|tables: u64| {
        let options = OpenOptions::new().cache_pages(LIMIT);
        let image = image(12, tables << 21, options);
        let cost = work(&image, |image| {
            for index in 0..tables {
                let table = index * 7919 % tables;
                image.write(table << 21, &[1; 4096]).expect("there is room");
            }
        });
        assert!(cost.most_pages <= LIMIT as u64, "{} pages", cost.most_pages);
        (tables, cost)
    });
    assert_flat("a write that misses the cache", &costs);
}

/// Goal: taking a cluster costs the same in an image that is nearly full. Method: every write needs a cluster, and gives one back far
/// below the others.
#[test]
fn an_allocation_costs_the_same_when_nearly_all_is_in_use() {
    let costs = [1_000, 10_000, 100_000, 400_000].map(|clusters: u64| {
        let options = OpenOptions::new().cache_pages(10_000);
        let image = image(9, clusters * 512, options);
        let all = vec![1; 64 << 10];
        for at in (0..clusters * 512 / (64 << 10)).map(|piece| piece * (64 << 10)) {
            image.write(at, &all).expect("there is room");
        }
        image.flush().expect("nothing fails");
        let writes = 200;
        let cost = work(&image, |image| {
            for index in 0..writes {
                let guest = index * 7919 % (clusters / 2);
                image.discard(guest * 512, 512).expect("nothing fails");
                image.flush().expect("nothing fails");
                image.write(guest * 512, &[2; 512]).expect("there is room");
            }
        });
        (clusters, one_of(cost, writes, clusters))
    });
    assert_flat("a discard, a flush and a write", &costs);
}

/// Goal: a request costs what its clusters do. Method: one write, one preallocation, then one discard of so many clusters.
#[test]
fn a_long_request_costs_what_it_covers() {
    let (mut preallocated, mut discards) = (Vec::new(), Vec::new());
    let writes = [100, 1_000, 10_000, 100_000].map(|clusters: u64| {
        let options = OpenOptions::new().cache_pages(10_000);
        let image = image(9, clusters * 512, options);
        let data = vec![1; clusters as usize * 512];
        let cost = work(&image, |image| image.write(0, &data).expect("there is room"));
        let length = clusters * 512;
        let other = self::image(9, length, options);
        let keep = |image: &Image<SparseStorage>| {
            image.preallocate(0, length, Preallocation::Metadata).expect("there is room");
        };
        preallocated.push((clusters, work(&other, keep)));
        discards.push((
            clusters,
            work(&image, |image| image.discard(0, length).expect("nothing fails")),
        ));
        (clusters, cost)
    });
    assert_flat("a write, for each cluster", &writes);
    assert_flat("preallocation, for each cluster", &preallocated);
    assert_flat("a discard, for each cluster", &discards);
}

/// Goal: what was discarded and not flushed costs other requests nothing. Method: reads and rewrites after so many discards.
#[test]
fn discarded_clusters_cost_others_nothing() {
    let costs = [100, 1_000, 10_000, 100_000].map(|clusters: u64| {
        let options = OpenOptions::new().cache_pages(10_000);
        let image = image(9, (clusters + 64) * 512, options);
        let data = vec![1; (clusters as usize + 64) * 512];
        image.write(0, &data).expect("there is room");
        image.flush().expect("nothing fails");
        image.discard(64 * 512, clusters * 512).expect("nothing fails");
        let requests = 100;
        let cost = work(&image, |image| {
            let mut back = [0; 512];
            for index in 0..requests {
                image.read(index % 64 * 512, &mut back).expect("nothing fails");
                image.write(index % 64 * 512, &back).expect("nothing fails");
            }
        });
        (clusters, one_of(cost, requests, clusters))
    });
    assert_flat("a read and a rewrite", &costs);
}

/// Goal: giving freed clusters back costs what they do. Method: the flush after so many discards.
#[test]
fn freed_clusters_cost_what_they_are() {
    let costs = [100, 1_000, 10_000, 100_000].map(|clusters: u64| {
        let options = OpenOptions::new().cache_pages(10_000);
        let image = image(9, clusters * 512, options);
        image.write(0, &vec![1; clusters as usize * 512]).expect("there is room");
        image.flush().expect("nothing fails");
        image.discard(0, clusters * 512).expect("nothing fails");
        (clusters, work(&image, |image| image.flush().expect("nothing fails")))
    });
    assert_flat("a flush, for each discarded cluster", &costs);
}

/// Clusters that are counted in one page of 512 bytes.
const COUNTED: u64 = 256;

/// Goal: giving freed clusters back does not need more counts at once than the smallest cache holds. Method: the flush after so many
/// discards, each counted in a page of its own.
#[test]
#[cfg_attr(not(turn = "2"), ignore = "its turn is at another commit; CI=1 runs all")]
fn freed_clusters_far_apart_cost_what_they_are() {
    for pass_discard in [true, false] {
        let costs = [100, 300, 900].map(|clusters: u64| {
            let options =
                OpenOptions::new().cache_pages(1).page_size(512).pass_discard(pass_discard);
            let image = image(9, clusters * COUNTED * 512, options);
            let data = vec![1; (clusters * COUNTED) as usize * 512];
            image.write(0, &data).expect("there is room");
            image.flush().expect("nothing fails");
            for cluster in 0..clusters {
                image.discard(cluster * COUNTED * 512, 512).expect("nothing fails");
            }
            (clusters, work(&image, |image| image.flush().expect("nothing fails")))
        });
        assert_flat("a flush, for each discarded cluster far from the others", &costs);
    }
}

/// Goal: no step needs more pages at once than the smallest cache holds. Method: requests over much of an image, once all is free again.
#[test]
#[cfg_attr(not(turn = "8"), ignore = "its turn is at another commit; CI=1 runs all")]
fn the_smallest_cache_is_enough() {
    let costs = [60, 200, 600].map(|pages: u64| {
        let options = OpenOptions::new().cache_pages(1).page_size(512);
        let image = image(9, pages * COUNTED * 512, options);
        let data = vec![1; (pages * COUNTED) as usize * 512];
        let cost = work(&image, |image| {
            for _ in 0..2 {
                image.write(0, &data).expect("there is room");
                image
                    .write_zeroes(512, data.len() as u64 - 1024, Zeroing::Keep)
                    .expect("there is room");
                image.write(256, &data[512..]).expect("there is room");
                image.discard(0, data.len() as u64).expect("nothing fails");
                image.flush().expect("nothing fails");
            }
        });
        (pages, cost)
    });
    assert_flat("long requests, for each page of counts", &costs);
}

/// Goal: a request enters the lock as often as it has to, and no more. Method: one warm 4 KiB request of each kind, with a buffer that
/// one extent takes whole.
#[test]
fn requests_enter_the_lock_a_few_times() {
    let image = image(16, 1 << 30, OpenOptions::new());
    let data = [1; 4096];
    // Tables are there, and what comes before the first change is done.
    image.write(0, &data).expect("there is room");
    image.flush().expect("nothing fails");
    let mut back = [0; 4096];
    let requests: [(&str, u64, &mut dyn FnMut()); 3] = [
        ("a rewrite", 4, &mut || image.write(4096, &data).expect("nothing fails")),
        ("an allocating write", 5, &mut || image.write(1 << 20, &data).expect("there is room")),
        ("a read", 2, &mut || image.read(4096, &mut back).expect("nothing fails")),
    ];
    for (what, expected, request) in requests {
        let before = image.work();
        request();
        let after = image.work();
        // Asking what has been done takes the lock once.
        let steps = after.steps - before.steps - 1;
        println!("{what}: {steps} steps, {} looked at", after.looked_at - before.looked_at);
        assert_eq!(steps, expected, "{what}");
    }
}

/// Host offset of what a test puts into an image by hand, past everything that `create` puts there.
const BY_HAND: u64 = 64 << 20;

/// An empty image of 1 TiB.
fn empty(cluster_bits: u32) -> SparseStorage {
    let storage = SparseStorage::default();
    let options = CreateOptions::new(1 << 40).cluster_bits(cluster_bits);
    create(&storage, &options).expect("there is room");
    storage
}

/// The big-endian number of eight bytes at an offset.
fn number(storage: &SparseStorage, at: u64) -> u64 {
    let mut bytes = [0; 8];
    storage.read_at(at, &mut bytes);
    u64::from_be_bytes(bytes)
}

fn write_entries(storage: &SparseStorage, at: u64, entries: impl Iterator<Item = u64>) {
    let bytes: Vec<u8> = entries.flat_map(u64::to_be_bytes).collect();
    storage.write_at(at, &bytes);
}

/// An image whose first L2 tables hold these entries, one after the other; its refcounts are wrong.
fn with_entries(cluster_bits: u32, entries: impl Iterator<Item = u64>) -> SparseStorage {
    let storage = empty(cluster_bits);
    let entries: Vec<u64> = entries.collect();
    let tables = (entries.len() as u64 * 8).div_ceil(1 << cluster_bits);
    let l1 = number(&storage, 40);
    write_entries(
        &storage,
        l1,
        (0..tables).map(|table| COPIED | (BY_HAND + (table << cluster_bits))),
    );
    write_entries(&storage, BY_HAND, entries.into_iter());
    storage
}

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// Far past the end of every file here.
const FAR: u64 = 1 << 44;

/// What `check` finds; it may take so much memory, and read and write so many bytes.
fn check_within(storage: &SparseStorage, repair: Repair, heap: u64, moved: u64) -> CheckReport {
    let before = storage.moved();
    let mut report = None;
    let took = measure(|| report = Some(check(storage, repair).expect("it can be read")));
    let bytes = storage.moved() - before;
    println!("{} bytes of heap at most, {bytes} bytes read and written", took.bytes_max);
    assert!(took.bytes_max <= heap, "{} bytes of heap", took.bytes_max);
    assert!(bytes <= moved, "{bytes} bytes read and written");
    report.expect("it was set")
}

/// Goal: a check counts what lies past the end of the file without a slot each, and knows when to stop. Method: a million entries that
/// follow each other past the end, and more than can be counted that do not, plain and compressed.
#[test]
#[cfg_attr(not(turn = "6"), ignore = "its turn is at another commit; CI=1 runs all")]
fn what_lies_past_the_end_is_counted_in_bounds() {
    const MIB: u64 = 1 << 20;
    let following = (0..1 << 20).map(|index| COPIED | (FAR + index * 65_536));
    let report = check_within(&with_entries(16, following), Repair::All, 8 * MIB, 64 * MIB);
    assert_eq!(report.allocated_clusters, 1 << 20);
    assert!(report.is_writable());
    let scattered = (0..(1 << 20) + 1).map(|index| COPIED | (FAR + 2 * index * 65_536));
    let storage = with_entries(16, scattered);
    assert!(!check_within(&storage, Repair::All, 128 * MIB, 64 * MIB).is_writable());
    let compressed = (0..(1 << 20) + 1).map(|index| COMPRESSED | (FAR + 2 * index * 65_536));
    let storage = with_entries(16, compressed);
    assert!(!check_within(&storage, Repair::All, 256 * MIB, 64 * MIB).is_writable());
}

/// Goal: a sparse file of 64 TiB costs what is in it. Method: one with data at both ends, of which the refcounts are made again; then it is
/// written to and read.
#[test]
fn a_sparse_file_is_used_in_bounds() {
    const MIB: u64 = 1 << 20;
    let length = 1u64 << 46;
    let entries = (0..1 << 10).map(|index| COPIED | (length - (index + 1) * 65_536));
    let storage = with_entries(16, entries);
    storage.write_at(length - 512, &[7; 512]);
    let report = check_within(&storage, Repair::All, 132 * MIB, 16 * MIB);
    assert!(report.is_consistent() && report.rebuilt, "{:?}", report.findings.first());
    let used = measure(|| {
        let image = Image::open(storage.clone(), OpenOptions::new()).expect("it was repaired");
        let mut last = [0; 512];
        image.read(65_536 - 512, &mut last).expect("nothing fails");
        assert_eq!(last, [7; 512]);
        image.write(0, &[8; 65_536]).expect("it is mapped");
        image.write(1 << 39, &[9; 65_536]).expect("there is room");
        image.close().expect("nothing fails");
    });
    assert!(used.bytes_max < 8 * MIB, "{} bytes of heap", used.bytes_max);
    let report = check_within(&storage, Repair::None, 80 * MIB, 16 * MIB);
    assert!(report.findings.is_empty(), "{:?}", report.findings.first());
}

/// Goal: the largest disk that the format has, of 2 EiB, is written to at both ends, read, checked and made larger no more, in bounded memory.
/// Method: clusters of 2 MiB and an L1 table of 32 MiB, the most that there is of each.
#[test]
fn the_largest_disk_is_used_in_bounds() {
    const MIB: u64 = 1 << 20;
    let size = 1u64 << 61;
    let storage = SparseStorage::default();
    let options = |size| CreateOptions::new(size).cluster_bits(21);
    let error = create(&storage, &options(size + 512)).expect_err("no L1 table is that long");
    assert!(error.to_string().contains("the largest L1 table maps"), "{error}");
    create(&storage, &options(size)).expect("there is room");
    let ends = [0, size - 4096];
    let used = measure(|| {
        let image = Image::open(storage.clone(), OpenOptions::new()).expect("it was made");
        assert_eq!(image.info().virtual_size, size);
        for (at, byte) in ends.into_iter().zip(1..) {
            image.write(at, &[byte; 4096]).expect("there is room");
        }
        image.write(size, &[1; 512]).expect_err("it is past the end");
        image.grow(size + 512).expect_err("there is no larger one");
        image.close().expect("nothing fails");
        let image = Image::open(storage.clone(), OpenOptions::read_only()).expect("closed");
        for (at, byte) in ends.into_iter().zip(1..) {
            let mut found = [0; 4096];
            image.read(at, &mut found).expect("nothing fails");
            assert_eq!(found, [byte; 4096]);
        }
    });
    println!("{} bytes of heap at most", used.bytes_max);
    assert!(used.bytes_max < 96 * MIB, "{} bytes of heap", used.bytes_max);
    let report = check_within(&storage, Repair::None, 96 * MIB, 96 * MIB);
    assert!(report.findings.is_empty(), "{:?}", report.findings.first());
}

/// Goal: a repair writes no more than there is in the file. Method: references past the end, each of which would need a refcount block of
/// its own; first few, then many.
#[test]
fn references_far_apart_do_not_make_a_repair_write_without_bound() {
    let far = |count: u64| (0..count).map(|index| COPIED | (FAR + (index << 31)));
    let report = check_within(&with_entries(16, far(100)), Repair::All, 16 << 20, 64 << 20);
    assert!(report.is_writable(), "{:?}", report.findings.first());
    let storage = with_entries(16, far(20_000));
    let length = storage.moved();
    assert!(!check_within(&storage, Repair::All, 16 << 20, 64 << 20).is_writable());
    assert!(storage.moved() - length <= 64 << 20);
}

/// Goal: refcount blocks that are not in the file cost nothing. Method: a file of 128 KiB and some, whose refcount table has entries all
/// of which lead past the end.
#[test]
fn refcount_blocks_past_the_end_cost_nothing() {
    let storage = empty(16);
    let table = number(&storage, 48);
    write_entries(&storage, table + 8, (1..8192).map(|index| FAR + index * 65_536));
    let report = check_within(&storage, Repair::All, 4 << 20, 4 << 20);
    assert!(report.rebuilt && report.is_consistent(), "{:?}", report.findings.first());
}

/// Goal: tables that are one and the same table end a request with an error, not in a search or a walk without end. Method: every entry
/// of the refcount table leads to one full block; every entry of the L1 table leads to one L2 table.
#[test]
fn one_table_named_many_times_is_refused() {
    let storage = empty(16);
    let table = number(&storage, 48);
    storage.write_at(BY_HAND, &[0xff; 1 << 16]);
    write_entries(&storage, table, (0..8192).map(|_| BY_HAND));
    let image = Image::open(storage, OpenOptions::new()).expect("nobody has looked yet");
    let before = image.work();
    assert!(image.write(0, &[1; 4096]).is_err());
    assert!(image.work().looked_at - before.looked_at < MOST_IN_A_STEP);

    // As many as there can be: the largest L1 table, of 32 MiB.
    let storage = SparseStorage::default();
    let entries = 1u64 << 22;
    let options = CreateOptions::new(entries * 64 * 512).cluster_bits(9);
    create(&storage, &options).expect("there is room");
    let l1 = number(&storage, 40);
    write_entries(&storage, l1, (0..entries).map(|_| COPIED | BY_HAND));
    storage.write_at(BY_HAND, &[0; 512]);
    let image = Image::open(storage, OpenOptions::new()).expect("nobody has looked yet");
    let before = image.work();
    assert!(image.discard(0, entries * 64 * 512).is_err());
    assert!(image.work().looked_at - before.looked_at < MOST_IN_A_STEP);
    assert!(image.write(0, &[1; 512]).is_err());
}

/// Goal: opening costs what the header does, whatever the image. Method: images of very different sizes.
#[test]
fn opening_costs_the_same() {
    let costs = [1u64 << 20, 1 << 30, 1 << 40, 1 << 49].map(|size| {
        let storage = SparseStorage::default();
        create(&storage, &CreateOptions::new(size)).expect("there is room");
        let before = storage.moved();
        let image = Image::open(storage.clone(), OpenOptions::new()).expect("it was just made");
        let work = image.work();
        (1, spent(work, work.steps, storage.moved() - before))
    });
    assert_flat("opening, and bytes read", &costs);
}

/// Goal: growth costs what there is to change. Method: a disk that grows by so many bytes in so many steps.
#[test]
fn growth_costs_what_it_changes() {
    let costs = [10, 100, 1_000].map(|steps: u64| {
        let image = image(16, 1 << 20, OpenOptions::new());
        image.write(0, &[1; 4096]).expect("there is room");
        let cost = work(&image, |image| {
            for step in 1..=steps {
                image.grow((1 << 20) + (step << 20)).expect("there is room");
            }
        });
        (steps, cost)
    });
    assert_flat("growing by 1 MiB", &costs);
    let costs = [1u64 << 32, 1 << 36, 1 << 40].map(|size| {
        let image = image(16, 1 << 20, OpenOptions::new());
        image.write(0, &[1; 4096]).expect("there is room");
        // A table of 8 KiB for each 64 GiB: what has to be copied is the old one.
        (1, work(&image, |image| image.grow(size).expect("there is room")))
    });
    assert_flat("growing at once", &costs);
}

/// An image of this size over layers, each an image that is empty but for one cluster at its end, and the storages of those.
fn over_empty_layers(size: u64, layers: usize) -> (Image<SparseStorage>, Vec<SparseStorage>) {
    let named = Backing::new("below", Format::Qcow2);
    let options = CreateOptions::new(size);
    let bottom = SparseStorage::default();
    create(&bottom, &options).expect("there is room");
    let image = Image::open(bottom.clone(), OpenOptions::new()).expect("it was just made");
    image.write(size - 65_536, &[7; 65_536]).expect("there is room");
    image.close().expect("nothing fails");
    let opened = qcow2_core::Image::open(bottom.clone(), OpenOptions::read_only());
    let mut layer: Arc<dyn Layer> = Arc::new(block_on(opened).expect("closed"));
    let mut storages = vec![bottom];
    for _ in 1..layers {
        let storage = SparseStorage::default();
        create_over(&storage, &options, &named).expect("there is room");
        let opened = qcow2_core::Image::open_over(storage.clone(), layer, OpenOptions::read_only());
        layer = Arc::new(block_on(opened).expect("it was just made"));
        storages.push(storage);
    }
    let storage = SparseStorage::default();
    create_over(&storage, &options, &named).expect("there is room");
    storages.push(storage.clone());
    (Image::open_over(storage, layer, OpenOptions::new()).expect("it was just made"), storages)
}

/// Goal: copying what is empty in all layers takes no cluster, reads none, and costs what there is to say of it. Method: disks of very
/// different sizes, over several images that are empty but for one cluster; all of it copied.
#[test]
fn copying_an_empty_layer_costs_its_entries() {
    const LAYERS: usize = 3;
    let costs = [1u64 << 30, 1 << 33, 1 << 36].map(|size| {
        let (image, storages) = over_empty_layers(size, LAYERS);
        let moved = || storages.iter().map(SparseStorage::moved).sum::<u64>();
        let before = moved();
        let cost = work(&image, |image| image.copy_up(0, size).expect("there is room"));
        image.close().expect("nothing fails");
        let (clusters, tables) = (size >> 16, size.div_ceil(1 << 29));
        let moved = moved() - before;
        // An entry of 8 bytes for each cluster, a table more than once, and what there is beside them.
        assert!(moved < 4 * 8 * clusters + (4 << 20), "{moved} bytes for {clusters} clusters");
        let report = check(&storages[LAYERS], Repair::None).expect("an image");
        assert!(report.findings.is_empty(), "{:?}", report.findings.first());
        let used = report.allocated_clusters;
        assert_eq!(used, 1, "{used} clusters of {clusters}");
        assert!(report.image_end_offset >> 16 < tables + 64, "{report:?}");
        (clusters, cost)
    });
    assert_flat("copying what is empty, for each cluster", &costs);
    let bounded = |(clusters, cost): &(u64, Work)| {
        cost.steps <= clusters / 16 + 128 && cost.looked_at <= 4 * clusters + 2048
    };
    assert!(costs.iter().all(bounded), "{costs:?}");
}

/// Goal: of a raw layer that has holes, only what lies between them is read to copy it, and only that takes clusters. Method: disks of very
/// different sizes over a file that holds a few bytes at every place that may matter: neither cluster nor unit.
#[test]
fn copying_a_raw_layer_reads_none_of_its_holes() {
    const PLACES: u64 = 16;
    for size in [1u64 << 30, 1 << 33, 1 << 36] {
        let below = SparseStorage::default();
        let place = |place: u64| size / PLACES * place + 4096 * place + 7;
        for at in 0..PLACES {
            below.write_at(place(at), &[7; 100]);
        }
        // It ends in a hole, and inside a unit.
        block_on(below.set_len(size - 100)).expect("there is room");
        let layer: Arc<dyn Layer> =
            Arc::new(block_on(Raw::new(below.clone())).expect("it has a length"));
        let storage = SparseStorage::default();
        create_over(&storage, &CreateOptions::new(size), &Backing::new("below", Format::Raw))
            .expect("there is room");
        let image =
            Image::open_over(storage.clone(), layer, OpenOptions::new()).expect("it was just made");
        let before = below.moved();
        image.copy_up(0, size).expect("there is room");
        let read = below.moved() - before;
        assert!(read <= PLACES << 17, "{read} bytes of {size}");
        image.set_backing(None).expect("all of it is copied");
        for at in 0..PLACES {
            let from = place(at) / 512 * 512;
            let mut bytes = [0; 1024];
            image.read(from, &mut bytes).expect("it is there");
            let first = (place(at) - from) as usize;
            assert!(bytes[first..first + 100] == [7; 100], "place {at}");
            assert!(bytes.iter().filter(|&&byte| byte == 0).count() == 924, "place {at}");
        }
        image.close().expect("nothing fails");
        let report = check(&storage, Repair::None).expect("an image");
        assert!(report.findings.is_empty(), "{:?}", report.findings.first());
        assert_eq!(report.allocated_clusters, PLACES);
    }
}

/// Goal: copying a layer in small pieces costs what each is, of the layer and of the image over it, and copying it again asks the layer nothing. Method:
/// disks of very different sizes over an image of which every other cluster holds data; all of it copied, twice.
#[test]
fn copying_a_layer_in_pieces_costs_its_pieces() {
    let costs = [256u64, 1024, 4096].map(|clusters| {
        let size = clusters << 12;
        let below = SparseStorage::default();
        create(&below, &CreateOptions::new(size).cluster_bits(12)).expect("there is room");
        let image = Image::open(below.clone(), OpenOptions::new()).expect("it was just made");
        for cluster in (0..clusters).step_by(2) {
            image.write(cluster << 12, &[7; 4096]).expect("there is room");
        }
        image.close().expect("nothing fails");
        let opened = qcow2_core::Image::open(below, OpenOptions::read_only());
        let layer = Arc::new(block_on(opened).expect("closed"));
        let storage = SparseStorage::default();
        let options = CreateOptions::new(size).cluster_bits(12);
        create_over(&storage, &options, &Backing::new("below", Format::Qcow2))
            .expect("there is room");
        let shared: Arc<dyn Layer> = layer.clone();
        let image =
            Image::open_over(storage, shared, OpenOptions::new()).expect("it was just made");
        let before = layer.work();
        let own = work(&image, |image| image.copy_up(0, size).expect("there is room"));
        let after = layer.work();
        work(&image, |image| image.copy_up(0, size).expect("nothing is left to copy"));
        assert_eq!(layer.work().looked_at, after.looked_at, "the layer is asked once");
        let both = spent(
            own,
            own.steps + after.steps - before.steps,
            own.looked_at + after.looked_at - before.looked_at,
        );
        (clusters, both)
    });
    assert_flat("copying a layer in pieces, for each cluster", &costs);
}
