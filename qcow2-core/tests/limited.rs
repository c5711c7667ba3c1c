//! Storages with limits. One that is full: what was given up is taken back before an allocation fails, and one that fails
//! loses nothing. One that transfers 512 bytes at a time: everything works, and nothing asks for more at once. One of whose
//! updates fails. One that keeps its length and what it held, like a block device. One that is particular about where buffers
//! lie. A file whose length the system limits.

use std::io;
use std::ops::Range;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use qcow2_core::blocking::{Image, block_on, check, create, create_over};
use qcow2_core::storage::file::{Access, Existing, FileStorage};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{AnyStorage, Durability, IoBuf, Limits, Storage};
use qcow2_core::{
    Backing, CreateError, CreateOptions, Format, IoError, OpenError, OpenOptions, Preallocation,
    Problem, Raw, Repair,
};

use crate::shown::any;

const CLUSTER: u64 = 512;
const COPIED: u64 = 1 << 63;

/// What a system says when there is no room: on the device, for this user, in a file.
const NO_ROOM: [io::ErrorKind; 3] =
    [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge];

/// A storage in memory that cannot be made longer than a limit, and transfers no more than a limit at once. One of its updates
/// may fail, and it may claim to be longer than it is. It may be of a fixed size.
#[derive(Clone, Debug)]
struct Limited {
    bytes: MemoryStorage,
    most: Arc<AtomicU64>,
    /// What it says to whoever asks for more than that.
    full: io::ErrorKind,
    /// Lengths that were asked for.
    lengths: Arc<Mutex<Vec<u64>>>,
    /// Its length stays, and it has been used before.
    fixed: bool,
    /// How many updates are left before one that fails; it is the only one.
    updates: Arc<AtomicU64>,
    claimed: u64,
    /// What each eight bytes past its end read as, up to the length that it claims.
    behind: u64,
    max_transfer: usize,
    /// What the address of each buffer is a multiple of. If that is anything, another buffer comes back, whose address is not.
    alignment: usize,
}

impl Limited {
    fn new(bytes: Vec<u8>, max_transfer: usize) -> Self {
        let [most, updates] = [(); 2].map(|()| Arc::new(u64::MAX.into()));
        Self {
            bytes: MemoryStorage::new(bytes),
            most,
            full: io::ErrorKind::StorageFull,
            lengths: Arc::default(),
            fixed: false,
            updates,
            claimed: 0,
            behind: 0,
            max_transfer,
            alignment: 1,
        }
    }

    fn fixed(bytes: Vec<u8>) -> Self {
        let storage = Self { fixed: true, ..Self::new(bytes, 1 << 30) };
        storage.limit(0);
        storage
    }

    /// From now on, the storage is no longer made longer than `most` bytes.
    fn limit(&self, most: u64) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// What comes back for a buffer.
    fn give_back(&self, buf: IoBuf) -> IoBuf {
        if self.alignment == 1 {
            return buf;
        }
        let mut other = IoBuf::zeroed(buf.len() + 1, self.alignment);
        drop(other.split_to(1));
        other.copy_from_slice(&buf);
        other
    }

    fn length(&self) -> u64 {
        self.bytes.with(|bytes| bytes.len() as u64)
    }

    fn update(&self, end: u64) -> io::Result<()> {
        if self.updates.fetch_sub(1, Ordering::Relaxed) == 0 {
            return Err(io::Error::other("it failed"));
        }
        if end > self.most.load(Ordering::Relaxed).max(self.length()) {
            return Err(self.full.into());
        }
        Ok(())
    }
}

impl Storage for Limited {
    fn limits(&self) -> Limits {
        Limits {
            max_transfer: self.max_transfer,
            alignment: self.alignment,
            unwritten_reads_zero: !self.fixed,
            ..self.bytes.limits()
        }
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.len().await?.max(self.claimed))
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.lengths.lock().expect("nobody panics with it").push(len);
        self.update(len)?;
        if self.fixed { Ok(()) } else { self.bytes.set_len(len).await }
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (IoBuf, io::Result<()>) {
        assert!(buf.len() <= self.max_transfer, "{} bytes at once", buf.len());
        assert!(
            (buf.as_ptr() as usize).is_multiple_of(self.alignment),
            "a buffer at {:?}",
            buf.as_ptr()
        );
        let (mut buf, result) = self.bytes.read(offset, buf).await;
        if self.behind > 0 && offset >= self.length() {
            buf.as_chunks_mut().0.fill(self.behind.to_be_bytes());
        }
        (self.give_back(buf), result)
    }

