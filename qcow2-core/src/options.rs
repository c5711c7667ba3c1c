//! How an image is created and opened.

use crate::format::header::CompressionType;
use crate::rule::Rules;

/// Methods that give the same options with one of them changed.
macro_rules! setters {
    ($($(#[$doc:meta])+ $field:ident: $Type:ty $(as $wrap:ident)?,)+) => {
        $(
            $(#[$doc])+
            #[must_use]
            pub const fn $field(mut self, $field: $Type) -> Self {
                self.$field = $($wrap)?($field);
                self
            }
        )+
    };
}

/// How much of a guest cluster's place in the file is there before its data is. QEMU's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Preallocation {
    /// Nothing: a host cluster is taken when something is written.
    #[default]
    Off,
    /// It has a host cluster, so that a write changes no count, and no L2 entry but the bits of subclusters. A file stays sparse there.
    Metadata,
    /// Its space is asked for besides: zeroed by the storage, which a file does by reserving it (`fallocate`).
    Falloc,
    /// Zeroes are written there.
    Full,
}

/// What a cluster must not be besides, whatever an entry or a refcount says, before the guest's data go there or it is taken for free: in a
/// damaged image it may be a table, and writing there would make the damage worse. In a sound one nothing is ever found.
///
/// QEMU's `overlap-check`, whose `cached` looks at the tables that happen to be in memory. Here all are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overlap {
    /// Not looked at.
    None,
    /// The header, the L1 table and the refcount table.
    Constant,
    /// Every L2 table and refcount block besides; nor is an L2 table changed to which two L1 entries lead. Before the first change of an image its L1 table and its refcount table are read for
    /// that, and 8 bytes are kept for each table.
    #[default]
    All,
}

/// How to create an image.
///
/// ```
/// let options = qcow2_core::CreateOptions::new(1 << 30).cluster_bits(12).lazy_refcounts(true);
/// assert_eq!((options.virtual_size, options.cluster_bits), (1 << 30, 12));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CreateOptions {
    /// Version of the format: 3, or 2 for programs that know no other. Version 2 has no lazy refcounts, and refcounts of 16 bits.
    pub version: u32,
    /// log2 of the cluster size: 9 (512 bytes) to 21 (2 MiB).
    pub cluster_bits: u32,
    /// Size of the guest disk in bytes, a multiple of 512.
    pub virtual_size: u64,
    /// Bits of a refcount: a power of two from 1 to 64. A cluster can be shared at most 2^bits - 1 times, so with 1 bit there can be
    /// no snapshots.
    pub refcount_bits: u32,
    /// Whether writers may leave refcounts behind, marking the image dirty, by default.
    pub lazy_refcounts: bool,
    /// Whether L2 entries have 16 bytes, and guest clusters 32 subclusters: a small write to a large cluster then fills up no more than its
    /// subclusters. Needs version 3 and clusters of 16 KiB.
    pub extended_l2: bool,
    /// The compression of clusters that [`Image::write_compressed`](crate::Image::write_compressed) writes. Another one than deflate needs version 3, and readers of at least QEMU 5.1.
    pub compression: CompressionType,
    /// How much of the guest disk's space is taken at once. Over a layer it needs extended L2 entries: a standard one that has a cluster
    /// shows what that holds, and not the layer.
    pub preallocation: Preallocation,
    /// The write orders to obey.
    pub rules: Rules,
}

impl CreateOptions {
    /// 64 KiB clusters, eager refcounts of 16 bits, all rules.
    pub const fn new(virtual_size: u64) -> Self {
        Self {
            version: 3,
            cluster_bits: 16,
            virtual_size,
            refcount_bits: 16,
            lazy_refcounts: false,
            extended_l2: false,
            compression: CompressionType::Deflate,
            preallocation: Preallocation::Off,
            rules: Rules::all(),
        }
    }

