//! Entries of the three tables: L1, L2 and refcount table.
//!
//! Each is one big-endian `u64`. The invariant: **decoding accepts exactly what encoding can make**, plus what the
//! specification allows other programs to write; a misaligned offset or a reserved bit that is set is an error that
//! names the table, the byte offset of the entry and its value.
//!
//! ```text
//!   bit             63      62         61..56     55..9                 8..1       0
//!   L1              copied  reserved   reserved   offset of L2 table    reserved   reserved
//!   L2, standard    copied  0          reserved   offset of the data    reserved   reads as zeroes (version 3)
//!   L2, compressed  copied* 1          sectors (61..x), byte offset of the stream (x-1..0), x = 70 - cluster_bits
//!   refcount table  offset of the refcount block (63..9)                reserved   reserved
//!
//!                   63..32                           31..0
//!   L2, extended    subcluster reads as zeroes       subcluster is in the host cluster         the second half of its 16 bytes
//! ```
//!
//! In an image with extended entries the first half is as above, without the bit that reads as zeroes. A guest cluster has 32
//! subclusters, the first of which has the lowest bit of each kind; with neither bit it reads as the layer below.
//!
//! An offset of zero means that there is nothing. *copied* says that the refcount of what the entry points to is exactly
//! one; it is never right on a compressed entry (*). The offset of a compressed stream is in bytes and unaligned.
//! *sectors* counts the 512-byte sectors that the stream touches after its first one.

use super::limits::{self, HOST_OFFSET_END};

/// Refcount exactly one: may be written in place.
const COPIED: u64 = 1 << 63;
/// An L2 entry that describes a compressed stream.
const COMPRESSED: u64 = 1 << 62;
/// A standard L2 entry that reads as zeroes.
const ZERO: u64 = 1;
/// Offset in an L1 entry or a standard L2 entry.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of an L1 entry that must be zero.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
/// Bits of a standard L2 entry that must be zero.
const L2_RESERVED: u64 = 0x3f00_0000_0000_01fe;
/// Offset in an entry of the refcount table.
const REFCOUNT_TABLE_OFFSET: u64 = !REFCOUNT_TABLE_RESERVED;
/// Bits of an entry of the refcount table that must be zero.
const REFCOUNT_TABLE_RESERVED: u64 = 0x1ff;

const _: () = assert!(COPIED | OFFSET | L1_RESERVED == u64::MAX);
const _: () = assert!(COPIED | COMPRESSED | OFFSET | L2_RESERVED | ZERO == u64::MAX);
const _: () = assert!(COPIED & OFFSET == 0 && OFFSET & L1_RESERVED == 0);
const _: () = assert!(OFFSET & L2_RESERVED == 0 && OFFSET < HOST_OFFSET_END);

/// Bytes per sector in the length of a compressed stream, whatever the storage uses.
const SECTOR: u64 = 512;

/// A table whose entries are decoded here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// Points to L2 tables.
    L1,
    /// Points to guest data.
    L2,
    /// Points to refcount blocks.
    Refcount,
}

/// An entry that points nowhere sensible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} entry at byte {at:#x}: {value:#018x} {problem}", match .table {
    Table::L1 => "L1 table",
    Table::L2 => "L2 table",
    Table::Refcount => "refcount table",
})]
pub struct EntryError {
    /// The table that the entry is in.
    pub table: Table,
    /// Where the entry is in the file.
    pub at: u64,
    /// The whole entry.
    pub value: u64,
    /// What is wrong with it.
    pub problem: EntryProblem,
}

