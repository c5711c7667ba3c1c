//! What a storage is.

use qcow2_crashtest::probe::Probe;
use qcow2_crashtest::workload::Shape;

use super::line::By::{Nothing, Plans, Probe as Met, Shape as Shaped, Test};
use super::line::lines;
use super::plans::page;
use super::tests::{IMAGE, LIMITED, REAL_FILE, REFUSED};

lines! {
    "Limits::fault()" {
        "nothing is wrong" [Met(Probe::CleanClose)] P8;
        "something is" [Test(REFUSED, "a_storage_of_large_sectors_is_refused")];
    }
    "storage::is_no_space()" {
        "it is, or another error" [Test(LIMITED, "a_full_storage_is_asked_once")];
    }
    "Limits.alignment" {
        "a unit" [Met(Probe::CleanClose)] P8;
        "a byte" [
            Test(IMAGE, "reads_back_what_was_written"),
            Test(REAL_FILE, "a_killed_process_leaves_a_file_that_recovers"),
        ];
        "between the two" [
            Nothing("every offset, length and buffer is a multiple of 512 anyhow, as a storage of units checks"),
        ];
        "more than a unit" [Test(REFUSED, "a_storage_of_large_sectors_is_refused")];
    }
    "Limits.max_transfer" {
        "one unit" [
            Plans(10, |plan| plan.device.max_transfer == 512),
            Test(LIMITED, "everything_works_a_unit_at_a_time"),
        ] P1 P8;
        "no power of two" [Plans(10, |plan| plan.device.max_transfer == 1536)] P1 P8;
        "less than a page" [Plans(5, |plan| page(plan) > plan.device.max_transfer.into())] P1 P4 P8;
        "less than a cluster" [
            Plans(10, |plan| u64::from(plan.device.max_transfer) < plan.geometry.cluster_size()),
        ] P1 P8;
        "some clusters" [
            Plans(10, |plan| plan.device.max_transfer == 65_536),
            Shaped(Shape::Transfers),
        ] P1 P8;
        "more than everything" [Plans(700, |plan| plan.device.max_transfer == 1 << 30)] P1;
        "none, or no whole units" [Test(LIMITED, "transfers_that_are_no_units_are_refused")];
    }
    "Limits.can_discard" {
        "yes" [Plans(800, |plan| plan.device.can_discard), Met(Probe::HostDiscard)] P2;
        "no" [Plans(15, |plan| !plan.device.can_discard)] P2 P8;
    }
    "Limits.unwritten_reads_zero" {
        "yes" [Plans(700, |plan| plan.device.stale_units == 0)] P2;
        "no" [Shaped(Shape::Stale), Test(LIMITED, "an_image_fills_a_device")] P2;
    }
    "storage::UNIT" {
        "a write of several units tears" [
            Met(Probe::TornData),
            Met(Probe::TornL2),
            Met(Probe::TornRefcountBlock),
        ] P2 P4;
    }
}
