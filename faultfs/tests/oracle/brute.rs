//! Every small program, compared with the naive enumerator, under every profile.
//!
//! Goal: no combination of a few operations that the litmus table forgot makes a difference. Method: all sequences over
//! alphabets (order, lengths, failures and discards, overlap, late failures, failed syncs, the same of two files), each ended by a crash, and longer ones at random.
//! Programs with discards run on devices of both kinds.
//! On the way the profiles are held to their order: what one may leave contains what the weaker one may.

use std::collections::BTreeSet;

use faultfs::Defect;
use faultfs::profile::{DiscardMode, Profile};
use faultfs::rng::Rng;

use super::PARTS;
use super::naive;
use super::program::{Order, Program};
use super::turn::share;

/// Lengths of the files.
type Lens = (u32, Option<u32>);

const ALPHABETS: &[(Lens, &[&str])] = &[
    // Order: whole and multi-unit writes, flushes in flight, crashes in between.
    (
        (2, None),
        &[
            "W(a)", "W(ab)", "T(b)", "F", "crash", "R(a)", "R(b)", "W(a)~", "T(b)~", "F~", "<.",
            ">.", "<!",
        ],
    ),
    // Lengths: appends, cuts, growth.
    (
        (2, None),
        &[
            "W(c)", "T(c)", "W(b)", "Z(d)", "L1", "L3", "F", "crash", "R(c)", "N", "W(c)~",
            "T(d)~", "L1~", "L2~", "F~", "<.", ">.",
        ],
    ),
    // Failures and discards.
    (
        (2, None),
        &[
            "W(a)", "T(a)", "D(ab)", "Z(a)", "F", "F!clean", "F!sticky", "F~", "<!clean", "W(a)!",
            "W(bc)!1", "R(a)", "crash",
        ],
    ),
    // Overlap, which breaks the contract of a storage and has a meaning all the same.
    (
        (2, None),
        &["W(a)~", "W(ab)~", "T(a)~", "W(a)", "F", "F~", "<.", ">.", "<!", "crash", "R(a)"],
    ),
    // Late failures: what may land until it is settled.
    (
        (2, None),
        &[
            "W(a)!late",
            "W(bc)!late",
            "T(a)!late",
            "Z(b)!late",
            "D(a)!late",
            "L3!late",
            "D(b)",
            "S",
            "W(a)",
            "T(b)",
            "F",
            "R(a)",
            "crash",
        ],
    ),
    // Failed syncs: write-through that fails after its data.
    (
        (2, None),
        &[
            "T(a)",
            "T(b)!retry",
            "T(a)!clean",
            "T(bc)!clean",
            "T(a)!sticky",
            "W(a)",
            "W(ab)",
            "F",
            "T(a)~",
            "<!clean",
            "<.",
            "R(a)",
            "crash",
        ],
    ),
    // Two files: order, flushes of each, barriers of each.
    (
        (1, Some(1)),
        &[
            "W(a)", "W(c)", "T(a)", "T(c)", "F", "f", "crash", "R(a)", "R(c)", "W(a)~", "W(c)~",
            "F~", "f~", "<.", "<!",
        ],
    ),
    // Two files: appends, cuts, growth up to the room of the first one.
    (
        (1, Some(2)),
        &[
            "W(b)", "W(d)", "W(ab)", "T(d)", "L0", "L2", "l1", "l2", "F", "f", "N", "n", "crash",
            "W(b)~", "l0~", "<.",
        ],
    ),
    // Two files: failures, discards, failed syncs of one of them.
    (
        (1, Some(1)),
        &[
            "W(a)",
            "W(c)",
            "D(c)",
            "Z(d)",
            "F!clean",
            "f!clean",
            "f!sticky",
            "T(c)!clean",
            "F",
            "f",
            "W(a)!late",
            "W(cd)!1",
            "S",
            "crash",
        ],
    ),
];

/// All programs of `length` symbols of an alphabet, ended by a crash; of so many parts the one whose turn it is.
pub(super) fn for_each_program(
    alphabet: &[&str],
    length: u32,
    parts: usize,
    mut visit: impl FnMut(&str),
) {
    assert!(parts == 1 || !alphabet.len().is_multiple_of(parts));
    let count = (alphabet.len() as u32).pow(length);
    for mut number in share(0..count, parts) {
        let mut text = String::new();
        for _ in 0..length {
            text += alphabet[number as usize % alphabet.len()];
            text.push(' ');
            number /= alphabet.len() as u32;
        }
        text += "crash";
        visit(&text);
    }
}

#[derive(Default)]
struct Tally {
    compared: u64,
    outcomes: u64,
    unspecified: u64,
}

/// The discards of the devices on which a program is run: both where that can make a difference in few operations.
fn discards(text: &str) -> &'static [DiscardMode] {
    match text.contains('D') && text.split(' ').count() <= 4 {
        true => &[DiscardMode::Either, DiscardMode::Zeroes],
        false => &[DiscardMode::Either],
    }
}

