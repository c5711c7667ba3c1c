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
const COMPRESSED: u64 = 1 << 62;
/// Of a compressed cluster: one sector more than the one in which it begins.
const SECOND_SECTOR: u64 = 1 << 61;

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
        let shape = CreateOptions::new(64 << 10).cluster_bits(9);
        create(&storage, &shape).expect("there is room");
        let options = OpenOptions::new().growth(0);
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

/// Goal: references are missed nowhere, and each of them is told up to a limit. Method: two refcount blocks of two units each, and a
/// part of one of them is lost.
#[test]
fn lost_counts_are_told_one_by_one() {
    const CLUSTER: u64 = 1024;
    const PER_BLOCK: u64 = 512;
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(1 << 20).cluster_bits(10)).unwrap();
    let image = Image::open(storage.clone(), OpenOptions::new().growth(0));
    let image = image.unwrap();
    image.write(0, &[7; 900 << 10]).unwrap();
    image.close().unwrap();
    let intact = storage.to_vec();
    let field = |at: u64| {
        let at = at as usize;
        u64::from_be_bytes(intact[at..at + 8].try_into().unwrap())
    };
    let used = intact.len() as u64 / CLUSTER;
    assert!(used > PER_BLOCK + PER_BLOCK / 2 + 10, "all units count something");
    for lost in [0, 255, 256, 700, 768] {
        let block = field(field(48) + lost / PER_BLOCK * 8);
        let range = block + lost % PER_BLOCK * 2..block + CLUSTER;
        let storage = MemoryStorage::new(intact.clone());
        storage.with(|bytes| bytes[range.start as usize..range.end as usize].fill(0));
        let report = check(&storage, Repair::None).unwrap();
        let told: Vec<_> = report.findings.iter().map(|finding| finding.problem.clone()).collect();
        let all = lost..used.min((lost / PER_BLOCK + 1) * PER_BLOCK);
        assert_eq!((report.corruptions, report.leaks), (all.end - all.start, 0));
        let too_low = |cluster| Problem::RefcountTooLow { cluster, stored: 0, counted: 1 };
        let expected: Vec<_> = all.map(too_low).take(MAX_FINDINGS).collect();
        assert_eq!(told, expected);
        check(&storage, Repair::All).unwrap();
        assert!(storage.to_vec() == intact);
    }
}

/// Goal: a leak is found wherever its count is. Method: a refcount block of two units, the second one for clusters that are not
/// there.
#[test]
fn a_leak_is_told_where_nothing_is_in_use() {
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(1 << 20).cluster_bits(10)).unwrap();
    let mut bytes = storage.to_vec();
    let field = |bytes: &[u8], at: usize| {
        u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) as usize
    };
    let block = field(&bytes, field(&bytes, 48));
    bytes[block + 2 * 300 + 1] = 1;
    let report = check(&MemoryStorage::new(bytes), Repair::None).unwrap();
    let told: Vec<_> = report.findings.iter().map(|finding| finding.problem.clone()).collect();
    assert_eq!(told, [Problem::Leak { cluster: 300, stored: 1, counted: 0 }]);
    assert_eq!(report.image_end_offset, 301 * 1024);
}

/// Goal: an L1 table is looked at in pieces, and each entry is told by its place. Method: 4,096 entries are a piece; the table of a
/// disk of 130 MiB has 4,160.
#[test]
fn a_long_l1_table_is_looked_at_to_its_end() {
    let storage = MemoryStorage::default();
    let shape = CreateOptions::new(130 << 20).cluster_bits(9);
    create(&storage, &shape).unwrap();
    let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
    let entries = [0, 1, 4095, 4096, 4097, 4159];
    for entry in entries {
        image.write(entry * 64 * CLUSTER, &[1; CLUSTER as usize]).unwrap();
    }
    image.close().unwrap();
    let mut sample = Sample { table: 0, block: 0, l2: 0, bytes: storage.to_vec() };
    sample.assert_found(&[]);
    let l1 = sample.get(40);
    let intact = sample.bytes.clone();
    let mut expected = Vec::new();
    for at in entries.map(|entry| l1 + entry * 8) {
        let entry = sample.get(at) & !COPIED;
        sample.put(at, entry);
        expected.push(Problem::Copied { at, entry, counted: 1 });
    }
    sample.assert_found(&expected);
    assert!(sample.check(Repair::All).1 == intact);
}

/// Goal: what stands behind the last entry of an L1 table is no entry, and no repair changes it. Method: it would be one without
/// its COPIED bit.
#[test]
fn bytes_behind_the_l1_table_are_left_alone() {
    let mut sample = Sample::new();
    let (l1, cluster) = (sample.get(40), sample.host(5));
    assert_eq!(sample.get(32) & u64::from(u32::MAX), 2);
    sample.put(l1 + 2 * 8, cluster * CLUSTER);
    sample.assert_found(&[]);
    let intact = sample.bytes.clone();
    sample.put(l1, sample.get(l1) & !COPIED);
    assert!(sample.check(Repair::All).1 == intact);
}

