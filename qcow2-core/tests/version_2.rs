//! Version 2 of the format: no feature bits, no entries that read as zeroes, and a header that ends where those of version 3 begin to
//! differ.
//!
//! ```text
//!   byte 0             72                                112
//!        | header of 2 | end of extensions, zeroes ..     |
//!        | header of 3 : feature bits, width, length      |
//! ```

use qcow2_core::blocking::{Image, check, create};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::{CreateOptions, IoError, OpenError, OpenOptions, Problem, Repair, Zeroing};

const CLUSTER: u64 = 512;
const SIZE: u64 = 64 << 10;
const COPIED: u64 = 1 << 63;

fn new_image() -> MemoryStorage {
    let storage = MemoryStorage::default();
    let options = CreateOptions::new(SIZE).cluster_bits(9).version(2);
    create(&storage, &options).expect("there is room");
    storage
}

fn open(storage: &MemoryStorage) -> Image<MemoryStorage> {
    Image::open(storage.clone(), OpenOptions::new().growth(0)).expect("an image in order")
}

/// An image whose first guest clusters are written, each with a byte of its own.
fn written(clusters: u64) -> MemoryStorage {
    let storage = new_image();
    let image = open(&storage);
    for cluster in 0..clusters {
        let byte = u8::try_from(cluster + 1).expect("few");
        image.write(cluster * CLUSTER, &[byte; CLUSTER as usize]).expect("there is room");
    }
    image.close().expect("nothing fails");
    storage
}

