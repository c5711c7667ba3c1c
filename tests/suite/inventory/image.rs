//! What is done with an image.

use faultfs::profile::Robustness;
use model::build::Initial;
use model::case::Step;
use model::op::Op;
use qcow2_core::Rule;
use qcow2_crashtest::explore::alphabet::Symbol;
use qcow2_crashtest::probe::Probe;
use qcow2_crashtest::sabotage::Target;
use qcow2_crashtest::workload::{FaultKind, Shape};

use super::line::By::{
    Attack, Damage, Explored, Fault, Initial as Start, Nothing, Plans, Probe as Met,
    Shape as Shaped, Step as Recovery, Test,
};
use super::line::lines;
use super::plans::{
    beside_others, clusters, ends_at_clusters, is_compressed, is_discard, is_read, is_write,
    is_zeroing, range, some, takes_a_short_last_cluster,
};
use super::tests::{
    BACKING, BLOCKING, COMPRESS, COMPRESSED_BY_QEMU, CORPUS, COST, GROW, IMAGE, INTEROP, LAYERS,
    MATRIX, PREALLOCATE, RARE, REAL_FILE, REFUSED, RETRY, SEPARATE, SEPARATED, SHRINK, SHUTTLE,
    TABLES, WRITE_COMPRESSED, WRONG,
};

