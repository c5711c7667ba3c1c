//! Extensions.

use model::build::Initial;

use super::line::By::{Initial as Start, Test};
use super::line::lines;
use super::tests::{ENCRYPTION, EXTENSION, HEADER, INTEROP, MALFORMED};

lines! {
    "format::extension::END" {
        "there, missing, as a type" [
            Test(EXTENSION, "ends_of_the_list"),
            Test(EXTENSION, "the_end_marker_is_not_a_type"),
        ];
    }
    "format::extension::BACKING_FORMAT" {
        "kept" [Test(EXTENSION, "known_types_occur_once_and_unknown_ones_as_often_as_they_like")];
    }
    "format::extension::FEATURE_NAMES" {
        "written, read" [
            Test(HEADER, "unknown_incompatible_features_are_named"),
            Test(INTEROP, "images_of_ours_are_images_to_qemu"),
        ];
    }
    "format::extension::BITMAPS" {
        "with its bit" [Start(Initial::Bitmaps)] P4;
        "without" [Test(HEADER, "bad_bitmaps_matter_only_with_their_bit")];
    }
    "format::extension::LUKS" {
        "without encryption" [Test(MALFORMED, "bad_headers_are_refused_by_name")];
        "with it" [Test(ENCRYPTION, "a_hostile_encryption_header_is_refused")];
    }
    "format::extension::DATA_FILE" {
        "kept" [Test(EXTENSION, "known_types_occur_once_and_unknown_ones_as_often_as_they_like")];
    }
    "format::extension::KNOWN" {
        "each, twice" [
            Test(EXTENSION, "known_types_occur_once_and_unknown_ones_as_often_as_they_like"),
        ];
    }
    "format::extension::HEAD_BYTES" {
        "a list that ends inside one" [Test(EXTENSION, "ends_of_the_list")];
    }
    "format::extension::BYTES" {
        "data as long as that, or not" [
            Test(EXTENSION, "bitmaps_limits"),
            Test(EXTENSION, "luks_limits"),
        ];
    }
}
