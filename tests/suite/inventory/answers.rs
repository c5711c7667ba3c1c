//! What a storage answers.

use faultfs::profile::DiscardMode;
use model::build::Initial;
use qcow2_crashtest::explore::alphabet::Symbol;
use qcow2_crashtest::probe::Probe;
use qcow2_crashtest::workload::{FaultKind, Shape};

use super::line::By::{
    Explored, Fault, Initial as Start, Nothing, Plans, Probe as Met, Shape as Shaped, Test,
};
use super::line::lines;
use super::tests::{
    BLOCK_DEVICE, CORPUS, COST, DAMAGE, HEADER, IMAGE, LAYERS, LIMITED, MALFORMED, REAL_FILE,
    REFUSED, RETRY, SHUTTLE,
};

lines! {
    "Storage::limits()" {
        "constant" [Shaped(Shape::Transfers), Shaped(Shape::Stale)] P8;
    }
    "Storage::writable()" {
        "yes" [Test(IMAGE, "reads_back_what_was_written")];
        "no" [Test(REFUSED, "a_storage_that_is_open_to_read_is_not_opened_for_writing")];
    }
    "Storage::len()" {
        "what it was" [Met(Probe::CleanClose)] P4;
        "less than it was before a power cut" [Met(Probe::LaggingLength)] P1 P4;
        "more than the image has" [
            Shaped(Shape::Stale),
            Test(LIMITED, "an_image_fills_a_device"),
        ] P2;
        "inside a table" [
            Start(Initial::Leftovers),
            Test(DAMAGE, "a_file_may_end_inside_an_l2_table"),
        ] P2 P4;
        "inside an entry" [Test(DAMAGE, "a_file_may_end_inside_an_entry")];
        "inside cluster 0" [
            Test(MALFORMED, "truncated_files_are_refused_by_length"),
            Test(HEADER, "files_that_end_inside_cluster_0"),
        ];
        "far more than there is" [Test(MALFORMED, "a_length_is_only_a_number")];
        "more than before, while the image is open" [
            Test(LIMITED, "a_device_that_becomes_longer_is_not_fresh_there"),
        ];
        "an error" [Test(REAL_FILE, "a_killed_process_leaves_a_file_that_recovers")];
    }
    "Storage::set_len()" {
        "done" [Met(Probe::CleanClose)] P1;
        "an error" [Fault(FaultKind::Write)] P1 P8;
        "no room, once" [Fault(FaultKind::NoSpace), Met(Probe::NoSpace)] P8;
        "no room, for a while" [Fault(FaultKind::NoSpaceForAWhile), Met(Probe::SpaceAgain)] P7 P8;
        "no room, for good" [Fault(FaultKind::FullDevice), Met(Probe::FullForGood)] P7 P8;
        "no room, in each of the three ways to say so" [
            Test(LIMITED, "what_is_needed_is_taken_where_more_does_not_fit"),
        ];
        "an error, and it lands later" [
            Fault(FaultKind::Late),
            Met(Probe::LateLanding),
            Test(RETRY, "each_update_may_fail_once_and_land_late"),
        ] P1 P2;
        "done, and the length stays" [
            Test(LIMITED, "an_image_fills_a_device"),
            Test(BLOCK_DEVICE, "a_device_keeps_its_length"),
        ];
    }
    "Storage::read()" {
        "data" [Met(Probe::CleanClose)] P0;
        "zeroes past the end" [Start(Initial::Leftovers), Met(Probe::LaggingLength)] P0 P4;
        "an error" [Fault(FaultKind::Read), Met(Probe::ReadFailed)] P0 P8;
        "a part, and an error" [Fault(FaultKind::ShortRead), Met(Probe::ShortRead)] P0 P8;
    }
    "Storage::write()" {
        "done" [Met(Probe::CleanClose)] P1;
        "done, and lost" [Met(Probe::UnflushedLost)] P1 P2;
        "an error" [Fault(FaultKind::Write), Met(Probe::WriteFailed)] P1 P2 P8;
        "a part, and an error" [Fault(FaultKind::ShortWrite), Met(Probe::ShortWrite)] P1 P2 P8;
        "no room, once, for a while" [
            Fault(FaultKind::NoSpace),
            Fault(FaultKind::NoSpaceForAWhile),
        ] P7 P8;
        "an error, and it lands later" [Fault(FaultKind::Late), Met(Probe::LateLanding)] P1 P2;
        "a sync that failed, in three meanings" [
            Fault(FaultKind::WriteThroughFailed),
            Met(Probe::WriteThroughFailed),
        ] P1 P8;
        "nothing: its future is dropped" [Fault(FaultKind::Dropped), Met(Probe::Dropped)] P2 P9;
        "the end of the world in the middle" [Met(Probe::TornData)] P2;
    }
    "Storage::write_zeroes()" {
        "done" [Explored(Symbol::WriteFar)] P2 P4;
        "nothing or a part, and an error" [Fault(FaultKind::ShortWrite)] P2 P4 P8;
        "no room" [Fault(FaultKind::NoSpace)] P8;
        "an error, and it lands later" [Fault(FaultKind::Late)] P1 P2;
    }
    "Storage::discard()" {
        "it zeroes" [
            Plans(200, |plan| plan.discard == DiscardMode::Zeroes),
            Met(Probe::DiscardZeroes),
        ] P2;
        "it zeroes or leaves what was there" [
            Plans(400, |plan| plan.discard == DiscardMode::Either),
        ] P2;
        "an error" [Fault(FaultKind::Write)] P2 P8;
        "an error, and it lands later" [Fault(FaultKind::Late)] P2;
        "nothing: its future is dropped" [
            Fault(FaultKind::Dropped),
            Test(CORPUS, "every_file_is_a_test"),
        ] P9;
    }
    "Storage::flush()" {
        "done" [Explored(Symbol::Flush)] P1;
        "an error, and the next may cover it" [
            Fault(FaultKind::FlushRetrySafe),
            Met(Probe::FlushRetrySafe),
        ] P1 P8;
        "an error, and the next covers it no more" [
            Fault(FaultKind::FlushCleanMarked),
            Met(Probe::FlushCleanMarked),
        ] P1 P8;
        "an error for good" [Fault(FaultKind::FlushSticky), Met(Probe::FlushSticky)] P1 P8;
        "an error that nobody is there to hear" [
            Fault(FaultKind::Dropped),
            Test(CORPUS, "every_file_is_a_test"),
        ] P1;
    }
    "Storage::settle()" {
        "done" [Fault(FaultKind::Late), Fault(FaultKind::Dropped)] P1 P2;
        "an error: a dropped flush had failed" [Test(CORPUS, "every_file_is_a_test")];
        "an error, at opening" [
            Nothing("opening fails and has done nothing: its own words, like those of a length that is not told"),
        ];
    }
    "Storage::is_hole()" {
        "a hole, and none" [Test(COST, "copying_a_raw_layer_reads_none_of_its_holes")];
        "nothing is known" [Test(LAYERS, "zeroes_of_a_layer_are_copied_as_zeroes")];
    }
    "Storage::pause()" {
        "a scheduling point" [
            Plans(400, |plan| plan.lives.iter().any(|life| life.tasks.len() > 1)),
            Test(SHUTTLE, "everything_passes_depth_first"),
        ] P0 P8;
        "nothing" [Test(IMAGE, "reads_back_what_was_written")];
    }
}