/// Goal: a COPIED bit that is missing, or where none may be, is seen where everything else is in order.
#[test]
fn a_lone_copied_bit_is_seen() {
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(64 << 10).cluster_bits(9)).unwrap();
    let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
    image.write(0, &[1; CLUSTER as usize]).unwrap();
    image.close().unwrap();
    let mut sample = Sample { table: 0, block: 0, l2: 0, bytes: storage.to_vec() };
    sample.l2 = sample.get(sample.get(40)) & !COPIED;
    let (at, marked) = (sample.l2, sample.get(sample.l2));
    let entry = marked & !COPIED;
    sample.put(at, entry);
    sample.assert_found(&[Problem::Copied { at, entry, counted: 1 }]);
    sample.put(at, marked);
    const ZERO: u64 = 1;
    for entry in [COPIED, COPIED | ZERO] {
        let at = at + 8;
        sample.put(at, entry);
        sample.assert_found(&[Problem::Copied { at, entry, counted: 0 }]);
    }
}

/// Goal: a cluster that is in use although its refcount says free is not given out, as far as that can be seen. Method: the
/// refcount of each cluster of the tables is made 0, and a cluster is asked for. With 512-byte clusters and a disk of 72 GiB the
/// L1 table has 36,864 clusters, and the refcount table three.
#[test]
fn a_table_is_not_given_out() {
    let storage = MemoryStorage::default();
    let shape = CreateOptions::new(72 << 30).cluster_bits(9);
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
    assert_in_use(&sample.bytes, cluster, "an L2 table");
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

/// Goal: compressed clusters are counted like others, may share what they lie in among themselves only, and are not marked COPIED.
/// Method: entries become compressed ones; what they lead to is no stream, which nobody reads here.
#[test]
fn compressed_clusters_are_counted() {
    let mut sample = Sample::new();
    let (at, cluster) = (sample.l2 + 8, sample.host(1));
    sample.put(at, (cluster * CLUSTER) | COMPRESSED);
    sample.assert_found(&[]);
    let report = sample.check(Repair::None).0;
    assert_eq!((report.allocated_clusters, report.compressed_clusters), (5, 1));
    assert_eq!(report.fragmented_clusters, 3);
    let entry = (cluster * CLUSTER) | COMPRESSED | COPIED;
    sample.put(at, entry);
    sample.assert_found(&[Problem::Copied { at, entry, counted: 1 }]);

    let mut two = Sample::new();
    let end = two.bytes.len() as u64 / CLUSTER;
    two.bytes.resize(((end + 2) * CLUSTER) as usize, 3);
    two.put(two.l2 + 9 * 8, (end * CLUSTER) | COMPRESSED | SECOND_SECTOR);
    two.put(two.l2 + 10 * 8, ((end + 1) * CLUSTER) | COMPRESSED);
    two.set_refcount(end, 1);
    two.set_refcount(end + 1, 2);
    two.assert_found(&[]);
    let cluster = end + 1;
    two.put(two.l2 + 11 * 8, cluster * CLUSTER);
    let (report, bytes) = two.check(Repair::All);
    let [shared, low] = &report.findings[..] else { panic!("{:#?}", report.findings) };
    assert_eq!(shared.problem, Problem::Shared { cluster, counted: 3 });
    assert_eq!(low.problem, Problem::RefcountTooLow { cluster, stored: 2, counted: 3 });
    assert!(!shared.repaired && low.repaired && !report.is_consistent());
    two.set_refcount(cluster, 3);
    assert!(bytes == two.bytes, "the refcount was not all that changed");
}

/// Goal: what is a table may be nothing else; a refcount structure moves out of the way where that is all that is wrong, and
/// what cannot be put right is left alone. Method: an L2 entry refers to each table.
#[test]
fn tables_are_not_shared() {
    let sample = Sample::new();
    let tables = [sample.get(40), sample.l2].map(|at| at / CLUSTER);
    for cluster in tables {
        let mut sample = Sample::new();
        sample.put(sample.l2 + 9 * 8, (cluster * CLUSTER) | COPIED);
        for repair in [Repair::None, Repair::Leaks, Repair::All, Repair::Rebuild] {
            let (report, bytes) = sample.check(repair);
            let first = report.findings.iter().map(|finding| &finding.problem).next();
            assert_eq!(first, Some(&Problem::Overlap { cluster, counted: 2 }));
            assert!(!report.is_consistent());
            assert!(bytes == sample.bytes, "{repair:?} changed it");
        }
    }

    for at in [sample.table, sample.block] {
        let cluster = at / CLUSTER;
        let mut once = Sample::new();
        once.put(once.l2 + 9 * 8, (cluster * CLUSTER) | COPIED);
        let (report, bytes) = once.check(Repair::All);
        assert_eq!(report.findings[0].problem, Problem::Overlap { cluster, counted: 2 });
        assert!(report.rebuilt && report.is_consistent(), "{report:#?}");
        let again = check(&MemoryStorage::new(bytes.clone()), Repair::None).expect("an image");
        assert_eq!(again.findings, []);
        // What was a refcount structure is the guest's now, as the entry says.
        assert_eq!(bytes[at as usize..][..512], once.bytes[at as usize..][..512]);

        let mut twice = Sample::new();
        twice.put(twice.l2 + 9 * 8, cluster * CLUSTER);
        twice.put(twice.l2 + 10 * 8, cluster * CLUSTER);
        for repair in [Repair::None, Repair::Leaks, Repair::All, Repair::Rebuild] {
            let (report, bytes) = twice.check(repair);
            assert_eq!(report.findings[0].problem, Problem::Overlap { cluster, counted: 3 });
            assert!(!report.is_consistent() && bytes == twice.bytes, "{repair:?}: {report:#?}");
        }
    }

    let mut one = Sample::new();
    let (cluster, second) = (one.block / CLUSTER, one.table + 8);
    one.put(second, one.block);
    let (report, bytes) = one.check(Repair::All);
    assert_eq!(report.findings[0].problem, Problem::Overlap { cluster, counted: 2 });
    assert!(report.rebuilt && report.is_consistent(), "{report:#?}");
    let again = check(&MemoryStorage::new(bytes), Repair::None).expect("an image");
    assert_eq!(again.findings, []);
}

/// Goal: a repair of leaks lowers counts and does nothing else; it takes the marks away if nothing else was wrong.
#[test]
fn a_repair_of_leaks_leaves_the_rest() {
    let intact = Sample::new();
    for mark in [0, 1, 2] {
        let mut sample = Sample::new();
        let (leaked, low) = (sample.host(0), sample.host(2));
        sample.bytes[79] |= mark; // 1: dirty, 2: corrupt.
        let (report, bytes) = sample.check(Repair::Leaks);
        assert!(report.is_consistent() && bytes == sample.bytes, "nothing leaks");
        sample.set_refcount(leaked, 2);
        let (report, bytes) = sample.check(Repair::Leaks);
        assert!(report.is_consistent() && report.leaks_fixed == 1);
        assert!(bytes == intact.bytes, "mark {mark}: the image is not as it was");
        sample.set_refcount(leaked, 1);
        sample.set_refcount(low, 0);
        let (report, bytes) = sample.check(Repair::Leaks);
        assert_eq!((report.corruptions, report.corruptions_fixed), (1, 0));
        assert!(bytes == sample.bytes, "nothing leaks");
        sample.set_refcount(leaked, 2);
        let (report, bytes) = sample.check(Repair::Leaks);
        assert_eq!((report.leaks, report.leaks_fixed), (1, 1));
        assert_eq!((report.corruptions, report.corruptions_fixed), (1, 0));
        let repaired: Vec<bool> = report.findings.iter().map(|finding| finding.repaired).collect();
        assert_eq!(repaired.iter().filter(|repaired| **repaired).count(), 1);
        sample.set_refcount(leaked, 1);
        assert!(bytes == sample.bytes, "mark {mark}: the leak was not all that changed");
    }
}

/// Goal: an image in order is marked neither dirty nor corrupt after a repair, whatever was done.
#[test]
fn a_repair_takes_the_marks_away() {
    let intact = Sample::new();
    for mark in [1, 2, 3] {
        let mut sample = Sample::new();
        sample.bytes[79] |= mark;
        let (report, bytes) = sample.check(Repair::All);
        assert_eq!(report.findings, []);
        assert!(bytes == intact.bytes, "the marks were not all that changed");
        let cluster = sample.host(5);
        sample.set_refcount(cluster, 0);
        assert!(sample.check(Repair::All).1 == intact.bytes);
    }
    // Whose the cluster is nobody knows, but it is counted: the dirty bit has nothing left to say, and the corrupt bit stays.
    for mark in [0, 1, 2] {
        let mut shared = Sample::new();
        shared.bytes[79] |= mark;
        let cluster = shared.host(1);
        let entries = [shared.l2 + 8, shared.l2 + 3 * 8];
        shared.put(entries[1], (cluster * CLUSTER) | COPIED);
        let (report, bytes) = shared.check(Repair::All);
        let told: Vec<_> = report.findings.iter().map(|finding| finding.problem.clone()).collect();
        let entry = (cluster * CLUSTER) | COPIED;
        let copied = |at| Problem::Copied { at, entry, counted: 2 };
        let expected = [
            Problem::Shared { cluster, counted: 2 },
            Problem::RefcountTooLow { cluster, stored: 1, counted: 2 },
            copied(entries[0]),
            copied(entries[1]),
        ];
        assert_eq!(told, expected);
        assert_eq!((report.corruptions, report.corruptions_fixed), (4, 3));
        assert!(report.is_writable());
        shared.bytes[79] &= !1;
        entries.into_iter().for_each(|at| shared.put(at, cluster * CLUSTER));
        shared.set_refcount(cluster, 2);
        assert!(bytes == shared.bytes, "mark {mark}");
    }
}

/// Goal: rebuilt refcount structures lie right behind what is in use, blocks where there is something to count, the table last.
#[test]
fn rebuilt_structures_are_where_they_should_be() {
    let intact = Sample::new();
    let end = intact.bytes.len() as u64 / CLUSTER;
    let rebuilt = |sample: &Sample, repair, blocks: &[(u64, u64)], length: u64| {
        let (report, bytes) = sample.check(repair);
        assert!(report.rebuilt && report.is_consistent(), "{report:#?}");
        let after = Sample { bytes, ..Sample::new() };
        assert_eq!(after.bytes.len() as u64, length * CLUSTER);
        assert_eq!(after.get(48), (length - 1) * CLUSTER);
        let table = (0..64).map(|index| (index, after.get(after.get(48) + index * 8)));
        let used: Vec<_> = table.filter(|&(_, block)| block != 0).collect();
        assert_eq!(
            used,
            blocks.iter().map(|&(at, block)| (at, block * CLUSTER)).collect::<Vec<_>>()
        );
        after.assert_found(&[]);
        after
    };
    let once = rebuilt(&intact, Repair::Rebuild, &[(0, end)], end + 2);
    // The old ones are free, and nobody puts new ones there.
    rebuilt(&once, Repair::Rebuild, &[(0, end + 2)], end + 4);

    // The last cluster of the file is free: new ones begin there.
    let mut longer = Sample::new();
    longer.bytes.resize(((end + 1) * CLUSTER) as usize, 0xee);
    rebuilt(&longer, Repair::Rebuild, &[(0, end)], end + 2);

    // A cluster that no block describes, and in between one that needs none.
    let mut far = Sample::new();
    far.bytes.resize(701 * CLUSTER as usize, 0);
    far.put(far.l2 + 9 * 8, (700 * CLUSTER) | COPIED);
    let (report, _) = far.check(Repair::None);
    let missing = Problem::RefcountTooLow { cluster: 700, stored: 0, counted: 1 };
    assert_eq!(report.findings[0].problem, missing);
    assert_eq!(report.corruptions, 1);
    rebuilt(&far, Repair::All, &[(0, 701), (2, 702)], 704);

    // A block for the structures alone.
    let mut border = Sample::new();
    border.bytes.resize(256 * CLUSTER as usize, 0);
    border.put(border.l2 + 9 * 8, (255 * CLUSTER) | COPIED);
    border.set_refcount(255, 1);
    rebuilt(&border, Repair::Rebuild, &[(0, 256), (1, 257)], 259);

    // Structures up to the last cluster that a block describes.
    let mut exact = Sample::new();
    exact.bytes.resize(256 * CLUSTER as usize, 0);
    exact.put(exact.l2 + 9 * 8, (253 * CLUSTER) | COPIED);
    exact.set_refcount(253, 1);
    rebuilt(&exact, Repair::Rebuild, &[(0, 254)], 256);

    // A compressed cluster that ends outside the file.
    let mut cut = Sample::new();
    cut.bytes.resize(((end + 1) * CLUSTER) as usize, 3);
    cut.put(cut.l2 + 9 * 8, (end * CLUSTER) | COMPRESSED | SECOND_SECTOR);
    rebuilt(&cut, Repair::Rebuild, &[(0, end + 2)], end + 4);

    // A table and blocks that lie outside the file hold nothing.
    for host in [end * CLUSTER, 800 * CLUSTER] {
        let mut lost = Sample::new();
        lost.put(48, host);
        let length = lost.bytes.len() as u64;
        let (report, _) = lost.check(Repair::None);
        assert_eq!(report.findings[0].problem, Problem::BeyondEnd { at: 48, host, length });
        rebuilt(&lost, Repair::All, &[(0, end)], end + 2);
    }
    let mut lost = Sample::new();
    lost.put(lost.table + 8, 800 * CLUSTER);
    rebuilt(&lost, Repair::All, &[(0, end)], end + 2);
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
