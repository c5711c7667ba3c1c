//! A bitmap that follows what the guest changes.

use super::bytes::to_usize;
use super::entry::OFFSET;

/// An entry without an offset whose bits are all 1.
pub(super) const ALL_ONES: u64 = 1;

/// A bitmap that follows what the guest changes, and says that it is up to date.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recording {
    /// log2 of the bytes that a bit stands for.
    pub(crate) granularity_bits: u32,
    /// The entries of its table.
    pub(crate) table: Vec<u64>,
}

/// Where the bit of a guest offset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bit {
    /// In no cluster: all of its neighbours are the same.
    Is(bool),
    /// In this byte of the file, under this mask.
    At(u64, u8),
}

impl Recording {
    /// The bit of a guest offset in a bitmap whose clusters have 2^`cluster_bits` bytes.
    pub(crate) fn bit(&self, offset: u64, cluster_bits: u32) -> Bit {
        let bit = offset.wrapping_shr(self.granularity_bits);
        let byte = bit >> 3;
        let entry = self.table.get(to_usize(byte.wrapping_shr(cluster_bits))).copied().unwrap_or(0);
        let within = byte & 1u64.wrapping_shl(cluster_bits).wrapping_sub(1);
        match entry & OFFSET {
            0 => Bit::Is(entry & ALL_ONES != 0),
            cluster => Bit::At(cluster.saturating_add(within), 1u8.wrapping_shl((bit & 7) as u32)),
        }
    }
}