    async fn write(&self, offset: u64, buf: IoBuf, how: Durability) -> (IoBuf, io::Result<()>) {
        assert!(buf.len() <= self.max_transfer, "{} bytes at once", buf.len());
        assert!(
            (buf.as_ptr() as usize).is_multiple_of(self.alignment),
            "a buffer at {:?}",
            buf.as_ptr()
        );
        let (buf, result) = match self.update(offset + buf.len() as u64) {
            Ok(()) => self.bytes.write(offset, buf, how).await,
            Err(full) => (buf, Err(full)),
        };
        (self.give_back(buf), result)
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.update(range.end)?;
        self.bytes.write_zeroes(range).await
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        if self.fixed { Ok(()) } else { self.bytes.discard(range).await }
    }

    async fn flush(&self) -> io::Result<()> {
        self.bytes.flush().await
    }

    async fn settle(&self) -> io::Result<()> {
        self.bytes.settle().await
    }
}

/// A new image whose file grows by no more than it needs.
fn image() -> (Limited, Image<AnyStorage>) {
    image_on(Limited::new(Vec::new(), 1 << 30))
}

fn image_on(storage: Limited) -> (Limited, Image<AnyStorage>) {
    let shape = CreateOptions::new(1 << 20).cluster_bits(9);
    create(&any(&storage), &shape).expect("there is room");
    let options = OpenOptions::new().growth(0);
    let image = Image::open(any(&storage), options).expect("it was just made");
    (storage, image)
}

fn write(image: &Image<AnyStorage>, cluster: u64) -> Result<(), IoError> {
    image.write(cluster * CLUSTER, &[cluster as u8 + 1; CLUSTER as usize])
}

/// Closes the image, opens it again and compares: the clusters in `written` hold their data, the others of the first 300 zeroes.
fn assert_holds(storage: &Limited, image: Image<AnyStorage>, written: impl Fn(u64) -> bool) {
    image.close().expect("closing takes no room");
    let report = check(&any(storage), Repair::None).expect("an image");
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:#?}", report.findings);
    let image = Image::open(any(storage), OpenOptions::read_only()).expect("an image");
    for cluster in 0..300 {
        let mut back = [0; CLUSTER as usize];
        image.read(cluster * CLUSTER, &mut back).expect("within the disk");
        let expected = if written(cluster) { cluster as u8 + 1 } else { 0 };
        assert_eq!(back, [expected; CLUSTER as usize], "cluster {cluster}");
    }
}

fn assert_full(result: Result<(), IoError>) {
    let error = result.expect_err("there is no room");
    let IoError::Storage { source, .. } = &error else { panic!("{error:?}") };
    assert!(NO_ROOM.contains(&source.kind()), "{error}");
}

#[test]
fn a_discarded_cluster_is_taken_before_an_allocation_fails() {
    for full in NO_ROOM {
        let (storage, image) = image_on(Limited { full, ..Limited::new(Vec::new(), 1 << 30) });
        (0..4).for_each(|cluster| write(&image, cluster).unwrap());
        storage.limit(storage.length());
        assert_full(write(&image, 10));
        assert_full(write(&image, 10));
        image.discard(0, 2 * CLUSTER).unwrap();
        write(&image, 10).unwrap_or_else(|error| panic!("{full:?}: {error}"));
        write(&image, 11).unwrap();
        assert_full(write(&image, 12));
        storage.limit(u64::MAX);
        write(&image, 13).unwrap();
        assert_holds(&storage, image, |cluster| matches!(cluster, 2 | 3 | 10 | 11 | 13));
    }
}

