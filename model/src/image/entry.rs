//! Entries of tables, bit by bit, and where they are: what each says on its own.

use super::bytes::{UNIT_BYTES, units_of};
use super::header::Header;
use crate::evidence::{Evidence, ValueKey};
use crate::finding::Finding;
use crate::label::Region;
use crate::payload::UNIT;

/// The entry's cluster has a refcount of exactly one.
pub const COPIED: u64 = 1 << 63;
pub(super) const COMPRESSED: u64 = 1 << 62;
pub(super) const DESCRIPTOR: u64 = COMPRESSED - 1;
pub(super) const ZERO: u64 = 1;
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
pub(super) const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
pub(super) const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
pub(super) const REFCOUNT_TABLE_RESERVED: u64 = 0x1ff;

pub(super) const ENTRIES_IN_UNIT: usize = UNIT / 8;

/// Where a guest cluster is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Nowhere: reads as zeroes, or the backing file.
    Unallocated,
    /// Reads as zeroes, whether or not a host cluster is kept for it.
    Zero,
    /// In the host cluster at this offset.
    Host(u64),
    /// Compressed, from this byte on.
    Compressed(u64),
}

/// Whether an entry, of which the bits `reserved` should not be there, refers to a cluster: `offset` is not 0, and where one
/// begins.
#[inline]
pub(super) fn is_cluster(
    at: Region,
    entry: u64,
    reserved: u64,
    offset: u64,
    header: &Header,
    findings: &mut Vec<Finding>,
) -> bool {
    if reserved != 0 {
        findings.push(Finding::ReservedBits { at, entry, bits: reserved });
    }
    let aligned = offset.is_multiple_of(header.cluster_size());
    if !aligned {
        findings.push(Finding::Misaligned { at, offset });
    }
    offset != 0 && aligned
}

/// What an L2 entry says, whether or not it is valid.
#[inline]
pub(crate) fn decode_l2(entry: u64, header: &Header) -> Mapping {
    if entry & COMPRESSED != 0 {
        Mapping::Compressed(compressed_extent(entry, header).0)
    } else if entry & ZERO != 0 && header.version > 2 {
        Mapping::Zero
    } else if entry & OFFSET == 0 {
        Mapping::Unallocated
    } else {
        Mapping::Host(entry & OFFSET)
    }
}

/// First byte and longest possible length of a compressed cluster's data.
#[inline]
pub(super) fn compressed_extent(entry: u64, header: &Header) -> (u64, u64) {
    // 62 - (cluster_bits - 8) bits of offset, then the sectors that follow the one in which the data begins.
    let offset_bits = 70u32.saturating_sub(header.cluster_bits);
    let descriptor = entry & DESCRIPTOR;
    let start = descriptor & 1u64.wrapping_shl(offset_bits).wrapping_sub(1);
    let sectors = descriptor.wrapping_shr(offset_bits).saturating_add(1);
    let end = (start & !0x1ff).saturating_add(sectors.saturating_mul(UNIT_BYTES));
    (start, end.saturating_sub(start))
}

/// Fills `entries` with (index, entry) of a table's entries that are not 0, in order.
pub(super) fn nonzero_entries<E: Evidence>(
    evidence: &mut E,
    offset: u64,
    count: u64,
    file: u64,
    entries: &mut Vec<(u64, u64)>,
) {
    entries.clear();
    let units = units_of(offset, count.saturating_mul(8), file);
    let mut next = units.start;
    loop {
        let zeroes = evidence.zero_run(next, units.end.saturating_sub(next));
        let unit = next.saturating_add(zeroes);
        if unit >= units.end {
            break;
        }
        next = unit.saturating_add(1);
        let first = unit.saturating_sub(units.start).saturating_mul(ENTRIES_IN_UNIT as u64);
        let key = evidence.resolve(unit);
        if key != ValueKey::ZERO {
            let chunks = evidence.bytes(key).as_chunks::<8>().0;
            for (index, chunk) in (first..count).zip(chunks) {
                let entry = u64::from_be_bytes(*chunk);
                if entry != 0 {
                    entries.push((index, entry));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compressed_descriptor_is_cut_where_the_cluster_size_says() {
        // Cluster size 64 KiB: 54 bits of offset, 8 bits of sectors.
        let header = Header { version: 3, cluster_bits: 16, ..Header::default() };
        let entry = COMPRESSED | (3 << 54) | 0x5_0123;
        assert_eq!(compressed_extent(entry, &header), (0x5_0123, 4 * 512 - 0x123));
        // 512 bytes: 61 bits and one bit.
        let header = Header { version: 3, cluster_bits: 9, ..Header::default() };
        let entry = COMPRESSED | (1 << 61) | 0x600;
        assert_eq!(compressed_extent(entry, &header), (0x600, 1024));
    }

    #[test]
    fn l2_entries_say_what_they_map() {
        let header = Header { version: 3, cluster_bits: 10, ..Header::default() };
        assert_eq!(decode_l2(0, &header), Mapping::Unallocated);
        assert_eq!(decode_l2(1, &header), Mapping::Zero);
        assert_eq!(decode_l2(COPIED | 0x1000 | 1, &header), Mapping::Zero);
        assert_eq!(decode_l2(COPIED | 0x1000, &header), Mapping::Host(0x1000));
        // Version 2 has no zero clusters.
        let header = Header { version: 2, ..header };
        assert_eq!(decode_l2(1, &header), Mapping::Unallocated);
        assert_eq!(decode_l2(COPIED | 0x1000 | 1, &header), Mapping::Host(0x1000));
    }
}