/// What is wrong with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryProblem {
    /// These bits must be zero.
    #[error("has the reserved bits {0:#x} set")]
    Reserved(u64),
    /// The offset is not on a cluster boundary.
    #[error("points to {0:#x}, which is not the start of a cluster")]
    Misaligned(u64),
    /// The offset is at or past [`limits::HOST_OFFSET_END`].
    #[error("points to {0:#x}, past the largest file offset")]
    TooFar(u64),
    /// A cluster that reads as zeroes in a version 2 image, which has none.
    #[error("reads as zeroes, which needs version 3")]
    ZeroInVersion2,
    /// Subclusters that read as zeroes and are in the host cluster.
    #[error("has subclusters that read as zeroes and have data: {0:#010x}")]
    ZeroAndData(u32),
    /// Subclusters that are in the host cluster, and there is none.
    #[error("has subclusters with data and no cluster: {0:#010x}")]
    DataNowhere(u32),
    /// A compressed cluster, which has no subclusters, with a bitmap of them.
    #[error("is compressed and has the subcluster bitmap {0:#018x}")]
    BitmapOfCompressed(u64),
    /// A compressed cluster in an image with an external data file, which holds none.
    #[error("is compressed, and the image has an external data file")]
    CompressedInDataFile,
    /// In an external data file each guest cluster lies at its own guest offset.
    #[error(
        "points to {host:#x} of the external data file, and the guest cluster begins at {guest:#x}"
    )]
    NotItsPlace {
        /// The offset in the entry.
        host: u64,
        /// The guest offset at which the guest cluster begins.
        guest: u64,
    },
}

/// What the subclusters of a guest cluster are, bit i of each for subcluster i. No bit is set in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subclusters {
    /// In the host cluster.
    pub data: u32,
    /// Reads as zeroes.
    pub zero: u32,
}

impl Subclusters {
    /// How many a guest cluster has.
    pub const COUNT: u64 = 32;

    /// The second half of an extended entry.
    pub const fn bitmap(self) -> u64 {
        (self.zero as u64) << 32 | self.data as u64
    }

    const fn of_bitmap(bitmap: u64) -> Self {
        Self { data: bitmap as u32, zero: (bitmap >> 32) as u32 }
    }
}

/// What an L1 entry points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableHost {
    /// Where the L2 table is.
    pub host: u64,
    /// Whether its refcount is said to be exactly one.
    pub copied: bool,
}

/// What an L2 entry says about one guest cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Reads from the backing file or, without one, as zeroes.
    Unallocated,
    /// Reads as zeroes and owns nothing.
    ZeroPlain,
    /// Reads as zeroes and owns a cluster, whose content nobody reads.
    ZeroAllocated {
        /// Where the cluster is.
        host: u64,
        /// Whether its refcount is said to be exactly one.
        copied: bool,
    },
    /// Reads from a cluster of the image.
    Data {
        /// Where the cluster is.
        host: u64,
        /// Whether its refcount is said to be exactly one.
        copied: bool,
    },
    /// Is the output of a compressed stream.
    Compressed {
        /// First byte of the stream.
        offset: u64,
        /// Upper bound of its length: it ends somewhere in the last of these bytes' sector.
        length: u64,
        /// Whether the copied bit is set, which on a compressed entry is wrong but harmless.
        copied: bool,
    },
    /// Is of several kinds, or keeps a cluster of which nothing is read: only extended entries say so.
    Mixed {
        /// Where the cluster is; 0 if there is none.
        host: u64,
        /// Whether its refcount is said to be exactly one.
        copied: bool,
        /// What each subcluster is.
        of: Subclusters,
    },
}

impl Mapping {
    /// A guest cluster with these subclusters, and a host cluster unless `host` is 0.
    pub const fn with_subclusters(host: u64, copied: bool, of: Subclusters) -> Self {
        match (host, of) {
            (0, Subclusters { data: 0, zero: 0 }) => Self::Unallocated,
            (0, Subclusters { data: 0, zero: u32::MAX }) => Self::ZeroPlain,
            (1.., Subclusters { data: 0, zero: u32::MAX }) => Self::ZeroAllocated { host, copied },
            (1.., Subclusters { data: u32::MAX, zero: 0 }) => Self::Data { host, copied },
            _ => Self::Mixed { host, copied, of },
        }
    }

    /// The host cluster, whether it is said to have a refcount of exactly one, and what each subcluster is; none if it is compressed.
    pub const fn subclusters(self) -> Option<(u64, bool, Subclusters)> {
        Some(match self {
            Self::Unallocated => (0, false, Subclusters { data: 0, zero: 0 }),
            Self::ZeroPlain => (0, false, Subclusters { data: 0, zero: u32::MAX }),
            Self::ZeroAllocated { host, copied } => {
                (host, copied, Subclusters { data: 0, zero: u32::MAX })
            }
            Self::Data { host, copied } => (host, copied, Subclusters { data: u32::MAX, zero: 0 }),
            Self::Mixed { host, copied, of } => (host, copied, of),
            Self::Compressed { .. } => return None,
        })
    }