/// Goal: a longer L1 table is found room for where the file cannot get longer, and leaves alone what is too short for it, so that a power
/// cut leaks no more than the table. Method: many holes of one cluster, all known, one that the table fits in, and one that is just too
/// short for the next.
#[test]
fn a_table_takes_one_hole_of_a_full_storage() {
    let (storage, image) = image();
    let cluster = |table: u64, entry: u64| table * 64 + entry;
    image.write(0, &vec![7; (cluster(16, 0) * CLUSTER) as usize]).unwrap();
    let holes = (0..cluster(12, 0)).step_by(3);
    let discard = |first: u64, count| image.discard(first * CLUSTER, count * CLUSTER).unwrap();
    holes.clone().for_each(|hole| discard(hole, 1));
    discard(cluster(13, 5), 4);
    discard(cluster(14, 5), 7);
    image.flush().unwrap();
    image.flush().unwrap();
    storage.limit(storage.length());
    // 256 entries are 4 clusters, and 512 entries 8.
    image.grow(256 * 64 * CLUSTER).unwrap();
    // As a power cut finds it: the old table is not given back yet.
    let report = check(&any(&Limited::new(storage.bytes.to_vec(), 1 << 30)), Repair::None).unwrap();
    assert_eq!(report.corruptions, 0, "{:#?}", report.findings);
    assert!(report.leaks <= 1, "{:#?}", report.findings);
    let no_room = image.grow(512 * 64 * CLUSTER).expect_err("there is no hole of eight clusters");
    assert!(matches!(no_room, IoError::Storage { .. }), "{no_room}");
    let holes = holes.filter(|hole| *hole > 200).take(20);
    holes.for_each(|hole| image.write(hole * CLUSTER, &[8; 512]).unwrap());
    image.close().unwrap();
    let report = check(&any(&storage), Repair::None).unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:#?}", report.findings);
}

/// A new image whose first 16 L2 tables are full, but for seven free clusters that follow each other, the first in this place.
fn image_with_a_hole(place: u64) -> (Limited, Image<AnyStorage>) {
    let (storage, image) = image();
    image.write(0, &vec![7; (16 * 64 * CLUSTER) as usize]).expect("there is room");
    image.discard(place * CLUSTER, 7 * CLUSTER).expect("nothing fails");
    image.flush().expect("nothing fails");
    image.flush().expect("nothing fails");
    (storage, image)
}

/// Goal: a table takes as much of a hole of a full storage as it needs, and the rest stays free. Method: a table of four clusters in a hole
/// of seven, a power cut, and then data in the others.
#[test]
fn a_table_leaves_the_rest_of_its_hole() {
    let place = 13 * 64 + 5;
    let (storage, image) = image_with_a_hole(place);
    storage.limit(storage.length());
    image.grow(256 * 64 * CLUSTER).unwrap();
    // As a power cut finds it: the old table is not given back yet.
    let report = check(&any(&Limited::new(storage.bytes.to_vec(), 1 << 30)), Repair::None).unwrap();
    assert_eq!(report.corruptions, 0, "{:#?}", report.findings);
    assert!(report.leaks <= 1, "{:#?}", report.findings);
    for cluster in place..place + 3 {
        image.write(cluster * CLUSTER, &[8; CLUSTER as usize]).unwrap();
    }
    image.close().unwrap();
    let report = check(&any(&storage), Repair::None).unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:#?}", report.findings);
}

/// Goal: only where there is no room a hole is looked for. Method: the same hole, and a file that does not get longer for another reason.
#[test]
fn a_table_is_not_put_into_a_hole_after_another_error() {
    let (storage, image) = image_with_a_hole(13 * 64 + 5);
    storage.updates.store(0, Ordering::Relaxed);
    assert!(image.grow(256 * 64 * CLUSTER).is_err());
}

/// Goal: a table finds a hole whose clusters are counted in two pages. Method: pages that count 256 clusters, a hole of 20 over the border
/// between two of them, and a table of 18.
#[test]
fn a_table_takes_a_hole_that_two_pages_count() {
    const SIZE: u64 = 4096;
    let storage = Limited::new(Vec::new(), 1 << 30);
    create(&any(&storage), &CreateOptions::new(4 << 20).cluster_bits(12)).unwrap();
    let options = OpenOptions::new().growth(0).page_size(512);
    let image = Image::open(any(&storage), options).unwrap();
    image.write(0, &vec![7; 300 * SIZE as usize]).unwrap();
    image.discard(240 * SIZE, 20 * SIZE).unwrap();
    image.flush().unwrap();
    image.flush().unwrap();
    storage.limit(storage.length());
    image.grow(18 * 512 * 512 * SIZE).unwrap();
    image.close().unwrap();
    let report = check(&any(&storage), Repair::None).unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:#?}", report.findings);
}

/// Goal: a rebuild finds room for its structures where the file cannot get longer.
#[test]
fn a_full_storage_is_rebuilt_in_what_is_free() {
    let (storage, image) = image();
    (0..100).for_each(|cluster| write(&image, cluster).unwrap());
    image.discard(20 * CLUSTER, 50 * CLUSTER).unwrap();
    image.close().unwrap();
    storage.limit(storage.length());
    assert!(check(&any(&storage), Repair::Rebuild).unwrap().rebuilt);
    let image = Image::open(any(&storage), OpenOptions::new()).unwrap();
    assert_holds(&storage, image, |cluster| matches!(cluster, 0..20 | 70..100));
}

