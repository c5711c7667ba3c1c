//! The twelve requests that explored workloads are made of, and the images that they start from.
//!
//! Small worlds show what large ones do only if the few requests in them meet: they fall on three clusters, chosen so that
//! tables can tear.
//!
//! ```text
//!   guest cluster   0    1    2 ..  63 | 64
//!                   A    B             | F        an L2 unit of 512 bytes has 64 entries, so A and F never share one:
//!                                                 at 512-byte clusters F is in a table of its own, at larger ones the
//!                                                 table of A and F is two units that a power cut can separate
//! ```

use std::fmt;
use std::ops::Range;

use faultfs::disk::PossibleDisk;
use model::build::Initial;
use model::case::{Device, Opening};
use model::guest::Guest;
use model::op::{DataFile, Durability, Encryption, Geometry, Op, Preallocation};
use model::payload::COMPRESSIBLE;

use crate::any::AnySubject;
use crate::capabilities::Capabilities;
use crate::probe::Probe;
use crate::subject::{Session, Subject};
use crate::trial;

/// The far cluster; in images with extended L2 entries, of which a unit has half as many, the one half as far.
const FAR: u64 = 64;

fn far(geometry: &Geometry) -> u64 {
    if geometry.extended_l2 { FAR / 2 } else { FAR }
}

/// One request of the alphabet, positions included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Symbol {
    /// All of A: allocation, or overwriting in place.
    WriteA,
    /// A part of B, in its middle where it has one: padding or copy-on-write on both sides.
    WritePartOfB,
    /// The last unit of A and all of B, in one request.
    WriteAcross,
    /// All of F.
    WriteFar,
    /// One unit of A, in its middle where it has one, durable when it returns.
    WriteThrough,
    /// B as zeroes, its cluster kept.
    ZeroB,
    /// A as zeroes, its cluster given back.
    ZeroA,
    /// A given back.
    DiscardA,
    /// Everything up to and with F given back.
    DiscardAll,
    /// A shows the layer again.
    UncoverA,
    /// What has completed becomes durable.
    Flush,
    /// The disk grows by what one L2 table covers, so that the L1 table needs another entry.
    Grow,
    /// A clean close, and the image opened again.
    Reopen,
    /// All of A is read.
    ReadA,
    /// One unit of A's fourth subcluster.
    WriteSubcluster,
    /// A's third to seventh subcluster as zeroes, and a unit beside them.
    ZeroSubclusters,
    /// A and B get host clusters.
    PreallocateAB,
    /// All up to F gets host clusters full of zeroes.
    PreallocateAll,
    /// B's first unit is read.
    ReadPartOfB,
    /// The disk ends before F.
    ShrinkBeforeF,
    /// The disk ends behind the first unit of B.
    ShrinkInB,
    /// All of A, compressed.
    CompressA,
    /// All of A and B, each compressed by itself.
    CompressAB,
    /// All of F, compressed.
    CompressFar,
    /// A first further passphrase opens the image.
    AddFirst,
    /// A second one does.
    AddSecond,
    /// The first one does no more.
    RemoveFirst,
}

impl Symbol {
    /// The alphabet of requests one after the other, and of pairs at once.
    pub const ALL: [Self; 12] = [
        Self::WriteA,
        Self::WritePartOfB,
        Self::WriteAcross,
        Self::WriteFar,
        Self::WriteThrough,
        Self::ZeroB,
        Self::ZeroA,
        Self::DiscardA,
        Self::DiscardAll,
        Self::Flush,
        Self::Grow,
        Self::Reopen,
    ];

    /// The alphabet of disks that become smaller and larger.
    pub const RESIZING: [Self; 9] = [
        Self::WriteA,
        Self::WritePartOfB,
        Self::WriteFar,
        Self::ZeroB,
        Self::Flush,
        Self::Grow,
        Self::ShrinkBeforeF,
        Self::ShrinkInB,
        Self::Reopen,
    ];

