//! Storages whose sectors are longer than 512 bytes: a disk of 4,096-byte ones, or a file that is opened for direct I/O. Every access
//! is in whole sectors, and nothing changes beside what was asked for.

use std::io;
use std::ops::Range;
use std::thread;

use qcow2_core::blocking::{Image, block_on, check, create};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{AnyStorage, Durability, IoBuf, Limits, MOST_ALIGNMENT, Storage};
use qcow2_core::{CreateError, CreateOptions, OpenError, OpenOptions, Repair, Zeroing};

use crate::compressed::{Sample, sample};
use crate::shown::any;

pub(crate) const SECTOR: usize = 4096;
const MAGIC: &[u8] = b"QFI\xfb";

/// A storage in memory that takes nothing but whole sectors, in buffers whose address is a multiple of one. A header that is there
/// changes in its first 512 bytes only: a storage that tears between those tears no header.
#[derive(Clone, Debug)]
pub(crate) struct Aligned {
    pub(crate) bytes: MemoryStorage,
    alignment: usize,
    pub(crate) max_transfer: usize,
    /// Whether it keeps its length, and what it held.
    fixed: bool,
}

impl Aligned {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let bytes = MemoryStorage::new(bytes);
        Self { bytes, alignment: SECTOR, max_transfer: 1 << 30, fixed: false }
    }

    #[track_caller]
    fn check(&self, what: &str, range: Range<u64>) {
        let is_whole = |at: u64| at.is_multiple_of(self.alignment as u64);
        assert!(is_whole(range.start) && is_whole(range.end), "{what} of {range:?}");
    }

    #[track_caller]
    fn check_buffer(&self, what: &str, offset: u64, buf: &IoBuf) {
        self.check(what, offset..offset + buf.len() as u64);
        assert!(buf.len() <= self.max_transfer, "{what} of {} bytes at once", buf.len());
        assert!(buf.is_aligned(self.alignment), "{what} with a buffer at {:?}", buf.as_ptr());
    }
}

impl Storage for Aligned {
    fn limits(&self) -> Limits {
        Limits {
            alignment: self.alignment,
            max_transfer: self.max_transfer,
            can_discard: true,
            unwritten_reads_zero: !self.fixed,
        }
    }