/// Goal: the same where there is no room for a refcount block. Method: a block describes 256 clusters, and the file has as many.
#[test]
fn a_discarded_cluster_is_taken_where_a_refcount_block_does_not_fit() {
    let (storage, image) = image();
    let last = (0..300)
        .take_while(|&cluster| {
            write(&image, cluster).unwrap();
            storage.length() < 256 * CLUSTER
        })
        .count() as u64;
    assert_eq!(storage.length(), 256 * CLUSTER);
    storage.limit(storage.length());
    assert_full(write(&image, 299));
    image.discard(7 * CLUSTER, CLUSTER).unwrap();
    write(&image, 7).unwrap();
    assert_full(write(&image, 299));
    storage.limit(u64::MAX);
    write(&image, 299).unwrap();
    assert_holds(&storage, image, |cluster| cluster <= last || cluster == 299);
}

/// Goal: a file that cannot grow as far as it would like to grows as far as it has to, whatever says so.
#[test]
fn what_is_needed_is_taken_where_more_does_not_fit() {
    for (full, growth) in NO_ROOM.into_iter().flat_map(|full| [(full, 1 << 20), (full, u64::MAX)]) {
        let storage = Limited { full, ..Limited::new(Vec::new(), 1 << 30) };
        let shape = CreateOptions::new(1 << 20).cluster_bits(9);
        create(&any(&storage), &shape).unwrap();
        let options = OpenOptions::new().growth(growth);
        let image = Image::open(any(&storage), options).unwrap();
        // Data, and the first L2 table.
        let room = 4 + 1;
        storage.limit(storage.length() + room * CLUSTER);
        for cluster in 0..4 {
            write(&image, cluster).unwrap_or_else(|error| panic!("{full:?}, {growth}: {error}"));
        }
        assert_full(write(&image, 4));
        assert_holds(&storage, image, |cluster| cluster < 4);
    }
}

/// Goal: a storage that is full is not asked twice for the same length. Method: once before, once after what was given up is
/// taken back.
#[test]
fn a_full_storage_is_asked_once() {
    let (storage, image) = image();
    write(&image, 0).unwrap();
    storage.limit(storage.length());
    storage.lengths.lock().unwrap().clear();
    assert_full(write(&image, 1));
    let next = storage.length() + CLUSTER;
    assert_eq!(*storage.lengths.lock().unwrap(), [next, next]);
}

/// What may lie on a device: trash, or an image of 64 KiB clusters whose first one is full of what looks like extensions.
fn used_before(len: u64) -> [Vec<u8>; 2] {
    let old = MemoryStorage::default();
    create(&any(&old), &CreateOptions::new(1 << 20)).expect("memory grows");
    let mut old = old.to_vec();
    let header_length = usize::from(old[103]);
    let extension = [0x1234_5678_u32, 56].map(u32::to_be_bytes).concat();
    for at in (header_length..(64 << 10) - 64).step_by(64) {
        old[at..at + 64].fill(0xee);
        old[at..at + 8].copy_from_slice(&extension);
    }
    old.resize(len as usize, 0xdd);
    [vec![0xff; len as usize], old]
}

/// Goal: a device is used in place, up to its end, over whatever it holds, and what was given up is taken again when it is
/// full. Method: its size is no multiple of a cluster's.
#[test]
fn an_image_fills_a_device() {
    for (cluster_bits, lazy_refcounts) in [(9, false), (9, true), (12, false), (12, true)] {
        let size = 1 << cluster_bits;
        for bytes in used_before(300 * size + 17) {
            let storage = Limited::fixed(bytes);
            let shape = CreateOptions::new(400 * size)
                .cluster_bits(cluster_bits)
                .lazy_refcounts(lazy_refcounts);
            create(&any(&storage), &shape).unwrap();
            let report = check(&any(&storage), Repair::None).unwrap();
            assert_eq!((report.corruptions, report.leaks), (0, 0), "{:#?}", report.findings);
            let image = Image::open(any(&storage), OpenOptions::new()).unwrap();
            // Half of each cluster: the rest of it is the device's own until it is zeroed.
            let half = vec![7; size as usize / 2];
            let write = |cluster| image.write(cluster * size, &half);
            let mut fitted = 0;
            while write(fitted).is_ok() {
                fitted += 1;
            }
            assert!((270..300).contains(&fitted), "{fitted} clusters of {size} bytes");
            assert_full(write(fitted));
            image.discard(0, 2 * size).unwrap();
            image.flush().unwrap();
            write(fitted).unwrap();
            write(fitted + 1).unwrap();
            assert_full(write(fitted + 2));
            image.close().unwrap();

            assert_eq!(storage.length(), 300 * size + 17);
            let report = check(&any(&storage), Repair::None).unwrap();
            assert_eq!((report.corruptions, report.leaks), (0, 0), "{:#?}", report.findings);
            let image = Image::open(any(&storage), OpenOptions::read_only()).unwrap();
            for cluster in 0..400 {
                let mut back = vec![1; size as usize];
                image.read(cluster * size, &mut back).unwrap();
                let (written, rest) = back.split_at(half.len());
                let expected = if (2..fitted + 2).contains(&cluster) { 7 } else { 0 };
                assert!(written.iter().all(|&byte| byte == expected), "cluster {cluster}");
                assert!(rest.iter().all(|&byte| byte == 0), "cluster {cluster}");
            }
        }
    }
}

