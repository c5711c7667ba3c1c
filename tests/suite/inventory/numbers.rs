//! Numbers that decide.

use model::build::Initial;
use qcow2_crashtest::explore::alphabet::Symbol;
use qcow2_crashtest::probe::Probe;
use qcow2_crashtest::workload::Shape;

use super::line::By::{
    Explored, Initial as Start, Nothing, Plans, Probe as Met, Shape as Shaped, Test,
};
use super::line::lines;
use super::plans::{clusters, is_discard, is_write, some};
use super::tests::{
    BACKING, CACHE, CHECK, CORPUS, COST, DAMAGE, DECOMPRESS, EXTENSION, FREE, GROW, HEADER,
    INTEROP, LIMITED, MALFORMED, MATRIX, RARE, RETRY, SHRINK, WRITE_COMPRESSED,
};

lines! {
    "order::DURABLE" {
        "what was there when the image was opened" [Met(Probe::CleanClose)] P1;
    }
    "alloc::AT_ONCE" {
        "more runs of free clusters than that" [Test(GROW, "more_holes_than_are_known_are_passed")];
    }
    "reap::AT_ONCE" {
        "more freed clusters than that" [
            Explored(Symbol::DiscardAll),
            Test(COST, "freed_clusters_cost_what_they_are"),
        ] P2 P9;
    }
    "reap::START" {
        "freed clusters from the first one on" [Met(Probe::Reuse)] P2 P9;
    }
    "flush::RUN_BYTES" {
        "fewer neighbours than that" [Met(Probe::CleanClose)] P1 P4;
        "more than a transfer takes" [Shaped(Shape::Transfers)] P1 P4 P8;
        "more than that" [
            Nothing("it takes 256 KiB of tables in a row, all dirty; the same comparison cuts them at a shorter transfer"),
        ];
    }
    "flush::LOOKED_AT" {
        "more dirty pages than that" [Test(COST, "a_flush_costs_what_is_dirty")];
    }
    "protect::PIECE" {
        "a longer table" [
            Test(CHECK, "a_table_is_not_given_out"),
            Test(RARE, "the_largest_disk_works_to_its_end"),
            Start(Initial::RefcountTableOneShort),
        ] P4;
    }
    "read::AT_ONCE" {
        "more clusters than that" [Shaped(Shape::Sparse)] P3;
    }
    "write::AT_ONCE" {
        "more clusters than that" [
            Plans(1, |plan| some(plan, |op, cluster| is_write(op) && clusters(op, cluster) > 256)),
            Test(COST, "a_long_request_costs_what_it_covers"),
        ] P1 P2;
    }
    "write_compressed::AT_ONCE" {
        "more clusters than that" [Test(WRITE_COMPRESSED, "streams_lie_without_a_gap")];
    }
    "preallocate::ZEROES" {
        "more zeroes than that" [Test(MATRIX, "every_pair_of_options_goes_both_ways")];
    }
    "shrink::AT_ONCE" {
        "more clusters than that" [Test(SHRINK, "what_is_cut_off_is_free")];
    }
    "zero::AT_ONCE" {
        "more clusters than that" [
            Plans(1, |plan| some(plan, |op, cluster| is_discard(op) && clusters(op, cluster) > 256)),
            Test(COST, "a_long_request_costs_what_it_covers"),
        ] P0 P1;
        "more tables that do not exist" [Test(COST, "nothing_costs_next_to_nothing")];
    }
    "cache::RECENT" {
        "fewer pages than one request needs" [
            Shaped(Shape::Eviction),
            Test(CACHE, "a_page_goes_when_it_has_not_been_used_for_a_while"),
            Test(COST, "the_smallest_cache_is_enough"),
        ] P0 P4 P7;
    }
    "cache::LEAST" {
        "a limit below it" [
            Shaped(Shape::Eviction),
            Test(MALFORMED, "a_full_image_with_a_small_cache_can_be_written"),
        ] P7;
    }
    "cache::LOOKED_AT" {
        "more dirty pages than that" [Test(COST, "a_full_cache_costs_what_goes_through_it")];
    }
    "cache::NONE" {
        "the ends of the list" [Test(CACHE, "the_order_of_use_is_kept")];
    }
    "claims::MANY_ORPHANS" {
        "more than that" [Test(RETRY, "failed_requests_do_not_pile_up")];
    }
    "decompress::WINDOW_BITS" {
        "made with it, and with a longer one" [
            Test(DECOMPRESS, "a_stream_gives_its_cluster_whatever_follows"),
            Test(DECOMPRESS, "a_longer_window_is_understood_too"),
        ];
    }
    "free::MOST" {
        "more runs than that" [Test(FREE, "what_is_too_much_is_searched_for_again")];
    }
    "check::references::DENSE_CLUSTERS" {
        "a file of more" [
            Test(MALFORMED, "a_length_is_only_a_number"),
            Test(LIMITED, "what_cannot_be_counted_is_not_rebuilt"),
        ];
    }
    "check::survey::PIECE" {
        "a longer table" [
            Test(CHECK, "a_long_l1_table_is_looked_at_to_its_end"),
            Start(Initial::RefcountTableOneShort),
        ] P4;
    }
    "check::entries::LINE" {
        "a longer table, parts of it zero" [Test(CHECK, "a_long_l1_table_is_looked_at_to_its_end")];
    }
    "check::entries::PART" {
        "a longer table, parts of it zero" [Test(CHECK, "a_long_l1_table_is_looked_at_to_its_end")];
    }
    "check::bitmaps::ENTRY_BYTES" {
        "entries as long, and longer" [
            Start(Initial::Bitmaps),
            Test(DAMAGE, "damaged_bitmaps_are_told_and_nothing_is_repaired_over_them"),
        ] P4;
    }
    "check::bitmaps::DIRTY_TRACKING" {
        "that type" [Start(Initial::Bitmaps)] P4;
        "another" [Test(DAMAGE, "damaged_bitmaps_are_told_and_nothing_is_repaired_over_them")];
    }
    "check::bitmaps::RESERVED" {
        "set" [Test(DAMAGE, "damaged_bitmaps_are_told_and_nothing_is_repaired_over_them")];
    }
    "check::bitmaps::ALL_ONES" {
        "set, without a cluster" [Start(Initial::Bitmaps)] P4;
        "set, with one" [
            Test(DAMAGE, "damaged_bitmaps_are_told_and_nothing_is_repaired_over_them"),
        ];
    }
    "check::report::MAX_FINDINGS" {
        "more than that" [Test(CHECK, "lost_counts_are_told_one_by_one")];
    }
    "format::limits::CLUSTER_BITS" {
        "both ends, and outside" [
            Test(HEADER, "cluster_bits_limits"),
            Test(INTEROP, "images_of_qemu_are_images_to_us"),
        ];
    }
    "format::limits::EXTENDED_L2_CLUSTER_BITS_MIN" {
        "there, and below" [Test(HEADER, "extended_l2_needs_large_clusters")];
    }
    "format::limits::HEADER_BYTES_V2" {
        "a header of version 2" [Test(HEADER, "version_2_is_recognised")];
    }
    "format::limits::HEADER_BYTES_V3_MIN" {
        "there, and below" [Test(HEADER, "header_length_limits")];
    }
    "format::limits::HEADER_BYTES" {
        "there, below, above" [
            Test(HEADER, "a_header_of_104_bytes_has_no_compression_type"),
            Test(RARE, "what_else_a_header_says_stays"),
        ];
    }
    "format::limits::HEADER_SECTOR_BYTES" {
        "what changes is before" [Test(HEADER, "what_changes_later_is_in_the_first_sector")];
    }
    "format::limits::BACKING_NAME_BYTES" {
        "there, and above" [Test(HEADER, "backing_name_limits")];
    }
    "format::limits::BACKING_FORMAT_BYTES" {
        "there, and above" [
            Test(EXTENSION, "backing_format_limits"),
            Test(BACKING, "a_format_has_a_longest_name"),
            Test(INTEROP, "formats_of_layers_have_the_same_longest_name"),
        ];
    }
    "format::limits::L1_TABLE_BYTES" {
        "there, and above" [
            Test(HEADER, "size_and_l1_limits"),
            Test(RARE, "the_largest_disk_works_to_its_end"),
        ];
    }
    "format::limits::REFCOUNT_TABLE_BYTES" {
        "there, and above" [
            Test(HEADER, "refcount_table_limits"),
            Test(LIMITED, "the_largest_refcount_table_grows_no_more"),
        ];
    }
    "format::limits::REFCOUNT_ORDER" {
        "there, and above" [
            Plans(15, |plan| plan.geometry.refcount_order == 6),
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
        ] P4;
    }
    "format::limits::REFCOUNT_ORDER_V2" {
        "version 2" [Test(HEADER, "version_2_is_recognised")];
    }
    "format::limits::SNAPSHOTS" {
        "there, and above" [Test(HEADER, "snapshot_limits")];
    }
    "format::limits::SNAPSHOT_ENTRY_BYTES_MIN" {
        "a table that overlaps another" [Test(HEADER, "tables_do_not_overlap")];
    }
    "format::limits::BITMAPS" {
        "there, and above" [Test(EXTENSION, "bitmaps_limits")];
    }
    "format::limits::BITMAP_DIRECTORY_BYTES" {
        "there, and above" [Test(EXTENSION, "bitmaps_limits")];
    }
    "format::limits::HOST_OFFSET_END" {
        "before, and there" [
            Test(HEADER, "tables_lie_on_clusters_within_reach"),
            Test(LIMITED, "what_cannot_be_counted_is_not_rebuilt"),
        ];
    }
    "format::limits::COVERED_PAST_END" {
        "nearer, and further" [
            Test(DAMAGE, "entries_past_the_end_become_zeroes_only_on_request"),
            Test(RARE, "every_repair_may_be_cut_short"),
        ];
    }
    "format::limits::RUNS_PAST_END" {
        "as many, and more" [Test(COST, "what_lies_past_the_end_is_counted_in_bounds")];
    }
    "format::limits::SIZE_UNIT" {
        "a size in between" [
            Test(HEADER, "a_size_that_nobody_changed_keeps_its_odd_bytes"),
            Test(CORPUS, "every_file_is_a_test"),
        ];
    }
    "format::limits::REBUILT_BYTES" {
        "less, and more" [
            Test(COST, "references_far_apart_do_not_make_a_repair_write_without_bound"),
        ];
    }
}