    /// Where the host cluster is, if it has one of its own.
    pub const fn host(self) -> Option<u64> {
        match self {
            Self::Unallocated
            | Self::ZeroPlain
            | Self::Compressed { .. }
            | Self::Mixed { host: 0, .. } => None,
            Self::ZeroAllocated { host, .. }
            | Self::Data { host, .. }
            | Self::Mixed { host, .. } => Some(host),
        }
    }
}

/// An entry of an L1 table as it is on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L1Entry(pub u64);

impl L1Entry {
    /// No L2 table: everything that it would map is unallocated.
    pub const UNALLOCATED: Self = Self(0);

    /// Points to the L2 table at `host`.
    ///
    /// # Panics
    /// If `host` is zero or no offset that an entry can hold.
    pub const fn new(host: u64, copied: bool) -> Self {
        Self(standard(host, copied))
    }

    /// The copied bit.
    pub const fn copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// The offset, unchecked; zero if there is no L2 table.
    pub const fn host(self) -> u64 {
        self.0 & OFFSET
    }

    /// The same entry with or without the copied bit.
    #[must_use]
    pub const fn with_copied(self, copied: bool) -> Self {
        Self(set_copied(self.0, copied))
    }

    /// What it points to, if anything. `at` is where the entry is in the file.
    ///
    /// # Errors
    /// [`EntryError`] with the place and the value, if reserved bits are set or the table is at no multiple of a cluster.
    pub fn decode(self, cluster_bits: u32, at: u64) -> Result<Option<TableHost>, EntryError> {
        let bad = |problem| EntryError { table: Table::L1, at, value: self.0, problem };
        reserved(self.0, L1_RESERVED).map_err(bad)?;
        let host = aligned(self.host(), cluster_bits).map_err(bad)?;
        Ok((host != 0).then_some(TableHost { host, copied: self.copied() }))
    }
}

/// An entry of an L2 table as it is on disk: the whole of a standard entry, the first half of an extended one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L2Entry(pub u64);

impl L2Entry {
    /// Nothing here: [`Mapping::Unallocated`].
    pub const UNALLOCATED: Self = Self(0);

    /// Zeroes without a cluster: [`Mapping::ZeroPlain`]. Version 3 only.
    pub const ZERO_PLAIN: Self = Self(ZERO);

    /// Data at `host`: [`Mapping::Data`].
    ///
    /// # Panics
    /// If `host` is zero or no offset that an entry can hold.
    pub const fn data(host: u64, copied: bool) -> Self {
        Self(standard(host, copied))
    }

    /// Zeroes that own the cluster at `host`: [`Mapping::ZeroAllocated`]. Version 3 only.
    ///
    /// # Panics
    /// If `host` is zero or no offset that an entry can hold.
    pub const fn zero_allocated(host: u64, copied: bool) -> Self {
        Self(standard(host, copied) | ZERO)
    }

    /// A compressed stream of `length` bytes at `offset`: [`Mapping::Compressed`]. None if a descriptor cannot express
    /// it: the stream is empty, touches more sectors than a cluster has, or is too far up in the file.
    pub fn compressed(offset: u64, length: u64, cluster_bits: u32) -> Option<Self> {
        let last = offset.checked_add(length.checked_sub(1)?)?;
        let sectors = (last / SECTOR).checked_sub(offset / SECTOR)?;
        let fields = CompressedFields::new(cluster_bits);
        let fits = last < HOST_OFFSET_END && offset <= fields.offset && sectors <= fields.sectors;
        fits.then(|| Self(COMPRESSED | sectors.wrapping_shl(fields.shift) | offset))
    }

    /// The copied bit.
    pub const fn copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// Whether it describes a compressed stream.
    pub const fn is_compressed(self) -> bool {
        self.0 & COMPRESSED != 0
    }

    /// The offset of a standard entry, unchecked; meaningless for a compressed one.
    pub const fn host(self) -> u64 {
        self.0 & OFFSET
    }

    /// The same entry with or without the copied bit.
    #[must_use]
    pub const fn with_copied(self, copied: bool) -> Self {
        Self(set_copied(self.0, copied))
    }

