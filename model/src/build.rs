//! Initial images, laid out byte by byte and independent of any implementation.
//!
//! An image that starts empty reaches growth, copy-on-write and repair late or never; these begin right before them. The
//! invariant: every image passes this crate's own audit at the stage that its kind says, and the contents returned with it
//! are what a guest reads from it.
//!
//! ```text
//!   0        1                2                 3..
//!   header | refcount table | refcount block  | L1 | L2 tables, data, holes with stale bytes, bitmaps
//! ```
//!
//! With a data file what a guest cluster holds lies there, at the offset that the guest has; the image has none of its data. A plain one
//! has stale bytes where the image maps nothing or zeroes, and a raw one has zeroes there.
//!
//! Of an encrypted image what a guest cluster holds is enciphered, and so are stale bytes where it has a place and is not read from it: shown
//! by mistake they say what they are. Holes and leaks have stale bytes as they are. The LUKS header follows the refcount blocks.
//!
//! Two kinds that fill refcount structures up fill them with a long L1 table: entries past the disk's end are legal, so
//! nothing leaks, and zeroes cost a sparse file nothing. An L1 table ends at 32 MiB, which sets the limit of what is feasible.
//! Whoever opens such an image reads a long table, so prefer small clusters and wide refcounts there. A third fills them with
//! leaks, and its L1 table is short.

use std::collections::{BTreeMap, BTreeSet};

use ruzstd::encoding::CompressionLevel;
use serde::{Deserialize, Serialize};

use crate::crypt::{Cipher, LUKS_BYTES, luks_units};
use crate::evidence::{BytesEvidence, DATA_FIRST, ValueKey, Values};
use crate::guest::{ForeignExtension, Made};
use crate::image::{
    ALL_ALLOCATED, ALL_ZERO, AUTOCLEAR_BITMAPS, AUTOCLEAR_RAW_DATA, BITMAPS_BYTES, COPIED,
    EXTENSION_BITMAPS, EXTENSION_DATA_NAME, EXTENSION_LAYER_FORMAT, EXTENSION_LUKS,
    INCOMPATIBLE_COMPRESSION, INCOMPATIBLE_DATA_FILE, INCOMPATIBLE_DIRTY, INCOMPATIBLE_EXTENDED_L2,
    LUKS_POINTER_BYTES, MAX_L1_BYTES, compressed_entry,
};
use crate::op::{Compression, DataFile, Encryption, Geometry};
use crate::payload::{self, DATA_NAME, LAYER_FORMAT, LAYER_NAME, UNIT, Unit, Value, ZEROES};

/// What a life starts from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Initial {
    /// Just created: no L2 table, no data.
    Fresh,
    /// The only refcount block has one free entry left: the second allocation needs a new block. (With a LUKS header that it cannot count
    /// there are more blocks, and one entry is free in all of them.)
    RefcountBlockOneShort,
    /// All blocks of a refcount table of one cluster are there, and one entry is free in all of them: the second allocation
    /// needs a new table. Feasible at 512-byte clusters, and at 1 KiB with wide refcounts.
    RefcountTableOneShort,
    /// The L1 table has exactly the entries that the disk needs, with clusters in use on both sides, and the last guest
    /// cluster is mapped: growing past what its last entry covers needs a new L1 table.
    L1AboutToGrow,
    /// Leaked clusters, and mapped ones whose refcount is 2 though nothing else refers to them, without COPIED: writing
    /// there must copy. (With 1-bit refcounts, or a data file, only the former.)
    Leaky,
    /// The dirty bit set: refcounts too low, zero and too high.
    Dirty,
    /// Scattered data, both kinds of zero clusters (in version 3), several L2 tables, and holes in between, all full of stale bytes.
    /// With extended L2 entries some clusters are mixed: of their subclusters some are allocated, some read as zeroes and some do
    /// neither; and some have no more than zeroes in between, with a host cluster and without.
    Fragmented,
    /// Some data, and two bitmaps that an autoclear bit vouches for: one with bits, one of ones. Beside it is an autoclear bit that nobody
    /// knows. With lazy refcounts the dirty bit is set too, and the refcounts are right.
    Bitmaps,
    /// Some data, and more where no guest sees it: behind the end of the disk in the last cluster, in its L2 table, and in one
    /// more L2 table. The file ends inside the first L2 table. The header (of version 3) has a compatible feature bit and an extension that nobody knows.
    /// A data file is three clusters longer than the disk, with stale bytes there, and nothing is in the one more table.
    Leftovers,
    /// Some data, and more that is compressed: streams that follow each other without a gap, some of them across two host clusters, so that
    /// a cluster has as many as it can count. With refcounts of one bit each has a cluster of its own. At 512-byte clusters, in which no
    /// data of ours compresses, there is none, and none beside a data file or with encryption.
    Compressed,
    /// As many refcount blocks as one cluster of refcount table refers to, all of whose entries but one are in use: by leaked
    /// clusters, so that nothing else is long.
    FullOfLeaks,
}

