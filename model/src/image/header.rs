//! The header as the judge reads it: every fault becomes a finding.

use std::cell::Cell;

use super::bytes::{UNIT_BYTES, be8, be32, be64};
use crate::finding::Finding;
use crate::op::{Compression, EXTENDED_CLUSTER_BITS, Encryption};
use crate::payload::Unit;

/// Largest L1 table in bytes.
pub const MAX_L1_BYTES: u64 = 32 << 20;
/// Largest refcount table in bytes.
pub const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;
/// Longest name of a backing file.
pub const MAX_BACKING_NAME: u32 = 1023;
const MAGIC: u32 = u32::from_be_bytes(*b"QFI\xfb");
/// Incompatible feature: refcounts may be wrong.
pub const INCOMPATIBLE_DIRTY: u64 = 1;
/// Incompatible feature: the image is known to be damaged.
pub const INCOMPATIBLE_CORRUPT: u64 = 1 << 1;
/// Incompatible feature: guest data is in a data file.
pub const INCOMPATIBLE_DATA_FILE: u64 = 1 << 2;
/// Incompatible feature: clusters are compressed with something else than deflate.
pub const INCOMPATIBLE_COMPRESSION: u64 = 1 << 3;
/// Incompatible feature: L2 entries have 16 bytes and speak of subclusters.
pub const INCOMPATIBLE_EXTENDED_L2: u64 = 1 << 4;
const INCOMPATIBLE_KNOWN: u64 = 0x1f;
/// Autoclear feature: the bitmaps extension agrees with the image.
pub const AUTOCLEAR_BITMAPS: u64 = 1;
/// Autoclear feature: the data file by itself reads as the disk.
pub const AUTOCLEAR_RAW_DATA: u64 = 1 << 1;
/// Autoclear features that nobody knows.
pub const AUTOCLEAR_UNKNOWN: u64 = !(AUTOCLEAR_BITMAPS | AUTOCLEAR_RAW_DATA);

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
    /// 0 if guest data is not encrypted, 1 AES, 2 LUKS.
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
    /// Where the data file begins, of an image with one: its bytes follow those of the image in the evidence. In no header by itself.
    pub(crate) data_at: Option<u64>,
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
            data_at: None,
        };
        let compression_type = if header.header_length > 104 { be8(unit, 104) } else { 0 };
        let header = Self { compression_type, ..header };
        header.find_faults(be32(unit, 0), findings).then_some(header)
    }

    /// Whether it names a layer below. A place for a name without a name is none.
    pub fn has_layer(&self) -> bool {
        self.backing_file_offset != 0 && self.backing_file_size != 0
    }

    /// Whether guest data is in a data file.
    pub fn has_data_file(&self) -> bool {
        self.incompatible_features & INCOMPATIBLE_DATA_FILE != 0
    }

    /// Whether that is the disk even without the image.
    pub fn has_raw_data(&self) -> bool {
        self.has_data_file() && self.autoclear_features & AUTOCLEAR_RAW_DATA != 0
    }

    /// How guest data is enciphered, if it is.
    pub const fn encryption(&self) -> Option<Encryption> {
        match self.crypt_method {
            1 => Some(Encryption::Aes),
            2 => Some(Encryption::Luks),
            _ => None,
        }
    }

    /// Bytes in a cluster.
    pub fn cluster_size(&self) -> u64 {
        1u64.wrapping_shl(self.cluster_bits)
    }

    /// Units in a cluster.
    pub(super) fn cluster_units(&self) -> u64 {
        self.cluster_size().checked_div(UNIT_BYTES).unwrap_or(0)
    }

    /// Whether the dirty bit is set.
    pub fn is_dirty(&self) -> bool {
        self.incompatible_features & INCOMPATIBLE_DIRTY != 0
    }

    /// Whether L2 entries are extended: 16 bytes, the second half of which is a bitmap of 32 subclusters.
    #[inline]
    pub fn has_extended_l2(&self) -> bool {
        self.incompatible_features & INCOMPATIBLE_EXTENDED_L2 != 0
    }

    /// Entries in an L2 table.
    pub fn l2_entries(&self) -> u64 {
        self.cluster_size() >> if self.has_extended_l2() { 4 } else { 3 }
    }

    /// What compressed clusters are compressed with.
    pub(crate) const fn compression(&self) -> Compression {
        if self.compression_type == 1 { Compression::Zstd } else { Compression::Deflate }
    }

    /// The largest refcount that can be stored.
    pub const fn refcount_max(&self) -> u64 {
        u64::MAX.wrapping_shr(64u32.wrapping_sub(1u32.wrapping_shl(self.refcount_order)))
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
        fault(
            !self.has_extended_l2() || bits >= EXTENDED_CLUSTER_BITS,
            true,
            "cluster_bits",
            20,
            bits.into(),
            "is below 14, with extended L2 entries",
        );
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

        // Nobody knows then what the guest reads.
        let method = self.crypt_method;
        fault(method <= 2, true, "crypt_method", 32, method.into(), "is unknown");
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

        let lone = !(self.has_raw_data() && self.has_layer());
        let bits = self.autoclear_features;
        fault(lone, false, "autoclear_features", 88, bits, "say raw data, over a layer below");

        let mut unsupported = |supported: bool, what, value| {
            if !supported {
                findings.push(Finding::Unsupported { what, value });
            }
        };
        let lacks = |feature: u64| self.incompatible_features & feature == 0;
        unsupported(self.nb_snapshots == 0, "internal snapshots", self.nb_snapshots.into());

        if self.is_dirty() {
            findings.push(Finding::Dirty);
        }
        if !lacks(INCOMPATIBLE_CORRUPT) {
            findings.push(Finding::Corrupt);
        }
        usable.get()
    }
}
