//! Images that are damaged in a way that leaves everything in its place: no repair makes them worse. *Worse* means that a unit that
//! could be read cannot be any more, or reads otherwise; that a way of opening that worked does not; or that a second attempt
//! cannot succeed.

use qcow2_core::blocking::{Image, check, create};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::{CheckReport, CreateOptions, Inline, OpenError, OpenOptions, Problem, Repair};

const COPIED: u64 = 1 << 63;
const DIRTY: u8 = 1;
const REPAIRS: [Repair; 4] = [Repair::Leaks, Repair::All, Repair::Rebuild, Repair::ZeroPastEnd];

/// The bytes of an image, to be changed by hand.
#[derive(Clone)]
struct Bytes {
    cluster: u64,
    disk: u64,
    bytes: Vec<u8>,
}

impl Bytes {
    /// A closed image of which each cluster of `written` holds its own number.
    fn with(cluster_bits: u32, disk: u64, written: &[u64]) -> Self {
        let storage = MemoryStorage::default();
        create(&storage, &CreateOptions::new(disk).cluster_bits(cluster_bits))
            .expect("it works in a sound image");
        let options = OpenOptions::new().growth(0);
        let image = Image::open(storage.clone(), options).expect("it works in a sound image");
        let cluster = 1 << cluster_bits;
        for &number in written {
            image
                .write(number * cluster, &vec![number as u8 + 1; cluster as usize])
                .expect("it works in a sound image");
        }
        image.close().expect("it works in a sound image");
        Self { cluster, disk, bytes: storage.to_vec() }
    }

    fn get(&self, at: u64) -> u64 {
        u64::from_be_bytes(self.bytes[at as usize..][..8].try_into().expect("eight bytes"))
    }

    fn put(&mut self, at: u64, value: u64) {
        self.bytes[at as usize..][..8].copy_from_slice(&value.to_be_bytes());
    }

    fn l1(&self) -> u64 {
        self.get(40)
    }

    /// Byte offset of the L2 entry of a guest cluster.
    fn entry(&self, guest: u64) -> u64 {
        let per_table = self.cluster / 8;
        let table = self.get(self.l1() + guest / per_table * 8) & !COPIED;
        table + guest % per_table * 8
    }

    fn host(&self, guest: u64) -> u64 {
        self.get(self.entry(guest)) & !COPIED
    }

