//! Small programs with what each robustness profile may make of them, exactly.
//!
//! Goal: damage strikes where it says and nowhere else, and without damage everything is as the crash left it. Method: as in
//! `litmus`, every choice is explored; a value that nobody wrote shows as `#`, one bit away from a known one as `~`.

use std::collections::BTreeSet;

use faultfs::Defect;
use faultfs::chooser::{Choice, Steer};
use faultfs::profile::{Profile, Robustness};
use faultfs::values::Key;
use qcow2_core::storage::UNIT;

use super::program::{Keys, Program, explore};

const TABLE: &[(&str, Robustness, u32, &str, &str)] = &[
    ("what is in doubt may be trash", Robustness::Trash, 1, "W(a) crash", "o 1 #"),
    ("so may what is in flight", Robustness::Trash, 1, "T(a)~ crash", "o 1 #"),
    ("what is durable is not", Robustness::Trash, 2, "W(a) F W(b) crash", "1o 12 1#"),
    ("nothing in doubt, no trash", Robustness::Trash, 1, "T(a) crash", "1"),
    ("what is durable rots", Robustness::BitRot, 1, "T(a) crash", "1 ~"),
    ("so does what is in doubt", Robustness::BitRot, 1, "W(a) crash", "o 1 ~"),
    ("a write lands elsewhere too", Robustness::Misdirected, 2, "W(a) crash", "oo 1o o1 11"),
    ("a durable write does not", Robustness::Misdirected, 2, "T(a) crash", "1o"),
    ("elsewhere is anywhere", Robustness::Misdirected, 2, "F W(b) crash", "oo o1 1o 11"),
];

fn outcomes(how: Robustness, len: u32, text: &str, defect: Option<Defect>) -> BTreeSet<String> {
    let program = Program::parse(len, text).expect("the table is well formed");
    let keys = Keys::new();
    let disk = program.disk(&keys).with_defect(defect);
    let mut outcomes = BTreeSet::new();
    explore(|chooser| {
        let (mut disk, _) = program.run(disk.clone(), &keys, Profile::TornLength, chooser);
        // A few bits stand for all: the first of the unit, one within, the last.
        let mut few = Steer(|options, what: Choice<'_>| match what {
            Choice::Bit { .. } => {
                let bits = [0, 1000, options - 1];
                bits[faultfs::chooser::ask(chooser, bits.len(), Choice::Prefix)]
            }
            _ => faultfs::chooser::Chooser::choose(chooser, options, what),
        });
        disk.damage(how, &mut few);
        let units: Vec<Key> = (0..len).map(|unit| disk.read(unit, chooser)).collect();
        let name = |key: &Key| name(&keys, disk.values().bytes(*key));
        outcomes.insert(units.iter().map(name).collect());
    });
    outcomes
}

fn name(keys: &Keys, bytes: &[u8; UNIT]) -> char {
    let distance = |value: u8| -> u32 {
        bytes.iter().map(|byte| (byte ^ keys.byte(value)).count_ones()).sum()
    };
    let known = [b'o', b'1', b'2', b'.'];
    if let Some(&value) = known.iter().find(|&&value| distance(value) == 0) {
        return char::from(value);
    }
    if known.iter().any(|&value| distance(value) == 1) { '~' } else { '#' }
}

fn expected(text: &str) -> BTreeSet<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// The first row that a defect fails.
pub(crate) fn first_failure(defect: Defect) -> Option<&'static str> {
    let fails = |row: &&(&str, Robustness, u32, &str, &str)| {
        outcomes(row.1, row.2, row.3, Some(defect)) != expected(row.4)
    };
    TABLE.iter().find(fails).map(|row| row.0)
}

#[test]
fn every_profile_damages_exactly_what_it_says() {
    for &(row, how, len, program, allowed) in TABLE {
        assert_eq!(outcomes(how, len, program, None), expected(allowed), "{row}: {program}");
    }
}
