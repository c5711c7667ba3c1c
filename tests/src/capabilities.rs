//! What a subject can do at all. Whatever it cannot is not asked of it, and not counted as covered.
//!
//! ```text
//!   Capabilities ──> a plan of a campaign: its image, and another request in the place of one that is not done   (workload::plan)
//!                ──> an exploration: no letter of its alphabet, and no world, that it cannot                     (explore::run)
//!                ──> recovery and going on: no repair, no map, no disk emptied and filled again
//! ```
//!
//! A capability that is taken away hides every bug of it, so a run says what it did not ask ([`Capabilities::left_out`]).

use model::build::Initial;
use model::op::{Compression, Geometry, Op};

/// What a subject can do. Begin with [`plain`](Self::plain), and change what is otherwise:
///
/// ```
/// # use qcow2_crashtest::capabilities::Capabilities;
/// let mut can = Capabilities::plain();
/// can.discard = false;
/// can.layers = true;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Makes ranges read as zeroes.
    pub zeroes: bool,
    /// Gives clusters back.
    pub discard: bool,
    /// Lets clusters show the layer below again.
    pub uncover: bool,
    /// Makes disks larger.
    pub grow: bool,
    /// Puts refcount blocks, and larger tables, where those that an image has do not suffice. A subject that does not is given images of which the
    /// first refcount block has counts for four times as many clusters as the disk, and no growth. One that adds blocks and moves no table says
    /// that it does, and takes `RefcountTableOneShort` and `FullOfLeaks` out of [`initials`](Self::initials).
    pub grows_tables: bool,
    /// Makes disks smaller.
    pub shrink: bool,
    /// Reads compressed clusters and writes over them. It need not compress what it is asked to write compressed.
    pub compressed: bool,
    /// Opens images whose clusters are compressed with zstd, not with deflate alone.
    pub zstd: bool,
    /// Adds passphrases to encrypted images, and removes them.
    pub passphrases: bool,
    /// Repairs. A subject that does not is given no image that is marked dirty, and [`Subject::repair`](crate::subject::Subject::repair) is not called.
    pub repair: bool,
    /// Says where every part of the disk is.
    pub map: bool,
    /// Goes on when the future of a request is dropped in its middle.
    pub dropped_requests: bool,
    /// Opens images of format version 2.
    pub version_2: bool,
    /// Opens images with lazy refcounts.
    pub lazy_refcounts: bool,
    /// log2 of the smallest and of the largest cluster size that it opens.
    pub cluster_bits: (u32, u32),
    /// log2 of the fewest and of the most bits of a refcount that it opens.
    pub refcount_orders: (u32, u32),
    /// Opens images over a layer, which [`Session::below`](crate::subject::Session::below) describes.
    pub layers: bool,
    /// Opens images with extended L2 entries.
    pub subclusters: bool,
    /// Opens images whose guest data is in an external data file.
    pub data_files: bool,
    /// Opens encrypted images, which [`Session::encrypted`](crate::subject::Session::encrypted) tells, and enciphers what is written to
    /// them.
    pub encryption: bool,
    /// What images may hold at first, besides nothing: some need a refcount block or table that grows, or keep feature bits that nobody
    /// knows.
    pub initials: &'static [Initial],
}

/// Whether the first refcount block of an image has counts for whatever a case makes of it: its tables, and what power cuts leak.
pub(crate) fn is_roomy(geometry: &Geometry) -> bool {
    let counts = (geometry.cluster_size() * 8) >> geometry.refcount_order;
    counts >= 64 && (counts - 64) / 4 >= geometry.clusters()
}

/// Whether an image has hardly a count left.
const fn fills_tables(initial: Initial) -> bool {
    use Initial::{FullOfLeaks, RefcountBlockOneShort, RefcountTableOneShort};
    matches!(initial, FullOfLeaks | RefcountBlockOneShort | RefcountTableOneShort)
}

impl Capabilities {
    /// Reads, writes, zeroes, discards and grows images of every cluster size, version and refcount width in which nothing else is
    /// used; maps and repairs them.
    pub const fn plain() -> Self {
        Self {
            zeroes: true,
            discard: true,
            uncover: false,
            grow: true,
            grows_tables: true,
            shrink: false,
            compressed: false,
            zstd: false,
            passphrases: false,
            repair: true,
            map: true,
            dropped_requests: true,
            version_2: true,
            lazy_refcounts: true,
            cluster_bits: (9, 21),
            refcount_orders: (0, 6),
            layers: false,
            subclusters: false,
            data_files: false,
            encryption: false,
            initials: &Initial::ALL,
        }
    }

