//! What requests cost, counted: steps under the lock and what is looked at in them, over three decades of whatever might make them
//! dearer. No seconds, so that a busy machine changes nothing.

mod sparse;

use qcow2_core::blocking::{Image, check, create};
use qcow2_core::{CreateOptions, OpenOptions, Repair, Work};

use crate::sparse::SparseStorage;

/// The most that may be looked at in one step.
const MOST_IN_A_STEP: u64 = 4096;

/// A new image over a sparse storage.
fn image(cluster_bits: u32, virtual_size: u64, options: OpenOptions) -> Image<SparseStorage> {
    let storage = SparseStorage::default();
    create(&storage, &CreateOptions { cluster_bits, ..CreateOptions::new(virtual_size) })
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
    Work {
        steps: after.steps - before.steps,
        looked_at: after.looked_at - before.looked_at,
        ..after
    }
}

/// What one of so many requests cost, as if it were for each of `n`: flat is what does not depend on `n` at all.
fn one_of(cost: Work, requests: u64, n: u64) -> Work {
    let one = |all: u64| all * n / requests;
    Work { steps: one(cost.steps), looked_at: one(cost.looked_at), ..cost }
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

const DECADES: [u64; 4] = [10, 100, 1_000, 10_000];

/// Goal: a flush costs what there is to write. Method: so many L2 tables, each with one change.
#[test]
fn a_flush_costs_what_is_dirty() {
    let costs = DECADES.map(|pages| {
        let options = OpenOptions { cache_pages: Some(40_000), ..OpenOptions::new() };
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

/// Goal: a cache that is too small costs what is loaded and written, and holds its limit. Method: writes to tables in a strange order.
#[test]
fn a_full_cache_costs_what_goes_through_it() {
    // The L1 table of the largest takes 59 pages.
    const LIMIT: usize = 256;
    let costs = [1_000, 5_000, 30_000].map(|tables: u64| {
        let options = OpenOptions { cache_pages: Some(LIMIT), ..OpenOptions::new() };
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
        let options = OpenOptions { cache_pages: Some(10_000), ..OpenOptions::new() };
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

/// Goal: a request costs what its clusters do. Method: one write, then one discard of so many clusters.
#[test]
fn a_long_request_costs_what_it_covers() {
    let mut discards = Vec::new();
    let writes = [100, 1_000, 10_000, 100_000].map(|clusters: u64| {
        let options = OpenOptions { cache_pages: Some(10_000), ..OpenOptions::new() };
        let image = image(9, clusters * 512, options);
        let data = vec![1; clusters as usize * 512];
        let cost = work(&image, |image| image.write(0, &data).expect("there is room"));
        let length = clusters * 512;
        discards.push((
            clusters,
            work(&image, |image| image.discard(0, length).expect("nothing fails")),
        ));
        (clusters, cost)
    });
    assert_flat("a write, for each cluster", &writes);
    assert_flat("a discard, for each cluster", &discards);
}

/// Goal: what was discarded and not flushed costs other requests nothing. Method: reads and rewrites after so many discards.
#[test]
fn discarded_clusters_cost_others_nothing() {
    let costs = [100, 1_000, 10_000, 100_000].map(|clusters: u64| {
        let options = OpenOptions { cache_pages: Some(10_000), ..OpenOptions::new() };
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
        let options = OpenOptions { cache_pages: Some(10_000), ..OpenOptions::new() };
        let image = image(9, clusters * 512, options);
        image.write(0, &vec![1; clusters as usize * 512]).expect("there is room");
        image.flush().expect("nothing fails");
        image.discard(0, clusters * 512).expect("nothing fails");
        (clusters, work(&image, |image| image.flush().expect("nothing fails")))
    });
    assert_flat("a flush, for each discarded cluster", &costs);
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

/// An image whose first L2 tables hold these entries, one after the other; its refcounts are wrong.
fn with_entries(cluster_bits: u32, entries: impl Iterator<Item = u64>) -> SparseStorage {
    let storage = SparseStorage::default();
    let size = 1u64 << cluster_bits;
    create(&storage, &CreateOptions { cluster_bits, ..CreateOptions::new(1 << 40) })
        .expect("there is room");
    let first = 64u64 << 20;
    let entries: Vec<u8> = entries.flat_map(u64::to_be_bytes).collect();
    let tables = (entries.len() as u64).div_ceil(size);
    let l1: Vec<u8> =
        (0..tables).flat_map(|table| (1 << 63 | (first + table * size)).to_be_bytes()).collect();
    let mut header = [0; 8];
    storage.read_at(40, &mut header);
    storage.write_at(u64::from_be_bytes(header), &l1);
    storage.write_at(first, &entries);
    storage
}

/// Goal: a check counts what lies past the end of the file without a slot each, and knows when to stop. Method: a million entries that
/// follow each other past the end, and more than can be counted that do not.
#[test]
fn what_lies_past_the_end_is_counted_in_bounds() {
    const COPIED: u64 = 1 << 63;
    let far = 1u64 << 44;
    let following = (0..1 << 20).map(|index| COPIED | (far + index * 65_536));
    let report = check(&with_entries(16, following), Repair::All).expect("it can be read");
    assert_eq!(report.allocated_clusters, 1 << 20);
    assert!(report.is_writable());
    let scattered = (0..(1 << 20) + 1).map(|index| COPIED | (far + 2 * index * 65_536));
    let report = check(&with_entries(16, scattered), Repair::All).expect("it can be read");
    assert!(!report.is_writable());
}
