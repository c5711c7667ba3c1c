//! What requests at once show: every kept case, and that the adapter is a function of its seed.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in helpers too")]

#[macro_use]
#[path = "../../witness.rs"]
mod witness;

use faultfs::profile::Profile;
use model::case::Case;
use qcow2_crashtest::campaign::{self, Budget, Settings};
use qcow2_crashtest::workload::{Scope, Shape};
use qcow2_crashtest_qcow2_rs::at_once::AtOnce;
use witness::reads_wrong;

const FULL: AtOnce = AtOnce { contents: false };
const CONTENTS: AtOnce = AtOnce { contents: true };

kept_cases! {
    [FULL, CONTENTS];
    flush_beside_a_write "flush-beside-a-write.json" |case| reads_wrong(case, 14),
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