    /// The alphabet of guest clusters that have subclusters.
    pub const SUBCLUSTERS: [Self; 11] = [
        Self::WriteA,
        Self::WriteFar,
        Self::WriteSubcluster,
        Self::WritePartOfB,
        Self::WriteAcross,
        Self::WriteThrough,
        Self::ZeroSubclusters,
        Self::ZeroB,
        Self::DiscardA,
        Self::Flush,
        Self::Reopen,
    ];

    /// The alphabet of clusters that are taken ahead, of what is copied from a layer when it is read, and of what shows it again.
    pub const AHEAD: [Self; 11] = [
        Self::WriteA,
        Self::WritePartOfB,
        Self::PreallocateAB,
        Self::PreallocateAll,
        Self::ReadPartOfB,
        Self::ZeroA,
        Self::ZeroB,
        Self::UncoverA,
        Self::Flush,
        Self::Grow,
        Self::Reopen,
    ];

    /// The alphabet of clusters that are written compressed.
    pub const COMPRESSING: [Self; 10] = [
        Self::CompressA,
        Self::CompressAB,
        Self::CompressFar,
        Self::WriteA,
        Self::WritePartOfB,
        Self::ZeroB,
        Self::DiscardA,
        Self::DiscardAll,
        Self::Flush,
        Self::Reopen,
    ];

    /// The alphabet of guest data in a file of its own.
    pub const DATA_FILES: [Self; 11] = [
        Self::WriteA,
        Self::WritePartOfB,
        Self::WriteAcross,
        Self::WriteThrough,
        Self::ZeroB,
        Self::ZeroA,
        Self::DiscardA,
        Self::Flush,
        Self::Grow,
        Self::ShrinkInB,
        Self::Reopen,
    ];

    /// The alphabet of passphrases that come and go.
    pub const PASSPHRASES: [Self; 6] = [
        Self::AddFirst,
        Self::AddSecond,
        Self::RemoveFirst,
        Self::WriteA,
        Self::Flush,
        Self::Reopen,
    ];

    /// The alphabet of races: who still uses a cluster, who gives it up, and who gets it next.
    pub const RACING: [Self; 5] =
        [Self::ReadA, Self::WriteA, Self::WritePartOfB, Self::DiscardA, Self::Flush];

    /// The alphabet of races around the cluster that streams are put into.
    pub const RACING_COMPRESSED: [Self; 5] =
        [Self::CompressA, Self::CompressFar, Self::WriteA, Self::DiscardA, Self::Flush];