/// Goal: what a device gains while an image on it is open is no fresh space, whatever it holds. Method: half a cluster is
/// written, where there is an L2 table and where one is needed.
#[test]
fn a_device_that_becomes_longer_is_not_fresh_there() {
    const SIZE: u64 = 4096;
    let half = [7; SIZE as usize / 2];
    let storage = Limited::fixed(vec![0xff; 20 * SIZE as usize]);
    create(&any(&storage), &CreateOptions::new(4 << 20).cluster_bits(12)).unwrap();
    let image = Image::open(any(&storage), OpenOptions::new()).unwrap();
    let write = |cluster| image.write(cluster * SIZE, &half);
    let fitted = (0..).take_while(|&cluster| write(cluster).is_ok()).count() as u64;
    storage.bytes.with(|bytes| bytes.resize(40 * SIZE as usize, 0xff));
    for cluster in [fitted, 1000] {
        write(cluster).unwrap();
        let mut back = [1; SIZE as usize];
        image.read(cluster * SIZE, &mut back).unwrap();
        assert!(back[..half.len()] == half, "cluster {cluster}");
        assert!(back[half.len()..].iter().all(|&byte| byte == 0), "cluster {cluster}");
    }
    image.close().unwrap();
    let report = check(&any(&storage), Repair::None).unwrap();
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:#?}", report.findings);
}

/// Goal: what cannot hold the new image keeps what it holds. Method: a device, and a file that cannot grow, each a byte shorter
/// than the new image; with that byte it fits.
#[test]
fn an_image_that_does_not_fit_leaves_the_old_one() {
    let shape = CreateOptions::new(64 << 20).cluster_bits(9);
    let new = MemoryStorage::default();
    create(&any(&new), &shape).unwrap();
    let needed = new.to_vec().len() as u64;
    let old = MemoryStorage::default();
    create(&any(&old), &CreateOptions::new(1 << 20).cluster_bits(9)).unwrap();
    let old = old.to_vec();
    let mut device = old.clone();
    device.resize(needed as usize - 1, 0xff);

    for (fixed, bytes) in [(true, device), (false, old)] {
        let storage = Limited { fixed, ..Limited::new(bytes.clone(), 1 << 30) };
        storage.limit(needed - 1);
        let why = create(&any(&storage), &shape).expect_err("it is a byte too long");
        let CreateError::Storage { source, .. } = &why else { panic!("{why:?}") };
        assert_eq!(source.kind(), io::ErrorKind::StorageFull, "{why}");
        assert!(storage.bytes.to_vec() == bytes);
        storage.limit(needed);
        if fixed {
            storage.bytes.with(|bytes| bytes.push(0xff));
        }
        create(&any(&storage), &shape).unwrap();
        assert!(storage.bytes.to_vec() == new.to_vec());
    }
}

