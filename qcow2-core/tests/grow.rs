//! A larger disk: its new space reads zeroes, whatever was there before.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use qcow2_core::blocking::{Image, block_on, check, create};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{Durability, IoBuf};
use qcow2_core::{CreateOptions, Inline, OpenOptions, Repair, Zeroing};

/// Goal: what somebody left past the end of the disk does not come to light. Method: an image full of data whose size in the header
/// becomes smaller, as a program leaves it that is interrupted while it shrinks one; then growth within the last cluster, within the
/// L2 table, within the L1 table, and with a new L1 table.
#[test]
#[cfg_attr(not(turn = "7"), ignore = "its turn is at another commit; CI=1 runs all")]
fn nothing_old_comes_to_light() {
    const FULL: u64 = 1 << 20;
    for cluster_bits in [9, 12, 16] {
        for small in [300 << 10, (300 << 10) + 512, 512, 0] {
            let storage = MemoryStorage::default();
            create(&storage, &CreateOptions::new(FULL).cluster_bits(cluster_bits)).unwrap();
            let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
            image.write(0, &vec![7; FULL as usize]).unwrap();
            image.close().unwrap();
            let mut bytes = storage.to_vec();
            bytes[24..32].copy_from_slice(&u64::to_be_bytes(small));
            for size in [small + 512, small + 4096, FULL, 64 << 20] {
                let storage = MemoryStorage::new(bytes.clone());
                let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
                image.grow(size).unwrap();
                let mut data = vec![1; size as usize];
                image.read(0, &mut data).unwrap();
                let (old, new) = data.split_at(small as usize);
                assert!(old.iter().all(|&byte| byte == 7));
                assert!(new.iter().all(|&byte| byte == 0), "{cluster_bits}: {small} to {size}");
                image.close().unwrap();
                let report = check(&storage, Repair::None).unwrap();
                assert!(report.is_consistent(), "{report:#?}");
                // What lies further up still goes before the disk reaches it.
                let image = Image::open(storage, OpenOptions::new()).unwrap();
                image.grow(65 << 20).unwrap();
                let mut data = vec![1; 1 << 20];
                image.read(small, &mut data).unwrap();
                assert!(data.iter().all(|&byte| byte == 0));
            }
        }
    }
}

/// Goal: the L1 table may be longer than what one refcount block counts. Method: grow a small disk of small clusters a thousandfold.
#[test]
fn a_table_longer_than_a_block_counts() {
    let storage = MemoryStorage::default();
    let options = CreateOptions::new(1 << 20).cluster_bits(9);
    create(&storage, &options).unwrap();
    let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
    image.write(0, &[7; 512]).unwrap();
    image.grow(1 << 30).unwrap();
    image.write((1 << 30) - 512, &[8; 512]).unwrap();
    image.close().unwrap();
    let report = check(&storage, Repair::None).unwrap();
    assert!(report.is_consistent(), "{report:?}");
    assert!(storage.to_vec().len() < 32 << 20, "{}", storage.to_vec().len());
}

/// Goal: a longer L1 table goes where a hole is long enough, and leaves the others alone. Method: an image with many holes of one
/// cluster and one that the new table just fits in, far from both ends.
#[test]
fn a_table_goes_where_it_fits_and_nowhere_else() {
    const ENTRIES: u64 = 1024;
    const CLUSTERS: u64 = ENTRIES * 8 / 512;
    let storage = MemoryStorage::default();
    let options = CreateOptions::new(1 << 20).cluster_bits(9);
    create(&storage, &options).unwrap();
    let options = OpenOptions::new().growth(0);
    let image = Image::open(storage.clone(), options).unwrap();
    image.write(0, &vec![7; 1 << 20]).unwrap();
    for cluster in (0..1000).step_by(3) {
        image.discard(cluster * 512, 512).unwrap();
    }
    // Within what one L2 table maps, so that the clusters are neighbours.
    image.discard(1120 * 512, CLUSTERS * 512).unwrap();
    image.close().unwrap();
    let length = storage.to_vec().len();
    let image = Image::open(storage.clone(), options).unwrap();
    image.grow(ENTRIES * 64 * 512).unwrap();
    assert_eq!(storage.to_vec().len(), length, "there was room");
    drop(image);
    // The old table was one cluster.
    let report = check(&storage, Repair::None).unwrap();
    assert!(report.leaks <= 1, "{report:?}");
}

/// Goal: a growth ends, and loses no free space, though there are more holes than are kept in memory. Method: every other cluster free.
#[test]
#[cfg_attr(not(turn = "11"), ignore = "its turn is at another commit; CI=1 runs all")]
fn more_holes_than_are_known_are_passed() {
    const HOLES: u64 = 66_000;
    let storage = MemoryStorage::default();
    let size = 2 * HOLES * 512;
    let options = CreateOptions::new(size).cluster_bits(9);
    create(&storage, &options).unwrap();
    let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
    image.write(0, &vec![7; usize::try_from(size).unwrap()]).unwrap();
    for hole in 0..HOLES {
        image.discard(2 * hole * 512, 512).unwrap();
    }
    image.close().unwrap();
    let options = OpenOptions::new().growth(0);
    let image = Image::open(storage.clone(), options).unwrap();
    image.grow(2 * size).unwrap();
    let length = storage.to_vec().len();
    for hole in 0..HOLES - 16 {
        image.write(2 * hole * 512, &[8; 512]).unwrap();
    }
    assert_eq!(storage.to_vec().len(), length, "there was room");
}

/// Goal: zeroing up to the end of the disk, or compressing, leaves alone what is written behind that end once the disk has grown, in the
/// cluster that the end used to cut short. Method: a request that waits for its first cluster; meanwhile the disk grows, and the rest of its
/// last cluster is written.
#[test]
fn what_was_the_end_is_not_whole_any_more() {
    let size = (3 << 12) + 512;
    let buf = |len: u64, byte| IoBuf::copy_of(&vec![byte; len as usize], 1);
    for compresses in [false, true] {
        let storage = MemoryStorage::default();
        create(&storage, &CreateOptions::new(size).cluster_bits(12)).expect("there is room");
        let image = block_on(qcow2_core::Image::open(storage, OpenOptions::new()));
        let image = image.expect("in order");
        block_on(image.write(0, buf(size, 7), Durability::Cached)).1.expect("room");
        let mut context = Context::from_waker(Waker::noop());
        let map = block_on(image.map_write(2 << 12, 512)).expect("it is in place");
        let from = (2 << 12) + if compresses { 0 } else { 1024 };
        let mut waits = pin!(async {
            if compresses {
                let (data, how) = (buf(size - from, 0), Durability::Cached);
                image.write_compressed(from, data, how, &Inline).await.1
            } else {
                image.write_zeroes(from, size - from, Zeroing::Free).await
            }
        });
        assert!(waits.as_mut().poll(&mut context).is_pending(), "somebody writes there");
        block_on(image.grow(5 << 12)).expect("there is room");
        block_on(image.write(size, buf(512, 9), Durability::Cached)).1.expect("room");
        drop(map);
        assert!(matches!(waits.as_mut().poll(&mut context), Poll::Ready(Ok(()))));
        let (read, result) = block_on(image.read(from, buf(size - from, 1)));
        result.expect("nothing fails");
        assert!(read.iter().all(|&byte| byte == 0));
        let (read, result) = block_on(image.read(size, buf(512, 1)));
        result.expect("nothing fails");
        assert_eq!(read[..], [9; 512]);
    }
}
