//! A reader of qcow2 images that trusts nothing, and shares nothing with the implementation that it reads after.
//!
//! It collects three things in one pass: who refers to which host cluster (*claims*), what the refcounts say, and where guest
//! clusters are mapped. It judges single entries on the way; what follows from all of them together is the auditor's.
//!
//! ```text
//!   header (cluster 0)
//!     | refcount_table_offset                      | l1_table_offset
//!     v                                            v
//!   refcount table   9..63 offset                  L1 table   9..55 offset, 63 COPIED
//!     | one entry a block                            | one entry a table
//!     v                                              v
//!   refcount block   2^order bits a cluster        L2 table   9..55 offset, 63 COPIED, 62 compressed, 0 zero
//!                                                    | one entry a guest cluster
//!                                                    v
//!                                                  data cluster, zero, or nothing
//! ```
//!
//! The invariant: whatever the bytes, reading ends after work in proportion to the length of the file, because a cluster is
//! walked as a table at most once and nothing past the end of the file is walked at all. All buffers are kept from one image
//! to the next.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod bitmaps;
mod header;

use std::ops::Range;

use crate::defect::Defect;
use crate::evidence::{Evidence, ValueKey};
use crate::finding::Finding;
use crate::label::{Label, Region};
use crate::payload::{UNIT, Unit};

pub(crate) use self::bitmaps::{Bit, Recording};
pub use self::header::Header;

/// Largest L1 table in bytes.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// Largest refcount table in bytes.
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Longest file in clusters: the reader keeps a slot for each.
pub const MAX_CLUSTERS: u64 = 1 << 24;
/// Longest name of a backing file.
pub const MAX_BACKING_NAME: u32 = 1023;

const UNIT_BYTES: u64 = UNIT as u64;
const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");

/// The entry's cluster has a refcount of exactly one.
pub const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const DESCRIPTOR: u64 = COMPRESSED - 1;
const ZERO: u64 = 1;
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
const REFCOUNT_TABLE_RESERVED: u64 = 0x1ff;
/// Incompatible feature: refcounts may be wrong.
pub const INCOMPATIBLE_DIRTY: u64 = 1;
/// Incompatible feature: the image is known to be damaged.
pub const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
const INCOMPATIBLE_KNOWN: u64 = 0x1f;
/// Autoclear feature: the bitmaps extension agrees with the image.
pub const AUTOCLEAR_BITMAPS: u64 = 1;

/// Type of the header extension that leads to bitmaps.
pub const EXTENSION_BITMAPS: u32 = 0x2385_2875;
/// Bytes of its data.
pub const BITMAPS_BYTES: u32 = 24;
const EXTENSION_LUKS: u32 = 0x0537_be77;

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

/// One reference to each of some host clusters that follow each other.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) clusters: Range<u32>,
    pub(crate) region: Region,
    /// The entry that refers to it; 0 for what the header refers to.
    pub(crate) entry: u64,
}

/// What is known of one host cluster.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Slot {
    pub(crate) stored: u64,
    pub(crate) counted: u32,
    /// Index of the first claim, if there is one.
    pub(crate) first_claim: u32,
}

/// Counts of guest clusters, as `qemu-img check` gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub(crate) allocated: u64,
    pub(crate) fragmented: u64,
    pub(crate) compressed: u64,
}

/// An image that was read. Reading another one reuses the buffers.
#[derive(Clone, Debug, Default)]
pub struct Image {
    header: Option<Header>,
    length: u64,
    slots: Vec<Slot>,
    claims: Vec<Claim>,
    /// Clusters within `slots` whose refcount is not 0, ascending.
    stored: Vec<u32>,
    /// Clusters past `slots` whose refcount is not 0.
    stored_beyond: Vec<(u64, u64)>,
    /// Raw L2 entries of all tables, one after the other.
    l2_entries: Vec<u64>,
    /// (index in L1, where its entries start), ascending.
    l2_tables: Vec<(u64, usize)>,
    table_entries: Vec<(u64, u64)>,
    recordings: Vec<Recording>,
    mapped: Mapped,
    defect: Defect,
}