    /// Its name in certificates.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WriteA => "write-a",
            Self::WritePartOfB => "write-part-of-b",
            Self::WriteAcross => "write-across",
            Self::WriteFar => "write-far",
            Self::WriteThrough => "write-through",
            Self::ZeroB => "zero-b",
            Self::ZeroA => "zero-a",
            Self::DiscardA => "discard-a",
            Self::DiscardAll => "discard-all",
            Self::UncoverA => "uncover-a",
            Self::Flush => "flush",
            Self::Grow => "grow",
            Self::Reopen => "reopen",
            Self::ReadA => "read-a",
            Self::WriteSubcluster => "write-subcluster",
            Self::ZeroSubclusters => "zero-subclusters",
            Self::PreallocateAB => "preallocate-a-b",
            Self::PreallocateAll => "preallocate-all",
            Self::ReadPartOfB => "read-part-of-b",
            Self::ShrinkBeforeF => "shrink-before-f",
            Self::ShrinkInB => "shrink-in-b",
            Self::CompressA => "compress-a",
            Self::CompressAB => "compress-a-b",
            Self::CompressFar => "compress-far",
            Self::AddFirst => "add-first",
            Self::AddSecond => "add-second",
            Self::RemoveFirst => "remove-first",
        }
    }

    /// Whether a subject can do it.
    pub fn is_within(self, can: &Capabilities) -> bool {
        // A geometry that has all that a letter may name, subclusters too.
        let World { geometry, .. } = World::new(14, false, Initial::Fresh).with_subclusters();
        can.does(&self.op(&geometry, 1, geometry.virtual_size))
    }

    /// The operation, as number `id` of its workload, on a disk of `size` bytes.
    fn op(self, geometry: &Geometry, id: u32, size: u64) -> Op {
        let cluster = geometry.cluster_size();
        let (far, subcluster) = (far(geometry), cluster / 32);
        let write = |offset, length, durability| Op::Write { offset, length, id, durability };
        let cached = |offset, length| write(offset, length, Durability::Cached);
        let compressed = |offset, length| {
            let id = id | COMPRESSIBLE;
            Op::WriteCompressed { offset, length, id }
        };
        match self {
            Self::WriteA => cached(0, cluster),
            Self::WritePartOfB => match cluster {
                512 => cached(cluster, 512),
                1024 => cached(cluster + 512, 512),
                _ => cached(cluster + 512, 1024),
            },
            Self::WriteAcross => cached(cluster - 512, 512 + cluster),
            Self::WriteFar => cached(far * cluster, cluster),
            Self::WriteThrough => {
                let offset = if cluster > 1024 { 512 } else { 0 };
                write(offset, 512, Durability::Through)
            }
            Self::ZeroB => Op::WriteZeroes { offset: cluster, length: cluster, unmap: false },
            Self::ZeroA => Op::WriteZeroes { offset: 0, length: cluster, unmap: true },
            Self::DiscardA => Op::Discard { offset: 0, length: cluster },
            Self::DiscardAll => Op::Discard { offset: 0, length: (far + 1) * cluster },
            Self::UncoverA => Op::Uncover { offset: 0, length: cluster },
            Self::Flush => Op::Flush,
            Self::Grow => Op::Grow { to: size + geometry.l2_entries() * cluster },
            Self::Reopen => Op::Reopen,
            Self::ReadA => Op::Read { offset: 0, length: cluster },
            Self::WriteSubcluster => cached(4 * subcluster - 512, 512),
            Self::ZeroSubclusters => Op::WriteZeroes {
                offset: 2 * subcluster,
                length: 5 * subcluster + 512,
                unmap: true,
            },
            Self::PreallocateAB => {
                Op::Preallocate { offset: 0, length: 2 * cluster, how: Preallocation::Metadata }
            }
            Self::PreallocateAll => {
                Op::Preallocate { offset: 0, length: (far + 1) * cluster, how: Preallocation::Full }
            }
            Self::ReadPartOfB => Op::Read { offset: cluster, length: 512 },
            Self::ShrinkBeforeF => Op::Shrink { to: far * cluster },
            Self::ShrinkInB => Op::Shrink { to: cluster + 512 },
            Self::CompressA => compressed(0, cluster),
            Self::CompressAB => compressed(0, 2 * cluster),
            Self::CompressFar => compressed(far * cluster, cluster),
            Self::AddFirst => Op::AddPassphrase { id: 1 },
            Self::AddSecond => Op::AddPassphrase { id: 2 },
            Self::RemoveFirst => Op::RemovePassphrase { id: 1 },
        }
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A workload as operations.
pub fn operations(workload: &[Symbol], geometry: &Geometry) -> Vec<Op> {
    let mut size = geometry.virtual_size;
    (1..)
        .zip(workload)
        .map(|(id, symbol)| {
            let op = symbol.op(geometry, id, size);
            match op {
                Op::Grow { to } => size = to,
                Op::Shrink { to } => size = size.min(to),
                _ => {}
            }
            op
        })
        .collect()
}

/// How many workloads of an alphabet have at most `most` requests.
pub fn count(alphabet: &[Symbol], most: u32) -> u64 {
    (0..=most).map(|length| (alphabet.len() as u64).pow(length)).sum()
}

/// Workload number `index`: shorter ones first, then in the order of the alphabet.
pub fn workload(alphabet: &[Symbol], mut index: u64) -> Vec<Symbol> {
    let letters = alphabet.len() as u64;
    let mut length = 0;
    while index >= letters.pow(length) {
        index -= letters.pow(length);
        length += 1;
    }
    let digit = |place| (index / letters.pow(place) % letters) as usize;
    (0..length).rev().map(|place| alphabet[digit(place)]).collect()
}

/// The numbers of the workloads that have one request more than workload number `index` and begin as it does.
pub const fn continuations(alphabet: &[Symbol], index: u64) -> Range<u64> {
    let letters = alphabet.len() as u64;
    letters * index + 1..letters * (index + 1) + 1
}

/// How many pairs of requests there are that two tasks can make at once. Their order does not matter, because every
/// schedule is run; closing the image takes it alone; and of two growths at once one may be a request to shrink.
pub fn pairs() -> Vec<[Symbol; 2]> {
    let with_others = || Symbol::ALL.into_iter().filter(|symbol| *symbol != Symbol::Reopen);
    with_others()
        .flat_map(|first| with_others().map(move |second| [first, second]))
        .filter(|[first, second]| first <= second && [*first, *second] != [Symbol::Grow; 2])
        .collect()
}

/// What two tasks do at once in races: up to `most` requests of an alphabet beside one.
pub fn races(letters: &[Symbol], most: u32) -> Vec<[Vec<Symbol>; 2]> {
    let mut longest = vec![Vec::new()];
    let mut tasks = Vec::new();
    for _ in 0..most {
        let longer = |task: &Vec<Symbol>| {
            let task = task.clone();
            letters.iter().map(move |&next| [task.clone(), vec![next]].concat())
        };
        longest = longest.iter().flat_map(longer).collect();
        tasks.extend(longest.iter().cloned());
    }
    let beside = |task: Vec<Symbol>| letters.iter().map(move |&other| [task.clone(), vec![other]]);
    tasks.into_iter().flat_map(beside).collect()
}

/// The initial images that are explored unless others are asked for: all but one, of which every state that an exploration remembers would
/// list thousands of leaks, and but that with compressed clusters.
pub fn initials() -> Vec<Initial> {
    let apart = [Initial::FullOfLeaks, Initial::Compressed];
    Initial::ALL.into_iter().filter(|initial| !apart.contains(initial)).collect()
}

/// An image to start from, and how it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct World {
    /// The shape of the image.
    pub geometry: Geometry,
    /// What it holds.
    pub initial: Initial,
    /// How it is opened.
    pub session: Session,
}

