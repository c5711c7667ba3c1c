//! What a storage is.

use qcow2_crashtest::probe::Probe;
use qcow2_crashtest::workload::Shape;

use super::line::By::{Nothing, Plans, Probe as Met, Shape as Shaped, Test};
use super::line::lines;
use super::plans::page;
use super::tests::{ALIGNED, DIRECT_IO, IMAGE, LIMITED, REAL_FILE, REFUSED};

lines! {
    "Limits::fault()" {
        "nothing is wrong" [Met(Probe::CleanClose)] P8;
        "something is" [Test(REFUSED, "a_storage_of_large_sectors_is_refused")];
    }
    "storage::is_no_space()" {
        "it is, or another error" [Test(LIMITED, "a_full_storage_is_asked_once")];
    }
    "Limits::sector()" {
        "512 bytes" [Met(Probe::CleanClose)] P8;
        "4,096 bytes" [Shaped(Shape::Sectors)] P8;
    }
    "storage::MOST_ALIGNMENT" {
        "more than that" [
            Test(REFUSED, "a_storage_of_large_sectors_is_refused"),
            Test(ALIGNED, "what_does_not_fit_is_refused_by_name"),
        ];
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
        "a sector of 4,096 bytes" [
            Shaped(Shape::Sectors),
            Plans(20, |plan| plan.device.sector == 4096 && plan.geometry.cluster_size() == 4096),
            Test(ALIGNED, "everything_works_in_whole_sectors"),
            Test(DIRECT_IO, "a_disk_of_long_sectors_is_written_directly"),
        ] P0 P1 P2 P4 P8;
        "more than a cluster, no power of two" [
            Test(ALIGNED, "what_does_not_fit_is_refused_by_name"),
        ];
        "buffers of the caller that lie elsewhere" [Test(ALIGNED, "buffers_may_lie_anywhere")];
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