impl Image {
    /// A reader with a deliberate mistake.
    pub(crate) fn with_defect(defect: Defect) -> Self {
        Self { defect, ..Self::default() }
    }

    /// Bytes of the file that was read last.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Up to where tables are read.
    fn readable(&self) -> u64 {
        self.defect.readable(self.length)
    }

    /// Reads all metadata of an image. Resolves what it reads and nothing else; what is wrong is added to `findings`.
    pub fn read<E: Evidence>(&mut self, evidence: &mut E, findings: &mut Vec<Finding>) {
        self.forget();
        self.length = evidence.len();
        let first = evidence.resolve(0);
        let Some(header) = Header::parse(evidence.bytes(first), findings) else { return };
        let clusters = self.length.div_ceil(header.cluster_size());
        if clusters > MAX_CLUSTERS {
            let what = "file of more than 2^24 clusters";
            findings.push(Finding::Unsupported { what, value: clusters });
            return;
        }
        self.header = Some(header);
        // One more than the file has: a structure may begin at its very end and still count as inside.
        let slots = to_usize(clusters.saturating_add(1));
        self.slots.resize(self.slots.len().max(slots), Slot::default());
        self.claim(Region::Header, 0, header.cluster_size(), 0, findings);
        let bitmaps = find_extensions(evidence, &header, findings);
        self.read_refcounts(evidence, &header, findings);
        self.read_tables(evidence, &header, findings);
        if let Some(at) = bitmaps {
            self.read_bitmaps(evidence, &header, at, findings);
        }
    }

    /// The header, unless it was unusable.
    pub fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// How many refcount blocks the refcount table points to.
    pub fn refcount_blocks(&self) -> usize {
        self.claims.iter().filter(|claim| matches!(claim.region, Region::RefcountBlock(_))).count()
    }

    /// Where a guest cluster is.
    pub fn mapping(&self, guest_cluster: u64) -> Mapping {
        let Some(header) = &self.header else { return Mapping::Unallocated };
        let table = guest_cluster.checked_div(header.l2_entries()).unwrap_or(0);
        let within = guest_cluster.checked_rem(header.l2_entries()).unwrap_or(0);
        self.table(table)
            .get(to_usize(within))
            .map_or(Mapping::Unallocated, |entry| decode_l2(*entry, header))
    }

    /// The raw entries of the L2 table at an index of L1; empty if there is none.
    pub(crate) fn table(&self, l1_index: u64) -> &[u64] {
        let count = self.header.map_or(0, |header| to_usize(header.l2_entries()));
        self.l2_tables
            .binary_search_by_key(&l1_index, |(index, _)| *index)
            .ok()
            .and_then(|at| self.l2_tables.get(at))
            .and_then(|(_, start)| self.l2_entries.get(*start..)?.get(..count))
            .unwrap_or(&[])
    }

    /// What lies at a byte of the file.
    pub fn label(&self, offset: u64) -> Label {
        let unit = offset.checked_div(UNIT_BYTES).unwrap_or(0);
        let Some(header) = &self.header else {
            let region = if offset < self.length { Region::Header } else { Region::BeyondEnd };
            return Label { region, unit: Some(unit) };
        };
        let cluster = offset.wrapping_shr(header.cluster_bits);
        let in_cluster = |first: u64| {
            let start = first.wrapping_shl(header.cluster_bits);
            offset.saturating_sub(start).checked_div(UNIT_BYTES)
        };
        if let Some(claim) = self.first_claim(cluster) {
            let first = match claim.region {
                Region::Compressed(_) => cluster,
                _ => claim.clusters.start.into(),
            };
            return Label { region: claim.region, unit: in_cluster(first) };
        }
        if offset >= self.length {
            return Label { region: Region::BeyondEnd, unit: None };
        }
        Label { region: Region::Free(cluster), unit: in_cluster(cluster) }
    }

    /// Host clusters that are in use only while an autoclear bit says so, each as often as it is used.
    pub fn vouched_for(&self) -> impl Iterator<Item = u64> {
        let claims = self.claims.iter().filter(|claim| claim.region.is_vouched_for());
        claims.flat_map(|claim| claim.clusters.clone()).map(u64::from)
    }

