//! Refcounts against references: the structural half of the judgement (P4).
//!
//! ```text
//!   claims      header 0 . table 1 . block 2 . l1 3 . l2[0] 5 . data[0] 4 . data[1] 4        counted[4] = 2
//!   refcounts      1         1         1       1       1           1                          stored[4] = 1
//!                                                                  `-- too low, overlap
//! ```
//!
//! The invariant: every reference in the image is counted once, every refcount that is not 0 is compared, and so is COPIED in
//! every entry that can carry it. What is in a data file is counted by nothing, and no reference. The auditor states facts; [`Finding::violates`] says when they are violations.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::sync::Arc;

use serde::Serialize;

use crate::evidence::Readable;
use crate::finding::{Finding, Property, Stage};
use crate::image::{COPIED, Header, Image};
use crate::label::Region;
use crate::memory::{Memory, Told};
use crate::mistake::Mistake;

/// Findings that a report keeps; the totals count all.
pub const MAX_FINDINGS: usize = 1 << 16;

/// What an audit found.
#[derive(Clone, Debug, Default)]
pub struct AuditReport {
    /// The header, unless it was unusable.
    pub header: Option<Header>,
    /// Everything that is not as it should be, whether or not it is a violation.
    pub findings: Vec<Finding>,
    /// Figures in the shape of `qemu-img check --output=json`.
    pub totals: CheckTotals,
}

/// The figures that `qemu-img check --output=json` gives, under its keys. Those that are 0 are left out, as there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckTotals {
    /// Where the last cluster in use ends.
    pub image_end_offset: u64,
    /// Guest clusters.
    pub total_clusters: u64,
    /// Things that kept the audit from being complete.
    pub check_errors: u64,
    /// Findings other than leaks.
    #[serde(skip_serializing_if = "is_zero")]
    pub corruptions: u64,
    /// Clusters with too high a refcount.
    #[serde(skip_serializing_if = "is_zero")]
    pub leaks: u64,
    /// Guest clusters with a host cluster.
    #[serde(skip_serializing_if = "is_zero")]
    pub allocated_clusters: u64,
    /// Of these, the ones that do not follow their predecessor in the same table.
    #[serde(skip_serializing_if = "is_zero")]
    pub fragmented_clusters: u64,
    /// Of these, the compressed ones.
    #[serde(skip_serializing_if = "is_zero")]
    pub compressed_clusters: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl AuditReport {
    /// The findings that are violations in an image at `stage`.
    pub fn violations(&self, stage: Stage) -> impl Iterator<Item = (Property, &Finding)> {
        self.findings.iter().filter_map(move |f| Some((f.violates(stage)?, f)))
    }

    /// The stage of an image after a power cut and before anything else.
    pub fn crashed_stage(&self) -> Stage {
        let dirty = self.header.is_some_and(|header| header.is_dirty());
        if dirty { Stage::CrashedDirty } else { Stage::CrashedClean }
    }

    /// Whether findings were left out.
    pub fn is_cut_short(&self) -> bool {
        self.findings.len() >= MAX_FINDINGS
    }
}

/// Audits images one after the other, with the same buffers.
#[derive(Clone, Debug, Default)]
pub struct Auditor {
    last: Arc<Audited>,
    memory: Option<Memory<Audited>>,
    mistake: Mistake,
}

/// An image that was audited.
#[derive(Clone, Debug, Default)]
struct Audited {
    image: Image,
    report: AuditReport,
}

impl Auditor {
    /// An auditor with a deliberate mistake.
    pub fn with_mistake(mistake: Mistake) -> Self {
        Self { last: Arc::new(Audited::with_mistake(mistake)), memory: None, mistake }
    }

    /// Whether what follows from what a disk answers is remembered from now on: then the values of all that is audited have to be of one store.
    pub fn remember(&mut self, remembers: bool) {
        self.memory = remembers.then(|| self.memory.take().unwrap_or_default());
    }

    /// Reads and audits an image. Resolves its metadata and nothing else.
    pub fn audit<E: Readable>(&mut self, evidence: &mut E) -> &AuditReport {
        let Some(memory) = &mut self.memory else {
            let last = Arc::make_mut(&mut self.last);
            last.audit(evidence, self.mistake);
            return &last.report;
        };
        if let Some(known) = memory.find(evidence) {
            self.last = Arc::clone(known);
        } else {
            let mut told = Told::new(evidence);
            let mut new = Audited::with_mistake(self.mistake);
            new.audit(&mut told, self.mistake);
            let weight = new.image.weight();
            self.last = Arc::new(new);
            memory.keep(told, Arc::clone(&self.last), weight);
        }
        &self.last.report
    }

    /// The image that was audited last.
    pub fn image(&self) -> &Image {
        &self.last.image
    }

    /// The report on the image that was audited last.
    pub fn report(&self) -> &AuditReport {
        &self.last.report
    }
}

impl Audited {
    fn with_mistake(mistake: Mistake) -> Self {
        Self { image: Image::with_mistake(mistake), report: AuditReport::default() }
    }