/// Goal: a limit on the length of files is met like a full device. Method: a shell sets the limit, which is the whole
/// process', and lets the signal that comes with it be ignored; then it runs this test again.
#[test]
fn the_largest_file_is_full() {
    const CHILD: &str = "QCOW2_CORE_FILE_SIZE_IS_LIMITED";
    const MOST: u64 = 32 << 10;
    if std::env::var_os(CHILD).is_none() {
        let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", MOST / 512);
        let run = Command::new("sh")
            .args(["-c", &script])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "limited::the_largest_file_is_full", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout);
        let wrong = String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success() && said.contains("1 passed"), "{}: {said}{wrong}", run.status);
        return;
    }
    for (growth, lazy_refcounts) in [0, 1 << 44, 1 << 63, u64::MAX]
        .into_iter()
        .flat_map(|growth| [(growth, false), (growth, true)])
    {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let storage = FileStorage::create(&path, Existing::Refuse).unwrap();
        let shape = CreateOptions::new(1 << 20).cluster_bits(9).lazy_refcounts(lazy_refcounts);
        create(&storage, &shape).unwrap();
        let options = OpenOptions::new().growth(growth);
        let image = Image::open(storage, options).unwrap();
        let write = |cluster| image.write(cluster * CLUSTER, &[7; CLUSTER as usize]);
        let fitted = (0..).take_while(|&cluster| write(cluster).is_ok()).count() as u64;
        assert!((50..MOST / CLUSTER).contains(&fitted), "{fitted} clusters, growth {growth}");
        assert_full(write(fitted));
        image.discard(0, 2 * CLUSTER).unwrap();
        write(fitted).unwrap();
        write(fitted + 1).unwrap();
        assert_full(write(fitted + 2));
        image.close().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), MOST);
        let storage = FileStorage::open(&path, Access::ReadOnly).unwrap();
        let report = check(&storage, Repair::None).unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{:#?}", report.findings);
    }
}

/// Goal: a refcount table that may not become larger says so. Method: the largest table, all of whose blocks are full, which the
/// storage makes up: filling one as large takes 32 GiB.
#[test]
#[cfg_attr(not(turn = "9"), ignore = "its turn is at another commit; CI=1 runs all")]
fn the_largest_refcount_table_grows_no_more() {
    const TABLE: usize = 8 << 20;
    let mut storage = Limited::new(Vec::new(), 1 << 30);
    let shape = CreateOptions::new(1 << 20).cluster_bits(9);
    create(&any(&storage), &shape).unwrap();
    storage.bytes.with(|bytes| {
        let table = bytes.len();
        let first = (table + TABLE) as u64;
        bytes[48..56].copy_from_slice(&(table as u64).to_be_bytes());
        bytes[56..60].copy_from_slice(&(TABLE as u32 / CLUSTER as u32).to_be_bytes());
        bytes[99] = 6; // Counts of 64 bits, 64 in a block.
        bytes.extend((first..).step_by(512).take(TABLE / 8).flat_map(u64::to_be_bytes));
    });
    storage.claimed = 32 << 30;
    storage.behind = 1;
    let before = storage.bytes.to_vec();
    storage.limit(storage.length());
    let image = Image::open(any(&storage), OpenOptions::new()).unwrap();
    let why = write(&image, 0).expect_err("nothing is free");
    assert!(matches!(&why, IoError::Full(_)), "{why:?}");
    assert!(storage.bytes.to_vec() == before);
}

/// Goal: references that no refcount table can describe are told, and nothing is changed. Method: a cluster past what a table of
/// 8 MiB describes, and the last one that an entry can lead to.
#[test]
#[cfg_attr(not(turn = "1"), ignore = "its turn is at another commit; CI=1 runs all")]
fn what_cannot_be_counted_is_not_rebuilt() {
    for (cluster_bits, host) in [(9, 128 << 30), (21, (1u64 << 56) - (1 << 21))] {
        let storage = MemoryStorage::default();
        create(&any(&storage), &CreateOptions::new(1 << 20).cluster_bits(cluster_bits)).unwrap();
        let image = Image::open(any(&storage), OpenOptions::new()).unwrap();
        image.write(0, &[1; CLUSTER as usize]).unwrap();
        image.close().unwrap();
        let mut bytes = storage.to_vec();
        let field = |bytes: &[u8], at: usize| {
            u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) & !COPIED
        };
        let l2 = field(&bytes, field(&bytes, 40) as usize) as usize;
        bytes[l2..l2 + 8].copy_from_slice(&(host | COPIED).to_be_bytes());
        let storage = Limited { claimed: host * 2, ..Limited::new(bytes.clone(), 1 << 30) };
        for repair in [Repair::None, Repair::All, Repair::Rebuild] {
            let report = check(&any(&storage), repair).unwrap();
            let told = |problem| report.findings.iter().any(|finding| finding.problem == problem);
            let cluster = host >> cluster_bits;
            assert!(told(Problem::RefcountTooLow { cluster, stored: 0, counted: 1 }));
            assert_eq!(told(Problem::TooMany { cluster, counted: 1 }), repair != Repair::None);
            assert!(!report.is_consistent() && !report.rebuilt);
            assert!(storage.bytes.to_vec() == bytes, "{repair:?}");
        }
    }
}