    pub(crate) fn recordings(&self) -> &[Recording] {
        &self.recordings
    }

    pub(crate) fn slot(&self, cluster: u32) -> Slot {
        self.slots.get(cluster as usize).copied().unwrap_or_default()
    }

    /// What is known of each of these clusters, with its number.
    pub(crate) fn slots(&self, clusters: &Range<u32>) -> impl Iterator<Item = (u32, &Slot)> {
        clusters.clone().zip(self.slots.get(indices(clusters)).unwrap_or_default())
    }

    pub(crate) fn claims(&self) -> &[Claim] {
        &self.claims
    }

    pub(crate) fn stored(&self) -> &[u32] {
        &self.stored
    }

    pub(crate) fn stored_beyond(&self) -> &[(u64, u64)] {
        &self.stored_beyond
    }

    pub(crate) fn mapped(&self) -> Mapped {
        self.mapped
    }

    fn forget(&mut self) {
        for claim in &self.claims {
            if let Some(slots) = self.slots.get_mut(indices(&claim.clusters)) {
                slots.fill(Slot::default());
            }
        }
        for cluster in &self.stored {
            if let Some(slot) = self.slots.get_mut(*cluster as usize) {
                *slot = Slot::default();
            }
        }
        self.claims.clear();
        self.stored.clear();
        self.stored_beyond.clear();
        self.l2_entries.clear();
        self.l2_tables.clear();
        self.recordings.clear();
        self.mapped = Mapped::default();
        self.header = None;
    }

    fn first_claim(&self, cluster: u64) -> Option<&Claim> {
        let slot = self.slots.get(to_usize(cluster)).filter(|slot| slot.counted > 0)?;
        self.claims.get(slot.first_claim as usize)
    }

    /// Counts a reference to every cluster of a range. Whether the range is this structure's alone and inside the file, so
    /// that it may be walked.
    fn claim(
        &mut self,
        region: Region,
        offset: u64,
        length: u64,
        entry: u64,
        findings: &mut Vec<Finding>,
    ) -> bool {
        let Some(header) = self.header else { return false };
        let (size, bits) = (header.cluster_size(), header.cluster_bits);
        let end = offset.saturating_add(length);
        let mut good = true;
        let beyond = end.saturating_sub(self.length) >= size;
        if beyond || self.defect.puts_out_of_range(end, self.length) {
            findings.push(Finding::OutOfRange { at: region, offset, length, file: self.length });
            good = false;
        }
        let first = offset.wrapping_shr(bits);
        let last = end.div_ceil(size).min(self.length.div_ceil(size).saturating_add(1));
        let index = u32::try_from(self.claims.len()).unwrap_or(u32::MAX);
        let (Ok(start), Ok(end)) = (u32::try_from(first), u32::try_from(last)) else { return good };
        let clusters = start..end;
        let Some(slots) = self.slots.get_mut(indices(&clusters)) else { return good };
        for (cluster, slot) in (first..).zip(slots) {
            if slot.counted == 0 {
                slot.first_claim = index;
            } else if let Some(other) = self.claims.get(slot.first_claim as usize)
                && !matches!((other.region, region), (Region::Compressed(_), Region::Compressed(_)))
            {
                let (first, second) = (other.region, region);
                findings.push(Finding::Overlap { cluster, first, second });
                good = false;
            }
            slot.counted = slot.counted.saturating_add(1);
        }
        if !clusters.is_empty() {
            self.claims.push(Claim { clusters, region, entry });
        }
        good
    }