impl Initial {
    /// Every kind.
    pub const ALL: [Self; 11] = [
        Self::Fresh,
        Self::RefcountBlockOneShort,
        Self::RefcountTableOneShort,
        Self::L1AboutToGrow,
        Self::Leaky,
        Self::Dirty,
        Self::Fragmented,
        Self::Bitmaps,
        Self::Leftovers,
        Self::Compressed,
        Self::FullOfLeaks,
    ];

    /// What figures, worlds and command lines call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::RefcountBlockOneShort => "refcount-block-one-short",
            Self::RefcountTableOneShort => "refcount-table-one-short",
            Self::L1AboutToGrow => "l1-about-to-grow",
            Self::Leaky => "leaky",
            Self::Dirty => "dirty",
            Self::Fragmented => "fragmented",
            Self::Bitmaps => "bitmaps",
            Self::Leftovers => "leftovers",
            Self::Compressed => "compressed",
            Self::FullOfLeaks => "full-of-leaks",
        }
    }

    /// Whether the dirty bit is set in an image of this geometry.
    pub fn is_dirty(self, geometry: &Geometry) -> bool {
        match self {
            Self::Dirty => true,
            Self::Bitmaps => geometry.lazy_refcounts,
            _ => false,
        }
    }
}

/// A kind of image that this geometry does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{initial:?} is not feasible: {why}")]
pub struct Infeasible {
    /// What was asked for.
    pub initial: Initial,
    /// What stands against it.
    pub why: String,
}

/// An image, and what a guest reads from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// File length in bytes.
    pub length: u64,
    /// Units that are not zero: (unit number, content), ascending.
    pub units: Vec<(u64, Unit)>,
    /// What each guest unit reads as.
    pub guest: Vec<Value>,
    /// The data file, if the image has one.
    pub data: Option<BuiltData>,
}

/// The data file of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltData {
    /// Its length in bytes.
    pub length: u64,
    /// Units that are not zero: (unit number in this file, content), ascending.
    pub units: Vec<(u64, Unit)>,
}

impl Built {
    /// The image, and its data file if it has one, as evidence over a fresh store.
    pub fn evidence(&self) -> BytesEvidence {
        let mut evidence = BytesEvidence::empty(Values::default(), self.length);
        self.units.iter().for_each(|(unit, bytes)| evidence.set(*unit, bytes));
        if let Some(data) = &self.data {
            evidence.add_data(data.length);
            data.units.iter().for_each(|(unit, bytes)| evidence.set(DATA_FIRST + unit, bytes));
        }
        evidence
    }

    /// What an image of this geometry was made as, if it is this one. `intern` gives the keys of what the layer below holds.
    pub fn made(&self, geometry: &Geometry, intern: impl FnMut(&Unit) -> ValueKey) -> Made {
        Made::of(geometry, intern).with_header(self.compatible_features(), self.foreign_extension())
    }

    /// The compatible feature bits in its header, which version 2 does not have.
    fn compatible_features(&self) -> u64 {
        match self.units.first() {
            Some((0, header)) if header[7] >= 3 => {
                header[80..].first_chunk().map_or(0, |bits| u64::from_be_bytes(*bits))
            }
            _ => 0,
        }
    }

    /// The extension in its header of a type that nobody knows, if it has one.
    fn foreign_extension(&self) -> Option<ForeignExtension> {
        let (_, header) = self.units.first()?;
        let (_, data) = FOREIGN_EXTENSION;
        header.windows(data.len()).any(|bytes| bytes == data).then_some(FOREIGN_EXTENSION)
    }

    /// The guest's units as keys, which `intern` gives: what [`crate::guest::Guest::new`] wants.
    pub fn guest_keys(&self, mut intern: impl FnMut(&Unit) -> ValueKey) -> Vec<ValueKey> {
        let keys = self.guest.iter().map(|value| match *value {
            Value::Tag { unit, id } => intern(&payload::unit(unit, id)),
            Value::Zero | Value::Foreign(_) => ValueKey::ZERO,
        });
        keys.collect()
    }

    /// The whole file of the image.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.evidence().to_bytes()
    }
}

/// Lays out an image.
///
/// # Errors
/// [`Infeasible`] with the reason, if there is no such image of that shape.
pub fn build(geometry: &Geometry, initial: Initial) -> Result<Built, Infeasible> {
    if let Some(why) = geometry.fault() {
        return Err(Infeasible { initial, why });
    }
    if !geometry.has_features() && matches!(initial, Initial::Dirty | Initial::Bitmaps) {
        let why = "version 2 has no feature bits".to_owned();
        return Err(Infeasible { initial, why });
    }
    if geometry.data_file.is_some() && initial == Initial::Compressed {
        let why = "a data file has no compressed clusters".to_owned();
        return Err(Infeasible { initial, why });
    }
    if geometry.encryption.is_some() && initial == Initial::Compressed {
        let why = "what is encrypted does not compress".to_owned();
        return Err(Infeasible { initial, why });
    }
    let most = l1_clusters(geometry, geometry.l1_entries() + 2) + SOME_DATA;
    if luks_clusters(geometry) > 0 && blocks_for(geometry, most) > geometry.cluster_size() / 8 {
        let why = "a refcount table of one cluster cannot count a LUKS header beside it".to_owned();
        return Err(Infeasible { initial, why });
    }
    let built = lay_out(geometry, initial)?;
    if built.data.is_some() && built.length > DATA_FIRST * UNIT as u64 {
        let why = format!("beside a data file {} bytes of image are too many", built.length);
        return Err(Infeasible { initial, why });
    }
    Ok(built)
}