    /// The extended entry that says this, in its two halves; none for a compressed cluster.
    ///
    /// # Panics
    /// If a host cluster is at no offset that an entry can hold.
    pub const fn extended(mapping: Mapping) -> Option<(Self, u64)> {
        let Some((host, copied, of)) = mapping.subclusters() else { return None };
        let first = if host == 0 { 0 } else { standard(host, copied) };
        Some((Self(first), of.bitmap()))
    }

    /// What an extended entry says whose second half is `bitmap`. `at` is where the entry is in the file.
    ///
    /// # Errors
    /// [`EntryError`] with the place and the value, if the entry has what no extended entry may have: reserved bits, an offset that is not
    /// aligned, a subcluster that is data and zeroes, or data at no host cluster.
    pub fn decode_extended(
        self,
        bitmap: u64,
        cluster_bits: u32,
        at: u64,
    ) -> Result<Mapping, EntryError> {
        let bad = |problem| EntryError { table: Table::L2, at, value: self.0, problem };
        let of = Subclusters::of_bitmap(bitmap);
        // Of such entries version 3 is the lowest.
        let (host, copied) = match self.decode(cluster_bits, 3, at)? {
            Mapping::Compressed { .. } if bitmap != 0 => {
                return Err(bad(EntryProblem::BitmapOfCompressed(bitmap)));
            }
            compressed @ Mapping::Compressed { .. } => return Ok(compressed),
            Mapping::ZeroPlain | Mapping::ZeroAllocated { .. } => {
                return Err(bad(EntryProblem::Reserved(ZERO)));
            }
            mapping => (mapping.host().unwrap_or(0), self.copied()),
        };
        match of.data & of.zero {
            0 => {}
            both => return Err(bad(EntryProblem::ZeroAndData(both))),
        }
        if host == 0 && of.data != 0 {
            return Err(bad(EntryProblem::DataNowhere(of.data)));
        }
        Ok(Mapping::with_subclusters(host, copied, of))
    }

    /// What the entry of the guest cluster that begins at guest offset `guest` says in an image with an external data file, where that
    /// is the offset of its data too; `place` is what the mapping is to call it, which is not 0. `bitmap` is the second half of an extended
    /// entry. `at` is where the entry is in the file.
    ///
    /// Offset 0 is a place there, if the copied bit is set. Whether it is set says nothing else: nothing in a data file is shared.
    ///
    /// # Errors
    /// [`EntryError`] as [`decode`](Self::decode) and [`decode_extended`](Self::decode_extended); also if it points to another place, or is
    /// compressed.
    pub fn decode_in_data_file(
        self,
        bitmap: Option<u64>,
        cluster_bits: u32,
        guest: u64,
        place: u64,
        at: u64,
    ) -> Result<Mapping, EntryError> {
        let bad = |problem| EntryError { table: Table::L2, at, value: self.0, problem };
        if self.is_compressed() {
            return Err(bad(EntryProblem::CompressedInDataFile));
        }
        let never = if bitmap.is_some() { L2_RESERVED | ZERO } else { L2_RESERVED };
        reserved(self.0, never).map_err(bad)?;
        let host = aligned(self.host(), cluster_bits).map_err(bad)?;
        let is_there = host != 0 || self.copied();
        if is_there && host != guest {
            return Err(bad(EntryProblem::NotItsPlace { host, guest }));
        }
        let of = match bitmap {
            Some(bitmap) => Subclusters::of_bitmap(bitmap),
            None if self.0 & ZERO != 0 => Subclusters { data: 0, zero: u32::MAX },
            None if is_there => Subclusters { data: u32::MAX, zero: 0 },
            None => Subclusters::default(),
        };
        match of.data & of.zero {
            0 => {}
            both => return Err(bad(EntryProblem::ZeroAndData(both))),
        }
        if !is_there && of.data != 0 {
            return Err(bad(EntryProblem::DataNowhere(of.data)));
        }
        Ok(Mapping::with_subclusters(if is_there { place } else { 0 }, true, of))
    }