fn get(bytes: &[u8], at: u64) -> u64 {
    let at = usize::try_from(at).expect("small");
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn put(bytes: &mut [u8], at: u64, value: u64) {
    let at = usize::try_from(at).expect("small");
    bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

/// Where the entry of a guest cluster of the first L2 table is.
fn entry_at(bytes: &[u8], guest: u64) -> u64 {
    (get(bytes, get(bytes, 40)) & !COPIED) + guest * 8
}

/// Where the refcount of a cluster is.
fn count_at(bytes: &[u8], cluster: u64) -> usize {
    usize::try_from(get(bytes, get(bytes, 48)) + cluster * 2).expect("small")
}

#[test]
fn the_header_ends_at_byte_72() {
    for bits in [9, 12, 16, 21] {
        let storage = MemoryStorage::default();
        let options = CreateOptions::new(SIZE).cluster_bits(bits).version(2);
        create(&storage, &options).expect("there is room");
        let bytes = storage.to_vec();
        assert_eq!(bytes[..8], *b"QFI\xfb\0\0\0\x02");
        assert_eq!(bytes[72..1 << bits], vec![0; (1 << bits) - 72]);
        assert!(check(&storage, Repair::None).expect("an image").findings.is_empty());
    }
}

/// Goal: all requests work, in a session and over sessions, and nothing of version 3 gets into the image.
#[test]
fn every_request_works() {
    let storage = new_image();
    let mut expected = vec![0u8; 2 * SIZE as usize];
    let mut size = SIZE as usize;
    for round in 0..6u64 {
        let image = open(&storage);
        for step in 0..40u64 {
            let draw = (round * 40 + step).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
            let at = (draw % (size as u64 / 512)) as usize * 512;
            let len = ((draw >> 20) % 8 + 1) as usize * 512;
            let len = len.min(size - at);
            let (from, byte) = (at as u64, (step + 1) as u8);
            match step % 5 {
                0 | 1 => {
                    image.write(from, &vec![byte; len]).expect("there is room");
                    expected[at..at + len].fill(byte);
                }
                2 => {
                    image.write_zeroes(from, len as u64, Zeroing::Keep).expect("there is room");
                    expected[at..at + len].fill(0);
                }
                3 => {
                    image.write_zeroes(from, len as u64, Zeroing::Free).expect("there is room");
                    expected[at..at + len].fill(0);
                }
                _ => {
                    image.discard(from, len as u64).expect("there is room");
                    expected[at..at + len].fill(0);
                }
            }
        }
        if round == 3 {
            image.grow(2 * SIZE).expect("there is room");
            size *= 2;
        }
        image.close().expect("nothing fails");
        let mut read = vec![0; size];
        open(&storage).read(0, &mut read).expect("nothing fails");
        assert!(read == expected[..size], "round {round}");
        let report = check(&storage, Repair::None).expect("an image");
        assert_eq!(report.findings, [], "round {round}");
        assert_eq!(storage.to_vec()[72..112], [0; 40], "round {round}");
    }
}

#[test]
fn zeroes_have_no_mark_and_so_no_cluster() {
    let storage = written(4);
    let image = open(&storage);
    image.write_zeroes(0, 2 * CLUSTER, Zeroing::Keep).expect("nothing fails");
    image.close().expect("nothing fails");
    let bytes = storage.to_vec();
    let entries = [0, 1, 2].map(|guest| get(&bytes, entry_at(&bytes, guest)));
    assert_eq!(entries[..2], [0, 0]);
    assert!(entries[2] & COPIED != 0);
    let report = check(&storage, Repair::None).expect("an image");
    assert_eq!((report.allocated_clusters, report.leaks), (2, 0));
}

#[test]
fn lazy_refcounts_are_refused() {
    let storage = new_image();
    let before = storage.to_vec();
    let lazy = OpenOptions::new().lazy_refcounts(true);
    let refused = Image::open(storage.clone(), lazy).map(drop).unwrap_err();
    assert!(matches!(refused, OpenError::Option(_)));
    assert_eq!(
        refused.to_string(),
        "cannot open the image: lazy refcounts need version 3 of the format; the image has version 2"
    );
    assert!(storage.to_vec() == before);
    let eager = OpenOptions::new().lazy_refcounts(false);
    assert!(!Image::open(storage, eager).expect("an image in order").info().lazy_refcounts);
}

/// Goal: a repair puts counts and COPIED right, in place and anew, and writes nothing where feature bits would be.
#[test]
fn a_repair_marks_nothing() {
    let sound = written(8);
    let mut bytes = sound.to_vec();
    for (guest, count) in [(0, 0), (1, 7), (2, 2)] {
        let cluster = (get(&bytes, entry_at(&bytes, guest)) & !COPIED) / CLUSTER;
        let at = count_at(&bytes, cluster);
        bytes[at + 1] = count;
    }
    let at = entry_at(&bytes, 2);
    let entry = get(&bytes, at) & !COPIED;
    put(&mut bytes, at, entry);
    for repair in [Repair::All, Repair::Rebuild] {
        let storage = MemoryStorage::new(bytes.clone());
        let report = check(&storage, repair).expect("an image");
        assert!(report.is_consistent(), "{report:#?}");
        assert_eq!(report.rebuilt, repair == Repair::Rebuild);
        let repaired = storage.to_vec();
        assert_eq!(repaired[72..512], [0; 440]);
        assert_eq!(repair == Repair::All, repaired == sound.to_vec());
        assert_eq!(check(&storage, Repair::None).expect("an image").findings, []);
    }
    let storage = MemoryStorage::new(bytes.clone());
    let report = check(&storage, Repair::Leaks).expect("an image");
    assert_eq!((report.leaks, report.leaks_fixed, report.corruptions_fixed), (2, 2, 0));
    assert_eq!(storage.to_vec()[72..512], [0; 440]);
}

#[test]
fn what_points_past_the_end_becomes_unallocated() {
    let mut bytes = written(4).to_vec();
    let at = entry_at(&bytes, 1);
    let far = (bytes.len() as u64 + 8 * CLUSTER) | COPIED;
    put(&mut bytes, at, far);
    let storage = MemoryStorage::new(bytes);
    let report = check(&storage, Repair::ZeroPastEnd).expect("an image");
    assert!(report.is_consistent(), "{report:#?}");
    assert_eq!(get(&storage.to_vec(), at), 0);
    assert_eq!(check(&storage, Repair::None).expect("an image").findings, []);
}

#[test]
fn an_entry_marked_as_zeroes_makes_no_sense() {
    let mut bytes = written(4).to_vec();
    let at = entry_at(&bytes, 1);
    let entry = get(&bytes, at) | 1;
    put(&mut bytes, at, entry);
    let storage = MemoryStorage::new(bytes);
    let report = check(&storage, Repair::All).expect("an image");
    assert!(matches!(report.findings[..], [ref finding] if !finding.repaired
        && matches!(finding.problem, Problem::Entry(_))));
    let image = open(&storage);
    let mut unit = [9; 512];
    assert!(matches!(image.read(CLUSTER, &mut unit), Err(IoError::Entry(_))));
    image.read(0, &mut unit).expect("its neighbour is sound");
    assert_eq!(unit, [1; 512]);
}

/// Goal: a write that damage leads to a table fails, and nothing changes in that session any more. There is no corrupt bit, so the image
/// stays as it is.
#[test]
fn damage_that_cannot_be_marked_ends_the_session() {
    let mut bytes = written(4).to_vec();
    let at = entry_at(&bytes, 1);
    let table = get(&bytes, 40) | COPIED;
    put(&mut bytes, at, table);
    let storage = MemoryStorage::new(bytes.clone());
    let image = open(&storage);
    for _ in 0..2 {
        image.write(CLUSTER, &[9; 512]).unwrap_err();
        image.write(0, &[9; 512]).unwrap_err();
        image.discard(2 * CLUSTER, CLUSTER).unwrap_err();
    }
    let mut unit = [9; 512];
    image.read(0, &mut unit).expect("reads go on");
    assert_eq!(unit, [1; 512]);
    image.flush().expect("there is nothing to flush");
    drop(image);
    assert!(storage.to_vec() == bytes);
    open(&storage).write(0, &[9; 512]).expect("another session finds the damage only where it is");
}