lines! {
    "Image::open()" {
        "clean" [Met(Probe::CleanClose), Recovery(Step::Open)] P4 P6;
        "dirty" [Met(Probe::DirtyCrash), Start(Initial::Dirty)] P3 P4 P5;
        "cut short by a power cut" [Met(Probe::CrashInRepair), Met(Probe::NestedTwice)] P3 P5;
        "and worked on in the session that repaired it" [
            Shaped(Shape::Working),
            Met(Probe::WorkedOn),
        ] P1 P4 P6;
        "with promises that nobody keeps" [
            Start(Initial::Bitmaps),
            Attack(Target::Rule(Rule::AutoclearFirst)),
        ] P4;
        "damaged" [
            Damage(Robustness::BitRot),
            Met(Probe::OpenRefused),
            Met(Probe::OpenedDamaged),
        ] P7 P8;
        "fails in the middle" [Test(REAL_FILE, "a_killed_process_leaves_a_file_that_recovers")];
    }
    "Image::info()" {
        "size after growth, dirty bit" [
            Explored(Symbol::Grow),
            Test(IMAGE, "an_abandoned_lazy_image_is_repaired_when_opened"),
        ] P10;
    }
    "Image::work()" {
        "counts" [Test(COST, "requests_enter_the_lock_a_few_times")];
    }
    "Image::storage()" {
        "used by whoever fills a map" [Test(RARE, "a_map_may_be_committed_failed_or_dropped")];
    }
    "Image::abandon()" {
        "with something flushed, and something not" [
            Test(RARE, "an_abandoned_image_holds_what_was_flushed"),
        ];
    }
    "Image::fork()" {
        "in every explored workload" [Explored(Symbol::WriteA)] P0;
        "as going there again" [Test(RARE, "a_fork_is_the_image_that_the_same_requests_lead_to")];
        "with a request in flight, or something that must settle" [
            Test(RARE, "an_image_with_a_request_in_flight_has_no_fork"),
        ];
    }
    "Image::read()" {
        "of zeroes, data, both" [Plans(500, |plan| some(plan, |op, _| is_read(op)))] P0;
        "a part of a cluster" [
            Plans(300, |plan| some(plan, |op, cluster| is_read(op) && !ends_at_clusters(op, cluster, true, true))),
        ] P0;
        "of many clusters" [
            Plans(5, |plan| some(plan, |op, cluster| is_read(op) && clusters(op, cluster) >= 16)),
            Shaped(Shape::Long),
        ] P0;
        "beside a discard of the same" [
            Attack(Target::Rule(Rule::ReadsBeforeReuse)),
            Plans(150, |plan| beside_others(plan, is_read)),
        ] P0;
        "more than the longest transfer" [Plans(15, |plan| some(plan, |op, _| {
            is_read(op) && range(op).is_some_and(|(_, length)| length > plan.device.max_transfer.into())
        }))] P0 P8;
        "of nothing" [
            Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name"),
            Test(BLOCKING, "blocking_calls_survive_power_cuts"),
        ];
        "past the end, or not in units" [
            Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name"),
        ];
    }
    "Image::write()" {
        "a whole cluster" [
            Explored(Symbol::WriteA),
            Plans(500, |plan| some(plan, |op, cluster| is_write(op) && ends_at_clusters(op, cluster, true, true))),
        ] P0 P1 P2;
        "begins in the middle of a cluster" [
            Plans(300, |plan| some(plan, |op, cluster| is_write(op) && ends_at_clusters(op, cluster, false, true))),
        ] P1 P2;
        "ends in the middle of a cluster" [
            Plans(300, |plan| some(plan, |op, cluster| is_write(op) && ends_at_clusters(op, cluster, true, false))),
        ] P1 P2;
        "both in the middle" [
            Explored(Symbol::WritePartOfB),
            Met(Probe::PaddedBothSides),
            Met(Probe::CopiedOnWrite),
        ] P1 P2;
        "one unit" [
            Plans(300, |plan| some(plan, |op, _| is_write(op) && range(op).is_some_and(|(_, length)| length == 512))),
        ] P1 P2;
        "over a cluster's border" [
            Explored(Symbol::WriteAcross),
            Plans(400, |plan| some(plan, |op, cluster| is_write(op) && clusters(op, cluster) == 2)),
        ] P1 P2;
        "to the end of a last cluster that is cut short" [
            Plans(50, |plan| takes_a_short_last_cluster(plan, is_write)),
        ] P1 P2;
        "many clusters" [
            Shaped(Shape::Long),
            Plans(20, |plan| some(plan, |op, cluster| is_write(op) && clusters(op, cluster) >= 16)),
        ] P1 P2 P7;
        "needs a new L2 table" [Explored(Symbol::WriteFar)] P4;
        "needs a new refcount block" [
            Met(Probe::RefcountBlockGrowth),
            Start(Initial::RefcountBlockOneShort),
        ] P4;
        "needs a new refcount table" [
            Met(Probe::RefcountTableGrowth),
            Start(Initial::RefcountTableOneShort),
        ] P4;
        "takes what was given up" [Met(Probe::Reuse)] P2;
        "beside other requests" [
            Plans(400, |plan| beside_others(plan, is_write)),
            Test(SHUTTLE, "pairs_pass_in_random_orders"),
        ] P0 P8;
        "fails, and is not tried again" [Fault(FaultKind::Write), Fault(FaultKind::Late)] P1 P2;
        "is dropped" [Fault(FaultKind::Dropped), Met(Probe::Dropped)] P2 P9;
        "more than the longest transfer" [Plans(20, |plan| some(plan, |op, _| {
            is_write(op) && range(op).is_some_and(|(_, length)| length > plan.device.max_transfer.into())
        }))] P1 P2 P8;
        "of nothing" [
            Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name"),
            Test(BLOCKING, "blocking_calls_survive_power_cuts"),
        ];
        "past the end, or not in units" [
            Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name"),
        ];
        "over a table" [
            Attack(Target::Rule(Rule::CorruptBeforeError)),
            Test(TABLES, "an_entry_that_leads_to_a_table_is_not_written_through"),
        ] P4;
    }
    "Durability::Cached" {
        "a guest write" [Explored(Symbol::WriteA)] P1 P2;
        "a write of the storage" [Met(Probe::UnflushedLost)] P1;
    }
    "Durability::Through" {
        "of a cluster that is mapped, durably" [
            Explored(Symbol::WriteThrough),
            Met(Probe::WriteThrough),
        ] P1;
        "of one that is not" [
            Explored(Symbol::WriteThrough),
            Test(CORPUS, "every_file_is_a_test"),
        ] P1;
        "fails in its sync" [
            Fault(FaultKind::WriteThroughFailed),
            Met(Probe::WriteThroughFailed),
        ] P1 P8;
    }
    "Image::write_zeroes()" {
        "whole clusters" [Explored(Symbol::ZeroA), Explored(Symbol::ZeroB)] P0 P1 P2;
        "a part of a cluster" [
            Plans(200, |plan| some(plan, |op, cluster| is_zeroing(op) && !ends_at_clusters(op, cluster, true, true))),
        ] P0 P1 P2;
        "to the end of a last cluster that is cut short" [
            Plans(10, |plan| takes_a_short_last_cluster(plan, is_zeroing)),
        ] P0 P2;
        "many clusters" [
            Plans(5, |plan| some(plan, |op, cluster| is_zeroing(op) && clusters(op, cluster) >= 16)),
            Test(WRONG, "long_requests_are_told_from_endless_ones"),
        ] P0 P7;
        "of nothing, past the end, or not in units" [
            Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name"),
        ];
    }
    "Zeroing::Keep" {
        "of data" [Explored(Symbol::ZeroB)] P0 P2;
        "of data of whose cluster there is a second reference" [
            Plans(30, |plan| {
                plan.initial == Initial::Leaky
                    && some(plan, |op, _| matches!(op, Op::WriteZeroes { unmap: false, .. }))
            }),
        ] P2 P4;
    }
    "Zeroing::Free" {
        "of data, and of zeroes with a cluster" [
            Explored(Symbol::ZeroA),
            Plans(300, |plan| some(plan, |op, _| matches!(op, Op::WriteZeroes { unmap: true, .. }))),
        ] P0 P2 P4;
    }
    "Image::discard()" {
        "one cluster" [Explored(Symbol::DiscardA)] P1 P2;
        "many, over several L2 tables" [Explored(Symbol::DiscardAll)] P1 P2 P4;
        "a part of a cluster" [
            Plans(100, |plan| some(plan, |op, cluster| is_discard(op) && !ends_at_clusters(op, cluster, true, true))),
        ] P0 P2;
        "a last cluster that is cut short" [
            Plans(15, |plan| takes_a_short_last_cluster(plan, is_discard)),
        ] P0 P2;
        "the whole disk" [Met(Probe::SpaceFoundAgain)] P6 P9;
        "where there are no tables" [Test(COST, "nothing_costs_next_to_nothing")];
        "of nothing, past the end, or not in units" [
            Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name"),
        ];
    }
    "Image::separate()" {
        "standard and extended entries, version 2 and 3" [
            Test(SEPARATE, "shared_clusters_are_separated"),
        ];
        "every power cut" [Test(SEPARATED, "separating_survives_every_power_cut")];
        "nothing to do, or not to be changed" [
            Test(SEPARATE, "nothing_is_separated_where_nothing_is_shared"),
        ];
    }
    "Image::write_compressed()" {
        "one cluster, two, and over what is there" [
            Explored(Symbol::CompressA),
            Explored(Symbol::CompressAB),
            Shaped(Shape::Compressing),
        ] P0 P1 P2 P4;
        "beside other requests" [Plans(10, |plan| beside_others(plan, is_compressed))] P0 P1;
        "parts of clusters at its ends" [
            Plans(40, |plan| some(plan, |op, cluster| {
                is_compressed(op) && !ends_at_clusters(op, cluster, true, true)
            })),
            Test(WRITE_COMPRESSED, "what_is_written_compressed_reads_back"),
        ] P0 P2;
        "a short last cluster" [
            Plans(8, |plan| takes_a_short_last_cluster(plan, is_compressed)),
        ] P0 P2;
        "counts that come to their limit" [
            Plans(2, |plan| plan.geometry.refcount_order == 1 && some(plan, |op, _| is_compressed(op))),
            Test(WRITE_COMPRESSED, "a_cluster_takes_as_many_streams_as_it_can_count"),
        ] P4;
        "of subclusters" [
            Plans(4, |plan| plan.geometry.extended_l2 && some(plan, |op, _| is_compressed(op))),
        ] P0 P2 P4;
        "in sectors that are longer" [Test(WRITE_COMPRESSED, "streams_share_no_sector")];
        "read by QEMU, and written over" [
            Test(COMPRESSED_BY_QEMU, "what_we_compress_is_qemus_to_read"),
        ];
        "where nothing is gained" [
            Plans(6, |plan| {
                plan.geometry.cluster_bits == 9 && some(plan, |op, _| is_compressed(op))
            }),
            Test(COMPRESS, "what_saves_no_sector_is_no_stream"),
        ] P0 P2;
        "that do not fit" [Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name")];
    }
    "Executor::run()" {
        "at once, on threads" [
            Test(WRITE_COMPRESSED, "what_is_written_compressed_reads_back"),
        ];
        "work that is dropped" [Test(WRITE_COMPRESSED, "dropped_work_is_told")];
    }
    "Image::uncover()" {
        "one cluster" [Explored(Symbol::UncoverA)] P0 P1 P2;
        "a part of a cluster, and beyond the layer" [
            Plans(10, |plan| some(plan, |op, _| matches!(op, Op::Uncover { .. }))),
            Test(LAYERS, "the_guest_reads_the_layer_where_the_image_says_nothing"),
        ] P0 P2;
        "beside other requests" [
            Plans(4, |plan| beside_others(plan, |op| matches!(op, Op::Uncover { .. }))),
        ] P0 P1;
        "of nothing, past the end, or not in units" [
            Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name"),
        ];
    }
    "Preallocation::Off" {
        "of an image in use" [Test(PREALLOCATE, "nothing_is_taken_without_a_mode")];
    }
    "Preallocation::Metadata" {
        "of data, zeroes and nothing" [Explored(Symbol::PreallocateAB), Shaped(Shape::Ahead)] P0 P2 P4;
        "over a layer" [Plans(8, |plan| {
            plan.geometry.below.is_some() && some(plan, |op, _| matches!(op, Op::Preallocate { .. }))
        })] P0 P1 P2;
    }
    "Preallocation::Falloc" {
        "of data, zeroes and nothing" [Shaped(Shape::Ahead)] P0 P2 P4;
    }
    "Preallocation::Full" {
        "of data, zeroes and nothing" [
            Explored(Symbol::PreallocateAll),
            Shaped(Shape::Ahead),
        ] P0 P2 P4;
    }
    "Image::preallocate()" {
        "what is written afterwards takes nothing" [
            Test(PREALLOCATE, "taking_clusters_ahead_changes_nothing_that_is_read"),
        ];
        "of what a disk has grown by" [
            Test(PREALLOCATE, "the_space_of_growth_is_taken"),
            Test(MATRIX, "every_pair_of_options_goes_both_ways"),
        ];
        "beside other requests" [
            Plans(8, |plan| beside_others(plan, |op| matches!(op, Op::Preallocate { .. }))),
        ] P0 P1;
        "of subclusters" [Plans(4, |plan| {
            plan.geometry.extended_l2 && some(plan, |op, _| matches!(op, Op::Preallocate { .. }))
        })] P0 P2;
        "past the end" [Test(PREALLOCATE, "the_space_of_growth_is_taken")];
    }
    "Image::copy_up()" {
        "all of a disk" [Test(BACKING, "an_image_becomes_one_of_its_own")];
        "a part, as a read does" [Shaped(Shape::CopyOnRead), Explored(Symbol::ReadPartOfB)] P0 P2 P4;
        "past the end" [Test(BACKING, "an_image_becomes_one_of_its_own")];
    }
    "Image::set_backing()" {
        "a name past the first 512 bytes, and in them" [
            Attack(Target::Rule(Rule::NameBeforeHeader)),
            Test(BACKING, "an_image_comes_to_name_another_layer"),
        ] P10;
        "none" [
            Attack(Target::Rule(Rule::NameBeforeHeader)),
            Test(BACKING, "an_image_becomes_one_of_its_own"),
        ] P10;
        "by QEMU too" [Test(INTEROP, "layers_are_renamed_both_ways")];
        "no room for it" [Test(BACKING, "an_image_comes_to_name_another_layer")];
    }
    "Image::grow()" {
        "within the last cluster" [Plans(20, |plan| {
            let size = plan.geometry.virtual_size;
            some(plan, |op, cluster| matches!(op, Op::Grow { to } if *to > size && size / cluster == (*to - 1) / cluster))
        }), Test(GROW, "nothing_old_comes_to_light")] P10 P2;
        "within the L1 table, where something was left" [
            Plans(8, |plan| {
                plan.initial == Initial::Leftovers
                    && some(plan, |op, _| matches!(op, Op::Grow { .. }))
            }),
            Attack(Target::Rule(Rule::NothingBeforeSize)),
        ] P10 P2;
        "with a new L1 table" [
            Explored(Symbol::Grow),
            Met(Probe::L1Growth),
            Start(Initial::L1AboutToGrow),
        ] P10 P4;
        "by many L2 tables" [Shaped(Shape::Sparse)] P10 P4;
        "again and again, so that a new table comes where an old one was" [Shaped(Shape::Growing)] P4 P6;
        "from a disk of nothing" [Test(RARE, "a_disk_of_nothing_grows")];
        "to what it is" [Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name")];
        "smaller, too large, or not in units" [
            Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name"),
        ];
        "no room for it" [
            Fault(FaultKind::FullDevice),
            Test(RETRY, "room_comes_back_and_nothing_is_lost"),
        ] P10 P8;
    }
    "Image::shrink()" {
        "within a cluster, and by many" [Plans(20, |plan| {
            some(plan, |op, _| matches!(op, Op::Shrink { .. }))
        }), Shaped(Shape::Shrinking)] P10 P1 P4;
        "and larger again" [Plans(15, |plan| {
            some(plan, |op, _| matches!(op, Op::Shrink { .. }))
                && some(plan, |op, _| matches!(op, Op::Grow { .. }))
        })] P2 P10;
        "over a layer" [Plans(2, |plan| {
            plan.geometry.below.is_some() && some(plan, |op, _| matches!(op, Op::Shrink { .. }))
        })] P2;
        "beside requests that wait" [Test(SHRINK, "who_waited_finds_the_disk_smaller")];
        "tables that are empty then" [Test(SHRINK, "what_is_cut_off_is_free")];
        "within a cluster, and larger again by others" [
            Test(SHRINK, "the_last_cluster_holds_nothing_past_the_end"),
            Test(INTEROP, "disks_shrink_both_ways"),
        ];
        "to what it is, larger, not in units, nothing" [
            Test(SHRINK, "sizes_that_do_not_fit_are_refused"),
        ];
    }
    "Image::flush()" {
        "of what has completed" [Explored(Symbol::Flush)] P1;
        "beside other requests" [
            Plans(150, |plan| beside_others(plan, |op| matches!(op, Op::Flush))),
        ] P1;
        "fails" [Met(Probe::FlushFailed)] P1 P8;
        "is dropped, and fails with nobody there to hear it" [
            Fault(FaultKind::Dropped),
            Test(CORPUS, "every_file_is_a_test"),
        ] P1;
        "of many pages" [Test(COST, "a_flush_costs_what_is_dirty")];
    }
    "Image::close()" {
        "after requests" [Explored(Symbol::Reopen), Met(Probe::CleanClose)] P1 P6;
        "after faults" [
            Met(Probe::SpaceAgain),
            Test(RETRY, "room_comes_back_and_nothing_is_lost"),
        ] P6 P8;
        "of an image that was open to read" [
            Test(REFUSED, "an_image_that_is_open_to_read_is_not_changed"),
        ];
    }
    "Image::map_read()" {
        "the whole disk, after each opening" [
            Recovery(Step::Open),
            Recovery(Step::OpenReadOnly),
        ] P3;
        "a part" [Test(IMAGE, "neighbours_are_one_extent")];
        "past the end, or not in units" [
            Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name"),
        ];
    }
    "ReadMap::extents()" {
        "neighbours, and holes" [Recovery(Step::Open), Test(IMAGE, "neighbours_are_one_extent")] P3;
    }
    "Image::map_write()" {
        "by a request of our own" [Explored(Symbol::WriteA)] P1 P2;
        "by somebody else" [
            Test(RARE, "a_map_may_be_committed_failed_or_dropped"),
            Test(IMAGE, "neighbours_are_one_extent"),
        ];
        "past the end, or not in units" [
            Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name"),
        ];
    }
    "WriteMap::extents()" {
        "neighbours" [Test(IMAGE, "neighbours_are_one_extent")];
    }
    "WriteMap::begin()" {
        "then committed, failed or dropped" [
            Test(RARE, "a_map_may_be_committed_failed_or_dropped"),
        ];
    }
    "WriteMap::commit()" {
        "after the data, or without any" [
            Test(RARE, "a_map_may_be_committed_failed_or_dropped"),
            Test(IMAGE, "neighbours_are_one_extent"),
        ];
    }
    "WriteMap::fail()" {
        "of a map with new clusters" [Test(RARE, "a_map_may_be_committed_failed_or_dropped")];
        "under power cuts" [
            Nothing("no subject writes by maps of its own; a claim that failed is the same as that of a write that failed"),
        ];
    }
}