    setters! {
        /// Another version of the format.
        version: u32,
        /// Clusters of 2^`cluster_bits` bytes.
        cluster_bits: u32,
        /// A guest disk of this many bytes.
        virtual_size: u64,
        /// Refcounts of so many bits.
        refcount_bits: u32,
        /// Whether the image asks its writers for lazy refcounts.
        lazy_refcounts: bool,
        /// Whether guest clusters have subclusters.
        extended_l2: bool,
        /// Clusters are compressed with this.
        compression: CompressionType,
        /// So much of the guest disk's space is taken at once.
        preallocation: Preallocation,
        /// These write orders.
        rules: Rules,
    }
}

/// How to open an image.
///
/// ```
/// let options = qcow2_core::OpenOptions::new().lazy_refcounts(true).growth(1 << 20);
/// assert!(options.writable && options.growth == Some(1 << 20));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenOptions {
    /// Whether the image may change. A dirty image is repaired first.
    pub writable: bool,
    /// Lazy refcounts on or off, or as the image's own compatible bit says. They need version 3.
    pub lazy_refcounts: Option<bool>,
    /// Every write, zeroing and discard is durable when it returns.
    pub write_through: bool,
    /// Whether the host space of discarded clusters is given back to the storage.
    pub pass_discard: bool,
    /// Whether what [`Image::read`](crate::Image::read) reads from the layer below is copied into the image, as far as there is room: for a
    /// layer that is slow, or soon gone. Needs a writable image.
    pub copy_on_read: bool,
    /// What is looked at before a cluster is written to or taken.
    pub overlap: Overlap,
    /// Metadata pages kept in memory at most; but some 34 are kept whatever this says, and more only where reads go on while none
    /// can be written.
    ///
    /// Without a number it follows the image: enough for the L2 tables of the whole disk and what counts them, from 4 MiB to 32 MiB.
    pub cache_pages: Option<usize>,
    /// Bytes of a metadata page: a power of two from 512 to 64 KiB; at most a cluster is used.
    pub page_size: u64,
    /// The file grows in steps of this many bytes (rounded up to clusters), and by another one when half of the last is used: so the
    /// order "length before reference" costs a flush only where more than that is allocated without one. With 0 it grows by what is
    /// needed.
    ///
    /// Without a number a step is an eighth of the file, from 4 MiB to 1 GiB.
    pub growth: Option<u64>,
    /// The write orders to obey.
    pub rules: Rules,
}

impl OpenOptions {
    /// Writable, as the image says, with 4 KiB pages; their number and the growth of the file follow the image.
    pub const fn new() -> Self {
        Self {
            writable: true,
            lazy_refcounts: None,
            write_through: false,
            pass_discard: true,
            copy_on_read: false,
            overlap: Overlap::All,
            cache_pages: None,
            page_size: 4096,
            growth: None,
            rules: Rules::all(),
        }
    }

    /// The same, read-only.
    pub const fn read_only() -> Self {
        Self { writable: false, ..Self::new() }
    }

    setters! {
        /// Whether the image may change.
        writable: bool,
        /// Lazy refcounts on or off, whatever the image says.
        lazy_refcounts: bool as Some,
        /// Whether every write, zeroing and discard is durable when it returns.
        write_through: bool,
        /// Whether the host space of discarded clusters is given back to the storage.
        pass_discard: bool,
        /// Whether what is read from the layer below is copied into the image.
        copy_on_read: bool,
        /// So much is looked at before a cluster is written to or taken.
        overlap: Overlap,
        /// At most so many metadata pages in memory.
        cache_pages: usize as Some,
        /// Metadata pages of this many bytes.
        page_size: u64,
        /// The file grows by this many bytes.
        growth: u64 as Some,
        /// These write orders.
        rules: Rules,
    }
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// What a check may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Repair {
    /// Nothing.
    None,
    /// Refcounts that are too high, and the dirty and the corrupt bit if nothing else was wrong.
    Leaks,
    /// Refcounts, the COPIED bits, the dirty and the corrupt bit; refcount structures that are damaged are rebuilt. A file that
    /// is a little shorter than its references say is made longer.
    All,
    /// The same, and the refcount structures are rebuilt in any case.
    Rebuild,
    /// As [`Repair::All`], and entries that point past the end of the file become zeroes, which is what they read as: for an image
    /// that was cut short and whose end will not come back.
    ZeroPastEnd,
}
