//! Entries of tables, bit by bit, and where they are: what each says on its own.

use std::ops::Range;

use super::bytes::{UNIT_BYTES, units_of};
use super::header::Header;
use crate::evidence::{Readable, ValueKey};
use crate::finding::Finding;
use crate::label::Region;
use crate::op::SUBCLUSTERS;
use crate::payload::UNIT;
use crate::stream::Stream;

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

/// The bits of a bitmap that say of a subcluster that it is allocated.
pub(crate) const ALL_ALLOCATED: u64 = 0xffff_ffff;
/// The bits of a bitmap that say of a subcluster that it reads as zeroes.
pub(crate) const ALL_ZERO: u64 = !ALL_ALLOCATED;

/// Where a guest cluster is, or a part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Nowhere: reads as zeroes, or the backing file.
    Unallocated,
    /// Reads as zeroes, whether or not a host cluster is kept for it.
    Zero,
    /// In the host cluster at this offset; in a data file counted from where that begins in the [`Evidence`](crate::evidence::Evidence).
    Host(u64),
    /// Compressed, from this byte on.
    Compressed(u64),
}

/// The entries of an L2 table.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Table<'a> {
    /// The entries, or the first words of them.
    pub(crate) words: &'a [u64],
    /// Their bitmaps; none unless the entries are extended.
    pub(crate) bitmaps: &'a [u64],
}

impl Table<'_> {
    /// The bitmap of an entry; 0 if it has none.
    #[inline]
    pub(crate) fn bitmap(&self, index: usize) -> u64 {
        self.bitmaps.get(index).copied().unwrap_or(0)
    }

    /// Every entry that is not all zeroes, with its index and its bitmap.
    pub(super) fn entries(self) -> impl Iterator<Item = (u64, u64, u64)> {
        self.words.iter().enumerate().filter_map(move |(index, word)| {
            let bitmap = self.bitmap(index);
            (*word != 0 || bitmap != 0).then_some((index as u64, *word, bitmap))
        })
    }
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

/// Where the host cluster of an L2 entry that is not compressed begins, if it has one. In a data file it may begin at offset 0, of which
/// COPIED says whether it is meant.
#[inline]
pub(super) fn host_of(entry: u64, header: &Header) -> Option<u64> {
    let offset = entry & OFFSET;
    match header.data_at {
        None => (offset != 0).then_some(offset),
        Some(start) => (offset != 0 || entry & COPIED != 0).then(|| start.saturating_add(offset)),
    }
}

/// What an L2 entry that is not extended says, whether or not it is valid.
#[inline]
pub(crate) fn decode_l2(entry: u64, header: &Header) -> Mapping {
    if entry & COMPRESSED != 0 {
        Mapping::Compressed(compressed_extent(entry, header).0)
    } else if entry & ZERO != 0 && header.version > 2 {
        Mapping::Zero
    } else {
        host_of(entry, header).map_or(Mapping::Unallocated, Mapping::Host)
    }
}

/// What an L2 entry says of its cluster as a whole, whether or not it is valid. With a bitmap: that it is in its host cluster if any
/// subcluster is, or else that it reads as zeroes if any subcluster does.
#[inline]
pub(super) fn decode_whole(entry: u64, bitmap: u64, header: &Header) -> Mapping {
    if !header.has_extended_l2() || entry & COMPRESSED != 0 {
        return decode_l2(entry, header);
    }
    let host = host_of(entry, header);
    match (subclusters(host, bitmap), host) {
        ((0, 0), _) => Mapping::Unallocated,
        ((0, _), _) | (_, None) => Mapping::Zero,
        (_, Some(host)) => Mapping::Host(host),
    }
}

/// What an L2 entry says of each unit of its cluster, as ranges of units, counted from the cluster's first, in order and without
/// gaps: neighbouring subclusters that are alike are one range. It says so whether or not it is valid: a subcluster with both bits
/// reads as zeroes, and one that is allocated where there is no host cluster is nowhere.
pub(crate) fn pieces_of(
    entry: u64,
    bitmap: u64,
    header: &Header,
) -> impl Iterator<Item = (Range<u64>, Mapping)> + use<> {
    let whole = (!header.has_extended_l2() || entry & COMPRESSED != 0)
        .then(|| (SUBCLUSTERS, decode_l2(entry, header)));
    let host = host_of(entry, header);
    let (allocated, zero) = subclusters(host, bitmap);
    let size = header.cluster_size();
    let start = move |index: u64| index.saturating_mul(size).checked_div(SUBCLUSTERS).unwrap_or(0);
    let units = move |index| start(index).checked_div(UNIT_BYTES).unwrap_or(0);
    let mut next = 0u64;
    std::iter::from_fn(move || {
        let first = next;
        let of = |bits: u64| bits.wrapping_shr(first as u32);
        let run =
            |rest: u64| if rest & 1 == 0 { rest.trailing_zeros() } else { rest.trailing_ones() };
        let (alike, mapping) = whole.unwrap_or_else(|| {
            let alike = run(of(allocated)).min(run(of(zero)));
            let mapping = match (of(allocated) & 1, of(zero) & 1) {
                (0, 0) => Mapping::Unallocated,
                (0, _) => Mapping::Zero,
                _ => Mapping::Host(host.unwrap_or(0).saturating_add(start(first))),
            };
            (alike.into(), mapping)
        });
        next = first.saturating_add(alike).min(SUBCLUSTERS);
        (first < next).then(|| (units(first)..units(next), mapping))
    })
}

