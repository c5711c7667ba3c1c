//! Guest data and new tables never lie over metadata, whatever an L2 entry or a refcount says: the request is refused, the corrupt
//! bit is durable before it fails, reads go on, and what was written before can be flushed.

use qcow2_core::blocking::{Image, check, create};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::{CreateOptions, IoError, OpenError, OpenOptions, Overlap, Repair, Zeroing};

const CLUSTER: u64 = 512;
const COPIED: u64 = 1 << 63;
const ZERO: u64 = 1;
const CORRUPT: u8 = 2;

struct Sample {
    bytes: Vec<u8>,
}

impl Sample {
    /// A closed image whose guest clusters 0..4 and 100 were written: two L2 tables.
    fn new() -> Self {
        let storage = MemoryStorage::default();
        let shape = CreateOptions::new(64 << 10).cluster_bits(9);
        create(&storage, &shape).expect("there is room");
        let image = Image::open(storage.clone(), OpenOptions::new()).expect("it was just made");
        for cluster in [0, 1, 2, 3, 100] {
            image.write(cluster * CLUSTER, &[7; CLUSTER as usize]).expect("there is room");
        }
        image.close().expect("there is room");
        Self { bytes: storage.to_vec() }
    }

    fn get(&self, at: u64) -> u64 {
        u64::from_be_bytes(self.bytes[at as usize..][..8].try_into().expect("eight bytes"))
    }

    fn put(&mut self, at: u64, value: u64) {
        self.bytes[at as usize..][..8].copy_from_slice(&value.to_be_bytes());
    }

    /// Byte offset of an L2 table.
    fn table(&self, index: u64) -> u64 {
        self.get(self.get(40) + index * 8) & !COPIED
    }

