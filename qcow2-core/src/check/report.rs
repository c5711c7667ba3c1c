//! What a check found and a repair did.

use std::fmt;

use crate::format::entry::EntryError;

/// How many findings a report lists; it counts all of them.
pub const MAX_FINDINGS: usize = 256;

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub problem: Problem,
    /// Whether it was put right.
    pub repaired: bool,
    /// Whether a repair leaves it as it is.
    pub(super) stays: bool,
}

/// What can be wrong with an image whose header is sound.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The refcount is higher than the number of references: space is wasted, nothing is lost.
    Leak {
        /// Index of the host cluster.
        cluster: u64,
        /// Refcount in the image.
        stored: u64,
        /// References found.
        counted: u64,
    },
    /// The refcount is lower than the number of references: the cluster may be handed out again.
    RefcountTooLow {
        /// Index of the host cluster.
        cluster: u64,
        /// Refcount in the image.
        stored: u64,
        /// References found.
        counted: u64,
    },
    /// The COPIED bit of an entry does not say whether its cluster has exactly one reference.
    Copied {
        /// Host offset of the entry.
        at: u64,
        /// The entry.
        entry: u64,
        /// References to the cluster that it points to.
        counted: u64,
    },
    /// An entry points nowhere sensible.
    Entry(EntryError),
    /// An entry points past the end of the file.
    BeyondEnd {
        /// Host offset of the entry.
        at: u64,
        /// Host offset that it points to.
        host: u64,
        /// Length of the file.
        length: u64,
    },
    /// A cluster of a table or of the header is referred to more than once.
    Overlap {
        /// Index of the host cluster.
        cluster: u64,
        /// References found.
        counted: u64,
    },
    /// A data cluster is mapped by more than one guest cluster. A repair counts all of them, and leaves it at that:
    /// [`Image::separate`](crate::Image::separate) does more.
    Shared {
        /// Index of the host cluster.
        cluster: u64,
        /// References found.
        counted: u64,
    },
    /// More references than a refcount of this width can say, or a cluster past what a refcount table can describe.
    TooMany {
        /// Index of the host cluster.
        cluster: u64,
        /// References found.
        counted: u64,
    },
    /// What the bitmaps extension leads to makes no sense. While the autoclear bit vouches for it, nothing is repaired; opening
    /// the image for writing gives the bitmaps up.
    Bitmaps {
        /// Host offset of what is wrong.
        at: u64,
        /// What is wrong there.
        why: &'static str,
    },
    /// The file ends inside an entry of a table, and the bytes that are missing decide which cluster it names. They are read as
    /// zeroes, like all that is past the end.
    CutEntry {
        /// Host offset of the entry.
        at: u64,
        /// Length of the file.
        length: u64,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leak { cluster, stored, counted } => write!(
                formatter,
                "leak: host cluster {cluster} has refcount {stored} and {counted} references"
            ),
            Self::RefcountTooLow { cluster, stored, counted } => write!(
                formatter,
                "refcount too low: host cluster {cluster} has refcount {stored} and {counted} references"
            ),
            Self::Copied { at, entry, counted } => write!(
                formatter,
                "COPIED wrong: the entry at byte {at:#x}, {entry:#018x}, points to a cluster with {counted} references"
            ),
            Self::Entry(error) => error.fmt(formatter),
            Self::BeyondEnd { at, host, length } => write!(
                formatter,
                "the entry at byte {at:#x} points to {host:#x}, past the end of the file, {length:#x}"
            ),
            Self::Overlap { cluster, counted } => write!(
                formatter,
                "overlap: host cluster {cluster} holds a table and has {counted} references"
            ),
            Self::Shared { cluster, counted } => write!(
                formatter,
                "shared: host cluster {cluster} is mapped by {counted} guest clusters"
            ),
            Self::TooMany { cluster, counted } => write!(
                formatter,
                "host cluster {cluster} with {counted} references cannot be counted"
            ),
            Self::Bitmaps { at, why } => write!(formatter, "bitmaps: at byte {at:#x}, {why}"),
            Self::CutEntry { at, length } => write!(
                formatter,
                "the file ends inside the entry at byte {at:#x}, at {length:#x}, and what is missing decides what it points to"
            ),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = if self.repaired { " (repaired)" } else { "" };
        write!(formatter, "{}{suffix}", self.problem)
    }
}

