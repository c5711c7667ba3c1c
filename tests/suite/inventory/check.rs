//! Check and repair.

use faultfs::profile::Robustness;
use model::case::Step;
use qcow2_core::{Barrier, Rule};
use qcow2_crashtest::probe::Probe;
use qcow2_crashtest::sabotage::Target;

use super::line::By::{Attack, Damage, Probe as Met, Step as Recovery, Test};
use super::line::lines;
use super::tests::{CHECK, DAMAGE, INTEROP, LIMITED, MUTANTS, RARE, REAL_FILE, VERSION_2};

lines! {
    "check::check()" {
        "a sound image" [
            Recovery(Step::Check),
            Test(CHECK, "an_image_in_order_has_no_findings_and_exact_totals"),
        ] P8;
        "what a power cut left" [Recovery(Step::Check), Recovery(Step::Repair)] P3 P8;
        "a damaged image" [
            Damage(Robustness::Trash),
            Met(Probe::RepairRepaired),
            Met(Probe::RepairGaveUp),
            Test(MUTANTS, "mutants_of_qemu_images_get_no_worse"),
        ] P7 P8;
        "cut short by a power cut" [Met(Probe::CrashInRepair), Met(Probe::NestedTwice)] P3 P4 P5;
        "its own I/O fails" [
            Test(LIMITED, "what_cannot_be_counted_is_not_rebuilt"),
            Test(REAL_FILE, "a_killed_process_leaves_a_file_that_recovers"),
        ];
    }
    "Repair::None" {
        "whatever there is" [Recovery(Step::Check)] P3 P8;
    }
    "Repair::Leaks" {
        "whatever there is, cut short too" [Recovery(Step::RepairLeaks)] P3 P4 P8;
        "beside other damage" [
            Test(CHECK, "a_repair_of_leaks_leaves_the_rest"),
            Test(RARE, "every_repair_may_be_cut_short"),
        ];
    }
    "Repair::All" {
        "after a power cut, cut short too" [
            Recovery(Step::Repair),
            Met(Probe::LeakRepaired),
        ] P3 P4 P5 P8;
        "of damage" [
            Attack(Target::Rule(Rule::DirtyBeforeRepair)),
            Damage(Robustness::Misdirected),
        ] P4 P8;
        "of damage, and no dirty bit says so" [
            Attack(Target::Rule(Rule::CountsBeforeCopied)),
            Test(VERSION_2, "a_repair_marks_nothing"),
        ] P4;
    }
    "Repair::Rebuild" {
        "where there is room" [
            Test(RARE, "every_repair_may_be_cut_short"),
            Test(INTEROP, "images_of_qemu_are_images_to_us"),
        ];
        "where there is none" [Attack(Target::Flush(Barrier::RepairReuse))] P4;
    }
    "Repair::ZeroPastEnd" {
        "cut short" [Test(RARE, "every_repair_may_be_cut_short")];
        "near and far past the end" [
            Test(DAMAGE, "entries_past_the_end_become_zeroes_only_on_request"),
        ];
        "in version 2, where no entry is marked as zeroes" [
            Attack(Target::Flush(Barrier::RepairReferences)),
            Test(VERSION_2, "what_points_past_the_end_becomes_unallocated"),
        ] P4;
    }
    "Problem::Leak" {
        "told" [Test(CHECK, "a_leak_is_told_where_nothing_is_in_use")];
    }
    "Problem::RefcountTooLow" {
        "told" [Test(CHECK, "lost_counts_are_told_one_by_one")];
    }
    "Problem::Copied" {
        "told" [Test(CHECK, "a_lone_copied_bit_is_seen")];
    }
    "Problem::Entry" {
        "told" [Test(CHECK, "an_entry_is_named_by_its_place")];
    }
    "Problem::BeyondEnd" {
        "told" [Test(DAMAGE, "compressed_data_may_reach_past_the_end")];
    }
    "Problem::Overlap" {
        "told" [Test(CHECK, "tables_are_not_shared")];
    }
    "Problem::Shared" {
        "told" [Test(CHECK, "compressed_clusters_are_counted")];
    }
    "Problem::TooMany" {
        "told" [
            Test(CHECK, "references_that_cannot_be_counted_are_told"),
            Test(LIMITED, "what_cannot_be_counted_is_not_rebuilt"),
        ];
    }
    "Problem::Bitmaps" {
        "told" [Test(DAMAGE, "damaged_bitmaps_are_told_and_nothing_is_repaired_over_them")];
    }
    "Problem::CutEntry" {
        "told" [Test(DAMAGE, "a_file_may_end_inside_an_entry")];
    }
}
