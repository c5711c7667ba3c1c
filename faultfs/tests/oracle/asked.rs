//! What is left to chance, and when it is asked for.
//!
//! Goal: a chooser is asked where the rules leave something open and nowhere else, at the cut for what a profile fixes there
//! and at the first look for the rest; option 0 loses least. Method: small programs with every question written down by hand.
//! Outcomes alone would not show a question too many: it doubles the work of whoever enumerates the answers.

use faultfs::chooser::{Always, Choice, Steer};
use faultfs::disk::PossibleDisk;
use faultfs::profile::DiscardMode;
use faultfs::profile::Profile::{self, Cache, Epoch, Kill, Prefix, Torn, TornLength};
use faultfs::values::Key;

use super::program::{Keys, Order, Program, look};

/// Name, profile, length of the file, program, what is asked while option 0 is taken.
const TABLE: &[(&str, Profile, u32, &str, &str)] = &[
    // At the cut.
    ("whole writes in flight", Kill, 2, "W(a) W(b)~ W(ab)~ crash", "write b, write ab"),
    ("a cut, then writes in flight", Prefix, 2, "W(a) W(b) W(a)~ crash", "prefix of 3, write a"),
    ("no cut through what is durable", Prefix, 1, "W(a) F crash", ""),
    ("a barrier, then free writes", Epoch, 2, "W(a) F~ W(b) crash", "epoch of 2, write b"),
    ("no barrier when the flush ended", Epoch, 1, "W(a) F W(a) crash", "write a"),
    ("nor before it", Epoch, 1, "F~ F~ >. W(a) crash", "write a"),
    ("but after it", Epoch, 1, "F~ F~ <. W(a) crash", "epoch of 2, write a"),
    ("a failed flush is no barrier", Epoch, 1, "F~ F!retry W(a) crash", "epoch of 2, write a"),
    ("nor after one for good", Epoch, 1, "F~ F!sticky F W(a) crash", "epoch of 2, write a"),
    ("a discard stands beside anyway", Kill, 1, "D(a)~ crash R(a)", "unit a: . o"),
    ("nothing under cache", Cache, 2, "W(ab) W(b)~ F~ crash", ""),
    ("nothing where writes tear", TornLength, 2, "W(ab) W(c)~ F~ crash", ""),
    // At the first look.
    ("a whole write, once", Cache, 2, "W(ab) crash R(a) R(b)", "write ab"),
    ("unit by unit", Torn, 2, "W(ab) crash R(a) R(b) R(a)", "unit a: 1 o, unit b: 1 o"),
    ("what is in flight or below", Torn, 1, "W(a)~ R(a)", "read a: 1 o"),
    ("what is open below stays so", Torn, 1, "W(a) crash W(a)~ R(a)", "read a: 2 or below"),
    ("a length", TornLength, 1, "W(b) crash N N", "length 2 1"),
    ("before what may lie beyond it", TornLength, 1, "W(b) crash W(b) N", "length 2 1"),
    ("not before what lies within", TornLength, 1, "W(b) crash W(a) Z(a) D(a)", ""),
    ("nor for units that it spares", TornLength, 2, "W(c) crash D(b)", ""),
];

fn asked(program: &Program, profile: Profile) -> String {
    let keys = Keys::new();
    let mut questions: Vec<String> = Vec::new();
    let name = |unit: u32| char::from(b'a' + unit as u8);
    let names = |options: &[Key]| {
        options.iter().map(|&key| format!(" {}", keys.name(key))).collect::<String>()
    };
    let mut chooser = Steer(|count, what: Choice<'_>| {
        questions.push(match what {
            Choice::Unit { unit, options } => format!("unit {}:{}", name(unit), names(options)),
            Choice::Read { unit, options, medium } => {
                let below = if medium { " or below" } else { "" };
                format!("read {}:{}{below}", name(unit), names(options))
            }
            Choice::Write { unit, count } => {
                format!("write {}", (unit..unit + count).map(name).collect::<String>())
            }
            Choice::Prefix => format!("prefix of {count}"),
            Choice::Epoch => format!("epoch of {count}"),
            Choice::Length { options } => {
                options.iter().fold("length".to_owned(), |text, len| format!("{text} {len}"))
            }
            other => panic!("{other:?}"),
        });
        0
    });
    program.run(program.disk(&keys), &keys, profile, &mut chooser);
    questions.join(", ")
}

#[test]
fn exactly_what_is_open_is_asked_for_when_it_matters() {
    for &(row, profile, len, program, expected) in TABLE {
        let parsed = Program::parse(len, program).expect("the table is well formed");
        assert_eq!(asked(&parsed, profile), expected, "{row} ({profile}): {program}");
    }
}

/// Of two files of a unit each.
#[test]
fn each_file_is_asked_for_what_is_its_own() {
    for (row, profile, program, expected) in [
        ("one cut", Prefix, "W(a) W(c) crash", "prefix of 3"),
        ("durable with what was before", Prefix, "W(a) W(c) f crash", ""),
        ("a cut each", Epoch, "F~ f~ f~ crash", "epoch of 2, epoch of 3"),
        ("a length each", TornLength, "W(b) W(d) crash N n N n", "length 2 1, length 2 1"),
        ("no length of the other", TornLength, "W(b) crash W(cd) n R(d)", ""),
        ("a length for its own units", TornLength, "W(b) W(d) crash W(d)", "length 2 1"),
    ] {
        let parsed = Program::parse(1, program).expect("well formed").with_second(Some(1));
        assert_eq!(asked(&parsed, profile), expected, "{row} ({profile}): {program}");
    }
}

#[test]
fn the_first_option_loses_nothing_and_the_last_one_most() {
    let program = Program::parse(2, "W(ab) W(b) W(c)~ W(a)~ crash").expect("well formed");
    let keys = Keys::new();
    let end = |profile, mut chooser: Always| {
        let (mut disk, _) = program.run(program.disk(&keys), &keys, profile, &mut chooser);
        look(&mut disk, String::new(), &keys, Order::LengthFirst, &mut chooser)
    };
    assert_eq!(Profile::ALL.map(|profile| end(profile, Always(0))), ["|423"; 6]);
    let most = Profile::ALL.map(|profile| end(profile, Always(u32::MAX)));
    assert_eq!(most, ["|12", "|oo", "|oo", "|oo", "|oo", "|oo"]);
}

#[test]
fn a_discard_is_what_the_device_says() {
    let keys = Keys::new();
    let after = |mode, text: &str| {
        let program = Program::parse(1, text).expect("well formed");
        let disk: PossibleDisk = program.disk(&keys).with_discard(mode);
        let (disk, _) = program.run(disk, &keys, TornLength, &mut Always(0));
        let mut possible = Vec::new();
        disk.peek(0, &mut possible);
        possible.iter().map(|&key| keys.name(key)).collect::<String>()
    };
    for (text, either, zeroes) in
        [("D(a)", ".o", ".o"), ("D(a) F", ".o", "."), ("W(a) F D(a) F", ".1", ".")]
    {
        assert_eq!(after(DiscardMode::Either, text), either, "{text}");
        assert_eq!(after(DiscardMode::Zeroes, text), zeroes, "{text}");
    }
}