/// Goal: how much a storage transfers at once is no matter to an image. Method: clusters of 64 KiB and of 512 bytes, created,
/// written across cluster borders, copied on write, grown, repaired and rebuilt through 512 bytes at a time.
#[test]
fn everything_works_a_unit_at_a_time() {
    const SIZE: usize = 4 << 20;
    for (cluster_bits, lazy_refcounts) in [(16, false), (16, true), (9, false), (9, true)] {
        let storage = Limited::new(Vec::new(), 512);
        let shape =
            CreateOptions::new(1 << 20).cluster_bits(cluster_bits).lazy_refcounts(lazy_refcounts);
        create(&any(&storage), &shape).unwrap();
        let mut expected = vec![0; SIZE];
        let image = Image::open(any(&storage), OpenOptions::new()).unwrap();
        for (offset, len) in [(1000, 200_000), (512, 512), (900_000, 100_000), (70_000, 3)] {
            image.write(offset, &vec![offset as u8 | 1; len]).unwrap();
            expected[offset as usize..offset as usize + len].fill(offset as u8 | 1);
        }
        // With clusters of 512 bytes the L1 table needs a second one, and then a third.
        image.grow(SIZE as u64).unwrap();
        image.write(SIZE as u64 - 100, &[5; 100]).unwrap();
        expected[SIZE - 100..].fill(5);
        image.grow(6 << 20).unwrap();
        image.flush().unwrap();
        // Not closed: with lazy refcounts the next opening repairs it.
        drop(image);
        let image = Image::open(any(&storage), OpenOptions::new()).unwrap();
        image.close().unwrap();
        assert!(check(&any(&storage), Repair::Rebuild).unwrap().rebuilt);
        let report = check(&any(&storage), Repair::None).unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{:#?}", report.findings);
        let image = Image::open(any(&storage), OpenOptions::read_only()).unwrap();
        let mut back = vec![0; SIZE];
        image.read(0, &mut back).unwrap();
        assert!(back == expected);
    }
}

/// Goal: a storage that asks for aligned buffers gets no others, though it gives back others than it was given. Method: more tables than
/// the cache holds, written, flushed and read.
#[test]
fn every_buffer_is_aligned() {
    for cluster_bits in [9, 12, 16] {
        let storage = Limited { alignment: 512, ..Limited::new(Vec::new(), 1 << 30) };
        create(&any(&storage), &CreateOptions::new(1 << 30).cluster_bits(cluster_bits)).unwrap();
        let options = OpenOptions::new().cache_pages(2);
        let image = Image::open(any(&storage), options).unwrap();
        let places = || (0..200).map(|number: u64| number * (5 << 20));
        for place in places() {
            image.write(place, &[1; 4096]).unwrap();
            image.flush().unwrap();
        }
        let mut back = [0; 4096];
        for place in places() {
            image.read(place, &mut back).unwrap();
            assert!(back == [1; 4096], "at {place}");
        }
        image.close().unwrap();
        let report = check(&any(&storage), Repair::Rebuild).unwrap();
        assert!(report.rebuilt && report.is_consistent(), "{:#?}", report.findings);
    }
}

/// Goal: an update that fails fails the request, and loses nothing. Method: an L1 table that grows, and a write which needs an
/// L2 table and a refcount block where the file is not empty, with each of their updates failing once in turn.
#[test]
fn an_update_that_fails_is_not_passed_over() {
    const SIZE: u64 = 64 << 10;
    let fresh = Limited::new(Vec::new(), 1 << 30);
    create(&any(&fresh), &CreateOptions::new(SIZE).cluster_bits(9)).unwrap();
    let image = Image::open(any(&fresh), OpenOptions::new().growth(0)).unwrap();
    image.write(0, &[1; 120 * 512]).unwrap();
    image.close().unwrap();
    fresh.bytes.with(|bytes| bytes.resize(260 * 512, 0xee));
    for number in 0.. {
        let storage = Limited::new(fresh.bytes.to_vec(), 1 << 30);
        let options = OpenOptions::new().growth(0);
        let image = Image::open(any(&storage), options).unwrap();
        storage.updates.store(number, Ordering::Relaxed);
        let steps = [image.grow(8 << 20), image.write(SIZE, &[2; 150 * 512]), image.flush()];
        let failed = steps.iter().filter(|step| step.is_err()).count();
        let all_done = storage.updates.load(Ordering::Relaxed) <= number;
        storage.updates.store(u64::MAX, Ordering::Relaxed);
        drop(image);
        assert_eq!(failed == 0, all_done, "update {number}: {steps:?}");
        let report = check(&any(&storage), Repair::None).unwrap();
        assert_eq!(report.corruptions, 0, "update {number}: {:#?}", report.findings);
        let image = Image::open(any(&storage), OpenOptions::new()).unwrap();
        let mut back = [0; 120 * 512];
        image.read(0, &mut back).unwrap();
        assert!(back == [1; 120 * 512], "update {number}");
        if all_done {
            let mut back = [0; 150 * 512];
            image.read(SIZE, &mut back).unwrap();
            assert!(back == [2; 150 * 512]);
            assert!(number > 10, "{number} updates");
            return;
        }
    }
}

#[test]
fn a_rebuild_is_the_same_however_it_is_transferred() {
    let storage = MemoryStorage::default();
    let shape = CreateOptions::new(1 << 20).cluster_bits(12);
    create(&any(&storage), &shape).unwrap();
    let image = Image::open(any(&storage), OpenOptions::new()).unwrap();
    image.write(0, &[9; 300_000]).unwrap();
    image.close().unwrap();
    let [narrow, wide] = [512, 1 << 30].map(|max_transfer| {
        let copy = Limited::new(storage.to_vec(), max_transfer);
        assert!(check(&any(&copy), Repair::Rebuild).unwrap().rebuilt);
        copy.bytes.to_vec()
    });
    assert!(narrow == wide);
}

#[test]
fn transfers_that_are_no_units_are_refused() {
    for max_transfer in [0, 1, 511, 700] {
        let wanted = format!("a storage that transfers {max_transfer} bytes at once");
        let storage = Limited::new(Vec::new(), max_transfer);
        let why = create(&any(&storage), &CreateOptions::new(1 << 20)).unwrap_err();
        assert!(matches!(&why, CreateError::Option(why) if *why == wanted), "{why}");
        let Err(why) = Image::open(any(&storage), OpenOptions::new()) else { panic!("it opened") };
        assert!(matches!(&why, OpenError::Unsupported(why) if *why == wanted), "{why}");
    }
}

/// Goal: a read gives what was asked for though there is no room for a copy of it, and a session that may not change the image makes none.
/// Method: copy-on-read over a layer, on a storage that does not get longer, and read-only.
#[test]
fn a_read_does_not_need_its_copy() {
    let (storage, _) = image();
    let options = CreateOptions::new(16 << 10).cluster_bits(9);
    let below = Backing::new("below", Format::Raw);
    create_over(&any(&storage), &options, &below).expect("there is room");
    let before = storage.bytes.to_vec();
    storage.limit(0);
    for open in [OpenOptions::read_only(), OpenOptions::new()] {
        let raw = block_on(Raw::new(MemoryStorage::new(vec![7; 16 << 10])));
        let raw = Arc::new(raw.expect("memory does not fail"));
        let open = open.copy_on_read(true);
        let image = Image::open_over(any(&storage), raw, open).expect("in order");
        let mut found = vec![0; 16 << 10];
        image.read(0, &mut found).expect("all of it is in the layer");
        assert!(found.iter().all(|&byte| byte == 7), "{open:?}");
        drop(image);
        assert_eq!(storage.bytes.to_vec().len(), before.len(), "{open:?}");
    }
}

/// Goal: on a device that keeps what it held, an image whose clusters are taken ahead reads as zeroes. Method: a device full of something, in
/// each mode, at creation and of an image in use.
#[test]
fn clusters_that_are_taken_ahead_hold_nothing_old() {
    for how in [Preallocation::Metadata, Preallocation::Falloc, Preallocation::Full] {
        for at_creation in [true, false] {
            let storage = Limited::fixed(vec![0xaa; 4 << 20]);
            let options = CreateOptions::new(1 << 20).cluster_bits(12);
            let options = if at_creation { options.preallocation(how) } else { options };
            create(&any(&storage), &options).expect("there is room");
            let image = Image::open(any(&storage), OpenOptions::new()).expect("in order");
            if !at_creation {
                image.preallocate(0, 1 << 20, how).expect("there is room");
            }
            let mut found = vec![0xee; 1 << 20];
            image.read(0, &mut found).expect("nothing fails");
            assert!(found.iter().all(|&byte| byte == 0), "{how:?}, {at_creation}");
        }
    }
}
