//! Mutants: images that QEMU made, of every kind that it can make, with one to four changes to their metadata. Whatever they
//! are, check, repair and opening for writing must not make them worse.
//!
//! ```text
//!   qemu-img create, qemu-io ──> seed images ──changes──> mutant ──┬─ repair (leaks, all, rebuild) ──┐   what could be
//!                                                                  └─ open for writing, write ───────┴─> read still reads
//!                                                                                                        the same, and QEMU
//!                                                                                                        agrees
//! ```
//!
//! Environment: `MUTANTS` (how many; 300 without it), `MUTANTS_SEED` (others of them), `MUTANTS_ASKED` (one in so many is shown to QEMU,
//! which takes most of the time; 1 without it), `MUTANT` (only this number, with every violation printed). A mutant is a function of the seed and its number, wherever and in whatever order it runs.
//!
//! Where an image is so damaged that a promise cannot be kept, [`judge::Excuse`] says which and why, and nothing else is let pass.

mod changes;
mod difference;
mod judge;
mod kept;
mod seeds;
mod view;
mod watched;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use self::changes::Mutant;
use self::judge::{Figures, Property, Violation, judge, now};
use self::seeds::{Seeds, seeds};

/// Mutants unless `MUTANTS` says otherwise.
const MUTANTS: u64 = 300;

/// Mutants from one word about how far it is to the next.
const PROGRESS: u64 = 50_000;
/// How many kinds of violations are shown.
const KINDS: usize = 20;

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text:?} is not a number")))
}

/// The most bytes that this process has had in memory, whatever else it did.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let words = line.map(str::split_whitespace).and_then(|mut words| words.next());
    words.and_then(|kibibytes| kibibytes.parse::<u64>().ok()).unwrap_or(0) << 10
}

/// Violations of one kind.
struct Kind {
    count: u64,
    first: u64,
    example: String,
}

/// The mutant without the changes that a kind of violation does not need.
fn minimised<'a>(mutant: Mutant<'a>, kind: &(Property, String)) -> Mutant<'a> {
    let figures = Figures::default();
    let mut least = mutant;
    let mut index = 0;
    while index < least.changes.len() {
        let mut changes = least.changes.clone();
        changes.remove(index);
        let fewer = Mutant { number: least.number, seed: least.seed, changes };
        if judge(&fewer, true, &figures).0.iter().any(|violation| violation.kind() == *kind) {
            least = fewer;
        } else {
            index += 1;
        }
    }
    least
}

/// Goal: whatever happened to an image, repair and writing make it no worse. Method: see the top of this file.
#[test]
#[cfg_attr(
    not(has_qemu),
    ignore = "qemu-img and qemu-io are not installed (Debian package qemu-utils)"
)]
#[cfg_attr(
    all(has_qemu, not(turn = "11")),
    ignore = "its turn is at another commit; CI=1 runs all"
)]
fn mutants_of_qemu_images_get_no_worse() {
    let Seeds { images: seeds, .. } = &seeds();
    let asked = setting("MUTANTS_ASKED").unwrap_or(1).max(1);
    let run = setting("MUTANTS_SEED").unwrap_or(0);
    let figures = Figures::default();
    if let Some(number) = setting("MUTANT") {
        let mutant = Mutant::new(seeds, run, number);
        println!("{mutant}");
        let (found, _) = judge(&mutant, true, &figures);
        for Violation { property, during, what } in &found {
            println!("  {property:?}, {during}: {what}");
        }
        assert!(found.is_empty(), "{mutant}");
        return;
    }
    let mutants = setting("MUTANTS").unwrap_or(MUTANTS);
    let next = AtomicU64::new(0);
    let kinds: Mutex<BTreeMap<(Property, String), Kind>> = Mutex::default();
    let violated = AtomicU64::new(0);
    let waited = Mutex::new(Duration::ZERO);
    let started = now();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= mutants {
                        return;
                    }
                    if number > 0 && number.is_multiple_of(PROGRESS) {
                        let seconds = (now() - started).as_secs();
                        let violated = violated.load(Ordering::Relaxed);
                        eprintln!(
                            "{number} of {mutants} after {seconds} s, {violated} violate something"
                        );
                    }
                    let mutant = Mutant::new(seeds, run, number);
                    let (found, time) = judge(&mutant, number.is_multiple_of(asked), &figures);
                    *waited.lock().unwrap() += time;
                    violated.fetch_add(u64::from(!found.is_empty()), Ordering::Relaxed);
                    let mut kinds = kinds.lock().unwrap();
                    for violation in found {
                        let kind = kinds.entry(violation.kind()).or_insert_with(|| Kind {
                            count: 0,
                            first: u64::MAX,
                            example: String::new(),
                        });
                        kind.count += 1;
                        if number < kind.first {
                            kind.first = number;
                            kind.example = violation.what;
                        }
                    }
                }
            });
        }
    });
    let seconds = (now() - started).as_secs_f64();
    println!(
        "{mutants} mutants in {seconds:.1} s, of which QEMU took {:.1} s of all processors; {} violate something",
        waited.into_inner().unwrap().as_secs_f64(),
        violated.into_inner(),
    );
    println!("  {} MiB of memory at most", peak() >> 20);
    for (what, count) in figures.0.lock().unwrap().iter() {
        println!("  {count} {what}");
    }
    let kinds = kinds.into_inner().unwrap();
    let mut shown: Vec<_> = kinds.iter().collect();
    shown.sort_by_key(|(_, kind)| std::cmp::Reverse(kind.count));
    for (kind, Kind { count, first, example }) in shown.iter().take(KINDS) {
        println!("{count} x {:?}, {}", kind.0, kind.1);
        let mutant = minimised(Mutant::new(seeds, run, *first), kind);
        println!("    {mutant}\n    {example}");
    }
    assert!(kinds.is_empty(), "{} kinds of violations", kinds.len());
}
