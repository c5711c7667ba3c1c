//! What a check says of one wrong entry: its place, its counts, and what each repair makes of it.
//!
//! ```text
//!   512-byte clusters, a disk of 64 KiB: two L2 tables of 64 entries, one refcount block of 256 entries of 16 bits
//! ```

use qcow2_core::blocking::{Image, check, create};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::{CheckReport, CreateOptions, IoError, MAX_FINDINGS, OpenOptions, Problem, Repair};

const CLUSTER: u64 = 512;
const COPIED: u64 = 1 << 63;

/// A closed image whose guest clusters 0, 1, 5, 100 and 2 were written, in this order.
struct Sample {
    bytes: Vec<u8>,
    /// Byte offset of the refcount table.
    table: u64,
    /// Byte offset of the refcount block.
    block: u64,
    /// Byte offset of the first L2 table.
    l2: u64,
}

impl Sample {
    fn new() -> Self {
        let storage = MemoryStorage::default();
        let shape = CreateOptions { cluster_bits: 9, ..CreateOptions::new(64 << 10) };
        create(&storage, &shape).expect("there is room");
        let options = OpenOptions { growth: 0, ..OpenOptions::new() };
        let image = Image::open(storage.clone(), options).expect("it was just made");
        for cluster in [0, 1, 5, 100, 2] {
            image.write(cluster * CLUSTER, &[7; CLUSTER as usize]).expect("there is room");
        }
        image.close().expect("there is room");
        let mut sample = Self { bytes: storage.to_vec(), table: 0, block: 0, l2: 0 };
        sample.table = sample.get(48);
        sample.block = sample.get(sample.table);
        sample.l2 = sample.get(sample.get(40)) & !COPIED;
        sample
    }