    /// All that the harness knows to ask.
    pub const fn everything() -> Self {
        // Field by field, so that the compiler asks for the next one here, too.
        let Self { version_2, lazy_refcounts, cluster_bits, refcount_orders, initials, .. } =
            Self::plain();
        Self {
            zeroes: true,
            discard: true,
            uncover: true,
            grow: true,
            grows_tables: true,
            shrink: true,
            compressed: true,
            zstd: true,
            passphrases: true,
            repair: true,
            map: true,
            dropped_requests: true,
            version_2,
            lazy_refcounts,
            cluster_bits,
            refcount_orders,
            layers: true,
            subclusters: true,
            data_files: true,
            encryption: true,
            initials,
        }
    }

    /// Whether it can be asked for this.
    pub const fn does(&self, op: &Op) -> bool {
        match op {
            Op::WriteZeroes { .. } => self.zeroes,
            Op::Discard { .. } => self.discard,
            Op::Uncover { .. } => self.uncover,
            Op::Grow { .. } => self.grow && self.grows_tables,
            Op::Shrink { .. } => self.shrink,
            Op::WriteCompressed { .. } => self.compressed,
            Op::AddPassphrase { .. } | Op::RemovePassphrase { .. } => self.passphrases,
            Op::Write { .. }
            | Op::Read { .. }
            | Op::Flush
            | Op::Reopen
            | Op::Preallocate { .. } => true,
        }
    }

    /// Why it can be given no such image, if it cannot.
    pub fn refuses(&self, geometry: &Geometry, initial: Initial) -> Option<String> {
        let within = |(least, most): (u32, u32), value| (least..=most).contains(&value);
        let what = match () {
            () if !within(self.cluster_bits, geometry.cluster_bits) => {
                format!("clusters of {} bytes", geometry.cluster_size())
            }
            () if !within(self.refcount_orders, geometry.refcount_order) => {
                format!("refcounts of {} bits", 1u32 << geometry.refcount_order)
            }
            () if geometry.version == 2 && !self.version_2 => "version 2".to_owned(),
            () if geometry.lazy_refcounts && !self.lazy_refcounts => "lazy refcounts".to_owned(),
            () if geometry.compression == Compression::Zstd && !self.zstd => "zstd".to_owned(),
            () if geometry.below.is_some() && !self.layers => "layers".to_owned(),
            () if geometry.extended_l2 && !self.subclusters => "subclusters".to_owned(),
            () if geometry.data_file.is_some() && !self.data_files => "data files".to_owned(),
            () if geometry.encryption.is_some() && !self.encryption => "encryption".to_owned(),
            () if initial.is_dirty(geometry) && !self.repair => {
                return Some("the subject does not repair".to_owned());
            }
            () if !self.grows_tables && !is_roomy(geometry) => {
                "images of which one refcount block is not enough".to_owned()
            }
            () if !self.grows_tables && fills_tables(initial) => {
                format!("images that are {}", initial.name())
            }
            () if initial == Initial::Compressed && !self.compressed => {
                "compressed clusters".to_owned()
            }
            () if initial != Initial::Fresh && !self.initials.contains(&initial) => {
                format!("images that are {}", initial.name())
            }
            () => return None,
        };
        Some(format!("the subject does not open {what}"))
    }

    /// What is asked of others and not of it, a few words each.
    pub fn left_out(&self) -> Vec<String> {
        let parts = [
            (self.zeroes, "zeroes"),
            (self.discard, "discards"),
            (self.uncover, "uncovering a layer"),
            (self.grow && self.grows_tables, "growth"),
            (self.grows_tables, "growth of tables"),
            (self.shrink, "shrinking"),
            (self.compressed, "compressed clusters"),
            (self.zstd, "zstd"),
            (self.passphrases, "changes of passphrases"),
            (self.repair, "repair"),
            (self.map, "the map"),
            (self.dropped_requests, "dropped requests"),
            (self.version_2, "version 2"),
            (self.lazy_refcounts, "lazy refcounts"),
            (self.layers, "layers"),
            (self.subclusters, "subclusters"),
            (self.data_files, "data files"),
            (self.encryption, "encryption"),
        ];
        let all = Self::plain();
        let missing = parts.into_iter().filter(|(can, _)| !can).map(|(_, what)| what.to_owned());
        let narrower = |(least, most): (u32, u32), every, unit: &str| {
            ((least, most) != every).then(|| format!("{unit} but of 2^{least} to 2^{most}"))
        };
        let initials = Initial::ALL.into_iter().filter(|initial| !self.initials.contains(initial));
        missing
            .chain(narrower(self.cluster_bits, all.cluster_bits, "clusters"))
            .chain(narrower(self.refcount_orders, all.refcount_orders, "bits of a refcount"))
            .chain(initials.map(|initial| format!("images that are {}", initial.name())))
            .collect()
    }
}
