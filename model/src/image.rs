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
//!
//!   bitmaps extension, while autoclear bit 0 is set
//!     | number 4 . reserved 4 . directory's size 8 . directory's offset 8
//!     v
//!   directory        table's offset 8 . entries 4 . flags 4 . type 1 . granularity 1 . name's length 2 . extra data's length 4 .
//!     |              extra data . name . up to a multiple of 8
//!     v
//!   table            9..55 offset, 0 all ones if there is no offset
//!     v
//!   bits
//! ```
//!
//! The invariant: whatever the bytes, reading ends after work in proportion to the length of the file, because a cluster is
//! walked as a table at most once and nothing past the end of the file is walked at all. All buffers are kept from one image
//! to the next.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::cell::Cell;
use std::ops::Range;

use crate::evidence::{Evidence, ValueKey};
use crate::finding::Finding;
use crate::label::{Label, Region};
use crate::payload::{UNIT, Unit};

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
const BITMAP_TABLE_RESERVED: u64 = 0xff00_0000_0000_01fe;
const ALL_ONES: u64 = 1;
/// Flag of a bitmap: somebody has it open, and what it says may be old.
const BITMAP_IN_USE: u64 = 1;
/// Flag of a bitmap: it follows what the guest changes.
const BITMAP_AUTO: u64 = 1 << 1;
/// Most bitmaps.
const MAX_BITMAPS: u64 = 65_535;
/// Longest directory of bitmaps in bytes.
const MAX_BITMAP_DIRECTORY: u64 = 64 << 20;
/// Bytes of a directory's entry before its extra data.
const BITMAP_ENTRY: u64 = 24;

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

/// The header's fields, as they are in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// 2 or 3.
    pub version: u32,
    /// Where the backing file's name is; 0 without one.
    pub backing_file_offset: u64,
    /// How long that name is.
    pub backing_file_size: u32,
    /// log2 of the cluster size.
    pub cluster_bits: u32,
    /// Virtual size in bytes.
    pub size: u64,
    /// 0 if not encrypted.
    pub crypt_method: u32,
    /// Entries in the active L1 table.
    pub l1_size: u32,
    /// Where it is.
    pub l1_table_offset: u64,
    /// Where the refcount table is.
    pub refcount_table_offset: u64,
    /// How many clusters it has.
    pub refcount_table_clusters: u32,
    /// Internal snapshots.
    pub nb_snapshots: u32,
    /// Where their table is.
    pub snapshots_offset: u64,
    /// Features that a reader must know.
    pub incompatible_features: u64,
    /// Features that a reader may ignore.
    pub compatible_features: u64,
    /// Features that a writer clears if it does not know them.
    pub autoclear_features: u64,
    /// log2 of the bits in a refcount.
    pub refcount_order: u32,
    /// Bytes before the header extensions.
    pub header_length: u32,
    /// 0 deflate, 1 zstd.
    pub compression_type: u8,
}

impl Header {
    /// Reads the header from the first unit of a file. Every fault becomes a finding; with one that leaves the layout
    /// unknown there is no header.
    pub fn parse(unit: &Unit, findings: &mut Vec<Finding>) -> Option<Self> {
        let version = be32(unit, 4);
        let v3 = version == 3;
        let header = Self {
            version,
            backing_file_offset: be64(unit, 8),
            backing_file_size: be32(unit, 16),
            cluster_bits: be32(unit, 20),
            size: be64(unit, 24),
            crypt_method: be32(unit, 32),
            l1_size: be32(unit, 36),
            l1_table_offset: be64(unit, 40),
            refcount_table_offset: be64(unit, 48),
            refcount_table_clusters: be32(unit, 56),
            nb_snapshots: be32(unit, 60),
            snapshots_offset: be64(unit, 64),
            incompatible_features: if v3 { be64(unit, 72) } else { 0 },
            compatible_features: if v3 { be64(unit, 80) } else { 0 },
            autoclear_features: if v3 { be64(unit, 88) } else { 0 },
            refcount_order: if v3 { be32(unit, 96) } else { 4 },
            header_length: if v3 { be32(unit, 100) } else { 72 },
            compression_type: 0,
        };
        let compression_type = if header.header_length > 104 { be8(unit, 104) } else { 0 };
        let header = Self { compression_type, ..header };
        header.find_faults(be32(unit, 0), findings).then_some(header)
    }

