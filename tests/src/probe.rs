//! Rare situations that a campaign must have met before its silence means anything.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! probes {
    (
        guaranteed { $($variant:ident $name:literal $what:literal,)* }
        damaged { $($bad:ident $bad_name:literal $bad_what:literal,)* }
    ) => {
        /// A named rare situation.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(usize)]
        pub enum Probe {
            $(#[doc = $what] $variant,)*
            $(#[doc = $bad_what] $bad,)*
        }

        impl Probe {
            /// Those of campaigns on devices that keep their promises.
            pub const GUARANTEED: &'static [Self] = &[$(Self::$variant),*];

            /// Those of campaigns on damaged images.
            pub const DAMAGED: &'static [Self] = &[$(Self::$bad),*];

            /// The name in reports.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* $(Self::$bad => $bad_name,)* }
            }

            /// What it means.
            pub const fn what(self) -> &'static str {
                match self { $(Self::$variant => $what,)* $(Self::$bad => $bad_what,)* }
            }
        }
    };
}

probes! {
    guaranteed {
    TornL2 "torn-l2-table" "An L2 table of which one unit survived and another was lost.",
    TornRefcountBlock "torn-refcount-block" "A refcount block of which one unit survived and another was lost.",
    L2WithoutRefcount "l2-kept-refcount-lost" "An L2 unit survived while a refcount unit was lost.",
    RefcountWithoutL2 "refcount-kept-l2-lost" "A refcount unit survived while an L2 unit was lost.",
    TornData "torn-guest-write" "A cluster of guest data of which each of two units may have survived or not.",
    PaddedBothSides "padded-on-both-sides" "A partial write to a new cluster that was filled before and after the data.",
    CopiedOnWrite "copy-on-write" "A partial write that copied the rest of a shared cluster.",
    Reuse "reuse-of-a-freed-cluster" "A host cluster that changed its guest cluster.",
    HostDiscard "discard-passed-down" "A freed cluster whose space went back to the storage.",
    L1Growth "l1-growth" "A grown disk with a new L1 table.",
    RefcountBlockGrowth "refcount-block-growth" "A new refcount block.",
    RefcountTableGrowth "refcount-table-growth" "A new refcount table.",
    StreamAcross "stream-across-clusters" "A compressed cluster whose stream lies in two host clusters.",
    StreamsInUnit "two-streams-in-a-unit" "Two streams of which one ends in the unit in which the other begins.",
    StreamsTogether "three-streams-in-a-cluster" "A host cluster in which three streams have a part.",
    FullCount "full-count" "A host cluster that has as many streams as its refcount can count.",
    BothFiles "both-files-in-doubt" "A power cut that left units of an image undecided, and units of its data file.",
    ResizeSmaller "resize-that-left-the-smaller-disk" "A crash after which the disk could have two sizes, and had the smaller one.",
    ResizeLarger "resize-that-left-the-larger-disk" "A crash after which the disk could have two sizes, and had the larger one.",
    PassphraseThere "passphrase-cut-and-there" "A power cut while a passphrase was added or removed, which opens the image afterwards.",
    PassphraseNotThere "passphrase-cut-and-not-there" "The same, and it does not open the image.",
    LaggingLength "lagging-length" "A crash that left the file shorter than it had been.",
    DirtyCrash "crash-of-a-dirty-image" "A crash that left the dirty bit set.",
    CrashInRepair "crash-inside-repair" "A power cut in the middle of a repair.",
    NestedTwice "two-crashes-inside-repair" "A power cut in the repair after a power cut in a repair.",
    SecondLife "second-life" "Operations on what a recovery had left.",
    SecondLifeOnLeaky "second-life-on-a-leaky-image" "Operations on what a recovery had left, with leaked clusters.",
    WorkedOn "worked-on-in-the-session-that-recovered" "Operations in the session that had recovered the image.",
    Reloaded "metadata-reloaded" "Metadata that had been written, given up by the cache, and read again.",
    ReloadedUndurable "metadata-reloaded-undurable" "The same before any flush.",
    SpaceFoundAgain "space-found-again" "A recovered image that was emptied and filled again and did not get longer.",
    LeakRepaired "leak-repaired" "An explicit repair that freed leaked clusters.",
    UnflushedLost "unflushed-write-lost" "A guest unit that may have come back with an older value than its newest.",
    ReadOnlyDirty "read-only-open-of-a-dirty-image" "A dirty image opened read-only.",
    ReadFailed "read-error" "A read that failed.",
    WriteFailed "write-error" "A write that failed.",
    NoSpace "no-space" "A write or growth that found no space.",
    FlushFailed "flush-error" "A flush that failed.",
    FlushRetrySafe "flush-failed-retry-safe" "A failed flush after which another could succeed in full.",
    FlushCleanMarked "flush-failed-clean-marked" "A failed flush after which others succeeded without what it had lost.",
    FlushSticky "flush-failed-sticky" "A failed flush after which none succeeded any more.",
    ShortRead "short-read" "A read that transferred a part and failed.",
    ShortWrite "short-write" "A write that transferred a part and failed.",
    LateLanding "late-landing" "A failed write that might still land, and an update of the same bytes or a settle after it.",
    WriteThroughFailed "write-through-failed" "A write-through write that failed in its sync.",
    FullForGood "device-full-for-good" "A device that stayed full, and an update that went through without more space.",
    SpaceAgain "space-again" "A full device that had room again, and an update that went through.",
    TwoFaults "two-faults-together" "Two faults that both struck in one life.",
    GoesOn "every-unit-written-afterwards" "A recovered image on which every guest unit was written, within its bound.",
    Leaked "leaked-by-one-crash" "A crash that leaked clusters, within its bound.",
    DiscardZeroes "discard-that-zeroes" "A discard on a device on which it zeroes.",
    Dropped "dropped-future" "A request that was dropped with I/O in flight.",
    CleanClose "clean-close" "A clean close, and what it left.",
    WriteThrough "write-through" "A write that was durable when it returned.",
    }
    damaged {
    DamagedHeader "damaged-header" "Damage in the header.",
    DamagedRefcountTable "damaged-refcount-table" "Damage in the refcount table.",
    DamagedRefcountBlock "damaged-refcount-block" "Damage in a refcount block.",
    DamagedL1 "damaged-l1" "Damage in the L1 table.",
    DamagedL2 "damaged-l2" "Damage in an L2 table.",
    DamagedData "damaged-data" "Damage where nothing but guest data or nothing at all is.",
    OpenRefused "open-refused" "A damaged image that was not opened for writing.",
    OpenedDamaged "opened" "A damaged image that was opened for writing.",
    RepairGaveUp "repair-gave-up" "A damaged image that was not repaired.",
    RepairRepaired "repair-repaired" "A damaged image of which redundancy told, and that was repaired.",
    DamageUnseen "damage-unseen" "A damaged image that breaks no rule.",
    }
}

/// How often each probe was reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<u64>", into = "Vec<u64>")]
pub struct Probes([u64; PROBES]);

const PROBES: usize = Probe::GUARANTEED.len() + Probe::DAMAGED.len();

impl Default for Probes {
    fn default() -> Self {
        Self([0; PROBES])
    }
}

impl From<Vec<u64>> for Probes {
    /// Counts that there are no probes for are left out: both were written by the same program.
    fn from(counts: Vec<u64>) -> Self {
        let mut probes = Self::default();
        probes.0.iter_mut().zip(counts).for_each(|(to, count)| *to = count);
        probes
    }
}

impl From<Probes> for Vec<u64> {
    fn from(probes: Probes) -> Self {
        probes.0.to_vec()
    }
}

impl Probes {
    /// Counts a situation.
    pub fn hit(&mut self, probe: Probe) {
        self.0[probe as usize] += 1;
    }

    /// How often it was met.
    pub fn count(&self, probe: Probe) -> u64 {
        self.0[probe as usize]
    }

    /// Adds another run's.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// Those of `expected` that were never met.
    pub fn missed(&self, expected: &'static [Probe]) -> impl Iterator<Item = Probe> {
        expected.iter().copied().filter(|&probe| self.count(probe) == 0)
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
