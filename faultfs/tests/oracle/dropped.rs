//! Operations whose future is dropped, with their exact outcomes.
//!
//! Goal: an operation that nobody waits for goes on, whatever it is, and may land until the storage is settled; a flush does
//! not end it. Method: as in `litmus`, every outcome is written down, here for each profile. Three must agree with the table:
//! the possible disk and the naive enumerator, on all programs in which the operation ends at some moment that is left to it,
//! and the executor, where the future is dropped in earnest, under every schedule.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use faultfs::Defect;
use faultfs::chooser::{Choice, Chooser, Exhaustive, ask};
use faultfs::disk::File;
use faultfs::exec::{Sim, SimOptions, SimStorage, StepResult};
use faultfs::fault::{Fault, FaultAt, Planned, PlannedFault};
use faultfs::profile::DiscardMode::{self, Either, Zeroes};
use faultfs::profile::Profile::{self, Cache, Epoch, Kill, Prefix, Torn, TornLength};
use faultfs::schedule::{Choices, TaskId};
use storage::{Durability, IoBuf, Storage, UNIT};

use super::PARTS;
use super::brute::{for_each_program, parts};
use super::naive;
use super::program::{Ending, Event, Keys, Op, Order, Program, SECOND, look};

const ALL: &[Profile] = &Profile::ALL;
/// Those that lose what has completed.
const LOSSY: &[Profile] = &[Prefix, Epoch, Cache, Torn, TornLength];
/// Those that keep writes whole, and those that do not.
const WHOLE: &[Profile] = &[Kill, Prefix, Epoch, Cache];
const TORN: &[Profile] = &[Torn, TornLength];
/// Those under which a length that was reached stays.
const KEPT: &[Profile] = &[Kill, Prefix, Epoch, Cache, Torn];

struct Dropped {
    name: &'static str,
    discard: DiscardMode,
    /// Length of the file at first.
    len: u32,
    program: &'static str,
    /// Every profile, in groups that leave the same.
    outcomes: &'static [(&'static [Profile], &'static str)],
}

const fn row(
    name: &'static str,
    discard: DiscardMode,
    len: u32,
    program: &'static str,
    outcomes: &'static [(&'static [Profile], &'static str)],
) -> Dropped {
    Dropped { name, discard, len, program, outcomes }
}