fn lay_out(geometry: &Geometry, initial: Initial) -> Result<Built, Infeasible> {
    match initial {
        Initial::Fresh => Ok(Layout::with_room_for(geometry, 0).finish()),
        Initial::RefcountBlockOneShort => {
            let beside_header = luks_clusters(geometry).div_ceil(geometry.block_entries() - 1);
            nearly_full(geometry, initial, 1 + beside_header)
        }
        Initial::RefcountTableOneShort => {
            nearly_full(geometry, initial, geometry.cluster_size() / 8)
        }
        Initial::L1AboutToGrow => Ok(l1_about_to_grow(geometry)),
        Initial::Leaky => Ok(leaky(geometry)),
        Initial::Dirty => Ok(dirty(geometry)),
        Initial::Fragmented => Ok(fragmented(geometry)),
        Initial::Bitmaps => Ok(bitmaps(geometry)),
        Initial::Leftovers => Ok(leftovers(geometry)),
        Initial::Compressed => compressed(geometry),
        Initial::FullOfLeaks => full_of_leaks(geometry),
    }
}

/// Clusters of an L1 table of so many entries.
fn l1_clusters(geometry: &Geometry, entries: u64) -> u64 {
    (entries * 8).div_ceil(geometry.cluster_size()).max(1)
}

/// Clusters of the LUKS header; 0 without one.
fn luks_clusters(geometry: &Geometry) -> u64 {
    match geometry.encryption {
        Some(Encryption::Luks) => LUKS_BYTES.div_ceil(geometry.cluster_size()),
        Some(Encryption::Aes) | None => 0,
    }
}

/// Refcount blocks that count the header, the refcount table, the LUKS header, themselves and so many clusters more.
fn blocks_for(geometry: &Geometry, clusters: u64) -> u64 {
    // Every block counts itself too, and leaves room for one cluster less.
    (FIRST_BLOCK + luks_clusters(geometry) + clusters).div_ceil(geometry.block_entries() - 1)
}

/// `blocks` refcount blocks of which all entries but one are in use.
fn nearly_full(geometry: &Geometry, initial: Initial, blocks: u64) -> Result<Built, Infeasible> {
    let mut layout = Layout::new(geometry, blocks);
    // A block has 64 entries at least, so what counts them and the headers leave many.
    let free = geometry.block_entries() * blocks - layout.next - 1;
    let filler = free * geometry.cluster_size();
    if filler > MAX_L1_BYTES {
        let why = format!("it takes {filler} bytes of L1 table to fill the refcounts up");
        return Err(Infeasible { initial, why });
    }
    if filler / 8 < geometry.l1_entries() {
        let why = format!("{filler} bytes are too few for the L1 table");
        return Err(Infeasible { initial, why });
    }
    layout.place_l1(filler / 8);
    Ok(layout.finish())
}

fn full_of_leaks(geometry: &Geometry) -> Result<Built, Infeasible> {
    let blocks = geometry.cluster_size() / 8;
    let mut layout = Layout::new(geometry, blocks);
    layout.place_l1(geometry.l1_entries());
    let counted = geometry.block_entries() * blocks;
    if counted > MOST_LEAKS {
        let why = format!("it takes {counted} clusters to fill the refcounts up");
        return Err(Infeasible { initial: Initial::FullOfLeaks, why });
    }
    // 64 blocks of 64 entries at least, and an L1 table of 1 MiB at most.
    layout.take_clusters(counted - layout.next - 1);
    Ok(layout.finish())
}

fn l1_about_to_grow(geometry: &Geometry) -> Built {
    let mut layout = Layout::with_room_for(geometry, SOME_DATA);
    if let Some(last) = geometry.clusters().checked_sub(1) {
        layout.map_data(last);
    }
    layout.finish()
}

fn leaky(geometry: &Geometry) -> Built {
    let mut layout = Layout::with_room_for(geometry, SOME_DATA);
    let most = most_of_data(geometry);
    for guest in some_clusters(geometry, 3) {
        for leaked in [layout.take_cluster(), layout.take_cluster()] {
            layout.fill_with_stale(leaked);
        }
        let host = layout.map_data(guest);
        if guest % 2 == 0 && most > 1 {
            layout.refcounts.insert(host, most);
            layout.set_l2(guest, host * geometry.cluster_size());
        }
    }
    layout.finish()
}

/// A refcount of a cluster of data that is above its one reference where it can be, and counted at all.
fn most_of_data(geometry: &Geometry) -> u64 {
    if geometry.refcount_order == 0 || geometry.data_file.is_some() { 1 } else { 2 }
}