impl World {
    /// The world of a cluster size, a mode and an initial image. The last cluster of the disk is cut short where it can
    /// be. Refcounts are 16 bits wide; 64 in images whose refcount structures are full or fragmented, where a block of
    /// few entries is soon full and soon torn.
    pub fn new(cluster_bits: u32, lazy: bool, initial: Initial) -> Self {
        let cluster = 1u64 << cluster_bits;
        let virtual_size = (FAR + 2) * cluster - if cluster > 512 { 512 } else { 0 };
        let geometry = Geometry {
            refcount_order: usual_refcount_order(initial),
            lazy_refcounts: lazy,
            ..Geometry::plain(cluster_bits, virtual_size)
        };
        let open = Opening { cache_pages: 4, growth_step: cluster, ..Opening::new("") };
        Self { geometry, initial, session: Session::of(&open, &geometry) }
    }

    /// The same world with refcounts of 2^`order` bits.
    #[must_use]
    pub const fn with_refcount_order(mut self, order: u32) -> Self {
        self.geometry.refcount_order = order;
        self
    }

    /// The same world with refcounts of a width that a subject opens, if it has the usual one, which the subject does not.
    #[must_use]
    pub fn within(self, can: &Capabilities) -> Self {
        let (order, (least, most)) = (self.geometry.refcount_order, can.refcount_orders);
        let is_usual = self.geometry.version != 2 && order == usual_refcount_order(self.initial);
        if is_usual { self.with_refcount_order(order.clamp(least, most)) } else { self }
    }

