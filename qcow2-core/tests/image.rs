//! The library on storages that never fail: what is written is read back, what is closed checks clean.

use qcow2_core::blocking::{Image, block_on, check, create};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{Durability, IoBuf};
use qcow2_core::{CreateOptions, IoError, OpenOptions, Repair, Source, Zeroing};

/// Small numbers for choosing operations; not random, only scattered.
struct Scatter(u64);

impl Scatter {
    fn below(&mut self, end: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// A new image of 1 MiB without blocking calls.
fn bare_image(cluster_bits: u32) -> (MemoryStorage, qcow2_core::Image<MemoryStorage>) {
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(1 << 20).cluster_bits(cluster_bits))
        .expect("there is room");
    let image = block_on(qcow2_core::Image::open(storage.clone(), OpenOptions::new()))
        .expect("it was just made");
    (storage, image)
}

fn assert_clean(storage: &MemoryStorage) {
    let report = check(storage, Repair::None).expect("the storage works");
    assert_eq!((report.corruptions, report.leaks), (0, 0), "{:#?}", report.findings);
}

/// Goal: every cluster size, eager and lazy, reads back what a plain array says, across reopening and growth.
/// Method: scattered operations on both, compared as a whole after each session.
#[test]
#[cfg_attr(not(turn = "4"), ignore = "its turn is at another commit; CI=1 runs all")]
fn reads_back_what_was_written() {
    for cluster_bits in [9, 10, 12, 16, 21] {
        for lazy in [false, true] {
            let mut scatter = Scatter(u64::from(cluster_bits) * 2 + u64::from(lazy));
            let mut size = (40 << cluster_bits) + 1024u64;
            let storage = MemoryStorage::default();
            let options = CreateOptions::new(size).cluster_bits(cluster_bits).lazy_refcounts(lazy);
            create(&storage, &options).unwrap();
            assert_clean(&storage);
            let mut expected = vec![0u8; size as usize];
            for session in 0..4 {
                let open =
                    OpenOptions::new().growth(1 << cluster_bits).cache_pages(2).page_size(512);
                let image = Image::open(storage.clone(), open).unwrap();
                for step in 0..60u64 {
                    let offset = scatter.below(size / 512) * 512;
                    let len = (1 + scatter.below((3 << cluster_bits) / 512)) * 512;
                    let len = len.min(size - offset);
                    let range = offset as usize..(offset + len) as usize;
                    match scatter.below(8) {
                        0..=3 => {
                            let byte = (1 + step + session * 60) as u8;
                            image.write(offset, &vec![byte; len as usize]).unwrap();
                            expected[range].fill(byte);
                        }
                        4 => {
                            let how = if step % 2 == 0 { Zeroing::Keep } else { Zeroing::Free };
                            image.write_zeroes(offset, len, how).unwrap();
                            expected[range].fill(0);
                        }
                        5 => {
                            image.discard(offset, len).unwrap();
                            let cluster = 1u64 << cluster_bits;
                            let first = offset.next_multiple_of(cluster);
                            let end = offset + len;
                            let last = if end == size { end } else { end - end % cluster };
                            if first < last {
                                expected[first as usize..last as usize].fill(0);
                            }
                        }
                        6 => image.flush().unwrap(),
                        _ => {
                            let mut data = vec![0xee; len as usize];
                            image.read(offset, &mut data).unwrap();
                            assert_eq!(data, expected[range]);
                        }
                    }
                }
                size += scatter.below(20 << cluster_bits) / 512 * 512;
                image.grow(size).unwrap();
                expected.resize(size as usize, 0);
                let mut data = vec![0xee; size as usize];
                image.read(0, &mut data).unwrap();
                assert!(data == expected, "{cluster_bits} {lazy} {session}");
                image.close().unwrap();
                assert_clean(&storage);
            }
        }
    }
}

/// Goal: an image that is never closed is repaired at the next open when it is lazy, and needs no repair when it is eager.
#[test]
fn an_abandoned_lazy_image_is_repaired_when_opened() {
    for lazy in [false, true] {
        let storage = MemoryStorage::default();
        let options = CreateOptions::new(1 << 20).cluster_bits(12).lazy_refcounts(lazy);
        create(&storage, &options).unwrap();
        let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
        for cluster in 0..100 {
            image.write(cluster * 8192, &[7; 4096]).unwrap();
        }
        image.flush().unwrap();
        assert_eq!(image.info().dirty, lazy);
        drop(image);
        let report = check(&storage, Repair::None).unwrap();
        assert_eq!(report.corruptions > 0, lazy, "{report:?}");
        let before = storage.to_vec();
        drop(Image::open(storage.clone(), OpenOptions::read_only()).unwrap());
        assert!(storage.to_vec() == before, "opening it read-only changed it");
        let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
        assert!(!image.info().dirty);
        let mut data = vec![0; 4096];
        image.read(99 * 8192, &mut data).unwrap();
        assert_eq!(data, [7; 4096]);
        drop(image);
        assert_clean(&storage);
    }
}

/// An empty image of 512-byte clusters with refcounts of 64 bits: a block describes 64 clusters, a table of one cluster 64
/// blocks, 2 MiB.
fn with_wide_refcounts(virtual_size: u64) -> MemoryStorage {
    let storage = MemoryStorage::default();
    let shape = CreateOptions::new(virtual_size).cluster_bits(9);
    create(&storage, &shape).expect("there is room");
    storage.with(|bytes| {
        let block = field(bytes, field(bytes, 48, 8), 8);
        let counts: Vec<u8> = bytes[block..block + 128].chunks(2).map(|count| count[1]).collect();
        for (wide, count) in bytes[block..block + 512].chunks_mut(8).zip(counts) {
            wide.copy_from_slice(&u64::from(count).to_be_bytes());
        }
        bytes[99] = 6;
    });
    assert_clean(&storage);
    storage
}

fn field(bytes: &[u8], at: usize, len: usize) -> usize {
    bytes[at..at + len].iter().fold(0, |value, byte| (value << 8) | usize::from(*byte))
}

/// Goal: refcount blocks and the refcount table grow, and what they describe stays right.
#[test]
fn the_refcount_table_grows() {
    let storage = with_wide_refcounts(12 << 20);
    let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
    let data: Vec<u8> = (0..7u32 << 20).map(|at| (at / 512 % 251) as u8).collect();
    for (index, chunk) in data.chunks(64 << 10).enumerate() {
        image.write(index as u64 * (64 << 10), chunk).unwrap();
    }
    let mut back = vec![0; data.len()];
    image.read(0, &mut back).unwrap();
    assert!(back == data);
    image.close().unwrap();
    assert_clean(&storage);
    // No more blocks and no larger a table than it takes.
    let bytes = storage.to_vec();
    let (table, clusters) = (field(&bytes, 48, 8), field(&bytes, 56, 4));
    let blocks =
        (0..clusters * 64).filter(|index| field(&bytes, table + index * 8, 8) != 0).count();
    let used = check(&storage, Repair::None).unwrap().image_end_offset;
    assert_eq!((clusters, blocks as u64), (4, used.div_ceil(64 * 512)));
    let image = Image::open(storage, OpenOptions::read_only()).unwrap();
    image.read(0, &mut back).unwrap();
    assert!(back == data);
}

/// Goal: a new refcount table and its blocks may need more than one block. Method: a table of 63 clusters whose blocks are all
/// full, by clusters that nothing refers to: the next one has 64 clusters, and a block describes 64.
#[test]
fn a_refcount_table_may_need_more_than_one_block() {
    const TABLE: usize = 63;
    let storage = with_wide_refcounts(1 << 20);
    storage.with(|bytes| {
        let table = bytes.len();
        let block = table + TABLE * 512;
        let blocks = TABLE * 64;
        bytes[48..56].copy_from_slice(&(table as u64).to_be_bytes());
        bytes[56..60].copy_from_slice(&(TABLE as u32).to_be_bytes());
        bytes.extend((0..blocks).flat_map(|index| ((block + index * 512) as u64).to_be_bytes()));
        bytes.extend(1u64.to_be_bytes().repeat(blocks * 64));
        bytes.resize(blocks * 64 * 512, 0);
    });
    let leaks = check(&storage, Repair::None).unwrap().leaks;
    let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
    image.write(0, &[5; 512]).unwrap();
    image.close().unwrap();
    let report = check(&storage, Repair::None).unwrap();
    // What the old table took is free again.
    assert_eq!((report.corruptions, report.leaks), (0, leaks), "{:#?}", report.findings);
    let bytes = storage.to_vec();
    let (table, clusters) = (field(&bytes, 48, 8), field(&bytes, 56, 4));
    let blocks =
        (0..clusters * 64).filter(|index| field(&bytes, table + index * 8, 8) != 0).count();
    assert_eq!((clusters, blocks), (64, TABLE * 64 + 2));
}

/// Goal: a new refcount block is empty where the file is not. Method: a block is two pages of the cache and describes 512
/// clusters; behind those lies what somebody else left.
#[test]
fn a_refcount_block_may_come_where_something_was() {
    const CLUSTER: usize = 1024;
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(1 << 20).cluster_bits(10)).unwrap();
    storage.with(|bytes| bytes.resize(600 * CLUSTER, 0xee));
    let options = OpenOptions::new().page_size(512);
    let image = Image::open(storage.clone(), options).unwrap();
    let data: Vec<u8> = (0..550 * CLUSTER).map(|at| (at / CLUSTER % 251) as u8).collect();
    image.write(0, &data).unwrap();
    image.close().unwrap();
    assert_clean(&storage);
    // The header, two tables, two blocks, five L2 tables, and no gap.
    let end = check(&storage, Repair::None).unwrap().image_end_offset;
    assert_eq!(end, (10 + 550) * CLUSTER as u64);
    let image = Image::open(storage, OpenOptions::read_only()).unwrap();
    let mut back = vec![0; data.len() + CLUSTER];
    image.read(0, &mut back).unwrap();
    assert!(back[..data.len()] == data && back[data.len()..] == [0; CLUSTER]);
}