    /// The entry that says this of the guest cluster at guest offset `guest` in an image with an external data file, where it has a place
    /// unless its host is 0; in its two halves, of which a standard entry has the first. None for a compressed cluster, and for what no
    /// entry of its kind can say.
    pub const fn in_data_file(
        mapping: Mapping,
        guest: u64,
        is_extended: bool,
    ) -> Option<(Self, u64)> {
        let Some((host, _, of)) = mapping.subclusters() else { return None };
        let first = if host == 0 { 0 } else { guest | COPIED };
        match of {
            of if is_extended => Some((Self(first), of.bitmap())),
            Subclusters { data: 0, zero: u32::MAX } => Some((Self(first | ZERO), 0)),
            Subclusters { data: u32::MAX, zero: 0 } if host != 0 => Some((Self(first), 0)),
            Subclusters { data: 0, zero: 0 } if host == 0 => Some((Self(first), 0)),
            _ => None,
        }
    }

    /// What a standard entry of an image without external data file says. `at` is where the entry is in the file.
    ///
    /// # Errors
    /// [`EntryError`] with the place and the value, if reserved bits are set or the cluster is at no multiple of a cluster.
    pub fn decode(self, cluster_bits: u32, version: u32, at: u64) -> Result<Mapping, EntryError> {
        let bad = |problem| EntryError { table: Table::L2, at, value: self.0, problem };
        let copied = self.copied();
        if self.is_compressed() {
            let fields = CompressedFields::new(cluster_bits);
            let offset = self.0 & fields.offset;
            reserved(offset, !(OFFSET | (SECTOR - 1))).map_err(bad)?;
            let sectors = self.0.wrapping_shr(fields.shift) & fields.sectors;
            // At most 2^13 sectors, less what lies before the stream in its first one.
            let length = sectors.wrapping_add(1).wrapping_mul(SECTOR).wrapping_sub(offset % SECTOR);
            return Ok(Mapping::Compressed { offset, length, copied });
        }
        reserved(self.0, L2_RESERVED).map_err(bad)?;
        let zero = self.0 & ZERO != 0;
        if zero && version < 3 {
            return Err(bad(EntryProblem::ZeroInVersion2));
        }
        let host = aligned(self.host(), cluster_bits).map_err(bad)?;
        Ok(match (host, zero) {
            (0, false) => Mapping::Unallocated,
            (0, true) => Mapping::ZeroPlain,
            (host, true) => Mapping::ZeroAllocated { host, copied },
            (host, false) => Mapping::Data { host, copied },
        })
    }
}

/// An entry of the refcount table as it is on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefcountTableEntry(pub u64);

impl RefcountTableEntry {
    /// No block: every refcount that it would hold is zero.
    pub const UNALLOCATED: Self = Self(0);

    /// Points to the refcount block at `host`.
    ///
    /// # Panics
    /// If `host` is zero or no offset that an entry can hold.
    pub const fn new(host: u64) -> Self {
        Self(standard(host, false))
    }

    /// The offset, unchecked; zero if there is no block.
    pub const fn host(self) -> u64 {
        self.0 & REFCOUNT_TABLE_OFFSET
    }

    /// Where the block is, if there is one. `at` is where the entry is in the file.
    ///
    /// # Errors
    /// [`EntryError`] with the place and the value, if reserved bits are set, or the block is at no multiple of a cluster or past what an L2
    /// entry could name.
    pub fn decode(self, cluster_bits: u32, at: u64) -> Result<Option<u64>, EntryError> {
        let bad = |problem| EntryError { table: Table::Refcount, at, value: self.0, problem };
        reserved(self.0, REFCOUNT_TABLE_RESERVED).map_err(bad)?;
        let host = aligned(self.host(), cluster_bits).map_err(bad)?;
        if host >= HOST_OFFSET_END {
            return Err(bad(EntryProblem::TooFar(host)));
        }
        Ok((host != 0).then_some(host))
    }
}

/// How a compressed descriptor splits its 62 bits.
struct CompressedFields {
    /// Lowest bit of the sector count.
    shift: u32,
    /// Largest offset, which is also its mask.
    offset: u64,
    /// Largest sector count, which is also its mask once shifted down.
    sectors: u64,
}

impl CompressedFields {
    /// A stream is shorter than a cluster, so `cluster_bits - 8` bits of sectors suffice wherever it begins.
    const fn new(cluster_bits: u32) -> Self {
        let sector_bits = cluster_bits.wrapping_sub(8);
        let shift = 62u32.wrapping_sub(sector_bits);
        Self { shift, offset: ones(shift), sectors: ones(sector_bits) }
    }
}