const TABLE: &[Dropped] = &[
    // A discard.
    row("a discard", Either, 1, "D(a)- crash", &[(ALL, "|o |.")]),
    row("settled", Either, 1, "D(a)- S crash", &[(ALL, "|o |.")]),
    row("settled and flushed", Either, 1, "D(a)- S F crash", &[(ALL, "|o |.")]),
    row("flushed, not settled", Either, 1, "D(a)- F crash", &[(ALL, "|o |.")]),
    row(
        "settled and written over",
        Either,
        1,
        "D(a)- S W(a) crash",
        &[(&[Kill], "|1"), (LOSSY, "|o |. |1")],
    ),
    row("and flushed", Either, 1, "D(a)- S W(a) F crash", &[(ALL, "|1")]),
    row("or written through", Either, 1, "D(a)- S T(a) crash", &[(ALL, "|1")]),
    row("over in part", Either, 2, "D(ab)- S W(a) F crash", &[(ALL, "|1o |1.")]),
    row("it fails", Either, 1, "D(a)-! S F crash", &[(ALL, "|o |.")]),
    row("it fails late", Either, 1, "D(a)-!late F crash", &[(ALL, "|o |.")]),
    row("late, settled, over", Either, 1, "D(a)-!late S W(a) F crash", &[(ALL, "|1")]),
    // A discard by a device that zeroes.
    row("a zeroing discard", Zeroes, 1, "D(a)- crash", &[(ALL, "|o |.")]),
    row("it settled", Zeroes, 1, "D(a)- S crash", &[(&[Kill], "|."), (LOSSY, "|o |.")]),
    row("it settled and flushed", Zeroes, 1, "D(a)- S F crash", &[(ALL, "|.")]),
    row("it flushed, not settled", Zeroes, 1, "D(a)- F crash", &[(ALL, "|o |.")]),
    row(
        "it settled, two units",
        Zeroes,
        2,
        "D(ab)- S crash",
        &[(&[Kill], "|.."), (&[Prefix, Epoch, Cache], "|oo |.."), (TORN, "|oo |.o |o. |..")],
    ),
    row(
        "it settled, written over",
        Zeroes,
        1,
        "D(a)- S W(a) crash",
        &[(&[Kill], "|1"), (LOSSY, "|o |. |1")],
    ),
    row("and that flushed", Zeroes, 1, "D(a)- S W(a) F crash", &[(ALL, "|1")]),
    row("it over in part", Zeroes, 2, "D(ab)- S W(a) F crash", &[(ALL, "|1.")]),
    row("it fails, zero or not", Zeroes, 1, "D(a)-! S F crash", &[(ALL, "|o |.")]),
    row("late, it does too", Zeroes, 1, "D(a)-!late S F crash", &[(ALL, "|o |.")]),
    // Zeroes.
    row("zeroes", Either, 1, "Z(a)- crash", &[(ALL, "|o |.")]),
    row("zeroes, settled", Either, 1, "Z(a)- S crash", &[(&[Kill], "|."), (LOSSY, "|o |.")]),
    row("zeroes, settled and flushed", Either, 1, "Z(a)- S F crash", &[(ALL, "|.")]),
    row("zeroes, flushed, not settled", Either, 1, "Z(a)- F crash", &[(ALL, "|o |.")]),
    row(
        "zeroes, settled, written over",
        Either,
        1,
        "Z(a)- S W(a) crash",
        &[(&[Kill], "|1"), (LOSSY, "|o |. |1")],
    ),
    row("zeroes, that flushed", Either, 1, "Z(a)- S W(a) F crash", &[(ALL, "|1")]),
    row("zeroes past the end", Either, 1, "Z(b)- crash", &[(ALL, "|o |o.")]),
    row("those settled", Either, 1, "Z(b)- S crash", &[(KEPT, "|o."), (&[TornLength], "|o |o.")]),
    row("those settled and flushed", Either, 1, "Z(b)- S F crash", &[(ALL, "|o.")]),
    row("those flushed, not settled", Either, 1, "Z(b)- F crash", &[(ALL, "|o |o.")]),
    row("zeroes that fail", Either, 1, "Z(a)-! S F crash", &[(ALL, "|o |.")]),
    row("late zeroes, over", Either, 1, "Z(a)-!late S W(a) F crash", &[(ALL, "|1")]),
    // A longer file.
    row("growth", Either, 1, "L3- crash", &[(ALL, "|o |o..")]),
    row("growth, settled", Either, 1, "L3- S crash", &[(KEPT, "|o.."), (&[TornLength], "|o |o..")]),
    row("growth, settled and flushed", Either, 1, "L3- S F crash", &[(ALL, "|o..")]),
    row("growth, flushed, not settled", Either, 1, "L3- F crash", &[(ALL, "|o |o..")]),
    row(
        "growth, settled, written to",
        Either,
        1,
        "L3- S W(b) crash",
        &[
            (&[Kill], "|o1."),
            (&[Prefix, Epoch, Cache, Torn], "|o.. |o1."),
            (&[TornLength], "|o |o. |o.. |o1 |o1."),
        ],
    ),
    row("growth, that flushed", Either, 1, "L3- S W(b) F crash", &[(ALL, "|o1.")]),
    row(
        "growth, written through",
        Either,
        1,
        "L3- S T(b) crash",
        &[(KEPT, "|o1."), (&[TornLength], "|o1 |o1.")],
    ),
    row("growth and less again", Either, 1, "L3- S L2 F crash", &[(ALL, "|o.")]),
    row("growth that fails", Either, 1, "L3-! S F crash", &[(ALL, "|o |o..")]),
    row("growth without space", Either, 1, "L3-!0 S F crash", &[(ALL, "|o")]),
    row("late growth, then less", Either, 1, "L3-!late S L2 F crash", &[(ALL, "|o.")]),
    // A shorter file.
    row("a cut", Either, 2, "L1- crash", &[(WHOLE, "|o |oo"), (TORN, "|o |oo |o.")]),
    row("a cut, settled", Either, 2, "L1- S crash", &[(KEPT, "|o"), (&[TornLength], "|o |oo |o.")]),
    row("a cut, settled and flushed", Either, 2, "L1- S F crash", &[(ALL, "|o")]),
    row(
        "a cut, flushed, not settled",
        Either,
        2,
        "L1- F crash",
        &[(WHOLE, "|o |oo"), (TORN, "|o |oo |o.")],
    ),
    row(
        "a cut, settled, written to",
        Either,
        2,
        "L1- S W(b) crash",
        &[
            (&[Kill], "|o1"),
            (&[Prefix, Epoch, Cache, Torn], "|oo |o. |o1"),
            (&[TornLength], "|o |oo |o. |o1"),
        ],
    ),
    row("a cut, that flushed", Either, 2, "L1- S W(b) F crash", &[(ALL, "|o1")]),
    row("a cut, written through", Either, 2, "L1- S T(b) crash", &[(ALL, "|o1")]),
    row("a cut and more again", Either, 2, "L1- S L2 F crash", &[(ALL, "|o.")]),
    row(
        "a cut that fails",
        Either,
        2,
        "L1-! S F crash",
        &[(WHOLE, "|o |oo"), (TORN, "|o |oo |o.")],
    ),
    row("a late cut, then more", Either, 2, "L1-!late S L2 F crash", &[(ALL, "|oo |o.")]),
    // Several at once.
    row(
        "a discard and growth",
        Either,
        1,
        "D(a)- L3- S T(a) crash",
        &[(KEPT, "|1.."), (&[TornLength], "|1 |1..")],
    ),
    row("a discard and zeroes", Either, 2, "D(a)- Z(b)- S F crash", &[(ALL, "|o. |..")]),
];

