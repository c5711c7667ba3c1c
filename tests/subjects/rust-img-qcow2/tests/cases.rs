//! Every kept case: rust-img-qcow2 shows it, the library of this workspace does not, and QEMU finds it in a concrete image file.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in helpers too")]

#[macro_use]
#[path = "../../witness.rs"]
mod witness;

use faultfs::profile::Profile;
use model::case::{Case, Content};
use qcow2_crashtest::blocking::Blocking;
use qcow2_crashtest::campaign::{self, Budget, Settings};
use qcow2_crashtest::workload::{FaultKind, Scope};
use qcow2_crashtest_rust_img_qcow2::RustImg;
use witness::{counted, reads_wrong, vouches_for_bitmaps};

const FULL: Blocking<RustImg> = Blocking(RustImg { contents: false });
const CONTENTS: Blocking<RustImg> = Blocking(RustImg { contents: true });

/// Goal: somebody else finds it in the file. Method: `qemu-img check` says that one cluster is leaked, and nothing else.
fn leaks_one(case: &Case) {
    assert_eq!(counted(case), (0, 1));
}

kept_cases! {
    [FULL, CONTENTS];
    bitmaps_outlive_a_write "bitmaps-outlive-a-write.json"
        |case| vouches_for_bitmaps(case, 18, &Content::Tag { unit: 18, id: 3 }),
    compressed_cluster_leaks "compressed-cluster-leaks.json" leaks_one,
    failed_flush_forgotten "failed-flush-forgotten.json" |case| reads_wrong(case, 0),
    zero_cluster_leaks "zero-cluster-leaks.json" leaks_one,
}

fn settings(scope: Scope, profile: Profile, cases: u64) -> Settings {
    Settings { seed: 1, profile, damage: None, scope, budget: Budget::Cases(cases), workers: 1 }
}

/// Nothing was found.
fn silent(report: &campaign::Report) {
    assert!(
        report.found.is_none() && report.broken.is_none(),
        "{:?} {:?}",
        report.found,
        report.broken
    );
}

/// Goal: its write orders are found to be what it says. Method: a campaign on the worst device, and a short one on each other, judged by what
/// its guest sees.
#[test]
fn a_campaign_finds_nothing_that_its_guest_sees() {
    for profile in Profile::ALL {
        let cases = if profile == Profile::TornLength { 60 } else { 12 };
        let report =
            campaign::run(&CONTENTS, &settings(Scope::faultless(), profile, cases), |_| {});
        silent(&report);
    }
}

/// Goal: a plain call that failed is over. Method: I/O that fails and lands late; none of it meets what comes after.
#[test]
fn what_failed_does_not_land_after_its_call() {
    let scope = Scope { fault: Some(FaultKind::Late), tasks: Some(1), ..Scope::default() };
    let report = campaign::run(&CONTENTS, &settings(scope, Profile::Kill, 60), |_| {});
    silent(&report);
}