    fn read_refcounts<E: Evidence>(
        &mut self,
        evidence: &mut E,
        header: &Header,
        findings: &mut Vec<Finding>,
    ) {
        let clusters = u64::from(header.refcount_table_clusters);
        let bytes = clusters.saturating_mul(header.cluster_size());
        let table = header.refcount_table_offset;
        if !self.claim(Region::RefcountTable, table, bytes, 0, findings) {
            return;
        }
        let mut blocks = std::mem::take(&mut self.table_entries);
        nonzero_entries(evidence, table, bytes >> 3, self.readable(), &mut blocks);
        for (index, entry) in &blocks {
            let at = Region::RefcountBlock(*index);
            let reserved = entry & REFCOUNT_TABLE_RESERVED;
            let offset = entry & !REFCOUNT_TABLE_RESERVED;
            if is_cluster(at, *entry, reserved, offset, header, findings)
                && self.claim(at, offset, header.cluster_size(), *entry, findings)
                && !self.defect.passes_over_block(*index)
            {
                self.read_block(evidence, header, *index, offset);
            }
        }
        self.table_entries = blocks;
    }

    fn read_block<E: Evidence>(
        &mut self,
        evidence: &mut E,
        header: &Header,
        index: u64,
        offset: u64,
    ) {
        let base = index.saturating_mul(header.block_entries());
        let readable = self.readable();
        let defect = self.defect;
        let order = match defect {
            Defect::RefcountsOf16Bits => 4,
            _ => header.refcount_order,
        };
        let in_unit = UNIT_BYTES.wrapping_shl(3).wrapping_shr(order);
        let Self { slots, stored, stored_beyond, .. } = self;
        let clusters = self.length.div_ceil(header.cluster_size());
        for (ordinal, unit) in (0..).zip(units_of(offset, header.cluster_size(), readable)) {
            let key = evidence.resolve(unit);
            if key == ValueKey::ZERO {
                continue;
            }
            let base = base.saturating_add(in_unit.saturating_mul(ordinal));
            nonzero_refcounts(evidence.bytes(key), order, |within, count| {
                let (within, count) = defect.misread(order, within, count);
                let cluster = base.saturating_add(within);
                let slot = slots.get_mut(to_usize(cluster)).filter(|_| cluster <= clusters);
                if let (Some(slot), Ok(cluster)) = (slot, u32::try_from(cluster)) {
                    slot.stored = count;
                    stored.push(cluster);
                } else {
                    stored_beyond.push((cluster, count));
                }
            });
        }
    }

    fn read_tables<E: Evidence>(
        &mut self,
        evidence: &mut E,
        header: &Header,
        findings: &mut Vec<Finding>,
    ) {
        let entries = u64::from(header.l1_size);
        let bytes = entries.saturating_mul(8);
        if entries == 0 || !self.claim(Region::L1, header.l1_table_offset, bytes, 0, findings) {
            return;
        }
        let mut tables = std::mem::take(&mut self.table_entries);
        nonzero_entries(evidence, header.l1_table_offset, entries, self.readable(), &mut tables);
        let of_disk = header.size.div_ceil(header.cluster_size()).div_ceil(header.l2_entries());
        for (index, entry) in &tables {
            if self.defect.passes_over_table(*index, of_disk, self.l2_tables.len()) {
                continue;
            }
            let at = Region::L2(*index);
            let mut reserved = entry & L1_RESERVED;
            let offset = entry & OFFSET;
            if offset == 0 {
                reserved |= entry & COPIED;
            }
            if is_cluster(at, *entry, reserved, offset, header, findings)
                && self.claim(at, offset, header.cluster_size(), *entry, findings)
            {
                self.read_table(evidence, header, *index, offset, findings);
            }
        }
        self.table_entries = tables;
    }

