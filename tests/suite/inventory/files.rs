//! Files and devices.

use super::line::By::{Nothing, Test};
use super::line::lines;
use super::tests::{BLOCK_DEVICE, FILE, INTEROP, REAL_FILE};

lines! {
    "FileStorage::open()" {
        "a file" [Test(REAL_FILE, "a_killed_process_leaves_a_file_that_recovers")];
        "a device" [Test(BLOCK_DEVICE, "an_image_fills_a_device")];
        "neither, in use, or not there" [Test(FILE, "refusals_name_the_file_and_the_permission")];
    }
    "FileStorage::create()" {
        "new, and over what is there" [Test(FILE, "creating_over_an_existing_file")];
        "a device" [Test(BLOCK_DEVICE, "an_image_fills_a_device")];
    }
    "FileStorage::path()" {
        "any" [Test(FILE, "refusals_name_the_file_and_the_permission")];
    }
    "FileStorage::sync_parent()" {
        "of a file that is there, and of one that is gone" [
            Test(FILE, "creating_over_an_existing_file"),
        ];
        "under power cuts" [
            Nothing("it takes a file system that forgets directory entries, which nothing here simulates"),
        ];
    }
    "Access::ReadOnly" {
        "alone, beside others, asked to write" [
            Test(FILE, "readers_share_and_writers_do_not"),
            Test(FILE, "a_reader_cannot_write"),
        ];
    }
    "Access::ReadWrite" {
        "alone, and beside others" [Test(FILE, "readers_share_and_writers_do_not")];
    }
    "Existing::Refuse" {
        "something is there, or nothing" [Test(FILE, "creating_over_an_existing_file")];
    }
    "Existing::Replace" {
        "something is there, or nothing, or somebody uses it" [
            Test(FILE, "creating_over_an_existing_file"),
        ];
    }
    "storage::file::REFUSED" {
        "beside QEMU, and beside ourselves" [
            Test(INTEROP, "locks_keep_the_two_apart"),
            Test(FILE, "readers_share_and_writers_do_not"),
        ];
    }
    "storage::file::USED_BASE" {
        "beside QEMU" [Test(INTEROP, "locks_keep_the_two_apart")];
    }
    "storage::file::REFUSED_BASE" {
        "beside QEMU" [Test(INTEROP, "locks_keep_the_two_apart")];
    }
    "storage::file::ZEROES" {
        "more zeroes than that" [Test(FILE, "large_zeroes_are_written_in_pieces")];
    }
}
