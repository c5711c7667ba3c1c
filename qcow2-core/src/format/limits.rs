//! Every limit on a number in an image, with its source.
//!
//! "Specification" is the public qcow2 specification. "QEMU" is what QEMU 10 refuses to open: nothing it can write is
//! refused here. A limit of our own says so.

use std::ops::RangeInclusive;

/// Binary logarithm of the cluster size: 512 bytes to 2 MiB. Specification (at least 9) and QEMU (at most 21).
pub const CLUSTER_BITS: RangeInclusive<u32> = 9..=21;

/// Smallest `cluster_bits` with extended L2 entries: 32 subclusters of at least 512 bytes. Specification.
pub const EXTENDED_L2_CLUSTER_BITS_MIN: u32 = 14;

/// Length of the header of a version 2 image; its extensions begin here. Specification.
pub const HEADER_BYTES_V2: u32 = 72;

/// Shortest header of a version 3 image: it ends before `compression_type`. Specification.
pub const HEADER_BYTES_V3_MIN: u32 = 104;

/// Length of the header with every field known today, and of every version 3 header created here. Specification.
pub const HEADER_BYTES: u32 = 112;

/// Bytes at the front of the file that are written in one atomic piece. Every header change after creation has to fit
/// in here. Our own: the unit of the storage contract.
pub const HEADER_SECTOR_BYTES: u32 = 512;

/// Longest backing file name. Specification.
pub const BACKING_NAME_BYTES: u32 = 1023;

/// Longest name of the backing file's format. QEMU.
pub const BACKING_FORMAT_BYTES: u32 = 15;

/// Largest L1 table, active or of a snapshot. QEMU.
pub const L1_TABLE_BYTES: u64 = 32 << 20;

/// Largest refcount table. QEMU.
pub const REFCOUNT_TABLE_BYTES: u64 = 8 << 20;

/// Binary logarithm of the widest refcount, 64 bits. Specification.
pub const REFCOUNT_ORDER: u32 = 6;

/// Refcount order of every version 2 image. Specification.
pub const REFCOUNT_ORDER_V2: u32 = 4;

/// Most internal snapshots. QEMU.
pub const SNAPSHOTS: u32 = 65_536;

/// Shortest entry of the snapshot table. Specification.
pub const SNAPSHOT_ENTRY_BYTES_MIN: u64 = 40;

/// Most persistent bitmaps. QEMU.
pub const BITMAPS: u32 = 65_535;

/// Largest bitmap directory. QEMU.
pub const BITMAP_DIRECTORY_BYTES: u64 = 64 << 20;

/// First offset of the file that no table entry can express: entries carry bits 9 to 55. Specification, for L1 and L2
/// entries; our own for the offsets in the header and in the refcount table, which have room for more.
pub const HOST_OFFSET_END: u64 = 1 << 56;

/// How far past its end a repair makes a file reach what is referred to there. Our own: it costs nothing where nothing is written,
/// and an entry that points further was hardly ever right.
pub const COVERED_PAST_END: u64 = 64 << 20;

/// Runs of clusters past the end of the file whose references a check counts, some 64 MiB of memory. Our own: a file that was cut short
/// has a few, and one with more was made to have them.
pub const RUNS_PAST_END: usize = 1 << 20;

/// Unit of the virtual size; a size that is no multiple is rounded down. QEMU.
pub const SIZE_UNIT: u64 = 512;

/// Bytes per cluster.
///
/// # Panics
/// If `cluster_bits` is outside [`CLUSTER_BITS`], which no parsed header is.
pub const fn cluster_size(cluster_bits: u32) -> u64 {
    assert!(*CLUSTER_BITS.start() <= cluster_bits && cluster_bits <= *CLUSTER_BITS.end());
    1u64.wrapping_shl(cluster_bits)
}

/// Entries in one L2 table.
///
/// # Panics
/// If `cluster_bits` is outside [`CLUSTER_BITS`].
pub const fn l2_entries(cluster_bits: u32, extended: bool) -> u64 {
    if extended { cluster_size(cluster_bits) / 16 } else { cluster_size(cluster_bits) / 8 }
}

/// Guest bytes that one L2 table, which is one L1 entry, maps.
///
/// # Panics
/// If `cluster_bits` is outside [`CLUSTER_BITS`].
pub const fn l2_coverage(cluster_bits: u32, extended: bool) -> u64 {
    // At most 2^21 * 2^18.
    cluster_size(cluster_bits).wrapping_mul(l2_entries(cluster_bits, extended))
}

/// Largest virtual size: what the largest L1 table maps. 128 GiB with clusters of 512 bytes, 2 EiB with 2 MiB.
///
/// # Panics
/// If `cluster_bits` is outside [`CLUSTER_BITS`].
pub const fn virtual_size(cluster_bits: u32, extended: bool) -> u64 {
    // At most 2^39 * 2^22.
    l2_coverage(cluster_bits, extended).wrapping_mul(L1_TABLE_BYTES / 8)
}

const _: () = assert!(virtual_size(9, false) == 128 << 30);
const _: () = assert!(virtual_size(16, false) == 2 << 50);
const _: () = assert!(virtual_size(21, false) == 2 << 60);
const _: () = assert!(virtual_size(21, true) == 1 << 60);
const _: () = assert!(L1_TABLE_BYTES.is_multiple_of(cluster_size(*CLUSTER_BITS.end())));
const _: () = assert!(REFCOUNT_TABLE_BYTES.is_multiple_of(cluster_size(*CLUSTER_BITS.end())));

/// Most bytes of refcount blocks that a repair writes anew, unless the file is longer than that. Our own: each reference far past the
/// end of the file needs a block of its own, and eight bytes must not make it write a cluster without bound.
pub const REBUILT_BYTES: u64 = 64 << 20;

/// Most layers below an image that are opened: a chain that has no end is refused, whoever opens its layers.
pub const LAYERS: usize = 200;

/// Most bytes of a LUKS header with its key slots, which QEMU makes some 2 MiB long. Our own: each of its clusters is counted by a check.
pub const LUKS_BYTES: u64 = 64 << 20;
