//! What tests look into: storages, and what an image reads.

use std::fmt::Debug;

use qcow2_core::storage::memory::MemoryStorage;
use qcow2_core::storage::{AnyStorage, Storage};

use crate::aligned::Aligned;

/// The same storage, of the one kind that the library is compiled for whatever a test's own storages are.
pub(crate) fn any(storage: &(impl Storage + Clone)) -> AnyStorage {
    AnyStorage::new(storage.clone())
}

/// A storage whose bytes can be looked at.
pub(crate) trait Shown: Storage + Clone + Debug {
    fn of(bytes: Vec<u8>) -> Self;
    fn bytes(&self) -> Vec<u8>;
}

impl Shown for MemoryStorage {
    fn of(bytes: Vec<u8>) -> Self {
        Self::new(bytes)
    }

    fn bytes(&self) -> Vec<u8> {
        self.to_vec()
    }
}

impl Shown for Aligned {
    fn of(bytes: Vec<u8>) -> Self {
        Self::new(bytes)
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }
}

/// An image reads as it should; what differs is named by its first byte.
#[track_caller]
pub(crate) fn same(found: &[u8], wanted: &[u8], what: &str) {
    // All at once first: byte by byte is slow.
    if found != wanted {
        assert_eq!(found.len(), wanted.len(), "{what}");
        let mut both = found.iter().zip(wanted);
        let at = both.position(|(found, wanted)| found != wanted).expect("they differ");
        panic!("{what}: byte {at:#x} reads {:#x} and not {:#x}", found[at], wanted[at]);
    }
}