    /// Bytes in a cluster.
    pub fn cluster_size(&self) -> u64 {
        1u64.wrapping_shl(self.cluster_bits)
    }

    /// Whether the dirty bit is set.
    pub fn is_dirty(&self) -> bool {
        self.incompatible_features & INCOMPATIBLE_DIRTY != 0
    }

    /// Entries in an L2 table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster_size() >> 3
    }

    /// Host clusters that one refcount block counts.
    pub fn block_entries(&self) -> u64 {
        self.cluster_size().wrapping_shl(3).wrapping_shr(self.refcount_order)
    }

    fn l1_entries_needed(&self) -> u64 {
        let covered = self.cluster_size().saturating_mul(self.l2_entries());
        self.size.div_ceil(covered)
    }

    /// Whether the layout is known in spite of what was found.
    fn find_faults(&self, magic: u32, findings: &mut Vec<Finding>) -> bool {
        let usable = Cell::new(true);
        let mut fault = |ok: bool, fatal: bool, field, offset, value: u64, why| {
            if !ok {
                findings.push(Finding::Header { field, offset, value, why });
                usable.set(usable.get() && !fatal);
            }
        };
        fault(magic == MAGIC, true, "magic", 0, magic.into(), "is not a qcow2 image's");
        fault(matches!(self.version, 2 | 3), true, "version", 4, self.version.into(), "is unknown");
        let bits = self.cluster_bits;
        fault((9..=21).contains(&bits), true, "cluster_bits", 20, bits.into(), "is not in 9..=21");
        if !usable.get() {
            return false;
        }
        let cluster = self.cluster_size();
        let aligned = |offset: u64| offset.is_multiple_of(cluster);

        let order = self.refcount_order;
        fault(order <= 6, true, "refcount_order", 96, order.into(), "is above 6");
        let length = self.header_length;
        let fits = u64::from(length) <= cluster;
        fault(fits, true, "header_length", 100, length.into(), "is above the cluster size");
        let whole = self.version == 2 || (length >= 104 && length.is_multiple_of(8));
        fault(
            whole,
            true,
            "header_length",
            100,
            length.into(),
            "is not a multiple of 8 from 104 on",
        );

        let l1_bytes = u64::from(self.l1_size).saturating_mul(8);
        let l1 = u64::from(self.l1_size);
        fault(l1_bytes <= MAX_L1_BYTES, true, "l1_size", 36, l1, "is above the limit");
        fault(l1 >= self.l1_entries_needed(), true, "l1_size", 36, l1, "is too small for the disk");
        let at = self.l1_table_offset;
        fault(aligned(at), true, "l1_table_offset", 40, at, "is not aligned to clusters");
        let at = self.refcount_table_offset;
        fault(aligned(at), true, "refcount_table_offset", 48, at, "is not aligned to clusters");
        fault(at != 0, true, "refcount_table_offset", 48, at, "is the header's");
        let clusters = u64::from(self.refcount_table_clusters);
        let field = "refcount_table_clusters";
        fault(clusters > 0, true, field, 56, clusters, "leaves no refcount table");
        let table_bytes = clusters.saturating_mul(cluster);
        fault(
            table_bytes <= MAX_REFCOUNT_TABLE_BYTES,
            true,
            field,
            56,
            clusters,
            "is above the limit",
        );

        let at = self.backing_file_offset;
        fault(at <= cluster, false, "backing_file_offset", 8, at, "is outside the first cluster");
        // Without a backing file the length of its name is undefined.
        let name = if at == 0 { 0 } else { self.backing_file_size };
        fault(
            name <= MAX_BACKING_NAME,
            false,
            "backing_file_size",
            16,
            name.into(),
            "is above 1023",
        );
        let unknown = self.incompatible_features & !INCOMPATIBLE_KNOWN;
        fault(unknown == 0, true, "incompatible_features", 72, unknown, "are unknown bits");
        let typed = (self.compression_type != 0)
            == (self.incompatible_features & INCOMPATIBLE_COMPRESSION != 0);
        let kind = u64::from(self.compression_type);
        fault(typed, false, "compression_type", 104, kind, "disagrees with its feature bit");
        fault(kind <= 1, false, "compression_type", 104, kind, "is unknown");

        let mut unsupported = |supported: bool, fatal: bool, what, value| {
            if !supported {
                findings.push(Finding::Unsupported { what, value });
                usable.set(usable.get() && !fatal);
            }
        };
        let lacks = |feature: u64| self.incompatible_features & feature == 0;
        let bits = self.incompatible_features;
        unsupported(lacks(INCOMPATIBLE_DATA_FILE), true, "external data file", bits);
        unsupported(lacks(INCOMPATIBLE_EXTENDED_L2), true, "extended L2 entries", bits);
        unsupported(self.crypt_method == 0, false, "encryption", self.crypt_method.into());
        unsupported(self.nb_snapshots == 0, false, "internal snapshots", self.nb_snapshots.into());
        // A place for a name without a name is no backing file.
        unsupported(name == 0, false, "backing file", self.backing_file_offset);

        if self.is_dirty() {
            findings.push(Finding::Dirty);
        }
        if !lacks(INCOMPATIBLE_CORRUPT) {
            findings.push(Finding::Corrupt);
        }
        usable.get()
    }
}

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
}