fn parse(dropped: &Dropped) -> Program {
    let program = Program::parse(dropped.len, dropped.program).expect("the table is well formed");
    program.with_discard(dropped.discard)
}

fn set(outcomes: &str) -> BTreeSet<String> {
    outcomes.split(' ').map(str::to_owned).collect()
}

/// What `outcomes` gives for the program with every ending of what it drops.
fn with_all_endings(
    program: &Program,
    outcomes: impl Fn(&Program) -> BTreeSet<String>,
) -> BTreeSet<String> {
    program.endings().iter().flat_map(outcomes).collect()
}

fn on_the_disk(program: &Program, profile: Profile, defect: Option<Defect>) -> BTreeSet<String> {
    with_all_endings(program, |program| program.explore(profile, defect, Order::LengthFirst))
}

/// Everything that may come out of a program when its operations are tasks, under every schedule. Something is seen to wait for
/// ever as `hangs`.
fn on_the_executor(
    program: &Program,
    profile: Profile,
    defect: Option<Defect>,
) -> BTreeSet<String> {
    let chooser = Arc::new(Mutex::new(Exhaustive::new()));
    let keys = Keys::new();
    let mut outcomes = BTreeSet::new();
    loop {
        let disk = program.disk(&keys).with_defect(defect);
        let schedule = Choices::new(Arc::clone(&chooser));
        let mut options = SimOptions::new(schedule, Arc::clone(&chooser));
        options.faults = Box::new(Planned(faults(program)));
        let mut sim = Sim::new(disk, options);
        let mut chance = Arc::clone(&chooser);
        outcomes.insert(match run(&mut sim, program, &keys, &mut chance) {
            Ok(()) => {
                let mut disk = sim.disk().crash(profile, &mut chance);
                look(&mut disk, String::new(), &keys, Order::LengthFirst, &mut chance)
            }
            Err(hangs) => hangs,
        });
        let mut chooser = chooser.lock().expect("nobody panicked");
        if !chooser.advance() {
            assert!(!chooser.diverged(), "a run is not a function of its choices");
            return outcomes;
        }
    }
}

