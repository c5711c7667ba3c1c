//! What a person reads about a failure stays readable.

use qcow2_crashtest::replay::subject_of;
use qcow2_crashtest::{corpus, report, trial};

/// Goal: the report of a failure names property, place, workload, I/O, what was kept and lost. Method: a snapshot of one.
#[test]
fn a_failure_is_told() {
    let name = "without-durable-before-acknowledge.json";
    let case = corpus::load(&corpus::folder().join(name)).expect("the file is a case");
    let broken = subject_of(&case, name, true).expect("subject and witness exist");
    let exact = corpus::trial_of(&case, name).expect("the case can be run");
    let outcome = trial::run(&broken, &exact).expect("it is feasible");
    let (_, failure) = outcome.failure.as_ref().expect("it fails without its witness");
    insta::assert_snapshot!(report::text(&exact, &outcome, failure));
}