/// Goal: what a rebuild of all refcount structures leaves checks clean and reads the same, and a second one too.
#[test]
fn rebuilding_keeps_the_data() {
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(1 << 20).cluster_bits(9)).unwrap();
    let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
    image.write(1000, &[5; 300_000]).unwrap();
    image.close().unwrap();
    for _ in 0..2 {
        let report = check(&storage, Repair::Rebuild).unwrap();
        assert!(report.rebuilt && report.is_consistent());
        assert_clean(&storage);
    }
    let image = Image::open(storage, OpenOptions::new()).unwrap();
    let mut back = vec![0; 300_002];
    image.read(999, &mut back).unwrap();
    assert!(back[0] == 0 && back[1..300_001].iter().all(|&byte| byte == 5) && back[300_001] == 0);
}

/// Goal: an L1 table finds room for all of it in one run. Method: holes of one cluster each lie before the end of the file.
#[test]
fn an_l1_table_grows_past_holes() {
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(64 << 10).cluster_bits(9)).unwrap();
    let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
    image.write(0, &[3; 20 * 512]).unwrap();
    for hole in [3, 5, 9] {
        image.discard(hole * 512, 512).unwrap();
    }
    image.flush().unwrap();
    image.flush().unwrap();
    // Four clusters of L1 table.
    image.grow(8 << 20).unwrap();
    image.write((8 << 20) - 512, &[4; 512]).unwrap();
    image.close().unwrap();
    assert_clean(&storage);
    let image = Image::open(storage, OpenOptions::read_only()).unwrap();
    let mut back = [0; 20 * 512];
    image.read(0, &mut back).unwrap();
    for (cluster, bytes) in back.chunks(512).enumerate() {
        let expected = if [3, 5, 9].contains(&cluster) { 0 } else { 3 };
        assert_eq!(bytes, [expected; 512], "cluster {cluster}");
    }
    image.read((8 << 20) - 512, &mut back[..512]).unwrap();
    assert_eq!(back[..512], [4; 512]);
}

