//! Feature bits.

use model::build::Initial;
use qcow2_core::{Barrier, Rule};
use qcow2_crashtest::probe::Probe;
use qcow2_crashtest::sabotage::Target;
use qcow2_crashtest::workload::Shape;

use super::line::By::{Attack, Initial as Start, Plans, Probe as Met, Shape as Shaped, Test};
use super::line::lines;
use super::tests::{
    CHECK, DAMAGE, DATA_FILES, FEATURE, HEADER, MALFORMED, MUTANTS, SNAPSHOTS, TABLES,
};

lines! {
    "format::feature::DIRTY" {
        "set before" [Start(Initial::Dirty)] P3 P4;
        "set by a session" [Met(Probe::DirtyCrash), Attack(Target::Flush(Barrier::DirtyBit))] P4;
        "clear" [Plans(200, |plan| !plan.geometry.lazy_refcounts)] P4;
        "set, in an image with eager refcounts" [
            Plans(20, |plan| plan.initial == Initial::Dirty && !plan.geometry.lazy_refcounts),
        ] P4;
    }
    "format::feature::CORRUPT" {
        "set by a session" [
            Attack(Target::Rule(Rule::CorruptBeforeError)),
            Test(TABLES, "an_entry_that_leads_to_a_table_is_not_written_through"),
        ] P4;
        "set before" [
            Test(SNAPSHOTS, "consequences_of_damage"),
            Test(CHECK, "a_repair_takes_the_marks_away"),
        ];
    }
    "format::feature::DATA_FILE" {
        "set" [Shaped(Shape::DataFiles)] P0 P1 P2 P4;
        "set, without a data file" [Test(DATA_FILES, "what_does_not_belong_together_is_refused")];
    }
    "format::feature::COMPRESSION" {
        "with zstd" [Test(MUTANTS, "mutants_of_qemu_images_get_no_worse")];
        "with deflate" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "format::feature::EXTENDED_L2" {
        "set" [
            Plans(10, |plan| plan.geometry.extended_l2),
            Test(MUTANTS, "mutants_of_qemu_images_get_no_worse"),
        ] P0 P1 P2 P3 P4;
        "set, with clusters that are too small" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(HEADER, "extended_l2_needs_large_clusters"),
        ];
    }
    "format::feature::LAZY_REFCOUNTS" {
        "set" [Plans(300, |plan| plan.geometry.lazy_refcounts)] P4 P6;
        "clear" [Plans(300, |plan| !plan.geometry.lazy_refcounts)] P4 P6;
    }
    "format::feature::BITMAPS" {
        "set, with bitmaps" [
            Start(Initial::Bitmaps),
            Test(DAMAGE, "bitmaps_are_in_use_while_their_bit_vouches_for_them"),
        ] P4;
        "set, without" [Test(MUTANTS, "mutants_of_qemu_images_get_no_worse")];
        "clear, with bitmaps" [Test(HEADER, "bad_bitmaps_matter_only_with_their_bit")];
    }
    "format::feature::RAW_DATA_FILE" {
        "set" [Shaped(Shape::DataFiles)] P2 P10;
        "set, without a data file" [Test(MUTANTS, "mutants_of_qemu_images_get_no_worse")];
    }
    "format::feature::NAME_ENTRY_BYTES" {
        "whole entries, and one that is cut short" [
            Test(FEATURE, "hostile_names_are_escaped_and_short_entries_ignored"),
        ];
    }
    "format::feature::NAME_BYTES" {
        "a name that fills it" [Test(FEATURE, "a_name_may_fill_its_entry")];
    }
    "format::feature::KNOWN" {
        "each" [Test(FEATURE, "every_known_bit_has_its_name")];
    }
    "format::header::NAMED_ABOVE_CLUSTER_SIZE" {
        "clusters below and above" [
            Test(HEADER, "only_large_clusters_of_version_3_get_feature_names"),
        ];
    }
}