    /// The same world in version 2 of the format, which has eager refcounts of 16 bits only.
    #[must_use]
    pub const fn in_version_2(mut self) -> Self {
        self.geometry.version = 2;
        self.geometry.refcount_order = 4;
        self.geometry.lazy_refcounts = false;
        self
    }

    /// The same world with extended L2 entries.
    #[must_use]
    pub fn with_subclusters(mut self) -> Self {
        self.geometry.extended_l2 = true;
        self.geometry.virtual_size -= FAR / 2 * self.geometry.cluster_size();
        self
    }

    /// The same world over a layer that is longer than the disk, and ends inside a cluster.
    #[must_use]
    pub fn over_layer(mut self) -> Self {
        let cluster = self.geometry.cluster_size();
        let end = self.geometry.virtual_size + 2 * cluster;
        let below = Some(end - end % cluster + 512);
        (self.geometry.below, self.session.below) = (below, below);
        self
    }

    /// The same world in which what is read from a layer is copied.
    #[must_use]
    pub const fn copying(mut self) -> Self {
        self.session.copy_on_read = true;
        self
    }

    /// The same world with guest data in a data file.
    #[must_use]
    pub const fn beside(mut self, data_file: DataFile) -> Self {
        self.geometry.data_file = Some(data_file);
        self
    }

    /// The same world with encrypted guest data.
    #[must_use]
    pub const fn encrypted(mut self, encryption: Encryption) -> Self {
        self.geometry.encryption = Some(encryption);
        self.session.encrypted = true;
        self
    }

    /// The disk and reference disk to start from.
    ///
    /// # Errors
    /// If the geometry does not allow the initial image, or the subject opens none of this kind.
    pub fn start(&self, subject: &impl Subject) -> Result<(PossibleDisk, Guest), String> {
        let subject = &AnySubject::of(subject);
        let Self { geometry, initial, session } = self;
        trial::initial(subject, geometry, *initial, session, &Device::default())
    }
}

const fn usual_refcount_order(initial: Initial) -> u32 {
    match initial {
        Initial::Fresh | Initial::L1AboutToGrow | Initial::Dirty => 4,
        _ => 6,
    }
}

/// The rare situations that exploring images of a cluster size must have met. At 512 bytes a table is one unit, which
/// cannot tear; only at 4 KiB has a cluster a middle; and there a full refcount table takes a file of a gibibyte.
pub fn probes(cluster_size: u64) -> Vec<Probe> {
    let mut probes = vec![
        Probe::L2WithoutRefcount,
        Probe::RefcountWithoutL2,
        Probe::Reuse,
        Probe::HostDiscard,
        Probe::L1Growth,
        Probe::RefcountBlockGrowth,
        Probe::CrashInRepair,
        Probe::NestedTwice,
        Probe::LeakRepaired,
    ];
    if cluster_size > 512 {
        probes.extend([Probe::TornL2, Probe::TornRefcountBlock]);
    }
    if cluster_size > 1024 {
        probes.extend([Probe::CopiedOnWrite, Probe::PaddedBothSides]);
    } else {
        probes.push(Probe::RefcountTableGrowth);
    }
    probes
}

/// The worlds of these cluster sizes, modes and initial images, in this order.
pub fn worlds(cluster_sizes: &[u32], modes: &[bool], initials: &[Initial]) -> Vec<World> {
    let mut worlds = Vec::new();
    for size in cluster_sizes {
        for &lazy in modes {
            worlds.extend(initials.iter().map(|&at| World::new(size.ilog2(), lazy, at)));
        }
    }
    worlds
}