/// Goal: an L1 table that begins in the file and ends past its end takes what it needs and no more.
#[test]
fn an_l1_table_grows_over_the_end_of_the_file() {
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(64 << 10).cluster_bits(9)).unwrap();
    let options = OpenOptions::new().growth(0);
    let image = Image::open(storage.clone(), options).unwrap();
    image.write(0, &[3; 4 * 512]).unwrap();
    image.discard(3 * 512, 512).unwrap();
    image.flush().unwrap();
    image.flush().unwrap();
    let before = storage.to_vec().len();
    image.grow(8 << 20).unwrap();
    assert_eq!(storage.to_vec().len(), before + 3 * 512);
    image.close().unwrap();
    assert_clean(&storage);
}

/// Goal: a discard reaches the storage if it is asked to, and only then. Method: a storage that zeroes what is discarded.
#[test]
fn a_discard_is_passed_down_if_asked_to() {
    for pass_discard in [false, true] {
        let storage = MemoryStorage::default();
        let shape = CreateOptions::new(64 << 10).cluster_bits(9);
        create(&storage, &shape).unwrap();
        let options = OpenOptions::new().pass_discard(pass_discard);
        let image = Image::open(storage.clone(), options).unwrap();
        image.write(0, &[0xd5; 4 * 512]).unwrap();
        image.flush().unwrap();
        image.discard(512, 2 * 512).unwrap();
        image.close().unwrap();
        let kept = storage.to_vec().chunks(512).filter(|unit| **unit == [0xd5; 512]).count();
        assert_eq!(kept, if pass_discard { 2 } else { 4 });
    }
}

