//! Separating clusters that share one survives every power cut.

use qcow2_core::{Mutant, Rule, Rules};
use qcow2_crashtest::attack::{Room, separate};
use qcow2_crashtest::sabotage::Target;

/// Goal: nothing is lost, and nothing is counted too low, whenever the power fails. Method: every crash state, eager and lazy, with standard
/// and with extended entries, in space that was used before and in new space.
#[test]
fn separating_survives_every_power_cut() {
    for (lazy, extended) in [(false, false), (true, false), (false, true), (true, true)] {
        for room in [Room::Used, Room::Fresh] {
            let (failure, states) = separate(Rules::all(), lazy, extended, room);
            assert!(failure.is_none(), "{lazy}, {extended}, {room:?}: {failure:?}");
            assert!(states > 10, "{lazy}, {extended}, {room:?}: {states} states");
        }
    }
}

/// Goal: what would lose something is noticed. Method: the orders that it stands on taken away, and a mistake. Where the flush of one order
/// covers another, both are taken away.
#[test]
fn separating_wrongly_is_noticed() {
    let copies = [Rule::DataBeforeMapping, Rule::RefcountBeforeReference].map(Target::Rule);
    let dereference = [Target::Rule(Rule::DereferenceBeforeRefcountDown)];
    let moved = [Target::Mutant(Mutant::MovedDataOvertaken)];
    let cases: [(&[Target], bool, bool, Room); 5] = [
        (&copies, false, false, Room::Used),
        (&copies, false, true, Room::Used),
        (&dereference, false, false, Room::Used),
        (&dereference, false, true, Room::Used),
        (&moved, true, true, Room::Fresh),
    ];
    for (broken, lazy, extended, room) in cases {
        let taken = |all, target: &Target| target.taken_from(all);
        let (failure, _) = separate(broken.iter().fold(Rules::all(), taken), lazy, extended, room);
        assert!(failure.is_some(), "{broken:?}, extended: {extended}, {room:?}");
    }
}
