//! Guest data in an external data file.

use model::op::{DataFile, Op};
use qcow2_crashtest::workload::Shape;

use super::line::By::{Nothing, Plans, Shape as Shaped, Test};
use super::line::lines;
use super::plans::some;
use super::tests::{CAMPAIGN, DATA_FILES, MATRIX};

lines! {
    "DataFile::new()" {
        "plain" [
            Plans(10, |plan| plan.geometry.data_file == Some(DataFile::Plain)),
            Test(MATRIX, "every_pair_of_options_goes_both_ways"),
        ] P0 P1 P2 P3 P4 P10;
        "over a layer" [
            Plans(3, |plan| plan.geometry.data_file.is_some() && plan.geometry.below.is_some()),
        ] P0 P1 P2;
        "with subclusters" [
            Plans(2, |plan| plan.geometry.data_file.is_some() && plan.geometry.extended_l2),
        ] P0 P1 P2;
        "on longer sectors" [
            Plans(3, |plan| plan.geometry.data_file.is_some() && plan.device.sector > 512),
        ] P1 P2 P8;
        "a disk that becomes smaller, or larger" [
            Plans(10, |plan| {
                let resizes = |op: &Op, _| matches!(op, Op::Grow { .. } | Op::Shrink { .. });
                plan.geometry.data_file.is_some() && some(plan, resizes)
            }),
        ] P2 P4 P10;
    }
    "DataFile::raw()" {
        "the disk by itself" [
            Plans(10, |plan| plan.geometry.data_file == Some(DataFile::Raw)),
            Test(MATRIX, "every_pair_of_options_goes_both_ways"),
        ] P0 P1 P2 P3 P4 P10;
        "with clusters that nothing maps" [
            Test(DATA_FILES, "what_is_not_mapped_in_a_raw_data_file_is_seen_all_the_same"),
        ];
    }
    "DataFile::of()" {
        "plain and raw" [Test(DATA_FILES, "a_guest_finds_what_it_wrote")];
        "none" [Test(DATA_FILES, "what_does_not_belong_together_is_refused")];
    }
    "DataFile.name" {
        "as it is, missing, outside" [Test(DATA_FILES, "a_policy_opens_data_files")];
        "empty" [Test(DATA_FILES, "what_does_not_belong_together_is_refused")];
    }
    "DataFile.raw" {
        "on, off" [Shaped(Shape::DataFiles)] P2 P10;
    }
    "File::Image" {
        "of each piece of guest data" [Test(DATA_FILES, "guest_data_is_in_the_data_file_at_its_own_offset")];
    }
    "File::Data" {
        "of each piece of guest data" [Test(DATA_FILES, "guest_data_is_in_the_data_file_at_its_own_offset")];
    }
    "files::DATA" {
        "an address of either file" [Test("qcow2-core/src/files.rs", "an_address_says_its_file")];
    }
    "order::OF_DATA" {
        "flushes of either file" [Test("qcow2-core/src/order.rs", "a_flush_covers_one_file_only")];
    }
    "Image::data_file()" {
        "written to by its holder" [Test(DATA_FILES, "guest_data_is_in_the_data_file_at_its_own_offset")];
    }
    "Image::open_with_data()" {
        "both files" [Shaped(Shape::DataFiles)] P0 P1 P2 P4;
        "one of them, or one too many" [
            Test(DATA_FILES, "what_does_not_belong_together_is_refused"),
        ];
        "with a layer" [Test(DATA_FILES, "a_guest_finds_what_it_wrote")];
    }
    "blocking::Image::open_with_data()" {
        "in random calls" [Test(DATA_FILES, "a_guest_finds_what_it_wrote")];
    }
    "create::create_with_data()" {
        "over what was there" [Test(CAMPAIGN, "whatever_is_taken_away_is_missed")];
        "every kind of entry" [
            Test(DATA_FILES, "a_guest_finds_what_it_wrote"),
            Test(MATRIX, "every_pair_of_options_goes_both_ways"),
        ];
        "what makes no sense" [Test(DATA_FILES, "what_does_not_belong_together_is_refused")];
    }
    "blocking::create_with_data()" {
        "every kind of entry" [Test(DATA_FILES, "a_guest_finds_what_it_wrote")];
    }
    "Layers::open_data()" {
        "opens, refuses" [Test(DATA_FILES, "a_policy_opens_data_files")];
        "what opens none" [Nothing("a default that answers with an error of its own")];
    }
    "EntryProblem::CompressedInDataFile" {
        "told" [Test(DATA_FILES, "entries_that_lead_elsewhere_are_refused")];
    }
    "EntryProblem::NotItsPlace" {
        "told" [
            Test(DATA_FILES, "entries_that_lead_elsewhere_are_refused"),
            Test(DATA_FILES, "entries_of_a_data_file_round_trip"),
        ];
    }
    "IoError::DataFile" {
        "told" [Test(DATA_FILES, "a_data_file_that_fails_is_named")];
    }
    "OpenError::DataFile" {
        "told" [Test(DATA_FILES, "a_policy_opens_data_files")];
    }
    "OpenError::DataFileTooShort" {
        "told" [Test(DATA_FILES, "what_does_not_belong_together_is_refused")];
    }
}