fn dirty(geometry: &Geometry) -> Built {
    let mut layout = Layout::with_room_for(geometry, SOME_DATA);
    let most = most_of_data(geometry);
    for (index, guest) in some_clusters(geometry, 2).enumerate() {
        let host = layout.map_data(guest);
        match index % 3 {
            _ if geometry.data_file.is_some() => None,
            0 => layout.refcounts.insert(host, 0),
            1 => layout.refcounts.insert(host, most),
            _ => None,
        };
    }
    if let Some(table) = layout.tables.values().next() {
        layout.refcounts.insert(*table, 0);
    }
    let leaked = layout.take_cluster();
    layout.fill_with_stale(leaked);
    layout.dirty = true;
    layout.finish()
}

fn fragmented(geometry: &Geometry) -> Built {
    let mut layout = Layout::with_room_for(geometry, SOME_DATA);
    // A stride that is odd and not a divisor visits clusters far from their neighbours.
    let chosen: Vec<u64> = some_clusters(geometry, 2).collect();
    for index in 0..chosen.len() {
        let guest = chosen[index * 5 % chosen.len()];
        if layout.is_mapped(guest) {
            continue;
        }
        // Half of the extended entries are mixed, those of a small disk among them.
        let mixed = geometry.extended_l2 && index % 8 < 3;
        let zero = if mixed { MIXED & ALL_ZERO } else { ALL_ZERO };
        match index % 4 {
            1 if geometry.has_features() => {
                layout.set_zero(guest, 0, zero);
                if geometry.data_file.is_some() {
                    layout.fill_data_with_stale(guest, guest);
                }
            }
            2 if geometry.has_features() => {
                let host = layout.host_for(guest);
                layout.fill_data_with_stale(guest, host);
                layout.set_zero(guest, (host * geometry.cluster_size()) | COPIED, zero);
            }
            0 if mixed => layout.map_mixed(guest),
            _ => {
                layout.map_data(guest);
            }
        }
        if index % 3 == 0 {
            let hole = layout.take_cluster();
            layout.fill_with_stale(hole);
            layout.refcounts.remove(&hole);
            // The next one is none of the chosen, and mapped nowhere.
            if geometry.data_file.is_some() {
                layout.fill_data_with_stale(guest + 1, guest + 1);
            }
        }
    }
    layout.finish()
}

fn bitmaps(geometry: &Geometry) -> Built {
    // Names of eight bytes, so that entries follow each other without padding.
    const NAMES: [&[u8; 8]; 2] = [b"first ok", b"all ones"];
    const ENTRY: u64 = 24 + 8;
    const AUTO: u32 = 2;
    const DIRTY_TRACKING: u8 = 1;
    let size = geometry.cluster_size();
    let mut layout = Layout::with_room_for(geometry, SOME_DATA);
    for guest in some_clusters(geometry, 3) {
        layout.map_data(guest);
    }
    // A bit a cluster of the guest's.
    let clusters = geometry.clusters().div_ceil(8).div_ceil(size);
    let directory = layout.take_cluster();
    for (index, name) in (0..).zip(NAMES) {
        let table = layout.take_clusters((clusters * 8).div_ceil(size).max(1));
        for entry in 0..clusters {
            let value = match (index, entry) {
                (0, 0) => layout.take_cluster() * size,
                (0, _) => 0,
                _ => 1,
            };
            layout.put_u64(table * size + entry * 8, value);
            if (index, entry) == (0, 0) {
                layout.put(value, &[1]);
            }
        }
        let at = directory * size + index * ENTRY;
        let entries = u32::try_from(clusters).expect("MAX_VIRTUAL_SIZE keeps it small");
        layout.put_u64(at, table * size);
        layout.put(at + 8, &entries.to_be_bytes());
        layout.put(at + 12, &AUTO.to_be_bytes());
        let bits = u8::try_from(geometry.cluster_bits).expect("at most 21");
        layout.put(at + 16, &[DIRTY_TRACKING, bits, 0, 8]);
        layout.put(at + 24, name);
    }
    layout.dirty = Initial::Bitmaps.is_dirty(geometry);
    layout.bitmaps = Some((NAMES.len() as u32, NAMES.len() as u64 * ENTRY, directory));
    layout.finish()
}

fn leftovers(geometry: &Geometry) -> Built {
    let mut layout = Layout::with_room_behind(geometry, SOME_DATA);
    let (clusters, entries) = (geometry.clusters(), geometry.l2_entries());
    let last = clusters.checked_sub(1);
    let next_table = clusters.next_multiple_of(entries);
    let behind = match geometry.data_file {
        None => BTreeSet::from([next_table + 3, next_table, clusters + 2, clusters]),
        Some(_) => BTreeSet::from([clusters + 2, clusters]),
    };
    let inside = some_clusters(geometry, 3).chain(last).collect::<BTreeSet<_>>();
    // Tables come last, that of the first clusters at the very end.
    let mapped: Vec<u64> = behind.into_iter().rev().chain(inside.into_iter().rev()).collect();
    let hosts: Vec<u64> = mapped.iter().map(|guest| layout.host_for(*guest)).collect();
    if geometry.data_file.is_some() {
        layout.data_length = (clusters + 3) * geometry.cluster_size();
    }
    for (guest, host) in mapped.into_iter().zip(hosts) {
        layout.map_data_at(guest, host);
        if guest >= clusters {
            layout.fill_behind_the_end(guest, host);
        }
        if Some(guest) == last {
            layout.fill_behind_the_end(guest, host);
        }
    }
    layout.ends_early = true;
    layout.finish()
}