/// A number of that many one bits.
const fn ones(bits: u32) -> u64 {
    1u64.wrapping_shl(bits).wrapping_sub(1)
}

/// An entry that points to `host`: what would corrupt an image is never encoded.
const fn standard(host: u64, copied: bool) -> u64 {
    assert!(host != 0 && host & !OFFSET == 0, "not an offset that a table entry can hold");
    set_copied(host, copied)
}

const fn set_copied(entry: u64, copied: bool) -> u64 {
    if copied { entry | COPIED } else { entry & !COPIED }
}

const fn reserved(value: u64, mask: u64) -> Result<(), EntryProblem> {
    match value & mask {
        0 => Ok(()),
        bits => Err(EntryProblem::Reserved(bits)),
    }
}

const fn aligned(host: u64, cluster_bits: u32) -> Result<u64, EntryProblem> {
    if host.is_multiple_of(limits::cluster_size(cluster_bits)) {
        Ok(host)
    } else {
        Err(EntryProblem::Misaligned(host))
    }
}

#[cfg(test)]
mod tests {
    use quickcheck::{TestResult, quickcheck};

    use super::*;

    const AT: u64 = 0x30008;

    #[test]
    fn a_compressed_cluster_has_no_subclusters() {
        let entry = L2Entry::compressed(0x12345, 700, 16).expect("it fits");
        assert_eq!(entry.decode_extended(0, 16, AT), entry.decode(16, 3, AT));
        let error = entry.decode_extended(1, 16, AT).expect_err("it has none");
        assert_eq!(error.problem, EntryProblem::BitmapOfCompressed(1));
        assert_eq!(L2Entry::extended(entry.decode(16, 3, AT).expect("it is one")), None);
    }

    fn bits(any: u32) -> u32 {
        9 + any % 13
    }

    /// Some non-zero cluster boundary below 2^56.
    fn host(any: u64, cluster_bits: u32) -> u64 {
        let host = any & (HOST_OFFSET_END - 1) >> cluster_bits << cluster_bits;
        host.max(1 << cluster_bits)
    }