/// A line for a person.
impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.geometry.cluster_size();
        let mode = if self.geometry.lazy_refcounts { "lazy" } else { "eager" };
        write!(f, "{size:>4} B, {mode:<5}, {}", self.initial.name())?;
        if self.geometry.extended_l2 {
            f.write_str(", subclusters")?;
        }
        if self.geometry.below.is_some() {
            f.write_str(", over a layer")?;
        }
        match self.geometry.data_file {
            Some(DataFile::Plain) => f.write_str(", data file")?,
            Some(DataFile::Raw) => f.write_str(", raw data file")?,
            None => {}
        }
        match self.geometry.encryption {
            Some(Encryption::Aes) => f.write_str(", AES")?,
            Some(Encryption::Luks) => f.write_str(", LUKS")?,
            None => {}
        }
        match self.geometry.refcount_order {
            _ if self.geometry.version == 2 => write!(f, ", version 2"),
            order if order == usual_refcount_order(self.initial) => Ok(()),
            order => write!(f, ", refcounts of {} bits", 1u32 << order),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_numbered_shorter_ones_first_and_all_different() {
        assert_eq!(count(&Symbol::ALL, 0), 1);
        assert_eq!(count(&Symbol::ALL, 2), 1 + 12 + 144);
        assert_eq!(workload(&Symbol::ALL, 0), []);
        assert_eq!(workload(&Symbol::ALL, 1), [Symbol::WriteA]);
        assert_eq!(workload(&Symbol::ALL, 12), [Symbol::Reopen]);
        assert_eq!(workload(&Symbol::ALL, 13), [Symbol::WriteA, Symbol::WriteA]);
        for index in 0..count(&Symbol::ALL, 2) {
            let longer =
                continuations(&Symbol::ALL, index).map(|index| workload(&Symbol::ALL, index));
            assert!(
                longer
                    .eq(Symbol::ALL
                        .map(|last| [workload(&Symbol::ALL, index), vec![last]].concat()))
            );
        }
        let mut all: Vec<_> =
            (0..count(&Symbol::ALL, 3)).map(|index| workload(&Symbol::ALL, index)).collect();
        assert!(all.is_sorted_by_key(Vec::len));
        all.sort();
        all.dedup();
        assert_eq!(all.len() as u64, count(&Symbol::ALL, 3));
    }

    #[test]
    fn races_are_all_different() {
        let mut all = races(&Symbol::RACING, 3);
        assert_eq!(all.len(), (5 + 25 + 125) * 5);
        assert!(all.contains(&[
            vec![Symbol::DiscardA, Symbol::Flush, Symbol::WritePartOfB],
            vec![Symbol::ReadA]
        ]));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), (5 + 25 + 125) * 5);
    }

    #[test]
    fn every_request_lies_on_the_disk_and_each_growth_is_one() {
        for bits in [9, 10, 12] {
            let geometry = World::new(bits, false, Initial::Fresh).geometry;
            assert_eq!(geometry.fault(), None);
            let alphabets = [
                &Symbol::ALL[..],
                &Symbol::RACING,
                &Symbol::AHEAD,
                &Symbol::COMPRESSING,
                &Symbol::PASSPHRASES,
            ];
            for op in operations(&alphabets.concat(), &geometry) {
                assert_eq!(op.fault(), None, "{op:?}");
                assert_eq!(op.clip(geometry.virtual_size), Some(op), "{op:?}");
            }
            let resized = [Symbol::Grow, Symbol::ShrinkBeforeF, Symbol::ShrinkInB, Symbol::Grow];
            let mut size = geometry.virtual_size;
            for op in operations(&resized, &geometry) {
                assert_eq!((op.fault(), op.clip(size)), (None, Some(op)), "{op:?}");
                let (Op::Grow { to } | Op::Shrink { to }) = op else { panic!("{op:?}") };
                size = to;
            }
            let twice = operations(&[Symbol::Grow, Symbol::Grow], &geometry);
            assert_ne!(twice[0], twice[1]);
        }
        for bits in [14, 15, 16] {
            let world = World::new(bits, false, Initial::Fresh).with_subclusters();
            assert_eq!(world.geometry.fault(), None);
            for op in operations(&Symbol::SUBCLUSTERS, &world.geometry) {
                let clipped = op.clip(world.geometry.virtual_size);
                assert_eq!((op.fault(), clipped), (None, Some(op)), "{op:?}");
            }
        }
    }
}
