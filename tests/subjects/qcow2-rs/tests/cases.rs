//! Every kept case: qcow2-rs shows it, the library of this workspace does not, and QEMU finds it in a concrete image file.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in helpers too")]

#[macro_use]
#[path = "../../witness.rs"]
mod witness;

use faultfs::profile::Profile;
use model::case::{Case, Content};
use qcow2_crashtest::blocking::Blocking;
use qcow2_crashtest::campaign::{self, Budget, Settings};
use qcow2_crashtest::qemu;
use qcow2_crashtest::workload::Scope;
use qcow2_crashtest_qcow2_rs::Qcow2Rs;
use witness::{counted, image_file, reads_wrong, vouches_for_bitmaps};

const FULL: Blocking<Qcow2Rs> = Blocking(Qcow2Rs { contents: false });
const CONTENTS: Blocking<Qcow2Rs> = Blocking(Qcow2Rs { contents: true });

/// Goal: somebody else finds it in the file. Method: `qemu-img check` finds something corrupt.
fn is_corrupt(case: &Case) {
    assert_ne!(counted(case).0, 0);
}

/// Goal: the image is legal, and what panics can be done. Method: `qemu-img check` finds nothing corrupt, before and after `qemu-io` has
/// written all of the disk and read it again.
fn is_written_by_qemu(case: &Case) {
    let folder = tempfile::tempdir().unwrap();
    let path = image_file(case, folder.path());
    assert_eq!(qemu::check(&path).unwrap().corruptions, 0);
    let size = case.geometry.virtual_size;
    let commands = ["write", "read"].map(|verb| format!("{verb} -P 165 0 {size}"));
    let said = qemu::io(&path, &commands).unwrap().success().unwrap().stdout;
    assert!(!said.contains("verification failed"), "{said}");
    assert_eq!(qemu::check(&path).unwrap().corruptions, 0);
}

/// Goal: somebody else cannot read it either. Method: `qemu-img check` finds nothing corrupt, so the entry is legal, and `qemu-io` fails to
/// read the guest unit, because what the entry refers to is no stream.
fn has_no_stream(case: &Case, unit: u64) {
    let folder = tempfile::tempdir().unwrap();
    let path = image_file(case, folder.path());
    assert_eq!(qemu::check(&path).unwrap().corruptions, 0);
    let said = qemu::io(&path, &[format!("read {} 512", 512 * unit)]).unwrap().stdout;
    assert!(said.contains("read failed: Input/output error"), "{said}");
}

kept_cases! {
    [FULL, CONTENTS];
    bitmaps_outlive_a_write "bitmaps-outlive-a-write.json"
        |case| vouches_for_bitmaps(case, 3, &Content::Tag { unit: 3, id: 1 }),
    compressed_write_panics "compressed-write-panics.json" is_written_by_qemu,
    l1_entry_forgotten "l1-entry-forgotten.json" |case| reads_wrong(case, 0),
    mapped_without_its_data "mapped-without-its-data.json" |case| reads_wrong(case, 0),
    narrow_refcounts_misread "narrow-refcounts-misread.json" is_corrupt,
    refcount_table_growth_panics "refcount-table-growth-panics.json" is_written_by_qemu,
    reuse_before_dereference "reuse-before-dereference.json" |case| has_no_stream(case, 16),
    shared_cluster_not_copied "shared-cluster-not-copied.json" |case| reads_wrong(case, 1),
    stream_beside_it_given_out "stream-beside-it-given-out.json" |case| has_no_stream(case, 52),
}

/// Goal: a case is a function of its seed, whatever the keys of hash maps are. Method: a campaign past whatever it finds, which runs every
/// hundredth case twice.
#[test]
fn cases_are_functions_of_their_seeds() {
    let scope = Scope { tasks: Some(1), ..Scope::faultless() };
    let settings = Settings {
        seed: 1,
        profile: Profile::Kill,
        damage: None,
        scope,
        budget: Budget::Cases(101),
        workers: 1,
    };
    let report = campaign::run_past(&CONTENTS, &settings, |_| {}, |_| true);
    assert!(report.found.is_none() && report.broken.is_none(), "{:?}", report.broken);
    assert_eq!(report.figures.repeated, 2);
}
