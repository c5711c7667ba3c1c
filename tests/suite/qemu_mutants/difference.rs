//! Where the check of this library and QEMU's think differently of an image, and why.

use std::fs;
use std::path::Path;

use qcow2_core::blocking::check;
use qcow2_core::format::Header;
use qcow2_core::format::entry::{EntryError, EntryProblem, Table};
use qcow2_core::{CheckError, CheckReport, Problem, Repair};
use qcow2_crashtest::qemu::{self, QemuError};
use serde::{Deserialize, Serialize};

use super::watched::Watched;

/// What a check thinks of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    /// It cannot be checked.
    Refused,
    Sound,
    Leaks,
    Corrupt,
}

impl Verdict {
    const fn of(corruptions: u64, leaks: u64) -> Self {
        match (corruptions, leaks) {
            (0, 0) => Self::Sound,
            (0, _) => Self::Leaks,
            _ => Self::Corrupt,
        }
    }
}

/// Why ours and QEMU's check think differently of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Difference {
    /// Ours does not check what this library does not know.
    NotSupported,
    /// Ours refuses a header that QEMU reads: two tables in one place, or extensions that the file does not reach the end of.
    HeaderRefused,
    /// QEMU does not open it: bitmaps that make no sense, or features that contradict each other.
    QemuRefuses,
    /// An entry says COPIED, and its cluster has one reference and another count. To QEMU the entry is wrong too, to us the count alone.
    CopiedByCount,
    /// An entry does not say COPIED, and its cluster has one reference and another count. To us the entry is wrong, which goes by references.
    CopiedByReferences,
    /// A count of a cluster that the file does not have. QEMU looks at those of the file only.
    CountPastEnd,
    /// An entry says COPIED and leads to no cluster. QEMU does not look.
    CopiedNowhere,
    /// Bit 0 of an entry that cannot say by it that it reads as zeroes, in version 2 or with extended entries. QEMU does not look.
    ZeroBit,
    /// A cluster has two uses, and a count that is high enough. QEMU compares counts.
    Counted,
    /// An entry leads past the end of the file, or the file ends inside of one. QEMU reads zeroes there, and so do we, and say so.
    PastEnd,
}

/// What both checks say of one image.
pub(super) struct Opinions {
    ours: Result<CheckReport, CheckError>,
    theirs: Result<qemu::Check, QemuError>,
    /// Clusters of the file.
    in_file: u64,
}

impl Opinions {
    /// Of an image of these bytes, which QEMU is shown at `path`.
    pub(super) fn of(bytes: &[u8], path: &Path) -> Self {
        fs::write(path, bytes).unwrap();
        let size = Header::parse_for_check(bytes).map_or(1, |header| header.cluster_size());
        Self {
            ours: check(&Watched::new(bytes), Repair::None),
            theirs: qemu::check(path),
            in_file: (bytes.len() as u64).div_ceil(size),
        }
    }

    /// Whether both could check it.
    pub(super) const fn both(&self) -> bool {
        self.ours.is_ok() && self.theirs.is_ok()
    }

    /// Ours and QEMU's. What QEMU could not check of an image that it opens counts as corrupt.
    pub(super) fn verdicts(&self) -> [Verdict; 2] {
        let ours = self.ours.as_ref().map(|report| Verdict::of(report.corruptions, report.leaks));
        let theirs = self.theirs.as_ref();
        let theirs =
            theirs.map(|check| Verdict::of(check.corruptions + check.check_errors, check.leaks));
        [ours.unwrap_or(Verdict::Refused), theirs.unwrap_or(Verdict::Refused)]
    }

    /// What ours says: what it found, or why it looked for nothing.
    pub(super) fn findings(&self) -> Vec<String> {
        match &self.ours {
            Ok(report) => report.findings.iter().map(ToString::to_string).collect(),
            Err(error) => vec![error.to_string()],
        }
    }

    /// Why they differ, if they do; what is not known why is an error, in words.
    pub(super) fn difference(&self) -> Result<Option<Difference>, String> {
        let ours = match (&self.ours, &self.theirs) {
            (Err(_), Err(_)) => return Ok(None),
            (Err(CheckError::Unsupported(_)), Ok(_)) => return Ok(Some(Difference::NotSupported)),
            (Err(_), Ok(_)) => return Ok(Some(Difference::HeaderRefused)),
            (Ok(_), Err(_)) => return Ok(Some(Difference::QemuRefuses)),
            (Ok(ours), Ok(_)) => ours,
        };
        let [one, other] = self.verdicts();
        let problems = || ours.findings.iter().map(|finding| &finding.problem);
        let known = match (one, other) {
            _ if one == other => return Ok(None),
            (Verdict::Leaks, Verdict::Corrupt) => problems()
                .any(|problem| matches!(problem, Problem::Leak { counted: 1, .. }))
                .then_some(Difference::CopiedByCount),
            (Verdict::Leaks, Verdict::Sound) => problems()
                .all(|problem| matches!(problem, Problem::Leak { cluster, .. } if *cluster >= self.in_file))
                .then_some(Difference::CountPastEnd),
            (Verdict::Corrupt, Verdict::Sound | Verdict::Leaks) => {
                let corruptions =
                    problems().filter(|problem| !matches!(problem, Problem::Leak { .. }));
                let mut others = corruptions.filter(|problem| !leads_to_another_place(problem)).peekable();
                if others.peek().is_none() {
                    return Ok(None);
                }
                let reasons: Option<Vec<_>> = others.map(Difference::of).collect();
                reasons.and_then(|reasons| reasons.first().copied())
            }
            _ => None,
        };
        known.map(Some).ok_or_else(|| {
            format!("ours says {one:?}, QEMU {other:?}: {}", self.findings().join("; "))
        })
    }
}

/// Whether an entry leads to another guest cluster's place in a data file. QEMU looks when it reads, and its check does not. No image of that is
/// kept: QEMU opens none without its data file.
const fn leads_to_another_place(problem: &Problem) -> bool {
    let Problem::Entry(EntryError { problem, .. }) = problem else { return false };
    matches!(problem, EntryProblem::NotItsPlace { .. })
}

impl Difference {
    pub(super) const ALL: [Self; 10] = [
        Self::NotSupported,
        Self::HeaderRefused,
        Self::QemuRefuses,
        Self::CopiedByCount,
        Self::CopiedByReferences,
        Self::CountPastEnd,
        Self::CopiedNowhere,
        Self::ZeroBit,
        Self::Counted,
        Self::PastEnd,
    ];

    /// Why what is a corruption to us is none to QEMU.
    const fn of(problem: &Problem) -> Option<Self> {
        match problem {
            Problem::Copied { counted: 0, .. } => Some(Self::CopiedNowhere),
            Problem::Copied { counted: 1, .. } => Some(Self::CopiedByReferences),
            Problem::BeyondEnd { .. } | Problem::CutEntry { .. } => Some(Self::PastEnd),
            Problem::Overlap { .. } | Problem::Shared { .. } => Some(Self::Counted),
            Problem::Entry(EntryError {
                table: Table::L2,
                problem: EntryProblem::ZeroInVersion2 | EntryProblem::Reserved(1),
                ..
            }) => Some(Self::ZeroBit),
            _ => None,
        }
    }
}
