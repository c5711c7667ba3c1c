//! Compressed clusters: read, written over in part and whole, zeroed and given up; and streams that are none.

use flate2::{Compress, Compression, FlushCompress};
use qcow2_core::blocking::{Image, block_on, check, create};
use qcow2_core::format::Header;
use qcow2_core::format::entry::{L2Entry, Mapping};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::{CreateOptions, ErrorKind, IoError, OpenOptions, Repair, Source, Zeroing};

use crate::draws::draws;

/// Guest clusters of a sample: two compressed ones, one of data, and one that nobody wrote.
const CLUSTERS: u64 = 4;

/// An image and what it reads as. Its first two guest clusters are compressed, and their streams follow each other without a gap in one host
/// cluster.
pub(crate) struct Sample {
    pub(crate) image: Vec<u8>,
    pub(crate) expected: Vec<u8>,
    /// Where in the file the streams begin.
    pub(crate) streams: [u64; 2],
}

/// Bytes that compress, each cluster's others.
fn content(cluster: u64, size: usize) -> Vec<u8> {
    let mut draw = draws(cluster);
    let words: Vec<u8> = (0..16).map(|_| 1 + draw(255) as u8).collect();
    (0..size).map(|at| words[(at / 48 + at % 3) % 16]).collect()
}

fn deflated(data: &[u8]) -> Vec<u8> {
    let mut compress = Compress::new_with_window_bits(Compression::best(), false, 12);
    let mut stream = Vec::with_capacity(2 * data.len());
    compress.compress_vec(data, &mut stream, FlushCompress::Finish).expect("there is room");
    stream
}

fn word(bytes: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(bytes[at as usize..][..8].try_into().expect("eight bytes"))
}

fn put(bytes: &mut [u8], at: u64, value: &[u8]) {
    bytes[at as usize..][..value.len()].copy_from_slice(value);
}

pub(crate) fn sample(cluster_bits: u32, extended: bool) -> Sample {
    let size = 1 << cluster_bits;
    let storage = MemoryStorage::default();
    let options = CreateOptions::new(CLUSTERS * size as u64).cluster_bits(cluster_bits);
    create(&storage, &options.extended_l2(extended)).expect("there is room");
    let image = Image::open(storage.clone(), OpenOptions::new()).expect("it was just made");
    let mut expected: Vec<u8> = (0..3).flat_map(|cluster| content(cluster, size)).collect();
    image.write(size as u64, &expected[size..]).expect("there is room");
    image.close().expect("there is room");
    expected.resize(CLUSTERS as usize * size, 0);

    let mut bytes = storage.to_vec();
    let header = Header::parse(&bytes).expect("it was just made");
    let (table, entry_len) =
        (word(&bytes, header.l1_table_offset) << 8 >> 8, if extended { 16 } else { 8 });
    let host = word(&bytes, table + entry_len) << 8 >> 8;
    let first = deflated(&expected[..size]);
    let second = deflated(&expected[size..2 * size]);
    let both = [&first[..], &second[..]].concat();
    assert!(both.len() < size, "they lie in one cluster");
    bytes[host as usize..][..size].fill(0);
    put(&mut bytes, host, &both);
    let streams = [host, host + first.len() as u64];
    for (index, (offset, length)) in
        streams.into_iter().zip([first.len(), second.len()]).enumerate()
    {
        let entry = L2Entry::compressed(offset, length as u64, cluster_bits).expect("it fits");
        put(&mut bytes, table + index as u64 * entry_len, &entry.0.to_be_bytes());
        if extended {
            put(&mut bytes, table + index as u64 * 16 + 8, &[0; 8]);
        }
    }
    let block = word(&bytes, header.refcount_table_offset);
    put(&mut bytes, block + host / size as u64 * 2, &[0, 2]);
    let report =
        check(&MemoryStorage::new(bytes.clone()), Repair::None).expect("it can be checked");
    assert!(report.findings.is_empty(), "{report:#?}");
    assert_eq!(report.compressed_clusters, 2);
    Sample { image: bytes, expected, streams }
}

/// Goal: whatever is done to compressed clusters, the rest of them stays, and their space is given back with the last that had a part of it.
/// Method: scattered requests over all of a sample, until nothing compressed is left; standard and extended entries, eager and lazy.
#[test]
fn what_is_left_of_a_compressed_cluster_stays() {
    for (cluster_bits, extended) in [(9, false), (12, false), (16, false), (14, true), (16, true)] {
        for seed in 0..24 {
            let Sample { image, mut expected, .. } = sample(cluster_bits, extended);
            let storage = MemoryStorage::new(image);
            let open = OpenOptions::new().lazy_refcounts(seed % 2 == 0);
            let image = Image::open(storage.clone(), open).unwrap();
            let mut draw = draws(seed);
            for step in 0..6 {
                let units = expected.len() / 512;
                let from = draw(units) * 512;
                let len = (1 + draw(units / 2)) * 512;
                let range = from..expected.len().min(from + len);
                let (offset, len) = (range.start as u64, range.len() as u64);
                match draw(5) {
                    0 => image.write_zeroes(offset, len, Zeroing::Free).unwrap(),
                    1 => image.write_zeroes(offset, len, Zeroing::Keep).unwrap(),
                    _ => image.write(offset, &vec![step + 1; range.len()]).unwrap(),
                }
                if draw(2) == 0 {
                    image.flush().unwrap();
                }
                // Which of them it was does not matter: 0 and `step` are told apart by what is read.
                let mut read = vec![0xee; expected.len()];
                image.read(0, &mut read).unwrap();
                let written = read[range.start];
                assert!(written == 0 || written == step + 1);
                expected[range].fill(written);
                assert!(read == expected, "{cluster_bits} {extended} {seed} {step}");
            }
            for size in [draw(expected.len() / 512) * 512, 0] {
                image.shrink(size as u64).unwrap();
                expected.truncate(size);
                let mut read = vec![0xee; size];
                image.read(0, &mut read).unwrap();
                assert!(read == expected);
            }
            image.close().unwrap();
            let report = check(&storage, Repair::None).unwrap();
            assert!(report.findings.is_empty(), "{cluster_bits} {extended} {seed}: {report:#?}");
            assert_eq!(report.compressed_clusters, 0);
        }
    }
}

