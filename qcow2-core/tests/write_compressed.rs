//! Compressed clusters as this library writes them: what they read as, where they lie, what they cost, and what becomes of them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::{io, thread};

use qcow2_core::blocking::{Image, block_on, check, create};
use qcow2_core::format::CompressionType;
use qcow2_core::format::entry::Mapping;
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{AnyStorage, Durability, IoBuf, Limits, Storage};
use qcow2_core::{
    CreateOptions, ErrorKind, Executor, Inline, OpenOptions, Repair, Source, Zeroing,
};

use crate::aligned::{Aligned, SECTOR};
use crate::draws::draws;
use crate::shown::any;

/// Does the work on a thread each.
struct Threads;

impl Executor for Threads {
    #[expect(
        clippy::disallowed_methods,
        reason = "what comes of it does not depend on their order"
    )]
    fn run(&self, work: Box<dyn FnOnce() + Send>) {
        thread::spawn(work);
    }
}

/// Drops the work.
struct Nobody;

impl Executor for Nobody {
    fn run(&self, work: Box<dyn FnOnce() + Send>) {
        drop(work);
    }
}

/// Bytes that compress to about a third, others for each seed.
fn compressible(seed: usize, len: usize) -> Vec<u8> {
    let mut draw = draws(seed as u64);
    (0..len).map(|at| if at % 512 < 160 { draw(256) as u8 } else { seed as u8 }).collect()
}

fn noise(seed: usize, len: usize) -> Vec<u8> {
    let mut draw = draws(seed as u64);
    (0..len).map(|_| draw(256) as u8).collect()
}

/// Where the guest clusters of an image begin in the file; none for one that is not compressed.
fn streams(storage: &MemoryStorage, cluster_bits: u32) -> Vec<Option<u64>> {
    let open = qcow2_core::Image::open(storage.clone(), OpenOptions::read_only());
    let image = block_on(open).expect("it is an image");
    let map = block_on(image.map_read(0, image.info().virtual_size)).expect("it can be read");
    let mut found = Vec::new();
    for extent in map.extents() {
        let place = match extent.source {
            Source::Compressed(entry) => match entry.decode(cluster_bits, 3, 0) {
                Ok(Mapping::Compressed { offset, .. }) => Some(offset),
                other => panic!("{other:?}"),
            },
            _ => None,
        };
        found.extend((0..extent.len.div_ceil(1 << cluster_bits)).map(|_| place));
    }
    found
}

/// Goal: whatever is written, compressed or not, on whatever image, is read back, and nothing leaks. Method: scattered requests of every kind
/// with the image opened again in between; every width of counts, both entries and both kinds of stream, eager and lazy; then all of it
/// discarded.
#[test]
#[cfg_attr(not(turn = "10"), ignore = "its turn is at another commit; CI=1 runs all")]
fn what_is_written_compressed_reads_back() {
    use CompressionType::{Deflate, Zstd};
    let mut compressed = 0;
    for (cluster_bits, version, refcount_bits, extended_l2, compression) in [
        (9, 3, 16, false, Deflate),
        (10, 3, 1, false, Deflate),
        (10, 3, 2, false, Zstd),
        (12, 2, 16, false, Deflate),
        (12, 3, 4, false, Deflate),
        (12, 3, 64, false, Zstd),
        (14, 3, 16, true, Deflate),
        (16, 3, 8, true, Zstd),
    ] {
        for seed in 0..12 {
            let size = 1 << cluster_bits;
            // The last cluster is cut short.
            let mut expected = vec![0; 9 * size + 512];
            let storage = MemoryStorage::default();
            let mut options = CreateOptions::new(expected.len() as u64)
                .version(version)
                .cluster_bits(cluster_bits)
                .refcount_bits(refcount_bits)
                .extended_l2(extended_l2)
                .compression(compression);
            if seed % 3 == 0 && version == 3 {
                options = options.lazy_refcounts(true);
            }
            create(&storage, &options).unwrap();
            let mut image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
            let mut draw = draws(seed);
            for step in 0..40 {
                let bytes = expected.len();
                let from = draw(bytes / 512) * 512 + draw(2) * draw(512);
                let len = (1 + draw(bytes)).min(bytes - from);
                let range = from..from + len;
                let data = match draw(4) {
                    0 => noise(step, len),
                    _ => compressible(step, len),
                };
                let at = from as u64;
                let kind = draw(8);
                match kind {
                    0 => image.write(at, &data).unwrap(),
                    1 => image.write_zeroes(at, len as u64, Zeroing::Free).unwrap(),
                    2 => image.discard(at, len as u64).unwrap(),
                    3 => image.flush().unwrap(),
                    4 => {
                        image.close().unwrap();
                        image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
                    }
                    5 => image.write_compressed(at, &data, &Threads).unwrap(),
                    _ => image.write_compressed(at, &data, &Inline).unwrap(),
                }
                let end = if range.end == bytes { bytes } else { range.end / size * size };
                match kind {
                    1 => expected[range].fill(0),
                    2 if from.next_multiple_of(size) < end => {
                        expected[from.next_multiple_of(size)..end].fill(0);
                    }
                    2..=4 => {}
                    _ => expected[range].copy_from_slice(&data),
                }
                let mut read = vec![0xee; bytes];
                image.read(0, &mut read).unwrap();
                assert!(read == expected, "{cluster_bits} {refcount_bits} {seed} {step}");
            }
            image.close().unwrap();
            let report = check(&storage, Repair::None).unwrap();
            assert!(report.findings.is_empty(), "{cluster_bits} {seed}: {report:#?}");
            compressed += report.compressed_clusters;
            let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
            image.discard(0, expected.len() as u64).unwrap();
            image.close().unwrap();
            let report = check(&storage, Repair::None).unwrap();
            assert!(report.findings.is_empty(), "{cluster_bits} {seed}: {report:#?}");
            assert_eq!(report.allocated_clusters, 0);
        }
    }
    assert!(compressed > 100, "{compressed}");
}