    quickcheck! {
        /// Goal: what is encoded is decoded to the same meaning, in all three tables.
        fn standard_entries_round_trip(any_bits: u32, any_host: u64, copied: bool) -> bool {
            let cluster_bits = bits(any_bits);
            let host = host(any_host, cluster_bits);
            let l2 = |entry: L2Entry| entry.decode(cluster_bits, 3, AT).unwrap();
            L1Entry::new(host, copied).decode(cluster_bits, AT) == Ok(Some(TableHost { host, copied }))
                && RefcountTableEntry::new(host).decode(cluster_bits, AT) == Ok(Some(host))
                && l2(L2Entry::data(host, copied)) == Mapping::Data { host, copied }
                && l2(L2Entry::zero_allocated(host, copied)) == Mapping::ZeroAllocated { host, copied }
                && l2(L2Entry::data(host, !copied).with_copied(copied)) == Mapping::Data { host, copied }
                && L1Entry::new(host, !copied).with_copied(copied) == L1Entry::new(host, copied)
        }

        /// Goal: what an extended entry says is what was encoded, and a bitmap that nothing encodes is refused by what is wrong with it.
        fn extended_entries_round_trip(any_bits: u32, any_host: u64, copied: bool, data: u32, zero: u32) -> bool {
            let cluster_bits = 14 + any_bits % 8;
            let host = host(any_host, cluster_bits);
            let decode = |mapping| {
                let (first, bitmap) = L2Entry::extended(mapping).unwrap();
                first.decode_extended(bitmap, cluster_bits, AT)
            };
            let problem = |first: L2Entry, data: u32, zero: u32| {
                let bitmap = Subclusters { data, zero }.bitmap();
                first.decode_extended(bitmap, cluster_bits, AT).map_err(|error| error.problem)
            };
            let valid = Subclusters { data, zero: zero & !data };
            let mixed = Mapping::with_subclusters(host, copied, valid);
            let zeroes = Mapping::with_subclusters(0, false, Subclusters { data: 0, zero });
            let both = data & zero;
            let first = L2Entry::data(host, copied);
            decode(mixed) == Ok(mixed)
                && mixed.subclusters() == Some((host, copied, valid))
                && mixed.host() == Some(host)
                && decode(zeroes) == Ok(zeroes)
                && zeroes.host().is_none()
                && decode(Mapping::ZeroPlain) == Ok(Mapping::ZeroPlain)
                && (both == 0 || problem(first, data, zero) == Err(EntryProblem::ZeroAndData(both)))
                && (data == 0 || problem(L2Entry(0), data, 0) == Err(EntryProblem::DataNowhere(data)))
                && problem(L2Entry(first.0 | ZERO), data, 0) == Err(EntryProblem::Reserved(ZERO))
        }

        /// Goal: a descriptor covers its stream, less than one sector more, and begins where it begins.
        fn compressed_entries_cover_their_stream(any_bits: u32, offset: u64, length: u64) -> TestResult {
            let cluster_bits = bits(any_bits);
            let offset = offset % HOST_OFFSET_END;
            let length = length % (1 << cluster_bits) + 1;
            let Some(entry) = L2Entry::compressed(offset, length, cluster_bits) else {
                return TestResult::discard();
            };
            let Ok(Mapping::Compressed { offset: from, length: bound, copied: false }) =
                entry.decode(cluster_bits, 3, AT)
            else {
                return TestResult::failed();
            };
            TestResult::from_bool(from == offset && (length..length + SECTOR).contains(&bound))
        }

        /// Goal: whatever is decoded well encodes to the same bits: no bit of an entry is silently ignored.
        fn nothing_is_ignored(any_bits: u32, value: u64, mask: u8) -> TestResult {
            let cluster_bits = bits(any_bits);
            // Sparse values, so that not every one of them is refused.
            let value = match mask % 4 {
                0 => value,
                1 => value & !L2_RESERVED,
                2 => value & !(L2_RESERVED | ones(cluster_bits)),
                _ => value & (COPIED | COMPRESSED | ZERO),
            };
            let again = match L2Entry(value).decode(cluster_bits, 3, AT) {
                Err(_) => return TestResult::discard(),
                // The copied bit of an entry without a cluster says nothing.
                Ok(Mapping::Unallocated) => L2Entry::UNALLOCATED.with_copied(value & COPIED != 0),
                Ok(Mapping::ZeroPlain) => L2Entry::ZERO_PLAIN.with_copied(value & COPIED != 0),
                Ok(Mapping::Data { host, copied }) => L2Entry::data(host, copied),
                Ok(Mapping::ZeroAllocated { host, copied }) => L2Entry::zero_allocated(host, copied),
                Ok(Mapping::Compressed { offset, length, copied }) => {
                    let Some(entry) = L2Entry::compressed(offset, length, cluster_bits) else {
                        return TestResult::from_bool(offset + length > HOST_OFFSET_END);
                    };
                    entry.with_copied(copied)
                }
                Ok(Mapping::Mixed { .. }) => return TestResult::failed(),
            };
            TestResult::from_bool(again.0 == value)
        }
    }

    /// Goal: each reserved bit is refused by name, each other bit is not. Method: every single bit, in each table.
    #[test]
    fn reserved_bits_one_by_one() {
        for bit in 0..64 {
            let value = 1u64 << bit;
            let l1 = L1Entry(value).decode(9, AT);
            let expected = EntryError {
                table: Table::L1,
                at: AT,
                value,
                problem: EntryProblem::Reserved(value),
            };
            assert_eq!(l1.err(), (bit < 9 || (56..63).contains(&bit)).then_some(expected));
            let l2 = L2Entry(value).decode(9, 3, AT);
            let expected = EntryError { table: Table::L2, ..expected };
            assert_eq!(
                l2.err(),
                ((1..9).contains(&bit) || (56..62).contains(&bit)).then_some(expected)
            );
            let table = RefcountTableEntry(value).decode(9, AT);
            assert_eq!(table.is_err(), !(9..56).contains(&bit), "bit {bit}");
        }
        let far = RefcountTableEntry(HOST_OFFSET_END).decode(9, AT).unwrap_err();
        assert_eq!(far.problem, EntryProblem::TooFar(HOST_OFFSET_END));
    }

