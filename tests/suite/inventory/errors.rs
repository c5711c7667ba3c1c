//! Errors.

use faultfs::profile::Robustness;
use qcow2_crashtest::probe::Probe;
use qcow2_crashtest::workload::FaultKind;

use super::line::By::{Damage, Fault, Nothing, Probe as Met, Test};
use super::line::lines;
use super::tests::{
    BACKING, CHECK, COMPRESSED, CORPUS, DAMAGE, FILE, INTEROP, LIMITED, MALFORMED, REAL_FILE,
    REFUSED, RETRY, SNAPSHOTS, TABLES, WRITE_COMPRESSED,
};

lines! {
    "CreateError::Option" {
        "told" [Test(REFUSED, "options_of_a_new_image_are_refused_by_name")];
    }
    "CreateError::Format" {
        "told" [Test(REFUSED, "options_of_a_new_image_are_refused_by_name")];
    }
    "CreateError::Storage" {
        "told" [Test(LIMITED, "an_image_that_does_not_fit_leaves_the_old_one")];
    }
    "OpenError::Format" {
        "told" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "OpenError::Unsupported" {
        "told" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(REFUSED, "a_storage_of_large_sectors_is_refused"),
        ];
    }
    "OpenError::Option" {
        "told" [Test(REFUSED, "options_of_opening_are_refused_by_name")];
    }
    "OpenError::ReadOnlyStorage" {
        "told" [Test(REFUSED, "a_storage_that_is_open_to_read_is_not_opened_for_writing")];
    }
    "OpenError::MarkedCorrupt" {
        "told" [Test(TABLES, "an_entry_that_leads_to_a_table_is_not_written_through")];
    }
    "OpenError::Unrepairable" {
        "told" [Met(Probe::OpenRefused), Test(DAMAGE, "what_is_refused_by_name_is_not_changed")] P8;
    }
    "OpenError::CutShort" {
        "told" [Test(DAMAGE, "a_file_may_end_inside_an_entry")];
    }
    "OpenError::Repair" {
        "told" [Test(REAL_FILE, "a_killed_process_leaves_a_file_that_recovers")];
    }
    "OpenError::Io" {
        "told" [Test(REAL_FILE, "a_killed_process_leaves_a_file_that_recovers")];
    }
    "IoError::Storage" {
        "told" [
            Fault(FaultKind::Read),
            Fault(FaultKind::Write),
            Test(LIMITED, "a_discarded_cluster_is_taken_before_an_allocation_fails"),
        ] P8;
    }
    "IoError::Poisoned" {
        "after a sync that failed" [
            Fault(FaultKind::FlushSticky),
            Test(RETRY, "a_sync_that_failed_is_final"),
        ] P1 P8;
        "after damage was found" [
            Test(TABLES, "an_entry_that_leads_to_a_table_is_not_written_through"),
        ];
    }
    "IoError::ReadOnly" {
        "told" [Test(REFUSED, "an_image_that_is_open_to_read_is_not_changed")];
    }
    "IoError::OutOfRange" {
        "told" [Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name")];
    }
    "IoError::Unaligned" {
        "told" [Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name")];
    }
    "IoError::Header" {
        "told" [Nothing(
            "a header is encoded again from one that was parsed, so what it would say was said at opening: \
             tests/suite/malformed.rs::bad_headers_are_refused_by_name"
        )];
    }
    "IoError::Entry" {
        "told" [Damage(Robustness::BitRot), Test(SNAPSHOTS, "consequences_of_damage")] P7;
    }
    "IoError::SharedTable" {
        "two entries lead to it" [Test(TABLES, "a_table_of_two_entries_is_not_changed")];
        "its refcount says so" [Test(SNAPSHOTS, "consequences_of_damage")];
    }
    "IoError::InUse" {
        "told" [
            Test(TABLES, "a_table_that_is_counted_as_free_is_not_given_out"),
            Test(CHECK, "a_table_is_not_given_out"),
        ];
    }
    "IoError::TwoTables" {
        "told" [Test(SNAPSHOTS, "consequences_of_damage"), Test(CORPUS, "every_file_is_a_test")];
    }
    "IoError::Unsupported" {
        "a layer on a storage that makes no sense" [
            Nothing("the words of Limits::fault, which have lines"),
        ];
    }
    "IoError::Compressed" {
        "told" [
            Test(COMPRESSED, "what_cannot_be_decompressed_is_told"),
            Test(SNAPSHOTS, "consequences_of_damage"),
        ];
    }
    "IoError::NotCompressed" {
        "told" [Test(WRITE_COMPRESSED, "dropped_work_is_told")];
    }
    "IoError::Lost" {
        "told" [
            Nothing("opening has seen that the L1 table covers the disk, and what was looked up before stays: words for what cannot be"),
        ];
    }
    "IoError::Full" {
        "told" [Test(LIMITED, "the_largest_refcount_table_grows_no_more")];
    }
    "IoError::Backing" {
        "no room, what would move, no layer" [
            Test(BACKING, "an_image_comes_to_name_another_layer"),
            Test(BACKING, "extensions_that_would_move_are_not_touched"),
            Test(BACKING, "an_image_without_a_layer_gets_none"),
        ];
    }
    "IoError::Resize" {
        "told" [Test(REFUSED, "requests_that_do_not_fit_are_refused_by_name")];
    }
    "CheckError::Format" {
        "told" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
    }
    "CheckError::Unsupported" {
        "told" [
            Test(MALFORMED, "bad_headers_are_refused_by_name"),
            Test(REFUSED, "a_storage_of_large_sectors_is_refused"),
        ];
    }
    "CheckError::Storage" {
        "told" [Test(REAL_FILE, "a_killed_process_leaves_a_file_that_recovers")];
    }
    "FileError::System" {
        "told" [Test(FILE, "refusals_name_the_file_and_the_permission")];
    }
    "FileError::NotAFile" {
        "told" [Test(FILE, "refusals_name_the_file_and_the_permission")];
    }
    "FileError::Locked" {
        "told" [
            Test(FILE, "readers_share_and_writers_do_not"),
            Test(INTEROP, "locks_keep_the_two_apart"),
        ];
    }
}