/// What a check found and a repair did. The counts are those of `qemu-img check --output=json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckReport {
    /// Problems that may lose data, found.
    pub corruptions: u64,
    /// Of these, put right.
    pub corruptions_fixed: u64,
    /// Clusters with a refcount that is too high, found.
    pub leaks: u64,
    /// Of these, put right.
    pub leaks_fixed: u64,
    /// End of the last cluster in use, in bytes.
    pub image_end_offset: u64,
    /// Clusters of the guest disk.
    pub total_clusters: u64,
    /// Of these, those with a host cluster.
    pub allocated_clusters: u64,
    /// Of these, those whose predecessor in the same L2 table lies elsewhere on the host, and those that are compressed.
    pub fragmented_clusters: u64,
    /// Of these, those that are compressed.
    pub compressed_clusters: u64,
    /// Whether the refcount structures were rebuilt.
    pub rebuilt: bool,
    /// The first [`MAX_FINDINGS`] problems.
    pub findings: Vec<Finding>,
    /// Of the corruptions, those that a repair leaves as they are, because putting them right would be a guess.
    pub(super) staying: u64,
    /// Whether something is wrong over which no repair can be trusted.
    pub(super) hopeless: bool,
    /// The entry inside which the file ends, if that matters.
    pub(super) cut: Option<Problem>,
}

impl CheckReport {
    /// Whether nothing is wrong, or nothing is any more.
    pub fn is_consistent(&self) -> bool {
        self.corruptions == self.corruptions_fixed && self.leaks == self.leaks_fixed
    }

    /// Whether the image may be written as it is now: every reference is counted, so nothing that is in use is handed out, even
    /// where it stays unknown what an entry should have said.
    pub fn is_writable(&self) -> bool {
        let staying = self.corruptions == self.corruptions_fixed + self.staying;
        !self.hopeless && self.cut.is_none() && staying && self.leaks == self.leaks_fixed
    }

    /// The entry inside which the file ends, if its missing bytes decide what it points to.
    pub(crate) fn cut_entry(&self) -> Option<&Problem> {
        self.cut.as_ref()
    }

    /// Records something that a repair puts right.
    pub(super) fn add(&mut self, problem: Problem) {
        self.record(problem, false);
    }

    /// Records something that a repair leaves as it is, and that is counted right all the same.
    pub(super) fn add_staying(&mut self, problem: Problem) {
        self.staying += 1;
        self.record(problem, true);
    }

    /// Records something over which no repair can be trusted.
    pub(super) fn add_hopeless(&mut self, problem: Problem) {
        self.hopeless = true;
        self.record(problem, false);
    }

    fn record(&mut self, problem: Problem, stays: bool) {
        match problem {
            Problem::Leak { .. } => self.leaks += 1,
            _ => self.corruptions += 1,
        }
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(Finding { problem, repaired: false, stays });
        }
    }

    /// Takes back that some of the staying problems, `count` in all, stay.
    pub(super) fn resolve(&mut self, count: u64, which: impl Fn(&Problem) -> bool) {
        self.staying -= count;
        for finding in &mut self.findings {
            finding.stays &= !which(&finding.problem);
        }
    }

    /// Records that the leaks were repaired.
    pub(super) fn leaks_repaired(&mut self) {
        self.leaks_fixed = self.leaks;
        for finding in &mut self.findings {
            finding.repaired |= matches!(finding.problem, Problem::Leak { .. });
        }
    }

    /// Records that everything was repaired that a repair can put right.
    pub(super) fn all_repaired(&mut self) {
        self.leaks_fixed = self.leaks;
        self.corruptions_fixed = self.corruptions - self.staying;
        for finding in &mut self.findings {
            finding.repaired |= !finding.stays;
        }
    }
}
