//! Every write order of this crate, by name.
//!
//! A crash-safe writer is a set of promises of the form "A is durable before B". Each such promise is one variant of
//! [`Rule`], documented with what a power cut destroys when it is broken. The code never relies on the sequence of two
//! lines: it asks [`Rules`] whether the rule holds and records an edge (see the `order` module), or waits for one. So a
//! harness can take one rule away from one image and must then be able to show the damage.

use crate::barrier::Barrier;
#[cfg(feature = "sabotage")]
use crate::mutant::Mutant;
use crate::named::named;

named! {
    /// A named write order. `before` must be durable (or settled, where it says so) before `after` may happen.
    pub enum Rule {
        /// The data of a cluster, before the L2 entry that maps it.
        ///
        /// Broken: after a crash the entry maps a cluster that still holds what its former owner wrote there, or half of
        /// the copied cluster. A cluster that was never written reads as zeroes; while the guest may see zeroes there, it
        /// may be mapped at once.
        DataBeforeMapping = "data-before-mapping",
        /// A refcount, before the reference that it counts (L2 entry to data, L1 entry to L2 table, refcount table entry to
        /// refcount block, header to tables), unless the dirty bit is durable.
        ///
        /// Broken: the image is clean, the cluster is in use and counted as free; the next allocation hands it out again.
        RefcountBeforeReference = "refcount-before-reference",
        /// The zeroes of a new L2 table or refcount block, before the entry that points to it.
        ///
        /// Broken: the table's entries are whatever the cluster held before: guest data read as mappings.
        ZeroesBeforePointer = "zeroes-before-pointer",
        /// The file length that covers a cluster, before an entry that points there.
        ///
        /// Broken: the image refers to space past the end of its file.
        LengthBeforeReference = "length-before-reference",
        /// The dirty bit, before the first reference whose refcount is not recorded (lazy refcounts).
        ///
        /// Broken: nobody repairs the image at the next open, and refcounts that are too low are believed.
        DirtyBeforeUncounted = "dirty-before-uncounted",
        /// Everything else, before the dirty bit is cleared (by a clean close and by repair).
        ///
        /// Broken: the image claims exact refcounts that did not reach the disk.
        AllBeforeClean = "all-before-clean",
        /// A dropped reference, before its refcount is lowered on disk, unless the dirty bit is durable.
        ///
        /// Broken: the old reference survives the crash, its refcount does not.
        DereferenceBeforeRefcountDown = "dereference-before-refcount-down",
        /// A dropped reference, before its cluster is handed out again.
        ///
        /// Broken: the old reference survives the crash and shows, or loses, another guest cluster's data.
        DereferenceBeforeReuse = "dereference-before-reuse",
        /// A host discard of a freed cluster has settled, before the cluster is handed out again.
        ///
        /// Broken: the late discard punches a hole into the new owner's data.
        DiscardBeforeReuse = "discard-before-reuse",
        /// Reads in flight that resolved to a cluster have finished, before it is discarded or handed out again.
        ///
        /// Broken: a read returns another guest cluster's data.
        ReadsBeforeReuse = "reads-before-reuse",
        /// I/O whose future was dropped has settled, before anything it covers is written, freed or handed out again.
        ///
        /// Broken: the orphaned write lands late, over newer data.
        OrphansBeforeReuse = "orphans-before-reuse",
        /// I/O that failed has settled, before anything it covers is written again, freed or handed out again.
        ///
        /// Broken: on a storage where what failed may still land, it lands late, over newer data.
        SettleBeforeRetry = "settle-before-retry",
        /// A table's new copy, complete, before the header's pointer switches to it.
        ///
        /// Broken: the header points to a table that is partly unwritten.
        CopyBeforeSwitch = "copy-before-switch",
        /// The dirty bit, before a repair changes anything that is in use (new refcount structures, which nothing refers to yet, are written
        /// before that).
        ///
        /// Broken: a crash in the middle of a repair leaves a half-repaired image that nobody repairs again.
        DirtyBeforeRepair = "dirty-before-repair",
        /// Corrected refcounts, before the COPIED bits that follow from them, in a repair that no dirty bit marks (version 2).
        ///
        /// Broken: an entry loses COPIED and its cluster still counts one reference too few, so whoever writes there frees what somebody
        /// else refers to; or it gets COPIED and its cluster is still counted as shared.
        CountsBeforeCopied = "counts-before-copied",
        /// Autoclear bits cleared that this crate does not maintain, before anything that they vouch for changes or is freed.
        ///
        /// Broken: a program that trusts the bit takes what is stale, or what belongs to the guest now, for its own.
        AutoclearFirst = "autoclear-first",
        /// The header of an image that is created over, gone before anything else of it.
        ///
        /// Broken: a file that looks like the old image and is not any more.
        OldHeaderFirst = "old-header-first",
        /// Everything else, before the header's first sector, when an image is created.
        ///
        /// Broken: a file that looks like an image and is not one.
        HeaderLast = "header-last",
        /// What a guest flush covers, before the flush is acknowledged.
        ///
        /// Broken: acknowledged data is lost.
        DurableBeforeAcknowledge = "durable-before-acknowledge",
        /// A failed flush or write through, before anything later: nothing is acknowledged after it until the image is opened again.
        ///
        /// Broken: the operating system forgets what it failed to write, the next flush succeeds, and the data is lost.
        FailedFlushIsFinal = "failed-flush-is-final",
        /// The corrupt bit, before the error of a request that would have written over metadata.
        ///
        /// Broken: the guest is told of damage that nobody knows of after a crash, and the image is written again.
        CorruptBeforeError = "corrupt-before-error",
        /// What was copied of the layer, before the header names another one, or none.
        ///
        /// Broken: the image has lost its layer, and what was copied of it too.
        CopiedBeforeRename = "copied-before-rename",
        /// The name of another layer, before the header points to it.
        ///
        /// Broken: the image names a layer that is none, or another one.
        NameBeforeHeader = "name-before-header",
        /// The key material of a passphrase, its salt and its rounds, before its slot says that it has a key.
        ///
        /// Broken: a slot has a key that no passphrase opens, and nobody can tell whose it was.
        KeyMaterialFirst = "key-material-first",
        /// That a key slot has no key, before its key material is overwritten.
        ///
        /// Broken: a slot has a key, and material that gives none.
        SlotBeforeKeyMaterial = "slot-before-key-material",
        /// Everything past the old end of the guest disk gone, before the disk is larger.
        ///
        /// Broken: what was there once, data or entries, comes to light in the new space.
        NothingBeforeSize = "nothing-before-size",
        /// The smaller size of the guest disk, before anything past its new end is cleared.
        ///
        /// Broken: the old size survives the crash, and what was to be cut off is gone or was not, cluster by cluster.
        SizeBeforeCleared = "size-before-cleared",
        /// The entry that maps a guest cluster of a raw data file, before anything but zeroes is written there.
        ///
        /// Broken: whoever reads the data file by itself sees what the guest wrote, and the guest sees zeroes.
        MappingBeforeRawData = "mapping-before-raw-data",
        /// The external data file of a new image, before the header that leads to it.
        ///
        /// Broken: the image has a data file that is too short, or shows what was in it before.
        DataFileFirst = "data-file-first",
    }
}

