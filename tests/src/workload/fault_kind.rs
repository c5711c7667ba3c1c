//! What goes wrong within a life, by name.

use std::fmt;
use std::str::FromStr;

use faultfs::fault::{Fault, FaultAt, PlannedFault};
use faultfs::profile::FlushFailure;
use faultfs::trace::IoKind;
use serde::{Deserialize, Serialize};

/// A kind of thing that goes wrong within a life, short of a power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FaultKind {
    /// EIO of a read.
    Read,
    /// A read that transfers a part and fails.
    ShortRead,
    /// EIO of a write, zeroing, discard or change of the length.
    Write,
    /// A write or zeroing that transfers a part and fails.
    ShortWrite,
    /// ENOSPC, once.
    NoSpace,
    /// ENOSPC until there is room again.
    NoSpaceForAWhile,
    /// A failed flush, and another that may succeed in full.
    FlushRetrySafe,
    /// A failed flush, and others that succeed without what it lost.
    FlushCleanMarked,
    /// A failed flush, and none that succeeds any more.
    FlushSticky,
    /// A write, zeroing, discard or change of the length that fails and may land until the storage is settled.
    Late,
    /// A write-through write that fails in its sync, with one of the meanings of a failed flush.
    WriteThroughFailed,
    /// ENOSPC of every change of the length, to the end of the life.
    FullDevice,
    /// A request whose future is dropped.
    Dropped,
}

impl FaultKind {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Read,
        Self::ShortRead,
        Self::Write,
        Self::ShortWrite,
        Self::NoSpace,
        Self::NoSpaceForAWhile,
        Self::FlushRetrySafe,
        Self::FlushCleanMarked,
        Self::FlushSticky,
        Self::Late,
        Self::WriteThroughFailed,
        Self::FullDevice,
        Self::Dropped,
    ];

    /// The name in reports and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::ShortRead => "short-read",
            Self::Write => "write",
            Self::ShortWrite => "short-write",
            Self::NoSpace => "no-space",
            Self::NoSpaceForAWhile => "no-space-for-a-while",
            Self::FlushRetrySafe => "flush-retry-safe",
            Self::FlushCleanMarked => "flush-clean-marked",
            Self::FlushSticky => "flush-sticky",
            Self::Late => "late",
            Self::WriteThroughFailed => "write-through-failed",
            Self::FullDevice => "full-device",
            Self::Dropped => "dropped",
        }
    }

    /// Every two kinds of fault that one life may have, each pair once.
    pub fn pairs() -> impl Iterator<Item = (Self, Self)> {
        let all = Self::ALL.into_iter();
        all.flat_map(|one| Self::ALL.into_iter().map(move |other| (one, other)))
            .filter(|&(one, other)| one < other || (one == other && one != Self::Dropped))
    }

    /// The kind of a planned fault.
    pub const fn of(planned: &PlannedFault) -> Self {
        let reads = matches!(planned.at, FaultAt::Nth { kind: IoKind::Read, .. });
        match (planned.fault, planned.at) {
            (Fault::Eio, _) if reads => Self::Read,
            (Fault::Eio, _) => Self::Write,
            (Fault::Short { .. }, _) if reads => Self::ShortRead,
            (Fault::Short { .. }, _) => Self::ShortWrite,
            (Fault::Enospc { .. }, FaultAt::Span { .. }) => Self::NoSpaceForAWhile,
            (Fault::Enospc { .. }, FaultAt::From { .. }) => Self::FullDevice,
            (Fault::Enospc { .. }, _) => Self::NoSpace,
            (Fault::Flush(FlushFailure::RetrySafe), _) => Self::FlushRetrySafe,
            (Fault::Flush(FlushFailure::CleanMarked), _) => Self::FlushCleanMarked,
            (Fault::Flush(FlushFailure::Sticky), _) => Self::FlushSticky,
            (Fault::Late, _) => Self::Late,
            (Fault::Through(_), _) => Self::WriteThroughFailed,
        }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No kind of fault has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown kind of fault {name:?}: expected one of {}", FaultKind::ALL.map(FaultKind::name).join(", "))]
pub struct UnknownFault {
    name: String,
}

impl FromStr for FaultKind {
    type Err = UnknownFault;

    fn from_str(name: &str) -> Result<Self, UnknownFault> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| UnknownFault { name: name.to_owned() })
    }
}