/// Goal: streams lie behind each other, and across from one cluster into the next. Method: an image that is filled from front to back takes
/// as many clusters as its streams have sectors, and each stream begins where the one before it ends.
#[test]
fn streams_lie_without_a_gap() {
    const CLUSTERS: usize = 200;
    for (cluster_bits, compression) in [
        (12, CompressionType::Deflate),
        (16, CompressionType::Deflate),
        (16, CompressionType::Zstd),
    ] {
        let size = 1 << cluster_bits;
        let storage = MemoryStorage::default();
        let options = CreateOptions::new((CLUSTERS * size) as u64).cluster_bits(cluster_bits);
        create(&storage, &options.compression(compression)).unwrap();
        let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
        let data: Vec<u8> = (0..CLUSTERS).flat_map(|seed| compressible(seed, size)).collect();
        image.write_compressed(0, &data, &Threads).unwrap();
        image.close().unwrap();
        let report = check(&storage, Repair::None).unwrap();
        assert!(report.findings.is_empty(), "{report:#?}");
        assert_eq!(report.compressed_clusters, CLUSTERS as u64);
        let streams: Vec<u64> = streams(&storage, cluster_bits).into_iter().flatten().collect();
        assert_eq!(streams.len(), CLUSTERS);
        assert!(streams.iter().all(|offset| offset % 512 == 0));
        assert!(streams.is_sorted(), "in the order of the disk");
        let across =
            streams.windows(2).filter(|two| two[0] >> cluster_bits != (two[1] - 1) >> cluster_bits);
        assert!(across.count() > 20);
        let taken = (streams[CLUSTERS - 1] - streams[0]) as usize;
        assert!(taken < CLUSTERS * size * 45 / 100, "{taken} bytes for {}", CLUSTERS * size);
    }
}

/// Goal: an image of counts of 2 bits puts three streams into a cluster and no more, and one of 1 bit none. Method: what is small, written one
/// after the other.
#[test]
fn a_cluster_takes_as_many_streams_as_it_can_count() {
    for (refcount_bits, most) in [(1, 0), (2, 3), (4, 8)] {
        let storage = MemoryStorage::default();
        let options = CreateOptions::new(64 << 12).cluster_bits(12).refcount_bits(refcount_bits);
        create(&storage, &options).unwrap();
        let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
        for cluster in 0..64 {
            // A sector each.
            image.write_compressed(cluster << 12, &[1 + cluster as u8; 4096], &Inline).unwrap();
        }
        let mut read = vec![0; 64 << 12];
        image.read(0, &mut read).unwrap();
        assert!(read.chunks(4096).zip(1..).all(|(cluster, byte)| *cluster == [byte; 4096]));
        image.close().unwrap();
        let report = check(&storage, Repair::None).unwrap();
        assert!(report.findings.is_empty(), "{report:#?}");
        let places = streams(&storage, 12);
        let in_cluster = |offset: &u64| {
            places.iter().flatten().filter(|&other| other >> 12 == *offset >> 12).count()
        };
        assert_eq!(places.iter().flatten().map(in_cluster).max().unwrap_or(0), most);
        assert_eq!(places.iter().flatten().count(), if most == 0 { 0 } else { 64 });
    }
}