fn compressed(geometry: &Geometry) -> Result<Built, Infeasible> {
    let size = geometry.cluster_size();
    if size < 2 * UNIT as u64 {
        let why = "a unit of data is shorter than any stream of it".to_owned();
        return Err(Infeasible { initial: Initial::Compressed, why });
    }
    let mut layout = Layout::with_room_for(geometry, SOME_DATA);
    let most = u64::MAX >> (64 - (1u32 << geometry.refcount_order));
    let chosen: Vec<u64> = some_clusters(geometry, 2).collect();
    let (plain, small): (Vec<_>, Vec<_>) = (0..).zip(chosen).partition(|(index, _)| index % 4 == 3);
    // The streams first: what lies across two clusters needs two that follow each other.
    let (mut placed, mut at, mut end) = (Vec::new(), 0, 0);
    for (index, guest) in small {
        let within = index % geometry.cluster_units();
        let unit = guest * geometry.cluster_units() + within;
        let mut whole = vec![0; usize::try_from(size).expect("a cluster fits in memory")];
        let from = usize::try_from(within).expect("it is small") * UNIT;
        whole[from..from + UNIT].copy_from_slice(&payload::unit(unit, payload::INITIAL));
        let stream = match geometry.compression {
            Compression::Deflate => miniz_oxide::deflate::compress_to_vec(&whole, 6),
            Compression::Zstd => {
                ruzstd::encoding::compress_to_vec(&whole[..], CompressionLevel::Fastest)
            }
        };
        let length = stream.len() as u64;
        let last = |at: u64| (at + length).next_multiple_of(UNIT as u64).div_ceil(size);
        let is_full = |layout: &Layout, cluster| layout.refcounts.get(&cluster) == Some(&most);
        if at == end || is_full(&layout, at / size) || most == 1 {
            at = layout.next * size;
        }
        layout.next = layout.next.max(last(at));
        end = layout.next * size;
        for cluster in at / size..last(at) {
            *layout.refcounts.entry(cluster).or_insert(0) += 1;
        }
        layout.put(at, &stream);
        placed.push((guest, compressed_entry(at, length, geometry.cluster_bits), unit));
        at += length;
    }
    for (guest, entry, unit) in placed {
        layout.set_l2(guest, entry);
        let units = geometry.cluster_units();
        for other in guest * units..(guest + 1) * units {
            let value = match other == unit {
                true => Value::Tag { unit, id: payload::INITIAL },
                false => Value::Zero,
            };
            if let Some(there) = layout.guest.get_mut(other as usize) {
                *there = value;
            }
        }
    }
    for (_, guest) in plain {
        layout.map_data(guest);
    }
    Ok(layout.finish())
}

/// At most 32 guest clusters, at least `step` apart, from the whole disk, so that several L2 tables exist where there can be.
fn some_clusters(geometry: &Geometry, step: u64) -> impl Iterator<Item = u64> {
    let clusters = geometry.clusters();
    let step = step.max(clusters.div_ceil(32));
    (0..clusters).step_by(usize::try_from(step).expect("MAX_VIRTUAL_SIZE keeps it small"))
}

/// A bitmap of subclusters in which each of the three kinds is beside each kind.
const MIXED: u64 = 0x00c4_00c4_f013_f013;

/// Each is listed in every audit.
const MOST_LEAKS: u64 = 1 << 15;

/// At most 32 clusters of data, twice as many holes or leaks, and their L2 tables.
const SOME_DATA: u64 = 4 * 32 + 1;

/// What a guest unit reads as that is mapped nowhere.
fn below(geometry: &Geometry, unit: u64) -> Value {
    if unit < geometry.below_units() { payload::below(unit) } else { Value::Zero }
}

struct Layout {
    geometry: Geometry,
    units: BTreeMap<u64, Unit>,
    /// Those of the data file, by their numbers in it.
    data: BTreeMap<u64, Unit>,
    data_length: u64,
    refcounts: BTreeMap<u64, u64>,
    blocks: u64,
    next: u64,
    l1_entries: u64,
    l1: u64,
    /// L1 index to host cluster of the table.
    tables: BTreeMap<u64, u64>,
    guest: Vec<Value>,
    dirty: bool,
    /// The first cluster of the LUKS header, if there is one.
    luks: Option<u64>,
    /// How many, bytes of the directory, and its cluster.
    bitmaps: Option<(u32, u64, u64)>,
    /// Whether the file ends behind the last unit that is not zero, and not at the end of a cluster.
    ends_early: bool,
}

/// A feature that a reader may ignore, and that nobody knows.
const FOREIGN_COMPATIBLE: u64 = 1 << 40;
/// A feature whose promise only who knows it can keep: whoever changes anything has to clear it before.
const FOREIGN_AUTOCLEAR: u64 = 1 << 63;
/// A header extension that nobody knows; its data is no multiple of 8 bytes.
const FOREIGN_EXTENSION: (u32, &[u8]) = (0x6e6f_7765, b"of no program");

