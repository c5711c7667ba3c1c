//! Mistakes that can be put into the judge.
//!
//! A judge that finds nothing proves nothing until it is shown that it would have found something. Each variant here is one
//! deliberate mistake that such a judge could make; it is injected by value into one [`Guest`](crate::guest::Guest),
//! [`Auditor`](crate::audit::Auditor) or [`Judge`](crate::judge::Judge), and the test
//! `exam every_mutant_is_killed` shows which of this crate's examinations notices it. One that survives is a hole in the examinations.

macro_rules! mistakes {
    ($($(#[$about:meta])* $name:ident,)*) => {
        /// One deliberate mistake, or none.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub enum Mistake {
            /// The judge as it should be.
            #[default]
            None,
            $($(#[$about])* $name,)*
        }

        impl Mistake {
            /// Every mistake.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

mistakes! {
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
    /// Guest: a discard zeroes what shows a layer, though the implementation says that it does not.
    DiscardHidesLayer,
    /// Guest: what is uncovered reads as zeroes.
    UncoverShowsZeroes,
    /// Guest: what a shrink cut off is still there when the disk grows again.
    CutOffStays,
    /// Guest: what recovery chose does not bind later reads.
    CollapseForgotten,
    /// Guest: a completed read may return anything.
    ReadsUnchecked,
    /// Guest: a read may return what was superseded before it began.
    StaleReadsAllowed,
    /// Guest: a disk that is being enlarged may come back with any size.
    SizeUnchecked,
    /// Guest: a unit that may hold several values may hold zero.
    ZeroAlwaysAllowed,
    /// Guest: writing zeroes does nothing.
    ZeroesForgotten,
    /// Guest: a write puts its first value into all of its units.
    FirstValueForAll,
    /// Guest: only the first unit of a read is looked at.
    ReadsCheckedOnce,
    /// Guest: a growth that failed or was dropped counts as one that succeeded.
    FailedGrowthCounts,
    /// Guest: a flush does not make a growth durable.
    FlushSparesSize,
    /// Guest: where recovery left several values, only one stays allowed.
    CollapseToOne,
    /// Guest: anything is allowed in what a growth added.
    GrownSpaceUnjudged,
    /// Guest: a passphrase that was added may not be there.
    AddNeverSettles,
    /// Guest: a passphrase that was removed may still be there.
    RemoveNeverSettles,
    /// Guest: an addition or removal in doubt leaves nothing in a slot that is not in use.
    InterruptedLeavesNothing,
    /// Guest: which passphrases recovery was seen to leave does not bind later looks.
    OpeningsNotCollapsed,

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
    /// Auditor: that an extended entry says of subclusters what cannot be is not noticed.
    InvalidSubclustersIgnored,
    /// Auditor: a bitmap of subclusters beside a word of zeroes is not read.
    LoneBitmapUnread,
    /// Auditor: bad header fields are not noticed.
    HeaderFieldIgnored,
    /// Auditor: features that it cannot judge are not noticed.
    UnsupportedIgnored,
    /// Auditor: an L2 table in a cluster that the file ends in is taken for empty.
    CutTableUnread,
    /// Auditor: a cluster that the file ends in counts as past its end.
    CutClusterOutOfRange,
    /// Auditor: a unit that the file ends in is taken for empty.
    CutUnitUnread,
    /// Auditor: only the first L2 table is read.
    FirstTableOnly,
    /// Auditor: only the first refcount block is read.
    FirstBlockOnly,
    /// Auditor: refcounts are read as if they had 16 bits.
    RefcountsOf16Bits,
    /// Auditor: refcounts of less than 8 bits fill a byte from above.
    NarrowRefcountsFromAbove,
    /// Auditor: of a wide refcount only the lowest 16 bits are read.
    WideRefcountsCutOff,
    /// Auditor: L2 tables behind the end of the disk are not counted.
    BehindDiskUncounted,
    /// Auditor: that L1 or the refcount table lies past the end of the file is not noticed.
    HeaderRangesUnchecked,
    /// Auditor: two L1 entries for one table are not noticed.
    SharedTableIgnored,
    /// Auditor: compressed data in two clusters is counted in one.
    CompressedCountsOnce,
    /// Auditor: that a cluster in a data file is not where the guest has it is not noticed.
    DataFileOffsetIgnored,
    /// Auditor: that a data file ends before the disk is not noticed.
    DataFileShortIgnored,
    /// Auditor: clusters of a data file count as references to the image.
    DataClustersCounted,
    /// Auditor: the length of the image is taken for that of its data file.
    DataFileAsLongAsImage,

    /// Auditor: the clusters of a LUKS header are not counted.
    EncryptionHeaderUncounted,

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
    /// Judge: a writer may leave autoclear bits that it does not know.
    AutoclearMayStay,
    /// Judge: a writer may lose feature bits that it does not know.
    FeaturesMayBeLost,
    /// Judge: a writer may lose header extensions that it does not know.
    ExtensionsMayBeLost,
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
    /// Judge: guest data under any L2 table but the first is taken for granted.
    SecondTableUnjudged,
    /// Judge: what shows the layer below is taken for granted.
    LayerUnjudged,
    /// Judge: what compressed clusters read as is taken for granted.
    StreamsUnjudged,
    /// Judge: that an image names another layer, or none, is not noticed.
    LayerNameIgnored,
    /// Judge: that an image has another data file, or promises something else of it, is not noticed.
    DataFileNameIgnored,
    /// Judge: a raw data file is not looked at by itself.
    RawViewUnjudged,
    /// Judge: a raw data file may hold something else than what is read, if that is allowed too.
    ViewsMayDiffer,
    /// Judge: a repair may change a raw data file where nobody reads it through the image.
    RawViewMayChange,
    /// Judge: a second repair may change the data file.
    DataFileNoFixedPoint,
    /// Judge: that an image is encrypted otherwise than it was, or has lost its key, is not noticed.
    EncryptionIgnored,
    /// Judge: what the slots of a LUKS header say is not looked at.
    SlotsUnjudged,
    /// Judge: a passphrase may be lost that was added.
    PassphraseMayBeLost,
    /// Judge: a passphrase may open an image that was removed from it.
    RemovedMayOpen,
    /// Judge: what was kept under a passphrase that was removed may stay.
    MaterialMayStay,
    /// Judge: slots may be in use that open to nobody.
    DeadSlotsAllowed,
    /// Judge: of a LUKS header only one of the ways in which it may read is looked at.
    SlotsOfOneCombination,
    /// Judge: what a slot keeps is taken for the first of all that it may keep.
    FirstMaterialOnly,
    /// Judge: of what a slot may keep only the first that each unit may hold is tried.
    FirstGenerationOnly,
    /// Judge: a repair may change which passphrases open an image.
    SlotsMayChange,
    /// Judge: what a guest wrote may be in an encrypted image as it is.
    ClearTextAllowed,
    /// Judge: units are deciphered by the guest's numbers, whatever the cipher.
    CipherNumberOfGuest,
    /// Judge: units are deciphered by the host's numbers, whatever the cipher.
    CipherNumberOfHost,
    /// Judge: units of a data file are deciphered by their numbers in the evidence.
    CipherNumberOfEvidence,
    /// Judge: what deciphers to nothing that anybody wrote is taken for granted.
    CiphertextUnjudged,
    /// Judge: of what a unit may hold only one value is deciphered.
    FirstValueDeciphered,
    /// Judge: what was never written reads as zeroes in an encrypted image too.
    ZeroesNotDeciphered,
    /// Judge: what a value deciphers to is remembered by its key, whatever the store.
    DecipheredByKey,
    /// Judge: contents of encrypted images are compared as they are in the file.
    CiphertextCompared,
    /// Judge: what shows the layer below counts as zeroes where contents are compared.
    LayerComparedAsZeroes,
    /// Judge: that subclusters read as zeroes is not noticed.
    SubclusterZeroesIgnored,
    /// Judge: what a bitmap says nothing of is read from the host cluster.
    SilentSubclustersAllocated,
    /// Judge: what the first subcluster is all of them are.
    FirstSubclusterForAll,
    /// Judge: only the first unit of a cluster is looked at.
    FirstUnitOnly,
    /// Judge: only the first two units of a cluster are looked at.
    TwoUnitsOnly,
    /// Judge: guest data past the end of the file is taken for granted.
    CutDataUnjudged,
    /// Judge: of what a unit may hold after a repair only one value is compared.
    P3ComparesOne,
    /// Judge: a repair may not decide what was open.
    P3WantsTheSame,
    /// Judge: a repair may add to what a unit may hold.
    P3WantsOneInCommon,
    /// Judge: of what a unit may hold after a second repair only one value is compared.
    FixedPointOfOne,
    /// Judge: images of two stores are compared by the keys of their values.
    FixedPointByKey,
    /// Judge: COPIED flags that a life spoils count as inherited.
    EveryCopiedInherited,
    /// Judge: a subject that says an image is safe to write is believed.
    WritableBelieved,
}