    /// Host offset and name of every kind of table.
    fn tables(&self) -> [(u64, &'static str); 6] {
        let refcounts = self.get(48);
        [
            (0, "the header"),
            (self.get(40), "the L1 table"),
            (self.table(0), "an L2 table"),
            (self.table(1), "an L2 table"),
            (refcounts, "the refcount table"),
            (self.get(refcounts), "a refcount block"),
        ]
    }

    /// The refcount of the cluster at `host`, of `size` bytes.
    fn refcount(&self, host: u64, size: u64) -> u16 {
        let at = self.get(self.get(48)) + host / size * 2;
        (self.get(at & !7) >> (48 - at % 8 * 8)) as u16
    }

    fn set_refcount(&mut self, host: u64, count: u16) {
        let at = self.get(self.get(48)) + host / CLUSTER * 2;
        self.bytes[at as usize..][..2].copy_from_slice(&count.to_be_bytes());
    }
}

fn assert_refused(result: Result<(), IoError>, host: u64, what: &str) {
    let error = result.expect_err("it would lie over a table");
    let IoError::InUse { cluster, what: found } = &error else { panic!("{error:?}") };
    assert_eq!((*cluster, *found), (host / CLUSTER, what));
}

type Change = fn(&Image<MemoryStorage>) -> Result<(), IoError>;

#[test]
fn an_entry_that_leads_to_a_table_is_not_written_through() {
    let changes: [Change; 4] = [
        |image| image.write(2 * CLUSTER, &[1; CLUSTER as usize]),
        |image| image.write(2 * CLUSTER + 100, &[1]),
        |image| image.write(CLUSTER, &[1; 3 * CLUSTER as usize]),
        |image| image.write_zeroes(2 * CLUSTER + 8, 16, Zeroing::Keep),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        for (host, what) in Sample::new().tables() {
            for flags in [COPIED, COPIED | ZERO] {
                // An entry cannot lead to cluster 0, and writing zeroes where zeroes are is no write.
                if host == 0 || (number == 3 && flags & ZERO != 0) {
                    continue;
                }
                let mut sample = Sample::new();
                sample.put(sample.table(0) + 2 * 8, host | flags);
                let storage = MemoryStorage::new(sample.bytes.clone());
                let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
                image.write(0, &[9; CLUSTER as usize]).unwrap();
                assert_refused(change(&image), host, what);
                let now = storage.to_vec();
                assert_eq!(now[79] & CORRUPT, CORRUPT, "{what}: it was not marked");
                let table = host as usize..(host + CLUSTER) as usize;
                assert!(now[table.clone()] == sample.bytes[table], "{what} was written over");
                let again = image.write(5 * CLUSTER, &[1]);
                assert!(matches!(again, Err(IoError::Poisoned(_))), "{again:?}");
                let mut back = [0; CLUSTER as usize];
                image.read(0, &mut back).unwrap();
                assert_eq!(back, [9; CLUSTER as usize]);
                image.read(3 * CLUSTER, &mut back).unwrap();
                assert_eq!(back, [7; CLUSTER as usize]);
                // What was written before is not lost.
                image.flush().unwrap();
                image.close().unwrap();
                let reopened = Image::open(storage.clone(), OpenOptions::new());
                assert!(matches!(reopened, Err(OpenError::MarkedCorrupt)));
                let image = Image::open(storage, OpenOptions::read_only()).unwrap();
                image.read(0, &mut back).unwrap();
                assert_eq!(back, [9; CLUSTER as usize]);
            }
        }
    }
}

/// Goal: a table is not given back with the guest cluster of an entry that leads to it, and its space stays its own. Method: every way in
/// which a guest cluster gives its host cluster up, plain or compressed, and then as many writes as there is room for.
#[test]
fn a_table_that_an_entry_leads_to_is_not_given_back() {
    const COMPRESSED: u64 = 1 << 62;
    let changes: [Change; 4] = [
        |image| image.discard(2 * CLUSTER, CLUSTER),
        |image| image.write_zeroes(2 * CLUSTER, CLUSTER, Zeroing::Free),
        |image| image.write(2 * CLUSTER, &[1; CLUSTER as usize]),
        |image| image.shrink(2 * CLUSTER),
    ];
    for change in changes {
        for (host, what) in Sample::new().tables() {
            for flags in [0, COPIED, ZERO, COPIED | ZERO, COMPRESSED] {
                if host == 0 {
                    continue;
                }
                let mut sample = Sample::new();
                sample.put(sample.table(0) + 2 * 8, host | flags);
                let storage = MemoryStorage::new(sample.bytes.clone());
                let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
                // It may be refused.
                let _ = change(&image);
                let _ = image.flush();
                for cluster in 10..40 {
                    let _ = image.write(cluster * CLUSTER, &[0xee; CLUSTER as usize]);
                    let _ = image.flush();
                }
                let _ = image.close();
                let now = Sample { bytes: storage.to_vec() };
                let table = &now.bytes[host as usize..(host + CLUSTER) as usize];
                let is_guests = table == [0xee; CLUSTER as usize];
                let is_gone = table == [0; CLUSTER as usize];
                assert!(!is_guests && !is_gone, "{what}, {flags:#x}");
                assert_ne!(now.refcount(host, CLUSTER), 0, "{what}, {flags:#x}");
            }
        }
    }
}

/// Goal: the same where entries are extended. Method: parts of clusters too.
#[test]
fn a_table_that_an_extended_entry_leads_to_is_not_given_back() {
    const COMPRESSED: u64 = 1 << 62;
    const CLUSTER: u64 = 1 << 14;
    const ALL: u64 = 0xffff_ffff;
    let changes: [Change; 6] = [
        |image| image.discard(2 * CLUSTER, CLUSTER),
        |image| image.write_zeroes(2 * CLUSTER, CLUSTER, Zeroing::Free),
        |image| image.write_zeroes(2 * CLUSTER + 512, 1024, Zeroing::Free),
        |image| image.write(2 * CLUSTER, &[1; CLUSTER as usize]),
        |image| image.write(2 * CLUSTER + 512, &[1; 512]),
        |image| image.shrink(2 * CLUSTER),
    ];
    let whole = {
        let storage = MemoryStorage::default();
        create(&storage, &CreateOptions::new(1 << 20).cluster_bits(14).extended_l2(true)).unwrap();
        let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
        image.write(0, &[7; 4 * CLUSTER as usize]).unwrap();
        image.close().unwrap();
        Sample { bytes: storage.to_vec() }
    };
    let (l1, refcounts) = (whole.get(40), whole.get(48));
    for change in changes {
        for host in [l1, whole.table(0), refcounts, whole.get(refcounts)] {
            for flags in [0, COPIED, COMPRESSED] {
                let mut sample = Sample { bytes: whole.bytes.clone() };
                let at = sample.table(0) + 2 * 16;
                sample.put(at, host | flags);
                sample.put(at + 8, if flags == COMPRESSED { 0 } else { ALL });
                let storage = MemoryStorage::new(sample.bytes);
                let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
                // It may be refused.
                let _ = change(&image);
                let _ = image.flush();
                for cluster in 10..20 {
                    let _ = image.write(cluster * CLUSTER, &[0xee; CLUSTER as usize]);
                    let _ = image.flush();
                }
                let _ = image.close();
                let now = Sample { bytes: storage.to_vec() };
                assert_ne!(now.refcount(host, CLUSTER), 0, "{host:#x}, {flags:#x}");
                let table = &now.bytes[host as usize..(host + CLUSTER) as usize];
                for byte in [0, 1, 0xee] {
                    assert!(table.iter().any(|it| *it != byte), "{host:#x}, {flags:#x}: {byte:#x}");
                }
            }
        }
    }
}

#[test]
fn a_table_that_is_counted_as_free_is_not_given_out() {
    for (host, what) in Sample::new().tables() {
        let mut sample = Sample::new();
        sample.set_refcount(host, 0);
        let storage = MemoryStorage::new(sample.bytes.clone());
        let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
        // Nothing but what it takes to write there is in the cache.
        assert_refused(image.write(10 * CLUSTER, &[1; CLUSTER as usize]), host, what);
        let now = storage.to_vec();
        assert_eq!(now[79] & CORRUPT, CORRUPT, "{what}");
        assert!(now[512..] == sample.bytes[512..], "{what}: more than the mark changed");
        let report = check(&storage, Repair::All).unwrap();
        assert!(report.is_consistent(), "{report:#?}");
        let image = Image::open(storage, OpenOptions::new()).unwrap();
        image.write(10 * CLUSTER, &[1; CLUSTER as usize]).unwrap();
        image.close().unwrap();
    }
}

/// Goal: nor is one to which an L1 entry leads that makes no sense. Method: the same with a reserved bit in the entry; data that is
/// mapped where such an entry leads can be written.
#[test]
fn where_a_senseless_entry_leads_nothing_is_put() {
    let mut sample = Sample::new();
    let (l1, table) = (sample.get(40), sample.table(1));
    sample.put(l1 + 8, table | COPIED | 1 << 62);
    sample.set_refcount(table, 0);
    let storage = MemoryStorage::new(sample.bytes.clone());
    let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
    let what = "what an entry that makes no sense leads to";
    assert_refused(image.write(10 * CLUSTER, &[1; CLUSTER as usize]), table, what);
    assert_eq!(storage.to_vec()[79] & CORRUPT, CORRUPT);

    let mut sample = Sample::new();
    let data = sample.get(sample.table(0)) & !COPIED;
    sample.put(l1 + 8, data | COPIED | 1 << 62);
    let image = Image::open(MemoryStorage::new(sample.bytes), OpenOptions::new()).unwrap();
    image.write(0, &[1; CLUSTER as usize]).unwrap();
}

/// Goal: a table that two L1 entries lead to is not changed through either, COPIED or not.
#[test]
fn a_table_of_two_entries_is_not_changed() {
    let mut sample = Sample::new();
    let (l1, table) = (sample.get(40), sample.table(0));
    sample.put(l1 + 8, table | COPIED);
    let storage = MemoryStorage::new(sample.bytes.clone());
    let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
    let error = image.write(10 * CLUSTER, &[1; CLUSTER as usize]).unwrap_err();
    assert!(matches!(error, IoError::SharedTable { host, .. } if host == table), "{error:?}");
    for cluster in [0, 2] {
        let error = image.discard(cluster * CLUSTER, CLUSTER).unwrap_err();
        assert!(matches!(error, IoError::SharedTable { host, .. } if host == table), "{error:?}");
    }
    // In place nothing of the table changes.
    image.write(CLUSTER, &[5; CLUSTER as usize]).unwrap();
    image.flush().unwrap();
    let kept = table as usize..(table + CLUSTER) as usize;
    assert!(storage.to_vec()[kept.clone()] == sample.bytes[kept]);
}

/// Goal: a table that is not COPIED is changed if nothing else is counted for it. Method: one that is counted once and twice, and
/// requests of all kinds.
#[test]
fn a_table_that_is_counted_twice_is_not_changed() {
    let changes: [Change; 3] = [
        |image| image.write(10 * CLUSTER, &[1; CLUSTER as usize]),
        |image| image.discard(2 * CLUSTER, CLUSTER),
        |image| image.write_zeroes(2 * CLUSTER, CLUSTER, Zeroing::Keep),
    ];
    for change in changes {
        for count in [1, 2] {
            let mut sample = Sample::new();
            let (l1, table) = (sample.get(40), sample.table(0));
            sample.put(l1, table);
            sample.set_refcount(table, count);
            let image = Image::open(MemoryStorage::new(sample.bytes), OpenOptions::new()).unwrap();
            match change(&image) {
                Ok(()) => assert_eq!(count, 1),
                Err(IoError::SharedTable { host, refcount }) => {
                    assert_eq!((host, refcount, count), (table, 2, 2));
                }
                Err(other) => panic!("{other:?}"),
            }
        }
    }
}

/// Goal: a cluster that is a table of two kinds is refused, even to be read. Method: an L1 entry that leads to the L1 table.
#[test]
fn a_table_of_two_kinds_is_not_read() {
    let mut sample = Sample::new();
    let l1 = sample.get(40);
    sample.put(l1 + 8, l1 | COPIED);
    let image = Image::open(MemoryStorage::new(sample.bytes), OpenOptions::read_only()).unwrap();
    let error = image.read(100 * CLUSTER, &mut [0; CLUSTER as usize]).unwrap_err();
    let told = matches!(error, IoError::TwoTables { cluster } if cluster == l1 / CLUSTER);
    assert!(told, "{error:?}");
}

/// Goal: as much is looked at as is asked for, and what is not looked at is not read. Method: an entry that leads to a table of each kind,
/// written through.
#[test]
fn what_is_not_to_be_looked_at_is_written_over() {
    for overlap in [Overlap::None, Overlap::Constant, Overlap::All] {
        for (host, what) in Sample::new().tables() {
            // An entry cannot lead to cluster 0.
            if host == 0 {
                continue;
            }
            let mut sample = Sample::new();
            sample.put(sample.table(0) + 2 * 8, host | COPIED);
            let storage = MemoryStorage::new(sample.bytes.clone());
            let open = OpenOptions::new().overlap(overlap);
            let image = Image::open(storage.clone(), open).unwrap();
            let result = image.write(2 * CLUSTER, &[1; CLUSTER as usize]);
            let is_root = what == "the L1 table" || what == "the refcount table";
            if overlap == Overlap::All || overlap == Overlap::Constant && is_root {
                assert_refused(result, host, what);
            } else {
                result.unwrap_or_else(|error| panic!("{overlap:?}, {what}: {error}"));
                assert_eq!(storage.to_vec()[host as usize..][..8], [1; 8], "{overlap:?}, {what}");
            }
        }
    }
    // A sound image works alike.
    for overlap in [Overlap::None, Overlap::Constant] {
        let storage = MemoryStorage::default();
        create(&storage, &CreateOptions::new(1 << 20).cluster_bits(9)).unwrap();
        let image = Image::open(storage.clone(), OpenOptions::new().overlap(overlap)).unwrap();
        image.write(0, &vec![7; 300 << 10]).unwrap();
        image.shrink(100 << 10).unwrap();
        image.grow(200 << 10).unwrap();
        image.close().unwrap();
        let report = check(&storage, Repair::None).unwrap();
        assert!(report.findings.is_empty(), "{report:#?}");
    }
}

/// Goal: new tables are known like old ones. Method: fill an image beyond one refcount block and several L2 tables, and let an entry
/// lead to each table of now.
#[test]
fn new_tables_are_known_too() {
    let storage = MemoryStorage::default();
    let shape = CreateOptions::new(1 << 20).cluster_bits(9);
    create(&storage, &shape).unwrap();
    let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
    image.write(0, &vec![7; 300 << 10]).unwrap();
    image.flush().unwrap();
    let sample = Sample { bytes: storage.to_vec() };
    let mut tables: Vec<_> = (0..9).map(|index| sample.table(index)).collect();
    let refcounts = sample.get(48);
    tables.extend((0..2).map(|index| sample.get(refcounts + index * 8)));
    // The first L2 table is in the cache, and not the unit that is changed below the image's feet.
    for host in tables {
        let mut bytes = sample.bytes.clone();
        let at = (sample.table(0) + 2 * 8) as usize;
        bytes[at..at + 8].copy_from_slice(&(host | COPIED).to_be_bytes());
        let image = Image::open(MemoryStorage::new(bytes), OpenOptions::new()).unwrap();
        let error = image.write(2 * CLUSTER, &[1; CLUSTER as usize]).unwrap_err();
        assert!(matches!(error, IoError::InUse { cluster, .. } if cluster == host / CLUSTER));
    }
    image.close().unwrap();
}