const REFCOUNT_TABLE: u64 = 1;
const FIRST_BLOCK: u64 = 2;

impl Layout {
    fn new(geometry: &Geometry, blocks: u64) -> Self {
        let mut layout = Self {
            geometry: *geometry,
            units: BTreeMap::new(),
            data: BTreeMap::new(),
            data_length: geometry.virtual_size,
            refcounts: BTreeMap::new(),
            blocks,
            next: 0,
            l1_entries: 0,
            l1: 0,
            tables: BTreeMap::new(),
            guest: (0..geometry.units()).map(|unit| below(geometry, unit)).collect(),
            dirty: false,
            luks: None,
            bitmaps: None,
            ends_early: false,
        };
        layout.take_clusters(FIRST_BLOCK + blocks);
        if luks_clusters(geometry) > 0 {
            let first = layout.take_clusters(luks_clusters(geometry));
            let at = first * geometry.cluster_units();
            layout.units.extend(luks_units().iter().map(|(unit, bytes)| (at + unit, *bytes)));
            layout.luks = Some(first);
        }
        layout
    }

    /// A layout with its L1 table, and refcount blocks for that and `clusters` more. One cluster of refcount table has room for
    /// all of them, because [`MAX_VIRTUAL_SIZE`](crate::op::MAX_VIRTUAL_SIZE) needs 1 MiB of L1 table at most.
    fn with_room_for(geometry: &Geometry, clusters: u64) -> Self {
        Self::with_l1(geometry, geometry.l1_entries(), clusters)
    }

    /// The same with an L1 table that covers two L2 tables more than the disk has.
    fn with_room_behind(geometry: &Geometry, clusters: u64) -> Self {
        Self::with_l1(geometry, geometry.l1_entries() + 2, clusters)
    }

    fn with_l1(geometry: &Geometry, entries: u64, clusters: u64) -> Self {
        let blocks = blocks_for(geometry, l1_clusters(geometry, entries) + clusters);
        let mut layout = Self::new(geometry, blocks);
        layout.place_l1(entries);
        layout
    }

    fn take_cluster(&mut self) -> u64 {
        self.take_clusters(1)
    }

    fn take_clusters(&mut self, count: u64) -> u64 {
        let first = self.next;
        self.next += count;
        self.refcounts.extend((first..self.next).map(|cluster| (cluster, 1)));
        first
    }

    fn place_l1(&mut self, entries: u64) {
        self.l1_entries = entries;
        self.l1 = self.take_clusters(l1_clusters(&self.geometry, entries));
    }

