//! Mutants of the judge.
//!
//! A judge that finds nothing proves nothing until it is shown that it would have found something. Each variant here is one
//! deliberate mistake that such a judge could make; it is injected by value into one [`Guest`](crate::guest::Guest),
//! [`Auditor`](crate::audit::Auditor) or [`Judge`](crate::judge::Judge), and the test `mutants` shows which of this crate's
//! examinations notices it. A mutant that survives is a hole in the examinations.

/// One deliberate mistake, or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Defect {
    /// The judge as it should be.
    #[default]
    None,

    /// Guest: a flush leaves superseded values allowed.
    SupersededStaysAllowed,
    /// Guest: a flush covers what was submitted before it completed.
    FlushCoversSubmitted,
    /// Guest: a flush that failed counts as one that succeeded.
    FailedFlushSettles,
    /// Guest: a write-through write is no more durable than a cached one.
    ThroughForgotten,
    /// Guest: an image that writes everything through is judged like one that does not.
    ChangesNeverThrough,
    /// Guest: a write-through write covers everything completed before it.
    ThroughIsBarrier,
    /// Guest: a write that failed is forgotten, so its value is not allowed.
    FailedWriteForgotten,
    /// Guest: a write that failed counts as one that succeeded.
    FailedWriteCounts,
    /// Guest: a write whose future was dropped is forgotten.
    AbandonedWriteForgotten,
    /// Guest: a crash forgets writes in flight.
    CrashForgetsInFlight,
    /// Guest: a discard zeroes the parts of clusters at both ends too.
    DiscardZeroesPartialClusters,
    /// Guest: a discard does nothing.
    DiscardForgotten,
    /// Guest: what recovery chose does not bind later reads.
    CollapseForgotten,
    /// Guest: a completed read may return anything.
    ReadsUnchecked,
    /// Guest: a read may return what was superseded before it began.
    StaleReadsAllowed,
    /// Guest: a disk that is being enlarged may come back with any size.
    SizeUnchecked,

    /// Auditor: refcounts below the references are not noticed.
    RefcountTooLowIgnored,
    /// Auditor: leaks are not noticed.
    LeakIgnored,
    /// Auditor: COPIED on shared clusters is not noticed.
    CopiedOnSharedIgnored,
    /// Auditor: missing and stale COPIED flags are not noticed.
    CopiedInexactIgnored,
    /// Auditor: the dirty bit is not noticed.
    DirtyIgnored,
    /// Auditor: the corrupt bit is not noticed.
    CorruptIgnored,
    /// Auditor: references past the end of the file are not noticed.
    OutOfRangeIgnored,
    /// Auditor: two references to one cluster are not noticed.
    OverlapIgnored,
    /// Auditor: misaligned offsets are not noticed.
    MisalignedIgnored,
    /// Auditor: reserved bits are not noticed.
    ReservedBitsIgnored,
    /// Auditor: bad header fields are not noticed.
    HeaderFieldIgnored,
    /// Auditor: features that it cannot judge are not noticed.
    UnsupportedIgnored,

    /// Judge: any payload is good in any unit.
    ForeignDataAccepted,
    /// Judge: only one of the values that a unit may hold is looked at.
    OneOfTheSetIsEnough,
    /// Judge: unallocated and zero clusters are taken for granted.
    UnmappedUnjudged,
    /// Judge: the dirty bit excuses everything.
    DirtyExcusesAll,
    /// Judge: a bitmap may say that it is up to date and not be.
    StaleBitmapAllowed,
    /// Judge: leaks that a life adds count as inherited.
    EveryLeakInherited,
    /// Judge: repair may change contents.
    RepairMayChangeContents,
    /// Judge: a second repair may write.
    SecondRepairMayWrite,
    /// Judge: a subject's claims are believed.
    ClaimsBelieved,
    /// Judge: the subject's own mapping is not compared.
    MappingUncompared,
}

impl Defect {
    /// Every mistake.
    pub const ALL: [Self; 38] = [
        Self::SupersededStaysAllowed,
        Self::FlushCoversSubmitted,
        Self::FailedFlushSettles,
        Self::ThroughForgotten,
        Self::ChangesNeverThrough,
        Self::ThroughIsBarrier,
        Self::FailedWriteForgotten,
        Self::FailedWriteCounts,
        Self::AbandonedWriteForgotten,
        Self::CrashForgetsInFlight,
        Self::DiscardZeroesPartialClusters,
        Self::DiscardForgotten,
        Self::CollapseForgotten,
        Self::ReadsUnchecked,
        Self::StaleReadsAllowed,
        Self::SizeUnchecked,
        Self::RefcountTooLowIgnored,
        Self::LeakIgnored,
        Self::CopiedOnSharedIgnored,
        Self::CopiedInexactIgnored,
        Self::DirtyIgnored,
        Self::CorruptIgnored,
        Self::OutOfRangeIgnored,
        Self::OverlapIgnored,
        Self::MisalignedIgnored,
        Self::ReservedBitsIgnored,
        Self::HeaderFieldIgnored,
        Self::UnsupportedIgnored,
        Self::ForeignDataAccepted,
        Self::OneOfTheSetIsEnough,
        Self::UnmappedUnjudged,
        Self::DirtyExcusesAll,
        Self::StaleBitmapAllowed,
        Self::EveryLeakInherited,
        Self::RepairMayChangeContents,
        Self::SecondRepairMayWrite,
        Self::ClaimsBelieved,
        Self::MappingUncompared,
    ];
}