/// Goal: the first of two streams in a cluster goes, and the cluster and the other stream stay. Method: discards one after the other, with a
/// reader, a power cut and a repair in between.
#[test]
fn a_cluster_lives_as_long_as_one_of_its_streams() {
    for lazy in [false, true] {
        let Sample { image, mut expected, streams } = sample(12, false);
        let size = 4096;
        let storage = MemoryStorage::new(image);
        let open =
            || Image::open(storage.clone(), OpenOptions::new().lazy_refcounts(lazy)).unwrap();
        let image = open();
        image.discard(0, size).unwrap();
        expected[..size as usize].fill(0);
        image.flush().unwrap();
        image.flush().unwrap();
        assert_ne!(
            storage.to_vec()[streams[1] as usize..][..8],
            [0; 8],
            "it is discarded with the last"
        );
        // As after a power cut.
        drop(image);
        let image = open();
        let mut read = vec![0; expected.len()];
        image.read(0, &mut read).unwrap();
        assert!(read == expected);
        image.discard(size, size).unwrap();
        image.close().unwrap();
        let report = check(&storage, Repair::None).unwrap();
        assert!(report.findings.is_empty(), "{report:#?}");
        assert_eq!((report.allocated_clusters, report.compressed_clusters), (1, 0));
    }
}

/// Goal: who moves bytes alone is told what is compressed, piece by piece. Method: a range that begins inside a compressed cluster.
#[test]
fn compressed_clusters_are_extents_of_their_own() {
    let Sample { image, streams, .. } = sample(12, false);
    let image = qcow2_core::Image::open(MemoryStorage::new(image), OpenOptions::read_only());
    let image = block_on(image).unwrap();
    let map = block_on(image.map_read(1024, 3 * 4096)).unwrap();
    let [first, second, third, fourth] = map.extents() else { panic!("{map:?}") };
    for (extent, offset, len) in [(first, streams[0], 3072), (second, streams[1], 4096)] {
        let Source::Compressed(entry) = extent.source else { panic!("{extent:?}") };
        let Ok(Mapping::Compressed { offset: at, length, .. }) = entry.decode(12, 3, 0) else {
            panic!("{entry:?}")
        };
        assert_eq!((at, extent.len), (offset, len));
        assert!(length < 4096 + 512 && extent.source.host().is_none());
    }
    assert!(third.source.host().is_some() && third.len == 4096, "{third:?}");
    assert_eq!((fourth.source, fourth.len), (Source::Zeroes, 1024));
}

/// Goal: a stream that is none fails the request that needs it, by name, and no other; and what does not need it goes on. Method: every byte
/// of a stream broken, and a stream past the end of the file.
#[test]
fn what_cannot_be_decompressed_is_told() {
    let Sample { image: whole, expected, streams } = sample(12, false);
    let damaged = |error: IoError| {
        assert_eq!(error.kind(), ErrorKind::Damaged, "{error}");
        assert!(error.to_string().contains("cannot be decompressed"), "{error}");
    };
    let mut refused = 0;
    for at in streams[0]..streams[1] {
        let mut bytes = whole.clone();
        bytes[at as usize] ^= 0xff;
        let storage = MemoryStorage::new(bytes.clone());
        let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
        let mut read = vec![0; 4096];
        image.read(4096, &mut read).unwrap();
        assert!(read == expected[4096..8192], "the other stream is whole");
        if let Err(error) = image.read(0, &mut read) {
            damaged(error);
            damaged(image.write(512, &[1; 512]).unwrap_err());
            damaged(image.write_zeroes(512, 512, Zeroing::Free).unwrap_err());
            refused += 1;
        }
        // What needs nothing of it does.
        image.write(0, &[9; 4096]).unwrap();
        image.read(0, &mut read).unwrap();
        assert_eq!(read, [9; 4096]);
        image.close().unwrap();
        let report = check(&storage, Repair::None).unwrap();
        assert!(report.findings.is_empty(), "{at:#x}: {report:#?}");
    }
    assert!(refused > 20, "{refused} of {} bytes", streams[1] - streams[0]);

    let mut bytes = whole;
    bytes.truncate(streams[0] as usize);
    let image = Image::open(MemoryStorage::new(bytes), OpenOptions::read_only()).unwrap();
    damaged(image.read(0, &mut [0; 4096]).unwrap_err());
}