    fn read_table<E: Evidence>(
        &mut self,
        evidence: &mut E,
        header: &Header,
        l1_index: u64,
        offset: u64,
        findings: &mut Vec<Finding>,
    ) {
        let count = to_usize(header.l2_entries());
        let start = self.l2_entries.len();
        self.l2_tables.push((l1_index, start));
        let first_guest = l1_index.saturating_mul(header.l2_entries());
        let mut next_host = None;
        let end = offset.saturating_add(header.cluster_size());
        let readable = self.defect.readable_of_table(end, self.length);
        for unit in units_of(offset, header.cluster_size(), readable) {
            let key = evidence.resolve(unit);
            if key == ValueKey::ZERO {
                let length = self.l2_entries.len().saturating_add(ENTRIES_IN_UNIT);
                self.l2_entries.resize(length, 0);
                continue;
            }
            for chunk in evidence.bytes(key).as_chunks::<8>().0 {
                let entry = u64::from_be_bytes(*chunk);
                if entry != 0 {
                    let within = self.l2_entries.len().saturating_sub(start) as u64;
                    let guest = first_guest.saturating_add(within);
                    self.take_l2_entry(header, guest, entry, &mut next_host, findings);
                }
                self.l2_entries.push(entry);
            }
        }
        // A table that the end of the file cuts short continues in zeroes.
        self.l2_entries.resize(start.saturating_add(count), 0);
    }

    fn take_l2_entry(
        &mut self,
        header: &Header,
        guest: u64,
        entry: u64,
        next_host: &mut Option<u64>,
        findings: &mut Vec<Finding>,
    ) {
        if entry & COMPRESSED != 0 {
            let at = Region::Compressed(guest);
            if entry & COPIED != 0 {
                findings.push(Finding::ReservedBits { at, entry, bits: COPIED });
            }
            findings.push(Finding::Unsupported { what: "compressed cluster", value: entry });
            let (start, length) = compressed_extent(entry, header);
            let length = match self.defect {
                Defect::CompressedCountsOnce => 1,
                _ => length,
            };
            self.claim(at, start, length, entry, findings);
            self.mapped.allocated = self.mapped.allocated.saturating_add(1);
            self.mapped.compressed = self.mapped.compressed.saturating_add(1);
            self.mapped.fragmented = self.mapped.fragmented.saturating_add(1);
            return;
        }
        let at = Region::Data(guest);
        let offset = entry & OFFSET;
        let mut reserved = entry & L2_RESERVED;
        if offset == 0 {
            reserved |= entry & COPIED;
        }
        if header.version == 2 {
            reserved |= entry & ZERO;
        }
        if !is_cluster(at, entry, reserved, offset, header, findings) {
            return;
        }
        self.claim(at, offset, header.cluster_size(), entry, findings);
        self.mapped.allocated = self.mapped.allocated.saturating_add(1);
        if next_host.is_some_and(|expected| expected != offset) {
            self.mapped.fragmented = self.mapped.fragmented.saturating_add(1);
        }
        *next_host = offset.checked_add(header.cluster_size());
    }
}

const ENTRIES_IN_UNIT: usize = UNIT / 8;

