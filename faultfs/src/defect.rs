//! Deliberate defects of the disk, one per rule, so that its validation can prove that it would notice.
//!
//! Invariant: a defect is a property of one disk and its forks, and exists only with the feature `mutants`; without
//! it every question about one is the constant `false`.

/// One way in which the disk may be wrong.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// A flush drops nothing: what it superseded stays possible.
    FlushKeepsSuperseded,
    /// A crash leaves only the newest pending value or the oldest one, none between.
    NewestOrBase,
    /// A write-through write completes like a cached one.
    ThroughForgotten,
    /// A write-through write makes everything durable that completed before it.
    ThroughIsBarrier,
    /// A write-through write does not make the length durable that it needs.
    ThroughForgetsLength,
    /// A flush covers what was submitted before it, not what had completed.
    FlushCoversSubmitted,
    /// A flush decides a base that nothing overwrote.
    FlushNarrowsBase,
    /// A cached write is durable as soon as it completes.
    CompletionIsDurable,
    /// A failed flush forgets what is pending.
    FailedFlushDropsPending,
    /// A failed flush covers as a good one does.
    FailedFlushCovers,
    /// Pages marked clean by a failed flush are covered by the next one all the same.
    CleanMarkedIsRetrySafe,
    /// A sync works again after one failed for good.
    StickyForgets,
    /// A failed write can no longer land.
    FailedWriteVanishes,
    /// A write that fails late has ended all the same.
    LateIsOver,
    /// A write that failed late has ended when a flush completes.
    LateEndsAtFlush,
    /// Settling ends nothing.
    LateSurvivesSettle,
    /// What failed late and has been settled can no longer land.
    SettledLateVanishes,
    /// A write-through write that fails in its sync loses nothing, whatever that means.
    FailedSyncTaintsNothing,
    /// It loses nothing that completed before it.
    FailedSyncSparesOthers,
    /// It is not lost itself.
    FailedSyncSparesItself,
    /// It never fails for good.
    FailedSyncNeverSticks,
    /// Write-through works after a sync failed for good.
    StickySparesThrough,
    /// A crash forgets writes in flight.
    CrashForgetsInFlight,
    /// The length of the file is always durable.
    LengthNeverLags,
    /// A shorter length leaves the units that it cuts as they were.
    CutUnitsKept,
    /// A short length chosen after a crash leaves the units beyond it as they were.
    ShortLengthKeepsUnits,
    /// A discard is a write of zeroes.
    DiscardIsZero,
    /// Writing zeroes is a discard.
    ZeroesAreDiscard,
    /// A read of an undecided unit leaves it undecided.
    ReadDoesNotCollapse,
    /// A read never returns what is still in flight.
    ReadMissesInFlight,
    /// Of two overlapping writes the one submitted later wins.
    OverlapIsOrdered,
    /// Profile `cache` tears.
    CacheTears,
    /// Profile `torn` does not tear.
    TornIsWhole,
    /// Profile `kill` loses completed writes.
    KillLosesCompleted,
    /// Profile `prefix` leaves holes.
    PrefixHasHoles,
    /// Profile `epoch` has no barriers.
    EpochIgnoresBarrier,
    /// Profile `trash` spoils what is durable.
    TrashStrikesAll,
    /// Profile `bit-rot` flips two bits of a unit.
    RotFlipsTwo,
    /// Profile `misdirected` lands every write where it belongs.
    MisdirectedStaysHome,
    /// A discard that fails late has ended all the same.
    LateDiscardIsOver,
    /// Settling does not end a discard that failed late.
    LateDiscardSurvivesSettle,
    /// Settling does not end a length change that failed late.
    LateLengthSurvivesSettle,
    /// What is not a write and whose future is dropped never happens.
    DroppedIsGone,
    /// What is not a write ends as soon as its future is dropped.
    DroppedEndsAtOnce,
    /// Settling does not wait for dropped discards.
    SettleSparesDiscards,
    /// Settling does not wait for dropped zeroing.
    SettleSparesZeroes,
    /// Settling does not wait for dropped length changes.
    SettleSparesLengths,
    /// A device of which discards zero leaves what was there.
    DiscardModeIgnored,
    /// Where a crash chooses by whole writes, a discard always lands.
    DiscardAlwaysLands,
    /// A discard that fell short counts in whole.
    ShortDiscardIsWhole,
    /// A write-through write that fell short is durable as far as it got.
    ShortThroughIsDurable,
    /// A write-through write supersedes what is in flight when it completes.
    ThroughOvertakes,
    /// Of two flushes in flight the older covers what the younger one would.
    OlderFlushCoversYounger,
    /// A flush that fails takes the older ones in flight along.
    YoungerFlushEndsOlder,
    /// The change log does not tell that a whole write was decided.
    ChangesForgetFates,
    /// A flush of one file covers what completed of the other.
    FlushCoversBothFiles,
    /// A failed flush of one file loses what completed of the other.
    FailedFlushLosesBothFiles,
    /// A shorter length of the first file cuts the second one off.
    SetLenCutsBothFiles,
    /// A flush of one file in flight is a barrier of the other.
    BarrierIsOfBothFiles,
    /// Profile `prefix` cuts off what completed before something durable of the other file.
    FlushOrdersOneFile,
}