    #[test]
    fn copied_without_a_cluster_is_nothing() {
        assert_eq!(L1Entry(COPIED).decode(16, AT), Ok(None));
        assert_eq!(L2Entry(COPIED).decode(16, 3, AT), Ok(Mapping::Unallocated));
        assert_eq!(L2Entry(COPIED | ZERO).decode(16, 3, AT), Ok(Mapping::ZeroPlain));
    }

    #[test]
    fn misaligned_offsets_name_table_place_and_value() {
        let error = L2Entry(0x8000_0000_0005_0200).decode(16, 3, AT).unwrap_err();
        assert_eq!(
            error.to_string(),
            "L2 table entry at byte 0x30008: 0x8000000000050200 points to 0x50200, which is not the start of a cluster"
        );
        assert_eq!(
            L2Entry(0x8000_0000_0005_0200).decode(9, 3, AT).ok(),
            Some(Mapping::Data { host: 0x50200, copied: true })
        );
        assert!(L1Entry(0x200).decode(10, AT).is_err());
        assert!(RefcountTableEntry(0x200).decode(10, AT).is_err());
    }

    #[test]
    fn version_2_has_no_zero_clusters() {
        for entry in [L2Entry::ZERO_PLAIN, L2Entry::zero_allocated(1 << 16, true)] {
            assert!(entry.decode(16, 3, AT).is_ok());
            let problem = entry.decode(16, 2, AT).unwrap_err().problem;
            assert_eq!(problem, EntryProblem::ZeroInVersion2);
        }
    }

    /// Goal: the split of a compressed descriptor follows the cluster size. Method: descriptors written out by hand from
    /// the specification's x = 62 - (cluster_bits - 8).
    #[test]
    fn compressed_descriptors_by_hand() {
        let decode = |value, cluster_bits| L2Entry(value).decode(cluster_bits, 3, AT);
        let stream = |offset, length| Ok(Mapping::Compressed { offset, length, copied: false });
        // x = 54: three sectors more, from byte 0x50123.
        assert_eq!(decode(COMPRESSED | 3 << 54 | 0x50123, 16), stream(0x50123, 4 * 512 - 0x123));
        // x = 61: one bit of sectors.
        assert_eq!(decode(COMPRESSED | 1 << 61 | 0x401, 9), stream(0x401, 1023));
        // x = 49: thirteen bits of sectors.
        assert_eq!(decode(COMPRESSED | 0x1fff << 49, 21), stream(0, 8192 * 512));
        // Offset bits from 56 on must be zero where the field has them.
        let problem = decode(COMPRESSED | 1 << 56, 9).unwrap_err().problem;
        assert_eq!(problem, EntryProblem::Reserved(1 << 56));
        assert!(decode(COMPRESSED | 1 << 55, 9).is_ok());
        let copied = Mapping::Compressed { offset: 0x401, length: 511, copied: true };
        assert_eq!(decode(COPIED | COMPRESSED | 0x401, 9), Ok(copied));
    }

    /// Goal: the limits of a compressed descriptor, at and one past.
    #[test]
    fn compressed_limits() {
        let fits = |offset, length, cluster_bits| {
            L2Entry::compressed(offset, length, cluster_bits).is_some()
        };
        assert!(!fits(512, 0, 16));
        assert!(fits(512, 256 * 512, 16) && !fits(512, 256 * 512 + 1, 16));
        assert!(fits(1023, 255 * 512 + 1, 16) && !fits(1023, 255 * 512 + 2, 16));
        assert!(fits((1 << 49) - 1, 1, 21) && !fits(1 << 49, 1, 21));
        assert!(fits(HOST_OFFSET_END - 1, 1, 9) && !fits(HOST_OFFSET_END - 1, 2, 9));
        assert!(!fits(u64::MAX, u64::MAX, 9));
    }

    #[test]
    #[should_panic = "not an offset that a table entry can hold"]
    fn an_offset_with_reserved_bits_is_never_encoded() {
        L2Entry::data(0x10001, false);
    }

    #[test]
    #[should_panic = "not an offset that a table entry can hold"]
    fn an_offset_of_zero_is_never_encoded() {
        L1Entry::new(0, true);
    }
}
