//! What requests at once show: every kept case, and that the adapter is a function of its seed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in helpers too")]

#[macro_use]
#[path = "../../witness.rs"]
mod witness;

use faultfs::profile::Profile;
use model::case::Case;
use qcow2_crashtest::campaign::{self, Budget, Settings};
use qcow2_crashtest::qemu;
use qcow2_crashtest::workload::{Scope, Shape};
use qcow2_crashtest_qcow2_rs::at_once::AtOnce;
use witness::{counted, image_file, reads_wrong};

const FULL: AtOnce = AtOnce { contents: false };
const CONTENTS: AtOnce = AtOnce { contents: true };

/// Goal: the image is legal, and the two requests can be met beside each other. Method: `qemu-img check` finds nothing corrupt; `qemu-io` writes a
/// guest unit and reads it at once, one read of it with the write on its way and one after it.
fn is_read_by_qemu_beside_a_write(case: &Case, unit: u64) {
    let folder = tempfile::tempdir().unwrap();
    let path = image_file(case, folder.path());
    assert_eq!(qemu::check(&path).unwrap().corruptions, 0);
    let offset = 512 * unit;
    let commands = [
        format!("aio_write -P 165 {offset} 512"),
        format!("aio_read {offset} 512"),
        "aio_flush".to_owned(),
        format!("read -P 165 {offset} 512"),
    ];
    let said = qemu::io(&path, &commands).unwrap().success().unwrap().stdout;
    assert_eq!(said.matches("read 512/512 bytes").count(), 2, "{said}");
    assert!(!said.contains("verification failed"), "{said}");
}

/// Goal: somebody else finds it in the file. Method: `qemu-img check` finds something corrupt.
fn is_corrupt(case: &Case) {
    assert_ne!(counted(case).0, 0);
}

kept_cases! {
    [FULL, CONTENTS];
    flush_beside_a_write "flush-beside-a-write.json" |case| reads_wrong(case, 14),
    read_beside_a_write "read-beside-a-write.json" |case| is_read_by_qemu_beside_a_write(case, 20),
    tables_before_refcounts "tables-before-refcounts.json" is_corrupt,
}

/// Goal: what it does is a function of the seed, though it flushes in the order of a hash map; else no case of it would be one. Method: a campaign that
/// goes on past what it finds, which runs cases twice.
#[test]
fn a_campaign_is_a_function_of_its_seed() {
    let scope = Scope { shape: Some(Shape::Version2), ..Scope::faultless() };
    let settings = Settings {
        seed: 1,
        profile: Profile::Kill,
        damage: None,
        scope,
        budget: Budget::Cases(120),
        workers: 1,
    };
    let report = campaign::run_past(&CONTENTS, &settings, |_| {}, |_| true);
    assert_eq!(report.broken, None);
    assert!(report.figures.states > 1000 && report.figures.repeated > 0, "{:?}", report.figures);
}