impl Defect {
    /// All of them.
    #[doc(hidden)]
    pub const ALL: [Self; 60] = [
        Self::FlushKeepsSuperseded,
        Self::NewestOrBase,
        Self::ThroughForgotten,
        Self::ThroughIsBarrier,
        Self::ThroughForgetsLength,
        Self::FlushCoversSubmitted,
        Self::FlushNarrowsBase,
        Self::CompletionIsDurable,
        Self::FailedFlushDropsPending,
        Self::FailedFlushCovers,
        Self::CleanMarkedIsRetrySafe,
        Self::StickyForgets,
        Self::FailedWriteVanishes,
        Self::LateIsOver,
        Self::LateEndsAtFlush,
        Self::LateSurvivesSettle,
        Self::SettledLateVanishes,
        Self::FailedSyncTaintsNothing,
        Self::FailedSyncSparesOthers,
        Self::FailedSyncSparesItself,
        Self::FailedSyncNeverSticks,
        Self::StickySparesThrough,
        Self::CrashForgetsInFlight,
        Self::LengthNeverLags,
        Self::CutUnitsKept,
        Self::ShortLengthKeepsUnits,
        Self::DiscardIsZero,
        Self::ZeroesAreDiscard,
        Self::ReadDoesNotCollapse,
        Self::ReadMissesInFlight,
        Self::OverlapIsOrdered,
        Self::CacheTears,
        Self::TornIsWhole,
        Self::KillLosesCompleted,
        Self::PrefixHasHoles,
        Self::EpochIgnoresBarrier,
        Self::TrashStrikesAll,
        Self::RotFlipsTwo,
        Self::MisdirectedStaysHome,
        Self::LateDiscardIsOver,
        Self::LateDiscardSurvivesSettle,
        Self::LateLengthSurvivesSettle,
        Self::DroppedIsGone,
        Self::DroppedEndsAtOnce,
        Self::SettleSparesDiscards,
        Self::SettleSparesZeroes,
        Self::SettleSparesLengths,
        Self::DiscardModeIgnored,
        Self::DiscardAlwaysLands,
        Self::ShortDiscardIsWhole,
        Self::ShortThroughIsDurable,
        Self::ThroughOvertakes,
        Self::OlderFlushCoversYounger,
        Self::YoungerFlushEndsOlder,
        Self::ChangesForgetFates,
        Self::FlushCoversBothFiles,
        Self::FailedFlushLosesBothFiles,
        Self::SetLenCutsBothFiles,
        Self::BarrierIsOfBothFiles,
        Self::FlushOrdersOneFile,
    ];
}