/// Goal: a cluster that streams were put into is done with when nothing refers to it: what comes next goes elsewhere, or there again as into
/// any free cluster. Method: streams given up and written again and again, with a discard passed on or not: the file stays as long as it is,
/// and everything is read.
#[test]
fn what_streams_leave_is_used_again() {
    for pass_discard in [false, true] {
        let storage = MemoryStorage::default();
        create(&storage, &CreateOptions::new(16 << 12).cluster_bits(12)).unwrap();
        let open = OpenOptions::new().pass_discard(pass_discard).growth(0);
        let image = Image::open(storage.clone(), open).unwrap();
        let mut longest = 0;
        for round in 0..30 {
            for cluster in 0..16 {
                let data = compressible(16 * round + cluster, 4096);
                image.write_compressed((cluster as u64) << 12, &data, &Inline).unwrap();
                if cluster % 5 == round % 5 {
                    image.discard(((cluster as u64) << 12).saturating_sub(4096), 4096).unwrap();
                    image.flush().unwrap();
                }
            }
            image.flush().unwrap();
            for cluster in (0..16).filter(|cluster| (cluster + 1) % 5 != round % 5) {
                let mut read = vec![0; 4096];
                image.read((cluster as u64) << 12, &mut read).unwrap();
                if read != [0; 4096] {
                    assert!(read == compressible(16 * round + cluster, 4096), "{round} {cluster}");
                }
            }
            image.discard(0, 16 << 12).unwrap();
            image.flush().unwrap();
            image.flush().unwrap();
            if round < 4 {
                longest = storage.to_vec().len();
            }
        }
        assert_eq!(storage.to_vec().len(), longest, "it goes on growing");
        image.close().unwrap();
        let report = check(&storage, Repair::None).unwrap();
        assert!(report.findings.is_empty(), "{report:#?}");
    }
}

/// Goal: on a storage of longer sectors streams share none. Method: sectors of 4,096 bytes, transfers of one.
#[test]
fn streams_share_no_sector() {
    for cluster_bits in [12, 14, 16] {
        let storage = MemoryStorage::default();
        let size = 1usize << cluster_bits;
        create(&any(&storage), &CreateOptions::new(20 * size as u64).cluster_bits(cluster_bits))
            .unwrap();
        let mut aligned = Aligned::new(storage.to_vec());
        aligned.max_transfer = SECTOR;
        let image = Image::open(any(&aligned), OpenOptions::new()).unwrap();
        let data: Vec<u8> = (0..20).flat_map(|seed| compressible(seed, size)).collect();
        image.write_compressed(0, &data, &Inline).unwrap();
        let mut read = vec![0; data.len()];
        image.read(0, &mut read).unwrap();
        assert!(read == data);
        image.close().unwrap();
        let copy = MemoryStorage::new(aligned.bytes.to_vec());
        let report = check(&any(&copy), Repair::None).unwrap();
        assert!(report.findings.is_empty(), "{report:#?}");
        assert_eq!(report.compressed_clusters, if cluster_bits == 12 { 0 } else { 20 });
        let places = streams(&copy, cluster_bits);
        assert!(places.iter().flatten().all(|offset| offset % SECTOR as u64 == 0), "{places:?}");
    }
}

/// Goal: work that nobody does fails the request by name, its buffer comes back, and the image goes on.
#[test]
fn dropped_work_is_told() {
    let storage = MemoryStorage::default();
    create(&any(&storage), &CreateOptions::new(8 << 12).cluster_bits(12)).unwrap();
    let open = qcow2_core::Image::open(any(&storage), OpenOptions::new());
    let image = block_on(open).unwrap();
    let buf = IoBuf::copy_of(&[7; 3 * 4096], 512);
    let how = Durability::Cached;
    let (buf, written) = block_on(image.write_compressed(2048, buf, how, &Nobody));
    let error = written.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let told = "the guest cluster at 0x1000 was not compressed: the executor dropped the work";
    assert_eq!(error.to_string(), told);
    assert_eq!(buf[..], [7; 3 * 4096]);
    let (_, written) = block_on(image.write_compressed(4096, buf, Durability::Through, &Inline));
    written.unwrap();
    block_on(image.close()).unwrap();
    assert!(check(&any(&storage), Repair::None).unwrap().findings.is_empty());
}

/// A storage that counts.
#[derive(Clone, Debug, Default)]
struct Counted {
    bytes: MemoryStorage,
    reads: Arc<AtomicU64>,
    writes: Arc<AtomicU64>,
    flushes: Arc<AtomicU64>,
    discarded: Arc<AtomicU64>,
}

/// More than any test here needs.
const MOST_READS: u64 = 20_000;

impl Storage for Counted {
    fn limits(&self) -> Limits {
        self.bytes.limits()
    }

    async fn len(&self) -> io::Result<u64> {
        self.bytes.len().await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.set_len(len).await
    }

    async fn read(&self, offset: u64, buf: IoBuf) -> (IoBuf, io::Result<()>) {
        assert!(self.reads.fetch_add(1, Relaxed) < MOST_READS, "it reads without end");
        self.bytes.read(offset, buf).await
    }