    fn put(&mut self, offset: u64, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            let unit = self.units.entry(at / UNIT as u64).or_insert(ZEROES);
            unit[(at % UNIT as u64) as usize] = *byte;
        }
    }

    fn put_u64(&mut self, offset: u64, value: u64) {
        self.put(offset, &value.to_be_bytes());
    }

    fn is_mapped(&self, guest: u64) -> bool {
        let Some(at) = self.l2_offset(guest) else { return false };
        let unit = self.units.get(&(at / UNIT as u64)).unwrap_or(&ZEROES);
        let within = (at % UNIT as u64) as usize;
        unit[within..within + self.geometry.l2_entry_size() as usize].iter().any(|byte| *byte != 0)
    }

    fn l2_offset(&self, guest: u64) -> Option<u64> {
        let entries = self.geometry.l2_entries();
        let table = self.tables.get(&(guest / entries))?;
        Some(table * self.geometry.cluster_size() + guest % entries * self.geometry.l2_entry_size())
    }

    /// Sets an L2 entry, of one that is extended the first word.
    fn set_l2(&mut self, guest: u64, entry: u64) {
        let index = guest / self.geometry.l2_entries();
        if !self.tables.contains_key(&index) {
            let table = self.take_cluster();
            self.tables.insert(index, table);
            let size = self.geometry.cluster_size();
            self.put_u64(self.l1 * size + index * 8, (table * size) | COPIED);
        }
        let at = self.l2_offset(guest).expect("the table was just made sure of");
        self.put_u64(at, entry);
    }

    /// Sets the bitmap of a guest cluster whose entry was set before; nothing if entries are not extended.
    fn set_subclusters(&mut self, guest: u64, bitmap: u64) {
        if self.geometry.extended_l2 {
            let at = self.l2_offset(guest).expect("the entry was set");
            self.put_u64(at + 8, bitmap);
        }
    }

    /// The units of a guest cluster, counted from its first, that are in a subcluster whose bit is among the lowest 32 of `bits`;
    /// without subclusters bit 0 is all of them.
    fn units_in(&self, bits: u64) -> impl Iterator<Item = u64> + use<> {
        let in_subcluster = self.geometry.subcluster_size() / UNIT as u64;
        let units = 0..self.geometry.cluster_units();
        units.filter(move |within| bits >> (within / in_subcluster) & 1 != 0)
    }

    /// Marks a guest cluster as reading as zeroes, whatever else its entry says; if it is extended, the subclusters of `bitmap`.
    fn set_zero(&mut self, guest: u64, entry: u64, bitmap: u64) {
        self.set_l2(guest, entry | u64::from(!self.geometry.extended_l2));
        self.set_subclusters(guest, bitmap);
        for within in self.units_in(bitmap >> 32) {
            let unit = guest * self.geometry.cluster_units() + within;
            if let Some(value) = self.guest.get_mut(unit as usize) {
                *value = Value::Zero;
            }
        }
    }

    /// Maps a guest cluster to a new host cluster, as [`MIXED`] says: with its own data, and stale bytes where that is not seen.
    fn map_mixed(&mut self, guest: u64) {
        let host = self.host_for(guest);
        self.fill_data_with_stale(guest, host);
        self.set_zero(guest, (host * self.geometry.cluster_size()) | COPIED, MIXED);
        self.put_data(guest, host, MIXED);
    }

    /// A host cluster for a guest cluster: its own place in the data file, or a new one.
    fn host_for(&mut self, guest: u64) -> u64 {
        if self.geometry.data_file.is_some() { guest } else { self.take_cluster() }
    }

    /// Sets a unit of the file that guest data is in, to what has these bytes for a guest unit.
    fn put_data_unit(&mut self, guest: u64, unit: u64, mut bytes: Unit) {
        if let Some(encryption) = self.geometry.encryption {
            let number = if encryption.by_host() { unit } else { guest };
            Cipher::of(encryption).encipher(number, &mut bytes);
        }
        match self.geometry.data_file {
            None => self.units.insert(unit, bytes),
            Some(_) => self.data.insert(unit, bytes),
        };
    }

    /// Maps a guest cluster to a new host cluster full of its own data.
    fn map_data(&mut self, guest: u64) -> u64 {
        let host = self.host_for(guest);
        self.map_data_at(guest, host);
        host
    }

    /// The same to a host cluster that was taken before.
    fn map_data_at(&mut self, guest: u64, host: u64) {
        self.set_l2(guest, (host * self.geometry.cluster_size()) | COPIED);
        self.set_subclusters(guest, ALL_ALLOCATED);
        self.put_data(guest, host, ALL_ALLOCATED);
    }

    /// Puts a guest cluster's own data into a host cluster, where the bits of its subclusters say that they are allocated.
    fn put_data(&mut self, guest: u64, host: u64, bitmap: u64) {
        let units = self.geometry.cluster_units();
        for within in self.units_in(bitmap & ALL_ALLOCATED) {
            let unit = guest * units + within;
            if let Some(value) = self.guest.get_mut(unit as usize) {
                *value = Value::Tag { unit, id: payload::INITIAL };
                let bytes = payload::unit(unit, payload::INITIAL);
                self.put_data_unit(unit, host * units + within, bytes);
            }
        }
    }

    fn fill_with_stale(&mut self, host: u64) {
        let units = self.geometry.cluster_units();
        let all = host * units..(host + 1) * units;
        self.units.extend(all.map(|unit| (unit, payload::unit(unit, payload::STALE))));
    }

    /// Stale bytes in a host cluster that a guest cluster's data is to be in, as far as they may lie there: a raw data file has none where the
    /// disk is.
    fn fill_data_with_stale(&mut self, guest: u64, host: u64) {
        let units = self.geometry.cluster_units();
        let end = match self.geometry.data_file {
            None => units,
            Some(DataFile::Raw) => 0,
            Some(DataFile::Plain) => units.min(self.geometry.units().saturating_sub(host * units)),
        };
        for within in 0..end {
            let unit = host * units + within;
            self.put_data_unit(guest * units + within, unit, payload::unit(unit, payload::STALE));
        }
    }

    /// Stale bytes in a host cluster where the guest cluster is behind the end of the disk.
    fn fill_behind_the_end(&mut self, guest: u64, host: u64) {
        let units = self.geometry.cluster_units();
        for within in self.geometry.units().saturating_sub(guest * units)..units {
            let unit = host * units + within;
            self.put_data_unit(guest * units + within, unit, payload::unit(unit, payload::STALE));
        }
    }

    fn finish(mut self) -> Built {
        let geometry = self.geometry;
        let size = geometry.cluster_size();
        let counted = geometry.block_entries() * self.blocks;
        assert!(self.next <= counted, "of {} clusters {counted} have a refcount", self.next);
        self.put_header();
        for index in 0..self.blocks {
            self.put_u64(REFCOUNT_TABLE * size + index * 8, (FIRST_BLOCK + index) * size);
        }
        for (cluster, count) in std::mem::take(&mut self.refcounts) {
            self.put_refcount(cluster, count);
        }
        self.units.retain(|_, unit| *unit != ZEROES);
        let units: Vec<(u64, Unit)> = self.units.into_iter().collect();
        let used = units.last().map_or(0, |(unit, _)| (unit + 1) * UNIT as u64);
        let length = if self.ends_early { used } else { self.next * size };
        self.data.retain(|_, unit| *unit != ZEROES);
        let data = geometry.data_file.map(|_| BuiltData {
            length: self.data_length,
            units: self.data.into_iter().collect(),
        });
        Built { length, units, guest: self.guest, data }
    }

    fn put_refcount(&mut self, cluster: u64, count: u64) {
        let order = self.geometry.refcount_order;
        // Blocks follow each other in the file, so that their bits do too.
        let bit = cluster << order;
        let at = FIRST_BLOCK * self.geometry.cluster_size() + bit / 8;
        if order <= 3 {
            let unit = self.units.entry(at / UNIT as u64).or_insert(ZEROES);
            unit[(at % UNIT as u64) as usize] |= (count as u8) << (bit % 8);
        } else {
            let width = 1 << (order - 3);
            self.put(at, &count.to_be_bytes()[8 - width..]);
        }
    }

    fn put_header(&mut self) {
        let geometry = self.geometry;
        let size = geometry.cluster_size();
        let l1_entries = u32::try_from(self.l1_entries).expect("limited to 32 MiB");
        self.put(0, b"QFI\xfb");
        self.put(4, &geometry.version.to_be_bytes());
        self.put(20, &geometry.cluster_bits.to_be_bytes());
        self.put_u64(24, geometry.virtual_size);
        self.put(32, &geometry.encryption.map_or(0, Encryption::crypt_method).to_be_bytes());
        self.put(36, &l1_entries.to_be_bytes());
        self.put_u64(40, self.l1 * size);
        self.put_u64(48, REFCOUNT_TABLE * size);
        self.put(56, &1u32.to_be_bytes());
        let mut extensions = match (geometry.has_features(), self.bitmaps) {
            (false, _) => 72,
            (true, None) => 112,
            (true, Some(_)) => 112 + 8 + u64::from(BITMAPS_BYTES),
        };
        if self.ends_early && geometry.has_features() {
            let (kind, data) = FOREIGN_EXTENSION;
            self.put(extensions, &kind.to_be_bytes());
            self.put(extensions + 4, &(data.len() as u32).to_be_bytes());
            self.put(extensions + 8, data);
            extensions += 8 + (data.len() as u64).next_multiple_of(8);
        }
        if geometry.data_file.is_some() {
            self.put(extensions, &EXTENSION_DATA_NAME.to_be_bytes());
            self.put(extensions + 4, &(DATA_NAME.len() as u32).to_be_bytes());
            self.put(extensions + 8, DATA_NAME);
            extensions += 8 + (DATA_NAME.len() as u64).next_multiple_of(8);
        }
        if let Some(first) = self.luks {
            self.put(extensions, &EXTENSION_LUKS.to_be_bytes());
            self.put(extensions + 4, &LUKS_POINTER_BYTES.to_be_bytes());
            self.put_u64(extensions + 8, first * size);
            self.put_u64(extensions + 16, LUKS_BYTES);
            extensions += 8 + u64::from(LUKS_POINTER_BYTES);
        }
        if geometry.below.is_some() {
            self.put(extensions, &EXTENSION_LAYER_FORMAT.to_be_bytes());
            self.put(extensions + 4, &(LAYER_FORMAT.len() as u32).to_be_bytes());
            self.put(extensions + 8, LAYER_FORMAT);
            // Behind the end of the extensions, and in a unit of its own where there is one.
            let name = if size > UNIT as u64 { UNIT as u64 } else { extensions + 24 };
            self.put_u64(8, name);
            self.put(16, &(LAYER_NAME.len() as u32).to_be_bytes());
            self.put(name, LAYER_NAME);
        }
        if !geometry.has_features() {
            return;
        }
        let dirty = if self.dirty { INCOMPATIBLE_DIRTY } else { 0 };
        let extended = if geometry.extended_l2 { INCOMPATIBLE_EXTENDED_L2 } else { 0 };
        let zstd = geometry.compression == Compression::Zstd;
        let compression = if zstd { INCOMPATIBLE_COMPRESSION } else { 0 };
        let data = if geometry.data_file.is_some() { INCOMPATIBLE_DATA_FILE } else { 0 };
        self.put_u64(72, dirty | extended | compression | data);
        self.put(104, &[u8::from(zstd)]);
        let foreign = if self.ends_early { FOREIGN_COMPATIBLE } else { 0 };
        self.put_u64(80, u64::from(geometry.lazy_refcounts) | foreign);
        let raw = geometry.data_file == Some(DataFile::Raw);
        let vouched_for =
            if self.bitmaps.is_some() { AUTOCLEAR_BITMAPS | FOREIGN_AUTOCLEAR } else { 0 };
        self.put_u64(88, vouched_for | if raw { AUTOCLEAR_RAW_DATA } else { 0 });
        if let Some((count, bytes, directory)) = self.bitmaps {
            self.put(112, &EXTENSION_BITMAPS.to_be_bytes());
            self.put(116, &BITMAPS_BYTES.to_be_bytes());
            self.put(120, &count.to_be_bytes());
            self.put_u64(128, bytes);
            self.put_u64(136, directory * size);
        }
        self.put(96, &geometry.refcount_order.to_be_bytes());
        self.put(100, &112u32.to_be_bytes());
    }
}