/// The rules that one image obeys and the flushes that it does: all of them, unless the feature `sabotage` took some away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Rules {
    #[cfg(feature = "sabotage")]
    broken: u128,
    #[cfg(feature = "sabotage")]
    skipped: u128,
    #[cfg(feature = "sabotage")]
    mutants: [u64; 4],
}

impl Rules {
    /// Every rule.
    pub const fn all() -> Self {
        Self {
            #[cfg(feature = "sabotage")]
            broken: 0,
            #[cfg(feature = "sabotage")]
            skipped: 0,
            #[cfg(feature = "sabotage")]
            mutants: [0; 4],
        }
    }

    /// The same rules without `rule`.
    #[cfg(feature = "sabotage")]
    #[must_use]
    pub const fn without(self, rule: Rule) -> Self {
        Self { broken: self.broken | 1 << rule as u8, ..self }
    }

    /// The same rules, with a flush that does nothing.
    #[cfg(feature = "sabotage")]
    #[must_use]
    pub const fn without_flush(self, barrier: Barrier) -> Self {
        Self { skipped: self.skipped | 1 << barrier as u8, ..self }
    }

    /// The same rules, with a mistake in the code that obeys them.
    #[cfg(feature = "sabotage")]
    #[must_use]
    pub const fn with_mutant(self, mutant: Mutant) -> Self {
        let mut mutants = self.mutants;
        mutants[mutant as usize / 64] |= 1 << (mutant as usize % 64);
        Self { mutants, ..self }
    }

    /// Whether that mistake is in the code.
    #[cfg(feature = "sabotage")]
    pub const fn has_mutant(self, mutant: Mutant) -> bool {
        self.mutants[mutant as usize / 64] & 1 << (mutant as usize % 64) != 0
    }

    #[cfg(feature = "sabotage")]
    const fn has_mutants(self) -> bool {
        let [a, b, c, d] = self.mutants;
        a | b | c | d != 0
    }

    /// Whether the flush of that name is to do nothing.
    #[cfg(feature = "sabotage")]
    pub const fn skips(self, barrier: Barrier) -> bool {
        self.skipped & (1 << barrier as u8) != 0
    }

    /// Whether the flush of that name is to do nothing.
    #[cfg(not(feature = "sabotage"))]
    pub(crate) const fn skips(self, _: Barrier) -> bool {
        false
    }

    /// Whether nothing is taken away and no mistake is put in: what the invariants of this crate need to hold.
    pub(crate) const fn are_whole(self) -> bool {
        #[cfg(feature = "sabotage")]
        return self.broken == 0 && self.skipped == 0 && !self.has_mutants();
        #[cfg(not(feature = "sabotage"))]
        true
    }

    /// Whether `rule` is to be obeyed.
    #[cfg(feature = "sabotage")]
    pub const fn hold(self, rule: Rule) -> bool {
        self.broken & (1 << rule as u8) == 0
    }

    /// Whether `rule` is to be obeyed.
    #[cfg(not(feature = "sabotage"))]
    pub const fn hold(self, _: Rule) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::Rule;

    #[test]
    fn names_are_unique_and_resolve() {
        for rule in Rule::ALL {
            assert_eq!(Rule::from_name(rule.name()), Some(rule));
        }
        assert_eq!(Rule::from_name("no-such-rule"), None);
    }
}
