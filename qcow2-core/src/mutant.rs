//! Mistakes that can be put into one image on purpose, to see whether a harness notices: each by name, each at one place.
//!
//! A [`Rule`](crate::Rule) or a [`Barrier`](crate::Barrier) taken away breaks an order that somebody wrote down. A mutant breaks what
//! nobody gave a name: an end of a range, a comparison, something kept too long or forgotten too early.
//!
//! ```text
//!   mutant!(rules, SomeMistake => what the mistake does; what is right)
//! ```
//!
//! Without the feature `sabotage` only what is right is there.

/// The right expression, or with feature `sabotage` the wrong one if these rules have that mutant.
#[cfg(feature = "sabotage")]
macro_rules! mutant {
    ($rules:expr, $name:ident => $wrong:expr; $right:expr) => {
        if $rules.has_mutant($crate::mutant::Mutant::$name) { $wrong } else { $right }
    };
}

/// The right expression, or with feature `sabotage` the wrong one if these rules have that mutant.
#[cfg(not(feature = "sabotage"))]
macro_rules! mutant {
    ($rules:expr, $name:ident => $wrong:expr; $right:expr) => {{
        // Who has rules for mutants only has them in vain.
        let _ = &$rules;
        $right
    }};
}

pub(crate) use mutant;

/// Defines all mutants from one table: by area, with doc line, variant, name, and a reason where no campaign can notice it.
#[cfg(feature = "sabotage")]
macro_rules! mutants {
    ($($area:ident, $area_name:literal: {
        $($(#[$doc:meta])+ $variant:ident = $name:literal $(, argued $reason:literal)?;)+
    })+) => {
        /// Which part of the library a mutant is in.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Area {
            $(#[doc = $area_name] $area,)+
        }

        impl Area {
            /// All areas.
            pub const ALL: &'static [Self] = &[$(Self::$area),+];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$area => $area_name,)+
                }
            }
        }

        /// A mistake that somebody could have made.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Mutant {
            $($($(#[$doc])+ $variant,)+)+
        }

        impl Mutant {
            /// All mutants, in the order of their declaration.
            pub const ALL: &'static [Self] = &[$($(Self::$variant),+),+];

            /// The name by which reports and the command line know it.
            pub const fn name(self) -> &'static str {
                match self {
                    $($(Self::$variant => $name,)+)+
                }
            }

            /// The part of the library that it is in.
            pub const fn area(self) -> Area {
                match self {
                    $($(Self::$variant => Area::$area,)+)+
                }
            }

            /// Why no campaign can notice it, and who does, where that is so.
            pub const fn reason(self) -> Option<&'static str> {
                match self {
                    $($(Self::$variant => mutants!(@reason $($reason)?),)+)+
                }
            }

            /// The mutant of that [`name`](Self::name).
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|mutant| mutant.name() == name)
            }
        }
    };
    (@reason) => { None };
    (@reason $reason:literal) => { Some($reason) };
}