/// Goal: neighbours on the host are one extent, so that a long request is few reads and writes. Method: clusters written at once, beside
/// some that nobody wrote, asked for as a map.
#[test]
fn neighbours_are_one_extent() {
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(1 << 30)).unwrap();
    let image = block_on(qcow2_core::Image::open(storage, OpenOptions::new())).unwrap();
    let map = block_on(image.map_write(0, 3 << 16)).unwrap();
    assert_eq!(map.extents().iter().map(|extent| extent.len).collect::<Vec<_>>(), [3 << 16]);
    block_on(map.commit()).unwrap();
    let map = block_on(image.map_read(512, 8 << 16)).unwrap();
    let extents = map.extents();
    let lens: Vec<u64> = extents.iter().map(|extent| extent.len).collect();
    assert_eq!(lens, [(3 << 16) - 512, (5 << 16) + 512]);
    assert!(matches!(extents[0].source, Source::Host(host) if host % 65_536 == 512));
    assert_eq!(extents[1].source, Source::Zeroes);
}

/// Goal: a cluster that was written, freed and taken again shows nothing old around what is written. Method: one that came from where
/// nothing was ever written, on a storage that keeps what it holds.
#[test]
fn a_cluster_taken_again_shows_nothing_old() {
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(1 << 20)).unwrap();
    let options = OpenOptions::new().pass_discard(false);
    let image = Image::open(storage.clone(), options).unwrap();
    image.write(0, &[7; 65536]).unwrap();
    image.discard(0, 65536).unwrap();
    image.flush().unwrap();
    image.flush().unwrap();
    let length = storage.to_vec().len();
    image.write(65536 + 512, &[8; 512]).unwrap();
    assert_eq!(storage.to_vec().len(), length, "the cluster was taken again");
    let mut data = [1; 65536];
    image.read(65536, &mut data).unwrap();
    let (new, rest): (Vec<_>, Vec<_>) =
        data.into_iter().enumerate().partition(|(at, _)| (512..1024).contains(at));
    assert!(new.iter().all(|&(_, byte)| byte == 8));
    assert!(rest.iter().all(|&(_, byte)| byte == 0));
}