impl Image {
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
        if end.saturating_sub(self.length) >= size {
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
        nonzero_entries(evidence, table, bytes >> 3, self.length, &mut blocks);
        for (index, entry) in &blocks {
            let at = Region::RefcountBlock(*index);
            let reserved = entry & REFCOUNT_TABLE_RESERVED;
            let offset = entry & !REFCOUNT_TABLE_RESERVED;
            if is_cluster(at, *entry, reserved, offset, header, findings)
                && self.claim(at, offset, header.cluster_size(), *entry, findings)
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
        let in_unit = UNIT_BYTES.wrapping_shl(3).wrapping_shr(header.refcount_order);
        let Self { slots, stored, stored_beyond, .. } = self;
        let clusters = self.length.div_ceil(header.cluster_size());
        for (ordinal, unit) in (0..).zip(units_of(offset, header.cluster_size(), self.length)) {
            let key = evidence.resolve(unit);
            if key == ValueKey::ZERO {
                continue;
            }
            let base = base.saturating_add(in_unit.saturating_mul(ordinal));
            nonzero_refcounts(evidence.bytes(key), header.refcount_order, |within, count| {
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
        nonzero_entries(evidence, header.l1_table_offset, entries, self.length, &mut tables);
        for (index, entry) in &tables {
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
        for unit in units_of(offset, header.cluster_size(), self.length) {
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

    fn read_bitmaps<E: Evidence>(
        &mut self,
        evidence: &mut E,
        header: &Header,
        extension: u64,
        findings: &mut Vec<Finding>,
    ) {
        let mut field = |at: u64, bytes| number(evidence, extension.saturating_add(at), bytes);
        let (count, reserved) = (field(0, 4), field(4, 4));
        let (size, directory) = (field(8, 8), field(16, 8));
        let mut fault = |field, at: u64, value, why| {
            let offset = extension.saturating_add(at);
            findings.push(Finding::Header { field, offset, value, why });
        };
        if reserved != 0 {
            fault("bitmaps extension", 4, reserved, "is reserved and not zero");
        }
        if count == 0 || count > MAX_BITMAPS {
            fault("number of bitmaps", 0, count, "is not in 1..=65535");
        }
        if size == 0 || size > MAX_BITMAP_DIRECTORY {
            fault("bitmap directory size", 8, size, "is not in 1..=64 MiB");
            return;
        }
        let at = Region::BitmapDirectory;
        if !is_cluster(at, directory, 0, directory, header, findings)
            || !self.claim(at, directory, size, directory, findings)
        {
            return;
        }
        let end = directory.saturating_add(size);
        let mut entry = directory;
        for bitmap in 0..count {
            let mut field = |at: u64, bytes| number(evidence, entry.saturating_add(at), bytes);
            let (table, entries, flags) = (field(0, 8), field(8, 4), field(12, 4));
            let (kind, granularity) = (field(16, 1), field(17, 1));
            let names = field(18, 2).saturating_add(field(20, 4));
            let next = entry.saturating_add(BITMAP_ENTRY.saturating_add(names).next_multiple_of(8));
            let fault = match () {
                () if next > end => Some((bitmap, "reaches past the end of the directory")),
                () if kind != 1 => Some((kind, "is no type of a bitmap")),
                () => None,
            };
            if let Some((value, why)) = fault {
                let (field, offset) = ("bitmap directory entry", entry);
                findings.push(Finding::Header { field, offset, value, why });
                return;
            }
            let at = Region::BitmapTable(bitmap);
            if is_cluster(at, table, 0, table, header, findings)
                && self.claim(at, table, entries.saturating_mul(8), table, findings)
            {
                self.read_bitmap_table(evidence, header, bitmap, table, entries, findings);
                if flags & (BITMAP_IN_USE | BITMAP_AUTO) == BITMAP_AUTO {
                    self.record(evidence, table, entries, granularity);
                }
            }
            entry = next;
        }
    }

    fn read_bitmap_table<E: Evidence>(
        &mut self,
        evidence: &mut E,
        header: &Header,
        bitmap: u64,
        table: u64,
        count: u64,
        findings: &mut Vec<Finding>,
    ) {
        let mut entries = std::mem::take(&mut self.table_entries);
        nonzero_entries(evidence, table, count, self.length, &mut entries);
        for (_, entry) in &entries {
            let at = Region::Bitmap(bitmap);
            let offset = entry & OFFSET;
            let mut reserved = entry & BITMAP_TABLE_RESERVED;
            if offset != 0 {
                reserved |= entry & ALL_ONES;
            }
            if is_cluster(at, *entry, reserved, offset, header, findings) {
                self.claim(at, offset, header.cluster_size(), *entry, findings);
            }
        }
        self.table_entries = entries;
    }

    /// Keeps the table of a bitmap, as far as the file has it.
    fn record<E: Evidence>(
        &mut self,
        evidence: &mut E,
        table: u64,
        count: u64,
        granularity_bits: u64,
    ) {
        let granularity_bits = u32::try_from(granularity_bits).unwrap_or(0);
        let mut recording = Recording { granularity_bits, table: Vec::new() };
        let mut entries = std::mem::take(&mut self.table_entries);
        nonzero_entries(evidence, table, count, self.length, &mut entries);
        for (index, entry) in &entries {
            recording.table.resize(to_usize(*index), 0);
            recording.table.push(*entry);
        }
        self.table_entries = entries;
        self.recordings.push(recording);
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

/// Bytes of the file as a big-endian number: at most eight, wherever they lie.
fn number<E: Evidence>(evidence: &mut E, offset: u64, bytes: u64) -> u64 {
    (offset..offset.saturating_add(bytes)).fold(0, |number, at| {
        let key = evidence.resolve(at.checked_div(UNIT_BYTES).unwrap_or(0));
        let byte = be8(evidence.bytes(key), to_usize(at % UNIT_BYTES));
        number.wrapping_shl(8) | u64::from(byte)
    })
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