    async fn len(&self) -> io::Result<u64> {
        self.bytes.len().await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.check("a length", 0..len);
        if self.fixed && len > self.bytes.len().await? {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.fixed { Ok(()) } else { self.bytes.set_len(len).await }
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (IoBuf, io::Result<()>) {
        self.check_buffer("a read", offset, &buf);
        self.bytes.read(offset, buf).await
    }

    async fn write(&self, offset: u64, buf: IoBuf, how: Durability) -> (IoBuf, io::Result<()>) {
        self.check_buffer("a write", offset, &buf);
        if offset == 0 {
            self.bytes.with(|bytes| {
                let was = bytes.starts_with(MAGIC) || buf.starts_with(MAGIC);
                let rest = bytes.len().min(self.alignment);
                assert!(!was || buf[512..rest] == bytes[512..rest], "more of the header changes");
            });
        }
        self.bytes.write(offset, buf, how).await
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.check("zeroing", range.clone());
        self.bytes.write_zeroes(range).await
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.check("a discard", range.clone());
        self.bytes.discard(range).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.bytes.flush().await
    }

    async fn settle(&self) -> io::Result<()> {
        self.bytes.settle().await
    }
}

/// Numbers below `most`, one after the other.
fn numbers(mut seed: u64) -> impl FnMut(u64) -> u64 {
    move |most| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % most
    }
}

#[track_caller]
fn assert_sound(storage: &Aligned) {
    let report = check(&any(storage), Repair::None).expect("an image");
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:#?}", report.findings);
}

/// Changes an image at random, and `expected` alike.
fn change(image: &Image<AnyStorage>, expected: &mut [u8], next: &mut impl FnMut(u64) -> u64) {
    for _ in 0..60 {
        let size = expected.len() as u64;
        let step = [1, 512, 512, SECTOR as u64][next(4) as usize];
        let offset = next(size / step) * step;
        let most = (size - offset).min([3 * SECTOR as u64, 200_000][next(2) as usize]);
        let len = (next(most / step + 1) * step).max(step.min(most));
        let range = offset as usize..(offset + len) as usize;
        match next(8) {
            0 => {
                image.write_zeroes(offset, len, Zeroing::Keep).expect("nothing fails");
                expected[range].fill(0);
            }
            1 => {
                image.write_zeroes(offset, len, Zeroing::Free).expect("nothing fails");
                expected[range].fill(0);
            }
            2 => {
                let cluster = image.info().cluster_size;
                image.discard(offset, len).expect("nothing fails");
                let end = offset + len;
                let last = if end == size { end } else { end - end % cluster };
                let first = offset.next_multiple_of(cluster);
                if first < last {
                    expected[first as usize..last as usize].fill(0);
                }
            }
            3 => image.flush().expect("nothing fails"),
            4 => {
                let mut back = vec![0xee; range.len()];
                image.read(offset, &mut back).expect("nothing fails");
                assert!(back == expected[range.clone()], "{range:?}");
            }
            _ => {
                let byte = next(255) as u8 + 1;
                image.write(offset, &vec![byte; range.len()]).expect("nothing fails");
                expected[range].fill(byte);
            }
        }
    }
}

/// Goal: everything works in whole sectors: create, open, requests wherever they begin and end, growth, check, and repair of what was not
/// closed. Method: random requests on a disk whose size is no whole number of sectors, on storages of several kinds.
#[test]
fn everything_works_in_whole_sectors() {
    for (number, (cluster_bits, lazy_refcounts, max_transfer, fixed)) in [
        (12, false, 1 << 30, false),
        (12, true, SECTOR, false),
        (12, false, 3 * SECTOR, true),
        (13, true, 1 << 30, true),
        (14, false, 3 * SECTOR, false),
        (16, false, 1 << 30, false),
        (16, true, SECTOR, true),
    ]
    .into_iter()
    .enumerate()
    {
        let held = if fixed { vec![0xee; 16 << 20] } else { Vec::new() };
        let storage = Aligned { max_transfer, fixed, ..Aligned::new(held) };
        let mut expected = vec![0; (1 << 20) - 512];
        let shape = CreateOptions::new(expected.len() as u64).cluster_bits(cluster_bits);
        create(&any(&storage), &shape.lazy_refcounts(lazy_refcounts)).unwrap();
        assert_sound(&storage);
        let mut next = numbers(number as u64);
        for (life, page_size) in [512, 4096, 65_536, 1024].into_iter().enumerate() {
            let options = OpenOptions::new().page_size(page_size).cache_pages(4).growth(0);
            let image = Image::open(any(&storage), options).unwrap();
            change(&image, &mut expected, &mut next);
            // Within the last cluster, then past it, and past what the L1 table maps.
            let size = expected.len() as u64 + [512, 300_032, 6 << 20, 0][life];
            image.grow(size).unwrap();
            expected.resize(size as usize, 0);
            change(&image, &mut expected, &mut next);
            image.flush().unwrap();
            // Not closed: with lazy refcounts the next opening repairs it.
            drop(image);
        }
        Image::open(any(&storage), OpenOptions::new()).unwrap().close().unwrap();
        for repair in [Repair::All, Repair::Rebuild, Repair::ZeroPastEnd] {
            let report = check(&any(&storage), repair).unwrap();
            assert!(report.is_consistent(), "{:#?}", report.findings);
        }
        assert_sound(&storage);
        let image = Image::open(any(&storage), OpenOptions::read_only()).unwrap();
        let mut back = vec![0xee; expected.len()];
        image.read(0, &mut back).unwrap();
        assert!(back == expected, "storage {number}");
    }
}

/// Goal: a repair that corrects counts and entries in place goes in whole sectors too. Method: counts and COPIED bits that are wrong.
#[test]
fn a_repair_in_place_goes_in_whole_sectors() {
    let storage = Aligned::new(Vec::new());
    create(&any(&storage), &CreateOptions::new(8 << 20).cluster_bits(14)).unwrap();
    let image = Image::open(any(&storage), OpenOptions::new()).unwrap();
    image.write(70_000, &[7; 300_000]).unwrap();
    image.close().unwrap();
    storage.bytes.with(|bytes| {
        // The counts of clusters 5 and 20, in the block that follows the header and the table.
        bytes[(2 << 14) + 11] = 9;
        bytes[(2 << 14) + 41] = 0;
        // COPIED of the first L1 entry.
        bytes[3 << 14] &= 0x7f;
    });
    let report = check(&any(&storage), Repair::All).unwrap();
    assert!(report.corruptions > 0 && report.is_consistent(), "{:#?}", report.findings);
    assert_sound(&storage);
}

/// Goal: a request may bring a buffer that lies anywhere. Method: each multiple of 512 in a sector.
#[test]
fn buffers_may_lie_anywhere() {
    let storage = Aligned::new(Vec::new());
    create(&any(&storage), &CreateOptions::new(1 << 20).cluster_bits(12)).unwrap();
    let image = block_on(qcow2_core::Image::open(any(&storage), OpenOptions::new())).unwrap();
    for skip in (0..SECTOR).step_by(512) {
        let new = |byte: u8| {
            let mut buf = IoBuf::copy_of(&vec![byte; skip + 3 * SECTOR], SECTOR);
            drop(buf.split_to(skip));
            buf
        };
        let offset = (skip * 8) as u64;
        let (buf, written) = block_on(image.write(offset, new(1), Durability::Through));
        assert_eq!(buf.len(), 3 * SECTOR, "the buffer comes back");
        written.unwrap();
        let (buf, read) = block_on(image.read(offset, new(2)));
        read.unwrap();
        assert!(*buf == [1; 3 * SECTOR]);
    }
}

/// Goal: of two requests to one sector none loses the other's bytes. Method: threads, each with 512 bytes of every sector.
#[test]
fn neighbours_in_a_unit_do_not_meet() {
    let storage = Aligned::new(Vec::new());
    create(&any(&storage), &CreateOptions::new(1 << 20).cluster_bits(12)).unwrap();
    let image = Image::open(any(&storage), OpenOptions::new()).unwrap();
    thread::scope(|scope| {
        for place in 0..8u8 {
            let image = &image;
            scope.spawn(move || {
                for round in 0..30 {
                    let offset = u64::from(round % 4) * SECTOR as u64 + u64::from(place) * 512;
                    image.write(offset, &[place * 30 + round; 512]).unwrap();
                    let mut back = [0; 512];
                    image.read(offset, &mut back).unwrap();
                    assert!(back == [place * 30 + round; 512]);
                }
            });
        }
    });
}

/// Goal: a file whose length is no whole number of sectors is an image like any other: what its last sector misses reads as zeroes, and is
/// there once that sector is written. Method: the end of the L1 table and of the last data cluster are missing.
#[test]
fn a_file_may_end_inside_a_unit() {
    let whole = Aligned::new(Vec::new());
    create(&any(&whole), &CreateOptions::new(1 << 20).cluster_bits(12)).unwrap();
    let empty = whole.bytes.to_vec();
    let image = Image::open(any(&whole), OpenOptions::new().growth(0)).unwrap();
    image.write(0, &[5; 1536]).unwrap();
    image.close().unwrap();
    for (bytes, kept, data) in [(empty, 1000, 0), (whole.bytes.to_vec(), 1536, 5)] {
        let end = bytes.len() - SECTOR + kept;
        let storage = Aligned::new(bytes[..end].to_vec());
        let image = Image::open(any(&storage), OpenOptions::new()).unwrap();
        image.write(512, &[6; 512]).unwrap();
        image.write(9 * 512, &[7; 512]).unwrap();
        image.close().unwrap();
        assert_sound(&storage);
        assert!(storage.bytes.to_vec().len().is_multiple_of(SECTOR));
        let image = Image::open(any(&storage), OpenOptions::read_only()).unwrap();
        let mut back = [1; 10 * 512];
        image.read(0, &mut back).unwrap();
        let expected = [data, 6, data, 0, 0, 0, 0, 0, 0, 7].map(|byte| [byte; 512]);
        assert!(back == *expected.as_flattened());
    }
}

/// Goal: an alignment above the cluster size, or above what is supported, is refused by name, and nothing is changed.
#[test]
fn what_does_not_fit_is_refused_by_name() {
    let old = MemoryStorage::default();
    create(&any(&old), &CreateOptions::new(1 << 20).cluster_bits(9)).unwrap();
    for (alignment, cluster_bits, why) in [
        (
            4096,
            9,
            "an image with clusters of 512 bytes (cluster_bits 9) on a storage with alignment 4096",
        ),
        (
            1024,
            9,
            "an image with clusters of 512 bytes (cluster_bits 9) on a storage with alignment 1024",
        ),
        (2 * MOST_ALIGNMENT, 16, "a storage with alignment 65536"),
        (3000, 16, "a storage with alignment 3000"),
    ] {
        let storage = Aligned { alignment, ..Aligned::new(old.to_vec()) };
        let error = create(&any(&storage), &CreateOptions::new(1 << 20).cluster_bits(cluster_bits));
        assert!(matches!(&error, Err(CreateError::Option(told)) if told == why), "{error:?}");
        let error = check(&any(&storage), Repair::All).unwrap_err().to_string();
        assert_eq!(error, format!("cannot check the image: {why} is not supported"));
        let error = Image::open(any(&storage), OpenOptions::new()).err();
        assert!(matches!(&error, Some(OpenError::Unsupported(told)) if told == why), "{error:?}");
        assert!(storage.bytes.to_vec() == old.to_vec());
    }
    let storage = Aligned { max_transfer: 6144, ..Aligned::new(Vec::new()) };
    let error = create(&any(&storage), &CreateOptions::new(1 << 20));
    let why = "a storage that transfers 6144 bytes at once";
    assert!(matches!(&error, Err(CreateError::Option(told)) if told == why), "{error:?}");
}

/// Goal: an image is made over another, of whatever clusters. Method: the storage checks that the header goes alone.
#[test]
fn an_image_is_made_over_another() {
    let old = MemoryStorage::default();
    create(&any(&old), &CreateOptions::new(1 << 20).cluster_bits(9)).unwrap();
    for fixed in [false, true] {
        let mut held = old.to_vec();
        held.resize(1 << 20, 0xee);
        let storage = Aligned { fixed, ..Aligned::new(held) };
        for cluster_bits in [12, 16, 15, 13] {
            create(&any(&storage), &CreateOptions::new(1 << 20).cluster_bits(cluster_bits))
                .unwrap();
            assert_sound(&storage);
        }
    }
}

/// Goal: compressed clusters, whose streams begin anywhere, are read and written over in whole sectors. Method: each part of a sample written
/// to, with standard and with extended entries.
#[test]
fn compressed_clusters_are_read_in_whole_sectors() {
    for (cluster_bits, extended) in [(12, false), (16, false), (16, true)] {
        for at in (0..2 << cluster_bits).step_by(1 << (cluster_bits - 3)) {
            let Sample { image, mut expected, .. } = sample(cluster_bits, extended);
            let mut storage = Aligned::new(image);
            storage.max_transfer = SECTOR;
            let image = Image::open(any(&storage), OpenOptions::new()).unwrap();
            image.write(at, &[0xab; 512]).unwrap();
            expected[at as usize..][..512].fill(0xab);
            let mut read = vec![0; expected.len()];
            image.read(0, &mut read).unwrap();
            assert!(read == expected, "{cluster_bits} {extended} {at:#x}");
            image.close().unwrap();
            assert_sound(&storage);
        }
    }
}
