//! How an image is created.

use qcow2_core::{Barrier, Rule};
use qcow2_crashtest::sabotage::Target;
use qcow2_crashtest::workload::Shape;

use super::line::By::{Attack, Nothing, Shape as Shaped, Test};
use super::line::lines;
use super::tests::{
    BLOCK_DEVICE, CAMPAIGN, CHECK, COMPRESSED_BY_QEMU, GUEST_TRACE, IMAGE, INTEROP, LIMITED,
    MATRIX, PREALLOCATE, RARE, REFUSED, SUBCLUSTERS, VERSION_2, WRITE_COMPRESSED,
};

lines! {
    "CreateOptions.version" {
        "3" [Attack(Target::Rule(Rule::HeaderLast)), Test(IMAGE, "reads_back_what_was_written")] P4;
        "2" [
            Attack(Target::Rule(Rule::HeaderLast)),
            Test(INTEROP, "version_2_goes_both_ways"),
            Test(VERSION_2, "the_header_ends_at_byte_72"),
        ] P4;
        "any other" [Test(REFUSED, "options_of_a_new_image_are_refused_by_name")];
    }
    "CreateOptions.refcount_bits" {
        "1, 2, 4, 8, 16, 32, 64" [Test(INTEROP, "refcounts_of_every_width_are_understood")];
        "16, under power cuts" [Attack(Target::Rule(Rule::HeaderLast))] P4;
        "another number, and another than 16 in version 2" [Test(REFUSED, "options_of_a_new_image_are_refused_by_name")];
    }
    "CreateOptions.extended_l2" {
        "on" [
            Test(SUBCLUSTERS, "an_image_with_subclusters_is_a_disk"),
            Test(INTEROP, "layers_go_both_ways"),
        ];
        "off" [Attack(Target::Rule(Rule::HeaderLast))] P4;
        "on, for version 2 or for smaller clusters" [
            Test(SUBCLUSTERS, "what_has_no_subclusters_is_refused"),
        ];
    }
    "CreateOptions.compression" {
        "deflate" [Shaped(Shape::Compressing)] P0 P2;
        "zstd" [
            Test(WRITE_COMPRESSED, "what_is_written_compressed_reads_back"),
            Test(COMPRESSED_BY_QEMU, "what_we_compress_is_qemus_to_read"),
        ];
        "zstd, for version 2" [Test(WRITE_COMPRESSED, "zstd_needs_version_3")];
    }
    "CreateOptions.preallocation" {
        "each, in every kind of image" [
            Test(PREALLOCATE, "a_preallocated_image_never_grows"),
            Test(MATRIX, "every_pair_of_options_goes_both_ways"),
        ];
        "of clusters, and of zeroes, under power cuts" [
            Attack(Target::Rule(Rule::HeaderLast)),
        ] P4 P2;
        "over a layer" [Test(PREALLOCATE, "over_a_layer_it_takes_extended_entries")];
        "on a device that keeps what it held" [
            Test(LIMITED, "clusters_that_are_taken_ahead_hold_nothing_old"),
        ];
        "more than refcounts can count" [
            Test(PREALLOCATE, "more_than_a_refcount_table_counts_is_refused"),
        ];
    }
    "create::PIECE" {
        "longer tables, more zeroes" [
            Test(PREALLOCATE, "a_preallocated_image_never_grows"),
        ];
    }
    "CreateOptions.cluster_bits" {
        "9, under power cuts" [Attack(Target::Rule(Rule::HeaderLast))] P4;
        "10, 12, 16, 21" [
            Test(IMAGE, "reads_back_what_was_written"),
            Test(INTEROP, "images_of_ours_are_images_to_qemu"),
        ];
        "14" [Test(BLOCK_DEVICE, "an_image_fills_a_device")];
        "13, 18" [Test(RARE, "pages_may_have_64_kib")];
        "11, 15, 17, 19, 20" [Nothing(
            "what create does with them is arithmetic that the sizes around them take; tests/suite/interop.rs::images_of_qemu_are_images_to_us \
             opens QEMU's images of all sizes"
        )];
        "below 9 and above 21" [Test(REFUSED, "options_of_a_new_image_are_refused_by_name")];
    }
    "CreateOptions.virtual_size" {
        "0" [Test(RARE, "a_disk_of_nothing_grows")];
        "one L2 table's, or less" [Attack(Target::Rule(Rule::HeaderLast))] P4;
        "a long L1 table's" [
            Attack(Target::Rule(Rule::HeaderLast)),
            Test(CHECK, "a_table_is_not_given_out"),
        ] P4;
        "the largest" [Test(RARE, "the_largest_disk_works_to_its_end")];
        "more than the largest, or no multiple of 512" [
            Test(REFUSED, "options_of_a_new_image_are_refused_by_name"),
        ];
    }
    "CreateOptions.lazy_refcounts" {
        "off" [Attack(Target::Rule(Rule::HeaderLast))] P4;
        "on, for version 2" [Test(REFUSED, "options_of_a_new_image_are_refused_by_name")];
        "on" [
            Test(IMAGE, "an_abandoned_lazy_image_is_repaired_when_opened"),
            Test(GUEST_TRACE, "a_real_guest_survives_power_cuts"),
        ];
    }
    "CreateOptions.rules" {
        "all" [Test(CAMPAIGN, "the_special_attacks_find_nothing_in_whole_code")];
        "without one" [
            Attack(Target::Rule(Rule::OldHeaderFirst)),
            Attack(Target::Flush(Barrier::Create)),
        ] P4;
    }
    "create::create()" {
        "over nothing, over bytes, over images of every age" [
            Attack(Target::Rule(Rule::OldHeaderFirst)),
        ] P4;
        "on a device that holds something" [
            Attack(Target::Flush(Barrier::CreateOverOld)),
            Test(LIMITED, "an_image_fills_a_device"),
        ] P4;
        "where it does not fit" [Test(LIMITED, "an_image_that_does_not_fit_leaves_the_old_one")];
        "its own I/O fails" [
            Test(LIMITED, "an_image_that_does_not_fit_leaves_the_old_one"),
            Test(BLOCK_DEVICE, "an_image_fills_a_device"),
        ];
    }
}