/// The endings of a program that are errors, as faults: operations are numbered as the executor numbers its I/Os.
fn faults(program: &Program) -> Vec<PlannedFault> {
    let fault = |event: &Event| {
        let (Event::End(id, ending) | Event::Drop(id, ending)) = *event else { return None };
        let fault = match ending {
            Ending::Well => return None,
            Ending::Eio => Fault::Eio,
            Ending::Late => Fault::Late,
            Ending::Enospc(landed) => Fault::Short { landed },
            Ending::Sync(failure) => Fault::Flush(failure),
        };
        Some(PlannedFault { at: FaultAt::Index(id as u64), fault })
    };
    program.events.iter().filter_map(fault).collect()
}

fn run(
    sim: &mut Sim,
    program: &Program,
    keys: &Keys,
    chooser: &mut impl Chooser,
) -> Result<(), String> {
    let mut events = program.events.iter().copied();
    while let Some(event) = events.next() {
        let storage = sim.storage();
        match event {
            Event::Submit(op) => {
                let byte = match op {
                    Op::Write { value, .. } => keys.byte(value),
                    _ => 0,
                };
                let task = sim.spawn("operation", operate(storage, op, byte));
                match events.next() {
                    Some(Event::Drop(..)) => {
                        step_until(
                            sim,
                            |step, _| matches!(step, StepResult::Ran { task: ran, submitted: 1, .. } if *ran == task),
                        )?;
                        sim.cancel(task);
                    }
                    Some(Event::End(..)) => finish(sim, task)?,
                    other => panic!("what is submitted ends or is dropped: {other:?}"),
                }
            }
            Event::Settle => {
                let settle = async move {
                    storage.settle().await.expect("no sync was dropped");
                };
                let task = sim.spawn("settle", settle);
                finish(sim, task)?;
            }
            Event::Crash => {
                // What is in flight may end before the power does.
                while !sim.in_flight().is_empty() && ask(chooser, 2, Choice::Prefix) == 1 {
                    sim.step();
                }
                return Ok(());
            }
            other => panic!("no event of such a program: {other:?}"),
        }
    }
    Ok(())
}

fn finish(sim: &mut Sim, task: TaskId) -> Result<(), String> {
    step_until(sim, |_, sim| !sim.is_alive(task))
}

fn step_until(sim: &mut Sim, done: impl Fn(&StepResult, &Sim) -> bool) -> Result<(), String> {
    loop {
        let step = sim.step();
        if done(&step, sim) {
            return Ok(());
        }
        if matches!(step, StepResult::Deadlock { .. } | StepResult::Done) {
            return Err("hangs".to_owned());
        }
    }
}

/// One operation, whatever it returns.
async fn operate(storage: SimStorage, op: Op, byte: u8) {
    let second = storage.second();
    let file = match op {
        Op::Write { first, .. } | Op::Zeroes { first, .. } | Op::Discard { first, .. } => {
            if second.is_some() && first >= SECOND { File::Second } else { File::First }
        }
        Op::SetLen(file, _) | Op::Flush(file) => file,
    };
    let (storage, start) = match file {
        File::First => (storage, 0),
        File::Second => (second.expect("there are two files"), SECOND),
    };
    let bytes = |units: u32| u64::from(units) * UNIT as u64;
    let range = |first: u32, count: u32| bytes(first - start)..bytes(first - start + count);
    let _ = match op {
        Op::Write { first, count, through, .. } => {
            let buf = IoBuf::copy_of(&vec![byte; count as usize * UNIT], UNIT);
            let durability = if through { Durability::Through } else { Durability::Cached };
            storage.write(bytes(first - start), buf, durability).await.1
        }
        Op::Zeroes { first, count } => storage.write_zeroes(range(first, count)).await,
        Op::Discard { first, count } => storage.discard(range(first, count)).await,
        Op::SetLen(_, len) => storage.set_len(bytes(len)).await,
        Op::Flush(_) => storage.flush().await,
    };
}