    async fn write(
        &self,
        offset: u64,
        buf: IoBuf,
        durability: Durability,
    ) -> (IoBuf, io::Result<()>) {
        self.writes.fetch_add(1, Relaxed);
        self.bytes.write(offset, buf, durability).await
    }

    async fn write_zeroes(&self, range: Range<u64>) -> io::Result<()> {
        self.bytes.write_zeroes(range).await
    }

    async fn discard(&self, range: Range<u64>) -> io::Result<()> {
        self.discarded.fetch_add(range.end - range.start, Relaxed);
        self.bytes.discard(range).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Relaxed);
        self.bytes.flush().await
    }

    async fn settle(&self) -> io::Result<()> {
        self.bytes.settle().await
    }
}

/// A new image of so many guest clusters.
fn counted(
    clusters: u64,
    create_with: CreateOptions,
    open: OpenOptions,
) -> (Counted, Image<AnyStorage>) {
    let storage = Counted::default();
    let mut options = create_with;
    options.virtual_size = clusters << options.cluster_bits;
    create(&any(&storage), &options).expect("there is room");
    let image = Image::open(any(&storage), open).expect("it was just made");
    (storage, image)
}

/// Goal: space that streams leave goes back to the storage with the last of them, whether they go one by one or at once.
#[test]
fn what_streams_share_is_discarded_with_the_last() {
    for at_once in [false, true] {
        let (storage, image) = counted(64, CreateOptions::new(0), OpenOptions::new());
        let data: Vec<u8> = (0..64).flat_map(|seed| compressible(seed, 1 << 16)).collect();
        image.write_compressed(0, &data, &Inline).unwrap();
        image.flush().unwrap();
        let places = streams(&storage.bytes, 16);
        let places: Vec<u64> = places.into_iter().flatten().collect();
        assert_eq!(places.len(), 64);
        let step = if at_once { 64 } else { 1 };
        for cluster in (0..64).step_by(step as usize) {
            image.discard(cluster << 16, step << 16).unwrap();
            image.flush().unwrap();
            image.flush().unwrap();
        }
        let hosts = (places[63] >> 16) - (places[0] >> 16);
        assert!(hosts > 15, "{hosts}");
        let discarded = storage.discarded.load(Relaxed);
        assert!(discarded >= hosts << 16, "{at_once}: {discarded} of {}", hosts << 16);
        image.close().unwrap();
    }
}

/// Goal: giving up streams ends, however few pages are in memory: each shares its host cluster, and their counts are in many pages. Method: reads
/// are counted.
#[test]
fn counts_in_many_pages_need_no_cache_of_as_many() {
    let options = CreateOptions::new(0).cluster_bits(10).refcount_bits(64);
    let (storage, image) = counted(9216, options, OpenOptions::new());
    let data: Vec<u8> = (0..9216u32).flat_map(|at| [at as u8; 1024]).collect();
    image.write_compressed(0, &data, &Inline).unwrap();
    image.close().unwrap();
    for cache_pages in [1, 40, 63] {
        let open = OpenOptions::new().cache_pages(cache_pages).page_size(512);
        let image = Image::open(any(&storage), open).unwrap();
        storage.reads.store(0, Relaxed);
        for at in 0..70 {
            image.discard((at * 128 + cache_pages as u64) << 10, 1024).unwrap();
        }
        image.flush().unwrap();
        image.close().unwrap();
        let report = check(&storage, Repair::None).unwrap();
        assert!(report.findings.is_empty(), "{report:#?}");
    }
}

/// Goal: what does not compress costs what any write costs, in flushes too. Method: both are counted.
#[test]
fn what_does_not_compress_is_written_as_it_is() {
    for (cluster_bits, through) in [(9, false), (12, false), (16, false), (12, true)] {
        let data = noise(7, 64 << 12);
        let cost = |compressed: bool| {
            let options = CreateOptions::new(0).cluster_bits(cluster_bits);
            let open = OpenOptions::new().write_through(through);
            let (storage, image) = counted(64 << 12 >> cluster_bits, options, open);
            image.write(0, &[1; 512]).unwrap();
            let counts = || [&storage.writes, &storage.flushes].map(|count| count.load(Relaxed));
            let before = counts();
            match compressed {
                true => image.write_compressed(0, &data, &Inline).unwrap(),
                false => image.write(0, &data).unwrap(),
            }
            let after = counts();
            [after[0] - before[0], after[1] - before[1]]
        };
        assert_eq!(cost(true), cost(false), "{cluster_bits} {through}");
    }
}

#[test]
fn zstd_needs_version_3() {
    let options = CreateOptions::new(1 << 20).version(2).compression(CompressionType::Zstd);
    let error = create(&MemoryStorage::default(), &options).unwrap_err();
    let told = "cannot create the image: compression with zstd needs version 3 of the format, not version 2";
    assert_eq!(error.to_string(), told);
}
