//! How an image is opened.

use model::case::Step;
use qcow2_core::{Barrier, Rule};
use qcow2_crashtest::explore::alphabet::Symbol;
use qcow2_crashtest::probe::Probe;
use qcow2_crashtest::sabotage::Target;
use qcow2_crashtest::workload::Shape;

use super::line::By::{
    Attack, Explored, Nothing, Plans, Probe as Met, Shape as Shaped, Step as Recovery, Test,
};
use super::line::lines;
use super::plans::page;
use super::tests::{
    CAMPAIGN, GUEST_TRACE, IMAGE, LAYERS, LIMITED, RARE, REFUSED, TABLES, VERSION_2,
};

lines! {
    "OpenOptions.writable" {
        "yes" [Recovery(Step::Open)] P3 P4 P6;
        "no" [Recovery(Step::OpenReadOnly), Met(Probe::ReadOnlyDirty)] P3;
        "no, and asked to write" [Test(REFUSED, "an_image_that_is_open_to_read_is_not_changed")];
    }
    "OpenOptions.lazy_refcounts" {
        "as the image says" [Plans(800, |plan| plan.open.lazy_refcounts.is_none())] P1 P4 P6;
        "on, whatever an eager image says" [
            Plans(8, |plan| plan.open.lazy_refcounts == Some(true) && !plan.geometry.lazy_refcounts),
        ] P1 P4 P6;
        "off, whatever a lazy image says" [
            Plans(8, |plan| plan.open.lazy_refcounts == Some(false) && plan.geometry.lazy_refcounts),
        ] P1 P4 P6;
        "the same as the image" [
            Plans(16, |plan| plan.open.lazy_refcounts == Some(plan.geometry.lazy_refcounts)),
        ] P1 P4 P6;
        "on, for version 2" [Test(VERSION_2, "lazy_refcounts_are_refused")];
    }
    "OpenOptions.write_through" {
        "off" [Plans(800, |plan| !plan.open.write_through)] P1;
        "on" [Shaped(Shape::WriteThrough), Met(Probe::WriteThrough)] P1;
    }
    "OpenOptions.pass_discard" {
        "on" [Plans(800, |plan| plan.open.pass_discard), Met(Probe::HostDiscard)] P2;
        "off" [
            Plans(80, |plan| !plan.open.pass_discard),
            Test(IMAGE, "a_discard_is_passed_down_if_asked_to"),
        ] P2 P9;
        "on, and the device takes none" [
            Plans(15, |plan| plan.open.pass_discard && !plan.device.can_discard),
        ] P2 P8;
    }
    "OpenOptions.copy_on_read" {
        "on, over a layer" [
            Shaped(Shape::CopyOnRead),
            Explored(Symbol::ReadPartOfB),
            Test(LAYERS, "what_is_read_is_copied"),
        ] P0 P1 P2 P9;
        "on, and no room, or not to be changed" [Test(LIMITED, "a_read_does_not_need_its_copy")];
        "off, over a layer" [
            Plans(80, |plan| plan.geometry.below.is_some() && !plan.open.copy_on_read),
        ] P0;
    }
    "OpenOptions.overlap" {
        "every value" [Test(TABLES, "what_is_not_to_be_looked_at_is_written_over")];
    }
    "Overlap::None" {
        "of damaged and sound images" [Test(TABLES, "what_is_not_to_be_looked_at_is_written_over")];
    }
    "Overlap::Constant" {
        "of damaged and sound images" [Test(TABLES, "what_is_not_to_be_looked_at_is_written_over")];
    }
    "Overlap::All" {
        "of damaged images" [Test(TABLES, "an_entry_that_leads_to_a_table_is_not_written_through")];
    }
    "OpenOptions.cache_pages" {
        "one" [Plans(250, |plan| plan.open.cache_pages == 1)] P1 P4 P7;
        "a few" [Plans(250, |plan| plan.open.cache_pages == 4)] P1 P4 P7;
        "more than a life touches" [Plans(250, |plan| plan.open.cache_pages == 1024)] P1 P4;
        "fewer than a life touches" [
            Shaped(Shape::Eviction),
            Met(Probe::Reloaded),
            Met(Probe::ReloadedUndurable),
        ] P0 P1 P4 P7;
        "its own choice" [
            Test(RARE, "growth_and_cache_by_need_and_by_own_choice_are_explored"),
            Test(GUEST_TRACE, "a_real_guest_survives_power_cuts"),
        ];
        "none" [Test(REFUSED, "options_of_opening_are_refused_by_name")];
    }
    "OpenOptions.page_size" {
        "a unit" [Plans(600, |plan| page(plan) == 512)] P1 P2 P4;
        "several units, less than a cluster" [
            Plans(15, |plan| page(plan) > 512 && page(plan) < plan.geometry.cluster_size()),
        ] P1 P2 P4;
        "a cluster of several units" [
            Plans(40, |plan| page(plan) > 512 && page(plan) == plan.geometry.cluster_size()),
        ] P1 P2 P4;
        "more than a cluster" [
            Plans(60, |plan| page(plan) > plan.geometry.cluster_size()),
        ] P1 P2 P4;
        "more than the longest transfer" [
            Plans(5, |plan| page(plan) > plan.device.max_transfer.into()),
        ] P1 P4 P8;
        "its own choice" [Plans(60, |plan| plan.open.page_size == 0)] P1 P2 P4;
        "8 KiB to 64 KiB" [Test(RARE, "pages_may_have_64_kib")];
        "no power of two, or outside 512..=65536" [
            Test(REFUSED, "options_of_opening_are_refused_by_name"),
        ];
    }
    "OpenOptions.growth" {
        "a cluster" [
            Plans(400, |plan| plan.open.growth_step == plan.geometry.cluster_size()),
        ] P1 P2 P4;
        "some clusters" [
            Plans(400, |plan| plan.open.growth_step > plan.geometry.cluster_size()),
        ] P1 P2 P4;
        "none: what is needed" [
            Attack(Target::Flush(Barrier::RepairReuse)),
            Test(RARE, "growth_and_cache_by_need_and_by_own_choice_are_explored"),
            Test(LIMITED, "a_full_storage_is_asked_once"),
        ] P1 P2 P4;
        "more than there is room for" [
            Test(LIMITED, "what_is_needed_is_taken_where_more_does_not_fit"),
        ];
        "more than there are offsets" [Test(LIMITED, "the_largest_file_is_full")];
        "its own choice" [
            Test(RARE, "growth_and_cache_by_need_and_by_own_choice_are_explored"),
            Test(GUEST_TRACE, "a_real_guest_survives_power_cuts"),
        ];
        "its own choice, of a file of more than 32 MiB" [Nothing(
            "an eighth of such a file is one more number of clusters; power cuts in images that long take a file of 64 KiB clusters, \
             which is in tests/suite/guest_trace.rs::a_real_guest_survives_power_cuts with less"
        )];
    }
    "OpenOptions.rules" {
        "all" [Test(CAMPAIGN, "no_power_cut_loses_anything")];
        "without one" [
            Attack(Target::Rule(Rule::DataBeforeMapping)),
            Attack(Target::Flush(Barrier::GuestFlush)),
        ] P1 P2;
    }
}