/// Goal: no combination that the table forgot makes a difference. Method: all programs of up to three symbols that keep to the
/// contract, compared with the enumerator.
#[test]
fn every_small_program_with_what_was_dropped() {
    const SYMBOLS: &[&str] =
        &["D(a)-", "D(ab)-!", "Z(c)-", "L1-", "L3-", "L3-!late", "W(b)-", "S", "F", "W(b)", "T(a)"];
    assert!(compare_all(2, None, SYMBOLS) > 2000 / parts());
}

#[test]
fn every_small_program_with_what_was_dropped_on_two_files() {
    const SYMBOLS: &[&str] =
        &["D(c)-", "Z(d)-!", "L2-", "l1-", "l2-!late", "W(c)-", "S", "F", "f", "W(b)", "T(c)"];
    assert!(compare_all(1, Some(2), SYMBOLS) > 2000 / parts());
}

fn compare_all(len: u32, second: Option<u32>, symbols: &[&str]) -> u64 {
    let mut compared = 0;
    for length in 1..=3 {
        for_each_program(symbols, length, PARTS, |text| {
            let program = Program::parse(len, text).expect("well formed").with_second(second);
            for profile in [Kill, Prefix, Cache, TornLength] {
                let mut expected = BTreeSet::new();
                for program in program.endings() {
                    let Ok(outcomes) = naive::outcomes(&program, profile) else { return };
                    expected.extend(outcomes);
                }
                assert_eq!(on_the_disk(&program, profile, None), expected, "{text} ({profile})");
                let found = on_the_executor(&program, profile, None);
                assert_eq!(found, expected, "{text} ({profile})");
                compared += 1;
            }
        });
    }
    compared
}

/// The first row that a defect fails.
pub(crate) fn first_failure(defect: Defect) -> Option<&'static str> {
    let fails = |dropped: &&Dropped| {
        let program = parse(dropped);
        let sets = |&(profiles, outcomes): &(&'static [Profile], &'static str)| {
            profiles.iter().map(move |&profile| (profile, set(outcomes)))
        };
        dropped.outcomes.iter().flat_map(sets).any(|(profile, expected)| {
            on_the_disk(&program, profile, Some(defect)) != expected
                || on_the_executor(&program, profile, Some(defect)) != expected
        })
    };
    TABLE.iter().find(fails).map(|dropped| dropped.name)
}

#[test]
fn what_was_dropped_has_exactly_its_outcomes() {
    let mut failures = String::new();
    for dropped in TABLE {
        let program = parse(dropped);
        let mut met = Vec::new();
        for &(profiles, outcomes) in dropped.outcomes {
            for &profile in profiles {
                met.push(profile);
                let naive = with_all_endings(&program, |program| {
                    naive::outcomes(program, profile).expect("it keeps to the contract")
                });
                let found = [
                    ("enumerator", naive),
                    ("disk", on_the_disk(&program, profile, None)),
                    ("executor", on_the_executor(&program, profile, None)),
                ];
                for (who, found) in found {
                    if found != set(outcomes) {
                        let found: Vec<String> = found.into_iter().collect();
                        let found = found.join(" ");
                        failures += &format!(
                            "{} ({profile}): {}\n  expected {outcomes}\n  {who} {found}\n",
                            dropped.name, dropped.program
                        );
                    }
                }
            }
        }
        met.sort_unstable();
        assert_eq!(met, Profile::ALL, "{}: every profile once", dropped.name);
    }
    assert!(failures.is_empty(), "\n{failures}");
}
