//! Separating clusters that share one survives every power cut.

use qcow2_core::{Rule, Rules};
use qcow2_crashtest::attack;
use qcow2_crashtest::sabotage::Target;

/// Goal: nothing is lost, and nothing is counted too low, whenever the power fails. Method: every crash state, eager and lazy.
#[test]
fn separating_survives_every_power_cut() {
    for lazy in [false, true] {
        let (failure, states) = attack::separate(Rules::all(), lazy);
        assert!(failure.is_none(), "{failure:?}");
        assert!(states > 10, "{states} states");
    }
}

/// Goal: what would lose something is noticed. Method: the orders that it stands on taken away; the flush of one of two covers for the other.
#[test]
fn separating_wrongly_is_noticed() {
    let broken: [&[Rule]; 2] = [
        &[Rule::DataBeforeMapping, Rule::RefcountBeforeReference],
        &[Rule::DereferenceBeforeRefcountDown],
    ];
    for rules in broken {
        let taken = |all, rule: &Rule| Target::Rule(*rule).taken_from(all);
        let (failure, _) = attack::separate(rules.iter().fold(Rules::all(), taken), false);
        assert!(failure.is_some(), "{rules:?}");
    }
}
