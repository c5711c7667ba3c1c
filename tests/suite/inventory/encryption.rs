//! Encrypted guest data.

use model::op::{Encryption, Op};
use qcow2_crashtest::explore::alphabet::Symbol;
use qcow2_crashtest::workload::Shape;

use super::line::By::{Explored, Nothing, Plans, Shape as Shaped, Test};
use super::line::lines;
use super::plans::{beside_others, some};
use super::tests::{ENCRYPTION, EXTENSION, MATRIX, PASSPHRASES, PASSPHRASES_OF_QEMU};

const SLOTS: &str = "qcow2-core/src/crypt/slots.rs";

lines! {
    "Encryption::luks()" {
        "with guest data" [
            Plans(10, |plan| plan.geometry.encryption == Some(Encryption::Luks)),
            Test(MATRIX, "every_pair_of_options_goes_both_ways"),
        ] P0 P1 P2 P3 P4 P10 PCipher;
        "over a layer" [
            Plans(3, |plan| plan.geometry.encryption.is_some() && plan.geometry.below.is_some()),
        ] P0 P1 P2 PCipher;
        "with subclusters" [
            Plans(2, |plan| plan.geometry.encryption.is_some() && plan.geometry.extended_l2),
        ] P0 P1 P2 PCipher;
        "in a data file" [
            Plans(2, |plan| plan.geometry.encryption.is_some() && plan.geometry.data_file.is_some()),
        ] P0 P1 P2 PCipher;
        "on longer sectors" [
            Plans(3, |plan| plan.geometry.encryption.is_some() && plan.device.sector > 512),
        ] P1 P2 P8 PCipher;
        "a disk that becomes smaller, or larger" [
            Plans(5, |plan| {
                let resizes = |op: &Op, _| matches!(op, Op::Grow { .. } | Op::Shrink { .. });
                plan.geometry.encryption.is_some() && some(plan, resizes)
            }),
        ] P2 P4 P10;
    }
    "Encryption::aes()" {
        "with guest data" [
            Plans(10, |plan| plan.geometry.encryption == Some(Encryption::Aes)),
            Test(MATRIX, "every_pair_of_options_goes_both_ways"),
        ] P0 P1 P2 P3 P4 P10 PCipher;
    }
    "crypt::secret::ROUNDS" {
        "a default" [Nothing("a number for callers: how long opening takes is theirs to choose")];
    }
    "crypt::slots::MOST_ROUNDS" {
        "one more" [Test(SLOTS, "what_cannot_be_opened_is_refused_by_name")];
        "far more" [Test(ENCRYPTION, "a_hostile_encryption_header_is_refused")];
    }
    "crypt::slots::LEAST_DIGEST_ROUNDS" {
        "a key in its slot" [Test(SLOTS, "a_passphrase_opens_its_slot")];
    }
    "crypt::slots::SLOT_ROUNDS_PER_DIGEST_ROUND" {
        "a key in its slot" [Test(SLOTS, "a_passphrase_opens_its_slot")];
    }
    "crypt::slots::KEY_BYTES" {
        "read by QEMU" [Test(MATRIX, "every_pair_of_options_goes_both_ways")];
    }
    "crypt::slots::CIPHER" {
        "read by QEMU" [Test(MATRIX, "every_pair_of_options_goes_both_ways")];
    }
    "crypt::slots::MODE" {
        "read by QEMU" [Test(MATRIX, "every_pair_of_options_goes_both_ways")];
    }
    "crypt::hash::ALL" {
        "each" [Test("qcow2-core/src/crypt/split.rs", "a_key_takes_all_stripes")];
    }
    "format::limits::LUKS_BYTES" {
        "as many, one more" [Test(EXTENSION, "luks_limits")];
    }
    "Passphrase::new()" {
        "the right one, wrong ones" [Test(ENCRYPTION, "a_wrong_passphrase_is_told")];
    }
    "create::create_encrypted()" {
        "every kind" [Test(ENCRYPTION, "a_guest_finds_what_it_wrote")];
        "with clusters taken ahead" [Test(ENCRYPTION, "what_is_taken_ahead_reads_as_zeroes")];
    }
    "Image::open_encrypted()" {
        "every kind" [Shaped(Shape::Encrypted)] P0 P1 P2 P4 PCipher;
        "without encryption, with another passphrase" [
            Test(ENCRYPTION, "a_wrong_passphrase_is_told"),
        ];
        "a hostile header" [Test(ENCRYPTION, "a_hostile_encryption_header_is_refused")];
    }
    "blocking::Image::open_encrypted()" {
        "in random calls" [Test(ENCRYPTION, "a_guest_finds_what_it_wrote")];
    }
    "blocking::create_encrypted()" {
        "every kind" [Test(ENCRYPTION, "a_guest_finds_what_it_wrote")];
    }
    "Image::add_passphrase()" {
        "one that is not there" [
            Shaped(Shape::Passphrases),
            Explored(Symbol::AddSecond),
            Test(PASSPHRASES_OF_QEMU, "passphrases_go_both_ways"),
        ] P1 P10;
        "one that is there, and one too many" [Test(PASSPHRASES, "passphrases_come_and_go")];
        "beside other requests" [
            Plans(3, |plan| {
                beside_others(plan, |op| matches!(op, Op::AddPassphrase { .. }))
            }),
        ] P7 P10;
    }
    "Image::remove_passphrase()" {
        "one that is there" [
            Shaped(Shape::Passphrases),
            Explored(Symbol::RemoveFirst),
            Test(PASSPHRASES_OF_QEMU, "passphrases_go_both_ways"),
        ] P1 P10;
        "one that is there several times, and not at all" [
            Test(PASSPHRASES, "passphrases_come_and_go"),
        ];
        "the one to be kept" [Test(PASSPHRASES, "what_would_lose_the_image_is_refused")];
    }
    "blocking::Image::add_passphrase()" {
        "in random calls" [Test(PASSPHRASES, "passphrases_come_and_go")];
    }
    "blocking::Image::remove_passphrase()" {
        "in random calls" [Test(PASSPHRASES, "passphrases_come_and_go")];
    }
    "IoError::Passphrase" {
        "told" [Test(PASSPHRASES, "what_would_lose_the_image_is_refused")];
    }
    "Layers::passphrase()" {
        "told, or not" [Test(ENCRYPTION, "a_policy_knows_passphrases")];
    }
    "FileLayers::passphrase()" {
        "the right one, a wrong one, none" [Test(ENCRYPTION, "a_policy_knows_passphrases")];
    }
    "OpenError::WrongPassphrase" {
        "told" [Test(ENCRYPTION, "a_wrong_passphrase_is_told")];
    }
}