    fn get(&self, at: u64) -> u64 {
        let at = at as usize;
        u64::from_be_bytes(self.bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    fn put(&mut self, at: u64, value: u64) {
        self.bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_be_bytes());
    }

    /// Host cluster of a guest cluster of the first L2 table.
    fn host(&self, guest: u64) -> u64 {
        (self.get(self.l2 + guest * 8) & !COPIED) / CLUSTER
    }

    fn set_refcount(&mut self, cluster: u64, count: u16) {
        let at = (self.block + cluster * 2) as usize;
        self.bytes[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }

    fn check(&self, repair: Repair) -> (CheckReport, Vec<u8>) {
        let storage = MemoryStorage::new(self.bytes.clone());
        let report = check(&storage, repair).expect("an image");
        (report, storage.to_vec())
    }

    /// Asserts that a check finds exactly this, that looking changes nothing, and that a repair leaves an image in order.
    fn assert_found(&self, expected: &[Problem]) {
        let (report, bytes) = self.check(Repair::None);
        let found: Vec<_> = report.findings.iter().map(|finding| finding.problem.clone()).collect();
        assert_eq!(found, expected);
        let leaks = expected.iter().filter(|problem| matches!(problem, Problem::Leak { .. }));
        assert_eq!(report.leaks, leaks.count() as u64);
        assert_eq!(report.leaks + report.corruptions, expected.len() as u64);
        assert!(bytes == self.bytes, "looking changed it");
        let (report, bytes) = self.check(Repair::All);
        assert!(report.is_consistent(), "{report:#?}");
        let again = check(&MemoryStorage::new(bytes), Repair::None).expect("an image");
        assert_eq!(again.findings, []);
    }
}

#[test]
fn an_image_in_order_has_no_findings_and_exact_totals() {
    let sample = Sample::new();
    sample.assert_found(&[]);
    for repair in [Repair::None, Repair::Leaks, Repair::All] {
        let (report, bytes) = sample.check(repair);
        assert!(bytes == sample.bytes, "{repair:?} changed it");
        assert_eq!(report.image_end_offset, sample.bytes.len() as u64);
        assert_eq!(report.total_clusters, 128);
        assert_eq!(report.allocated_clusters, 5);
        // The data of 2 lies behind that of 100, and 5 behind 1.
        assert_eq!(report.fragmented_clusters, 2);
    }
}

#[test]
fn a_count_too_high_is_a_leak_and_one_too_low_is_not() {
    let sample = Sample::new();
    let cluster = sample.host(5);
    let mut high = Sample::new();
    high.set_refcount(cluster, 3);
    high.assert_found(&[Problem::Leak { cluster, stored: 3, counted: 1 }]);
    let (report, bytes) = high.check(Repair::Leaks);
    assert_eq!((report.leaks_fixed, report.corruptions), (1, 0));
    assert!(bytes == sample.bytes, "the leak was not all that changed");

    let mut low = Sample::new();
    low.set_refcount(cluster, 0);
    let at = low.l2 + 5 * 8;
    low.assert_found(&[Problem::RefcountTooLow { cluster, stored: 0, counted: 1 }]);
    let (report, bytes) = low.check(Repair::Leaks);
    assert_eq!((report.corruptions, report.corruptions_fixed), (1, 0));
    assert!(bytes == low.bytes, "a repair of leaks changed something else");

    let mut last = Sample::new();
    let end = last.bytes.len() as u64 / CLUSTER;
    last.set_refcount(end - 1, 0);
    last.assert_found(&[Problem::RefcountTooLow { cluster: end - 1, stored: 0, counted: 1 }]);
    assert_eq!(last.check(Repair::None).0.image_end_offset, end * CLUSTER);

    let mut free = Sample::new();
    free.set_refcount(end + 3, 1);
    free.assert_found(&[Problem::Leak { cluster: end + 3, stored: 1, counted: 0 }]);
    assert_eq!(free.check(Repair::None).0.image_end_offset, (end + 4) * CLUSTER);

    let mut unmarked = Sample::new();
    unmarked.put(at, cluster * CLUSTER);
    let entry = cluster * CLUSTER;
    unmarked.assert_found(&[Problem::Copied { at, entry, counted: 1 }]);
    assert!(unmarked.check(Repair::All).1 == sample.bytes, "the bit was not all that changed");

    let mut unmarked = Sample::new();
    let at = unmarked.get(40) + 8;
    let entry = unmarked.get(at) & !COPIED;
    unmarked.put(at, entry);
    unmarked.assert_found(&[Problem::Copied { at, entry, counted: 1 }]);
    assert!(unmarked.check(Repair::All).1 == sample.bytes, "the bit was not all that changed");
}

/// Goal: references are missed nowhere, and each of them is told up to a limit. Method: a refcount block of two units, whose second
/// one, or all of it, is lost.
#[test]
fn lost_counts_are_told_one_by_one() {
    const CLUSTER: u64 = 1024;
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions { cluster_bits: 10, ..CreateOptions::new(1 << 20) }).unwrap();
    let image = Image::open(storage.clone(), OpenOptions { growth: 0, ..OpenOptions::new() });
    let image = image.unwrap();
    image.write(0, &[7; 400 << 10]).unwrap();
    image.close().unwrap();
    let intact = storage.to_vec();
    let field = |at: usize| u64::from_be_bytes(intact[at..at + 8].try_into().unwrap()) as usize;
    let block = field(field(48));
    let used = intact.len() as u64 / CLUSTER;
    assert!(used < 512, "one block is enough");
    for lost in [256, 255, 0] {
        let storage = MemoryStorage::new(intact.clone());
        storage.with(|bytes| bytes[block + 2 * lost as usize..block + 1024].fill(0));
        let report = check(&storage, Repair::None).unwrap();
        let told: Vec<_> = report.findings.iter().map(|finding| finding.problem.clone()).collect();
        let all = lost..used;
        assert_eq!((report.corruptions, report.leaks), (all.end - all.start, 0));
        let too_low = |cluster| Problem::RefcountTooLow { cluster, stored: 0, counted: 1 };
        let expected: Vec<_> = all.map(too_low).take(MAX_FINDINGS).collect();
        assert_eq!(told, expected);
        check(&storage, Repair::All).unwrap();
        assert!(storage.to_vec() == intact);
    }
}

/// Goal: a cluster that is in use although its refcount says free is not given out, as far as that can be seen. Method: the
/// refcount of each cluster of the tables is made 0, and a cluster is asked for. With 512-byte clusters and a disk of 72 GiB the
/// L1 table has 36,864 clusters, and the refcount table three.
#[test]
fn a_table_is_not_given_out() {
    let storage = MemoryStorage::default();
    let shape = CreateOptions { cluster_bits: 9, ..CreateOptions::new(72 << 30) };
    create(&storage, &shape).unwrap();
    let bytes = storage.to_vec();
    let mut large = Sample { table: 0, block: 0, l2: 0, bytes };
    large.table = large.get(48);
    let (tables, l1) = (large.table / CLUSTER, large.get(40) / CLUSTER);
    let l1_end = l1 + (large.get(32) & u64::from(u32::MAX)) / 64;
    let clusters = [
        (0, "the header"),
        (tables, "the refcount table"),
        (tables + 2, "the refcount table"),
        (l1, "the L1 table"),
        (l1_end - 1, "the L1 table"),
    ];
    for (cluster, what) in clusters {
        let block = large.get(large.table + cluster / 256 * 8);
        let at = (block + cluster % 256 * 2) as usize;
        large.bytes[at + 1] = 0;
        assert_in_use(&large.bytes, cluster, what);
        large.bytes[at + 1] = 1;
    }

    let mut sample = Sample::new();
    let cluster = sample.l2 / CLUSTER;
    sample.set_refcount(cluster, 0);
    assert_in_use(&sample.bytes, cluster, "a table");
}

/// Asserts that a write which needs a cluster fails, naming `cluster`.
fn assert_in_use(bytes: &[u8], expected: u64, expected_what: &str) {
    let storage = MemoryStorage::new(bytes.to_vec());
    let image = Image::open(storage, OpenOptions::new()).expect("opening does not count");
    let mut nothing = [0; 512];
    image.read(0, &mut nothing).expect("reading does not count");
    let error = image.write(9 * CLUSTER, &[1]).expect_err("the next cluster is in use");
    let IoError::InUse { cluster, what } = error else { panic!("{error:?}") };
    assert_eq!((cluster, what), (expected, expected_what));
}

/// Goal: what was given up is not taken before that is durable, even where its refcount says free already.
#[test]
fn a_cluster_given_up_with_a_refcount_too_low_waits_for_a_flush() {
    let mut sample = Sample::new();
    let cluster = sample.host(1);
    sample.set_refcount(cluster, 0);
    let storage = MemoryStorage::new(sample.bytes);
    let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
    image.discard(CLUSTER, CLUSTER).unwrap();
    image.write(20 * CLUSTER, &[1]).unwrap();
    image.flush().unwrap();
    image.write(21 * CLUSTER, &[2]).unwrap();
    image.close().unwrap();
    sample.bytes = storage.to_vec();
    assert_ne!(sample.host(20), cluster);
    assert_eq!(sample.host(21), cluster);
}

/// Goal: more references than a refcount can say are told, and nothing is repaired. Method: refcounts of one bit, which say 1.
#[test]
fn references_that_cannot_be_counted_are_told() {
    let mut sample = Sample::new();
    let block = sample.block as usize..(sample.block + CLUSTER) as usize;
    let counts: Vec<u8> = sample.bytes[block.clone()].chunks(2).map(|count| count[1]).collect();
    sample.bytes[block.clone()].fill(0);
    for (at, eight) in block.zip(counts.chunks(8)) {
        sample.bytes[at] = (0..8).map(|bit| eight[bit] << bit).sum();
    }
    sample.bytes[99] = 0;
    sample.assert_found(&[]);
    let cluster = sample.host(5);
    sample.put(sample.l2 + 9 * 8, (cluster * CLUSTER) | COPIED);
    for repair in [Repair::None, Repair::All] {
        let (report, bytes) = sample.check(repair);
        assert!(!report.is_consistent());
        let found = report.findings.iter().map(|finding| &finding.problem);
        let too_many: Vec<_> =
            found.filter(|problem| matches!(problem, Problem::TooMany { .. })).collect();
        assert_eq!(too_many, [&Problem::TooMany { cluster, counted: 2 }]);
        assert!(bytes == sample.bytes, "{repair:?} changed it");
    }
}

/// Goal: a compressed cluster is counted like others, and may not be marked COPIED. Method: an entry becomes a compressed one of a
/// single sector at the same place; that is no stream, which nobody reads here.
#[test]
fn a_compressed_cluster_has_no_copied_bit() {
    const COMPRESSED: u64 = 1 << 62;
    let mut sample = Sample::new();
    let (at, cluster) = (sample.l2 + 5 * 8, sample.host(5));
    sample.put(at, (cluster * CLUSTER) | COMPRESSED);
    sample.assert_found(&[]);
    let entry = (cluster * CLUSTER) | COMPRESSED | COPIED;
    sample.put(at, entry);
    sample.assert_found(&[Problem::Copied { at, entry, counted: 1 }]);
}

#[test]
fn an_entry_is_named_by_its_place() {
    let mut beyond = Sample::new();
    let (at, length) = (beyond.l2 + 9 * 8, beyond.bytes.len() as u64);
    let host = length + 8 * CLUSTER;
    beyond.put(at, host | COPIED);
    let (report, _) = beyond.check(Repair::None);
    let first = report.findings.iter().map(|finding| &finding.problem).next();
    assert_eq!(first, Some(&Problem::BeyondEnd { at, host, length }));

    let mut table = Sample::new();
    let at = table.table + 3 * 8;
    table.put(at, host);
    let (report, _) = table.check(Repair::None);
    let first = report.findings.iter().map(|finding| &finding.problem).next();
    assert_eq!(first, Some(&Problem::BeyondEnd { at, host, length }));

    let mut shared = Sample::new();
    let cluster = shared.host(1);
    shared.put(shared.l2 + 3 * 8, (cluster * CLUSTER) | COPIED);
    let (report, _) = shared.check(Repair::None);
    let found: Vec<_> = report.findings.iter().map(|finding| &finding.problem).collect();
    assert!(found.contains(&&Problem::Shared { cluster, counted: 2 }), "{found:#?}");
    assert!(
        found.contains(&&Problem::RefcountTooLow { cluster, stored: 1, counted: 2 }),
        "{found:#?}"
    );
}
