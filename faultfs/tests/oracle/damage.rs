//! Small programs with what each robustness profile may make of them, exactly.
//!
//! Goal: damage strikes where it says and nowhere else, and without damage everything is as the crash left it. Method: as in
//! `litmus`, every choice is explored; a value that nobody wrote shows as `#`, one bit away from a known one as `~`.

use std::collections::BTreeSet;

use faultfs::Defect;
use faultfs::chooser::{Always, Choice, Steer};
use faultfs::disk::PossibleDisk;
use faultfs::profile::{Profile, Robustness};
use faultfs::values::{Bytes, Key, Values};
use storage::{Durability, UNIT};

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

/// A disk of `old` with a write of `new` to its unit 0 in doubt, as a crash left it.
fn in_doubt(old: &[Bytes], new: &Bytes) -> PossibleDisk {
    let values = Values::new();
    let bytes = old.concat();
    let mut disk = PossibleDisk::from_extents(&values, bytes.len() as u64, [(0, &bytes[..])]);
    let key = values.intern(new);
    let write = disk.submit_write(0, &[key], Durability::Cached, &mut Always(0));
    disk.complete(write);
    disk.crash(Profile::TornLength, &mut Always(0))
}

#[test]
fn the_first_option_is_no_damage_and_any_other_is_told() {
    for (how, struck) in [
        (Robustness::Trash, &[0][..]),
        (Robustness::BitRot, &[0, 1]),
        (Robustness::Misdirected, &[1]),
    ] {
        let crashed = in_doubt(&[[1; UNIT], [2; UNIT]], &[3; UNIT]);
        let mut sound = crashed.clone();
        assert_eq!(sound.damage(how, &mut Always(0)), [0; 0], "{how}");
        assert_eq!(sound.allowed_hash(), crashed.allowed_hash(), "{how}");
        assert_eq!(crashed.clone().damage(how, &mut Always(1)), struck, "{how}");
    }
}

#[test]
fn trash_is_ones_or_noise_or_half_of_each_value() {
    let trash = |kind: u32| {
        let mut disk = in_doubt(&[[1; UNIT]], &[3; UNIT]);
        disk.damage(Robustness::Trash, &mut Always(kind));
        let key = disk.read(0, &mut Steer(|_, what: Choice<'_>| unreachable!("{what:?}")));
        *disk.values().bytes(key)
    };
    assert_eq!(trash(1), [0xff; UNIT]);
    // Known, so that a recorded case finds the same noise on every machine.
    assert_eq!(trash(2)[..8], [109, 150, 239, 193, 58, 78, 75, 23]);
    assert_eq!(trash(3)[..], [[3; UNIT / 2], [1; UNIT / 2]].concat());
}

#[test]
fn rot_flips_the_bit_that_was_chosen() {
    let values = Values::new();
    let old: Bytes = std::array::from_fn(|at| at as u8 ^ 0x5a);
    for bit in 0..UNIT * 8 {
        let mut disk = PossibleDisk::from_extents(&values, UNIT as u64, [(0, &old[..])]);
        disk.damage(
            Robustness::BitRot,
            &mut Steer(|_, what: Choice<'_>| match what {
                Choice::Bit { .. } => bit as u32,
                _ => 1,
            }),
        );
        let key = disk.read(0, &mut Always(0));
        let mut bytes = *values.bytes(key);
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(bytes, old, "bit {bit}");
    }
}

#[test]
fn damage_reaches_units_that_were_never_written() {
    let mut disk = PossibleDisk::new(&Values::new(), 1);
    let grown = disk.submit_set_len(1000, &mut Always(0));
    disk.complete(grown);
    let flush = disk.submit_flush();
    assert!(disk.complete_flush(flush));
    let mut crashed = disk.crash(Profile::TornLength, &mut Always(0));
    let mut last =
        Steer(|_, what: Choice<'_>| u32::from(matches!(what, Choice::Damage { unit: 992 })));
    assert_eq!(crashed.damage(Robustness::BitRot, &mut last), [992]);
    let key = crashed.read(992, &mut Always(0));
    assert_eq!(crashed.values().bytes(key)[0], 1);
}

/// Goal: behind the end of a file there is nothing that could rot. Method: an append of two units in doubt, whose every unit is struck; whatever
/// length that leaves, what lies behind it reads as zeroes.
#[test]
fn what_is_cut_off_does_not_rot() {
    let mut lengths = BTreeSet::new();
    explore(|chooser| {
        let values = Values::new();
        let mut disk = PossibleDisk::from_extents(&values, UNIT as u64, [(0, &[1; UNIT][..])]);
        let keys = [values.intern(&[2; UNIT]), values.intern(&[3; UNIT])];
        let write = disk.submit_write(1, &keys, Durability::Cached, chooser);
        disk.complete(write);
        let mut crashed = disk.crash(Profile::TornLength, chooser);
        let mut strike = Steer(|options, what: Choice<'_>| match what {
            Choice::Damage { .. } => 1,
            Choice::Bit { .. } => 0,
            _ => faultfs::chooser::Chooser::choose(chooser, options, what),
        });
        let struck = crashed.damage(Robustness::BitRot, &mut strike);
        let len = crashed.len(chooser);
        assert_eq!(struck, (0..len).collect::<Vec<u32>>());
        assert!((len..4).all(|unit| crashed.read(unit, chooser) == Key::ZERO), "of {len} units");
        lengths.insert(len);
    });
    assert_eq!(lengths, BTreeSet::from([1, 3]));
}