/// The program of `text` on files of these lengths.
pub(crate) fn parse((len, second): Lens, text: &str) -> Option<Program> {
    Some(Program::parse(len, text)?.with_second(second))
}

/// Compares one program under all profiles.
fn compare(lens: Lens, text: &str, tally: &mut Tally) {
    let Some(program) = parse(lens, text) else { return };
    for &discard in discards(text) {
        compare_on(&program.clone().with_discard(discard), text, tally);
    }
}

fn compare_on(program: &Program, text: &str, tally: &mut Tally) {
    let mut weaker: Option<BTreeSet<String>> = None;
    for profile in Profile::ALL {
        let Ok(expected) = naive::outcomes(program, profile) else {
            tally.unspecified += 1;
            return;
        };
        let order = match tally.compared % 2 {
            0 => Order::LengthFirst,
            _ => Order::UnitsFirst,
        };
        let found = program.explore(profile, None, order);
        assert_eq!(
            found, expected,
            "{text} (length {}, {:?}, {:?}) under {profile}: found, expected",
            program.len, program.second, program.discard
        );
        if let Some(weaker) = &weaker {
            assert!(
                weaker.is_subset(&found),
                "{text}: {profile} lacks what a weaker profile allows"
            );
        }
        tally.compared += 1;
        tally.outcomes += found.len() as u64;
        weaker = Some(found);
    }
}

fn compare_all(alphabet: usize, lengths: std::ops::RangeInclusive<u32>) -> Tally {
    let (lens, symbols) = ALPHABETS[alphabet];
    let mut tally = Tally::default();
    for length in lengths {
        for_each_program(symbols, length, PARTS, |text| compare(lens, text, &mut tally));
    }
    println!(
        "alphabet {alphabet}: {} comparisons, {} outcomes, {} programs unspecified",
        tally.compared, tally.outcomes, tally.unspecified
    );
    tally
}

fn compare_at_least(comparisons: u64, alphabet: usize, lengths: std::ops::RangeInclusive<u32>) {
    let compared = compare_all(alphabet, lengths).compared;
    assert!(compared > comparisons / parts(), "{compared} comparisons");
}

/// So many parts, if only one of them is looked at.
pub(super) fn parts() -> u64 {
    (PARTS / share(0..PARTS, PARTS).count()) as u64
}

#[test]
fn order() {
    compare_at_least(50_000, 0, 0..=4);
}

#[test]
fn lengths() {
    compare_at_least(10_000, 1, 0..=3);
}

#[test]
fn failures_and_discards() {
    compare_at_least(50_000, 2, 0..=4);
}

#[test]
fn late_failures() {
    compare_at_least(30_000, 4, 0..=4);
}

#[test]
fn failed_syncs() {
    compare_at_least(30_000, 5, 0..=4);
}

#[test]
fn overlap() {
    compare_at_least(30_000, 3, 0..=4);
}

#[test]
fn order_of_two_files() {
    compare_at_least(50_000, 6, 0..=4);
}

#[test]
fn lengths_of_two_files() {
    compare_at_least(10_000, 7, 0..=3);
}

#[test]
fn failures_of_two_files() {
    compare_at_least(10_000, 8, 0..=3);
}

/// A program of `length` symbols of one alphabet, ended by a crash, and the lengths of its files.
pub(crate) fn random_program(rng: &mut Rng, length: u32) -> (Lens, String) {
    let (lens, symbols) = ALPHABETS[rng.below(ALPHABETS.len() as u32) as usize];
    let symbols = (0..length).map(|_| symbols[rng.below(symbols.len() as u32) as usize]);
    (lens, symbols.chain(["crash"]).collect::<Vec<_>>().join(" "))
}

#[test]
fn longer_programs_at_random() {
    let mut rng = Rng::new(1);
    let mut tally = Tally::default();
    for _ in 0..9000 / parts() {
        let (lens, text) = random_program(&mut rng, 6);
        compare(lens, &text, &mut tally);
    }
    println!("{} comparisons, {} outcomes", tally.compared, tally.outcomes);
    assert!(tally.compared > 5_000 / parts());
}

/// The first program of at most `longest` symbols on which a defect differs from the enumerator.
pub(crate) fn first_failure(defect: Defect, longest: u32) -> Option<String> {
    let mut failure = None;
    for length in 1..=longest {
        for &(lens, symbols) in ALPHABETS {
            for_each_program(symbols, length, 1, |text| {
                let Some(program) = parse(lens, text).filter(|_| failure.is_none()) else {
                    return;
                };
                for &discard in discards(text) {
                    let program = program.clone().with_discard(discard);
                    for profile in Profile::ALL {
                        let Ok(expected) = naive::outcomes(&program, profile) else { return };
                        if program.explore(profile, Some(defect), Order::LengthFirst) != expected {
                            failure = Some(format!("{profile}: {text}"));
                            return;
                        }
                    }
                }
            });
            if failure.is_some() {
                return failure;
            }
        }
    }
    None
}