    fn audit<E: Readable>(&mut self, evidence: &mut E, mistake: Mistake) {
        self.report.findings.clear();
        self.image.read(evidence, &mut self.report.findings);
        self.compare_refcounts();
        self.compare_copied();
        self.report.findings.retain(|finding| !overlooked(finding, mistake));
        self.report.header = self.image.header().copied();
        self.report.totals = self.totals();
        self.report.findings.truncate(MAX_FINDINGS);
    }

    fn compare_refcounts(&mut self) {
        let findings = &mut self.report.findings;
        for (cluster, slot) in self.image.stored_in().flat_map(|it| self.image.uneven(it)) {
            let (cluster, stored, counted) = (cluster.into(), slot.stored, slot.counted.into());
            if stored > counted {
                findings.push(Finding::Leak { cluster, stored, counted });
            }
        }
        for &(cluster, stored) in self.image.stored_beyond() {
            findings.push(Finding::Leak { cluster, stored, counted: 0 });
        }
        for (index, claim) in (0..).zip(self.image.claims()) {
            for (cluster, slot) in self.image.uneven(&claim.clusters) {
                let (stored, counted) = (slot.stored, slot.counted.into());
                if stored < counted && slot.first_claim == index {
                    let cluster = cluster.into();
                    findings.push(Finding::RefcountTooLow { cluster, stored, counted });
                }
            }
        }
    }

    fn compare_copied(&mut self) {
        for claim in self.image.claims() {
            if !matches!(claim.region, Region::L2(_) | Region::Data(_)) {
                continue;
            }
            for (cluster, slot) in self.image.slots(&claim.clusters) {
                let (at, cluster, entry) = (claim.region, cluster.into(), claim.entry);
                let (stored, counted) = (slot.stored, u64::from(slot.counted));
                let finding = match (entry & COPIED != 0, counted, stored) {
                    (true, 2.., _) => Finding::CopiedOnShared { at, cluster, entry, counted },
                    (true, _, 0 | 2..) => Finding::CopiedStale { at, cluster, entry, stored },
                    (false, 1, 1) => Finding::CopiedMissing { at, cluster, entry },
                    _ => continue,
                };
                self.report.findings.push(finding);
            }
        }
    }

    fn totals(&self) -> CheckTotals {
        let Some(header) = self.image.header() else {
            return CheckTotals { check_errors: 1, ..CheckTotals::default() };
        };
        let mapped = self.image.mapped();
        let stored = self.image.stored_in().flat_map(|clusters| self.image.slots(clusters));
        let last = stored.rev().find(|(_, slot)| slot.stored != 0);
        let used = last.map_or(0, |(last, _)| last.saturating_add(1));
        let referenced = self.image.claims().iter().map(|claim| claim.clusters.end).max();
        let end = u64::from(referenced.unwrap_or(0).max(used));
        let mut totals = CheckTotals {
            image_end_offset: end.saturating_mul(header.cluster_size()),
            total_clusters: header.size.div_ceil(header.cluster_size()),
            allocated_clusters: mapped.allocated,
            fragmented_clusters: mapped.fragmented,
            compressed_clusters: mapped.compressed,
            ..CheckTotals::default()
        };
        for finding in &self.report.findings {
            let count = match finding {
                Finding::Leak { .. } => &mut totals.leaks,
                Finding::Unsupported { .. } => &mut totals.check_errors,
                Finding::Dirty => continue,
                _ => &mut totals.corruptions,
            };
            *count = count.saturating_add(1);
        }
        totals
    }
}

/// Whether a mistaken auditor would not have stated this.
fn overlooked(finding: &Finding, mistake: Mistake) -> bool {
    matches!(
        (mistake, finding),
        (Mistake::RefcountTooLowIgnored, Finding::RefcountTooLow { .. })
            | (Mistake::LeakIgnored, Finding::Leak { .. })
            | (Mistake::CopiedOnSharedIgnored, Finding::CopiedOnShared { .. })
            | (
                Mistake::CopiedInexactIgnored,
                Finding::CopiedMissing { .. } | Finding::CopiedStale { .. }
            )
            | (Mistake::DirtyIgnored, Finding::Dirty)
            | (Mistake::CorruptIgnored, Finding::Corrupt)
            | (Mistake::OutOfRangeIgnored, Finding::OutOfRange { .. })
            | (
                Mistake::HeaderRangesUnchecked,
                Finding::OutOfRange { at: Region::L1 | Region::RefcountTable, .. }
            )
            | (
                Mistake::SharedTableIgnored,
                Finding::Overlap { first: Region::L2(_), second: Region::L2(_), .. }
            )
            | (Mistake::OverlapIgnored, Finding::Overlap { .. })
            | (Mistake::MisalignedIgnored, Finding::Misaligned { .. })
            | (Mistake::ReservedBitsIgnored, Finding::ReservedBits { .. })
            | (Mistake::InvalidSubclustersIgnored, Finding::InvalidSubclusters { .. })
            | (Mistake::DataFileOffsetIgnored, Finding::DataFileOffset { .. })
            | (Mistake::DataFileShortIgnored, Finding::DataFileShort { .. })
            | (Mistake::HeaderFieldIgnored, Finding::Header { .. })
            | (Mistake::UnsupportedIgnored, Finding::Unsupported { .. })
    )
}
