//! Table entries.

use model::build::Initial;
use qcow2_core::Rule;
use qcow2_crashtest::explore::alphabet::Symbol;
use qcow2_crashtest::probe::Probe;
use qcow2_crashtest::sabotage::Target;
use qcow2_crashtest::workload::Shape;

use super::line::By::{Attack, Explored, Initial as Start, Probe as Met, Shape as Shaped, Test};
use super::line::lines;
use super::tests::{
    ALIGNED, CHECK, COMPRESSED, COMPRESSED_BY_QEMU, COST, DAMAGE, ENTRY, LIMITED, MALFORMED,
    MUTANTS, SNAPSHOTS, SUBCLUSTERS, TABLES,
};

lines! {
    "format::entry::COPIED" {
        "set, in L2 and L1" [Start(Initial::Fragmented)] P4;
        "not set, in L2, with two references or a count of two" [
            Start(Initial::Leaky),
            Met(Probe::CopiedOnWrite),
        ] P2 P4;
        "not set, in L2, where it should be" [Test(CHECK, "a_lone_copied_bit_is_seen")];
        "not set, in L1" [
            Attack(Target::Rule(Rule::DirtyBeforeRepair)),
            Test(SNAPSHOTS, "consequences_of_damage"),
        ] P4;
        "set where it should not be" [
            Test(TABLES, "a_table_of_two_entries_is_not_changed"),
            Test(CHECK, "a_lone_copied_bit_is_seen"),
        ];
        "set on nothing" [
            Test(ENTRY, "copied_without_a_cluster_is_nothing"),
            Test(MALFORMED, "known_damage_does_no_harm"),
        ];
        "set on a compressed cluster" [
            Test(CHECK, "compressed_clusters_are_counted"),
            Test(MUTANTS, "mutants_of_qemu_images_get_no_worse"),
        ];
    }
    "format::entry::COMPRESSED" {
        "set, in L2" [
            Test(CHECK, "compressed_clusters_are_counted"),
            Test(MUTANTS, "mutants_of_qemu_images_get_no_worse"),
        ];
        "set, in L1" [Test(TABLES, "where_a_senseless_entry_leads_nothing_is_put")];
    }
    "format::entry::ZERO" {
        "with a cluster" [Start(Initial::Fragmented), Explored(Symbol::ZeroB)] P0 P2;
        "without" [Start(Initial::Fragmented)] P0 P2;
        "in L1" [Test(ENTRY, "reserved_bits_one_by_one")];
        "with a cluster that has two references" [Test(MALFORMED, "damaged_images_do_no_harm")];
    }
    "format::entry::OFFSET" {
        "of a cluster of its own" [Met(Probe::CleanClose)] P4;
        "of one in use otherwise" [
            Test(TABLES, "an_entry_that_leads_to_a_table_is_not_written_through"),
            Test(DAMAGE, "a_cluster_that_two_map_is_safe_to_write_once_it_is_counted"),
        ];
        "not that of a cluster" [
            Test(DAMAGE, "an_l2_entry_that_makes_no_sense_is_no_reason_to_refuse_the_rest"),
        ];
        "past the end of the file" [
            Test(DAMAGE, "an_entry_past_the_end_of_the_file_stays_and_is_counted"),
            Test(DAMAGE, "an_l2_table_past_the_end_of_the_file_stays_and_is_counted"),
        ];
        "the largest" [Test(LIMITED, "what_cannot_be_counted_is_not_rebuilt")];
    }
    "format::entry::L1_RESERVED" {
        "set" [
            Test(TABLES, "where_a_senseless_entry_leads_nothing_is_put"),
            Test(ENTRY, "reserved_bits_one_by_one"),
        ];
    }
    "format::entry::L2_RESERVED" {
        "set" [
            Test(DAMAGE, "an_l2_entry_that_makes_no_sense_is_no_reason_to_refuse_the_rest"),
            Test(ENTRY, "reserved_bits_one_by_one"),
        ];
    }
    "format::entry::REFCOUNT_TABLE_OFFSET" {
        "of a block" [Met(Probe::RefcountBlockGrowth)] P4;
        "of none" [Test(MALFORMED, "known_damage_does_no_harm")];
        "past the end of the file" [Test(COST, "refcount_blocks_past_the_end_cost_nothing")];
        "of one and the same block" [Test(COST, "one_table_named_many_times_is_refused")];
    }
    "format::entry::REFCOUNT_TABLE_RESERVED" {
        "set" [Test(SNAPSHOTS, "consequences_of_damage"), Test(ENTRY, "reserved_bits_one_by_one")];
    }
    "format::entry::SECTOR" {
        "a stream of one, of several, of too many" [
            Test(ENTRY, "compressed_limits"),
            Test(ENTRY, "compressed_descriptors_by_hand"),
        ];
    }
    "format::entry::UNALLOCATED" {
        "in each table" [Start(Initial::Fresh)] P4;
    }
    "format::entry::ZERO_PLAIN" {
        "read, and written to" [Start(Initial::Fragmented)] P0 P2;
        "written, by a repair" [Test(DAMAGE, "entries_past_the_end_become_zeroes_only_on_request")];
    }
    "Mapping::Unallocated" {
        "read, written to, zeroed, discarded" [
            Start(Initial::Fresh),
            Explored(Symbol::DiscardA),
        ] P0 P1 P2;
    }
    "Mapping::ZeroPlain" {
        "read, written to, zeroed, discarded" [Start(Initial::Fragmented)] P0 P1 P2;
    }
    "Mapping::ZeroAllocated" {
        "read, written to, zeroed, discarded" [
            Start(Initial::Fragmented),
            Explored(Symbol::ZeroB),
        ] P0 P1 P2;
        "past the end of the file" [
            Test(DAMAGE, "an_entry_past_the_end_of_the_file_stays_and_is_counted"),
        ];
    }
    "Mapping::Data" {
        "COPIED" [Start(Initial::Fragmented)] P0 P1 P2;
        "not COPIED" [Start(Initial::Leaky), Met(Probe::CopiedOnWrite)] P0 P1 P2;
        "past the end of the file" [
            Test(DAMAGE, "an_entry_past_the_end_of_the_file_stays_and_is_counted"),
        ];
    }
    "Mapping::Mixed" {
        "read, written to, zeroed, discarded" [
            Shaped(Shape::Subclusters),
            Explored(Symbol::WriteSubcluster),
            Test(SUBCLUSTERS, "an_image_with_subclusters_is_a_disk"),
        ] P0 P1 P2 P3;
        "without a cluster" [Explored(Symbol::ZeroSubclusters)] P0 P2;
        "past the end of the file" [Test(SUBCLUSTERS, "data_past_the_end_becomes_zeroes")];
    }
    "Mapping::with_subclusters()" {
        "each kind" [Test(ENTRY, "extended_entries_round_trip")];
    }
    "Mapping::subclusters()" {
        "each kind, compressed" [
            Test(ENTRY, "extended_entries_round_trip"),
            Test(ENTRY, "a_compressed_cluster_has_no_subclusters"),
        ];
    }
    "Mapping::host()" {
        "with one, without" [Test(ENTRY, "extended_entries_round_trip")];
    }
    "Subclusters.data" {
        "some, all, none" [
            Shaped(Shape::Subclusters),
            Test(SUBCLUSTERS, "a_small_write_fills_up_its_subcluster"),
        ] P0 P1 P2;
    }
    "Subclusters.zero" {
        "some, all, none" [
            Shaped(Shape::Subclusters),
            Test(SUBCLUSTERS, "zeroed_subclusters_are_bits"),
        ] P0 P2;
    }
    "Subclusters::bitmap()" {
        "of both kinds" [Test(SUBCLUSTERS, "zeroed_subclusters_are_bits")];
    }
    "format::entry::COUNT" {
        "the first and the last subcluster" [
            Explored(Symbol::WriteAcross),
            Test(SUBCLUSTERS, "an_image_with_subclusters_is_a_disk"),
        ] P1;
    }
    "EntryProblem::ZeroAndData" {
        "told" [Test(ENTRY, "extended_entries_round_trip")];
    }
    "EntryProblem::DataNowhere" {
        "told" [Test(ENTRY, "extended_entries_round_trip")];
    }
    "EntryProblem::BitmapOfCompressed" {
        "told" [Test(ENTRY, "a_compressed_cluster_has_no_subclusters")];
    }
    "Mapping::Compressed" {
        "counted" [Test(CHECK, "compressed_clusters_are_counted")];
        "read, written over, given up" [
            Test(COMPRESSED, "what_is_left_of_a_compressed_cluster_stays"),
            Test(COMPRESSED, "a_cluster_lives_as_long_as_one_of_its_streams"),
            Test(COMPRESSED_BY_QEMU, "compressed_images_of_qemu_are_images_to_us"),
        ];
        "in sectors that are longer" [Test(ALIGNED, "compressed_clusters_are_read_in_whole_sectors")];
        "written" [Explored(Symbol::CompressAB), Shaped(Shape::Compressing)] P0 P1 P2 P3 P4;
        "begun with" [Start(Initial::Compressed), Shaped(Shape::Compressed)] P0 P1 P2 P3 P4;
        "no stream" [Test(COMPRESSED, "what_cannot_be_decompressed_is_told")];
        "past the end of the file" [Test(DAMAGE, "compressed_data_may_reach_past_the_end")];
    }
    "EntryProblem::Reserved" {
        "told" [
            Test(ENTRY, "reserved_bits_one_by_one"),
            Test(CHECK, "an_entry_is_named_by_its_place"),
        ];
    }
    "EntryProblem::Misaligned" {
        "told" [
            Test(ENTRY, "misaligned_offsets_name_table_place_and_value"),
            Test(SNAPSHOTS, "consequences_of_damage"),
        ];
    }
    "EntryProblem::TooFar" {
        "told" [Test(SNAPSHOTS, "consequences_of_damage")];
    }
    "EntryProblem::ZeroInVersion2" {
        "told" [Test(ENTRY, "version_2_has_no_zero_clusters")];
    }
}