    fn set_refcount(&mut self, host: u64, count: u16) {
        let block = self.get(self.get(48));
        let at = (block + host / self.cluster * 2) as usize;
        self.bytes[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }

    fn mark_dirty(&mut self) {
        self.bytes[79] |= DIRTY;
    }

    fn storage(&self) -> MemoryStorage {
        MemoryStorage::new(self.bytes.clone())
    }

    /// What each guest cluster reads as, where it can be read.
    fn read(&self) -> Vec<Option<Vec<u8>>> {
        read(self.storage(), self.cluster, self.disk)
    }

    /// Asserts that no repair makes it worse, and that opening it for writing works or not as `writable` says, twice.
    fn assert_kept(&self, writable: bool) {
        let before = self.read();
        for repair in REPAIRS {
            let storage = self.storage();
            for _ in 0..2 {
                let report = check(&storage, repair).expect("it works in a sound image");
                assert!(read(storage.clone(), self.cluster, self.disk) == before, "{repair:?}");
                let opened = Image::open(storage.clone(), OpenOptions::new());
                assert_eq!(opened.is_ok(), writable, "{repair:?}: {report:#?}");
                drop(opened);
            }
            let once = storage.to_vec();
            check(&storage, repair).expect("it works in a sound image");
            let rebuilds = repair == Repair::Rebuild && writable;
            assert!(rebuilds || storage.to_vec() == once, "{repair:?} finds work every time");
        }
        let storage = self.storage();
        for _ in 0..2 {
            let opened = Image::open(storage.clone(), OpenOptions::new());
            assert_eq!(opened.is_ok(), writable);
            if !writable {
                assert!(storage.to_vec() == self.bytes, "an image that was not opened was changed");
            }
            drop(opened);
            assert!(read(storage.clone(), self.cluster, self.disk) == before);
        }
    }
}

fn read(storage: MemoryStorage, cluster: u64, disk: u64) -> Vec<Option<Vec<u8>>> {
    let image = Image::open(storage, OpenOptions::read_only()).expect("it works in a sound image");
    let clusters = 0..disk / cluster;
    let read = |number| {
        let mut data = vec![0; cluster as usize];
        image.read(number * cluster, &mut data).ok().map(|()| data)
    };
    clusters.map(read).collect()
}

fn problems(report: &CheckReport) -> Vec<&Problem> {
    report.findings.iter().map(|finding| &finding.problem).collect()
}

/// Writes every third guest cluster and some more, closes, and asserts that all others read as before.
fn assert_writing_keeps_the_rest(storage: &MemoryStorage, cluster: u64, disk: u64, spare: &[u64]) {
    let before = read(storage.clone(), cluster, disk);
    let image =
        Image::open(storage.clone(), OpenOptions::new()).expect("it works in a sound image");
    let chosen = |number: u64| number.is_multiple_of(3) && !spare.contains(&number);
    for number in (0..disk / cluster).filter(|&number| chosen(number)) {
        image
            .write(number * cluster, &vec![0xcc; cluster as usize])
            .expect("it works in a sound image");
    }
    image.close().expect("it works in a sound image");
    let after = read(storage.clone(), cluster, disk);
    for (number, (before, after)) in (0..).zip(before.into_iter().zip(after)) {
        let expected = if chosen(number) { Some(vec![0xcc; cluster as usize]) } else { before };
        assert!(after == expected, "guest cluster {number}");
    }
}

#[test]
fn an_entry_past_the_end_of_the_file_stays_and_is_counted() {
    let sound = Bytes::with(12, 256 << 10, &[0, 1, 2, 5]);
    let length = sound.bytes.len() as u64;
    let near = length + 8 * sound.cluster;
    let far = length + (1 << 30);
    for (host, dirty) in [(near, true), (near, false), (far, true), (far, false)] {
        let mut image = sound.clone();
        image.put(image.entry(9), host | COPIED);
        if dirty {
            image.mark_dirty();
        }
        image.assert_kept(true);
        let storage = image.storage();
        let report = check(&storage, Repair::All).unwrap();
        // A file is made longer up to a bound; what points further stays a finding.
        assert_eq!(report.is_consistent(), host == near, "{report:#?}");
        assert!(report.is_writable());
        assert_eq!(storage.to_vec().len() as u64 >= near + sound.cluster, host == near);
        // Its cluster is never given to anybody else.
        assert_writing_keeps_the_rest(&storage, image.cluster, image.disk, &[9]);
        let after = Bytes { bytes: storage.to_vec(), ..image.clone() };
        assert_eq!(after.host(9), host);
        assert!((0..64).filter(|&guest| guest != 9).all(|guest| after.host(guest) != host));
        // Written itself, it goes elsewhere, or where the file reaches by now.
        let opened = Image::open(storage.clone(), OpenOptions::new()).unwrap();
        opened.write(9 * image.cluster, &[0xdd; 512]).unwrap();
        opened.close().unwrap();
        let report = check(&storage, Repair::None).unwrap();
        assert!(report.is_consistent(), "{report:#?}");
    }
}

#[test]
fn entries_past_the_end_become_zeroes_only_on_request() {
    let mut image = Bytes::with(12, 256 << 10, &[0, 1, 2, 5]);
    let host = image.bytes.len() as u64 + (1 << 30);
    image.put(image.entry(9), host | COPIED);
    let before = image.read();
    for repair in [Repair::Leaks, Repair::All, Repair::Rebuild] {
        let storage = image.storage();
        check(&storage, repair).unwrap();
        assert_eq!(Bytes { bytes: storage.to_vec(), ..image.clone() }.host(9), host, "{repair:?}");
    }
    let storage = image.storage();
    let report = check(&storage, Repair::ZeroPastEnd).unwrap();
    assert!(report.is_consistent(), "{report:#?}");
    assert_eq!(check(&storage, Repair::None).unwrap().findings, []);
    assert_eq!(Bytes { bytes: storage.to_vec(), ..image.clone() }.host(9), 1);
    assert!(read(storage, image.cluster, image.disk) == before);
}

#[test]
fn an_l2_table_past_the_end_of_the_file_stays_and_is_counted() {
    // Eight L2 tables.
    let mut image = Bytes::with(9, 256 << 10, &[0, 1, 70]);
    let host = image.bytes.len() as u64 + 20 * image.cluster;
    image.put(image.l1() + 3 * 8, host | COPIED);
    for dirty in [false, true] {
        if dirty {
            image.mark_dirty();
        }
        image.assert_kept(true);
    }
    let storage = image.storage();
    assert_writing_keeps_the_rest(&storage, image.cluster, image.disk, &[]);
}

/// Goal: an L2 table that the file does not reach is replaced when something is to be mapped through it. Method: one that begins where
/// the file ends, and one far past that.
#[test]
fn an_l2_table_past_the_end_of_the_file_is_replaced() {
    let guest = 3 * 64;
    for far in [0, 20] {
        let mut image = Bytes::with(9, 256 << 10, &[0, 1, 70]);
        let host = image.bytes.len() as u64 + far * image.cluster;
        image.put(image.l1() + 3 * 8, host | COPIED);
        image.set_refcount(host, 1);
        let storage = image.storage();
        let options = OpenOptions::new().growth(0);
        let opened = Image::open(storage.clone(), options).unwrap();
        opened.write(guest * image.cluster, &[9; 512]).unwrap();
        opened.close().unwrap();
        let after = Bytes { bytes: storage.to_vec(), ..image };
        assert_ne!(after.get(after.l1() + 3 * 8) & !COPIED, host, "{far}");
        assert_eq!(after.read()[guest as usize].as_ref().unwrap()[..], [9; 512], "{far}");
    }
}

#[test]
fn a_cluster_that_two_map_is_safe_to_write_once_it_is_counted() {
    for (dirty, counted) in [(true, true), (true, false), (false, true)] {
        let mut image = Bytes::with(12, 256 << 10, &[0, 1, 2, 5]);
        let host = image.host(1);
        image.put(image.entry(1), host);
        image.put(image.entry(9), host);
        if counted {
            image.set_refcount(host, 2);
        }
        if dirty {
            image.mark_dirty();
        }
        image.assert_kept(true);
        let storage = image.storage();
        let opened = Image::open(storage.clone(), OpenOptions::new()).unwrap();
        let size = image.cluster;
        opened.write(size, &vec![0xee; size as usize]).unwrap();
        opened.close().unwrap();
        let after = read(storage.clone(), size, image.disk);
        assert_eq!(after[1].as_ref().unwrap()[..], vec![0xee; size as usize]);
        assert_eq!(after[9].as_ref().unwrap()[..], vec![2; size as usize]);
        check(&storage, Repair::All).unwrap();
        assert_eq!(check(&storage, Repair::None).unwrap().findings, []);
    }
}

#[test]
fn an_l2_entry_that_makes_no_sense_is_no_reason_to_refuse_the_rest() {
    let sound = Bytes::with(12, 256 << 10, &[0, 1, 2, 5]);
    let host = sound.host(2);
    // Unaligned, with a reserved bit, with both; one that touches what another entry refers to.
    for entry in [host + 512, host | 2, (host + 512) | 2, sound.host(5) | COPIED | 4] {
        for dirty in [false, true] {
            let mut image = sound.clone();
            image.put(image.entry(2), entry);
            if dirty {
                image.mark_dirty();
            }
            assert_eq!(image.read()[2], None);
            image.assert_kept(true);
            let storage = image.storage();
            let report = check(&storage, Repair::All).unwrap();
            assert!(report.is_writable() && !report.is_consistent(), "{report:#?}");
            let kept = Bytes { bytes: storage.to_vec(), ..image.clone() };
            // The one that says COPIED has its cluster with another: it must not say so to anybody.
            assert_eq!(kept.get(kept.entry(2)), entry & !COPIED);
            assert_writing_keeps_the_rest(&storage, image.cluster, image.disk, &[]);
            // Nobody has been given what the entry may mean.
            let after = Bytes { bytes: storage.to_vec(), ..image.clone() };
            let meant = (entry & 0x00ff_ffff_ffff_fe00) as usize;
            let data = meant..meant + image.cluster as usize;
            assert!(after.bytes[data.clone()] == image.bytes[data], "{entry:#x}");
        }
    }
}

/// Goal: compressed data that may reach a whole cluster past the end of the file is told, and a repair makes the file reach its end.
#[test]
fn compressed_data_may_reach_past_the_end() {
    const COMPRESSED: u64 = 1 << 62;
    let mut image = Bytes::with(10, 64 << 10, &[0]);
    let (at, end) = (image.entry(1), image.bytes.len() as u64);
    // Two sectors follow the one in which it begins, and the file ends behind that one.
    image.put(at, COMPRESSED | 2 << 60 | end);
    image.set_refcount(end, 1);
    image.set_refcount(end + 1024, 1);
    image.bytes.resize(end as usize + 512, 7);
    let length = end + 512;
    let report = check(&image.storage(), Repair::None).unwrap();
    assert_eq!(problems(&report), [&Problem::BeyondEnd { at, host: end, length }]);
    for repair in [Repair::All, Repair::ZeroPastEnd] {
        let storage = image.storage();
        let report = check(&storage, repair).unwrap();
        assert!(report.is_consistent(), "{repair:?}: {report:#?}");
        assert_eq!(storage.to_vec().len() as u64, end + 2048);
        let again = check(&storage, Repair::None).unwrap();
        assert!(again.is_consistent() && again.findings.is_empty(), "{repair:?}: {again:#?}");
    }
    image.bytes.resize(end as usize + 1024, 7);
    let report = check(&image.storage(), Repair::None).unwrap();
    assert!(report.findings.is_empty(), "{report:#?}");
}

/// Goal: bytes past the end of a file are zeroes to every reader, inside an L2 table as well. Method: the only L2 table is moved to
/// the end, and the file ends somewhere behind the entry that is in use; every other guest cluster is written.
#[test]
fn a_file_may_end_inside_an_l2_table() {
    for (cluster_bits, kept) in [(12, 512), (12, 16), (12, 8), (16, 4096), (10, 8)] {
        let size = 1u64 << cluster_bits;
        let disk = 130 * size.min(4096);
        let mut image = Bytes::with(cluster_bits, disk, &[0]);
        let (old, end) = (image.entry(0), image.bytes.len() as u64);
        assert_eq!(end % size, 0);
        let l1 = image.l1();
        image.bytes.extend_from_within(old as usize..(old + size) as usize);
        image.put(l1, end | COPIED);
        image.set_refcount(old, 0);
        image.set_refcount(end, 1);
        image.assert_kept(true);
        image.bytes.truncate((end + kept) as usize);
        image.assert_kept(true);
        let storage = image.storage();
        let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
        for guest in (1..disk / size).rev() {
            image.write(guest * size, &vec![guest as u8; size as usize]).unwrap();
        }
        image.close().unwrap();
        let report = check(&storage, Repair::None).unwrap();
        assert!(report.is_consistent(), "{report:#?}");
        let back = read(storage, size, disk);
        for (guest, found) in (0..).zip(back).take((disk / size) as usize) {
            let expected = if guest == 0 { 1 } else { guest as u8 };
            assert_eq!(found, Some(vec![expected; size as usize]), "guest cluster {guest}");
        }
    }
}

/// Goal: bytes past the end of a file are zeroes to every reader, inside an entry as well. Method: the L1 table comes last in a new
/// image; one entry of it leads to a table, and the file ends inside that entry.
#[test]
fn a_file_may_end_inside_an_entry() {
    const DISK: u64 = 256 << 20;
    for (cluster_bits, missing, matters) in [
        (16, 1, false),
        (16, 2, false),
        (16, 3, true),
        (16, 7, true),
        (12, 1, false),
        (12, 2, true),
    ] {
        let storage = MemoryStorage::default();
        create(&storage, &CreateOptions::new(DISK).cluster_bits(cluster_bits)).unwrap();
        let mut image =
            Bytes { cluster: 1 << cluster_bits, disk: 4 << 20, bytes: storage.to_vec() };
        // By hand: an L2 table and data before the L1 table, which is moved behind them.
        let (l1, size) = (image.l1(), image.cluster);
        let (table, data, moved) = (l1, l1 + size, l1 + 2 * size);
        let l1_bytes = (image.get(32) & 0xffff_ffff) * 8;
        image.bytes.resize((moved + l1_bytes.next_multiple_of(size)) as usize, 0);
        image.bytes[table as usize..moved as usize].fill(0);
        image.put(40, moved);
        image.put(moved, table | COPIED);
        image.put(table, data | COPIED);
        image.bytes[data as usize..][..512].fill(9);
        for cluster in table / size..image.bytes.len() as u64 / size {
            image.set_refcount(cluster * size, 1);
        }
        let whole = image.read();
        assert_eq!(whole[0].as_ref().unwrap()[..512], [9; 512]);
        image.bytes.truncate((moved + 8 - missing) as usize);
        let same = image.read() == whole;
        assert!(same || matters, "nothing that matters is missing");
        for dirty in [false, true] {
            if dirty {
                image.mark_dirty();
            }
            image.assert_kept(!matters);
            let report = check(&image.storage(), Repair::All).unwrap();
            assert_eq!(report.is_writable(), !matters, "{report:#?}");
            let (at, length) = (moved, image.bytes.len() as u64);
            let told = problems(&report).contains(&&Problem::CutEntry { at, length });
            assert_eq!(told, matters, "{report:#?}");
            if matters {
                assert!(!report.is_consistent());
                let opened = Image::open(image.storage(), OpenOptions::new());
                let error = opened.expect_err("it is not opened").to_string();
                assert!(error.contains("ends inside the entry"), "{error}");
            } else {
                assert_writing_keeps_the_rest(&image.storage(), size, image.disk, &[]);
            }
        }
    }
}

/// Goal: a rebuild may take more blocks than there are clusters in the file. Method: many entries past the end, each counted in a block of
/// its own.
#[test]
fn a_rebuild_may_be_larger_than_the_file() {
    let mut image = Bytes::with(16, 64 << 20, &[0]);
    let per_block = image.cluster / 2;
    for guest in 1..20 {
        image.put(image.entry(guest), (guest * 3 * per_block * image.cluster) | COPIED);
    }
    let report = check(&image.storage(), Repair::Rebuild).unwrap();
    assert!(report.rebuilt, "{report:#?}");
}

/// An image with a bitmap of one table and one cluster of data, and autoclear bits.
struct WithBitmap {
    image: Bytes,
    directory: u64,
}

impl WithBitmap {
    fn new(autoclear: u64) -> Self {
        let mut image = Bytes::with(12, 256 << 10, &[0, 1, 2, 5]);
        let (directory, size) = (image.bytes.len() as u64, image.cluster);
        image.bytes.resize((directory + 3 * size) as usize, 0);
        let (table, data) = (directory + size, directory + 2 * size);
        image.put(directory, table);
        // One entry; no flags; type 1 and granularity; a name of one byte.
        image.put(directory + 8, 1 << 32);
        image.put(directory + 16, 0x0110_0001 << 32);
        image.bytes[directory as usize + 24] = b'b';
        image.put(table, data);
        image.bytes[data as usize..][..512].fill(0x55);
        for host in [directory, table, data] {
            image.set_refcount(host, 1);
        }
        // The extension comes first; there is nothing else at this cluster size.
        let at = image.get(96) & 0xffff_ffff;
        image.put(at, 0x2385_2875 << 32 | 24);
        image.put(at + 8, 1 << 32);
        image.put(at + 16, 32);
        image.put(at + 24, directory);
        image.put(at + 32, 0);
        image.put(88, autoclear);
        Self { image, directory }
    }
}

#[test]
fn bitmaps_are_in_use_while_their_bit_vouches_for_them() {
    let WithBitmap { image, directory } = WithBitmap::new(1);
    let report = check(&image.storage(), Repair::None).unwrap();
    assert_eq!(report.findings, []);
    for dirty in [false, true] {
        let mut image = image.clone();
        // A leak, so that there is something to repair.
        image.set_refcount(directory + 3 * image.cluster, 1);
        if dirty {
            image.mark_dirty();
        }
        for repair in REPAIRS {
            let storage = image.storage();
            let report = check(&storage, repair).unwrap();
            assert!(report.is_consistent() && report.leaks == 1, "{report:#?}");
            let after = Bytes { bytes: storage.to_vec(), ..image.clone() };
            assert_eq!(after.get(88), 1, "the bit vouches for them still");
            let bitmaps = directory as usize..(directory + 3 * image.cluster) as usize;
            assert!(after.bytes[bitmaps.clone()] == image.bytes[bitmaps]);
            assert_eq!(check(&storage, Repair::None).unwrap().findings, []);
        }
    }
}

#[test]
fn a_bit_that_nobody_maintains_goes_before_what_it_vouches_for() {
    for (autoclear, dirty) in [(1, false), (1, true), (1 << 9 | 1, true), (1 << 9, false)] {
        let WithBitmap { mut image, .. } = WithBitmap::new(autoclear);
        if dirty {
            image.mark_dirty();
        }
        let storage = image.storage();
        let opened = Image::open(storage.clone(), OpenOptions::new()).unwrap();
        drop(opened);
        let after = Bytes { bytes: storage.to_vec(), ..image.clone() };
        assert_eq!(after.get(88), 0);
        // A dirty image is left without leaks; one that was clean keeps its counts until it is repaired.
        assert_eq!(check(&storage, Repair::None).unwrap().leaks, if dirty { 0 } else { 3 });
        check(&storage, Repair::All).unwrap();
        assert_eq!(check(&storage, Repair::None).unwrap().findings, []);
    }
    // A repair keeps what it counts, and nothing else.
    let WithBitmap { mut image, directory } = WithBitmap::new(1 << 9 | 1);
    let storage = image.storage();
    check(&storage, Repair::All).unwrap();
    assert!(storage.to_vec() == image.bytes, "there is nothing to repair");
    image.set_refcount(directory + 3 * image.cluster, 1);
    let storage = image.storage();
    assert!(check(&storage, Repair::Leaks).unwrap().is_consistent());
    assert_eq!(Bytes { bytes: storage.to_vec(), ..image }.get(88), 1);
}

#[test]
fn damaged_bitmaps_are_told_and_nothing_is_repaired_over_them() {
    let sound = WithBitmap::new(1);
    let directory = sound.directory;
    let size = sound.image.cluster;
    let length = sound.image.bytes.len() as u64;
    let table = directory + size;
    let changes = [
        (directory, table + 512),
        (directory, length),
        (directory, 0),
        (directory + 16, 0x0210_0001 << 32),
        (directory + 16, 0x0110_fff0 << 32),
        (directory + 8, 0x0fff_ffff << 32),
        (table, directory + 2 * size + 512),
        (table, (directory + 2 * size) | 1),
        (table, (directory + 2 * size) | 2),
        (table, (directory + 2 * size) | 1 << 56),
        (table, length),
        // Another part of the bitmaps, a table, guest data.
        (table, directory),
        (table, sound.image.l1()),
        (table, sound.image.host(1)),
    ];
    for (at, value) in changes {
        let mut image = sound.image.clone();
        image.put(at, value);
        image.set_refcount(length, 1);
        for repair in REPAIRS {
            let storage = image.storage();
            let report = check(&storage, repair).unwrap();
            assert!(!report.is_consistent() && !report.is_writable(), "{at:#x}: {report:#?}");
            assert!(storage.to_vec() == image.bytes, "{repair:?} with {value:#x} at {at:#x}");
        }
        // Writing gives the bitmaps up, and with them what is wrong.
        image.mark_dirty();
        let storage = image.storage();
        Image::open(storage.clone(), OpenOptions::new()).unwrap();
        assert_eq!(check(&storage, Repair::None).unwrap().findings, []);
    }
}

#[test]
fn what_is_refused_by_name_is_not_changed() {
    let mut image = Bytes::with(12, 256 << 10, &[0, 1]);
    image.put(image.entry(9), image.l1() | COPIED);
    image.mark_dirty();
    image.assert_kept(false);
    let error = Image::open(image.storage(), OpenOptions::new()).err().unwrap();
    assert!(matches!(error, OpenError::Unrepairable(_)), "{error}");
}

/// Goal: data that two guest clusters map stays while one of them does. Method: an image whose two first clusters are one, counted
/// twice; the first is given up and its space passed down, everything else is filled, and the second still has its data.
#[test]
fn what_two_clusters_map_stays_for_the_second() {
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(32 << 10).cluster_bits(9)).unwrap();
    let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
    image.write(0, &[7; 512]).unwrap();
    image.close().unwrap();
    storage.with(|bytes| {
        let at = |bytes: &[u8], at: usize| {
            let entry = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
            usize::try_from(entry & 0x00ff_ffff_ffff_fe00).unwrap()
        };
        let l1 = at(bytes, 40);
        let l2 = at(bytes, l1);
        let data = at(bytes, l2);
        // Neither entry is the only one.
        bytes[l2] &= 0x7f;
        bytes.copy_within(l2..l2 + 8, l2 + 8);
        let table = at(bytes, 48);
        let counts = at(bytes, table);
        bytes[counts + data / 512 * 2 + 1] = 2;
    });
    assert!(check(&storage, Repair::None).unwrap().is_writable());
    let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
    // What is free is known from here on.
    image.write(8192, &[6; 512]).unwrap();
    image.discard(0, 512).unwrap();
    image.flush().unwrap();
    image.flush().unwrap();
    image.write(0, &[8; 512]).unwrap();
    image.write(1024, &[9; 4096]).unwrap();
    let mut data = [0; 512];
    image.read(512, &mut data).unwrap();
    assert_eq!(data, [7; 512]);
    image.close().unwrap();
    let report = check(&storage, Repair::All).unwrap();
    assert_eq!((report.leaks, report.corruptions), (0, report.corruptions_fixed), "{report:?}");
    let image = Image::open(storage, OpenOptions::new()).unwrap();
    image.read(512, &mut data).unwrap();
    assert_eq!(data, [7; 512]);
}