type Request = fn(&Image<MemoryStorage>) -> Result<(), IoError>;

/// Goal: an empty request changes nothing, wherever in a cluster it is, and neither does what a longer request has at an edge that is
/// empty. Method: requests on a new image, whose disk ends inside a cluster, and every byte of the storage compared.
#[test]
fn an_empty_request_changes_nothing() {
    const SIZE: u64 = (1 << 20) + 512;
    let requests: [Request; 9] = [
        |image| image.write(512, &[]),
        |image| image.write(100, &[]),
        |image| image.write(SIZE, &[]),
        |image| image.write_zeroes(100, 0, Zeroing::Keep),
        |image| image.write_zeroes(512, 1024, Zeroing::Free),
        |image| image.write_zeroes(512, 128 << 10, Zeroing::Free),
        |image| image.write_zeroes(SIZE - 512, 512, Zeroing::Keep),
        |image| image.discard(512, 0),
        |image| image.read(SIZE, &mut []),
    ];
    let storage = MemoryStorage::default();
    create(&storage, &CreateOptions::new(SIZE)).unwrap();
    let new = storage.to_vec();
    let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
    for (number, request) in requests.into_iter().enumerate() {
        request(&image).unwrap();
        image.flush().unwrap();
        assert!(storage.to_vec() == new, "request {number}");
    }
    image.close().unwrap();
    let image = block_on(qcow2_core::Image::open(storage.clone(), OpenOptions::new())).unwrap();
    for at in [0, 512, 65_536, SIZE] {
        for how in [Durability::Cached, Durability::Through] {
            block_on(image.write(at, IoBuf::default(), how)).1.unwrap();
        }
        let map = block_on(image.map_write(at, 0)).unwrap();
        assert_eq!(map.extents(), []);
        block_on(map.commit()).unwrap();
        block_on(image.write_zeroes(at, 0, Zeroing::Free)).unwrap();
        block_on(image.discard(at, 0)).unwrap();
        block_on(image.read(at, IoBuf::default())).1.unwrap();
        block_on(image.flush()).unwrap();
        assert!(storage.to_vec() == new, "at {at}");
    }
}

/// Goal: an empty request is refused where any other is: past the end of the disk, between units, and where nothing may be changed.
#[test]
fn an_empty_request_is_refused_like_any_other() {
    const SIZE: u64 = 1 << 20;
    let (storage, image) = bare_image(16);
    let past_the_end = |error: &IoError| matches!(error, IoError::OutOfRange { .. });
    let write = |at: u64| block_on(image.write(at, IoBuf::default(), Durability::Cached)).1;
    assert!(write(SIZE + 512).is_err_and(|error| past_the_end(&error)));
    assert!(write(100).is_err_and(|error| matches!(error, IoError::Unaligned { .. })));
    assert!(block_on(image.map_write(SIZE + 512, 0)).is_err_and(|error| past_the_end(&error)));
    let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
    for at in [SIZE + 1, SIZE + 512, u64::MAX] {
        assert!(image.write(at, &[]).is_err_and(|error| past_the_end(&error)), "{at}");
        assert!(image.read(at, &mut []).is_err_and(|error| past_the_end(&error)), "{at}");
    }
    let image = Image::open(storage, OpenOptions::read_only()).unwrap();
    for at in [0, 100, 512] {
        assert!(matches!(image.write(at, &[]), Err(IoError::ReadOnly)), "{at}");
    }
}

/// Goal: the rest of a request that is no whole cluster becomes zeroes in each of the two that it lies in. Method: the first one was never
/// written, the second one was.
#[test]
fn zeroes_reach_into_the_second_of_two_clusters() {
    const CLUSTER: u64 = 1 << 16;
    let (_, image) = bare_image(16);
    let data = IoBuf::copy_of(&[5; CLUSTER as usize], 1);
    block_on(image.write(CLUSTER, data, Durability::Cached)).1.unwrap();
    block_on(image.write_zeroes(CLUSTER - 512, 1024, Zeroing::Free)).unwrap();
    let (back, result) = block_on(image.read(CLUSTER, IoBuf::zeroed(1024, 1)));
    result.unwrap();
    assert!(back[..512] == [0; 512] && back[512..] == [5; 512]);
}

