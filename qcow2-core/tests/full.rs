//! A storage that is full: what was given up is taken back before an allocation fails, and one that fails loses nothing.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use qcow2_core::blocking::{Image, check, create};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{Durability, IoBuf, Limits, Storage};
use qcow2_core::{CreateOptions, IoError, OpenOptions, Repair};

const CLUSTER: u64 = 512;

/// A storage that cannot be made longer than a limit.
#[derive(Clone)]
struct Bounded {
    bytes: MemoryStorage,
    most: Arc<AtomicU64>,
}

impl Bounded {
    fn unbounded() -> Self {
        Self { bytes: MemoryStorage::default(), most: Arc::new(u64::MAX.into()) }
    }

    fn limit(&self, most: u64) {
        self.most.store(most, Ordering::Relaxed);
    }

    fn length(&self) -> u64 {
        self.bytes.with(|bytes| bytes.len() as u64)
    }

    fn fits(&self, end: u64) -> io::Result<()> {
        if end > self.most.load(Ordering::Relaxed).max(self.length()) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

impl Storage for Bounded {
    fn limits(&self) -> Limits {
        self.bytes.limits()
    }

    async fn len(&self) -> io::Result<u64> {
        self.bytes.len().await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.fits(len)?;
        self.bytes.set_len(len).await
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (IoBuf, io::Result<()>) {
        self.bytes.read(offset, buf).await
    }

    async fn write(&self, offset: u64, buf: IoBuf, how: Durability) -> (IoBuf, io::Result<()>) {
        match self.fits(offset + buf.len() as u64) {
            Ok(()) => self.bytes.write(offset, buf, how).await,
            Err(full) => (buf, Err(full)),
        }
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.fits(range.end)?;
        self.bytes.write_zeroes(range).await
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.bytes.discard(range).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.bytes.flush().await
    }

    async fn settle(&self) -> io::Result<()> {
        self.bytes.settle().await
    }
}

/// A new image whose file grows by no more than it needs.
fn image() -> (Bounded, Image<Bounded>) {
    let storage = Bounded::unbounded();
    let shape = CreateOptions { cluster_bits: 9, ..CreateOptions::new(1 << 20) };
    create(&storage, &shape).expect("there is room");
    let options = OpenOptions { growth: 0, ..OpenOptions::new() };
    let image = Image::open(storage.clone(), options).expect("it was just made");
    (storage, image)
}

fn write(image: &Image<Bounded>, cluster: u64) -> Result<(), IoError> {
    image.write(cluster * CLUSTER, &[cluster as u8 + 1; CLUSTER as usize])
}

/// Closes the image, opens it again and compares: the clusters in `written` hold their data, the others of the first 300 zeroes.
fn assert_holds(storage: &Bounded, image: Image<Bounded>, written: impl Fn(u64) -> bool) {
    image.close().expect("closing takes no room");
    let report = check(storage, Repair::None).expect("an image");
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:#?}", report.findings);
    let image = Image::open(storage.clone(), OpenOptions::read_only()).expect("an image");
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
    assert_eq!(source.kind(), io::ErrorKind::StorageFull, "{error}");
}

#[test]
fn a_discarded_cluster_is_taken_before_an_allocation_fails() {
    let (storage, image) = image();
    (0..4).for_each(|cluster| write(&image, cluster).unwrap());
    storage.limit(storage.length());
    assert_full(write(&image, 10));
    assert_full(write(&image, 10));
    image.discard(0, 2 * CLUSTER).unwrap();
    write(&image, 10).unwrap();
    write(&image, 11).unwrap();
    assert_full(write(&image, 12));
    storage.limit(u64::MAX);
    write(&image, 13).unwrap();
    assert_holds(&storage, image, |cluster| matches!(cluster, 2 | 3 | 10 | 11 | 13));
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