/// Goal: an entry that makes no sense loses nothing of what it may mean, to whoever takes it for an entry: what others have too is not said to
/// be its own. Method: the entry of one guest cluster leads to the cluster of another, with a reserved bit, or into it.
#[test]
fn an_entry_that_makes_no_sense_keeps_what_it_may_mean() {
    for wrong in [0x40, 512] {
        let mut bytes = Bytes::with(12, 1 << 20, &[0, 1, 2]);
        let (first, second) = (bytes.entry(0), bytes.entry(1));
        let host = bytes.host(0);
        bytes.put(second, COPIED | host | wrong);
        bytes.mark_dirty();
        bytes.assert_kept(true);
        let storage = bytes.storage();
        let report = check(&storage, Repair::All).expect("it is an image");
        assert!(!report.is_consistent(), "what it should have said, nobody knows");
        storage.with(|after| {
            let get = |at: u64| u64::from_be_bytes(after[at as usize..][..8].try_into().unwrap());
            assert_eq!((get(first), get(second)), (host, host | wrong), "{wrong:#x}");
        });
        // Alone there it stays as it is.
        let mut bytes = Bytes::with(12, 1 << 20, &[0, 1, 2]);
        bytes.put(second, bytes.get(second) | 0x40);
        let storage = bytes.storage();
        check(&storage, Repair::All).expect("it is an image");
        assert!(storage.to_vec() == bytes.bytes);
    }
}

