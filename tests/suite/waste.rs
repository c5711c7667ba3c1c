//! What P9 counts on, flush by flush: when what a request gave up has its count down on the medium, or is found by the next
//! opening.
//!
//! A flush writes nothing after its last storage flush, so that all bytes written by then are durable ones.

use qcow2_core::blocking::{Image, check, create};
use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::{CreateOptions, OpenOptions, Repair};

const CLUSTER: u64 = 4096;

/// Leaked clusters of an image that is opened, given up three clusters that it had, and flushed: before the first flush and
/// after each, and what is left of them if it is opened again without a close. With `taking`, it takes another cluster first, which marks an image with lazy refcounts dirty.
fn leaked_after_flushes(lazy_refcounts: bool, taking: bool) -> [(u64, u64); 4] {
    let storage = MemoryStorage::default();
    let options = CreateOptions::new(1 << 20).lazy_refcounts(lazy_refcounts).cluster_bits(12);
    create(&storage, &options).unwrap();
    let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
    image.write(0, &[7; 3 * CLUSTER as usize]).unwrap();
    image.close().unwrap();
    let image = Image::open(storage.clone(), OpenOptions::new()).unwrap();
    if taking {
        image.write(8 * CLUSTER, &[7; CLUSTER as usize]).unwrap();
    }
    image.discard(0, 3 * CLUSTER).unwrap();
    [(); 4].map(|()| {
        let medium = MemoryStorage::new(storage.to_vec());
        let leaked = || check(&medium, Repair::None).unwrap().leaks;
        let cut_off = leaked();
        drop(Image::open(medium.clone(), OpenOptions::new()).unwrap());
        image.flush().unwrap();
        (cut_off, leaked())
    })
}

#[test]
fn counts_follow_their_references_within_two_flushes() {
    let expected = [(0, 0), (3, 3), (0, 0), (0, 0)];
    assert_eq!(leaked_after_flushes(false, false), expected);
    assert_eq!(leaked_after_flushes(false, true), expected);
    assert_eq!(leaked_after_flushes(true, false), expected);
}

#[test]
fn under_the_dirty_bit_counts_wait_for_the_close_and_opening_repairs_them() {
    assert_eq!(leaked_after_flushes(true, true), [(0, 0), (3, 0), (3, 0), (3, 0)]);
}