/// Which subclusters are in the host cluster, and which read as zeroes; none is both.
#[inline]
fn subclusters(host: Option<u64>, bitmap: u64) -> (u64, u64) {
    let zero = bitmap >> 32;
    let allocated = if host.is_none() { 0 } else { bitmap & ALL_ALLOCATED & !zero };
    (allocated, zero)
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

/// The entry of a compressed cluster whose stream has so many bytes.
pub(crate) fn compressed_entry(offset: u64, length: u64, cluster_bits: u32) -> u64 {
    let offset_bits = 70u32.saturating_sub(cluster_bits);
    let last = offset.saturating_add(length).saturating_sub(1).checked_div(UNIT_BYTES).unwrap_or(0);
    let first = offset.checked_div(UNIT_BYTES).unwrap_or(0);
    COMPRESSED | last.saturating_sub(first).wrapping_shl(offset_bits) | offset
}

/// Where the data of a compressed cluster may be.
pub(crate) fn stream_of(entry: u64, header: &Header) -> Stream {
    let (offset, length) = compressed_extent(entry, header);
    Stream { offset, length, kind: header.compression() }
}

/// Fills `entries` with (index, entry) of a table's entries that are not 0, in order.
pub(super) fn nonzero_entries<E: Readable>(
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
        assert_eq!(compressed_entry(0x5_0123, 4 * 512 - 0x123, 16), entry);
        assert_eq!(compressed_entry(0x5_0123, 3 * 512 - 0x122, 16), entry);
        // 512 bytes: 61 bits and one bit.
        let header = Header { version: 3, cluster_bits: 9, ..Header::default() };
        let entry = COMPRESSED | (1 << 61) | 0x600;
        assert_eq!(compressed_extent(entry, &header), (0x600, 1024));
    }

    #[test]
    fn subclusters_are_where_their_bits_say() {
        let header = Header {
            version: 3,
            cluster_bits: 15,
            incompatible_features: super::super::header::INCOMPATIBLE_EXTENDED_L2,
            ..Header::default()
        };
        let pieces = |entry, bitmap| pieces_of(entry, bitmap, &header).collect::<Vec<_>>();
        let (none, zero, host) = (Mapping::Unallocated, Mapping::Zero, 0x8000u64);
        let at = |subcluster: u64| Mapping::Host(host + subcluster * 1024);
        assert_eq!(pieces(0, 0), [(0..64, none)]);
        assert_eq!(pieces(COPIED | host, 0), [(0..64, none)]);
        assert_eq!(pieces(host, ALL_ALLOCATED), [(0..64, at(0))]);
        assert_eq!(pieces(0, ALL_ZERO), [(0..64, zero)]);
        assert_eq!(pieces(host, ALL_ZERO), [(0..64, zero)]);
        // Bits 0, 1 and 31 are allocated, 2 and 30 read as zeroes.
        let bitmap = (1 << 31 | 3) | (1 << 30 | 1 << 2) << 32;
        let mixed = [(0..4, at(0)), (4..6, zero), (6..60, none), (60..62, zero), (62..64, at(31))];
        assert_eq!(pieces(host, bitmap), mixed);
        // The flag in the first word says nothing.
        assert_eq!(pieces(host | ZERO, bitmap), mixed);
        assert_eq!(
            pieces(host, 0xff << 32 | 0xffff),
            [(0..16, zero), (16..32, at(8)), (32..64, none)]
        );
        assert_eq!(pieces(0, 0xff << 32 | 0xffff), [(0..16, zero), (16..64, none)]);
        let compressed = COMPRESSED | 0x600;
        assert_eq!(pieces(compressed, 5), [(0..64, Mapping::Compressed(0x600))]);

        let whole = |entry, bitmap| decode_whole(entry, bitmap, &header);
        assert_eq!(whole(host, 0), none);
        assert_eq!(whole(host, bitmap), at(0));
        assert_eq!(whole(host, 1 << 63), zero);
        assert_eq!(whole(0, 1 << 31), none);
        assert_eq!(whole(compressed, 5), Mapping::Compressed(0x600));
        let standard = Header { incompatible_features: 0, ..header };
        let pieces = |entry| pieces_of(entry, 0, &standard).collect::<Vec<_>>();
        assert_eq!(pieces(host), [(0..64, at(0))]);
        assert_eq!(pieces(host | ZERO), [(0..64, zero)]);
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