#[cfg(feature = "sabotage")]
mutants! {
    Cache, "cache and eviction": {
        /// A page that is evicted before a flush has covered it leaves no stamp behind.
        EvictedStampLost = "mutant:evicted-stamp-lost";
        /// A page that is loaded again is taken to be durable, whatever stamp it had when it was evicted.
        ReloadTakenDurable = "mutant:reload-taken-durable";
        /// Eviction does not look whether the page is dirty.
        DirtyPageEvicted = "mutant:dirty-page-evicted";
        /// A page that lacks only the last change counts as written in the version that an edge asks for.
        EdgeOneVersionShort = "mutant:edge-one-version-short";
        /// A page that changed while it was written leaves the set of dirty pages.
        WrittenClearsNewer = "mutant:written-clears-newer";
        /// A new edge takes the place of all that the page had.
        EdgeReplacesOthers = "mutant:edge-replaces-others";
        /// Of two edges alike the one with the earlier stamp stays.
        MergeKeepsEarlier = "mutant:merge-keeps-earlier";
        /// A page that was asked for before its table was given up is put into the cache after.
        StalePageLoaded = "mutant:stale-page-loaded", argued "it takes a read that waits for room in a full cache for as long as its \
            table takes to move, and one more table in the same clusters before that page is evicted: qcow2-core/src/pages.rs, \
            a_page_of_a_table_that_moved_meanwhile_is_not_kept, notices";
        /// Of a table that is given up only the first page is forgotten.
        ForgetsFirstPageOnly = "mutant:forgets-first-page-only";
        /// The page of a new table holds what its memory held before.
        NewTableKeepsOldBytes = "mutant:new-table-keeps-old-bytes";
    }
    DataFiles, "external data files": {
        /// A write to the external data file counts as one to the image file.
        DataStampedInImageFile = "mutant:data-stamped-in-image-file";
        /// What is to show the layer below is discarded in the data file while its entry may still be there.
        UncoverDiscardsData = "mutant:uncover-discards-data";
        /// A cluster that the end of the disk cuts short is filled to there, and not as far as the data file goes on.
        DataFilledToDiskEnd = "mutant:data-filled-to-disk-end", argued "it takes a growth beside two requests to the cluster at the end of a disk \
            whose data file is longer: corpus/grown-beside-padding.json notices";
        /// A data file that was to be cut and was not is believed to be as long as it says.
        FailedCutBelieved = "mutant:failed-cut-believed", argued "it takes a shrink whose cut of the data file fails, and a power cut in the growth after \
            it: corpus/failed-cut-believed.json notices";
        /// A data file is cut where somebody still reads.
        CutBesideRead = "mutant:cut-beside-read", argued "it takes a read that is answered after all that a shrink does: \
            qcow2-core/tests/data_file.rs, whoever_reads_what_is_cut_off_reads_what_was_there, notices";
        /// Zeroes in a raw data file are said by entries.
        RawZeroedByEntry = "mutant:raw-zeroed-by-entry";
        /// What a raw data file has behind the end of the disk comes to light when that grows.
        GrownRawNotZeroed = "mutant:grown-raw-not-zeroed";
        /// The bit that vouches for a raw data file is cleared when the image is opened for writing.
        RawBitCleared = "mutant:raw-bit-cleared";
    }
    Compressed, "compressed clusters": {
        /// The count of a cluster with several references falls to 0 with the first.
        CountFallsToZero = "mutant:count-falls-to-zero";
        /// A cluster that others refer to is discarded on the storage.
        SharedClusterDiscarded = "mutant:shared-cluster-discarded";
        /// Of the host clusters that a stream reaches into only the first one loses a reference with it.
        StreamCountedDownOnce = "mutant:stream-counted-down-once";
        /// What a write leaves of a compressed cluster is filled with zeroes.
        CompressedRestZeroed = "mutant:compressed-rest-zeroed";
        /// A part of a compressed cluster is read from the beginning of that.
        StreamReadFromStart = "mutant:stream-read-from-start";
        /// An entry that takes the place of a compressed cluster's does not wait for its data, if that lies in new space.
        CompressedOvertaken = "mutant:compressed-overtaken";
        /// An entry does not wait for the stream that it leads to.
        StreamOvertaken = "mutant:stream-overtaken";
        /// The descriptor of a stream leaves out its last sector.
        StreamLacksItsEnd = "mutant:stream-lacks-its-end";
        /// What a stream takes the place of is not given up.
        ReplacedByStreamKept = "mutant:replaced-by-stream-kept";
        /// A last cluster that was cut short is compressed as if the disk had not grown meanwhile.
        GrownClusterCompressed = "mutant:grown-cluster-compressed", argued "it takes a request to the end of the disk that waits, a growth and a write \
            behind that end: qcow2-core/tests/grow.rs, what_was_the_end_is_not_whole_any_more, notices";
        /// Streams go on into a cluster that is free, or somebody else's by now.
        TailOutlivesCluster = "mutant:tail-outlives-cluster";
        /// Streams go on into a cluster while it is discarded.
        TailBesideDiscard = "mutant:tail-beside-discard";
        /// A stream goes on behind its cluster, whatever is there.
        StreamAcrossAnywhere = "mutant:stream-across-anywhere";
        /// A stream goes into a cluster that has as many references as it can count.
        FullCountIgnored = "mutant:full-count-ignored";
        /// An entry does not wait for the count of a cluster that its stream shares.
        SharedCountNotAwaited = "mutant:shared-count-not-awaited";
        /// An entry waits for the count of the first host cluster of its stream, but not of the second.
        SecondHostNotAwaited = "mutant:second-host-not-awaited", argued "a flush writes all counts before any entry that waits for some of \
            them: it takes a stream across two clusters whose counts are in two pages, and an eviction that parts those: \
            tests/suite/exploration.rs, a_stream_across_two_pages_of_counts_waits_for_both, notices";
    }
    Claims, "claims and dropped requests": {
        /// A write does not claim the guest cluster of which it touches only a part at its end.
        GuestClaimEndsEarly = "mutant:guest-claim-ends-early";
        /// A claim overlaps only those that begin before it or with it.
        OverlapOneSided = "mutant:overlap-one-sided";
        /// A claim overtakes an earlier one that waits.
        ClaimOvertakes = "mutant:claim-overtakes";
        /// Whoever releases a claim wakes only the first of those that wait for it.
        ReleaseWakesOne = "mutant:release-wakes-one";
        /// What a dropped request had taken is free at once, while its writes may still land.
        OrphanClustersFreedAtOnce = "mutant:orphan-clusters-freed-at-once";
        /// What a dropped request had taken is never given back.
        OrphanClustersLost = "mutant:orphan-clusters-lost";
        /// A success under a claim makes it forget the failure before.
        LaterSuccessForgets = "mutant:later-success-forgets", argued "it changes nothing: whoever fails under a claim settles, or does \
            no more I/O under it";
        /// A flush whose future is dropped leaves no orphan.
        DroppedFlushForgotten = "mutant:dropped-flush-forgotten";
        /// Who writes several pages in one claims the first.
        RunClaimsFirstPage = "mutant:run-claims-first-page";
    }
    Allocation, "allocation": {
        /// A used cluster that is taken ahead goes on to hold what it held.
        TakenAheadNotZeroed = "mutant:taken-ahead-not-zeroed";
        /// The last cluster that was ever written counts as never written.
        FreshOffByOne = "mutant:fresh-off-by-one";
        /// Nobody remembers that a cluster which was taken may have been written.
        TakenNotNoted = "mutant:taken-not-noted";
        /// The last cluster of a run is not counted.
        LastClusterUncounted = "mutant:last-cluster-uncounted";
        /// Of the counts of a run in two pages, references wait for the first only.
        CountsOfFirstPage = "mutant:counts-of-first-page";
        /// What is taken from a free run leaves its last cluster in it.
        RunKeepsTakenCluster = "mutant:run-keeps-taken-cluster";
        /// A freed cluster in front of a free run makes that run forgotten.
        FreeMergeLosesNext = "mutant:free-merge-loses-next";
        /// A run is handed out beyond the end of the file if it begins before it.
        ExtentPastLength = "mutant:extent-past-length";
        /// The search of a page of counts ends before its last one.
        SearchStopsBeforeLast = "mutant:search-stops-before-last";
        /// A new L2 table in a used cluster is not zeroed on the storage.
        TableNotZeroed = "mutant:table-not-zeroed";
    }
    Freed, "freed clusters": {
        /// A reader that began just before a reference was dropped is not waited for.
        ReaderOffByOne = "mutant:reader-off-by-one";
        /// A cluster that has become free below where the search is, is not found again.
        FreedNotReused = "mutant:freed-not-reused";
        /// The count of a freed cluster stays.
        CountNeverLowered = "mutant:count-never-lowered";
        /// A reference is gone for good once its page is written, before the flush.
        FreedBeforeFlush = "mutant:freed-before-flush";
        /// The write of a page frees what earlier versions dropped, but not what this one did.
        FreedVersionMissed = "mutant:freed-version-missed";
        /// The discard of a run goes on over the cluster behind it.
        DiscardOneTooMany = "mutant:discard-one-too-many";
        /// A freed cluster is taken out of its queue before its counts are there.
        DequeuedBeforeLoaded = "mutant:dequeued-before-loaded";
        /// A cluster that reads as zeroes is not freed with its entry.
        ZeroClusterNotFreed = "mutant:zero-cluster-not-freed";
    }
    Growth, "growth": {
        /// A larger L1 table lacks the last entry of the old one.
        L1CopyOneShort = "mutant:l1-copy-one-short";
        /// The rest of the last cluster of the disk keeps its content when the disk grows over it.
        TailNotCleared = "mutant:tail-not-cleared";
        /// A new refcount block does not count itself.
        BlockNotCounted = "mutant:block-not-counted";
        /// Where only what is needed could be had, the length that was asked for first is remembered.
        GenerousLengthRemembered = "mutant:generous-length-remembered";
        /// Each growth of the file takes the one before it for durable.
        EarlierLengthTakenDurable = "mutant:earlier-length-taken-durable";
        /// The switch to a larger L1 table does not wait for what the entries of the old one wait for.
        OldL1NotAwaited = "mutant:old-l1-not-awaited";
        /// The last cluster of an old L1 table that does not fill it is not freed.
        OldL1TailKept = "mutant:old-l1-tail-kept";
        /// A disk may need one L1 entry more than there is before its table grows.
        L1OneEntryShort = "mutant:l1-one-entry-short";
        /// The first entry that somebody left past the end of the disk stays.
        FirstLeftoverStays = "mutant:first-leftover-stays";
        /// Pages of an old refcount table stay in the cache.
        OldTablePagesStay = "mutant:old-table-pages-stay";
    }
    Encryption, "encrypted guest data": {
        /// New space is taken for zeroes though they would be deciphered.
        CipherOfHoles = "mutant:cipher-of-holes";
        /// Several places of one request are enciphered as if they followed each other.
        CipherOfFirstPlace = "mutant:cipher-of-first-place";
        /// What a request leaves of a new cluster is filled up in the clear.
        FilledInTheClear = "mutant:filled-in-the-clear";
        /// What is copied from one cluster to another is deciphered as if it had been there.
        DecipheredAtNewPlace = "mutant:deciphered-at-new-place";
        /// Guest data is written as it is, and enciphered over that.
        ClearTextFirst = "mutant:clear-text-first";
        /// A compressed cluster is written in an encrypted image, where streams are not enciphered.
        StreamInTheClear = "mutant:stream-in-the-clear";
        /// Enciphered data in a data file is discarded while its entry may still be there.
        EncryptedDataDiscarded = "mutant:encrypted-data-discarded";
        /// The key material of a passphrase that was removed stays.
        KeyMaterialKept = "mutant:key-material-kept";
        /// A slot is taken again that a change which was dropped, or failed, has turned off, whether or not that is durable.
        SlotOffNotAwaited = "mutant:slot-off-not-awaited";
        /// A further passphrase gets the slot after the first, whoever has that.
        AddedOverAnother = "mutant:added-over-another";
        /// Of the key slots that a passphrase opens only one is turned off.
        OneSlotRemoved = "mutant:one-slot-removed";
        /// Clusters taken ahead at creation say data, which nobody enciphered.
        TakenAheadInTheClear = "mutant:taken-ahead-in-the-clear", argued "campaigns create no image with clusters taken ahead: \
            qcow2-core/tests/encryption.rs, what_is_taken_ahead_reads_as_zeroes, notices";
        /// The encryption header may be written over.
        KeysUnprotected = "mutant:keys-unprotected", argued "it takes a damaged image: \
            qcow2-core/tests/encryption.rs, nothing_is_written_over_the_keys, notices";
    }
    Repair, "repair": {
        /// After a repair at opening the header of before is used.
        HeaderOfBeforeRepair = "mutant:header-of-before-repair";
        /// A repair keeps only the compatible features that it knows.
        RepairForgetsFeatures = "mutant:repair-forgets-features";
        /// An entry that makes no sense keeps its COPIED bit though others have the cluster.
        SenselessStaysCopied = "mutant:senseless-stays-copied", argued "no workload begins with an entry that makes no sense: \
            qcow2-core/tests/damage.rs, an_entry_that_makes_no_sense_keeps_what_it_may_mean, notices";
        /// An entry keeps COPIED where its cluster has several references.
        CopiedBitLeft = "mutant:copied-bit-left", argued "without snapshots no writer leaves a cluster with two references, so no workload begins with one: \
            qcow2-core/tests/damage.rs, a_cluster_that_two_map_is_safe_to_write_once_it_is_counted, notices";
        /// The last count of a refcount block is not corrected.
        LastCountOfBlockStays = "mutant:last-count-of-block-stays";
        /// A full repair corrects counts only upwards.
        RepairLeavesLeaks = "mutant:repair-leaves-leaks";
        /// The cluster in which the L1 table ends is not counted.
        L1TailUncounted = "mutant:l1-tail-uncounted";
        /// A cluster that reads as zeroes counts as unused.
        ZeroClusterUncounted = "mutant:zero-cluster-uncounted";
        /// New refcount structures begin in the last cluster in use.
        RebuildOverLastCluster = "mutant:rebuild-over-last-cluster", argued "recovery rebuilds refcount structures in place, because only damage makes it rebuild them elsewhere: \
            qcow2-core/tests/check.rs, rebuilt_structures_are_where_they_should_be, notices";
        /// New refcount blocks hold the references of before they were there.
        RebuiltCountsOfBefore = "mutant:rebuilt-counts-of-before";
        /// Of a table only the first sector that differs is corrected.
        OnlyFirstUnitCorrected = "mutant:only-first-unit-corrected";
    }
    Zero, "zero and discard": {
        /// A last cluster that was cut short when the request came is zeroed whole, though the disk has grown.
        GrownClusterZeroed = "mutant:grown-cluster-zeroed", argued "it takes a zeroing to the end of the disk, a growth and a write behind that end, each waiting for the one before: one campaign in many meets it, and qcow2-core/tests/grow.rs, what_was_the_end_is_not_whole_any_more";
        /// A request that begins inside a cluster frees all of that.
        DiscardRoundsOut = "mutant:discard-rounds-out";
        /// The last cluster of the disk, cut short, is not a whole one.
        ShortLastClusterKept = "mutant:short-last-cluster-kept";
        /// A cluster that reads as zeroes and is kept is marked so in version 2 as well.
        ZeroMarkInVersion2 = "mutant:zero-mark-in-version-2";
        /// Zeroing keeps what is behind the last whole cluster.
        ZeroTailKept = "mutant:zero-tail-kept";
        /// The first cluster behind a table that does not exist is passed over.
        ZeroSkipsAfterGap = "mutant:zero-skips-after-gap";
        /// A cluster that stays with its entry as zeroes is freed all the same.
        KeptClusterFreed = "mutant:kept-cluster-freed";
        /// What a write leaves of a cluster that read as zeroes is not zeroed.
        ReviveNotPadded = "mutant:revive-not-padded";
        /// Where the guest reads zeroes, a new mapping never waits for its data.
        ZeroesTakenForHarmless = "mutant:zeroes-taken-for-harmless";
        /// Zeroing parts of two clusters looks only whether the first one holds data.
        ZeroLooksAtFirstCluster = "mutant:zero-looks-at-first-cluster";
    }
    Shrink, "shrinking": {
        /// The cluster in which the smaller disk ends goes too.
        ShrinkCutsLastCluster = "mutant:shrink-cuts-last-cluster";
        /// The smaller disk ends where its last cluster does.
        ShrinkRoundsUp = "mutant:shrink-rounds-up";
        /// A shrink leaves the first cluster that is cut off.
        ShrinkLeavesFirst = "mutant:shrink-leaves-first", argued "a cluster that stays is counted, nobody sees it and a growth clears it, as \
            after a power cut: qcow2-core/tests/shrink.rs, what_is_cut_off_is_free, notices the space";
        /// A shrink does not wait for requests past the new end.
        ShrinkBesideRequests = "mutant:shrink-beside-requests", argued "it takes a write that stays behind while its cluster is given up, freed \
            durably and handed out again: qcow2-core/tests/shrink.rs, who_waited_finds_the_disk_smaller, notices";
        /// The last cluster of a smaller disk goes on to hold what was cut off of it.
        CutTailLeft = "mutant:cut-tail-left", argued "a growth by this library clears it once more, and no campaign has another program \
            grow the disk: qcow2-core/tests/shrink.rs, the_last_cluster_holds_nothing_past_the_end, notices";
        /// A table that something is still mapped by is given up.
        FullTableDropped = "mutant:full-table-dropped";
        /// Whoever waited for a shrink writes where the disk was.
        WaitedPastNewEnd = "mutant:waited-past-new-end", argued "what it writes there nobody sees, and a growth clears it: \
            qcow2-core/tests/shrink.rs, who_waited_finds_the_disk_smaller, notices";
    }
    Subclusters, "subclusters": {
        /// A cluster that is taken ahead counts as full of data.
        TakenAheadSaysData = "mutant:taken-ahead-says-data";
        /// What is copied from the layer when it is read leaves out what the reader asked for.
        CopyLeavesOutRead = "mutant:copy-leaves-out-read";
        /// What is copied of the layer counts as zeroes if its first unit is.
        CopyZeroByFirstUnit = "mutant:copy-zero-by-first-unit";
        /// What a layer knows of the first bytes of a range counts for all of it.
        KnownZeroesTooLong = "mutant:known-zeroes-too-long";
        /// What a write leaves of a subcluster is filled with zeroes.
        SubclusterNotFilled = "mutant:subcluster-not-filled";
        /// Subclusters that are moved to a new cluster beside a request that finds zeroes need not be there before the entry.
        MovedDataOvertaken = "mutant:moved-data-overtaken", argued "it takes a cluster that others share, of which a request touches zeroes or nothing: corpus/moved-beside-nothing.json notices";
        /// In a cluster that is mapped already, a subcluster's bit does not wait for its data.
        SubclusterOvertaken = "mutant:subcluster-overtaken";
        /// The last subcluster that a write touches is mapped only if it ends there.
        LastSubclusterUntouched = "mutant:last-subcluster-untouched";
        /// A subcluster that is written goes on to read as zeroes.
        WrittenStaysZero = "mutant:written-stays-zero";
        /// A subcluster that is zeroed keeps the bit of its data.
        ZeroedKeepsData = "mutant:zeroed-keeps-data";
        /// A subcluster that is zeroed loses its data and gets no mark.
        ZeroedShowsLayer = "mutant:zeroed-shows-layer";
        /// A cluster reads as its first subcluster does.
        ReadAsFirstSubcluster = "mutant:read-as-first-subcluster";
    }
    Layers, "layers below": {
        /// What a layer says shows the one below it counts as zeroes.
        KnownBelowIsZeroes = "mutant:known-below-is-zeroes";
        /// Of what a layer leaves to the one below it, only the first unit of each piece is read there.
        ShowsFirstUnit = "mutant:shows-first-unit";
        /// A cluster that shows a layer counts as reading as zeroes: its new mapping does not wait for its data.
        LayerOvertaken = "mutant:layer-overtaken";
        /// What a write leaves of a cluster that showed a layer is filled with zeroes.
        LayerNotCopied = "mutant:layer-not-copied";
        /// What a write leaves of a cluster that showed a layer is copied from the beginning of that cluster.
        LayerCopiedFromStart = "mutant:layer-copied-from-start";
        /// A cluster that is zeroed or discarded becomes one about which nothing is said.
        ZeroesShowLayer = "mutant:zeroes-show-layer";
        /// What is uncovered is marked as zeroes.
        UncoverHidesLayer = "mutant:uncover-hides-layer";
        /// What was marked as zeroes is not uncovered.
        UncoverKeepsZeroes = "mutant:uncover-keeps-zeroes";
        /// A last cluster that is cut short is uncovered beside a growth that has hidden what is past its end.
        UncoverBesideGrowth = "mutant:uncover-beside-growth", argued "it takes a growth over a longer layer, and a request to uncover the last cluster between its hiding and its header: corpus/uncovered-beside-a-growth.json notices";
        /// Where there is no L2 table, nothing hides a layer.
        NoTableHidesNothing = "mutant:no-table-hides-nothing";
        /// The cluster in which a layer ends does not show it.
        LayerEndsEarly = "mutant:layer-ends-early";
        /// A growth over a longer layer does not hide it.
        GrowthShowsLayer = "mutant:growth-shows-layer";
        /// A growth does not wait for the tables that it made to hide a layer.
        HidingTableNotAwaited = "mutant:hiding-table-not-awaited";
        /// Which page hides a layer is asked before it does: a table that somebody else makes meanwhile is not waited for.
        HidingPageAskedEarly = "mutant:hiding-page-asked-early", argued "it takes a shrink, a growth over what it cut off and a write between the \
            two steps that makes the table: corpus/growth-that-hid-a-layer-in-a-table-of-another.json notices";
        /// In version 2 zeroes over a layer are not written.
        ZeroesNotWrittenOverLayer = "mutant:zeroes-not-written-over-layer";
    }
    Flush, "write through and flush": {
        /// A write in place goes through though its mapping is not durable.
        ThroughThoughUnmapped = "mutant:through-though-unmapped";
        /// Whether a mapping is durable is asked of the L2 entry alone.
        L1NotLookedAt = "mutant:l1-not-looked-at";
        /// Zeroing does not heed that the image was opened to write through.
        OptionIgnoredForZeroes = "mutant:option-ignored-for-zeroes";
        /// A page that is written counts as durable.
        WrittenTakenForDurable = "mutant:written-taken-for-durable";
        /// What is written while a flush runs counts as covered by it.
        StampOfRunningFlush = "mutant:stamp-of-running-flush";
        /// Pages in one write are not looked at again when it is their turn.
        RunWrittenUnchecked = "mutant:run-written-unchecked";
        /// A flush leaves refcounts behind, dirty bit or not.
        FlushLeavesRefcounts = "mutant:flush-leaves-refcounts";
        /// Of a write through in several pieces only the first one goes through.
        ThroughFirstPieceOnly = "mutant:through-first-piece-only";
        /// A flush does not wait for the writes through beside it.
        FlushBesideThrough = "mutant:flush-beside-through";
        /// Data that is nothing but zeroes is not written.
        ZeroDataLeftOut = "mutant:zero-data-left-out";
        /// A write in place leaves nothing for a flush to do.
        InPlaceWriteUnstamped = "mutant:in-place-write-unstamped";
    }
    Open, "open and close": {
        /// Where the guest reads zeroes beside something else, a read leaves the buffer as it was.
        ZeroesTakenFromBuffer = "mutant:zeroes-taken-from-buffer";
        /// Who writes the header of an open image loses its first extension, known or not.
        HeaderForgetsExtension = "mutant:header-forgets-extension";
        /// Autoclear bits that are not known stay.
        UnknownAutoclearKept = "mutant:unknown-autoclear-kept";
        /// A session that only reads closes the image as one that wrote: it is clean then.
        CloseOfReader = "mutant:close-of-reader";
        /// A close leaves refcounts behind and marks the image clean.
        CloseLeavesRefcounts = "mutant:close-leaves-refcounts";
        /// A close does not wait until freed clusters are free.
        CloseForgetsFreed = "mutant:close-forgets-freed";
        /// A close does not settle what dropped and failed requests left.
        CloseBesideOrphans = "mutant:close-beside-orphans";
        /// The dirty bit is taken for durable when it is written.
        DirtyBelievedTooEarly = "mutant:dirty-believed-too-early";
        /// What is past the end of the file counts as zeroes on a storage that does not say so.
        StaleSpaceTakenForZeroes = "mutant:stale-space-taken-for-zeroes", argued "it takes a device that somebody makes longer after the image was opened: \
            qcow2-core/tests/limited.rs, a_device_that_becomes_longer_is_not_fresh_there, notices";
        /// An image that is marked corrupt is opened for writing.
        CorruptBitIgnored = "mutant:corrupt-bit-ignored", argued "no workload begins with an image that is marked corrupt: qcow2-core/tests/tables.rs, \
            an_entry_that_leads_to_a_table_is_not_written_through, notices";
        /// A close does not write a header again that is in doubt.
        CloseLeavesHeaderInDoubt = "mutant:close-leaves-header-in-doubt";
        /// A file that ends inside a cluster counts as if it reached that cluster's end.
        OpenLengthRoundedUp = "mutant:open-length-rounded-up", argued "it changes nothing that a power cut could show: a cluster that the \
            file ends inside never counts as never written, so all of it is written or zeroed before anything refers to it, which makes \
            the file reach its end";
    }
}

#[cfg(all(test, feature = "sabotage"))]
mod tests {
    use std::collections::BTreeSet;

    use super::{Area, Mutant};

    #[test]
    fn names_are_unique_and_resolve() {
        for &mutant in Mutant::ALL {
            assert_eq!(Mutant::from_name(mutant.name()), Some(mutant));
            assert!(mutant.name().starts_with("mutant:"));
        }
        let names: BTreeSet<_> = Mutant::ALL.iter().map(|mutant| mutant.name()).collect();
        assert_eq!(names.len(), Mutant::ALL.len());
        assert_eq!(Mutant::from_name("mutant:none"), None);
    }

    #[test]
    fn every_area_has_six_at_least() {
        for &area in Area::ALL {
            let count = Mutant::ALL.iter().filter(|mutant| mutant.area() == area).count();
            assert!(count >= 6, "{}: {count}", area.name());
        }
        assert!(Mutant::ALL.len() >= 64);
    }
}