/// Goal: a compressed cluster with a bitmap of subclusters, which makes no sense, does not lose its stream: nobody else gets its space.
#[test]
fn a_stream_whose_entry_makes_no_sense_is_not_given_away() {
    let storage = MemoryStorage::default();
    let options = CreateOptions::new(1 << 20).cluster_bits(14).extended_l2(true);
    create(&storage, &options).expect("there is room");
    let image = Image::open(storage.clone(), OpenOptions::new().growth(0)).expect("in order");
    image.write_compressed(0, &[7; 1 << 14], &Inline).expect("there is room");
    image.close().expect("nothing fails");
    let compressed = check(&storage, Repair::None).expect("it is an image").compressed_clusters;
    assert_eq!(compressed, 1);
    let bytes = storage.to_vec();
    let get = |at: u64| u64::from_be_bytes(bytes[at as usize..][..8].try_into().unwrap());
    let table = get(get(40)) & !COPIED;
    storage.with(|bytes| bytes[table as usize + 15] |= 1);
    let damaged = storage.to_vec();
    for repair in [Repair::Leaks, Repair::All] {
        let report = check(&storage, repair).expect("it is an image");
        assert_eq!((report.corruptions, report.leaks), (1, 0), "{report:?}");
        assert!(storage.to_vec() == damaged, "{repair:?}");
    }
}

/// Goal: an image whose header says by mistake that guest data is in another file does not lose its guest data to a repair: once the bit is
/// cleared again, all is as it was.
#[test]
fn a_data_file_that_is_none_costs_nothing() {
    const DATA_FILE: u8 = 4;
    let sound = Bytes::with(12, 1 << 20, &[0, 1, 2, 200]);
    let mut bytes = sound.clone();
    bytes.bytes[79] |= DATA_FILE;
    for repair in [Repair::Leaks, Repair::All, Repair::Rebuild] {
        let storage = bytes.storage();
        let report = check(&storage, repair).expect("it is an image");
        assert_eq!((report.corruptions, report.leaks), (4, 0), "{report:?}");
        storage.with(|bytes| bytes[79] &= !DATA_FILE);
        let report = check(&storage, Repair::None).expect("it is an image");
        assert!(report.is_consistent(), "{repair:?}: {report:?}");
        assert!(read(storage, sound.cluster, sound.disk) == sound.read());
    }
}