/// Goal: zeroes at any offset reach exactly as far as they are asked to, and a discard takes whole clusters only.
#[test]
fn zeroes_and_discards_at_odd_offsets_leave_the_rest() {
    let zero: Request = |image| image.write_zeroes(100, 1700, Zeroing::Free);
    let discard: Request = |image| image.discard(100, 1700);
    for (request, zeroed) in [(zero, 100..1800), (discard, 512..1536)] {
        let storage = MemoryStorage::default();
        create(&storage, &CreateOptions::new(1 << 20).cluster_bits(9)).unwrap();
        let image = Image::open(storage, OpenOptions::new()).unwrap();
        image.write(0, &[5; 4096]).unwrap();
        request(&image).unwrap();
        let mut expected = [5; 4096];
        expected[zeroed.clone()].fill(0);
        let mut back = [1; 4096];
        image.read(0, &mut back).unwrap();
        assert!(back == expected, "{zeroed:?}");
    }
}

/// Goal: zeroes that keep their clusters need none when data comes back. Method: the host cluster before and after.
#[test]
fn zeroes_may_keep_their_cluster() {
    let (_, image) = bare_image(9);
    let data = IoBuf::copy_of(&[5; 512], 1);
    block_on(image.write(0, data, Durability::Cached)).1.unwrap();
    let host = block_on(image.map_read(0, 512)).unwrap().extents()[0].source.host().unwrap();
    block_on(image.write_zeroes(0, 512, Zeroing::Keep)).unwrap();
    assert_eq!(block_on(image.map_read(0, 512)).unwrap().extents()[0].source.host(), None);
    assert_eq!(block_on(image.map_write(0, 512)).unwrap().extents()[0].offset(), host);
}

/// Goal: what a read map shows is not handed to another guest cluster while the map lives, and is when it has gone. Method: a cluster that
/// is discarded beside a map of it, and many writes that need one.
#[test]
fn what_a_read_map_shows_stays_while_it_lives() {
    let (_, image) = bare_image(9);
    let write = |at: u64| {
        block_on(image.write(at, IoBuf::copy_of(&[5; 512], 1), Durability::Cached)).1.unwrap();
    };
    let host = |at| block_on(image.map_read(at, 512)).unwrap().extents()[0].source.host().unwrap();
    write(0);
    block_on(image.flush()).unwrap();
    let map = block_on(image.map_read(0, 512)).unwrap();
    let shown = map.extents()[0].source.host().unwrap();
    block_on(image.discard(0, 512)).unwrap();
    block_on(image.flush()).unwrap();
    block_on(image.flush()).unwrap();
    for at in (1..8).map(|cluster| cluster * 512) {
        write(at);
        block_on(image.flush()).unwrap();
        assert_ne!(host(at), shown, "{at}");
    }
    drop(map);
    block_on(image.flush()).unwrap();
    write(9 * 512);
    assert_eq!(host(9 * 512), shown);
}

/// Goal: a write through is there after a power cut, its mapping included. Method: a cluster that nobody wrote, and one that was written
/// and not flushed; then what the storage holds is opened.
#[test]
fn a_write_through_makes_its_mapping_durable() {
    for mapped_before in [false, true] {
        let (storage, image) = bare_image(9);
        let write = |how| block_on(image.write(0, IoBuf::copy_of(&[5; 512], 1), how)).1.unwrap();
        if mapped_before {
            write(Durability::Cached);
        }
        write(Durability::Through);
        let copy = MemoryStorage::new(storage.to_vec());
        let copy = Image::open(copy, OpenOptions::read_only()).unwrap();
        let mut back = [0; 512];
        copy.read(0, &mut back).unwrap();
        assert_eq!(back, [5; 512], "mapped before: {mapped_before}");
    }
}