/// Whether an entry, of which the bits `reserved` should not be there, refers to a cluster: `offset` is not 0, and where one
/// begins.
fn is_cluster(
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
fn compressed_extent(entry: u64, header: &Header) -> (u64, u64) {
    // 62 - (cluster_bits - 8) bits of offset, then the sectors that follow the one in which the data begins.
    let offset_bits = 70u32.saturating_sub(header.cluster_bits);
    let descriptor = entry & DESCRIPTOR;
    let start = descriptor & 1u64.wrapping_shl(offset_bits).wrapping_sub(1);
    let sectors = descriptor.wrapping_shr(offset_bits).saturating_add(1);
    let end = (start & !0x1ff).saturating_add(sectors.saturating_mul(UNIT_BYTES));
    (start, end.saturating_sub(start))
}

/// The extension area: type, length, data padded to 8 bytes, until type 0 or the backing file's name. Returns where the data is
/// that leads to bitmaps.
fn find_extensions<E: Evidence>(
    evidence: &mut E,
    header: &Header,
    findings: &mut Vec<Finding>,
) -> Option<u64> {
    let mut bitmaps = None;
    let end = match header.backing_file_offset {
        0 => header.cluster_size(),
        name => name.min(header.cluster_size()),
    };
    let mut at = u64::from(header.header_length);
    while at.saturating_add(8) <= end {
        let key = evidence.resolve(at.checked_div(UNIT_BYTES).unwrap_or(0));
        let within = to_usize(at % UNIT_BYTES);
        let bytes = evidence.bytes(key);
        let (kind, length) = (be32(bytes, within), be32(bytes, within.saturating_add(4)));
        if kind == 0 {
            break;
        }
        let data = at.saturating_add(8);
        let next = data.saturating_add(u64::from(length).next_multiple_of(8));
        if next > end {
            let (field, why) = ("extension length", "reaches past the extension area");
            findings.push(Finding::Header { field, offset: at, value: length.into(), why });
            break;
        }
        match kind {
            // Without the bit nobody vouches for what the extension says.
            EXTENSION_BITMAPS if header.autoclear_features & AUTOCLEAR_BITMAPS == 0 => {}
            EXTENSION_BITMAPS if length == BITMAPS_BYTES => bitmaps = Some(data),
            EXTENSION_BITMAPS => {
                let (field, why) = ("bitmaps extension length", "is not 24");
                findings.push(Finding::Header { field, offset: at, value: length.into(), why });
            }
            EXTENSION_LUKS => findings.push(Finding::Unsupported { what: "LUKS", value: at }),
            _ => {}
        }
        at = next;
    }
    bitmaps
}

/// Fills `entries` with (index, entry) of a table's entries that are not 0, in order.
fn nonzero_entries<E: Evidence>(
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

fn indices(clusters: &Range<u32>) -> Range<usize> {
    clusters.start as usize..clusters.end as usize
}

/// The units of a range, as far as the file reaches.
fn units_of(offset: u64, length: u64, file: u64) -> Range<u64> {
    let end = offset.saturating_add(length).min(file);
    offset.checked_div(UNIT_BYTES).unwrap_or(0)..end.div_ceil(UNIT_BYTES)
}

/// Shows every refcount in a unit that is not 0, with its index. Narrow ones fill a byte from its lowest bit up.
fn nonzero_refcounts(bytes: &Unit, order: u32, mut show: impl FnMut(u64, u64)) {
    let mut each = |index: u64, value: u64| {
        if value != 0 {
            show(index, value);
        }
    };
    match order {
        0..=2 => {
            let width = 1u32.wrapping_shl(order);
            let mask = 1u8.wrapping_shl(width).wrapping_sub(1);
            let shifts = (0..8u32).step_by(width as usize);
            let places = bytes
                .iter()
                .flat_map(|byte| shifts.clone().map(move |shift| byte.wrapping_shr(shift) & mask));
            (0..).zip(places).for_each(|(index, count)| each(index, count.into()));
        }
        3 => (0..).zip(bytes).for_each(|(index, count)| each(index, (*count).into())),
        4 => (0..)
            .zip(bytes.as_chunks::<2>().0)
            .for_each(|(index, chunk)| each(index, u16::from_be_bytes(*chunk).into())),
        5 => (0..)
            .zip(bytes.as_chunks::<4>().0)
            .for_each(|(index, chunk)| each(index, u32::from_be_bytes(*chunk).into())),
        _ => (0..)
            .zip(bytes.as_chunks::<8>().0)
            .for_each(|(index, chunk)| each(index, u64::from_be_bytes(*chunk))),
    }
}

fn be8(bytes: &Unit, at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

fn be32(bytes: &Unit, at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |c| u32::from_be_bytes(*c))
}

fn be64(bytes: &Unit, at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |c| u64::from_be_bytes(*c))
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn narrow_refcounts_fill_a_byte_from_below() {
        let mut bytes = [0; UNIT];
        bytes[1] = 0b1001_0010;
        let all = |order| {
            let mut found = Vec::new();
            nonzero_refcounts(&bytes, order, |index, count| found.push((index, count)));
            found
        };
        assert_eq!(all(0), [(9, 1), (12, 1), (15, 1)]);
        assert_eq!(all(1), [(4, 2), (6, 1), (7, 2)]);
        assert_eq!(all(2), [(2, 2), (3, 9)]);
        assert_eq!(all(3), [(1, 0x92)]);
        assert_eq!(all(4), [(0, 0x92)]);
        assert_eq!(all(5), [(0, 0x92_0000)]);
        assert_eq!(all(6), [(0, 0x92_0000_0000_0000)]);
    }

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
