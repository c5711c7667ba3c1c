//! The header.

use model::build::Initial;
use model::op::Compression;
use qcow2_core::Rule;
use qcow2_crashtest::explore::alphabet::Symbol;
use qcow2_crashtest::probe::Probe;
use qcow2_crashtest::sabotage::Target;
use qcow2_crashtest::workload::Shape;

use super::line::By::{
    Attack, Explored, Initial as Start, Nothing, Plans, Probe as Met, Shape as Shaped, Test,
};
use super::line::lines;
use super::plans::{is_compressed, some};
use super::tests::{
    CHECK, COMPRESS, COMPRESSED_BY_QEMU, CORPUS, COST, DAMAGE, DECOMPRESS, ENCRYPTION, EXTENSION,
    GUEST_TRACE, HEADER, IMAGE, INTEROP, LIMITED, MALFORMED, MUTANTS, RARE, REFCOUNT, SNAPSHOTS,
};

lines! {
    "Header.version" {
        "3" [Met(Probe::CleanClose)] P4;
        "2" [
            Shaped(Shape::Version2),
            Test(INTEROP, "version_2_goes_both_ways"),
            Test(HEADER, "version_2_is_recognised"),
        ] P1 P4 P6;
        "any other" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "Header.backing" {
        "none" [Met(Probe::CleanClose)] P4;
        "a name" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
        "a place and no name" [
            Test(RARE, "what_else_a_header_says_stays"),
            Test(HEADER, "an_empty_backing_name_is_none"),
        ];
    }
    "BackingName.offset" {
        "outside cluster 0, or in the header" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(HEADER, "backing_name_limits"),
        ];
        "behind extensions" [Test(HEADER, "extensions_end_before_the_backing_name")];
    }
    "BackingName.name" {
        "short, empty, the longest, too long" [Test(HEADER, "backing_name_limits")];
    }
    "Header.cluster_bits" {
        "9" [Plans(150, |plan| plan.geometry.cluster_bits == 9)] P1 P2 P4;
        "10" [Plans(300, |plan| plan.geometry.cluster_bits == 10)] P1 P2 P4;
        "12" [Plans(100, |plan| plan.geometry.cluster_bits == 12)] P1 P2 P4;
        "16, under power cuts" [Test(GUEST_TRACE, "a_real_guest_survives_power_cuts")];
        "all others" [Test(INTEROP, "images_of_qemu_are_images_to_us")];
        "all others, under power cuts" [Nothing(
            "a power cut knows units, pages and clusters: in those that campaigns draw, pages are shorter than a cluster, as long, and longer"
        )];
        "below 9 and above 21" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "Header.size" {
        "whole clusters" [
            Plans(500, |plan| plan.geometry.virtual_size.is_multiple_of(plan.geometry.cluster_size())),
        ] P0 P2;
        "a last cluster that is cut short" [
            Plans(80, |plan| !plan.geometry.virtual_size.is_multiple_of(plan.geometry.cluster_size())),
        ] P0 P2;
        "within one L2 table" [
            Plans(300, |plan| plan.geometry.clusters() <= plan.geometry.l2_entries()),
        ] P4;
        "under several L2 tables" [
            Plans(100, |plan| plan.geometry.clusters() > plan.geometry.l2_entries()),
        ] P4;
        "under many" [Shaped(Shape::Sparse), Shaped(Shape::Eviction)] P4 P7;
        "under more than one page of L1 table" [Shaped(Shape::Growing)] P4 P6;
        "nothing" [Test(RARE, "a_disk_of_nothing_grows")];
        "1 TiB" [Test(COST, "opening_costs_the_same")];
        "no whole units" [
            Test(HEADER, "a_size_that_nobody_changed_keeps_its_odd_bytes"),
            Test(CORPUS, "every_file_is_a_test"),
        ];
        "more than the L1 table maps" [
            Test(HEADER, "size_and_l1_limits"),
            Test(CORPUS, "every_file_is_a_test"),
        ];
    }
    "Header.crypt_method" {
        "none" [Met(Probe::CleanClose)] P4;
        "any" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(HEADER, "crypt_method_and_its_extension"),
        ];
    }
    "CryptMethod::None" {
        "known" [Met(Probe::CleanClose)] P4;
    }
    "CryptMethod::Aes" {
        "known" [Shaped(Shape::Encrypted)] P0 P1 P2 P10 PCipher;
        "without a passphrase" [Test(ENCRYPTION, "a_wrong_passphrase_is_told")];
    }
    "CryptMethod::Luks" {
        "known" [Shaped(Shape::Encrypted)] P0 P1 P2 P10 PCipher;
        "without its extension" [Test(HEADER, "crypt_method_and_its_extension")];
    }
    "Header.l1_size" {
        "what the size needs" [Start(Initial::L1AboutToGrow)] P4 P10;
        "more, with entries behind the disk" [
            Start(Initial::Leftovers),
            Start(Initial::RefcountBlockOneShort),
        ] P2 P4;
        "none" [Test(RARE, "a_disk_of_nothing_grows")];
        "the most" [Test(RARE, "the_largest_disk_works_to_its_end")];
        "too few, too many" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "Header.l1_table_offset" {
        "where create puts it, and where growth does" [Met(Probe::L1Growth)] P4;
        "0, with no entries" [Test(RARE, "a_disk_of_nothing_grows")];
        "nowhere sensible" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(HEADER, "tables_lie_on_clusters_within_reach"),
        ];
        "past the end of the file" [
            Test(MALFORMED, "truncated_files_are_refused_by_length"),
            Test(MALFORMED, "known_damage_does_no_harm"),
        ];
    }
    "Header.refcount_table_offset" {
        "where create puts it, and where growth and repair do" [Met(Probe::RefcountTableGrowth)] P4;
        "nowhere sensible" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(HEADER, "tables_do_not_overlap"),
        ];
        "past the end of the file" [
            Test(MALFORMED, "known_damage_does_no_harm"),
            Test(CORPUS, "every_file_is_a_test"),
        ];
    }
    "Header.refcount_table_clusters" {
        "one" [Met(Probe::CleanClose)] P4;
        "one, and it becomes more" [
            Start(Initial::RefcountTableOneShort),
            Start(Initial::FullOfLeaks),
        ] P4;
        "many" [Test(IMAGE, "a_refcount_table_may_need_more_than_one_block")];
        "the most" [Test(LIMITED, "the_largest_refcount_table_grows_no_more")];
        "none" [
            Test(HEADER, "check_accepts_a_missing_refcount_table"),
            Test(SNAPSHOTS, "consequences_of_damage"),
        ];
        "too many" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "Header.nb_snapshots" {
        "none" [Met(Probe::CleanClose)] P4;
        "some, too many" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(HEADER, "snapshot_limits"),
        ];
    }
    "Header.snapshots_offset" {
        "somewhere, with no snapshots" [Test(RARE, "what_else_a_header_says_stays")];
        "nowhere sensible, with some" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "Header.incompatible" {
        "known bits" [Met(Probe::DirtyCrash)] P4;
        "unknown bits" [
            Test(INTEROP, "an_unknown_incompatible_feature_is_refused_by_name"),
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
        ];
    }
    "Header.compatible" {
        "known bits" [Plans(300, |plan| plan.geometry.lazy_refcounts)] P4;
        "unknown bits" [
            Test(INTEROP, "unknown_features_are_treated_as_specified"),
            Test(RARE, "what_else_a_header_says_stays"),
        ];
    }
    "Header.autoclear" {
        "known bits" [Start(Initial::Bitmaps)] P4;
        "unknown bits" [
            Attack(Target::Rule(Rule::AutoclearFirst)),
            Test(DAMAGE, "a_bit_that_nobody_maintains_goes_before_what_it_vouches_for"),
        ] P4;
    }
    "Header.refcount_order" {
        "4" [Plans(600, |plan| plan.geometry.refcount_order == 4)] P4;
        "0: a count says one at most" [Plans(15, |plan| plan.geometry.refcount_order == 0)] P4;
        "1 and 2: several counts in a byte" [
            Plans(30, |plan| matches!(plan.geometry.refcount_order, 1 | 2)),
        ] P4;
        "3 and 5" [Plans(30, |plan| matches!(plan.geometry.refcount_order, 3 | 5))] P4;
        "6: a block of few" [
            Plans(15, |plan| plan.geometry.refcount_order == 6),
            Shaped(Shape::Widths),
        ] P4;
        "above 6" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
        "more references than it can count" [
            Test(CHECK, "references_that_cannot_be_counted_are_told"),
            Test(REFCOUNT, "largest_value_and_one_past"),
        ];
    }
    "Header.header_length" {
        "112" [Met(Probe::CleanClose)] P4;
        "104, and more than 112" [Test(RARE, "what_else_a_header_says_stays")];
        "less, no multiple of 8, more than a cluster" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(HEADER, "header_length_limits"),
        ];
    }
    "Header.compression_type" {
        "deflate" [Met(Probe::CleanClose)] P4;
        "zstd" [
            Plans(20, |plan| plan.geometry.compression == Compression::Zstd),
            Test(MUTANTS, "mutants_of_qemu_images_get_no_worse"),
            Test(HEADER, "compression_type_and_its_bit"),
        ] P0 P2 P4;
        "unknown, or without its bit" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "CompressionType::Deflate" {
        "written" [
            Explored(Symbol::CompressAB),
            Test(COMPRESS, "a_stream_gives_what_it_was_made_of_and_zeroes"),
            Test(COMPRESSED_BY_QEMU, "what_we_compress_is_qemus_to_read"),
        ] P0 P2;
        "read" [
            Test(COMPRESSED_BY_QEMU, "compressed_images_of_qemu_are_images_to_us"),
            Test(DECOMPRESS, "a_stream_of_another_length_is_damaged"),
        ];
    }
    "CompressionType::Zstd" {
        "written" [
            Plans(10, |plan| {
                plan.geometry.compression == Compression::Zstd && some(plan, |op, _| is_compressed(op))
            }),
            Test(COMPRESS, "a_stream_gives_what_it_was_made_of_and_zeroes"),
            Test(COMPRESSED_BY_QEMU, "what_we_compress_is_qemus_to_read"),
        ] P0 P2;
        "read" [
            Test(COMPRESSED_BY_QEMU, "compressed_images_of_qemu_are_images_to_us"),
            Test(DECOMPRESS, "frames_follow_each_other_until_the_cluster_is_full"),
            Test(DECOMPRESS, "a_window_without_end_takes_no_memory"),
        ];
    }
    "Header.padding" {
        "zero" [Met(Probe::CleanClose)] P4;
        "anything" [
            Test(RARE, "what_else_a_header_says_stays"),
            Test(HEADER, "encode_then_parse_is_the_same"),
        ];
    }
    "Header.unknown" {
        "nothing" [Met(Probe::CleanClose)] P4;
        "something" [
            Test(RARE, "what_else_a_header_says_stays"),
            Test(HEADER, "encode_then_parse_is_the_same"),
        ];
    }
    "Header.extensions" {
        "none" [Start(Initial::Fresh)] P4;
        "known ones" [
            Start(Initial::Bitmaps),
            Test(MUTANTS, "mutants_of_qemu_images_get_no_worse"),
        ] P4;
        "unknown ones" [Test(INTEROP, "unknown_features_are_treated_as_specified")];
        "without an end, too long, one twice" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(EXTENSION, "ends_of_the_list"),
        ];
    }
    "Extension.kind" {
        "known and unknown" [
            Test(EXTENSION, "known_types_occur_once_and_unknown_ones_as_often_as_they_like"),
        ];
    }
    "Extension.data" {
        "short, long, past the file" [
            Test(EXTENSION, "oversized_data_is_refused_with_its_offset"),
            Test(EXTENSION, "data_past_the_end_of_the_file_is_truncated"),
        ];
    }
    "Luks.offset" {
        "sensible or not" [
            Test(EXTENSION, "luks_limits"),
            Test(ENCRYPTION, "a_hostile_encryption_header_is_refused"),
        ];
    }
    "Luks.length" {
        "sensible or not" [
            Test(EXTENSION, "luks_limits"),
            Test(ENCRYPTION, "a_hostile_encryption_header_is_refused"),
        ];
    }
    "Bitmaps.count" {
        "two" [Start(Initial::Bitmaps)] P4;
        "none, too many" [Test(EXTENSION, "bitmaps_limits")];
    }
    "Bitmaps.directory_size" {
        "of all bitmaps" [Start(Initial::Bitmaps)] P4;
        "too short" [Test(DAMAGE, "damaged_bitmaps_are_told_and_nothing_is_repaired_over_them")];
        "none, too much" [Test(EXTENSION, "bitmaps_limits")];
    }
    "Bitmaps.directory_offset" {
        "a cluster of its own" [Start(Initial::Bitmaps)] P4;
        "nowhere sensible" [
            Test(EXTENSION, "bitmaps_limits"),
            Test(MUTANTS, "mutants_of_qemu_images_get_no_worse"),
        ];
    }
}
